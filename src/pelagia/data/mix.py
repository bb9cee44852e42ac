"""Two samples of the same canvas in one: mixup, cutmix, copy-paste.

Mixup: Zhang et al., ICLR 2018. CutMix: Yun et al., ICCV 2019. Copy-paste: Ghiasi et al., CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from pelagia.core import masks as mask_crops
from pelagia.core.types import Category, Float, Instances, Mask, MaskCrop, SemanticMap
from pelagia.data.colour import Image
from pelagia.data.geometry import Keep, Window, hide, join
from pelagia.data.sample import Sample
from pelagia.errors import OptionError

__all__ = ["cut_in", "mix", "paste_objects"]

#: A pasted object may cover at most this share of another one's box.
MOST_COVERED = 0.3


def mix(sample: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """r image + (1 - r) other with r from Beta(32, 32), and the objects of both.

    Raises:
        OptionError: a sample has a class map: a blended pixel has no one class.
    """
    if sample.semantic is not None or other.semantic is not None:
        raise OptionError("mixup cannot serve class maps: a blended pixel has no one class; use cutmix")
    image, second = _alike(sample.image, other.image)
    ratio = float(rng.beta(32.0, 32.0))
    blended = cv2.addWeighted(image, ratio, second, 1 - ratio, 0.0).reshape(image.shape)
    return replace(sample, image=blended, truth=join([sample.truth, other.truth]))


def cut_in(sample: Sample, other: Sample, window: Window, keep: Keep, categories: Sequence[Category] = ()) -> Sample:
    """`sample` with `window` replaced by that of `other`, whose truth is already cut at the window."""
    x1, y1, x2, y2 = window
    image, second = _alike(sample.image, other.image)
    image[y1:y2, x1:x2] = second[y1:y2, x1:x2]
    truth = join([hide(sample.truth, window, keep, categories), other.truth])
    return replace(sample, image=image, truth=truth, semantic=_replaced(sample, other, (slice(y1, y2), slice(x1, x2)), None))


def paste_objects(
    sample: Sample, other: Sample, rng: np.random.Generator, keep: Keep, categories: Sequence[Category] = ()
) -> Sample:
    """Paste each object of `other` with probability 1/2, pixel by pixel of its mask, where it covers others little.

    Masks of objects below lose the covered pixels, and their boxes become the bounds of what is left; keypoints there are kept
    as hidden (v = 1). A class map takes the pasted pixels' labels. Crowd and ignore regions and stuff are not pasted, and stuff
    may be covered. Without masks on both sides nothing happens.
    """
    truth, others = sample.truth, other.truth
    if others.masks is None or not len(others) or (len(truth) and truth.masks is None):
        return sample
    image, second = _alike(sample.image, other.image)
    taken = truth.box_array[_things(truth, categories)]
    chosen = []
    free = ~others.crowd & ~others.ignore & _things(others, categories)
    for position in np.flatnonzero((rng.random(len(others)) < 0.5) & free):
        box = others.box_array[position]
        overlap = np.clip(np.minimum(taken[:, 2:], box[2:]) - np.maximum(taken[:, :2], box[:2]), 0, None).prod(axis=1)
        area = (taken[:, 2:] - taken[:, :2]).prod(axis=1)
        if (overlap > MOST_COVERED * area).any():
            continue
        crop = others.masks[position]
        height, width = crop.bitmap.shape
        window = (slice(crop.y, crop.y + height), slice(crop.x, crop.x + width))
        np.copyto(image[window], second[window], where=crop.bitmap[..., None])
        sample = replace(sample, semantic=_replaced(sample, other, window, crop.bitmap))
        truth = _cover(truth, crop, keep, categories)
        chosen.append(int(position))
        taken = np.concatenate([taken, box[None]])
    return replace(sample, image=image, truth=join([truth, others.select(chosen)])) if chosen else sample


def _things(truth: Instances, categories: Sequence[Category]) -> Mask:
    return np.array([label >= len(categories) or categories[label].is_thing for label in truth.labels.tolist()], dtype=np.bool_)


def _replaced(sample: Sample, other: Sample, window: tuple[slice, slice], where: Mask | None) -> SemanticMap | None:
    """The class map of `sample` with that of `other` inside a window, `where` [h, w] if given."""
    if sample.semantic is None or other.semantic is None:
        return sample.semantic
    labels = sample.semantic.labels.astype(np.result_type(sample.semantic.labels, other.semantic.labels))
    np.copyto(labels[window], other.semantic.labels[window], where=True if where is None else where)
    return SemanticMap(labels)


def _cover(truth: Instances, top: MaskCrop, keep: Keep, categories: Sequence[Category]) -> Instances:
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
    flagged = truth.crowd | truth.ignore | ~_things(truth, categories)
    return result.select((share >= keep.visible) | (flagged & (share > 0)))


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
