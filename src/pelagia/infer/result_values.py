"""Predictions as the values that result files hold: JSON objects, COCO annotations, rows of tables.

Pixels are rounded to a thousandth, scores and shares to a millionth, angles to a hundred-millionth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.card import ModelCard
from pelagia.core.lazy import resolve
from pelagia.core.oriented import to_corners
from pelagia.core.types import Category, Instances, Int, MaskCrop, PanopticMap, Prediction, Segment, SemanticMap
from pelagia.infer.map_writer import StoredMap
from pelagia.infer.panoptic_writer import Stored, StoredPanoptic

__all__ = [
    "category_dicts",
    "class_dicts",
    "coco_dict",
    "found_in",
    "image_dict",
    "numbered",
    "object_dicts",
    "point_names",
    "segment_dicts",
]

#: COCO's v of a predicted point: 2, seen, from this score on, below it 1, hidden.
_SEEN = 0.5

#: Ids up to this are counted in a table.
_MOST_COUNTED = 1 << 24


def category_dicts(card: ModelCard) -> list[dict[str, Any]]:
    """The classes as COCO lists them, with `keypoints` and `skeleton` (from 1) if any, with `isthing` for panoptic data."""
    items = []
    for category in card.categories:
        item: dict[str, Any] = {"id": category.id, "name": category.name, "supercategory": category.supercategory}
        if category.keypoints:
            item |= {"keypoints": list(category.keypoints), "skeleton": [[a + 1, b + 1] for a, b in category.skeleton]}
        if card.task == "panoptic":
            item["isthing"] = int(category.is_thing)
        items.append(item)
    return items


def point_names(categories: Sequence[Category]) -> tuple[str, ...]:
    """Names for columns of keypoints: of the class with the most, if the others' are their beginning; else numbers from 1."""
    longest = max((category.keypoints for category in categories), key=len, default=())
    same = all(category.keypoints == longest[: len(category.keypoints)] for category in categories)
    return longest if same else tuple(f"point_{number + 1}" for number in range(len(longest)))


def image_dict(found: Prediction | Stored, name: str, size: tuple[int, int], card: ModelCard) -> dict[str, Any]:
    """One image of results.json: its name, its size (width, height) and what was found; segments must be `numbered`.

    Of a class map that was made of tiles it says how they became one (`blend`).
    """
    head = {"file": name, "width": size[0], "height": size[1]}
    if isinstance(found, Instances):
        objects = object_dicts(found, card, size)
        return {**head, "count": len(objects), "objects": objects}
    if isinstance(found, StoredMap):
        return {**head, "classes": class_dicts(found.pixels, size[0] * size[1], card), "blend": found.way}
    if isinstance(found, SemanticMap):
        blend = {} if found.blend is None else {"blend": found.blend}
        return {**head, "classes": class_dicts(count_pixels(found, card), found.labels.size, card), **blend}
    if isinstance(found, StoredPanoptic):
        measured = list(zip(found.segments, found.areas.tolist(), found.boxes.tolist(), strict=True))
    else:
        measured = _measured(*numbered(found))
    segments = segment_dicts(measured, card)
    return {**head, "count": sum(item["thing"] for item in segments), "segments": segments}


# Objects


