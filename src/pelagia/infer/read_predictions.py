"""Predictions from files, made by anything, to be scored against a data set.

Read are COCO results (a list of `{image_id, category_id, score, bbox | segmentation | keypoints}`; five numbers in `bbox` are an
oriented box), the results.json and coco.json of `pelagia predict`, folders of YOLO text files with scores, and folders of DOTA's
task files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pelagia.core import masks as core_masks
from pelagia.core.files import read_json
from pelagia.core.oriented import canonical
from pelagia.core.types import Float, Instances, Int, MaskCrop
from pelagia.data.dataset import Dataset
from pelagia.errors import EvaluationError, FormatError, LabelError
from pelagia.infer.coco_results import Columns, ResultsFile, kinds_of
from pelagia.infer.objects import KINDS, predicted_objects
from pelagia.infer.text_predictions import read_dota_predictions, read_yolo_predictions
from pelagia.metrics.objects import Kind, Objects

__all__ = ["Predictions", "read_predictions"]


@dataclass(frozen=True)
class Predictions:
    """Predictions for the images of a data set.

    Args:
        objects: what is compared, images in the order of the data set.
        unknown: images with predictions that the data set does not have: left out, since it may be a split.
    """

    objects: Objects
    unknown: tuple[str, ...] = ()


def read_predictions(source: str | Path | ResultsFile, dataset: Dataset, kind: Kind | None = None) -> Predictions:
    """The predictions at `source` with the labels of `dataset`.

    Args:
        source: a file or folder, or a results file that is being scanned already.
        kind: what to compare. None: oriented boxes for oriented data; else keypoints, masks or boxes, the first of them that both
            the file and the labels hold.

    Raises:
        FormatError: not one of the forms, or a value is missing or not a finite number.
        EvaluationError: none of the images or a class is not in the data set, two of its images have the file name, or a mask is
            made for an image of another size.
    """
    path = source.path if isinstance(source, ResultsFile) else Path(source)
    if path.is_dir():
        return _from_folder(path, dataset, kind or KINDS.get(dataset.task, "boxes"))
    held = kinds_of(path)
    kind = kind or _choose(held, dataset)
    columns = (source if isinstance(source, ResultsFile) else ResultsFile(path)).columns(kind) if held else None
    return _one_by_one(path, dataset, kind) if columns is None else _from_columns(columns, dataset, kind, path)


def _choose(held: set[Kind], dataset: Dataset) -> Kind:
    if dataset.task == "oriented":
        return "oriented"
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
        _refuse_all(unknown, dataset, path)
    ids = np.array([category.id for category in dataset.categories], dtype=np.int64)
    label = _positions(columns.category_id, ids)
    strange = np.flatnonzero((label < 0) & (image >= 0))
    if len(strange) and dataset.ignored:
        regions = [category.id for category in dataset.ignored]
        strange = strange[~np.isin(columns.category_id[strange], regions)]
    if len(strange):
        _refuse_class(int(columns.category_id[strange[0]]), dataset, f"{path}#{strange[0]}")
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
    return Predictions(Objects(kind, image[rows], label[rows], bounds, area, size, score=columns.score[rows], **shapes), unknown)


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
        _refuse_size(made[other[0]].tolist(), dataset, int(image[other[0]]), f"{path}#{other[0]}")


def _refuse_size(made: list[int], dataset: Dataset, image: int, where: str) -> NoReturn:
    width, height = dataset.sizes[image]
    raise EvaluationError(
        f"the mask is made for an image of {made[0]} x {made[1]} pixels, but {dataset.names[image]} has {width} x {height}; "
        "predict at the size of the labelled images",
        where=where,
    )


def _refuse_all(unknown: Iterable[str], dataset: Dataset, path: Path) -> NoReturn:
    unknown = list(unknown)
    raise EvaluationError(
        f"none of the {len(unknown)} images with predictions, such as {unknown[0]}, is in the truth, which has "
        f"{len(dataset)} images, such as {next(iter(dataset.names), 'none')}",
        where=path,
    )


def _refuse_class(wrong: object, dataset: Dataset, where: str | Path) -> NoReturn:
    known = ", ".join(f"{category.id} {category.name}" for category in dataset.categories[:10])
    raise EvaluationError(f"class {wrong!r} is not in the truth, which has: {known}", where=where)


@dataclass(frozen=True, slots=True)
class _Row:
    """One prediction, read with every doubt."""

    label: int
    score: float
    box: list[float]
    oriented: list[float] | None
    mask: MaskCrop | None
    keypoints: Float | None
    stated: float | None


def _one_by_one(path: Path, dataset: Dataset, kind: Kind) -> Predictions:
    content = read_json(path)
    rows: dict[int, list[_Row]] = defaultdict(list)
    unknown: dict[str, None] = {}
    finder = _Finder(dataset, path)
    for position, (image, item) in enumerate(_objects(content, path)):
        where = f"{path}#{position}"
        index = finder.image(image)
        if index is None:
            unknown[str(image)] = None
        else:
            rows[index].append(_row(item, finder.label(item), kind, (dataset, index), where))
    if unknown and not rows:
        _refuse_all(unknown, dataset, path)
    found = [_instances(rows.get(index, []), kind) for index in range(len(dataset))]
    return Predictions(predicted_objects(dataset, found, kind), tuple(unknown))


def _row(item: dict[str, Any], label: int, kind: Kind, place: tuple[Dataset, int], where: str) -> _Row:
    dataset, index = place
    try:
        score = float(item["score"])
        box = [float(value) for value in item["box"]] if item.get("box") is not None else None
        oriented = [float(value) for value in item["oriented"]] if item.get("oriented") is not None else None
        points = None
        if kind == "keypoints":
            points = np.asarray(item["keypoints"], dtype=np.float64).reshape(-1, 3)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"this prediction misses or misstates a field ({error!r})", where=where) from error
    mask = _mask(item.get("segmentation"), dataset, index, where) if kind == "masks" else None
    stated = None if box is None else (box[2] - box[0]) * (box[3] - box[1])
    if box is None and mask is not None:
        box = core_masks.bounds(mask).tolist()
    if box is None and points is not None:
        box = [*points[:, :2].min(axis=0).tolist(), *points[:, :2].max(axis=0).tolist()]
    if box is None:
        raise FormatError("this prediction has no box", where=where)
    lengths = (len(box), 5 if oriented is None else len(oriented))
    if lengths != (4, 5) or not np.isfinite([score, *box, *(oriented or ())]).all():
        raise FormatError("a box needs 4 finite numbers, an oriented one 5, and a score must be finite", where=where)
    if kind == "oriented" and oriented is None:
        raise FormatError("the data are oriented, but this prediction has no `oriented` [cx, cy, w, h, angle]", where=where)
    return _Row(label, score, box, oriented, mask, points, stated)


def _mask(value: Any, dataset: Dataset, index: int, where: str) -> MaskCrop:
    """COCO's compressed or plain run lengths, or polygons."""
    width, height = (int(side) for side in dataset.sizes[index])
    try:
        if isinstance(value, dict):
            made = [int(value["size"][1]), int(value["size"][0])]
            if made != [width, height]:
                _refuse_size(made, dataset, index, where)
            if isinstance(value["counts"], str):
                return core_masks.crop_from_rle(core_masks.rle_from_string(value["counts"], height, width))
            counts = np.asarray(value["counts"], dtype=np.uint32)
            return core_masks.crop_from_rle(core_masks.RLE(height, width, counts))
        rings = [np.asarray(ring, dtype=np.float64).reshape(-1, 2) for ring in value]
        return core_masks.crop_from_polygon(rings, height, width)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, LabelError) as error:
        raise FormatError(f"the segmentation is neither run lengths nor polygons ({error})", where=where) from error


