"""Claim: training samples and training steps on two CPU cores, beside the usual tools, on the same images.

    python benchmarks/samples.py --peer-python PEER_ENV/bin/python [--parts samples training] [--images 128] [--count 300]

The images are drawn by seed, 640 x 480, and read by both sides from files. `samples`: mosaic, zoom, shift, flips and changes of
hue, saturation and brightness at 640 x 640, one process, decoded images kept in memory on all sides; samples a second, median of
five parts. Ultralytics answers as shipped, through its public calls; Albumentations with its own mosaic and the same kinds of
steps; torchvision with its v2 transforms on a pasted mosaic of twice the size. `training`: YOLO11n from random weights at 320,
batch 16, images a second of the epochs behind the first, validation not counted; both sides with their defaults.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations
import cv2
import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

import pelagia
from pelagia.data.augment import AugmentOptions, augment, read_sample
from pelagia.data.convert import convert
from pelagia.data.dataset import Dataset
from pelagia.data.sample import Sample
from pelagia.data.split import split
from pelagia.data.synthetic import draw_survey
from training import ask_peer

__all__: list[str] = []

SIDE = 640
TRAINED_SIDE, BATCH, EPOCHS = 320, 16, 4


def rate(make: Callable[[int], object], count: int) -> tuple[float, float]:
    """Samples a second of `make`, median of five parts behind one that warms; and samples a second of CPU time, which other
    programs on the machine change less.
    """
    rates, used = [], 0.0
    for part in range(6):
        begin, used = time.perf_counter(), time.process_time() if part == 1 else used
        for index in range(count):
            make(part * count + index)
        rates.append(count / (time.perf_counter() - begin))
    return statistics.median(rates[1:]), 5 * count / (time.process_time() - used)


def by_pelagia(data: Dataset, samples: list[Sample]) -> Callable[[int], object]:
    """Images and truth, as `collate` takes them."""
    options = AugmentOptions()
    return lambda index: augment(
        data, index % len(data), np.random.default_rng([0, index]), options, (SIDE, SIDE), fetch=samples.__getitem__
    )


def by_albumentations(samples: list[Sample]) -> Callable[[int], object]:
    """The mosaic of Albumentations and what stands for the other steps there."""
    rng = np.random.default_rng(0)
    items = [{"image": sample.image, "bboxes": sample.truth.box_array, "bbox_labels": sample.truth.labels} for sample in samples]
    pipeline = albumentations.Compose(
        [
            albumentations.Mosaic(
                target_size=(SIDE, SIDE), cell_shape=(SIDE, SIDE), center_range=(0.25, 0.75), fit_mode="contain", fill=114, p=1.0
            ),
            albumentations.Affine(scale=(0.5, 1.5), translate_percent=(-0.1, 0.1), fill=114, p=1.0),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.VerticalFlip(p=0.5),
            albumentations.HueSaturationValue(3, 128, 102, p=1.0),
        ],
        bbox_params=albumentations.BboxParams("pascal_voc", label_fields=["bbox_labels"]),
    )

    def make(index: int) -> object:
        others = [items[int(other)] for other in rng.integers(len(items), size=3)]
        return pipeline(**items[index % len(items)], mosaic_metadata=others)["image"]

    return make


def by_torchvision(samples: list[Sample]) -> Callable[[int], object]:
    """Four images pasted on a canvas of twice the size, then v2 transforms of the image and its boxes."""
    rng = np.random.default_rng(0)
    twice = 2 * SIDE
    pipeline = v2.Compose(
        [
            v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.5, 1.5), fill=114),
            v2.CenterCrop(SIDE),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.ColorJitter(brightness=0.4, saturation=0.5, hue=0.015),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
        ]
    )

    def make(index: int) -> object:
        x, y = rng.integers(SIDE // 2, 3 * SIDE // 2, 2)
        canvas = np.full((twice, twice, 3), 114, dtype=np.uint8)
        boxes, labels = [], []
        for place, other in enumerate([index % len(samples), *rng.integers(len(samples), size=3).tolist()]):
            image, truth = samples[other].image, samples[other].truth
            scale = SIDE / max(image.shape[:2])
            image = cv2.resize(image, None, fx=scale, fy=scale)
            h, w = image.shape[:2]
            left, top = (x - w if place % 2 == 0 else x), (y - h if place < 2 else y)
            x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + w, twice), min(top + h, twice)
            canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
            boxes.append(truth.box_array * scale + [left, top, left, top])
            labels.append(truth.labels)
        target = {
            "boxes": tv_tensors.BoundingBoxes(np.concatenate(boxes), format="XYXY", canvas_size=(twice, twice)),  # type: ignore[call-overload]
            "labels": torch.from_numpy(np.concatenate(labels)),
        }
        return pipeline(tv_tensors.Image(torch.from_numpy(canvas).permute(2, 0, 1)), target)

    return make


def measure_samples(data: Dataset, yolo: Path, args: argparse.Namespace, folder: Path) -> None:
    """Print samples a second of every tool and the ratios."""
    samples = [read_sample(data, index) for index in range(len(data))]
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # as in a worker process
    rates: dict[str, tuple[float, float]] = {}
    rates["Pelagia"] = rate(by_pelagia(data, samples), args.count)
    if args.peer_python:
        request: dict[str, Any] = {"action": "samples", "data": str(yolo / "data.yaml"), "imgsz": SIDE, "count": args.count}
        answer = ask_peer(args.peer_python, request, folder)
        assert answer["shape"] == [3, SIDE, SIDE]
        rates["Ultralytics"] = answer["images_per_second"], answer["per_cpu_second"]
    rates["Albumentations"] = rate(by_albumentations(samples), args.count)
    rates["torchvision v2"] = rate(by_torchvision(samples), max(args.count // 4, 1))
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])
    wall, cpu = rates["Pelagia"]
    for name, (value, used) in rates.items():
        told = f"samples   {name:16s} {value:7.1f} images/s {used:7.1f} per CPU second"
        print(f"{told}   Pelagia / it = {wall / value:.2f}, {cpu / used:.2f}", flush=True)


def measure_training(data: Dataset, yolo: Path, args: argparse.Namespace, folder: Path) -> None:
    """Print images a second of training on both sides and the ratio."""
    run = pelagia.train(
        "yolo11n",
        data,
        task="detect",
        epochs=args.epochs,
        imgsz=TRAINED_SIDE,
        batch=BATCH,
        seed=0,
        out=str(folder / "run"),
        device="cpu",
        close_mosaic=0,
        val_every=args.epochs,
    )
    ours = statistics.median([record["images_per_second"] for record in run.history[1:]])
    print(f"training  {'Pelagia':16s} {ours:7.1f} images/s", flush=True)
    if not args.peer_python:
        return
    request = {"architecture": "yolo11n.yaml", "data": str(yolo / "data.yaml"), "epochs": args.epochs, "imgsz": TRAINED_SIDE}
    request |= {"batch": BATCH, "seed": 0, "out": str(folder), "val": False, "arguments": {"close_mosaic": 0}}
    answer = ask_peer(args.peer_python, {"action": "train", **request}, folder)
    theirs = len(data.split("train")) / statistics.median(answer["epoch_seconds"][1:])
    print(f"training  {'Ultralytics':16s} {theirs:7.1f} images/s   Pelagia / it = {ours / theirs:.2f}", flush=True)


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="Python of an environment with the peer; without it only the others run")
    parser.add_argument("--parts", nargs="+", choices=("samples", "training"), default=["samples", "training"])
    parser.add_argument("--images", type=int, default=128, help="drawn images, of which an eighth is for validation")
    parser.add_argument("--count", type=int, default=300, help="samples in each of the five timed parts")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        labels = draw_survey(folder / "survey", args.images, seed=0, width=640, height=480)
        for path in sorted((folder / "survey" / "images").iterdir()):  # drawn in grey; measured in colour
            grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float64)
            cv2.imwrite(str(path), np.stack([grey, 0.9 * grey, 0.8 * grey], axis=2).round().astype(np.uint8))
        data = pelagia.open_dataset(labels, task="detect")
        data = data.with_splits(split(data, {"train": 7 / 8, "val": 1 / 8}, seed=0))
        convert(data, folder / "yolo", "yolo")
        if "samples" in args.parts:
            measure_samples(data.split("train"), folder / "yolo", args, folder / "samples")
        if "training" in args.parts:
            measure_training(data, folder / "yolo", args, folder / "training")


if __name__ == "__main__":
    main()
