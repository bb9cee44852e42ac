"""Keypoints: similarity of two poses, and mirroring.

Keypoints are [N, K, 3]: x, y in continuous pixels and v = 0 not labelled, 1 hidden, 2 visible (predictions: a score).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike

from pelagia.core.types import Category, Float, Mask
from pelagia.errors import LabelError, ModelError, OptionError

__all__ = ["COCO_PERSON_SIGMAS", "DEFAULT_SIGMA", "flip", "keypoint_sigmas", "oks", "oks_aligned", "point_count", "similarity"]

ArrayT = TypeVar("ArrayT")  # a numpy array or a torch tensor

#: Per-point standard deviations of COCO's 17 points of a person, as fractions of the square root of the object's area
#: (cocodataset.org/#keypoints-eval): nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; each pair left, right.
COCO_PERSON_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
#: Of a point that has no published sigma: near the mean of COCO's.
DEFAULT_SIGMA = 0.05

#: Keeps an object without area from dividing by zero.
_TINY = float(np.spacing(1))


def point_count(categories: Sequence[Category], *, where: str) -> int:
    """K, the number of keypoints that every category has.

    Raises:
        ModelError: a category has none, or they differ; `where` names the model.
    """
    counts = {category.name: len(category.keypoints) for category in categories}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:8])
        raise ModelError(
            f"every class needs the same number of keypoints, at least one; the classes have {shown or 'none'}", where=where
        )
    return next(iter(counts.values()))


def keypoint_sigmas(points: int, other: float = DEFAULT_SIGMA) -> tuple[float, ...]:
    """COCO's for the 17 points of a person, `other` for every point otherwise."""
    return COCO_PERSON_SIGMAS if points == len(COCO_PERSON_SIGMAS) else (other,) * points


def similarity(squared: ArrayT, areas: ArrayT, sigmas: ArrayT) -> ArrayT:
    """[P, K] the term of one point in COCO's similarity: exp(-d² / (2 s² (2 sigma)²)); gradients flow.

    `squared` [P, K] are d², `areas` [P] are s² in square pixels, `sigmas` [K] as fractions of s.
    """
    d2: Any = squared
    spread: Any = sigmas
    size: Any = areas
    result: ArrayT = array_namespace(squared).exp(-d2 / (2 * spread) ** 2 / (size[:, None] + _TINY) / 2)
    return result


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
    rows, columns = (part.ravel() for part in np.indices((len(found), len(true))))
    return oks_aligned(found[rows], true[columns], size[columns], box[columns], spread).reshape(len(found), len(true))


def oks_aligned(predicted: Float, truth: Float, areas: Float, boxes: Float, sigmas: Float) -> Float:
    """[P] the similarity of `oks` for pairs: [P, K, 3] each, areas [P], boxes [P, 4], sigmas [K]."""
    if len(predicted) == 0:
        return np.zeros(0)
    labelled: Mask = truth[:, :, 2] > 0  # [P, K]
    whole: Mask = np.logical_not(labelled.any(axis=1))  # truth known by its box only
    position = predicted[:, :, :2]
    sides = boxes[:, 2:] - boxes[:, :2]
    low, high = (boxes[:, :2] - sides)[:, None], (boxes[:, 2:] + sides)[:, None]  # [P, 1, 2]
    outside = np.maximum(low - position, 0.0) + np.maximum(position - high, 0.0)
    offset = np.where(whole[:, None, None], outside, position - truth[:, :, :2])
    near = similarity((offset**2).sum(axis=2), areas, sigmas)  # [P, K]
    weight = labelled | whole[:, None]
    result: Float = (near * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1)
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
