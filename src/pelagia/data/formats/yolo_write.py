"""Writing YOLO text labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.files import write_text
from pelagia.core.types import Float
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding
from pelagia.data.formats.writing import Losses, WriteOptions, decimal, place_images, unique_stems, write_categories
from pelagia.data.formats.yolo import NO_SPLIT, label_file
from pelagia.data.outlines import bridge

__all__ = ["write"]


def write(dataset: Dataset, out: Path, options: WriteOptions) -> list[Finding]:
    """Write `dataset` to the folder `out`: `images/`, `labels/`, `data.yaml`, list files of the splits, and `categories.json`.

    The rows follow the data's task: boxes (cut at the image's border), polygons (parts joined by bridges), corners of oriented
    boxes, or boxes with keypoints. Every image gets a label file, background an empty one. Class numbers are positions in the
    list of classes.
    """
    losses = Losses(out)
    names = unique_stems(dataset.names, losses)
    names = ["/".join(part for part in name.split("/") if part != "images") or name for name in names]
    names = unique_stems(names, losses)
    _note_losses(dataset, losses)
    place_images(dataset, out / "images", names, options.images, losses)
    flat = dataset.annotations
    for index, name in enumerate(names):
        rows = range(int(flat.starts[index]), int(flat.starts[index + 1]))
        text = "".join(line + "\n" for row in rows for line in _line(dataset, index, row, losses))
        write_text(label_file(out / "images" / name), text)
    write_categories(out, dataset.categories, dataset.ignored)
    _write_yaml(dataset, out, names)
    return losses.findings


def _note_losses(dataset: Dataset, losses: Losses) -> None:
    flat = dataset.annotations
    regions = flat.crowd | flat.ignore
    losses.note("flag.region", "crowd and ignore regions have no place in YOLO labels; left out", int(np.count_nonzero(regions)))
    difficult = int(np.count_nonzero(flat.difficult & ~regions))
    losses.note("flag.difficult", "objects marked difficult become ordinary objects", difficult)
    if flat.shapes is not None and dataset.task not in ("instance", "panoptic"):
        count = int(np.count_nonzero(flat.shapes.present))
        losses.note("outline", f"outlines are not written for the task {dataset.task!r}; use --task instance", count)
    if flat.keypoints is not None and dataset.task != "keypoints":
        losses.note("keypoints", f"keypoints are not written for the task {dataset.task!r}; use --task keypoints", len(flat))
    if flat.oriented is not None and dataset.task != "oriented":
        losses.note("oriented", f"oriented boxes are not written for the task {dataset.task!r}; use --task oriented", len(flat))
    if flat.areas is not None:
        losses.note("area", "stated areas are not kept; they are derived again", len(flat), "info")
    if dataset.task == "semantic":
        losses.note("semantic", "semantic label images are not written; use --format labels", len(dataset))
    losses.note("ids", "ids of objects and images are not kept", len(flat), "info")


def _write_yaml(dataset: Dataset, out: Path, names: Sequence[str]) -> None:
    # No `path`: the folder of this file is then meant, whereas other programs count a relative one from where they are started.
    document: dict[str, object] = {}
    if dataset.splits:
        for split, rows in dataset.splits.items():
            write_text(out / f"{split}.txt", "".join(f"./images/{names[row]}\n" for row in rows.tolist()))
            document[split] = f"{split}.txt"
        rest = np.setdiff1d(np.arange(len(names)), np.concatenate(list(dataset.splits.values())))
        if len(rest):
            write_text(out / f"{NO_SPLIT}.txt", "".join(f"./images/{names[row]}\n" for row in rest.tolist()))
            document[NO_SPLIT] = f"{NO_SPLIT}.txt"
    else:
        document["train"] = "images"
    document["names"] = dict(enumerate(dataset.class_names))
    if dataset.task == "keypoints" and dataset.annotations.keypoints is not None:
        points = dataset.annotations.keypoints.shape[1]
        owner = max(dataset.categories, key=lambda category: len(category.keypoints))
        document["kpt_shape"] = [points, 3]
        if len(owner.keypoints) == points:
            document["kpt_names"] = list(owner.keypoints)
            document["flip_idx"] = list(owner.flip or range(points))
    write_text(out / "data.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def _line(dataset: Dataset, image: int, row: int, losses: Losses) -> list[str]:
    """The text line of an object, or none."""
    flat = dataset.annotations
    if flat.crowd[row] or flat.ignore[row]:
        return []
    scale = dataset.sizes[image].astype(np.float64)
    label = str(int(flat.labels[row]))
    if dataset.task == "oriented" and flat.oriented is not None:
        corners = core_oriented.to_corners(flat.oriented[row]) / scale
        outside = int((corners < 0).any() or (corners > 1).any())
        losses.note("oriented.outside", "oriented boxes reach beyond their image; other packages may refuse them", outside)
        return [_join(label, corners)]
    if dataset.task in ("instance", "panoptic"):
        ring = _ring(dataset, image, row, losses)
        if ring is not None:
            return [_join(label, np.clip(ring / scale, 0, 1))]
    box = flat.boxes[row].reshape(2, 2) / scale
    cut = np.clip(box, 0, 1)
    losses.note("box.cut", "boxes are cut at the border of their image", int((cut != box).any()))
    if not (cut[1] > cut[0]).all():
        return []
    fields: Float = np.concatenate([cut.mean(axis=0), cut[1] - cut[0]])
    line = _join(label, fields)
    if dataset.task == "keypoints" and flat.keypoints is not None:
        points = flat.keypoints[row].copy()
        points[:, :2] /= scale
        line = f"{line} {' '.join(decimal(value) for value in points.reshape(-1).tolist())}"
    return [line]


def _ring(dataset: Dataset, image: int, row: int, losses: Losses) -> Float | None:
    shapes = dataset.annotations.shapes
    if shapes is None:
        return None
    rings = shapes.rings(row)
    if not rings:
        width, height = dataset.sizes[image].tolist()
        crop = shapes.crop(row, width, height)
        if crop is None:
            losses.note("outline.missing", "objects without outline are written as boxes")
            return None
        rings = core_masks.to_polygons(crop)
        losses.note("outline.runs", "run-length masks are written as outlines along their pixel edges", severity="info")
    if not rings:
        return None
    losses.note("outline.parts", "parts of an object are joined by bridges of no width", int(len(rings) > 1))
    return bridge(rings)


def _join(label: str, values: Float) -> str:
    return " ".join([label, *(decimal(value) for value in values.reshape(-1).tolist())])
