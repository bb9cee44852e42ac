"""Predictions from a file, to be scored against a data set.

Three forms are read: a COCO results file (a list of `{image_id, category_id, bbox, score}`; `oriented` for oriented boxes), a
results.json or a coco.json of `pelagia predict`, whose images are matched by file name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pelagia.core.files import read_json
from pelagia.core.oriented import canonical
from pelagia.core.types import Instances
from pelagia.data.dataset import Dataset
from pelagia.errors import EvaluationError, FormatError

__all__ = ["read_predictions"]

#: One object: label, score, four box numbers x1, y1, x2, y2, and five oriented ones or none.
_Row = tuple[int, float, list[float], list[float] | None]


def read_predictions(path: str | Path, dataset: Dataset) -> tuple[list[Instances], list[str]]:
    """One `Instances` per image of `dataset`, empty where the file says nothing of it, with the labels of `dataset`.

    Beside them, the images with predictions that `dataset` does not have: they are left out, since it may be a split.

    For an oriented data set objects need `oriented`: cx, cy, w, h in pixels and the angle in radians, clockwise on the screen.

    Raises:
        FormatError: not one of the forms, or a value is missing or not a finite number.
        EvaluationError: none of the images or a class is not in the data set, or two of its images have the file name.
    """
    content = read_json(path)
    objects = _objects(content, Path(path))
    rows: dict[int, list[_Row]] = defaultdict(list)
    unknown: dict[str, None] = {}
    finder = _Finder(dataset, Path(path))
    for position, (image, item) in enumerate(objects):
        where = f"{path}#{position}"
        try:
            score = float(item["score"])
            box = [float(value) for value in item["box"]]
            oriented = [float(value) for value in item["oriented"]] if item.get("oriented") is not None else None
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"this prediction misses or misstates a field ({error!r})", where=where) from error
        lengths = (len(box), 5 if oriented is None else len(oriented))
        if lengths != (4, 5) or not np.isfinite([score, *box, *(oriented or ())]).all():
            raise FormatError("a box needs 4 finite numbers, an oriented one 5, and a score must be finite", where=where)
        if dataset.task == "oriented" and oriented is None:
            raise FormatError("the data are oriented, but this prediction has no `oriented` [cx, cy, w, h, angle]", where=where)
        index = finder.image(image)
        if index is None:
            unknown[str(image)] = None
        else:
            rows[index].append((finder.label(item), score, box, oriented))
    if unknown and not rows:
        raise EvaluationError(
            f"none of the {len(unknown)} images with predictions, such as {next(iter(unknown))}, is in the truth, which has "
            f"{len(dataset)} images, such as {next(iter(dataset.names), 'none')}",
            where=path,
        )
    return [_instances(rows.get(index, []), dataset.task == "oriented") for index in range(len(dataset))], list(unknown)


def _instances(rows: list[_Row], oriented: bool) -> Instances:
    if not rows:
        return Instances.empty(oriented=oriented, scores=True)
    labels, scores, boxes, turned = zip(*rows, strict=True)
    return Instances(
        labels=np.array(labels),
        boxes=None if oriented else np.array(boxes),
        oriented=canonical(np.array(turned, dtype=np.float64)) if oriented else None,
        scores=np.array(scores),
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
            known = ", ".join(f"{category.id} {category.name}" for category in self._dataset.categories[:10])
            wrong = name if name is not None else number
            raise EvaluationError(f"class {wrong!r} is not in the truth, which has: {known}", where=self._path)
        return label
