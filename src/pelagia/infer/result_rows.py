"""Predictions in JSON read one by one: every form, every doubt, and the place of what is wrong.

Half a million usual ones go another way (`infer.coco_results`); what that cannot take comes here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.files import read_json
from pelagia.core.oriented import OrientedConvention
from pelagia.core.types import Float, Instances, MaskCrop
from pelagia.data.dataset import Dataset
from pelagia.errors import EvaluationError, FormatError, LabelError
from pelagia.infer.match_images import ImageStems, stem_of
from pelagia.infer.objects import predicted_objects
from pelagia.infer.result_names import portable
from pelagia.metrics.objects import Kind, Objects

__all__ = ["read_one_by_one", "refuse_all", "refuse_class", "refuse_size"]


def read_one_by_one(path: Path, dataset: Dataset, kind: Kind, angle: OrientedConvention) -> tuple[Objects, tuple[str, ...], int]:
    """The predictions of a JSON file, the images that `dataset` does not have, and how many are of an ignored category.

    Raises:
        FormatError, EvaluationError: see `read_predictions`.
    """
    rows: dict[int, list[_Row]] = defaultdict(list)
    unknown: dict[str, None] = {}
    finder, left_out, known = _Finder(dataset, path), 0, False
    for position, (image, item) in enumerate(_objects(read_json(path), path)):
        where = f"{path}#{position}"
        index = finder.image(image, where)
        if index is None:
            unknown[str(image)] = None
            continue
        known = True
        label = finder.label(item, where)
        if label is None:
            left_out += 1
        else:
            rows[index].append(_row(item, label, kind, (dataset, index), where, angle))
    if unknown and not known:
        refuse_all(unknown, dataset, path)
    found = [_instances(rows.get(index, []), kind, path) for index in range(len(dataset))]
    objects = predicted_objects(dataset, found, kind)
    if kind == "boxes":  # the width as stated, not the difference of the corners: the last digit may decide
        area = np.array([row.stated for index in range(len(dataset)) for row in rows.get(index, [])], dtype=np.float64)
        objects = objects.replace(area=area, size=area)
    return objects, tuple(unknown), left_out


@dataclass(frozen=True, slots=True)
class _Row:
    """One prediction; `stated`: area of the box as the file states it."""

    label: int
    score: float
    box: list[float]
    oriented: list[float] | None
    mask: MaskCrop | None
    keypoints: Float | None
    stated: float | None


def _row(item: dict[str, Any], label: int, kind: Kind, place: tuple[Dataset, int], where: str, angle: OrientedConvention) -> _Row:
    try:
        score = float(item["score"])
        box, stated = _box(item, where)
        oriented = _oriented(item, angle, where)
        points = np.asarray(item["keypoints"], dtype=np.float64).reshape(-1, 3) if kind == "keypoints" else None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"this prediction misses or misstates a field ({error!r})", where=where) from error
    if points is not None and (len(points) == 0 or not np.isfinite(points).all()):
        raise FormatError("keypoints must be finite numbers x, y, score, for one point or more", where=where)
    mask = _mask(item.get("segmentation") or item.get("mask"), *place, where) if kind == "masks" else None
    if box is None and oriented is not None:
        box = core_oriented.bounds(np.array([oriented]))[0].tolist()
    if box is None and mask is not None:
        box = core_masks.bounds(mask).tolist()
    if box is None and points is not None:
        box = [*points[:, :2].min(axis=0).tolist(), *points[:, :2].max(axis=0).tolist()]
    if box is None:
        raise FormatError("this prediction has no bbox", where=where)
    if not np.isfinite([score, *box]).all():
        raise FormatError("a box needs 4 finite numbers, an oriented one 5, and a score must be finite", where=where)
    if kind == "oriented" and oriented is None:
        raise FormatError("the data are oriented, but this prediction has no `oriented` [cx, cy, w, h, angle]", where=where)
    if stated is None and kind == "boxes":
        stated = (box[2] - box[0]) * (box[3] - box[1])
    return _Row(label, score, box, oriented, mask, points, stated)


def _box(item: dict[str, Any], where: str) -> tuple[list[float] | None, float | None]:
    """Corners of the upright box, and its area as stated: `bbox` is x, y, width, height, `box` x1, y1, x2, y2."""
    if item.get("box") is not None:
        corners = [float(value) for value in item["box"]]
        if len(corners) != 4:
            raise FormatError(f"box must be 4 numbers x1, y1, x2, y2, got {len(corners)}", where=where)
        return corners, (corners[2] - corners[0]) * (corners[3] - corners[1])
    given = item.get("bbox") or None
    if given is None and "bbox" not in item and not (item.get("segmentation") or item.get("keypoints") or item.get("oriented")):
        raise FormatError("an entry has no 'bbox'", where=where)
    if given is None:
        return None, None
    if not isinstance(given, list) or len(given) not in (4, 5) or not all(isinstance(value, int | float) for value in given):
        raise FormatError(f"bbox must be 4 numbers x, y, width, height (or 5: cx, cy, w, h, angle), got {given!r}", where=where)
    if len(given) == 5:
        return None, None
    x, y, w, h = (float(value) for value in given)
    return [x, y, x + w, y + h], w * h


def _oriented(item: dict[str, Any], angle: OrientedConvention, where: str) -> list[float] | None:
    """Canonical: `oriented` is radians clockwise, five numbers in `bbox` are as `angle` says."""
    five = item.get("bbox")
    if item.get("oriented") is not None:
        given, convention = [float(value) for value in item["oriented"]], "rad-cw"
    elif isinstance(five, list) and len(five) == 5:
        given, convention = [float(value) for value in five], angle
    else:
        return None
    if len(given) != 5 or not np.isfinite(given).all():
        raise FormatError("a box needs 4 finite numbers, an oriented one 5, and a score must be finite", where=where)
    if convention.startswith("rad") and abs(given[4]) > 2 * np.pi + 1e-6:
        raise FormatError(f"angle {given[4]:g} is beyond 2 pi, so it is not in radians; state it with --angle", where=where)
    turned: Float = core_oriented.convert(np.array([given]), convention, "canonical")  # type: ignore[arg-type]
    return turned[0].tolist()  # type: ignore[no-any-return]


def _mask(value: Any, dataset: Dataset, index: int, where: str) -> MaskCrop:
    """COCO's compressed or plain run lengths, or polygons."""
    width, height = (int(side) for side in dataset.sizes[index])
    try:
        if isinstance(value, dict):
            made = [int(value["size"][1]), int(value["size"][0])]
            if made != [width, height]:
                refuse_size(made, dataset, index, where)
            if isinstance(value["counts"], str):
                return core_masks.crop_from_rle(core_masks.rle_from_string(value["counts"], height, width))
            counts = np.asarray(value["counts"], dtype=np.uint32)
            return core_masks.crop_from_rle(core_masks.RLE(height, width, counts))
        rings = [np.asarray(ring, dtype=np.float64).reshape(-1, 2) for ring in value]
        return core_masks.crop_from_polygon(rings, height, width)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, LabelError) as error:
        raise FormatError(f"the segmentation is neither run lengths nor polygons ({error})", where=where) from error