def object_dicts(found: Instances, card: ModelCard, size: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """Each object as JSON values: class, the source's class id, score, box; for oriented boxes their five numbers, for masks the
    run lengths of the whole image of that `size` (width, height) in COCO's compressed text and the area, for keypoints x, y,
    score of each point of the class.
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
    if found.masks is not None and size is not None:
        for item, mask in zip(items, found.masks, strict=True):
            rle = core_masks.crop_to_rle(mask, size[1], size[0])
            item["mask"] = {"size": [size[1], size[0]], "counts": core_masks.rle_to_string(rle)}
            item["area_px"] = core_masks.rle_area(rle)
    if found.keypoints is not None:
        for item, label, points in zip(items, found.labels.tolist(), found.keypoints, strict=True):
            own = points[: len(card.categories[label].keypoints) or None]
            rounded = np.concatenate([np.round(own[:, :2], 3), np.round(own[:, 2:], 6)], axis=1)
            item["keypoints"] = rounded.tolist()
    return items


def coco_dict(item: dict[str, Any]) -> dict[str, Any]:
    """An object of `object_dicts` as a COCO annotation with a score."""
    x1, y1, x2, y2 = item["box"]
    width, height = round(x2 - x1, 3), round(y2 - y1, 3)
    values: dict[str, Any] = {
        "category_id": item["class_id"],
        "bbox": [x1, y1, width, height],
        "area": round(width * height, 3),
        "score": item["score"],
        "iscrowd": 0,
    }
    if "oriented" in item:
        # Annotation tools read polygons; the five numbers stand beside them for who wants them exactly.
        corners = to_corners(np.array([item["oriented"]], dtype=np.float64)).reshape(-1)
        values["segmentation"] = [np.round(corners, 3).tolist()]
        values["area"] = round(item["oriented"][2] * item["oriented"][3], 3)
        values["oriented"] = item["oriented"]
    if "mask" in item:
        values |= {"segmentation": item["mask"], "area": item["area_px"]}
    if "keypoints" in item:
        points = [(x, y, (2 if score >= _SEEN else 1) if score > 0 else 0) for x, y, score in item["keypoints"]]
        values["keypoints"] = [value for point in points for value in point]
        values["num_keypoints"] = sum(point[2] > 0 for point in points)
        values["keypoint_scores"] = [score for _, _, score in item["keypoints"]]
    return values


def found_in(
    item: dict[str, Any],
    card: ModelCard,
    pixels: NDArray[Any] | None = None,
    *,
    masks: tuple[MaskCrop, ...] | None = None,
) -> Prediction:
    """What `image_dict` wrote as a prediction again, with its rounded numbers.

    Args:
        pixels: [H, W], the map of a class map or of a panoptic map.
        masks: of the objects, where they are still at hand: those of a scan are not held twice.
    """
    if card.task == "semantic":
        assert pixels is not None
        return SemanticMap(pixels)
    labels = {category.id: label for label, category in enumerate(card.categories)}
    if card.task == "panoptic":
        assert pixels is not None
        items = item["segments"]
        segments = [Segment(each["id"], labels[each["class_id"]], each["score"], each.get("crowd", False)) for each in items]
        return PanopticMap(pixels, tuple(segments))
    objects = item["objects"]
    shapes: dict[str, Any] = {}
    if card.task == "instance" and masks is not None:
        shapes["masks"] = masks
    elif card.task == "instance":
        rles = [core_masks.rle_from_string(each["mask"]["counts"], *each["mask"]["size"]) for each in objects if "mask" in each]
        shapes["masks"] = tuple(map(core_masks.crop_from_rle, rles)) if len(rles) == len(objects) else None
    if card.task == "keypoints":
        shapes["keypoints"] = np.zeros((len(objects), max((len(each["keypoints"]) for each in objects), default=0), 3))
        for row, each in enumerate(objects):
            shapes["keypoints"][row, : len(each["keypoints"])] = each["keypoints"]
    kind, width = ("oriented", 5) if card.task == "oriented" else ("boxes", 4)
    shapes[kind] = np.array([each["box" if kind == "boxes" else kind] for each in objects], dtype=np.float64).reshape(-1, width)
    scores = np.array([each["score"] for each in objects], dtype=np.float64)
    return Instances(labels=np.array([labels[each["class_id"]] for each in objects], dtype=np.int64), scores=scores, **shapes)


# Maps


def count_pixels(found: SemanticMap, card: ModelCard) -> list[int]:
    """Pixels of each class, in label order."""
    count = len(card.categories)
    labels = np.minimum(found.labels.reshape(-1), count)
    pixels: list[int] = np.bincount(labels, minlength=count + 1)[:count].tolist()
    return pixels


def class_dicts(pixels: Sequence[int], total: int, card: ModelCard) -> list[dict[str, Any]]:
    """Each class as JSON values: its pixels, and their share of all `total` pixels of the image."""
    return [
        {"class": category.name, "class_id": category.id, "pixels": count, "share": round(count / max(total, 1), 6)}
        for category, count in zip(card.categories, pixels, strict=True)
    ]


def numbered(found: PanopticMap) -> tuple[PanopticMap, Int]:
    """The visible segments, numbered 1 to n in their order, and the area of each; an id that no segment has becomes void."""
    present, places = np.maximum(found.ids, 0), None
    if present.size and int(present.max()) >= _MOST_COUNTED:
        values, places = np.unique(present, return_inverse=True)
        areas = dict(zip(values.tolist(), np.bincount(places.reshape(-1)).tolist(), strict=True))
    else:
        areas = dict(enumerate(np.bincount(present.reshape(-1)).tolist()))
        values = np.arange(len(areas))
    kept = [segment for segment in found.segments if segment.id > 0 and areas.get(segment.id, 0)]
    new = {segment.id: number for number, segment in enumerate(kept, start=1)}
    table = np.array([new.get(value, 0) for value in values.tolist()], dtype=np.int32)
    segments = tuple(Segment(new[item.id], item.label, item.score, item.crowd) for item in kept)
    renumbered = PanopticMap(table[present if places is None else places].reshape(found.ids.shape), segments)
    return renumbered, np.array([areas[item.id] for item in kept], dtype=np.int64)


def segment_dicts(measured: Sequence[tuple[Segment, int, list[int]]], card: ModelCard) -> list[dict[str, Any]]:
    """Each segment, with its area and its bounds, as JSON values: id, class, the source's class id, whether a thing, score, area,
    bounds x1, y1, x2, y2."""
    items = []
    for segment, area, box in measured:
        category = card.categories[segment.label]
        score = None if segment.score is None else round(float(segment.score), 6)
        item = {"id": segment.id, "class": category.name, "class_id": category.id, "thing": category.is_thing, "score": score}
        items.append({**item, "area_px": area, "box": box, **({"crowd": True} if segment.crowd else {})})
    return items


def _measured(found: PanopticMap, areas: Int) -> list[tuple[Segment, int, list[int]]]:
    """Each segment of a `numbered` map with its area and its bounds x1, y1, x2, y2."""
    find = resolve("scipy.ndimage", purpose="find the bounds of segments").find_objects
    windows = find(found.ids, max_label=len(found.segments)) if found.segments else []
    boxes = [[columns.start, rows.start, columns.stop, rows.stop] for rows, columns in windows]
    return list(zip(found.segments, areas.tolist(), boxes, strict=True))
