"""Images per second of training and of prediction against Ultralytics: same model, same input shape, same batch, one run.

    python benchmarks/throughput.py --data DIR_OF_BCCD --peer-python PEER_ENV/bin/python

Training: YOLO11n at 320 pixels, batch 16, each with its defaults and its whole path (reading, augmentation, step); the median
epoch after the first of the time spent training, validation left out. Prediction: `predict` of YOLO11n on one 640-pixel square
array at a time, random weights, from array to boxes. The peer runs as it is shipped and, for prediction, also with all cores.
Pelagia and the peer take turns, `--rounds` times; the median is printed with the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np

import pelagia
from pelagia.api import Predictor
from pelagia.data.convert import convert
from pelagia.models.runtime import TorchRuntime
from training import SETTINGS, ask_peer, open_data

IMAGES = 30


def train_pelagia(data: Path, out: Path, epochs: int) -> float:
    """Images per second of training, the median epoch after the first."""
    run = pelagia.train("yolo11n", data, imgsz=320, batch=16, epochs=epochs, val_every=epochs, out=str(out))
    return statistics.median(record["images_per_second"] for record in run.history[1:])


def train_peer(args: argparse.Namespace, yolo: Path, images: int, folder: Path) -> float:
    """The same of the peer."""
    request = {"action": "train", "architecture": "yolo11n.yaml", "data": str(yolo), "epochs": args.epochs, "imgsz": 320}
    request |= {"batch": 16, "seed": 0, "out": str(folder), "val": False}
    return images / statistics.median(ask_peer(args.peer_python, request, folder)["epoch_seconds"][1:])


def predict_pelagia() -> float:
    """Images per second of `predict`."""
    predictor = Predictor(TorchRuntime(pelagia.create_model("yolo11n", 80, task="detect", input_size=640)))
    image = np.random.default_rng(0).integers(0, 255, (640, 640, 3), dtype=np.uint8)
    for _ in range(5):
        predictor.predict(image)
    begin = time.perf_counter()
    for _ in range(IMAGES):
        predictor.predict(image)
    return IMAGES / (time.perf_counter() - begin)


def predict_peer(args: argparse.Namespace, threads: int, folder: Path) -> float:
    """The same of the peer; 0 threads for its default."""
    request = {"action": "speed", "architecture": "yolo11n.yaml", "imgsz": 640, "images": IMAGES, "threads": threads}
    return float(ask_peer(args.peer_python, request, folder)["images_per_second"])


def main() -> None:
    """Measure in turns, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the BCCD data set")
    parser.add_argument("--peer-python", required=True, help="Python of an environment with the peer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-throughput"))
    args = parser.parse_args()
    out = args.out.resolve()
    data = open_data(SETTINGS["bccd"], args.data)
    yolo = out / "yolo"
    if not yolo.exists():
        convert(data, yolo, "yolo")
    images, cores = len(data.split("train")), os.cpu_count() or 1

    figures: dict[str, list[float]] = {
        name: [] for name in ("train", "train peer", "predict", "predict peer", "predict peer all")
    }
    for turn in range(args.rounds):
        figures["train"].append(train_pelagia(args.data, out / f"pelagia-{time.time_ns()}", args.epochs))
        figures["train peer"].append(train_peer(args, yolo / "data.yaml", images, out / f"peer-{turn}"))
        figures["predict"].append(predict_pelagia())
        figures["predict peer"].append(predict_peer(args, 0, out / f"peer-{turn}"))
        figures["predict peer all"].append(predict_peer(args, cores, out / f"peer-{turn}"))
        print({name: round(values[-1], 2) for name, values in figures.items()}, flush=True)
    middle = {name: statistics.median(values) for name, values in figures.items()}
    (out / "results.json").write_text(json.dumps(figures, indent=1))
    print(f"{cores} cores, medians of {args.rounds}, images per second")
    for ours, peer, label in (
        ("train", "train peer", "training, 320 px, batch 16, peer as shipped"),
        ("predict", "predict peer", "prediction, 640 px, peer as shipped"),
        ("predict", "predict peer all", "prediction, 640 px, peer with all cores"),
    ):
        ratio = middle[ours] / middle[peer]
        print(f"{label:45} pelagia {middle[ours]:6.2f}  ultralytics {middle[peer]:6.2f}  ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
