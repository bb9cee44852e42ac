"""Choosing the score from which a prediction counts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pelagia.core.types import Float, Int, Mask
from pelagia.errors import OptionError

__all__ = ["BEST_F1", "OperatingPoint", "ScoreCurve", "ThresholdRule", "choose_point", "score_curve"]


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """What the threshold of a class is chosen for.

    `f`: largest F-beta, `value` = beta. `precision`, `recall`: the most objects found at a precision of at least `value`; the
    fewest false ones at a recall of at least `value`. `count`: as many predictions as true objects, so that counts are unbiased.
    """

    aim: Literal["f", "precision", "recall", "count"] = "f"
    value: float = 1.0

    @classmethod
    def parse(cls, text: str) -> ThresholdRule:
        """`f1`, `f0.5`, `f2`, `precision=0.9`, `recall=0.95` or `count`.

        Raises:
            OptionError: anything else.
        """
        words = text.strip().lower()
        if words == "count":
            return cls("count", 0.0)
        found = re.fullmatch(r"(?:(f)|(precision|recall)=)(\d+(?:\.\d*)?|\.\d+)", words)
        if found:
            beta, aim, value = found[1], found[2], float(found[3])
            if beta and value > 0:
                return cls("f", value)
            if aim and 0 < value <= 1:
                return cls(aim, value)  # type: ignore[arg-type]  # the expression knows these two words only
        raise OptionError(f"a threshold is chosen by f1, f0.5, f2, precision=0.9, recall=0.9 or count, got {text!r}")


BEST_F1 = ThresholdRule()


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

    def f(self, beta: float) -> Float:
        """[S] F-beta = (1 + b^2) correct / (predicted + b^2 total) (van Rijsbergen 1979): recall weighs b times precision."""
        square = beta * beta
        result: Float = (1 + square) * self.correct / np.maximum(self.predicted + square * self.total, 1e-300)
        return result

    def f1_at(self, threshold: Float) -> Float:
        """F1 at each of the thresholds, 0 above the highest score."""
        count = np.searchsorted(-self.score, -threshold, side="right")
        return np.concatenate([[0.0], self.f(1.0)])[count]


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


def choose_point(curve: ScoreCurve, rule: ThresholdRule = BEST_F1) -> OperatingPoint:
    """The operating point that `rule` asks for; of equals the highest score.

    It is put half-way to the next lower score, so that rounding in another runtime does not move predictions across it.
    NaN when there is no truth or no correct prediction, or when no threshold reaches the precision or recall asked for.
    """
    nothing = OperatingPoint(np.nan, np.nan, np.nan, np.nan)
    if curve.total == 0 or len(curve.score) == 0 or curve.correct[-1] == 0:
        return nothing
    if rule.aim == "f":
        best = int(np.argmax(curve.f(rule.value)))
    elif rule.aim == "count":
        best = int(np.argmin(np.abs(curve.predicted - curve.total)))
    else:
        values = curve.precision if rule.aim == "precision" else curve.recall
        reached = np.flatnonzero(values >= rule.value)
        if len(reached) == 0:
            return nothing
        best = int(reached[np.argmax(curve.correct[reached])] if rule.aim == "precision" else reached[0])
    high = float(curve.score[best])
    low = float(curve.score[best + 1]) if best + 1 < len(curve.score) else high
    middle = (high + low) / 2
    threshold = middle if low < middle <= high else high
    return OperatingPoint(threshold, float(curve.precision[best]), float(curve.recall[best]), float(curve.f(1.0)[best]))
