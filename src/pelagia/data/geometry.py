"""How truth follows an affine map, and which objects are still objects after a cut.

Rules, stated once for every augmentation:

- A box follows exactly under a map that keeps the axes (flips, quarter turns, scale, shift). Otherwise it becomes the bounds of
  the warped mask where there is one, else of the moved oriented box, else of its four moved corners (which is loose).
- An oriented box is moved by its corners. A map with shear makes it a parallelogram; the rectangle of least area around that is
  taken. It is never cut at a border.
- A mask is sampled at pixel centres (nearest). Where a border cuts an object with a mask, its box is the bounds of what is left.
- A keypoint outside the window becomes unlabelled (0, 0, 0). A mirroring map exchanges the partners named by `Category.flip`.
- Under an elastic field (`pelagia.data.elastic`) a box becomes the bounds of its moved border, an oriented box the rectangle of
  least area around it.
- An object stays if at least `Keep.visible` of its area lies inside the window and its box there is at least `Keep.side_px`
  wide and high. An oriented object stays, whole, if its centre lies inside or that share of its area does. Crowd and ignore
  regions, and stuff, stay as long as any of them is inside, with their flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pelagia.core import masks as mask_crops
from pelagia.core import oriented as oriented_boxes
from pelagia.core.image import warp
from pelagia.core.types import Category, Float, Instances, Int, Mask, MaskCrop
from pelagia.data.elastic import Field, settle

__all__ = [
    "IDENTITY",
    "Keep",
    "Window",
    "chain",
    "follow",
    "hide",
    "invert",
    "join",
    "join_stuff",
    "keeps_axes",
    "mirror_keypoints",
    "move_points",
    "tight_crop",
    "warp_mask",
]

#: x1, y1, x2, y2 in whole pixels.
Window = tuple[int, int, int, int]

#: [2, 3], the map that moves nothing.
IDENTITY: Float = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
IDENTITY.setflags(write=False)


@dataclass(frozen=True, slots=True)
class Keep:
    """Which objects stay after a cut: `visible` is a share of the area, `side_px` the least width and height in pixels."""

    visible: float = 0.2
    side_px: float = 2.0


def chain(*matrices: Float) -> Float:
    """[2, 3], the map that applies the last matrix first: chain(a, b)(p) = a(b(p))."""
    result, *others = matrices
    for matrix in others:
        shift = result[:, 2]
        result = result[:, :2] @ matrix
        result[:, 2] += shift
    return result


def invert(matrix: Float) -> Float:
    """[2, 3], the inverse of an affine map."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -linear @ matrix[:, 2:]], axis=1)


def move_points(points: Float, matrix: Float) -> Float:
    """[..., 2] points through a [2, 3] affine map."""
    moved: Float = points @ matrix[:, :2].T + matrix[:, 2]
    return moved


def keeps_axes(matrix: Float) -> bool:
    """True if axis-aligned boxes stay axis-aligned (no rotation but by quarter turns, no shear)."""
    a, b, c, d = (abs(value) for value in matrix[:, :2].ravel().tolist())
    tiny = 1e-9 * max(a, b, c, d)
    return (b <= tiny and c <= tiny) or (a <= tiny and d <= tiny)


def join(parts: Sequence[Instances]) -> Instances:
    """All objects of `parts`; parts without objects may lack optional fields."""
    filled = [part for part in parts if len(part)]
    return Instances.concatenate(filled) if filled else parts[0]


def tight_crop(bitmap: Mask, x: int, y: int) -> MaskCrop:
    """The set pixels of a bitmap whose top-left pixel is column x, row y; 0 x 0 if none is set."""
    tight = mask_crops.crop_from_bitmap(bitmap)
    return MaskCrop(tight.x + x, tight.y + y, tight.bitmap)


def join_stuff(truth: Instances, categories: Sequence[Category]) -> Instances:
    """The objects with the pieces of each class of stuff as one object, whose mask is their union, at the first one's place."""
    if truth.masks is None:
        return truth
    masks, boxes = list(truth.masks), truth.box_array.copy()
    stays = np.ones(len(truth), dtype=np.bool_)
    for label in np.unique(truth.labels[_is_stuff(truth.labels, categories)]).tolist():
        rows = np.flatnonzero((truth.labels == label) & ~truth.crowd & ~truth.ignore)
        if len(rows) < 2:
            continue
        masks[rows[0]] = _union([masks[row] for row in rows])
        boxes[rows[0]] = mask_crops.bounds(masks[rows[0]])
        stays[rows[1:]] = False
    return truth.replace(masks=tuple(masks), boxes=None if truth.boxes is None else boxes).select(stays)


