"""Predictions from files, made by anything, to be scored against a data set.

Read are COCO results (a list of `{image_id, category_id, score, bbox | segmentation | keypoints}`; five numbers in `bbox` are an
oriented box), the results.json and coco.json of `pelagia predict`, folders of YOLO text files with scores, and folders of DOTA's
task files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pelagia.core.oriented import OrientedConvention
from pelagia.core.types import Int
from pelagia.data.dataset import Dataset
from pelagia.errors import FormatError
from pelagia.infer.coco_results import Columns, ResultsFile, kinds_of
from pelagia.infer.objects import KINDS, predicted_objects
from pelagia.infer.result_rows import read_one_by_one, refuse_all, refuse_class, refuse_size
from pelagia.infer.sources import RESULTS_FILE, results_file
from pelagia.infer.text_predictions import read_dota_predictions, read_yolo_predictions
from pelagia.metrics.objects import Kind, Objects

__all__ = ["Predictions", "read_predictions"]


@dataclass(frozen=True)
class Predictions:
    """Predictions for the images of a data set.

    Args:
        objects: what is compared, images in the order of the data set.
        unknown: images with predictions that the data set does not have: left out, since it may be a split.
        left_out: number of predictions of a category that marks regions to ignore.
    """

    objects: Objects
    unknown: tuple[str, ...] = ()
    left_out: int = 0


def read_predictions(
    source: str | Path | ResultsFile,
    dataset: Dataset,
    kind: Kind | None = None,
    *,
    angle: OrientedConvention | None = None,
) -> Predictions:
    """The predictions at `source` with the labels of `dataset`.

    Args:
        source: a file or folder, that of `pelagia predict` among them, or a results file that is being scanned already.
        angle: unit and direction of the angle in `bbox` of five numbers; by default radians, clockwise on the screen.
        kind: what to compare. None: oriented boxes for oriented data; else keypoints, masks or boxes, the first of them that both
            the file and the labels hold; for folders of text files the task of the labels.

    Raises:
        FormatError: not one of the forms, or a value is missing or not a finite number.
        EvaluationError: none of the images or a class is not in the data set, two of its images have the file name, or a mask is
            made for an image of another size.
    """
    path = source.path if isinstance(source, ResultsFile) else Path(source)
    if path.is_dir() and results_file(path) is not None:
        source = path = path / RESULTS_FILE
    if path.is_dir():
        return _from_folder(path, dataset, kind or KINDS.get(dataset.task, "boxes"))
    held = kinds_of(path)
    kind = kind or _choose(held, dataset)
    columns = (source if isinstance(source, ResultsFile) else ResultsFile(path)).columns(kind) if held else None
    if columns is not None:
        return _from_columns(columns, dataset, kind, path)
    found, unknown, left_out = read_one_by_one(path, dataset, kind, angle or "rad-cw")
    return Predictions(found, unknown, left_out)


def _choose(held: set[Kind], dataset: Dataset) -> Kind:
    if dataset.task == "oriented":
        return "oriented"
    if not held:
        return KINDS.get(dataset.task, "boxes") if dataset.task != "instance" else "boxes"
    if "keypoints" in held and dataset.annotations.keypoints is not None:
        return "keypoints"
    return "masks" if "masks" in held and dataset.annotations.shapes is not None else "boxes"


def _from_folder(folder: Path, dataset: Dataset, kind: Kind) -> Predictions:
    """Text files of YOLO or DOTA."""
    read = read_dota_predictions if any(folder.glob("Task[12]_*.txt")) else read_yolo_predictions
    found, unknown = read(folder, dataset)
    return Predictions(predicted_objects(dataset, found, kind), tuple(unknown))


def _from_columns(columns: Columns, dataset: Dataset, kind: Kind, path: Path) -> Predictions:
    image = _positions(columns.image_id, dataset.image_ids)
    unknown = tuple(str(value) for value in np.unique(columns.image_id[image < 0]).tolist())
    if unknown and not (image >= 0).any():
        refuse_all(unknown, dataset, path)
    ids = np.array([category.id for category in dataset.categories], dtype=np.int64)
    label = _positions(columns.category_id, ids)
    strange, left_out = np.flatnonzero((label < 0) & (image >= 0)), 0
    if len(strange) and dataset.ignored:
        regions = [category.id for category in dataset.ignored]
        of_region = np.isin(columns.category_id[strange], regions)
        strange, left_out = strange[~of_region], int(of_region.sum())
    if len(strange):
        refuse_class(int(columns.category_id[strange[0]]), dataset, f"{path}#{strange[0]}")
    used: Int = np.flatnonzero((image >= 0) & (label >= 0))
    sorted_already = bool((np.diff(image[used]) >= 0).all())
    if not sorted_already:
        used = used[np.argsort(image[used], kind="stable")]
    rows: Int | slice = slice(None) if sorted_already and len(used) == len(image) else used  # all of them, as they stand
    stated = columns.boxes
    numbers = [part for part in (columns.score[:, None], stated) if part is not None]
    if columns.keypoints is not None:
        numbers.append(columns.keypoints.reshape(len(columns), -1))
    for part in numbers:
        bad = np.flatnonzero(~np.isfinite(part).all(axis=1))
        if len(bad):
            raise FormatError("a score or coordinate is not a finite number", where=f"{path}#{bad[0]}")
    box_area = None if stated is None else stated[:, 2] * stated[:, 3]
    shapes: dict[str, Any] = {}
    if columns.runs is not None:
        _check_sizes(columns, image, dataset, path)
        runs = columns.runs if isinstance(rows, slice) else columns.runs.select(rows)
        shapes["runs"] = runs
        area, bounds = runs.areas_and_bounds()
    elif columns.keypoints is not None:
        points = columns.keypoints[rows]
        shapes["keypoints"] = points
        low, high = points[:, :, :2].min(axis=1), points[:, :, :2].max(axis=1)
        bounds, area = np.concatenate([low, high], axis=1), (high - low).prod(axis=1)
    else:
        assert stated is not None
        assert box_area is not None
        area = box_area[rows]
        bounds = np.concatenate([stated[rows, :2], stated[rows, :2] + stated[rows, 2:]], axis=1)
    size = area if box_area is None else box_area[rows]
    found = Objects(kind, image[rows], label[rows], bounds, area, size, score=columns.score[rows], **shapes)
    return Predictions(found, unknown, left_out)


def _positions(values: Int, known: Int) -> Int:
    """Where each value stands in `known`, -1 where it does not."""
    if len(known) == 0 or len(values) == 0:
        return np.full(len(values), -1, dtype=np.int64)
    low, high = int(known.min()), int(known.max())
    if high - low < 4 * (len(known) + len(values)):  # a table instead of a search
        table = np.full(high - low + 2, -1, dtype=np.int64)
        table[known - low] = np.arange(len(known))
        inside = (values >= low) & (values <= high)
        return table[np.where(inside, values - low, -1)]
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known[order], values), len(known) - 1)]
    return np.where(known[place] == values, place, -1)


def _check_sizes(columns: Columns, image: Int, dataset: Dataset, path: Path) -> None:
    assert columns.runs is not None
    assert columns.widths is not None
    made = np.stack([columns.widths, columns.runs.heights], axis=1)
    other = np.flatnonzero((image >= 0) & (made != dataset.sizes[image]).any(axis=1))
    if len(other):
        refuse_size(made[other[0]].tolist(), dataset, int(image[other[0]]), f"{path}#{other[0]}")
