"""Writing label images."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from pelagia.core.files import write_text
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding
from pelagia.data.formats.writing import Losses, WriteOptions, place_images, unique_stems, write_categories
from pelagia.data.label_pixels import write_label_pixels
from pelagia.data.tasks import with_outlines
from pelagia.errors import DataError

__all__ = ["OBJECTS_FILE", "write"]

#: The class of every object of instance label images: columns image, value, class.
OBJECTS_FILE = "objects.csv"

_MOST_OBJECTS = 65535


def write(dataset: Dataset, out: Path, options: WriteOptions) -> list[Finding]:
    """Write `dataset` to the folder `out`: `images/`, label images as PNG, list files of the splits, and `categories.json`.

    Semantic data give `semantic/`; other data need outlines and give `instances/` (uint16, objects numbered from 1 in each image)
    and `objects.csv` with their classes.

    Raises:
        DataError: objects without any outline, or more than 65,535 in one image.
    """
    losses = Losses(out)
    names = unique_stems(dataset.names, losses)
    semantic = dataset.task == "semantic"
    dataset = dataset if semantic else with_outlines(dataset)
    if not semantic and dataset.annotations.shapes is None and len(dataset.annotations):
        raise DataError("the objects have no outlines, which label images need", where=dataset.root)
    place_images(dataset, out / "images", names, options.images, losses)
    if semantic:
        text = "single objects are not told apart in class maps; where they overlap, the uppermost is written"
        losses.note("objects", text, len(dataset.annotations))
        for index, name in enumerate(names):
            write_label_pixels((out / "semantic" / name).with_suffix(".png"), dataset.semantic(index).labels)
    else:
        _write_instances(dataset, out, names, losses)
    for split, rows in dataset.splits.items():
        stems = [Path(names[row]).with_suffix("").as_posix() for row in rows.tolist()]
        write_text(out / f"{split}.txt", "".join(stem + "\n" for stem in stems))
    write_categories(out, dataset.categories, dataset.ignored)
    return losses.findings


def _write_instances(dataset: Dataset, out: Path, names: list[str], losses: Losses) -> None:
    flat = dataset.annotations
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["image", "value", "class"])
    for index, name in enumerate(names):
        width, height = dataset.sizes[index].tolist()
        pixels = np.zeros((height, width), dtype=np.uint16)
        first, last = int(flat.starts[index]), int(flat.starts[index + 1])
        if last - first > _MOST_OBJECTS:
            raise DataError(f"{last - first} objects, more than a 16-bit label image can number", where=dataset.names[index])
        for value, row in enumerate(range(first, last), start=1):
            crop = None if flat.shapes is None else flat.shapes.crop(row, width, height)
            if flat.crowd[row] or crop is None or crop.area == 0:
                text = "crowd regions and objects without outline have no place in label images; left out"
                losses.note("outline.missing", text)
                continue
            rows, columns = crop.bitmap.shape
            window = pixels[crop.y : crop.y + rows, crop.x : crop.x + columns]
            hidden = window[crop.bitmap] > 0
            losses.note("overlap", "objects overlap; a pixel belongs to the last of them", int(hidden.any()))
            window[crop.bitmap] = value
            ignored = int(flat.ignored_as[row])
            category = dataset.ignored[ignored] if ignored >= 0 else dataset.categories[int(flat.labels[row])]
            writer.writerow([name, value, category.name])
        write_label_pixels((out / "instances" / name).with_suffix(".png"), pixels)
    write_text(out / OBJECTS_FILE, table.getvalue())
    for flag in ("difficult", "ignore"):
        count = int(np.count_nonzero(getattr(flat, flag) & (flat.ignored_as < 0)))
        losses.note(f"flag.{flag}", f"the flag {flag!r} has no place in label images", count)
    for what, present in (("keypoints", flat.keypoints), ("oriented boxes", flat.oriented)):
        losses.note(what, f"{what} have no place in label images", 0 if present is None else len(flat))
    losses.note("ids", "ids of objects and images, and exact outlines, are not kept", len(flat), "info")
