"""Truth and predictions of a data set as the flat arrays that metrics compare, without one Python object per image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.files import read_json
from pelagia.core.types import Float, Instances, Int, Task
from pelagia.data.dataset import Dataset
from pelagia.errors import EvaluationError, FormatError
from pelagia.metrics.matching import Federated
from pelagia.metrics.objects import Kind, Objects, Runs, flatten

__all__ = ["KINDS", "federated_labels", "instances_of", "predicted_objects", "truth_objects"]

#: What a task's predictions are compared by.
KINDS: dict[Task, Kind] = {"detect": "boxes", "oriented": "oriented", "instance": "masks", "keypoints": "keypoints"}


def truth_objects(dataset: Dataset, kind: Kind) -> Objects:
    """The objects of `dataset`; for masks, an object without an outline has its box as mask.

    Raises:
        EvaluationError: the data set has no shapes of this kind.
    """
    flat = dataset.annotations
    shapes: dict[str, Any] = {}
    bounds = flat.boxes
    if kind == "oriented":
        dataset = dataset.with_task("oriented")
        flat = dataset.annotations
        oriented: Float = np.zeros((0, 5)) if flat.oriented is None else flat.oriented
        shapes["oriented"], area = oriented, oriented[:, 2] * oriented[:, 3]
        bounds = Instances(labels=flat.labels, oriented=oriented).box_array
    elif kind == "masks":
        if flat.shapes is None and len(flat):
            raise EvaluationError("the labels hold no outlines to compare masks with; compare boxes instead", where=dataset.root)
        runs = _truth_runs(dataset)
        shapes["runs"] = runs
        area, bounds = runs.areas_and_bounds()
    else:
        area = (bounds[:, 2] - bounds[:, 0]) * (bounds[:, 3] - bounds[:, 1])
        if flat.extents is not None:
            area = flat.extents[:, 0] * flat.extents[:, 1]
        if kind == "keypoints":
            if flat.keypoints is None and len(flat):
                raise EvaluationError("the labels hold no keypoints to compare", where=dataset.root)
            shapes["keypoints"] = np.zeros((0, 0, 3)) if flat.keypoints is None else flat.keypoints
    size = area if flat.areas is None else flat.areas
    return Objects(
        kind,
        flat.images,
        flat.labels,
        bounds,
        size if kind == "keypoints" else area,
        size,
        crowd=flat.crowd,
        difficult=flat.difficult,
        ignore=flat.ignore,
        **shapes,
    )


def _truth_runs(dataset: Dataset) -> Runs:
    flat = dataset.annotations
    sizes = dataset.sizes[flat.images]
    shapes = flat.shapes
    if len(flat) and (sizes <= 0).any():
        raise EvaluationError("masks need the sizes of the images, and the labels do not state them", where=dataset.root)
    if shapes is not None and bool((np.diff(shapes.count_starts) > 0).all()):
        return Runs(shapes.counts, shapes.count_starts, sizes[:, 1])
    items: list[NDArray[np.uint32]] = []
    for row, (width, height) in enumerate(sizes.tolist()):
        counts = np.zeros(0, dtype=np.uint32) if shapes is None else shapes.runs(row)
        if len(counts) == 0:
            rings = [] if shapes is None else shapes.rings(row)
            x1, y1, x2, y2 = flat.boxes[row]
            rings = rings or [np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])]
            counts = core_masks.crop_to_rle(core_masks.crop_from_polygon(rings, height, width), height, width).counts
        items.append(counts)
    return Runs.of(items, sizes[:, 1])


def predicted_objects(dataset: Dataset, predictions: Sequence[Instances], kind: Kind) -> Objects:
    """Predictions made here, one `Instances` per image of `dataset`.

    Raises:
        EvaluationError: another number of images, or shapes or scores are missing.
    """
    if len(predictions) != len(dataset):
        raise EvaluationError(f"{len(predictions)} predictions for {len(dataset)} images; give one Instances per image")
    return flatten(predictions, kind, what="predictions", heights=dataset.sizes[:, 1] if kind == "masks" else None)


def federated_labels(path: str | Path, dataset: Dataset) -> Federated:
    """What was looked for in the images of a COCO file with LVIS's `neg_category_ids` and `not_exhaustive_category_ids`.

    Raises:
        FormatError: not a JSON object with a list of images, or an unknown category.
    """
    content = read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not any("neg_category_ids" in image for image in images if isinstance(image, dict)):
        raise FormatError("no image has neg_category_ids: these labels are not of the form of LVIS", where=path)
    rows = {int(value): index for index, value in enumerate(dataset.image_ids.tolist())}
    labels = {category.id: label for label, category in enumerate(dataset.categories)}
    shape = len(dataset), len(dataset.categories)
    flags = {name: np.zeros(shape, dtype=np.bool_) for name in ("neg_category_ids", "not_exhaustive_category_ids")}
    for image in images:
        if isinstance(image, dict) and image.get("id") in rows:
            for name, flag in flags.items():
                for value in image.get(name) or []:
                    if not isinstance(value, int) or value not in labels:
                        raise FormatError(f"{name} holds {value!r}, which is no category", where=f"{path}#{image['id']}")
                    flag[rows[image["id"]], labels[value]] = True
    return Federated(*flags.values())


def instances_of(objects: Objects, image: int, size: tuple[int, int]) -> Instances:
    """The objects of one image of that (width, height), to be drawn."""
    rows: Int = np.flatnonzero(objects.image == image)
    chosen = objects.select(rows)
    masks = None
    if chosen.runs is not None:
        runs = chosen.runs
        width, height = size
        parts = [runs.counts[runs.starts[i] : runs.starts[i + 1]] for i in range(len(chosen))]
        masks = tuple(core_masks.crop_from_rle(core_masks.RLE(height, width, _filled(part, width * height))) for part in parts)
    return Instances(
        labels=chosen.label,
        boxes=None if chosen.oriented is not None else chosen.bounds,
        oriented=chosen.oriented,
        scores=chosen.score,
        masks=masks,
        keypoints=chosen.keypoints,
        crowd=chosen.crowd,
        difficult=chosen.difficult,
        ignore=chosen.ignore,
    )


def _filled(counts: NDArray[np.uint32], pixels: int) -> NDArray[np.uint32]:
    """The run lengths with the background at the end that `Runs` may leave out."""
    rest = pixels - int(counts.sum(dtype=np.int64))
    ends_in_object = len(counts) % 2 == 0
    return np.append(counts, [rest] if ends_in_object else [0, rest]).astype(np.uint32)