def _union(crops: Sequence[MaskCrop]) -> MaskCrop:
    left, top = min(crop.x for crop in crops), min(crop.y for crop in crops)
    right = max(crop.x + crop.bitmap.shape[1] for crop in crops)
    bottom = max(crop.y + crop.bitmap.shape[0] for crop in crops)
    bitmap = np.zeros((bottom - top, right - left), dtype=np.bool_)
    for crop in crops:
        rows, columns = crop.bitmap.shape
        bitmap[crop.y - top : crop.y - top + rows, crop.x - left : crop.x - left + columns] |= crop.bitmap
    return MaskCrop(left, top, bitmap)


def _is_stuff(labels: Int, categories: Sequence[Category]) -> Mask:
    stuff = {label for label, category in enumerate(categories) if not category.is_thing}
    if not stuff:
        return np.zeros(len(labels), dtype=np.bool_)
    return np.array([label in stuff for label in labels.tolist()], dtype=np.bool_)


def warp_mask(crop: MaskCrop, matrix: Float, window: Window, field: Field | None = None) -> MaskCrop:
    """The mask through an affine map, and an elastic `field` of the canvas, cut at `window` and trimmed to its set pixels (0 x 0
    if none is left)."""
    height, width = crop.shape
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], dtype=np.float64) + np.array([crop.x, crop.y])
    moved = move_points(corners, matrix)
    reach = 0.0 if field is None else float(np.abs(field).max(initial=0.0))
    low, high = np.floor(moved.min(axis=0) - reach), np.ceil(moved.max(axis=0) + reach)
    x1, y1 = int(max(low[0], window[0])), int(max(low[1], window[1]))
    x2, y2 = int(min(high[0], window[2])), int(min(high[1], window[3]))
    if x2 <= x1 or y2 <= y1 or not height or not width:
        return MaskCrop(x1, y1, np.zeros((0, 0), dtype=np.bool_))
    local = chain(_shift(-x1, -y1), matrix, _shift(crop.x, crop.y))
    part = None if field is None else field[y1:y2, x1:x2]
    bitmap = warp(
        crop.bitmap.astype(np.uint8)[..., None], local, (x2 - x1, y2 - y1), fill=0, interpolation="nearest", displacement=part
    )
    return tight_crop(bitmap.reshape(y2 - y1, x2 - x1) > 0, x1, y1)


def follow(
    truth: Instances,
    matrix: Float,
    source_size: tuple[int, int],
    window: Window,
    keep: Keep,
    categories: Sequence[Category] = (),
    field: Field | None = None,
) -> Instances:
    """The truth of a source image, seen through `window` of the destination; see the module's rules.

    `matrix` [2, 3] maps source to destination, `source_size` is (width, height) of the source (boxes are first cut there),
    `categories` names the mirrored partners of keypoints and tells stuff from things; `field` [H, W, 2] deforms the destination
    after the map. `areas` are dropped: they belong to the source.
    """
    if not len(truth):
        return truth.replace(areas=None)
    boxes, oriented, masks, keypoints = truth.boxes, truth.oriented, truth.masks, truth.keypoints
    loose = field is not None or not keeps_axes(matrix)
    if oriented is not None:
        oriented = _move_oriented(oriented, matrix) if field is None else _bend_oriented(oriented, matrix, field)
    if boxes is not None:
        if loose and oriented is not None:
            boxes = oriented_boxes.bounds(oriented)
        else:
            inside = np.minimum(np.maximum(boxes, 0), (*source_size, *source_size))
            if loose:
                corners = inside[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
                moved = move_points(corners, matrix) if field is None else settle(move_points(_border(corners), matrix), field)
                boxes = np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)
            else:
                one, two = move_points(inside[:, :2], matrix), move_points(inside[:, 2:], matrix)
                boxes = np.concatenate([np.minimum(one, two), np.maximum(one, two)], axis=1)
    share = np.ones(len(truth))
    if masks is not None:
        whole = np.array([crop.area for crop in masks]) * abs(np.linalg.det(matrix[:, :2]))
        masks = tuple(warp_mask(crop, matrix, window, field) for crop in masks)
        share = np.array([crop.area for crop in masks]) / np.maximum(whole, 1e-9)
    if keypoints is not None:
        keypoints = _move_keypoints(keypoints, truth.labels, matrix, window, categories, field)
    moved_truth = truth.replace(boxes=boxes, oriented=oriented, masks=masks, keypoints=keypoints, areas=None)
    return _cut(moved_truth, window, keep, share, loose, _is_stuff(truth.labels, categories))


