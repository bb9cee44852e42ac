"""Pictures for the benchmarks, drawn."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pelagia.core.image import write
from pelagia.core.types import Instances
from pelagia.data.dataset import Dataset
from pelagia.data.synthetic import SurveyOptions, categories, draw_image

__all__ = ["PATCH", "draw_jpegs", "draw_scan"]

PATCH = 1000


def draw_scan(width: int, height: int) -> NDArray[np.uint8]:
    """[H, W, 3]: patches of drawn plankton side by side, mirrored and in random order; drawing it in one piece takes minutes."""
    patches = [draw_image(np.random.default_rng([4, k]), PATCH, PATCH).image for k in range(6)]
    rng = np.random.default_rng(4)
    scan = np.empty((-(-height // PATCH) * PATCH, -(-width // PATCH) * PATCH, 1), dtype=np.uint8)
    for y in range(0, scan.shape[0], PATCH):
        for x in range(0, scan.shape[1], PATCH):
            patch = patches[int(rng.integers(len(patches)))]
            scan[y : y + PATCH, x : x + PATCH] = patch[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    return np.repeat(scan[:height, :width], 3, axis=2)


def draw_jpegs(folder: Path, count: int, size: tuple[int, int], *, processes: int) -> Dataset:
    """`count` colour JPEGs of `size` = (width, height) with the boxes of what is drawn; the split `val` holds the last eight, and
    `train` all others."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        truths = list(pool.map(partial(_draw_jpeg, folder, size), range(count)))
    items = [(_path(folder, number), size, truth) for number, truth in enumerate(truths)]
    parts = {"train": range(count - 8), "val": range(count - 8, count)}
    return Dataset.from_instances(categories(SurveyOptions()), items, task="detect", root=folder, splits=parts)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:04}.jpg"


def _draw_jpeg(folder: Path, size: tuple[int, int], number: int) -> Instances:
    drawing = draw_image(np.random.default_rng(number), *size)
    image = drawing.image
    write(_path(folder, number), image if image.shape[2] == 3 else np.repeat(image, 3, axis=2))
    return Instances(labels=drawing.truth.labels, boxes=drawing.truth.box_array)
