"""Choosing the score from which a prediction counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pelagia.core.types import Float, Int, Mask

__all__ = ["OperatingPoint", "ScoreCurve", "best_f1", "score_curve"]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a detector reaches when predictions with score >= `threshold` count. NaN where nothing can be said."""

    threshold: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class ScoreCurve:
    """Counts by score threshold.

    Args:
        score: [S] the distinct scores, descending.
        correct: [S] true positives among predictions with at least that score.
        predicted: [S] true and false positives among them.
        total: number of true objects.
    """

    score: Float
    correct: Int
    predicted: Int
    total: int

    @property
    def precision(self) -> Float:
        """[S] correct / predicted."""
        return self.correct / np.maximum(self.predicted, 1)

    @property
    def recall(self) -> Float:
        """[S] correct / total, 0 without truth."""
        return self.correct / max(self.total, 1)

    @property
    def f1(self) -> Float:
        """[S] 2 correct / (predicted + total), the harmonic mean of precision and recall."""
        return 2 * self.correct / np.maximum(self.predicted + self.total, 1)

    def f1_at(self, threshold: Float) -> Float:
        """F1 at each of the thresholds, 0 above the highest score."""
        count = np.searchsorted(-self.score, -threshold, side="right")
        return np.concatenate([[0.0], self.f1])[count]


def score_curve(score: Float, correct: Mask, kept: Mask, total: int) -> ScoreCurve:
    """The curve of predictions in descending score.

    Args:
        score: [n] descending.
        correct: [n] true positives.
        kept: [n] true or false positives; the rest is not scored.
        total: number of true objects.
    """
    score, correct = score[kept], correct[kept]
    last = np.flatnonzero(np.diff(score, append=-np.inf))  # equal scores stand or fall together
    return ScoreCurve(score[last], np.cumsum(correct, dtype=np.int64)[last], last + 1, total)


def best_f1(curve: ScoreCurve) -> OperatingPoint:
    """The threshold of largest F1; of equals the highest.

    It is put half-way to the next lower score, so that rounding in another runtime does not move predictions across it.
    NaN when there is no truth or no correct prediction.
    """
    if curve.total == 0 or len(curve.score) == 0 or curve.correct[-1] == 0:
        return OperatingPoint(np.nan, np.nan, np.nan, np.nan)
    best = int(np.argmax(curve.f1))
    high = float(curve.score[best])
    low = float(curve.score[best + 1]) if best + 1 < len(curve.score) else high
    middle = (high + low) / 2
    threshold = middle if low < middle <= high else high
    return OperatingPoint(threshold, float(curve.precision[best]), float(curve.recall[best]), float(curve.f1[best]))
