"""Writing COCO JSON. Every field of `Annotations` has a place in it, so nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.files import write_json
from pelagia.core.oriented import OrientedConvention
from pelagia.core.types import Category, Int
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding
from pelagia.data.formats.coco import ANGLES
from pelagia.data.formats.writing import Losses, WriteOptions, place_images
from pelagia.errors import OptionError

__all__ = ["coco_dict", "unique_ids", "write"]


def write(dataset: Dataset, out: Path, options: WriteOptions) -> list[Finding]:
    """Write `dataset` to `out`: a file `*.json` (labels only), or a folder with `annotations.json` and `images/`.

    In a folder, data with splits also get one `annotations_<split>.json` for each. Image names, ids of categories, images and
    objects stay; images without objects are listed.

    Raises:
        OptionError: unknown angle convention, or a place that cannot be written.
    """
    losses = Losses(out)
    if options.angle is not None and options.angle not in ANGLES:
        raise OptionError(f"angle must be one of {', '.join(ANGLES)}, got {options.angle!r}")
    shapes, oriented = dataset.annotations.shapes, dataset.annotations.oriented
    if dataset.task == "oriented" and oriented is not None and options.angle is None and shapes is not None:
        text = "objects have outlines besides oriented boxes: the outline is written; give angle= for 5-number boxes too"
        losses.note("oriented.outline", text, int(np.count_nonzero(shapes.present)))
    elif dataset.task == "oriented" and oriented is not None and options.angle is None:
        text = "oriented boxes stand as polygons of their corners; open with --task oriented, or give angle= for 5-number boxes"
        losses.note("oriented.corners", text, len(oriented), "info")
    if dataset.task == "semantic":
        losses.note("semantic", "semantic label images have no place in COCO detection files", len(dataset))
    document = coco_dict(dataset, angle=options.angle)
    if out.suffix.lower() == ".json":
        write_json(out, document)
        losses.note("images.none", "images are not copied; give their folder with images= when opening", len(dataset), "info")
        return losses.findings
    place_images(dataset, out / "images", dataset.names, options.images, losses)
    write_json(out / "annotations.json", document)
    for name in dataset.splits:
        write_json(out / f"annotations_{name}.json", coco_dict(dataset.split(name), angle=options.angle))
    return losses.findings


def coco_dict(dataset: Dataset, *, angle: str | None = None) -> dict[str, Any]:
    """The COCO dictionary of a data set.

    `bbox` is x, y, w, h; for oriented data with `angle` it is cx, cy, w, h, angle in that convention, and without `angle` the
    corners stand as a polygon. An image's `split` lists the splits that it belongs to, if there are any.
    """
    members: dict[int, list[str]] = {}
    for name, rows in dataset.splits.items():
        for row in rows.tolist():
            members.setdefault(row, []).append(name)
    image_ids = unique_ids(dataset.image_ids)
    images = []
    for index, name in enumerate(dataset.names):
        width, height = dataset.sizes[index].tolist()
        entry: dict[str, Any] = {"id": int(image_ids[index]), "file_name": name, "width": width, "height": height}
        if index in members:
            entry["split"] = members[index]
        images.append(entry)
    return {
        "images": images,
        "annotations": _annotations(dataset, image_ids, angle),
        "categories": [_category(category) for category in (*dataset.categories, *dataset.ignored)],
    }


def unique_ids(ids: Int) -> Int:
    """The ids, or 1 to N if one occurs twice (data merged from several files)."""
    return ids if len(np.unique(ids)) == len(ids) else np.arange(1, len(ids) + 1, dtype=np.int64)


def _category(category: Category) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": category.id, "name": category.name, "supercategory": category.supercategory}
    if category.keypoints:
        entry |= {"keypoints": list(category.keypoints), "skeleton": [[a + 1, b + 1] for a, b in category.skeleton]}
    if not category.is_thing:
        entry["isthing"] = 0
    return entry


def _annotations(dataset: Dataset, image_ids: Int, angle: str | None) -> list[dict[str, Any]]:
    flat = dataset.annotations
    ids, images = unique_ids(flat.ids), flat.images
    oriented = flat.oriented if dataset.task == "oriented" else None
    turned = None
    if oriented is not None and angle is not None:
        turned = core_oriented.convert(oriented, "canonical", cast("OrientedConvention", angle))
    extents = (flat.boxes[:, 2] - flat.boxes[:, 0]) * (flat.boxes[:, 3] - flat.boxes[:, 1])
    areas = flat.areas if flat.areas is not None else extents if oriented is None else oriented[:, 2] * oriented[:, 3]
    entries = []
    for row in range(len(flat)):
        ignored = int(flat.ignored_as[row])
        category = dataset.ignored[ignored] if ignored >= 0 else dataset.categories[int(flat.labels[row])]
        x1, y1, x2, y2 = flat.boxes[row].tolist()
        entry: dict[str, Any] = {
            "id": int(ids[row]),
            "image_id": int(image_ids[images[row]]),
            "category_id": category.id,
            "bbox": [x1, y1, x2 - x1, y2 - y1] if turned is None else turned[row].tolist(),
            "area": float(areas[row]),
            "iscrowd": int(flat.crowd[row]),
        }
        outline = _segmentation(dataset, row, int(images[row]))
        if not outline and oriented is not None and turned is None:
            outline = [core_oriented.to_corners(oriented[row]).reshape(-1).tolist()]
        if outline:
            entry["segmentation"] = outline
        if flat.difficult[row]:
            entry["difficult"] = 1
        if flat.ignore[row] and ignored < 0:
            entry["ignore"] = 1
        if flat.keypoints is not None and (category.keypoints or flat.keypoints[row].any()):
            points = flat.keypoints[row][: len(category.keypoints) or None]
            entry |= {"keypoints": points.reshape(-1).tolist(), "num_keypoints": int(np.count_nonzero(points[:, 2]))}
        entries.append(entry)
    return entries


def _segmentation(dataset: Dataset, row: int, image: int) -> Sequence[list[float]] | dict[str, Any] | None:
    shapes = dataset.annotations.shapes
    if shapes is None:
        return None
    rings = shapes.rings(row)
    if rings:
        return [ring.reshape(-1).tolist() for ring in rings]
    runs = shapes.runs(row)
    if len(runs) == 0:
        return None
    width, height = dataset.sizes[image].tolist()
    return {"size": [height, width], "counts": core_masks.rle_to_string(core_masks.RLE(height, width, runs))}
