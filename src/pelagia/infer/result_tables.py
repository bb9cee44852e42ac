"""The tables of a results folder, made from what each image's result file says.

They hold nothing that differs between two runs with one model on the same images: no times, and no order but that of the images.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pelagia.core.card import ModelCard
from pelagia.core.files import atomic_write
from pelagia.data.formats.writing import CATEGORIES_FILE, write_categories
from pelagia.infer.result_values import category_dicts, coco_dict, point_names

__all__ = ["TABLES", "Totals", "dump", "write_tables"]

#: Every file that `write_tables` may write.
TABLES = ("results.json", "results.csv", "counts.csv", "coco.json", "panoptic.json", CATEGORIES_FILE)

_BOX = ("x1_px", "y1_px", "x2_px", "y2_px")
_ORIENTED = ("cx_px", "cy_px", "w_px", "h_px", "angle_rad")


def dump(value: Any) -> str:
    """JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def write_tables(
    folder: Path, card: ModelCard, items: Iterable[tuple[dict[str, Any], str]], *, model: str, complete: bool
) -> None:
    """Write all tables, each whole or not at all.

    Args:
        items: per image its entry in results.json, as values and as text; see `pelagia.infer.result_values.image_dict`.
        model: the file that the model was loaded from.
        complete: whether all images are there.

    Raises:
        OptionError: a file cannot be written.
    """
    if card.task == "semantic":
        write_categories(folder, card.categories, ())
    with ExitStack() as stack:
        tables = _Tables(folder, card, stack)
        tables.begin(model)
        for item, text in items:
            tables.add(item, text)
        tables.end(complete=complete)


class Totals:
    """Objects and pixels of each class over all images.

    Attributes:
        images: how many have a result.
        failed: how many could not be read.
    """

    def __init__(self, card: ModelCard) -> None:
        self.images = 0
        self.failed = 0
        self._card = card
        self._counts = [0] * len(card.categories)
        self._pixels = [0] * len(card.categories)
        self._size = 0

    def add(self, item: dict[str, Any]) -> None:
        """Count one image of results.json."""
        if "error" in item:
            self.failed += 1
            return
        self.images += 1
        self._counts = [a + b for a, b in zip(self._counts, _counts(item, self._card), strict=True)]
        if self._card.task in ("semantic", "panoptic"):
            self._pixels = [a + b for a, b in zip(self._pixels, _pixels(item, self._card), strict=True)]
            self._size += item["width"] * item["height"]

    @property
    def counts(self) -> dict[str, int]:
        """Class -> number of objects, for the classes that are counted."""
        task = self._card.task
        pairs = zip(self._card.categories, self._counts, strict=True)
        return {item.name: count for item, count in pairs if task != "semantic" and (item.is_thing or task != "panoptic")}

    @property
    def shares(self) -> dict[str, float]:
        """Class -> share of all pixels, for the classes of maps that are not counted."""
        counted = self.counts
        if self._card.task not in ("semantic", "panoptic"):
            return {}
        names = zip(self._card.class_names, self._pixels, strict=True)
        return {name: round(pixels / max(self._size, 1), 6) for name, pixels in names if name not in counted}


