"""The confusion matrix of a detector, background included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pelagia.core.types import Float, Int
from pelagia.metrics.matching import Comparison, find_pairs, match, ranks

__all__ = ["BACKGROUND", "ConfusionMatrix", "confusion_matrix", "match_across"]

#: Name of the last row (predictions that found nothing) and column (objects that were missed).
BACKGROUND = "background"


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """Objects by true and predicted class.

    Args:
        counts: [C + 1, C + 1], rows the true class, columns the predicted one; the last of each is the background.
        class_names: C names.
        thresholds: [C] score from which predictions of a class were counted.
        iou: overlap that a pair needs.
    """

    counts: Int
    class_names: tuple[str, ...]
    thresholds: Float
    iou: float

    def normalised(self, by: Literal["truth", "predicted"]) -> Float:
        """Rows (`truth`: diagonal = recall) or columns (`predicted`: diagonal = precision) over their sums; 0 for empty ones."""
        total: Int = self.counts.sum(axis=1 if by == "truth" else 0, keepdims=True)
        share: Float = self.counts / np.maximum(total, 1)
        return share

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "class_names": [*self.class_names, BACKGROUND],
            "counts": self.counts.tolist(),
            "thresholds": [None if np.isnan(value) else float(value) for value in self.thresholds],
            "iou": self.iou,
        }


def confusion_matrix(
    comparison: Comparison, class_names: Sequence[str], thresholds: Float, *, iou: float = 0.5
) -> ConfusionMatrix:
    """Count which class was taken for which.

    Predictions with score >= thresholds[label] are matched twice: first inside their class by COCO's rule, so that the diagonal
    holds the true positives of these thresholds; then those left over, in descending score, with the true objects left over
    of any class. What remains is background. Crowds, difficult objects and ignore regions, and predictions matched to them,
    do not count.

    Args:
        thresholds: [C]; NaN leaves a class's predictions out.
    """
    classes = len(class_names)
    predictions, truth = comparison.predictions, comparison.truth
    used = np.flatnonzero(comparison.score >= thresholds[predictions.label])
    objects = np.arange(len(truth))

    taken = _match(comparison, (used, objects), iou, classes)
    found = taken >= 0
    regular = found & ~np.append(comparison.unscored, True)[taken]  # -1 reads the appended one
    lost = ~comparison.unscored
    lost[taken[regular]] = False
    left, spare = np.flatnonzero(lost), used[~found]
    mistaken = match_across(comparison, spare, left, iou)
    wrong = mistaken >= 0
    lost[mistaken[wrong]] = False
    false = spare[~wrong & ~comparison.excluded[spare]]
    background = np.full(len(false), classes), np.full(int(lost.sum()), classes)
    real = np.concatenate([truth.label[taken[regular]], truth.label[mistaken[wrong]], background[0], truth.label[lost]])
    said = np.concatenate([predictions.label[part] for part in (used[regular], spare[wrong], false)] + [background[1]])
    counts = np.bincount(real * (classes + 1) + said, minlength=(classes + 1) ** 2).reshape(classes + 1, classes + 1)
    return ConfusionMatrix(counts, tuple(class_names), thresholds, iou)


def match_across(comparison: Comparison, predictions: Int, objects: Int, iou: float) -> Int:
    """For each of `predictions` (indices) the one of `objects` that it takes whatever the classes, best scores first, or -1."""
    return _match(comparison, (predictions, objects), iou, None)


def _match(comparison: Comparison, subset: tuple[Int, Int], iou: float, classes: int | None) -> Int:
    """For each prediction of `subset` the true object taken, or -1; inside classes, or across them when `classes` is None."""
    rows, columns = subset
    if len(rows) == 0 or len(columns) == 0:
        return np.full(len(rows), -1, dtype=np.int64)
    predictions, truth = comparison.predictions.select(rows), comparison.truth.select(columns)
    keys = predictions.image, truth.image
    if classes is not None:
        keys = predictions.image * classes + predictions.label, truth.image * classes + truth.label
    crowd, again, unscored = (flags[columns] for flags in (comparison.crowd, comparison.again, comparison.unscored))
    order, _ = ranks(keys[0], comparison.score[rows])
    pairs = find_pairs(predictions, truth, keys, crowd, iou, sigmas=comparison.sigmas, order=order)
    taken = match(pairs, order, np.array([iou]), unscored[None], again).taken(0, 0)
    return np.where(taken >= 0, columns[taken], -1)
