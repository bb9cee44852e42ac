"""Precision and recall of a data set as a function of image weights.

Matching does not depend on how often an image counts, so it is done once; the curves are then read for the data as they are
(every weight 1) and for every bootstrap sample (Efron 1979) by the same loop.

Average precision (Lin et al. 2014; `pycocotools.cocoeval`): per class, area range and IoU threshold, predictions of all images in
descending score give a precision-recall curve; its upper envelope is read at 101 recalls and averaged.

An image of weight 2 counts like two copies of it, except among predictions of one class with the same score in that image: their
copies stay together, where those of two images would take turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pelagia.core.lazy import resolve
from pelagia.core.types import Float, Int, Mask
from pelagia.metrics.matching import Comparison, Matches, descending, find_pairs, match, ranks

__all__ = ["AREAS", "RECALLS", "Curves", "Ranking", "Rules", "Walk", "rank_predictions"]

#: COCO's area ranges in square pixels, both ends included.
AREAS: dict[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}

#: The 101 recalls at which precision is read.
RECALLS: Float = np.linspace(0.0, 1.0, 101)


class Rules(NamedTuple):
    """What is asked of the matcher: `thresholds` [T] of similarity, area ranges [A], and whether a prediction asks only its best
    object (`settled`, see `matching.match`)."""

    thresholds: Float
    areas: dict[str, tuple[float, float]] = AREAS
    settled: bool = False


class Ranking(NamedTuple):
    """Matched predictions in descending score.

    Args:
        edges: [C + 1], the predictions of class c are order[edges[c]:edges[c + 1]].
        order: [D] by class, then descending score, then image.
        rank: [D] place of a prediction among those of its image and class.
        row: [D] where it stands in `taken`, -1 if it touches no truth enough.
        inside: [A, D] an unmatched prediction counts as false positive in area range a.
        taken: [A, T, rows] the true object taken, or -1.
        ignored: [A, G] true objects that do not count in area range a.
    """

    edges: Int
    order: Int
    rank: Int
    row: Int
    inside: Mask
    taken: NDArray[np.int32]
    ignored: Mask


class Walk(NamedTuple):
    """A `Ranking` as the loop reads it, predictions in the order of `Ranking.order`: `inside` has bit a set for area range a."""

    edges: Int
    image: NDArray[np.int32]
    rank: NDArray[np.int32]
    row: NDArray[np.int32]
    inside: NDArray[np.uint8]
    taken: NDArray[np.int32]
    ignored: Mask

    @classmethod
    def of(cls, ranking: Ranking, image: Int) -> Walk:
        """`image` [D] of each prediction."""
        order = ranking.order
        assert len(ranking.inside) <= 8, "an area range is a bit"
        bits = np.zeros(len(order), dtype=np.uint8)
        for area, inside in enumerate(ranking.inside):
            bits |= inside.astype(np.uint8) << area
        return cls(
            ranking.edges,
            image[order].astype(np.int32),
            ranking.rank[order].astype(np.int32),
            ranking.row[order].astype(np.int32),
            bits[order],
            ranking.taken,
            ranking.ignored,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Precision [C, A, T, R] at the recalls `RECALLS`, recall [C, A, T, M] under each cut, NaN for a class without truth."""

    precision: Float
    recall: Float


def rank_predictions(comparison: Comparison, classes: int, rules: Rules) -> Ranking:
    """Match predictions with truth inside each image and class, and order them by score."""
    predictions, truth = comparison.predictions, comparison.truth
    # A threshold of 1 must be reachable in floating point; pycocotools lowers it by the same amount.
    reached = np.minimum(rules.thresholds, 1 - 1e-10)
    keys = predictions.image * classes + predictions.label, truth.image * classes + truth.label
    by_score = descending(comparison.score)
    order, rank = ranks(keys[0], comparison.score, by_score)
    ignored = comparison.unscored | outside(truth.size, rules)
    pairs = find_pairs(predictions, truth, keys, comparison.crowd, float(reached.min()), sigmas=comparison.sigmas, order=order)
    by_class, _ = ranks(predictions.label, comparison.score, by_score)
    matches = match(pairs, by_class, reached, ignored, comparison.again, settled=rules.settled)
    edges = np.concatenate([[0], np.cumsum(np.bincount(predictions.label, minlength=classes))])
    inside = ~(outside(predictions.size, rules) | comparison.excluded)
    return Ranking(edges, by_class, rank, matches.row, inside, matches.truth, ignored)


def outside(size: Float, rules: Rules) -> Mask:
    """[A, N]: the object's size lies outside the area range."""
    return np.stack([(size < low) | (size > high) for low, high in rules.areas.values()])


def matches_of(ranking: Ranking) -> Matches:
    """The matches alone."""
    return Matches(ranking.row, ranking.taken)


def truth_weights(comparison: Comparison, ranking: Ranking, classes: int, weights: Float) -> Float:
    """[C, A] scored true objects, each counted as often as its image."""
    truth = comparison.truth
    heavy = weights[truth.image]
    counts = [np.bincount(truth.label, heavy * ~ignored, classes) for ignored in ranking.ignored]
    return np.stack(counts, axis=1).astype(np.float64)  # bincount of nothing has integers


def read_curves(walk: Walk, total: Float, cuts: tuple[int, ...], weights: Float) -> Curves:
    """The curves when image n counts weights[n] times; `total` from `truth_weights`, a cut of 0 meaning all."""
    kernels = resolve("pelagia.metrics.kernels", purpose="average precision")
    limit = np.array([cut or len(walk.row) + 1 for cut in cuts], dtype=np.int64)
    precision, recall = kernels.average(walk, limit, total, weights, RECALLS)
    return Curves(precision, recall)