class _Tables:
    """The open files, which appear under their names when `stack` ends without an exception."""

    def __init__(self, folder: Path, card: ModelCard, stack: ExitStack) -> None:
        self._card = card
        self._images: list[dict[str, Any]] = []
        self._entries = 0
        self._written = 0
        self._points = point_names(card.categories)

        def opened(name: str) -> IO[Any]:
            return stack.enter_context(atomic_write(folder / name, "w"))

        # results.json is the first to open, so the last to be renamed: where it is, the others are.
        self._json = opened("results.json")
        self._list = None if card.task == "semantic" else opened("panoptic.json" if card.task == "panoptic" else "coco.json")
        self._rows = csv.writer(opened("results.csv"), lineterminator="\n")
        self._counts = csv.writer(opened("counts.csv"), lineterminator="\n")

    def begin(self, model: str) -> None:
        card = self._card
        self._rows.writerow(self._columns())
        self._counts.writerow(self._count_columns())
        categories = dump(category_dicts(card))
        told = {"file": model, "name": card.name, "task": card.task, "licence": card.licence}
        self._json.write(f'{{"model":{dump(told)},"categories":{categories},"images":[')
        if self._list is not None:
            self._list.write(f'{{"categories":{categories},"annotations":[')

    def add(self, item: dict[str, Any], text: str) -> None:
        self._json.write(f"{',' if self._written else ''}\n{text}")
        self._written += 1
        if "error" in item:
            return
        size = {"width": item["width"], "height": item["height"]}
        self._images.append({"id": len(self._images) + 1, "file_name": item["file"], **size})
        match self._card.task:
            case "semantic":
                self._add_classes(item)
            case "panoptic":
                self._add_segments(item)
            case _:
                self._add_objects(item)

    def end(self, *, complete: bool) -> None:
        self._json.write(f'\n],"complete":{dump(complete)}}}\n')
        if self._list is not None:
            self._list.write(f'\n],"images":{dump(self._images)}}}\n')

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

    def _write_entry(self, entry: dict[str, Any]) -> None:
        assert self._list is not None
        self._list.write(f"{',' if self._entries else ''}\n{dump(entry)}")
        self._entries += 1

    def _add_objects(self, item: dict[str, Any]) -> None:
        for row, values in enumerate(item["objects"], start=1):
            more = [*values.get("oriented", ())]
            if self._card.task == "instance":
                more.append(values.get("area_px", ""))
            more += [number for point in values.get("keypoints", ()) for number in point]
            head = [item["file"], row, values["class_id"], values["class"], values["score"]]
            self._rows.writerow([*head, *values["box"], *more])
            self._write_entry({"id": self._entries + 1, "image_id": len(self._images), **coco_dict(values)})
        counts = _counts(item, self._card)
        self._counts.writerow([item["file"], *counts, sum(counts)])

    def _add_classes(self, item: dict[str, Any]) -> None:
        classes, name = item["classes"], item["file"]
        self._rows.writerows([name, each["class_id"], each["class"], each["pixels"], each["share"]] for each in classes)
        shares = [each["share"] for each in classes]
        self._counts.writerow([name, *(each["pixels"] for each in classes), item["width"] * item["height"], *shares])

    def _add_segments(self, item: dict[str, Any]) -> None:
        infos = []
        for each in item["segments"]:
            score = "" if each["score"] is None else each["score"]
            head = [item["file"], each["id"], each["class_id"], each["class"], int(each["thing"]), score]
            self._rows.writerow([*head, each["area_px"], *each["box"]])
            x1, y1, x2, y2 = each["box"]
            info = {"id": each["id"], "category_id": each["class_id"], "area": each["area_px"]}
            info |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(each.get("crowd", False))}
            infos.append(info if each["score"] is None else {**info, "score": each["score"]})
        file = PurePosixPath(item["map"]).relative_to("panoptic").as_posix()
        self._write_entry({"image_id": len(self._images), "file_name": file, "segments_info": infos})
        categories, total = self._card.categories, max(item["width"] * item["height"], 1)
        pairs = list(zip(categories, _counts(item, self._card), _pixels(item, self._card), strict=True))
        counts = [count for category, count, _ in pairs if category.is_thing]
        stuff = [round(pixels / total, 6) for category, _, pixels in pairs if not category.is_thing]
        self._counts.writerow([item["file"], *counts, sum(counts), *stuff])


def _by_class(card: ModelCard, entries: Sequence[tuple[int, int]]) -> list[int]:
    """Sums over (class id, number), in label order."""
    totals = dict.fromkeys((category.id for category in card.categories), 0)
    for class_id, number in entries:
        totals[class_id] += number
    return list(totals.values())


def _counts(item: dict[str, Any], card: ModelCard) -> list[int]:
    """How many objects of each class, in label order: for a panoptic map its segments of things, for a class map none."""
    things = [each for each in item.get("segments", ()) if each["thing"]]
    return _by_class(card, [(each["class_id"], 1) for each in (*item.get("objects", ()), *things)])


def _pixels(item: dict[str, Any], card: ModelCard) -> list[int]:
    """Pixels of each class, in label order."""
    segments = [(each["class_id"], each["area_px"]) for each in item.get("segments", ())]
    return _by_class(card, [*((each["class_id"], each["pixels"]) for each in item.get("classes", ())), *segments])
