"""Two samples of the same canvas in one: mixup, cutmix, copy-paste.

Mixup: Zhang et al., ICLR 2018. CutMix: Yun et al., ICCV 2019. Copy-paste: Ghiasi et al., CVPR 2021.
"""

from __future__ import annotations

import cv2
import numpy as np

from pelagia.core import masks as mask_crops
from pelagia.core.types import Float, Instances, MaskCrop
from pelagia.data.colour import Image
from pelagia.data.geometry import Keep, Window, hide, join

__all__ = ["cut_in", "mix", "paste_objects"]

#: A pasted object may cover at most this share of another one's box.
MOST_COVERED = 0.3


def mix(
    image: Image, truth: Instances, other: Image, other_truth: Instances, rng: np.random.Generator
) -> tuple[Image, Instances]:
    """r image + (1 - r) other with r from Beta(32, 32), and the objects of both."""
    image, other = _alike(image, other)
    ratio = float(rng.beta(32.0, 32.0))
    blended = cv2.addWeighted(image, ratio, other, 1 - ratio, 0.0).reshape(image.shape)
    return blended, join([truth, other_truth])


def cut_in(
    image: Image, truth: Instances, other: Image, other_truth: Instances, window: Window, keep: Keep
) -> tuple[Image, Instances]:
    """`image` with `window` replaced by that of `other`, whose truth is already cut at the window."""
    x1, y1, x2, y2 = window
    image, other = _alike(image, other)
    image[y1:y2, x1:x2] = other[y1:y2, x1:x2]
    return image, join([hide(truth, window, keep), other_truth])


def paste_objects(
    image: Image, truth: Instances, other: Image, other_truth: Instances, rng: np.random.Generator, keep: Keep
) -> tuple[Image, Instances]:
    """Paste each object of `other` with probability 1/2, pixel by pixel of its mask, where it covers others little.

    Masks of objects below lose the covered pixels, and their boxes become the bounds of what is left; keypoints there are kept
    as hidden (v = 1). Crowd and ignore regions are not pasted. Without masks on both sides nothing happens.
    """
    if other_truth.masks is None or not len(other_truth) or (len(truth) and truth.masks is None):
        return image, truth
    image, other = _alike(image, other)
    taken = truth.box_array
    chosen = []
    for position in np.flatnonzero((rng.random(len(other_truth)) < 0.5) & ~other_truth.crowd & ~other_truth.ignore):
        box = other_truth.box_array[position]
        overlap = np.clip(np.minimum(taken[:, 2:], box[2:]) - np.maximum(taken[:, :2], box[:2]), 0, None).prod(axis=1)
        area = (taken[:, 2:] - taken[:, :2]).prod(axis=1)
        if (overlap > MOST_COVERED * area).any():
            continue
        crop = other_truth.masks[position]
        height, width = crop.bitmap.shape
        rows, columns = slice(crop.y, crop.y + height), slice(crop.x, crop.x + width)
        np.copyto(image[rows, columns], other[rows, columns], where=crop.bitmap[..., None])
        truth = _cover(truth, crop, keep)
        chosen.append(int(position))
        taken = np.concatenate([taken, box[None]])
    return image, join([truth, other_truth.select(chosen)]) if chosen else truth


def _cover(truth: Instances, top: MaskCrop, keep: Keep) -> Instances:
    """Truth under a pasted mask."""
    if not len(truth) or truth.masks is None:
        return truth
    masks, share = list(truth.masks), np.ones(len(truth))
    boxes = None if truth.boxes is None else truth.boxes.copy()
    keypoints = None if truth.keypoints is None else truth.keypoints.copy()
    for position, crop in enumerate(masks):
        x1, y1 = max(crop.x, top.x), max(crop.y, top.y)
        x2 = min(crop.x + crop.bitmap.shape[1], top.x + top.bitmap.shape[1])
        y2 = min(crop.y + crop.bitmap.shape[0], top.y + top.bitmap.shape[0])
        if x2 <= x1 or y2 <= y1:
            continue
        bitmap = crop.bitmap.copy()
        bitmap[y1 - crop.y : y2 - crop.y, x1 - crop.x : x2 - crop.x] &= ~top.bitmap[
            y1 - top.y : y2 - top.y, x1 - top.x : x2 - top.x
        ]
        masks[position] = MaskCrop(crop.x, crop.y, bitmap)
        share[position] = masks[position].area / max(crop.area, 1)
        if boxes is not None and share[position] < 1:
            boxes[position] = mask_crops.bounds(masks[position])
        if keypoints is not None:
            _hide_points(keypoints[position], top)
    result = truth.replace(masks=tuple(masks), boxes=boxes, keypoints=keypoints)
    return result.select((share >= keep.visible) | ((truth.crowd | truth.ignore) & (share > 0)))


def _hide_points(points: Float, top: MaskCrop) -> None:
    height, width = top.bitmap.shape
    for point in points:
        column, row = int(point[0]) - top.x, int(point[1]) - top.y
        if point[2] == 2 and 0 <= column < width and 0 <= row < height and top.bitmap[row, column]:
            point[2] = 1


def _alike(image: Image, other: Image) -> tuple[Image, Image]:
    """Both with the larger number of channels and the deeper type."""
    channels, depth = max(image.shape[2], other.shape[2]), np.result_type(image, other)
    shape = (*image.shape[:2], channels)
    first, second = (np.broadcast_to(value, shape).astype(depth) for value in (image, other))
    return first, second
