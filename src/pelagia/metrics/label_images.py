"""Instance segmentation scored on label images (integers [H, W], 0 = background, each other value one object).

An object and a predicted object may match when their IoU reaches a threshold t. The matches at t are the largest one-to-one
matching of such pairs; of equally large ones that of the largest sum of IoU. Above 0.5 no object has two partners, so the rule
only decides at t <= 0.5. These are the scores that users of StarDist (Schmidt et al., "Cell Detection with Star-convex Polygons",
MICCAI 2018) and Cellpose (Stringer et al., Nature Methods 2021) quote. Several names are in use for one number: the accuracy
TP / (TP + FP + FN) is called average precision by Cellpose and by the Data Science Bowl 2018.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from pelagia.core.types import Float, Int
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.contingency import Contingency, checked_weights, contingency, ratio
from pelagia.metrics.result import json_value, mean, number, text_table

__all__ = ["LABEL_IMAGE_THRESHOLDS", "LabelImageResult", "LabelImageScores", "evaluate_label_images"]

#: 0.50, 0.55, ... 0.95, each the nearest number to its decimal, so that an IoU of 11 / 20 reaches 0.55.
LABEL_IMAGE_THRESHOLDS: tuple[float, ...] = tuple(percent / 100 for percent in range(50, 100, 5))

#: IoU is rounded to this many steps where matchings of one size are compared: sums of whole numbers are exact.
_IOU_STEPS = 1 << 30


@dataclass(frozen=True, slots=True)
class LabelImageScores:
    """Scores at each of T thresholds; NaN where the denominator is 0.

    Args:
        precision: [T] TP / (TP + FP).
        recall: [T] TP / (TP + FN).
        f1: [T] 2 TP / (2 TP + FP + FN).
        accuracy: [T] TP / (TP + FP + FN).
        matched_iou: [T] sum of IoU over matches / TP.
        panoptic_quality: [T] 2 * sum of IoU over matches / (2 TP + FP + FN), which is f1 * matched_iou, and 0 without match.
    """

    precision: Float
    recall: Float
    f1: Float
    accuracy: Float
    matched_iou: Float
    panoptic_quality: Float


_NAMES = tuple(item.name for item in fields(LabelImageScores))

#: Column titles and the scores below them.
_TITLES = (
    ("precision", "precision"),
    ("recall", "recall"),
    ("F1", "f1"),
    ("accuracy", "accuracy"),
    ("matched IoU", "matched_iou"),
    ("PQ", "panoptic_quality"),
)


@dataclass(frozen=True, slots=True)
class LabelImageResult:
    """Scores of N pairs of label images at T thresholds of IoU.

    Args:
        thresholds: [T].
        counts: [N, T, 3] true positives, false positives, false negatives of every image.
        iou: [N, T] sum of IoU over the matches of every image.
        weights: [N] how often an image counts.
        pooled: scores of the counts added over images (StarDist's `matching_dataset`).
        per_image: scores of every image, averaged over the images where the score exists (the mean of Cellpose's
            `average_precision`). An image that is empty on both sides has no score and is left out.
    """

    thresholds: Float
    counts: Int
    iou: Float
    weights: Int
    pooled: LabelImageScores
    per_image: LabelImageScores

    @property
    def images(self) -> int:
        """Number of images; in a resample each counts as often as it was drawn."""
        return int(self.weights.sum())

    @property
    def totals(self) -> Int:
        """[T, 3] true positives, false positives, false negatives of all images."""
        return _add_images(self.weights, self.counts)

    def at(self, weights: Int | Float) -> LabelImageResult:
        """The result with image n counted `weights[n]` times ([N] whole numbers), for a bootstrap over images.

        Raises:
            OptionError: `weights` is not one whole number >= 0 for each image.
        """
        return _result(self.thresholds, self.counts, self.iou, checked_weights(weights, len(self.counts)))

    def to_dict(self) -> dict[str, Any]:
        """JSON values, the counts of single images left out; NaN becomes None."""
        scores = {
            kind: {name: [json_value(float(value)) for value in getattr(values, name)] for name in _NAMES}
            for kind, values in (("pooled", self.pooled), ("per_image", self.per_image))
        }
        tp, fp, fn = self.totals.T.tolist()
        return {"images": self.images, "thresholds": self.thresholds.tolist(), "tp": tp, "fp": fp, "fn": fn, **scores}

    def summary(self) -> list[tuple[str, float]]:
        """(name, value) in printing order: at the threshold nearest to 0.5, then the means over thresholds."""
        main = int(np.argmin(np.abs(self.thresholds - 0.5)))
        level = f"@{self.thresholds[main]:g}"
        return [
            *((f"{title}{level}", float(getattr(self.pooled, name)[main])) for title, name in _TITLES),
            ("mean accuracy", mean(self.pooled.accuracy)),
            (f"accuracy{level} per image", float(self.per_image.accuracy[main])),
            ("mean accuracy per image", mean(self.per_image.accuracy)),
        ]

    def columns(self) -> dict[str, Float]:
        """Title -> [T] score at each threshold."""
        pooled = {title: getattr(self.pooled, name) for title, name in _TITLES}
        return {**pooled, "accuracy per image": self.per_image.accuracy}

    def threshold_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table of thresholds, as text."""
        columns = self.columns()
        header = ["IoU", "TP", "FP", "FN", *columns]
        rows = [
            [f"{level:g}", *map(str, counts), *(number(float(column[row])) for column in columns.values())]
            for row, (level, counts) in enumerate(zip(self.thresholds, self.totals.tolist(), strict=True))
        ]
        return header, rows

    def lines(self) -> list[str]:
        """The result as text: one line on the data, the headline numbers, and a table of thresholds."""
        tp, fp, fn = self.totals[0].tolist()
        head = f"{self.images} images, {tp + fn} objects, {tp + fp} predictions (label images)"
        numbers = [f"  {name:<23} {number(value)}" for name, value in self.summary()]
        header, rows = self.threshold_rows()
        return [head, *numbers, "", *text_table([header, *rows])]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def evaluate_label_images(
    truths: Iterable[NDArray[Any]],
    predictions: Iterable[NDArray[Any]],
    *,
    thresholds: Sequence[float] = LABEL_IMAGE_THRESHOLDS,
) -> LabelImageResult:
    """Score predicted label images against true ones; both may be generators, for one pair is held at a time.

    All pixels of one value are one object, wherever they lie. Ids mean nothing beyond their image.

    Args:
        truths, predictions: label images [H, W] of integers >= 0, 0 = background, in the same order.
        thresholds: IoU that a match needs, each in (0, 1].

    Raises:
        EvaluationError: other numbers of images, other sizes, negative ids, or values that are not integers.
        OptionError: a threshold that cannot be used.
    """
    levels = np.array(thresholds, dtype=np.float64)
    if levels.ndim != 1 or len(levels) == 0 or not ((levels > 0) & (levels <= 1)).all():
        raise OptionError(f"thresholds must be numbers above 0 and at most 1, got {thresholds}")
    counts, iou = [], []
    for position, (truth, predicted) in enumerate(zip_longest(truths, predictions)):
        where = f"image {position}"
        if truth is None or predicted is None:
            missing, there = ("truth", "prediction") if truth is None else ("prediction", "truth")
            raise EvaluationError(f"there is a {there} but no {missing}; give one label image of each per image", where=where)
        matched, overlap = _match_image(contingency(truth, predicted, where=where), levels)
        counts.append(matched)
        iou.append(overlap)
    all_counts = np.array(counts, dtype=np.int64).reshape(-1, len(levels), 3)
    all_iou = np.array(iou, dtype=np.float64).reshape(-1, len(levels))
    return _result(levels, all_counts, all_iou, checked_weights(None, len(all_counts)))


def _match_image(table: Contingency, levels: Float) -> tuple[Int, Float]:
    """[T, 3] true positives, false positives, false negatives, and [T] sum of IoU over matches."""
    objects, found = np.count_nonzero(table.truth_ids), np.count_nonzero(table.predicted_ids)
    real = (table.truth_ids[table.truth] != 0) & (table.predicted_ids[table.predicted] != 0)
    row, column, shared = table.truth[real], table.predicted[real], table.pixels[real]
    iou = shared / (table.truth_area[row] + table.predicted_area[column] - shared)
    tp, total = np.zeros(len(levels), dtype=np.int64), np.zeros(len(levels))
    for place, level in enumerate(levels):
        near = np.flatnonzero(iou >= level)
        matched = _largest_matching(row[near], column[near], iou[near])
        tp[place], total[place] = len(matched), matched.sum()
    return np.stack([tp, found - tp, objects - tp], axis=1), total


def _largest_matching(row: Int, column: Int, iou: Float) -> Float:
    """IoU of the pairs of the largest one-to-one matching; of equally large ones that of the largest sum of IoU.

    Args:
        row, column, iou: [K] the pairs that may match, each pair once.
    """
    _, left, rivals = np.unique(row, return_inverse=True, return_counts=True)
    lone = rivals[left] == 1
    _, right, rivals = np.unique(column, return_inverse=True, return_counts=True)
    lone &= rivals[right] == 1
    if lone.all():
        return iou
    return np.concatenate([iou[lone], _assign(left[~lone], right[~lone], iou[~lone])])


def _assign(row: Int, column: Int, iou: Float) -> Float:
    """`_largest_matching` as a sparse assignment: memory grows with the pairs, whereas a dense matrix grows with objects squared.

    Each true object may also stay alone at the cost 2 b; a pair costs b - q with its IoU in steps, q. With n true objects
    the cost is 2 b n - sum over pairs (b + q). Since b > n * q, more pairs are always cheaper, then a larger sum of q.
    """
    _, row = np.unique(row, return_inverse=True)
    _, column = np.unique(column, return_inverse=True)
    count, width = int(row.max()) + 1, int(column.max()) + 1
    base = float((count + 1) * _IOU_STEPS)
    alone = np.arange(count)
    cost = np.concatenate([base - np.rint(iou * _IOU_STEPS), np.full(count, 2 * base)])
    rows, columns = np.concatenate([row, alone]).astype(np.int32), np.concatenate([column, width + alone]).astype(np.int32)
    graph = csr_array((cost, (rows, columns)), shape=(count, width + count))
    left, right = min_weight_full_bipartite_matching(graph)
    paired = right < width
    chosen = left[paired].astype(np.int64) * width + right[paired]
    return iou[np.isin(row * width + column, chosen)]


def _add_images(weights: Int, values: NDArray[Any]) -> NDArray[Any]:
    """[N, ...] -> [...], image n counted `weights[n]` times."""
    total: NDArray[Any] = np.einsum("n,n...->...", weights, values)
    return total


def _result(thresholds: Float, counts: Int, iou: Float, weights: Int) -> LabelImageResult:
    pooled = _scores(_add_images(weights, counts), _add_images(weights, iou))
    single = _scores(counts, iou)
    means = {}
    for name in _NAMES:
        value: Float = getattr(single, name)
        exists = ~np.isnan(value)
        means[name] = ratio(_add_images(weights, np.where(exists, value, 0.0)), _add_images(weights, exists.astype(np.int64)))
    return LabelImageResult(thresholds, counts, iou, weights, pooled, LabelImageScores(**means))


def _scores(counts: Int, iou: Float) -> LabelImageScores:
    """Of counts [..., T, 3] and sums of IoU [..., T]."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    return LabelImageScores(
        precision=ratio(tp, tp + fp),
        recall=ratio(tp, tp + fn),
        f1=ratio(2 * tp, 2 * tp + fp + fn),
        accuracy=ratio(tp, tp + fp + fn),
        matched_iou=ratio(iou, tp),
        panoptic_quality=ratio(2 * iou, 2 * tp + fp + fn),
    )
