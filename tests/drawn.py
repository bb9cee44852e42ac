"""Drawn truth and predictions for the tests of metrics: whole coordinates, wrong classes, repetitions, many equal scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pelagia.core.types import Category, Instances, MaskCrop
from pelagia.metrics.detection import Evidence, gather
from pelagia.metrics.objects import Kind, flatten, tallest

SIDE = 200  # of the images, in pixels


def categories(count: int) -> list[Category]:
    return [Category(id=label + 1, name=f"taxon {label}") for label in range(count)]


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes with whole coordinates, so that IoUs on a threshold and areas on a limit (32 x 32) do occur."""
    corner = rng.integers(0, SIDE - 10, (count, 2))
    size = rng.choice([4, 10, 20, 32, 33, 60, 96, 97, 130], (count, 2))
    return np.concatenate([corner, np.minimum(corner + size, SIDE)], axis=1).astype(np.float64)


def draw(
    rng: np.random.Generator, *, images: int, classes: int, objects: int, found: int, crowd: float = 0.1, areas: bool = False
) -> tuple[list[Instances], list[Instances]]:
    """Truth, and predictions made from it: shifted, of a wrong class, repeated, with many equal scores."""
    truths, predictions = [], []
    for _ in range(images):
        count, many = int(rng.integers(0, objects + 1)), int(rng.integers(0, found + 1))
        boxes, labels = draw_boxes(rng, count), rng.integers(0, classes, count)
        stated = rng.uniform(0, 20000, count) if areas else None
        truths.append(Instances(labels=labels, boxes=boxes, crowd=rng.random(count) < crowd, areas=stated))
        near, kinds = draw_boxes(rng, many), rng.integers(0, classes, many)
        if count:
            source = rng.integers(0, count, many)
            hit, keep = rng.random(many) < 0.8, rng.random(many) < 0.8
            shift = rng.integers(-6, 7, (many, 4)) * (rng.random((many, 1)) < 0.8)
            near = np.where(hit[:, None], boxes[source] + shift, near)
            near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
            kinds = np.where(keep, labels[source], kinds)
        predictions.append(Instances(labels=kinds, boxes=near, scores=np.round(rng.random(many), int(rng.integers(1, 4)))))
    return truths, predictions


def draw_masks(rng: np.random.Generator, items: list[Instances]) -> list[Instances]:
    """Fill each box with a random mask (possibly empty)."""
    result = []
    for item in items:
        crops = []
        for x1, y1, x2, y2 in np.clip(item.box_array, 0, SIDE).astype(int):
            bitmap = rng.random((max(y2 - y1, 1), max(x2 - x1, 1))) < rng.choice([0.0, 0.8, 0.95, 1.0])
            crops.append(MaskCrop(int(min(x1, SIDE - 1)), int(min(y1, SIDE - 1)), bitmap))
        result.append(item.replace(masks=tuple(crops)))
    return result


def whole(crop: MaskCrop) -> np.ndarray:
    """The mask in its whole image, uint8."""
    full = np.zeros((SIDE, SIDE), dtype=np.uint8)
    height, width = crop.bitmap.shape
    full[crop.y : crop.y + height, crop.x : crop.x + width] = crop.bitmap[: SIDE - crop.y, : SIDE - crop.x]
    return full


def rotated(rng: np.random.Generator, items: list[Instances]) -> list[Instances]:
    """Turn each box a little."""
    result = []
    for item in items:
        x1, y1, x2, y2 = item.box_array.T
        sizes = np.sort(np.maximum(np.stack([x2 - x1, y2 - y1], axis=1), 3), axis=1)
        angle = np.round(rng.uniform(-0.3, 0.3, len(item)), 1)
        boxes = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, sizes[:, 1], sizes[:, 0], angle], axis=1)
        result.append(item.replace(boxes=None, oriented=boxes))
    return result


def posed(rng: np.random.Generator, item: Instances, points: int) -> Instances:
    """Put `points` keypoints into each box, some hidden or not labelled; a fifth of the objects has none labelled."""
    count = len(item)
    low, high = item.box_array[:, None, :2], item.box_array[:, None, 2:]
    place = low + (high - low) * rng.random((count, points, 2))
    visible = rng.integers(0, 3, (count, points)) * (rng.random((count, 1)) < 0.8)
    return item.replace(keypoints=np.concatenate([place, visible[:, :, None]], axis=2))


def draw_poses(
    rng: np.random.Generator, *, images: int, classes: int, objects: int, found: int, points: int = 17, areas: bool = True
) -> tuple[list[Instances], list[Instances]]:
    """As `draw`, for keypoints; the box of a prediction is the extent of its points, as pycocotools takes it."""
    boxes, predictions = draw(rng, images=images, classes=classes, objects=objects, found=found)
    truths, posing = [], []
    for box, prediction in zip(boxes, predictions, strict=True):
        stated = (box.box_array[:, 2:] - box.box_array[:, :2]).prod(axis=1) * rng.uniform(0.3, 1, len(box)) if areas else None
        truth = posed(rng, box.replace(areas=stated), points)
        truths.append(truth)
        assert truth.keypoints is not None
        many = len(prediction)
        place = rng.uniform(0, SIDE, (many, points, 2))
        if len(truth):
            source = rng.integers(0, len(truth), many)
            noise = rng.normal(0, 1, (many, points, 2)) * rng.choice([0, 0.5, 2, 6], (many, 1, 1))
            place = np.where(rng.random((many, 1, 1)) < 0.9, truth.keypoints[source, :, :2] + noise, place)
        posing.append(extent(prediction.replace(keypoints=np.concatenate([place, rng.random((many, points, 1))], axis=2))))
    return truths, posing


def extent(item: Instances) -> Instances:
    """The same poses with boxes around all points."""
    assert item.keypoints is not None
    place = item.keypoints[:, :, :2]
    if not len(item):
        return item.replace(boxes=np.zeros((0, 4)))
    return item.replace(boxes=np.concatenate([place.min(axis=1), place.max(axis=1)], axis=1))


def different_scores(rng: np.random.Generator, items: list[Instances]) -> list[Instances]:
    """Scores that differ inside an image; equal ones in different images do occur."""
    return [item.replace(scores=rng.choice(101, len(item), replace=False) / 100) for item in items]


def one_box(count: int, box: tuple[float, float, float, float] = (10, 10, 50, 60), **more: Any) -> Instances:
    return Instances(labels=np.zeros(count, dtype=np.int64), boxes=np.tile(box, (count, 1)), **more)


def repeated(items: Sequence[Instances], times: np.ndarray) -> list[Instances]:
    """The list in which item n stands times[n] times."""
    return [item for item, count in zip(items, times.astype(int).tolist(), strict=True) for _ in range(count)]


def evidence(
    truths: Sequence[Instances],
    predictions: Sequence[Instances],
    classes: int | list[Category],
    kind: Kind = "boxes",
    **rules: Any,
) -> Evidence:
    heights = tallest(truths, predictions) if kind == "masks" else None
    truth = flatten(truths, kind, what="truth", heights=heights)
    found = flatten(predictions, kind, what="predictions", heights=heights)
    named = categories(classes) if isinstance(classes, int) else classes
    return gather(truth, found, named, images=len(truths), **rules)
