"""Keypoints: similarity of two poses, and mirroring.

Keypoints are [N, K, 3]: x, y in continuous pixels and v = 0 not labelled, 1 hidden, 2 visible (predictions: a score).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pelagia.core.types import Float, Mask
from pelagia.errors import LabelError, OptionError

__all__ = ["COCO_PERSON_SIGMAS", "flip", "oks"]

#: Per-point standard deviations of COCO's 17 points of a person, as fractions of the square root of the object's area
#: (cocodataset.org/#keypoints-eval): nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; each pair left, right.
COCO_PERSON_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)


def oks(predicted: Float, truth: Float, areas: ArrayLike, boxes: Float, sigmas: Sequence[float]) -> Float:
    """Object keypoint similarity of every pair, COCO's rule: [N, K, 3] and [M, K, 3] -> [N, M].

    The mean over the labelled points of the truth of exp(-d² / (2 s² k²)), d the distance, s² the area of the true object and
    k = 2 sigma. For a truth without labelled points d is the distance to its box, grown by its width and height on each side,
    and the mean goes over all points.

    Args:
        predicted: [N, K, 3].
        truth: [M, K, 3].
        areas: [M] in square pixels.
        boxes: [M, 4] x1, y1, x2, y2 of the truth.
        sigmas: [K].

    Raises:
        LabelError: shapes disagree.
        OptionError: a sigma is not positive.
    """
    found, true = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    size, box = np.asarray(areas, dtype=np.float64).reshape(-1), np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    spread = np.asarray(sigmas, dtype=np.float64)
    points = len(spread)
    if found.shape[1:] != (points, 3) or true.shape[1:] != (points, 3) or not len(true) == len(size) == len(box):
        raise LabelError(
            f"keypoints of shapes {list(found.shape)} and {list(true.shape)} with {len(size)} areas, {len(box)} boxes and "
            f"{points} sigmas do not fit together"
        )
    if not (spread > 0).all():
        raise OptionError(f"sigmas of keypoints must be positive, got {spread.tolist()}")
    labelled: Mask = true[:, :, 2] > 0  # [M, K]
    whole: Mask = np.logical_not(labelled.any(axis=1))  # truth known by its box only
    offset = found[:, None, :, :2] - true[None, :, :, :2]  # [N, M, K, 2]
    sides = box[:, 2:] - box[:, :2]
    low, high = (box[:, :2] - sides)[:, None], (box[:, 2:] + sides)[:, None]  # [M, 1, 2]
    position = found[:, None, :, :2]
    outside = np.maximum(low - position, 0.0) + np.maximum(position - high, 0.0)
    offset = np.where(whole[:, None, None], outside, offset)
    exponent = (offset**2).sum(axis=3) / (2 * spread) ** 2 / (size[:, None] + np.spacing(1)) / 2  # [N, M, K]
    weight = labelled | whole[:, None]
    result: Float = (np.exp(-exponent) * weight).sum(axis=2) / np.maximum(weight.sum(axis=1), 1)
    return result


def flip(keypoints: Float, width: float, partners: Sequence[int] = ()) -> Float:
    """[N, K, 3] in an image of that width -> the same points in the mirrored image: x becomes width - x.

    `partners` [K] names for each point the one that it becomes (left eye, right eye); empty: every point stays itself. Points
    that are not labelled (v = 0) keep their coordinates.

    Raises:
        OptionError: `partners` is not a permutation of the K points.
    """
    result = np.array(keypoints, dtype=np.float64)
    if len(partners):
        if sorted(partners) != list(range(result.shape[1])):
            raise OptionError(f"flip partners must name each of the {result.shape[1]} keypoints once, got {list(partners)}")
        result = result[:, list(partners)]
    result[..., 0] = np.where(result[..., 2] > 0, width - result[..., 0], result[..., 0])
    return result
