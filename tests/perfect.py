"""A predictor without error, which reads the objects from the pixels it is shown, and pictures to try tiles on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.card import ModelCard, Normalisation
from pelagia.core.frame import Frame
from pelagia.core.types import Category, Instances, MaskCrop
from pelagia.decode import DecodeOptions
from pelagia.decode.registry import DECODERS
from pelagia.infer.tiles import lay_tiles

INPUT = 128
OVERLAP = 48
CLASSES = 3


class PerfectRuntime:
    """Its network is the identity; the picture holds at each pixel the number of the object there, 0 for none."""

    def __init__(self, task: str = "detect", **manifest: Any) -> None:
        self.card = ModelCard(
            name="perfect",
            task=task,  # type: ignore[arg-type]
            decoder="perfect",
            categories=tuple(Category(i, f"class {i}") for i in range(CLASSES)),
            input_size=(INPUT, INPUT),
            normalisation=Normalisation(0.0, 65535.0),
            manifest=manifest,
        )
        self.sizes: list[int] = []

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        self.sizes.append(len(images))
        return {"ids": np.rint(images[:, 0] * 65535).astype(np.int64)}


def objects(ids: NDArray[Any], task: str) -> Instances:
    """Each object's class and score, which follow from its number, and what its visible pixels tell: bounds, least rectangle,
    mask, and as keypoints the topmost, lowest, leftmost and rightmost of them."""
    numbers = [int(number) for number in np.unique(ids) if number not in (0, 114)]
    boxes, oriented = np.zeros((len(numbers), 4)), np.zeros((len(numbers), 5))
    masks, keypoints = [], np.ones((len(numbers), 4, 3))
    for row, number in enumerate(numbers):
        y, x = np.nonzero(ids == number)
        boxes[row] = x.min(), y.min(), x.max() + 1, y.max() + 1
        masks.append(core_masks.crop_from_bitmap(ids == number))
        for point, place in enumerate((y.argmin(), y.argmax(), x.argmin(), x.argmax())):
            keypoints[row, point, :2] = x[place] + 0.5, y[place] + 0.5
        if task == "oriented":
            points = np.concatenate([np.stack([x + dx, y + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
            (cx, cy), (w, h), angle = cv2.minAreaRect(points.astype(np.float32))
            oriented[row] = core_oriented.canonical(np.array([[cx, cy, w, h, np.deg2rad(angle)]]))[0]
    scores = np.array([0.3 + 0.6 * (number * 7919 % 1000) / 1000 for number in numbers])
    labels = np.array([number % CLASSES for number in numbers], dtype=np.int64)
    if task == "oriented":
        return Instances(labels=labels, oriented=oriented, scores=scores)
    return Instances(
        labels=labels,
        boxes=boxes,
        scores=scores,
        masks=tuple(masks) if task == "instance" and numbers else None,
        keypoints=keypoints if task == "keypoints" and numbers else None,
    )


def decode_perfect(
    outputs: Mapping[str, NDArray[Any]], frames: Sequence[Frame], card: ModelCard, options: DecodeOptions
) -> list[Instances]:
    found = []
    for ids, frame in zip(outputs["ids"], frames, strict=True):
        seen = objects(ids, card.task)
        if seen.oriented is not None:
            found.append(seen.replace(oriented=frame.oriented(seen.oriented)))
        else:
            assert seen.boxes is not None
            moved = seen.replace(boxes=frame.boxes(seen.boxes))
            if seen.masks is not None:  # tiles at the scale of the image: whole pixels
                x, y = (round(value) for value in frame.matrix[:, 2])
                moved = moved.replace(masks=tuple(MaskCrop(mask.x + x, mask.y + y, mask.bitmap) for mask in seen.masks))
            if seen.keypoints is not None:
                points = np.concatenate([frame.points(seen.keypoints[..., :2]), seen.keypoints[..., 2:]], axis=2)
                moved = moved.replace(keypoints=points)
            found.append(moved)
    return found


DECODERS["perfect"] = decode_perfect


def draw(rng: np.random.Generator, width: int, height: int, count: int, longest: float) -> NDArray[np.uint16]:
    """Rotated ellipses, often touching; none is longer than `longest`, and what one covers of another is not seen."""
    ids = np.zeros((height, width), dtype=np.uint16)
    for number in range(200, 200 + count):
        axes = rng.uniform(2, longest / 2 - 1, 2)
        centre = rng.uniform(0, [width, height])
        cv2.ellipse(ids, (tuple(centre), tuple(2 * axes), float(rng.uniform(0, 180))), int(number), -1)
    # Only the largest connected piece of an object is kept: what another one cuts in two would be two objects.
    for number in range(200, 200 + count):
        parts, labels, stats, _ = cv2.connectedComponentsWithStats((ids == number).astype(np.uint8), connectivity=8)
        if parts > 2:
            keep = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
            ids[(labels > 0) & (labels != keep)] = 0
    return ids


def rows(found: Instances) -> NDArray[Any]:
    shape = found.oriented if found.oriented is not None else found.boxes
    assert shape is not None
    assert found.scores is not None
    table = np.column_stack([found.scores, found.labels, shape])
    return table[np.lexsort(table[:, ::-1].T)]


def pictures(found: Instances, task: str) -> list[tuple[Any, ...]]:
    """Per object its row and its mask or keypoints, in the order of `rows`."""
    assert found.scores is not None
    assert found.boxes is not None
    order = np.lexsort(np.column_stack([found.scores, found.labels, found.boxes])[:, ::-1].T).tolist()
    if task == "keypoints":
        assert found.keypoints is not None or not len(found)
        return [tuple(found.keypoints[index].ravel()) for index in order]  # type: ignore[index]
    assert found.masks is not None or not len(found)
    masks = [core_masks.crop_from_rle(core_masks.crop_to_rle(found.masks[index], 500, 700)) for index in order]  # type: ignore[index]
    return [(mask.x, mask.y, mask.bitmap.shape, mask.bitmap.tobytes()) for mask in masks]


def beside_borders(rng: np.random.Generator, size: tuple[int, int], overlap: int, longest: int) -> NDArray[np.uint16]:
    """Rectangles that begin, end or lie across borders of tiles to the pixel, as long as the overlap or longer, side by side."""
    tiles = lay_tiles(size, (INPUT, INPUT), overlap)
    lines = [sorted({tile.box[axis] for tile in tiles} | {tile.box[axis + 2] for tile in tiles}) for axis in (0, 1)]
    ids = np.zeros(size[::-1], dtype=np.uint16)
    number = 200
    for kind in range(60):
        start = [int(rng.choice(line)) for line in lines]
        extent = [int(side) for side in rng.integers(1, longest + 1, 2)]
        axis = kind % 2
        if kind % 5 == 0:
            extent[axis] = longest
        start[axis] -= (0, extent[axis], extent[axis] // 2, 1, extent[axis] - 1)[int(rng.integers(5))]
        if kind % 7 == 0:
            start = [value + int(rng.integers(-3, 4)) for value in start]
        place = np.s_[max(start[1], 0) : max(start[1] + extent[1], 0), max(start[0], 0) : max(start[0] + extent[0], 0)]
        if ids[place].size and not ids[place].any():
            ids[place] = number
            number += 3 if kind % 3 else 1  # most are of one class
    return ids