def hide(truth: Instances, window: Window, keep: Keep, categories: Sequence[Category] = ()) -> Instances:
    """The truth after `window` was painted over: masks lose those pixels, boxes shrink to the bounds of what is left.

    A box shrinks where the window covers a whole strip of it. The rules of keeping apply to the share that is not covered.
    """
    if not len(truth):
        return truth
    flagged = truth.crowd | truth.ignore | _is_stuff(truth.labels, categories)
    if truth.oriented is not None:
        covered = _oriented_share(truth.oriented, window)
        stays = (1 - covered >= keep.visible) | (flagged & (covered < 1))
        if truth.masks is None and truth.boxes is None:
            return _forget_keypoints(truth.select(stays), window)
    boxes = truth.box_array.copy()
    masks = truth.masks
    if masks is not None:
        before = np.array([crop.area for crop in masks])
        masks = tuple(_erase(crop, window) for crop in masks)
        share = np.array([crop.area for crop in masks]) / np.maximum(before, 1)
        touched = share < 1
        boxes[touched] = np.array([mask_crops.bounds(crop) for crop in masks]).reshape(-1, 4)[touched]
    else:
        boxes, share = _subtract(boxes, window)
    sides = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    if truth.oriented is None:
        stays = ((share >= keep.visible) & (sides >= keep.side_px)) | (flagged & (share > 0))
    result = truth.replace(boxes=None if truth.boxes is None else boxes, masks=masks).select(stays)
    return _forget_keypoints(result, window)


def mirror_keypoints(keypoints: Float, labels: Int, categories: Sequence[Category]) -> Float:
    """[N, K, 3] with the points exchanged that `Category.flip` names as each other's mirror image."""
    points = np.arange(keypoints.shape[1])
    partners = np.tile(points, (max(int(labels.max(initial=-1)) + 1, len(categories)), 1))
    for label, category in enumerate(categories):
        partners[label, : len(category.flip)] = category.flip[: len(points)]
    return np.take_along_axis(keypoints, partners[labels][:, :, None], axis=1)


def _shift(x: float, y: float) -> Float:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y]])


def _move_oriented(oriented: Float, matrix: Float) -> Float:
    linear = matrix[:, :2]
    gram = linear.T @ linear
    scale = np.sqrt(gram[0, 0])
    if abs(gram[0, 1]) > 1e-9 * gram[0, 0] or abs(gram[1, 1] - gram[0, 0]) > 1e-9 * gram[0, 0]:
        return oriented_boxes.from_corners(move_points(oriented_boxes.to_corners(oriented), matrix))
    axis = np.stack([np.cos(oriented[:, 4]), np.sin(oriented[:, 4])], axis=1) @ linear.T
    moved = np.concatenate(
        [move_points(oriented[:, :2], matrix), oriented[:, 2:4] * scale, np.arctan2(axis[:, 1], axis[:, 0])[:, None]], axis=1
    )
    return oriented_boxes.canonical(moved)


def _border(corners: Float) -> Float:
    """[N, 4, 2] corners -> [N, 64, 2] points along the four sides."""
    steps = (np.arange(16) / 16)[:, None]
    sides = [corners[:, None, k] * (1 - steps) + corners[:, None, (k + 1) % 4] * steps for k in range(4)]
    return np.concatenate(sides, axis=1)


def _bend_oriented(oriented: Float, matrix: Float, field: Field) -> Float:
    borders = settle(move_points(_border(oriented_boxes.to_corners(oriented)), matrix), field)
    return np.array([oriented_boxes.from_points(points) for points in borders]).reshape(-1, 5)


def _move_keypoints(
    keypoints: Float, labels: Int, matrix: Float, window: Window, categories: Sequence[Category], field: Field | None
) -> Float:
    result = keypoints.copy()
    moved = move_points(keypoints[..., :2], matrix)
    result[..., :2] = moved if field is None else settle(moved, field)
    if matrix[0, 0] * matrix[1, 1] < matrix[0, 1] * matrix[1, 0]:
        result = mirror_keypoints(result, labels, categories)
    x, y = result[..., 0], result[..., 1]
    outside = (x < window[0]) | (x > window[2]) | (y < window[1]) | (y > window[3])
    result[outside | (result[..., 2] == 0)] = 0.0
    return result


