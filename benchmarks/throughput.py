"""Images per second of prediction and of training against Ultralytics: same model, same input shape, one run.

    python benchmarks/throughput.py --peer-python PEER_ENV/bin/python
    python benchmarks/throughput.py --peer-python PEER_ENV/bin/python --data DIR_OF_BCCD     (training too)

Prediction: YOLO11n with the same random weights on both sides, 640 pixels square, 100 drawn JPEGs of 1280 x 960 pixels in a
folder, from files to boxes: torch, ONNX Runtime, OpenVINO, and OpenVINO with 8-bit layers calibrated on the same images. The peer
runs as it is shipped; in torch also with all cores and with its rectangular input, elsewhere also in batches of 8. OpenVINO
by itself computes in bfloat16 where the processor can, and so the peer as shipped; it is also asked for float32 there. Each side
of each row is a process of its own; they take turns, `--rounds` times. Printed are medians, the ratio to the peer's best (with
OpenVINO: in the same precision), and the time that all cores together spend on an image: C cores have nothing left to gain where
images/s reaches C / that time.

Training: YOLO11n at 320 pixels, batch 16, each with its defaults and its whole path (reading, augmentation, step), Pelagia also
in mixed precision (`--amp on`); the median epoch after the first of the time spent training, validation left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import pelagia
from pelagia.core.image import write
from pelagia.data.convert import convert
from pelagia.data.synthetic import draw_image
from training import SETTINGS, ask_peer, open_data

WORKER = Path(__file__).with_name("throughput_worker.py")

#: Row -> our ways of it (file, runtime, precision) and the peer's (file, options).
ROWS: dict[str, tuple[dict[str, tuple[str, str, str]], dict[str, tuple[str, dict[str, Any]]]]] = {
    "torch": (
        {"float32": ("yolo11n.pt", "torch", "float32"), "bfloat16": ("yolo11n.pt", "torch", "bfloat16")},
        {
            "as shipped": ("yolo11n.pt", {"rect": False}),
            "all cores": ("yolo11n.pt", {"rect": False, "threads": os.cpu_count()}),
            "all cores, rectangular": ("yolo11n.pt", {"threads": os.cpu_count()}),
        },
    ),
    "ONNX Runtime": (
        {"float32": ("ours.onnx", "onnx", "float32")},
        {"as shipped": ("yolo11n.onnx", {"rect": False})},
    ),
    "OpenVINO": (
        {"float32": ("ours.xml", "openvino", "float32"), "bfloat16": ("ours.xml", "openvino", "bfloat16")},
        {
            "as shipped": ("yolo11n_openvino_model", {"rect": False}),
            "batch 8": ("yolo11n_openvino_model", {"rect": False, "batch": 8}),
            "float32": ("yolo11n_openvino_model", {"rect": False, "precision": "f32"}),
            "float32, batch 8": ("yolo11n_openvino_model", {"rect": False, "batch": 8, "precision": "f32"}),
        },
    ),
    "OpenVINO int8": (
        {"float32": ("ours.int8.xml", "openvino", "float32"), "bfloat16": ("ours.int8.xml", "openvino", "bfloat16")},
        {"as shipped": ("yolo11n_int8_openvino_model", {"rect": False})},
    ),
}


def draw(folder: Path, images: int) -> Path:
    """JPEGs of 1280 x 960 pixels, and one label each in YOLO's form, so that both sides can calibrate on them."""
    pictures, labels = folder / "images" / "val", folder / "labels" / "val"
    labels.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        path = pictures / f"{number:04}.jpg"
        if not path.exists():
            image = draw_image(np.random.default_rng(number), 1280, 960).image
            write(path, image if image.shape[2] == 3 else np.repeat(image, 3, axis=2))
            (labels / f"{number:04}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    names = "".join(f"  {index}: '{index}'\n" for index in range(80))
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images/val\nval: images/val\nnames:\n{names}")
    return pictures


def predict(args: argparse.Namespace, out: Path) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Row -> way -> what each round measured."""
    pictures = draw(out / "drawn", args.images)
    labels = {"data": str(out / "drawn" / "data.yaml"), "out": str(out)}
    if not (out / "exported.json").exists():
        formats = [row for row in ROWS if row != "torch"]
        request = {"action": "export", "architecture": "yolo11n.yaml", "imgsz": 640, "formats": formats, **labels}
        failed = ask_peer(args.peer_python, request, out / "export")["failed"]
        ask_peer(sys.executable, {"action": "export", "weights": str(out / "yolo11n.pt"), **labels}, out / "export-ours", WORKER)
        (out / "exported.json").write_text(json.dumps(failed))
    failed = json.loads((out / "exported.json").read_text())

    for name, reason in failed.items():
        print(f"the peer cannot export for {name}: {reason}")
    figures: dict[str, dict[str, list[dict[str, float]]]] = {}
    base = {"action": "folder", "images": str(pictures), "imgsz": 640}
    for turn in range(args.rounds):
        for row in args.rows:
            ours, peers = ROWS[row]
            for name, (file, runtime, precision) in ours.items():
                request = {**base, "weights": str(out / file), "runtime": runtime, "precision": precision}
                answer = ask_peer(sys.executable, request, out / f"ours-{turn}", WORKER)
                figures.setdefault(row, {}).setdefault(f"pelagia {name}", []).append(answer)
            for name, (file, options) in peers.items():
                if row in failed:
                    continue
                answer = ask_peer(args.peer_python, {**base, "weights": str(out / file), **options}, out / f"peer-{turn}")
                figures.setdefault(row, {}).setdefault(f"ultralytics {name}", []).append(answer)
            print(row, {name: round(values[-1]["images_per_second"], 1) for name, values in figures[row].items()}, flush=True)
    return figures


def tell(figures: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """Medians and ratios."""
    print(f"{os.cpu_count()} cores; medians; images per second, processor ms per image, ratio to the peer's best")
    for row, ways in figures.items():
        middle = {name: statistics.median(item["images_per_second"] for item in values) for name, values in ways.items()}
        peers = {name: value for name, value in middle.items() if name.startswith("ultralytics")}
        asked = {name: value for name, value in peers.items() if name.startswith("ultralytics float32")}
        others = {name: value for name, value in peers.items() if name not in asked}
        for name, value in middle.items():
            spent = statistics.median(item["processor_ms"] for item in ways[name])
            like = asked if asked and name == "pelagia float32" else others
            ratio = f"{value / max(like.values()):5.2f}" if like and name.startswith("pelagia") else ""
            print(f"{row:14} {name:36} {value:7.1f} {spent:8.1f}   {ratio}")


def train_pelagia(data: Path, out: Path, epochs: int, amp: str) -> float:
    """Images per second of training, the median epoch after the first."""
    run = pelagia.train("yolo11n", data, imgsz=320, batch=16, epochs=epochs, val_every=epochs, amp=amp, out=str(out))
    return statistics.median(record["images_per_second"] for record in run.history[1:])


def train_peer(args: argparse.Namespace, yolo: Path, images: int, folder: Path) -> float:
    """The same of the peer."""
    request = {"action": "train", "architecture": "yolo11n.yaml", "data": str(yolo), "epochs": args.epochs, "imgsz": 320}
    request |= {"batch": 16, "seed": 0, "out": str(folder), "val": False}
    return images / statistics.median(ask_peer(args.peer_python, request, folder)["epoch_seconds"][1:])


def train(args: argparse.Namespace, out: Path) -> dict[str, list[float]]:
    """Both sides in turns."""
    data = open_data(SETTINGS["bccd"], args.data)
    yolo = out / "yolo"
    if not yolo.exists():
        convert(data, yolo, "yolo")
    figures: dict[str, list[float]] = {"pelagia auto": [], "pelagia amp": [], "ultralytics": []}
    for turn in range(args.rounds):
        for amp, name in (("auto", "pelagia auto"), ("on", "pelagia amp")):
            figures[name].append(train_pelagia(args.data, out / f"pelagia-{time.time_ns()}", args.epochs, amp))
        figures["ultralytics"].append(train_peer(args, yolo / "data.yaml", len(data.split("train")), out / f"train-{turn}"))
    auto, mixed, peer = (statistics.median(values) for values in figures.values())
    print(f"training, 320 px, batch 16, images per second: ultralytics {peer:.2f}")
    print(f"  pelagia {auto:.2f}, ratio {auto / peer:.2f}; in mixed precision {mixed:.2f}, ratio {mixed / peer:.2f}")
    return figures


def main() -> None:
    """Measure in turns, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the BCCD data set; without it training is left out")
    parser.add_argument("--peer-python", required=True, help="Python of an environment with the peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-throughput"))
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"predict": predict(args, out)}
    tell(figures["predict"])
    if args.data:
        figures["train"] = train(args, out)
    (out / "results.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
