"""What prediction leaves behind: JSON, CSV, COCO, counts, label images and annotated pictures.

A results folder holds

    results.json   model, classes, and per image what was found or the reason why it could not be read
    results.csv    one row per object, segment or class of an image, for R, pandas and spreadsheets
    counts.csv     objects per image (row) and class (column); for maps also pixels or shares
    coco.json      objects: images, categories and annotations with `score`, for annotation tools
    labels/        instance: images whose pixels are the numbers of objects in results.csv, 0 = background
    semantic/      class maps: the value of a pixel is a position in categories.json beside the folder, 255 = no class
    panoptic.json  panoptic: COCO's list of segments, and `panoptic/` with its PNG
    pictures/      the images with what was found

`pelagia evaluate` takes the folder or its results.json. All coordinates are pixels of the original image, (0, 0) its outer
top-left corner; angles are radians, clockwise on the screen.
"""

from __future__ import annotations

import csv
import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import tifffile
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.card import ModelCard
from pelagia.core.files import atomic_path, atomic_write
from pelagia.core.types import Instances, PanopticMap, Prediction, SemanticMap
from pelagia.data.formats.writing import write_categories
from pelagia.data.label_pixels import write_label_pixels
from pelagia.data.panoptic_png import write_ids
from pelagia.errors import ModelError
from pelagia.infer.predict import FileResult
from pelagia.infer.result_values import (
    category_dicts,
    class_dicts,
    coco_dict,
    count_classes,
    count_pixels,
    numbered,
    object_dicts,
    point_names,
    segment_dicts,
)

__all__ = ["ResultWriter", "count_classes", "image_dict"]

_BOX = ("x1_px", "y1_px", "x2_px", "y2_px")
_ORIENTED = ("cx_px", "cy_px", "w_px", "h_px", "angle_rad")

#: Most objects of an image whose numbers a PNG holds; more are written as TIFF of 32 bits.
_MOST_IN_PNG = 65535

#: What a task's answers are.
_KINDS: dict[str, type[Prediction]] = {"semantic": SemanticMap, "panoptic": PanopticMap}