def _cut(truth: Instances, window: Window, keep: Keep, share: Float, loose: bool, stuff: Mask) -> Instances:
    """Cut moved truth at `window` and keep what the rules keep. `share` [N] is the part of each mask that is left (1 without)."""
    flagged = truth.crowd | truth.ignore | stuff
    low, high = window[:2], window[2:]
    full = truth.box_array
    boxes = np.minimum(np.maximum(full, low + low), high + high)
    size, full_size = boxes[:, 2:] - boxes[:, :2], full[:, 2:] - full[:, :2]
    if truth.masks is not None:
        refit = (boxes != full).any(axis=1) | loose
        tight = np.array([mask_crops.bounds(crop) for crop in truth.masks]).reshape(-1, 4)
        boxes = np.where(refit[:, None], tight, boxes)
        size = boxes[:, 2:] - boxes[:, :2]
        present = np.array([crop.area > 0 for crop in truth.masks], dtype=np.bool_)
    else:
        share = size[:, 0] * size[:, 1] / np.maximum(full_size[:, 0] * full_size[:, 1], 1e-12)
        present = np.minimum(size[:, 0], size[:, 1]) > 0
    if truth.oriented is not None:
        centre = truth.oriented[:, :2]
        inside = ((centre >= low) & (centre <= high)).all(axis=1)
        stays = (inside | (_oriented_share(truth.oriented, window) >= keep.visible)) & (truth.oriented[:, 2] >= keep.side_px)
    else:
        stays = (share >= keep.visible) & (np.minimum(size[:, 0], size[:, 1]) >= keep.side_px)
    stays = present & (stays | flagged)
    kept = truth.select(stays)
    if truth.boxes is not None:
        kept.boxes = boxes[stays]
    return kept


def _oriented_share(oriented: Float, window: Window) -> Float:
    """[N], the part of each oriented box's area inside `window`: from the exact IoU q, intersection = q (a + b) / (1 + q)."""
    x1, y1, x2, y2 = window
    share = np.ones(len(oriented))
    bounds = oriented_boxes.bounds(oriented)
    crossing = (bounds[:, 0] < x1) | (bounds[:, 1] < y1) | (bounds[:, 2] > x2) | (bounds[:, 3] > y2)
    if crossing.any():
        cut = oriented[crossing]
        frame = oriented_boxes.canonical(np.array([[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 0.0]]))
        iou = oriented_boxes.iou(cut, frame)[:, 0]
        area = cut[:, 2] * cut[:, 3]
        share[crossing] = iou * (area + (x2 - x1) * (y2 - y1)) / (1 + iou) / np.maximum(area, 1e-12)
    return share


def _subtract(boxes: Float, window: Window) -> tuple[Float, Float]:
    """Bounds of box minus window, and the share of the box's area that is left."""
    x1, y1, x2, y2 = window
    left, top = np.maximum(boxes[:, 0], x1), np.maximum(boxes[:, 1], y1)
    right, bottom = np.minimum(boxes[:, 2], x2), np.minimum(boxes[:, 3], y2)
    covered = np.clip(right - left, 0, None) * np.clip(bottom - top, 0, None)
    share = 1 - covered / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-12)
    result = boxes.copy()
    hit = covered > 0
    tall, wide = hit & (top <= boxes[:, 1]) & (bottom >= boxes[:, 3]), hit & (left <= boxes[:, 0]) & (right >= boxes[:, 2])
    result[tall & (left <= boxes[:, 0]), 0] = x2
    result[tall & (right >= boxes[:, 2]), 2] = x1
    result[wide & (top <= boxes[:, 1]), 1] = y2
    result[wide & (bottom >= boxes[:, 3]), 3] = y1
    result[share <= 0] = 0.0
    return result, share


def _erase(crop: MaskCrop, window: Window) -> MaskCrop:
    x1, y1 = max(window[0] - crop.x, 0), max(window[1] - crop.y, 0)
    x2, y2 = window[2] - crop.x, window[3] - crop.y
    if x2 <= x1 or y2 <= y1 or x1 >= crop.bitmap.shape[1] or y1 >= crop.bitmap.shape[0]:
        return crop
    bitmap: Mask = crop.bitmap.copy()
    bitmap[y1:y2, x1:x2] = False
    return tight_crop(bitmap, crop.x, crop.y)


def _forget_keypoints(truth: Instances, window: Window) -> Instances:
    if truth.keypoints is None:
        return truth
    points = truth.keypoints.copy()
    x, y = points[..., 0], points[..., 1]
    points[(x >= window[0]) & (x < window[2]) & (y >= window[1]) & (y < window[3])] = 0.0
    return truth.replace(keypoints=points)
