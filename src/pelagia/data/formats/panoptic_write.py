"""Writing COCO panoptic files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pelagia.core.files import write_json
from pelagia.core.types import Category, PanopticMap
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding
from pelagia.data.formats.coco_write import unique_ids
from pelagia.data.formats.writing import Losses, WriteOptions, place_images, unique_stems
from pelagia.data.label_maps import segment_bounds
from pelagia.data.object_maps import void_objects
from pelagia.data.panoptic_png import write_ids

__all__ = ["category_entry", "segment_entries", "write"]


def write(dataset: Dataset, out: Path, options: WriteOptions) -> list[Finding]:
    """Write `dataset` to `out`: a file `*.json` with a folder of PNG beside it that is called like it, or a folder with
    `panoptic.json`, `panoptic/` and `images/`. Segment ids are unique within an image. An image's `split` lists its splits.

    Raises:
        DataError: the labels hold no outlines, or do not agree with their own panoptic images.
    """
    losses = Losses(out)
    dataset = dataset.with_task("panoptic")
    json_file = out if out.suffix.lower() == ".json" else out / "panoptic.json"
    names = unique_stems(dataset.names, losses)
    if json_file == out:
        losses.note("images.none", "images are not copied; give their folder with images= when opening", len(dataset), "info")
    else:
        place_images(dataset, out / "images", names, options.images, losses)
    members: dict[int, list[str]] = {}
    for split, rows in dataset.splits.items():
        for row in rows.tolist():
            members.setdefault(row, []).append(split)
    image_ids = unique_ids(dataset.image_ids)
    images, annotations = [], []
    for index, name in enumerate(names):
        found = dataset.panoptic(index)
        png = Path(name).with_suffix(".png").as_posix()
        target = json_file.with_suffix("") / png
        target.parent.mkdir(parents=True, exist_ok=True)
        write_ids(target, found.ids)
        height, width = found.ids.shape
        image = {"id": int(image_ids[index]), "file_name": name, "width": width, "height": height}
        images.append(image | ({"split": members[index]} if index in members else {}))
        segments = segment_entries(found, dataset.categories)
        annotations.append({"image_id": int(image_ids[index]), "file_name": png, "segments_info": segments})
        _note_losses(dataset, index, found, losses)
    flat = dataset.annotations
    if flat.keypoints is not None:
        losses.note("keypoints", "keypoints have no place in panoptic files", len(flat))
    losses.note("flag.difficult", "the flag 'difficult' has no place in panoptic files", int(np.count_nonzero(flat.difficult)))
    if flat.shapes is not None:
        losses.note("outline.pixels", "outlines are kept to the pixel, and objects are numbered anew", len(flat), "info")
    categories = [category_entry(category) for category in dataset.categories]
    write_json(json_file, {"images": images, "annotations": annotations, "categories": categories})
    return losses.findings


def segment_entries(found: PanopticMap, categories: tuple[Category, ...]) -> list[dict[str, Any]]:
    """The `segments_info` of an image."""
    ids = np.array([segment.id for segment in found.segments], dtype=np.int64)
    areas = dict(zip(*np.unique(found.ids, return_counts=True), strict=True))
    entries = []
    for segment, (x1, y1, x2, y2) in zip(found.segments, segment_bounds(found.ids, ids).astype(int).tolist(), strict=True):
        entries.append(
            {
                "id": segment.id,
                "category_id": categories[segment.label].id,
                "area": int(areas[segment.id]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": int(segment.crowd),
            }
        )
    return entries


def _note_losses(dataset: Dataset, index: int, found: PanopticMap, losses: Losses) -> None:
    flat = dataset.annotations
    rows = slice(int(flat.starts[index]), int(flat.starts[index + 1]))
    objects = int(np.count_nonzero(~void_objects(dataset, index)))
    void = rows.stop - rows.start - objects
    losses.note("ignore", "regions to ignore and objects without an outline become void", void)
    written = len(found.segments) - int(dataset.background in {segment.label for segment in found.segments})
    text = "objects wholly under others are lost, and pieces of one class of stuff become one segment"
    losses.note("objects.fewer", text, objects - written)


def category_entry(category: Category) -> dict[str, Any]:
    """A class as panoptic files list it."""
    head = {"id": category.id, "name": category.name, "supercategory": category.supercategory}
    return head | {"isthing": int(category.is_thing)}
