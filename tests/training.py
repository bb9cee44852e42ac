"""A small model and a small drawn data set for the tests of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pelagia.core import image as core_image
from pelagia.core.oriented import canonical
from pelagia.core.types import Instances
from pelagia.data.augment import AugmentOptions
from pelagia.data.dataset import Dataset
from pelagia.models import checkpoint
from pelagia.models.registry import entries, entry, register
from pelagia.train.options import TrainOptions

TINY = "tiny-for-tests"
SIDE = 64


def register_tiny() -> None:
    """YOLO11 with so few channels that a step takes milliseconds."""
    if TINY not in [item.name for item in entries()]:
        small = {**entry("yolo11n").tiny, "width": 0.0625, "max_channels": 128}
        known = entry("yolo11n").defaults
        register(replace(entry("yolo11n"), name=TINY, defaults={k: v for k, v in {**known, **small}.items() if k in known}))


def draw(
    folder: Path, images: int = 8, *, oriented: bool = False, deep: bool = False, splits: dict[str, list[int]] | None = None
) -> Dataset:
    """Images of 64 x 48 pixels with bright (`a`) and dark (`b`) rectangles on grey."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(images):
        rng = np.random.default_rng([7, number])
        image = rng.integers(110, 130, (48, 64, 1)).astype(np.uint8)
        boxes, labels = [], []
        for _ in range(int(rng.integers(1, 4))):
            x, y = int(rng.integers(0, 40)), int(rng.integers(0, 28))
            w, h = int(rng.integers(8, 22)), int(rng.integers(8, 18))
            label = int(rng.integers(2))
            image[y : y + h, x : x + w] = (230, 20)[label]
            boxes.append([x, y, min(x + w, 64), min(y + h, 48)])
            labels.append(label)
        path = folder / f"{number:03}.png"
        core_image.write(path, image.astype(np.uint16) * 100 if deep else image)
        box = np.array(boxes, dtype=np.float64)
        turned = np.concatenate([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2], np.zeros((len(box), 1))], axis=1)
        truth = Instances(np.array(labels), boxes=box, oriented=canonical(turned) if oriented else None)
        items.append((path, (64, 48), truth))
    return Dataset.from_instances(["a", "b"], items, root=folder, splits=splits, task="oriented" if oriented else "detect")


def options(out: Path, **changes: Any) -> TrainOptions:
    """Options of a run of a few seconds."""
    register_tiny()
    values: dict[str, Any] = {
        "epochs": 2,
        "batch": 4,
        "imgsz": SIDE,
        "threads": 1,
        "augment": AugmentOptions(mosaic=0.5),
        "seed": 3,
    }
    return TrainOptions(**{"model": TINY, "out": str(out), **values, **changes})


def state(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    return checkpoint.read(path)[0]


def assert_same_state(first: Path, second: Path) -> None:
    """Every tensor equal to the bit."""
    a, b = state(first), state(second)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []
