"""The matcher: which prediction found which true object. One for every kind of shape; only `similarity` knows which it is.

It follows COCO's rule (Lin et al., "Microsoft COCO", 2014; `pycocotools.cocoeval`). Inside one image and one class, predictions
go in descending score. Each takes the free true object of largest similarity that reaches the threshold (of equals the last in
the order of the truth); an ignored true object only when no scored one is left for it. Truth that can be matched again (crowds,
difficult objects) is never used up. Pascal VOC and DOTA differ in one point, `settled`: a prediction asks only the object of
largest similarity.

Only pairs whose similarity reaches the lowest threshold matter, and they are few: they are found once, by a sweep along x, and
then settled for all area ranges and thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core import oriented as oriented_boxes
from pelagia.core.keypoints import oks_aligned
from pelagia.core.lazy import resolve
from pelagia.core.types import Float, Int, Mask
from pelagia.errors import EvaluationError
from pelagia.metrics.objects import Objects

__all__ = ["Comparison", "Federated", "Matches", "Pairs", "compare", "descending", "find_pairs", "match", "ranks", "similarity"]

#: So many groups may be counted by without a second thought; beyond, only a few times the number of objects.
_GROUPS = 1 << 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """Predictions and truth of a whole data set, ready to be matched.

    Args:
        score: [D].
        crowd: [G] similarity is the share of the prediction that lies inside.
        again: [G] may be matched any number of times (crowds, difficult objects).
        unscored: [G] is neither rewarded nor missed: all of `again`, and for keypoints objects without a labelled point.
        excluded: [D] lies in an ignore region: not scored unless it finds a true object.
        sigmas: [K] of OKS, for keypoints.
    """

    predictions: Objects
    truth: Objects
    score: Float
    crowd: Mask
    again: Mask
    unscored: Mask
    excluded: Mask
    sigmas: Float


@dataclass(frozen=True, slots=True)
class Federated:
    """What was looked for in labels that are not complete (Gupta, Dollár and Girshick, "LVIS", CVPR 2019).

    A class is judged in an image only if it was looked for there: if it has an object, or is among the `negative`. Where not all
    objects of a class were labelled (`partial`), a prediction that finds none is not counted as false.

    Args:
        negative, partial: [N, C] flags by image and class.
    """

    negative: Mask
    partial: Mask


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs (prediction, truth) with their similarity, [P] each; indices into the `Objects` they came from."""

    prediction: NDArray[Any]
    truth: NDArray[Any]
    value: Float

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True, slots=True)
class Matches:
    """What the matcher found. `row` [D]: where prediction d stands in `truth`, -1 when it overlaps nothing enough.
    `truth` [A, T, rows]: index of the true object taken under area range a and threshold t, or -1."""

    row: Int
    truth: NDArray[np.int32]

    def taken(self, area: int, threshold: int) -> NDArray[np.int32]:
        """[D] the true object that each prediction took in area range `area` at threshold number `threshold`, or -1."""
        return np.append(self.truth[area, threshold], np.int32(-1))[self.row]  # -1 reads the appended one


def compare(
    truth: Objects,
    predictions: Objects,
    classes: int,
    *,
    sigmas: Sequence[float] = (),
    federated: Federated | None = None,
) -> Comparison:
    """Check that predictions and truth fit together, and set the rules of matching.

    A crowd matches any number of predictions, which then do not count, and so does a difficult object. A prediction of which more
    than half lies in an ignore region (of any class) does not count unless it finds a true object.

    Raises:
        EvaluationError: scores missing or NaN, a label without category, a sigma that is not positive, or other numbers of
            keypoints than `sigmas`.
    """
    if predictions.score is None:
        raise EvaluationError("the predictions hold no scores, and AP ranks by score", where="predictions")
    for objects, what in ((predictions, "predictions"), (truth, "truth")):
        bad = np.flatnonzero((objects.label < 0) | (objects.label >= classes))
        if len(bad):
            raise EvaluationError(
                f"the {what} hold label {objects.label[bad[0]]}, but there are {classes} classes",
                where=f"image {objects.image[bad[0]]}",
            )
    if np.isnan(predictions.score).any():
        raise EvaluationError("a score is NaN", where=f"image {predictions.image[np.isnan(predictions.score)][0]}")
    if federated is not None:
        looked_for = federated.negative.copy()
        looked_for[truth.image, truth.label] = True
        predictions = predictions.select(np.flatnonzero(looked_for[predictions.image, predictions.label]))
    assert predictions.score is not None
    spread = np.asarray(sigmas, dtype=np.float64)
    if not (spread > 0).all():
        raise EvaluationError(f"sigmas of keypoints must be positive, got {spread.tolist()}")
    unlabelled: Mask = np.zeros(len(truth), dtype=np.bool_)
    if truth.keypoints is not None and predictions.keypoints is not None:
        for objects, points, what in ((predictions, predictions.keypoints, "predictions"), (truth, truth.keypoints, "truth")):
            if len(objects) and points.shape[1] != len(spread):
                raise EvaluationError(f"the {what} have {points.shape[1]} keypoints for {len(spread)} sigmas; give one for each")
        unlabelled = np.logical_not((truth.keypoints[:, :, 2] > 0).any(axis=1))

    real, regions = np.flatnonzero(~truth.ignore), truth.select(np.flatnonzero(truth.ignore))
    excluded = np.zeros(len(predictions), dtype=np.bool_)
    if len(regions) and truth.kind != "keypoints":
        every = np.ones(len(regions), dtype=np.bool_)
        inside = find_pairs(predictions, regions, (predictions.image, regions.image), every, 0.5)
        excluded[inside.prediction[inside.value > 0.5]] = True
    if federated is not None:
        excluded |= federated.partial[predictions.image, predictions.label]
    kept, again = truth.select(real), (truth.crowd | truth.difficult)[real]
    unscored = again | unlabelled[real]
    return Comparison(predictions, kept, predictions.score, kept.crowd, again, unscored, excluded, spread)


def ranks(key: Int, score: Float, by_score: Int | None = None) -> tuple[Int, Int]:
    """Order by group and descending score, ties in the given order, and each one's place inside its group.

    Args:
        by_score: `descending(score)`, where it is known.

    Returns:
        order: [N] such that key[order] ascends and scores descend inside a key.
        rank: [N] 0 for the best of a group, in the original order of the input.
    """
    (compact,), groups = _compact([key])
    kernels = resolve("pelagia.metrics.kernels", purpose="rank predictions")
    order, rank, _ = kernels.group(descending(score) if by_score is None else by_score, compact, groups)
    return order, rank


def descending(score: Float) -> Int:
    """[N] the order of falling scores, ties in the given order."""
    order = np.argsort(-score)  # four times as fast as numpy's stable sort; ties are few, and put right afterwards
    resolve("pelagia.metrics.kernels", purpose="rank predictions").settle_ties(order, score)
    return order


def _compact(keys: Sequence[Int]) -> tuple[list[Int], int]:
    """Keys as numbers from 0 in the same order, and how many there may be: few enough to count by them."""
    highest = max((int(key.max(initial=-1)) for key in keys), default=-1) + 1
    if highest <= _GROUPS + 4 * sum(len(key) for key in keys) and min((int(key.min(initial=0)) for key in keys), default=0) >= 0:
        return list(keys), highest
    present, where = np.unique(np.concatenate(keys), return_inverse=True)
    return np.split(where, np.cumsum([len(key) for key in keys])[:-1]), len(present)


def similarity(
    predictions: Objects, truth: Objects, pairs: tuple[NDArray[Any], NDArray[Any]], crowd: Mask, sigmas: Float | None = None
) -> Float:
    """[P] how alike the pairs (prediction index, truth index) are, 0 to 1.

    |a n b| / |a u b|, or |a n b| / |a| with a the prediction where `crowd` [P] is set. Boxes have continuous edges (no + 1),
    masks count pixels, oriented boxes are clipped exactly. Keypoints: OKS, for which crowds are nothing special.

    Raises:
        EvaluationError: two masks come from images of other heights.
    """
    left, right = pairs
    if len(left) == 0:
        return np.zeros(0)
    area_a, area_b = predictions.area[left], truth.area[right]
    if predictions.keypoints is not None:
        assert truth.keypoints is not None
        assert sigmas is not None
        return oks_aligned(predictions.keypoints[left], truth.keypoints[right], area_b, truth.bounds[right], sigmas)
    if predictions.oriented is not None:
        assert truth.oriented is not None
        iou = np.asarray(oriented_boxes.iou_aligned(predictions.oriented[left], truth.oriented[right]), dtype=np.float64)
        shared = iou * (area_a + area_b) / (1 + iou)
        return np.where(crowd, _divide(shared, area_a), iou)
    if predictions.runs is not None:
        assert truth.runs is not None
        a, b = predictions.runs, truth.runs
        other = np.flatnonzero(a.heights[left] != b.heights[right])
        if len(other):
            heights = int(a.heights[left[other[0]]]), int(b.heights[right[other[0]]])
            raise EvaluationError(
                f"a predicted mask is made for an image {heights[0]} pixels high, the true one for {heights[1]}; predict at the "
                "size of the labelled images",
                where=f"image {predictions.image[left[other[0]]]}",
            )
        kernels = resolve("pelagia.metrics.kernels", purpose="compare masks")
        shared = kernels.shared_pixels(a.counts, a.starts, b.counts, b.starts, left, right)
    else:
        p, t = predictions.bounds[left], truth.bounds[right]
        width = np.minimum(p[:, 2], t[:, 2]) - np.maximum(p[:, 0], t[:, 0])
        height = np.minimum(p[:, 3], t[:, 3]) - np.maximum(p[:, 1], t[:, 1])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
    return _divide(shared, np.where(crowd, area_a, area_a + area_b - shared))


def _divide(part: Float, whole: Float) -> Float:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def find_pairs(
    predictions: Objects,
    truth: Objects,
    keys: tuple[Int, Int],
    crowd: Mask,
    least: float,
    *,
    sigmas: Float | None = None,
    order: Int | None = None,
) -> Pairs:
    """All pairs of one group whose similarity is at least `least` (> 0): predictions in `order`, for each of them truth
    ascending.

    Args:
        keys: group of each prediction [D] and of each true object [G], such as image * classes + class.
        crowd: [G], see `similarity`.
        order: [D], by default as given.
    """
    (key_d, key_g), groups = _compact(keys)
    boxes, others = np.ascontiguousarray(predictions.bounds), truth.bounds
    if truth.kind == "keypoints":  # poses may be alike without touching
        everywhere = np.array([-np.inf, -np.inf, np.inf, np.inf])
        boxes, others = np.broadcast_to(everywhere, boxes.shape).copy(), np.broadcast_to(everywhere, others.shape).copy()
    by_x = np.lexsort((others[:, 0], key_g))
    others = np.ascontiguousarray(others[by_x])
    edges = np.concatenate([[0], np.cumsum(np.bincount(key_g, minlength=groups))])
    spans = edges[key_d], edges[key_d + 1], _widest(others, edges)[key_d]
    exact = truth.kind == "boxes"
    kernels = resolve("pelagia.metrics.kernels", purpose="match predictions")
    rows, columns, value = kernels.overlapping(
        np.arange(len(boxes)) if order is None else order,
        (boxes, np.ascontiguousarray(predictions.area)),
        (others, truth.area[by_x], by_x, crowd[by_x]),
        spans,
        least if exact else 0.0,
    )
    if not exact:
        value = similarity(predictions, truth, (rows, columns), crowd[columns], sigmas)
        near = np.flatnonzero(value >= least)
        rows, columns, value = rows[near], columns[near], value[near]
    return Pairs(rows, columns, value)


def _widest(others: Float, edges: Int) -> Float:
    """[groups] the most width of an other of each group, a hair more, so that rounding never loses a touching pair."""
    result = np.zeros(len(edges) - 1)
    used = np.flatnonzero(np.diff(edges))
    if len(used):
        most = np.maximum.reduceat(others[:, 2] - others[:, 0], edges[used])
        hair = 1e-9 * (most + np.maximum.reduceat(np.abs(others).max(axis=1), edges[used]))
        result[used] = most + np.where(np.isfinite(hair), hair, 0.0)
    return result


def match(pairs: Pairs, order: Int, thresholds: Float, ignored: Mask, again: Mask, *, settled: bool = False) -> Matches:
    """Match greedily, for every area range and threshold.

    Args:
        pairs: from `find_pairs`, predictions in the order in which they choose inside a group (see `ranks`); a pair below every
            threshold may be missing.
        order: [D] predictions in the order in which the result lists them.
        thresholds: [T] similarity that a match needs.
        ignored: [A, G], true objects not scored in area range a.
        again: [G], true objects that any number of predictions may match (crowds, difficult).
        settled: VOC's rule instead of COCO's: a prediction whose best object is taken finds nothing.
    """
    begins = np.flatnonzero(np.diff(pairs.prediction, prepend=-1))
    present = np.zeros(len(order), dtype=np.bool_)
    present[pairs.prediction[begins]] = True
    row = np.full(len(order), -1, dtype=np.int64)
    row[order[present[order]]] = np.arange(len(begins))
    kernels = resolve("pelagia.metrics.kernels", purpose="match predictions")
    taken = kernels.choose(
        np.append(begins, len(pairs)),
        row[pairs.prediction[begins]],
        (np.asarray(pairs.truth, dtype=np.int32), pairs.value),
        np.asarray(thresholds, dtype=np.float64),
        np.ascontiguousarray(ignored),
        again,
        settled,
    )
    return Matches(row, taken)
