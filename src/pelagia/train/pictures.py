"""Pictures of a training run: what the network is shown, what is true, what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core import draw
from pelagia.core import image as core_image
from pelagia.core.types import Category, Float, Instances, MaskCrop, PanopticMap, Prediction, SemanticMap
from pelagia.data.dataset import Dataset
from pelagia.data.geometry import Keep, follow
from pelagia.errors import TrainingError
from pelagia.models.targets import MaskCrops, Targets
from pelagia.train.batch import Batch

__all__ = ["batch_truths", "contact_sheet", "picture", "stored_images", "truth_of"]

#: Longer side in pixels of a picture on a sheet.
_SIDE = 400


def stored_images(batch: Batch) -> list[NDArray[Any]]:
    """B images [H, W, 3] as they were stored."""
    pixels = batch.images.permute(0, 2, 3, 1).cpu().numpy()
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.uint16)
    return [np.ascontiguousarray(image) for image in pixels]


def batch_truths(targets: Targets) -> list[Instances | SemanticMap]:
    """The truth of each image of a batch, in pixels of the network's input; boxes that are not finite are left out."""
    if targets.semantic is not None:
        return [SemanticMap(labels.astype(np.uint16)) for labels in targets.semantic.numpy()]
    truths: list[Instances | SemanticMap] = []
    crops = None if targets.masks is None else _crops(targets.masks)
    for image in range(targets.size):
        rows = targets.batch == image
        boxes = targets.boxes[rows].numpy().astype(np.float64)
        oriented = None if targets.oriented is None else targets.oriented[rows].numpy().astype(np.float64)
        truth = Instances(
            labels=targets.labels[rows].numpy(),
            boxes=boxes,
            oriented=oriented,
            masks=None if crops is None else tuple(crops[row] for row in np.flatnonzero(rows.numpy())),
            keypoints=None if targets.keypoints is None else targets.keypoints[rows].numpy().astype(np.float64),
            ignore=targets.ignore[rows].numpy(),
        )
        truths.append(truth.select(np.flatnonzero(np.isfinite(boxes).all(axis=1))))
    return truths


def truth_of(dataset: Dataset, index: int) -> Prediction:
    """The truth of image `index` in the form in which a model of the data set's task answers."""
    if dataset.task == "semantic":
        return dataset.semantic(index)
    if dataset.task == "panoptic":
        return dataset.panoptic(index)
    return dataset.truth(index, masks=dataset.task == "instance")


def picture(image: NDArray[Any], answer: Prediction, categories: Sequence[Category]) -> NDArray[np.uint8]:
    """`image` at the size of a picture, with `answer` drawn onto it: labels drawn afterwards keep a size that one can read."""
    scale = _SIDE / max(image.shape[:2])
    width, height = (max(1, round(side * scale)) for side in (image.shape[1], image.shape[0]))
    matrix: Float = np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]])
    moved: Prediction
    if isinstance(answer, Instances):
        moved = follow(answer, matrix, (image.shape[1], image.shape[0]), (0, 0, width, height), Keep(0.0, 0.0))
    else:
        rows, columns = (
            np.minimum(((np.arange(side) + 0.5) / scale).astype(np.int64), length - 1)
            for side, length in zip((height, width), image.shape[:2], strict=True)
        )
        if isinstance(answer, SemanticMap):
            moved = SemanticMap(answer.labels[rows[:, None], columns])
        else:
            ids = answer.ids[rows[:, None], columns]
            there = set(np.unique(ids).tolist())
            moved = PanopticMap(ids, tuple(segment for segment in answer.segments if segment.id in there))
    return draw.draw_prediction(core_image.warp(image, matrix, (width, height)), moved, categories)


def contact_sheet(pictures: Sequence[NDArray[np.uint8]], columns: int | None = None) -> NDArray[np.uint8]:
    """Pictures side by side in rows on a light ground, centred in cells of the size of the largest."""
    if not pictures:
        raise TrainingError("no picture to show")
    columns = columns or int(np.ceil(np.sqrt(len(pictures))))
    rows, gap = -(-len(pictures) // columns), 6
    height, width = (max(item.shape[axis] for item in pictures) for axis in (0, 1))
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 240, dtype=np.uint8)
    for number, item in enumerate(pictures):
        h, w = item.shape[:2]
        top = gap + (number // columns) * (height + gap) + (height - h) // 2
        left = gap + (number % columns) * (width + gap) + (width - w) // 2
        sheet[top : top + h, left : left + w] = item
    return sheet


def _crops(masks: MaskCrops) -> list[MaskCrop]:
    """The masks of a batch as those of samples."""
    windows = masks.windows.numpy()
    sizes = (windows[:, 2:] - windows[:, :2])[:, ::-1]
    ends = np.cumsum(sizes.prod(axis=1))
    bits = masks.bits.numpy()
    return [
        MaskCrop(int(x), int(y), bits[end - h * w : end].reshape(h, w))
        for (x, y, _, _), (h, w), end in zip(windows, sizes, ends, strict=True)
    ]