def _instances(rows: list[_Row], kind: Kind) -> Instances:
    if not rows:
        return Instances.empty(oriented=kind == "oriented", scores=True)
    binned = all(row.stated is not None for row in rows) and kind in ("masks", "keypoints")
    return Instances(
        labels=np.array([row.label for row in rows]),
        boxes=None if kind == "oriented" else np.array([row.box for row in rows]),
        oriented=canonical(np.array([row.oriented for row in rows], dtype=np.float64)) if kind == "oriented" else None,
        scores=np.array([row.score for row in rows]),
        masks=tuple(row.mask for row in rows if row.mask is not None) if kind == "masks" else None,
        keypoints=np.stack([row.keypoints for row in rows if row.keypoints is not None]) if kind == "keypoints" else None,
        areas=np.array([row.stated for row in rows], dtype=np.float64) if binned else None,
    )


def _objects(content: Any, path: Path) -> Iterable[tuple[int | str, dict[str, Any]]]:
    """(image id or file name, object with `box` as corners) of any of the three forms."""
    if isinstance(content, list):
        return [(_field(item, "image_id", f"{path}#{i}"), _corners(item, f"{path}#{i}")) for i, item in enumerate(content)]
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise FormatError(
            "expected COCO results (a list of predictions), or the results.json or coco.json of `pelagia predict`", where=path
        )
    if "annotations" in content:
        names = {_field(image, "id", path): _field(image, "file_name", path) for image in images}
        classes = {_field(item, "id", path): _field(item, "name", path) for item in content.get("categories", [])}
        found = []
        for position, item in enumerate(content["annotations"]):
            where = f"{path}#{position}"
            image, category = _field(item, "image_id", where), _field(item, "category_id", where)
            if image not in names:
                raise FormatError(f"image_id {image} is not among the file's images", where=where)
            found.append((names[image], {**_corners(item, where), "class": classes.get(category)}))
        return found
    return [
        (_field(image, "file", path), item)
        for image in images
        for item in (_field(image, "objects", path) if "error" not in image else [])
    ]


