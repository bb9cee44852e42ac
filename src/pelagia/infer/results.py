"""What prediction leaves behind: JSON, CSV, COCO, counts, annotated pictures; and predictions read back to be scored.

A results folder holds

    results.json   model, classes, and per image its objects or the reason why it could not be read
    results.csv    one row per object, for R, pandas and spreadsheets
    counts.csv     objects per image (row) and class (column)
    coco.json      images, categories and annotations with `score`, for annotation tools
    pictures/      the images with their objects drawn

All coordinates are pixels of the original image, (0, 0) its outer top-left corner; angles are radians, clockwise on the screen.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import numpy as np

from pelagia.core.card import ModelCard
from pelagia.core.draw import draw_instances
from pelagia.core.files import atomic_write
from pelagia.core.frame import Frame
from pelagia.core.image import read, warp, write
from pelagia.core.oriented import to_corners
from pelagia.core.types import Float, Instances
from pelagia.errors import ImageError
from pelagia.infer.predict import FileResult, objects_of

__all__ = [
    "PICTURE_PIXELS",
    "ResultWriter",
    "count_classes",
    "draw_result",
    "image_dict",
    "object_dicts",
    "picture_names",
    "relative_names",
]

#: Annotated pictures of larger images are shrunk to this many pixels.
PICTURE_PIXELS = 50_000_000

#: And to this side, near the most that JPEG can hold.
_PICTURE_SIDE = 60_000

_BOX = ("x1_px", "y1_px", "x2_px", "y2_px")
_ORIENTED = ("cx_px", "cy_px", "w_px", "h_px", "angle_rad")


class ResultWriter:
    """Writes a results folder while predictions come in; files appear whole when it is left.

    Interrupted by the user, it still writes what is there and marks it `"complete": false`; any other exception leaves no file.
    """

    def __init__(self, folder: str | Path, card: ModelCard, *, model: str = "") -> None:
        self.folder = Path(folder)
        self._card = card
        self._stack = ExitStack()
        self._first = True
        self._images: list[dict[str, Any]] = []
        self._annotations = 0
        self._model = model

    def __enter__(self) -> Self:
        names = self._card.class_names
        self._json, self._coco, rows, counts = (
            self._stack.enter_context(atomic_write(self.folder / name, "w"))
            for name in ("results.json", "coco.json", "results.csv", "counts.csv")
        )
        self._rows, self._counts = csv.writer(rows, lineterminator="\n"), csv.writer(counts, lineterminator="\n")
        shape = (*_BOX, *_ORIENTED) if self._card.task == "oriented" else _BOX
        self._rows.writerow(["file", "class_id", "class", "score", *shape])
        self._counts.writerow(["file", *names, "total"])
        categories = [{"id": item.id, "name": item.name, "supercategory": item.supercategory} for item in self._card.categories]
        model = {"file": self._model, "name": self._card.name, "task": self._card.task, "licence": self._card.licence}
        self._json.write(f'{{"model":{_dump(model)},"categories":{_dump(categories)},"images":[')
        self._coco.write(f'{{"categories":{_dump(categories)},"annotations":[')
        return self

    @property
    def images(self) -> int:
        """How many images were predicted so far."""
        return len(self._images)

    def add(self, result: FileResult, name: str) -> None:
        """Write what came of one file under `name`."""
        self._json.write(("\n" if self._first else ",\n") + _dump(image_dict(result, name, self._card)))
        self._first = False
        if result.found is None:
            return
        image = {"id": len(self._images) + 1, "file_name": name, "width": result.width, "height": result.height}
        self._images.append(image)
        found = objects_of(result.found, self._card)
        boxes = found.box_array
        for row, item in enumerate(object_dicts(found, self._card)):
            self._rows.writerow([name, item["class_id"], item["class"], item["score"], *item["box"], *item.get("oriented", ())])
            self._annotations += 1
            annotation = {"id": self._annotations, "image_id": image["id"], **_coco_dict(found, row, boxes[row], item)}
            self._coco.write(("\n" if self._annotations == 1 else ",\n") + _dump(annotation))
        counts = count_classes(found, self._card)
        self._counts.writerow([name, *counts, sum(counts)])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and not issubclass(kind, KeyboardInterrupt):
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._json.write(f'\n],"complete":{_dump(kind is None)}}}\n')
            self._coco.write(f'\n],"images":{_dump(self._images)}}}\n')


def image_dict(result: FileResult, name: str, card: ModelCard) -> dict[str, Any]:
    """One image of results.json."""
    if result.found is None:
        return {"file": name, "error": result.error}
    objects = object_dicts(objects_of(result.found, card), card)
    return {"file": name, "width": result.width, "height": result.height, "count": len(objects), "objects": objects}


def object_dicts(found: Instances, card: ModelCard) -> list[dict[str, Any]]:
    """Each object as JSON values: class, the source's class id, score, box, and for oriented boxes their five numbers.

    Pixels are rounded to a thousandth, scores to a millionth, angles to a hundred-millionth.
    """
    scores = np.ones(len(found)) if found.scores is None else found.scores
    boxes = np.round(found.box_array, 3).tolist()
    items: list[dict[str, Any]] = [
        {"class": card.categories[label].name, "class_id": card.categories[label].id, "score": round(float(score), 6), "box": box}
        for label, score, box in zip(found.labels.tolist(), scores, boxes, strict=True)
    ]
    if found.oriented is not None:
        oriented = np.concatenate([np.round(found.oriented[:, :4], 3), np.round(found.oriented[:, 4:], 8)], axis=1)
        for item, values in zip(items, oriented.tolist(), strict=True):
            item["oriented"] = values
    return items


def count_classes(found: Instances, card: ModelCard) -> list[int]:
    """How many objects of each class, in label order."""
    counts: list[int] = np.bincount(found.labels, minlength=len(card.categories)).tolist()
    return counts


def draw_result(result: FileResult, target: str | Path, card: ModelCard) -> Path:
    """Write the image of `result` with its objects as `target` (JPEG), shrunk if it has more than `PICTURE_PIXELS`.

    Raises:
        ImageError: the file has no result, or can no longer be read.
    """
    if result.found is None:
        raise ImageError(result.error or "there is nothing to draw", where=result.path)
    image, found = read(result.path), objects_of(result.found, card)
    pixels = result.width * result.height
    scale = min(math.sqrt(PICTURE_PIXELS / pixels), _PICTURE_SIDE / max(result.width, result.height))
    if scale < 1:
        matrix = np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]])
        width, height = max(round(result.width * scale), 1), max(round(result.height * scale), 1)
        image = warp(image, matrix, (width, height))
        frame = Frame(matrix, width, height)
        found = found.replace(
            boxes=None if found.boxes is None else frame.boxes(found.boxes),
            oriented=None if found.oriented is None else frame.oriented(found.oriented),
        )
    write(target, draw_instances(image, found, card.class_names))
    return Path(target)


def relative_names(paths: Sequence[Path]) -> list[str]:
    """Names of files relative to their deepest common folder, with forward slashes."""
    folders = [path.absolute().parent for path in paths]
    if not folders:
        return []
    common = folders[0]
    while not all(folder.is_relative_to(common) for folder in folders):
        common = common.parent
    return [path.absolute().relative_to(common).as_posix() for path in paths]


def picture_names(names: Sequence[str]) -> list[str]:
    """Names of annotated pictures: the images' own with the ending .jpg; the old ending stays where two would be one."""
    short = [PurePosixPath(name).with_suffix(".jpg").as_posix() for name in names]
    seen = Counter(short)
    return [stem if seen[stem] == 1 else f"{name}.jpg" for name, stem in zip(names, short, strict=True)]


def _coco_dict(found: Instances, row: int, box: Float, item: dict[str, Any]) -> dict[str, Any]:
    x1, y1, x2, y2 = item["box"]
    values: dict[str, Any] = {
        "category_id": item["class_id"],
        "bbox": [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)],
        "area": round(float((box[2] - box[0]) * (box[3] - box[1])), 3),
        "score": item["score"],
        "iscrowd": 0,
    }
    if found.oriented is not None:
        # Annotation tools read polygons; the five numbers stand beside them for who wants them exactly.
        corners = to_corners(found.oriented[row : row + 1]).reshape(-1)
        values["segmentation"] = [np.round(corners, 3).tolist()]
        values["area"] = round(float(found.oriented[row, 2] * found.oriented[row, 3]), 3)
        values["oriented"] = item["oriented"]
    return values


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