def _instances(rows: list[_Row], kind: Kind, path: Path) -> Instances:
    if not rows:
        return Instances.empty(oriented=kind == "oriented", scores=True)
    binned = all(row.stated is not None for row in rows) and kind in ("masks", "keypoints")
    points = [row.keypoints for row in rows if row.keypoints is not None]
    if len({len(item) for item in points}) > 1:
        lengths = sorted({len(item) for item in points})
        raise FormatError(f"poses of {lengths[0]} and of {lengths[-1]} points in one image; a class has one skeleton", where=path)
    return Instances(
        labels=np.array([row.label for row in rows]),
        boxes=None if kind == "oriented" else np.array([row.box for row in rows]),
        oriented=np.array([row.oriented for row in rows], dtype=np.float64) if kind == "oriented" else None,
        scores=np.array([row.score for row in rows]),
        masks=tuple(row.mask for row in rows if row.mask is not None) if kind == "masks" else None,
        keypoints=np.stack(points) if kind == "keypoints" else None,
        areas=np.array([row.stated for row in rows], dtype=np.float64) if binned else None,
    )


def _objects(content: Any, path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(image id or file name, object) of a list of results, a results.json or a coco.json."""
    if isinstance(content, list):
        for position, item in enumerate(content):
            yield _field(item, "image_id", f"{path}#{position}"), item
        return
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise FormatError(
            "expected COCO results (a list of predictions), or the results.json or coco.json of `pelagia predict`", where=path
        )
    if "annotations" in content:
        names = {_key(_field(image, "id", path), path): _field(image, "file_name", path) for image in images}
        categories = _list(content.get("categories") or [], "categories", path)
        classes = {_key(_field(item, "id", path), path): _field(item, "name", path) for item in categories}
        for position, item in enumerate(_list(content["annotations"], "annotations", path)):
            where = f"{path}#{position}"
            image, category = _field(item, "image_id", where), _field(item, "category_id", where)
            if _key(image, where) not in names:
                raise FormatError(f"image_id {image} is not among the file's images", where=where)
            yield names[image], {**item, "class": classes.get(_key(category, where))}
        return
    for image in images:
        name = _field(image, "file", path)
        if "error" not in image:
            for item in _list(_field(image, "objects", path), "objects", f"{path}: {name}"):
                if not isinstance(item, dict):
                    raise FormatError(f"an object must be a JSON object, got {str(item)[:40]!r}", where=f"{path}: {name}")
                yield name, item


def _list(value: Any, name: str, where: str | Path) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"{name!r} must hold a list", where=where)
    return value


def _key(value: Any, where: str | Path) -> Any:
    if not isinstance(value, int | str | float):
        raise FormatError(f"an id must be a number or text, got {str(value)[:40]!r}", where=where)
    return value


def _field(item: Any, name: str, where: str | Path) -> Any:
    if not isinstance(item, dict) or name not in item:
        raise FormatError(f"an entry has no {name!r}", where=where)
    return item[name]


class _Finder:
    """Images by id or file name, classes by name or id."""

    def __init__(self, dataset: Dataset, path: Path) -> None:
        self._dataset = dataset
        self._ids = {int(image): index for index, image in enumerate(dataset.image_ids)}
        self._names = {form: index for index, name in enumerate(dataset.names) for form in (portable(name), name)}
        self._stems = ImageStems(dataset.names, path)
        self._classes = {category.name: label for label, category in enumerate(dataset.categories)}
        self._class_ids = {category.id: label for label, category in enumerate(dataset.categories)}
        self._ignored = {value for category in dataset.ignored for value in (category.id, category.name)}

    def image(self, key: Any, where: str) -> int | None:
        """Index of an image by id, by name, or by a name that misses whole folders; None if there is none."""
        if not isinstance(key, int | str):
            raise FormatError(f"an image is named by its id or its file name, got {key!r}", where=where)
        if isinstance(key, int):
            return self._ids.get(key)
        index = self._names.get(key)
        return self._stems.find(stem_of(key)) if index is None else index

    def label(self, item: dict[str, Any], where: str) -> int | None:
        """By name where the object has one, else by the source's id; None for a category that marks regions to ignore."""
        name, number = item.get("class"), item.get("category_id", item.get("class_id"))
        label = None
        if isinstance(name, str):
            label = self._classes.get(name)
        elif isinstance(number, int):
            label = self._class_ids.get(number)
        value = name if isinstance(name, str) else number
        if value is None:
            raise FormatError("an entry has neither 'category_id' nor 'class'", where=where)
        if label is None and isinstance(value, int | str) and value in self._ignored:
            return None
        if label is None:
            refuse_class(value, self._dataset, where)
        return label


def refuse_size(made: list[int], dataset: Dataset, image: int, where: str) -> NoReturn:
    """Raise the error of a mask that is made for an image of another (width, height)."""
    width, height = dataset.sizes[image]
    raise EvaluationError(
        f"the mask is made for an image of {made[0]} x {made[1]} pixels, but {dataset.names[image]} has {width} x {height}; "
        "predict at the size of the labelled images",
        where=where,
    )


def refuse_all(unknown: Iterable[str], dataset: Dataset, path: Path) -> NoReturn:
    """Raise the error of predictions none of whose images is in the truth."""
    unknown = list(unknown)
    raise EvaluationError(
        f"none of the {len(unknown)} images with predictions, such as {unknown[0]}, is in the truth, which has "
        f"{len(dataset)} images, such as {next(iter(dataset.names), 'none')}",
        where=path,
    )


def refuse_class(wrong: object, dataset: Dataset, where: str | Path) -> NoReturn:
    """Raise the error of a class that the truth does not have."""
    known = ", ".join(f"{category.id} {category.name}" for category in dataset.categories[:10])
    raise EvaluationError(f"class {wrong!r} is not in the truth, which has: {known}", where=where)