def _field(item: Any, name: str, where: str | Path) -> Any:
    if not isinstance(item, dict) or name not in item:
        raise FormatError(f"an entry has no {name!r}", where=where)
    return item[name]


def _corners(item: Any, where: str) -> dict[str, Any]:
    """A COCO entry with `box` = x1, y1, x2, y2 beside its `bbox` = x, y, width, height (or cx, cy, w, h, angle)."""
    if isinstance(item, dict) and not item.get("bbox") and (item.get("segmentation") or item.get("keypoints")):
        return item
    box = _field(item, "bbox", where)
    if not isinstance(box, list) or len(box) not in (4, 5) or not all(isinstance(value, int | float) for value in box):
        raise FormatError(f"bbox must be 4 numbers x, y, width, height (or 5: cx, cy, w, h, angle), got {box!r}", where=where)
    if len(box) == 5:
        cx, cy, w, h, _ = box
        return {**item, "box": [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], "oriented": box}
    x, y, w, h = box
    return {**item, "box": [x, y, x + w, y + h]}


class _Finder:
    """Images by id or file name, classes by name or id."""

    def __init__(self, dataset: Dataset, path: Path) -> None:
        self._path, self._dataset = path, dataset
        self._ids = {int(image): index for index, image in enumerate(dataset.image_ids)}
        self._names = {name: index for index, name in enumerate(dataset.names)}
        self._short: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(dataset.names):
            self._short[name.rsplit("/", 1)[-1]].append(index)
        self._classes = {category.name: label for label, category in enumerate(dataset.categories)}
        self._class_ids = {category.id: label for label, category in enumerate(dataset.categories)}

    def image(self, key: int | str) -> int | None:
        """Index of an image: by id, by name, or by the last part of a name if only one image has it; None if there is none."""
        if not isinstance(key, int | str):
            raise FormatError(f"an image is named by its id or its file name, got {key!r}", where=self._path)
        index = self._names.get(key) if isinstance(key, str) else self._ids.get(key)
        if index is not None:
            return index
        candidates = self._short.get(key.rsplit("/", 1)[-1], []) if isinstance(key, str) else []
        if len(candidates) > 1:
            raise EvaluationError(
                f"image {key!r} is the name of several images in the truth; write predictions with their folders",
                where=self._path,
            )
        return candidates[0] if candidates else None

    def label(self, item: dict[str, Any]) -> int:
        """By name where the object has one, else by the source's id."""
        name, number = item.get("class"), item.get("category_id", item.get("class_id"))
        label = None
        if isinstance(name, str):
            label = self._classes.get(name)
        elif isinstance(number, int):
            label = self._class_ids.get(number)
        if label is None:
            _refuse_class(name if name is not None else number, self._dataset, self._path)
        return label