class ResultWriter:
    """Writes a results folder while predictions come in; tables appear whole when it is left, label images at once.

    Interrupted by the user, it still writes what is there and marks it `"complete": false`; any other exception leaves no table.
    """

    def __init__(self, folder: str | Path, card: ModelCard, *, model: str = "") -> None:
        self.folder = Path(folder)
        self._card = card
        self._stack = ExitStack()
        self._first = True
        self._images: list[dict[str, Any]] = []
        self._entries = 0
        self._model = model
        self._maps: set[str] = set()
        self._points = point_names(card.categories)

    def __enter__(self) -> Self:
        card = self._card
        self._json, rows, counts = (self._open(name) for name in ("results.json", "results.csv", "counts.csv"))
        self._list = None if card.task == "semantic" else self._open("panoptic.json" if card.task == "panoptic" else "coco.json")
        self._rows, self._counts = csv.writer(rows, lineterminator="\n"), csv.writer(counts, lineterminator="\n")
        self._rows.writerow(self._columns())
        self._counts.writerow(self._count_columns())
        categories = _dump(category_dicts(card))
        model = {"file": self._model, "name": card.name, "task": card.task, "licence": card.licence}
        self._json.write(f'{{"model":{_dump(model)},"categories":{categories},"images":[')
        if self._list is not None:
            self._list.write(f'{{"categories":{categories},"annotations":[')
        if card.task == "semantic":
            write_categories(self.folder, card.categories, ())
        return self

    def _open(self, name: str) -> IO[Any]:
        return self._stack.enter_context(atomic_write(self.folder / name, "w"))

    @property
    def images(self) -> int:
        """How many images were predicted so far."""
        return len(self._images)

    def add(self, result: FileResult, name: str) -> None:
        """Write what came of one file under `name`.

        Raises:
            ModelError: it is not what the model's task answers with.
        """
        if result.found is None:
            self._write_image(image_dict(result, name, self._card))
            return
        found = result.found
        if not isinstance(found, _KINDS.get(self._card.task, Instances)):
            raise ModelError(f"the task {self._card.task!r} does not answer with {type(found).__name__}", where=self._card.name)
        if isinstance(found, PanopticMap):
            found, _ = numbered(found)
            result = replace(result, found=found)
        self._images.append({"id": len(self._images) + 1, "file_name": name, "width": result.width, "height": result.height})
        item = image_dict(result, name, self._card)
        if isinstance(found, Instances):
            self._add_objects(found, item, name)
        elif isinstance(found, SemanticMap):
            item["map"] = self._write_semantic(found, name)
            self._add_classes(item, name)
        else:
            item["map"] = self._write_panoptic(found, item, name)
            self._add_segments(found, item, name)
        self._write_image(item)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and not issubclass(kind, KeyboardInterrupt):
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._json.write(f'\n],"complete":{_dump(kind is None)}}}\n')
            if self._list is not None:
                self._list.write(f'\n],"images":{_dump(self._images)}}}\n')

    def _columns(self) -> list[str]:
        match self._card.task:
            case "semantic":
                return ["file", "class_id", "class", "pixels", "share"]
            case "panoptic":
                return ["file", "segment", "class_id", "class", "thing", "score", "area_px", *_BOX]
        more: list[str] = []
        if self._card.task == "oriented":
            more = [*_ORIENTED]
        elif self._card.task == "instance":
            more = ["area_px"]
        elif self._card.task == "keypoints":
            more = [f"{point}_{value}" for point in self._points for value in ("x_px", "y_px", "score")]
        return ["file", "object", "class_id", "class", "score", *_BOX, *more]

    def _count_columns(self) -> list[str]:
        categories = self._card.categories
        if self._card.task == "semantic":
            names = self._card.class_names
            return ["file", *(f"{name}_px" for name in names), "total_px", *(f"{name}_share" for name in names)]
        things = [item.name for item in categories if item.is_thing or self._card.task != "panoptic"]
        stuff = [f"{item.name}_share" for item in categories if not item.is_thing and self._card.task == "panoptic"]
        return ["file", *things, "total", *stuff]

    def _write_image(self, item: dict[str, Any]) -> None:
        self._json.write(("\n" if self._first else ",\n") + _dump(item))
        self._first = False

    def _write_entry(self, entry: dict[str, Any]) -> None:
        assert self._list is not None
        self._entries += 1
        self._list.write(("\n" if self._entries == 1 else ",\n") + _dump(entry))

    def _add_objects(self, found: Instances, item: dict[str, Any], name: str) -> None:
        for row, values in enumerate(item["objects"]):
            more = [*values.get("oriented", ())]
            if self._card.task == "instance":
                more.append(values.get("area_px", ""))
            more += [number for point in values.get("keypoints", ()) for number in point]
            head = [name, row + 1, values["class_id"], values["class"], values["score"]]
            self._rows.writerow([*head, *values["box"], *more])
            self._write_entry({"id": self._entries + 1, "image_id": len(self._images), **coco_dict(found, row, values)})
        if self._card.task == "instance":
            item["map"] = self._write_labels(found, (item["height"], item["width"]), name)
        counts = count_classes(found, self._card)
        self._counts.writerow([name, *counts, sum(counts)])

    def _add_classes(self, item: dict[str, Any], name: str) -> None:
        classes = item["classes"]
        self._rows.writerows([name, each["class_id"], each["class"], each["pixels"], each["share"]] for each in classes)
        shares = [each["share"] for each in classes]
        self._counts.writerow([name, *(each["pixels"] for each in classes), item["width"] * item["height"], *shares])

    def _add_segments(self, found: PanopticMap, item: dict[str, Any], name: str) -> None:
        for each in item["segments"]:
            score = "" if each["score"] is None else each["score"]
            head = [name, each["id"], each["class_id"], each["class"], int(each["thing"]), score]
            self._rows.writerow([*head, each["area_px"], *each["box"]])
        categories = self._card.categories
        counts = [
            count for count, category in zip(count_classes(found, self._card), categories, strict=True) if category.is_thing
        ]
        shares = class_dicts(count_pixels(found, self._card), found.ids.size, self._card)
        stuff = [share["share"] for share, category in zip(shares, categories, strict=True) if not category.is_thing]
        self._counts.writerow([name, *counts, sum(counts), *stuff])

    # Label images

    def _write_labels(self, found: Instances, shape: tuple[int, int], name: str) -> str:
        kind: Any = np.uint16 if len(found) <= _MOST_IN_PNG else np.uint32
        pixels: NDArray[Any] = np.zeros(shape, dtype=kind)
        masks = found.masks or ()
        for index in range(len(masks) - 1, -1, -1):  # a pixel in several belongs to the strongest, which comes first
            mask = core_masks.clip(masks[index], shape[1], shape[0])
            rows, columns = mask.bitmap.shape
            pixels[mask.y : mask.y + rows, mask.x : mask.x + columns][mask.bitmap] = index + 1
        file = self._map_name("labels", name, ".png" if kind is np.uint16 else ".tif")
        if kind is np.uint16:
            write_label_pixels(self.folder / file, pixels)
        else:
            with atomic_path(self.folder / file) as temporary:
                tifffile.imwrite(temporary, pixels, photometric="minisblack", compression="zlib", metadata=None)
        return file

    def _write_semantic(self, found: SemanticMap, name: str) -> str:
        file = self._map_name("semantic", name, ".png")
        write_label_pixels(self.folder / file, found.labels)
        return file

    def _write_panoptic(self, found: PanopticMap, item: dict[str, Any], name: str) -> str:
        file = self._map_name("panoptic", name, ".png")
        write_ids(self.folder / file, found.ids)
        segments = []
        for each, segment in zip(item["segments"], found.segments, strict=True):
            x1, y1, x2, y2 = each["box"]
            info = {
                "id": each["id"],
                "category_id": each["class_id"],
                "area": each["area_px"],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
            }
            info["iscrowd"] = int(segment.crowd)
            segments.append(info if each["score"] is None else {**info, "score": each["score"]})
        image = PurePosixPath(file).relative_to("panoptic").as_posix()
        self._write_entry({"image_id": len(self._images), "file_name": image, "segments_info": segments})
        return file

    def _map_name(self, folder: str, name: str, suffix: str) -> str:
        """The image's own name with that ending; the old ending stays where another image has taken the name."""
        file = PurePosixPath(folder, PurePosixPath(name).with_suffix(suffix)).as_posix()
        if file in self._maps:
            file = f"{folder}/{name}{suffix}"
        self._maps.add(file)
        return file


def image_dict(result: FileResult, name: str, card: ModelCard) -> dict[str, Any]:
    """One image of results.json."""
    if result.found is None:
        return {"file": name, "error": result.error}
    found, head = result.found, {"file": name, "width": result.width, "height": result.height}
    if isinstance(found, Instances):
        objects = object_dicts(found, card, (result.width, result.height))
        return {**head, "count": len(objects), "objects": objects}
    if isinstance(found, SemanticMap):
        return {**head, "classes": class_dicts(count_pixels(found, card), found.labels.size, card)}
    segments = segment_dicts(*numbered(found), card)
    return {**head, "count": sum(item["thing"] for item in segments), "segments": segments}


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
