"""How far a score can be read as a probability: reliability diagrams, calibration errors, proper scores.

A score is calibrated when, of all predictions with score p, the share p is right. Predictions are put into bins, and in each
the mean score is compared with the accuracy (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). Which
predictions are right is decided elsewhere: by the matcher for objects, by comparison with the truth for images and pixels.
Values that do not exist (no sample) are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Float, Int, Mask
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.outcomes import check_labels, check_outcomes, check_scores
from pelagia.metrics.result import json_value, mean

__all__ = [
    "CalibrationTally",
    "ClassificationCalibration",
    "DetectionCalibration",
    "Reliability",
    "brier",
    "classification_calibration",
    "detection_calibration",
    "reliability",
]

#: Pixels that a tally takes at once; bounds its memory.
_AT_ONCE = 1 << 20

#: Rows of class probabilities may miss the sum 1 by this much: a softmax in half precision does.
_SUM_TOLERANCE = 5e-3

#: Smallest probability that enters a logarithm.
_SMALLEST = float(np.finfo(np.float64).eps)

#: A centre or side beyond this many image sides is taken for pixels.
_FARTHEST = 2.0


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability diagram: mean score against accuracy in bins of the score, and the errors read from it.

    Bin i holds scores in (edges[i], edges[i + 1]]; a score of 0 lies in the first.

    Args:
        edges: [B + 1] from 0 to 1.
        count: [B] samples.
        weight: [B] sum of their weights; the count where none are given.
        score: [B] weighted mean score, NaN in a bin without weight.
        accuracy: [B] weighted share that is right, NaN in a bin without weight.
    """

    edges: Float
    count: Int
    weight: Float
    score: Float
    accuracy: Float

    @property
    def gap(self) -> Float:
        """[B] score - accuracy: positive where predictions are too confident, NaN in a bin without weight."""
        return self.score - self.accuracy

    @property
    def ece(self) -> float:
        """Expected calibration error (Naeini et al. 2015; Guo et al. 2017, eq. 3): the mean of |gap| over bins by weight."""
        return self._average(np.abs(self.gap))

    @property
    def mce(self) -> float:
        """Maximum calibration error (Guo et al. 2017, eq. 5): the largest |gap|."""
        used = self.weight > 0
        return float(np.abs(self.gap[used]).max()) if used.any() else float("nan")

    @property
    def overconfidence(self) -> float:
        """Mean score - accuracy over all samples: the signed gap, whatever the bins."""
        return self._average(self.gap)

    def _average(self, values: Float) -> float:
        used = self.weight > 0
        return float(np.average(values[used], weights=self.weight[used])) if used.any() else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN becomes None."""
        return {
            "edges": self.edges.tolist(),
            "count": self.count.tolist(),
            "weight": self.weight.tolist(),
            "score": [json_value(value) for value in self.score],
            "accuracy": [json_value(value) for value in self.accuracy],
            **{name: json_value(getattr(self, name)) for name in ("ece", "mce", "overconfidence")},
        }


def reliability(
    score: NDArray[Any],
    correct: NDArray[Any],
    *,
    bins: int = 15,
    adaptive: bool = False,
    weights: NDArray[Any] | None = None,
) -> Reliability:
    """Compare scores with outcomes in bins.

    Bins have equal width 1 / `bins`. With `adaptive` they hold equal mass (Nixon et al., "Measuring Calibration in Deep
    Learning", 2019): inner edge k is the smallest score up to which the samples hold at least the share k / `bins` of the
    weight. Equal scores stay together, so many ties leave fewer bins.

    Args:
        score: [N] in [0, 1].
        correct: [N] bool, or 0 and 1.
        weights: [N], at least 0; every sample counts once by default.

    Raises:
        EvaluationError: other numbers of scores, outcomes and weights, or values outside their range.
        OptionError: fewer than one bin.
    """
    _check_bins(bins)
    given, right = check_outcomes(score, correct)
    values = given.reshape(-1).astype(np.float64)
    weight = _check_weights(weights, given.shape)
    edges = _equal_mass(values, weight, bins) if adaptive else _equal_width(bins)
    index = _bin(values, edges)
    used = weight if weight is not None else np.ones(len(values))
    size = len(edges) - 1
    return _reliability(
        edges,
        np.bincount(index, minlength=size).astype(np.int64),
        _sums(index, used, size),
        _sums(index, used * values, size),
        _sums(index, used * right.reshape(-1), size),
    )


def brier(score: NDArray[Any], correct: NDArray[Any]) -> float:
    """Brier score: the mean of (score - outcome)^2, 0 at best (Brier 1950, for two outcomes). NaN without samples.

    Raises:
        EvaluationError: see `reliability`.
    """
    values, right = check_outcomes(score, correct)
    return mean((values.astype(np.float64) - right) ** 2)


@dataclass(frozen=True, slots=True)
class ClassificationCalibration:
    """How far the probabilities of C classes can be believed. NaN without samples.

    Args:
        top_label: the largest probability of each sample against whether its class is the true one.
        classes: per class, its probability against whether it is the true one, over all samples.
        brier: mean over samples of the sum over classes of (probability - indicator of truth)^2, in [0, 2] (Brier 1950).
        nll: mean negative natural logarithm of the probability of the true class.
    """

    top_label: Reliability
    classes: tuple[Reliability, ...]
    brier: float
    nll: float

    @property
    def ece(self) -> float:
        """Expected calibration error of the top label."""
        return self.top_label.ece

    @property
    def classwise_ece(self) -> float:
        """Mean over classes of the class's expected calibration error (Kull et al., "Beyond temperature scaling", 2019)."""
        return mean(np.array([item.ece for item in self.classes]))

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN becomes None."""
        return {
            "top_label": self.top_label.to_dict(),
            "classes": [item.to_dict() for item in self.classes],
            **{name: json_value(getattr(self, name)) for name in ("ece", "classwise_ece", "brier", "nll")},
        }


def classification_calibration(
    probabilities: NDArray[Any], labels: NDArray[Any], *, bins: int = 15, adaptive: bool = False
) -> ClassificationCalibration:
    """Calibration of class probabilities, such as a softmax.

    Of equal largest probabilities the first is the top label. A probability below 2.2e-16 enters the logarithm as that number.

    Args:
        probabilities: [N, C] in [0, 1], rows with sum 1.
        labels: [N] true classes, 0 to C - 1.
        bins, adaptive: see `reliability`.

    Raises:
        EvaluationError: other shapes, a label without class, or rows that are no probabilities.
        OptionError: fewer than one bin.
    """
    given = check_scores(probabilities)
    truth = np.asarray(labels)
    if given.ndim != 2 or given.shape[1] == 0 or truth.shape != given.shape[:1]:
        raise EvaluationError(
            f"probabilities have shape {list(given.shape)} and labels {list(truth.shape)}; expected [N, C] and [N]"
        )
    truth = check_labels(truth, given.shape[1])
    values = given.astype(np.float64)
    wrong = np.flatnonzero(np.abs(values.sum(axis=1) - 1) > _SUM_TOLERANCE)
    if len(wrong):
        raise EvaluationError(
            f"the probabilities of sample {wrong[0]} sum to {values[wrong[0]].sum():.4g}, expected 1; "
            "apply a softmax, or judge independent sigmoids class by class with `reliability`"
        )
    rows = np.arange(len(truth))
    top = values.argmax(axis=1)
    chosen = values[rows, truth]
    # sum over c of (p_c - y_c)^2 = sum of p_c^2 - 2 p_truth + 1
    squared = (values**2).sum(axis=1) - 2 * chosen + 1
    return ClassificationCalibration(
        top_label=reliability(values[rows, top], top == truth, bins=bins, adaptive=adaptive),
        classes=tuple(
            reliability(values[:, label], truth == label, bins=bins, adaptive=adaptive) for label in range(values.shape[1])
        ),
        brier=mean(squared),
        nll=mean(-np.log(np.maximum(chosen, _SMALLEST))),
    )


@dataclass(frozen=True, slots=True)
class DetectionCalibration:
    """How far the scores of a detector can be believed. NaN where no bin has enough samples.

    Args:
        confidence: precision over score in bins, none of them dropped.
        d_ece: detection ECE over the score alone: the mean of |mean score - precision| over bins by number of samples.
        d_ece_position: the same over bins of score, centre x, centre y, width and height; NaN without positions.
        kept, kept_position: share of the samples that lie in bins with enough of them, which alone enter the two errors.
    """

    confidence: Reliability
    d_ece: float
    d_ece_position: float
    kept: float
    kept_position: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN becomes None."""
        numbers = {name: json_value(getattr(self, name)) for name in ("d_ece", "d_ece_position", "kept", "kept_position")}
        return {**numbers, "confidence": self.confidence.to_dict()}


def detection_calibration(
    score: NDArray[Any],
    correct: NDArray[Any],
    *,
    position: Float | None = None,
    bins: int = 20,
    position_bins: Sequence[int] = (5, 5, 5, 5, 5),
    least: int = 8,
) -> DetectionCalibration:
    """D-ECE (Kueppers et al., "Multivariate Confidence Calibration for Object Detection", CVPR Workshops 2020).

    A detector may be calibrated on average and still be too sure of small objects or of those at the border, so the error is also
    measured in joint bins of score, place and size. A bin of fewer than `least` samples says little and is dropped; the error is
    the mean over the samples of the other bins, and their share is given beside it.

    Args:
        score: [N] in [0, 1].
        correct: [N] true positives; leave out predictions that do not count (matched to crowds or difficult objects).
        position: [N, 4] centre x, centre y, width, height as shares of the image's width and height. Values outside [0, 1] count
            to the nearest bin.
        bins: of the score alone.
        position_bins: number of bins in score, centre x, centre y, width, height, each of equal width.

    Raises:
        EvaluationError: other numbers of scores, outcomes and positions, or values outside their range.
        OptionError: fewer than one bin or one sample per bin.
    """
    if least < 1:
        raise OptionError(f"least must be at least 1 sample per bin, got {least}")
    confidence = reliability(score, correct, bins=bins)
    given, right = check_outcomes(score, correct)
    values, right = given.reshape(-1).astype(np.float64), right.reshape(-1)
    alone = _joint_error(_bin(values, confidence.edges), values, right, least)
    joint = (float("nan"), float("nan"))
    if position is not None:
        place = _check_position(position, len(values))
        if len(position_bins) != 5:
            raise OptionError(f"position_bins must be five numbers (score, x, y, width, height), got {list(position_bins)}")
        for number in position_bins:
            _check_bins(number)
        columns = (values, *np.clip(place, 0, 1).T)
        cells = tuple(_bin(column, _equal_width(size)) for column, size in zip(columns, position_bins, strict=True))
        joint = _joint_error(np.ravel_multi_index(cells, tuple(position_bins)), values, right, least)
    return DetectionCalibration(confidence, alone[0], joint[0], alone[1], joint[1])


def _joint_error(index: NDArray[np.intp], score: Float, correct: Mask, least: int) -> tuple[float, float]:
    """The mean |gap| over bins of at least `least` samples, and the share of the samples in them."""
    if len(index) == 0:
        return float("nan"), float("nan")
    _, cell, count = np.unique(index, return_inverse=True, return_counts=True)
    gap = np.bincount(cell, weights=score - correct)  # count * (mean score - precision)
    used = count >= least
    kept = int(count[used].sum())
    return (float(np.abs(gap[used]).sum() / kept) if kept else float("nan")), kept / len(index)


@dataclass(slots=True)
class CalibrationTally:
    """Reliability of any number of samples, such as the pixels of many images, in the memory of its bins.

    Counts are exact integers, sums of scores float64. Bins are of equal width as in `reliability`; `result` gives the same
    numbers as that function for all samples at once, up to the rounding of the sums. Tallies of several processes are merged.

    Raises:
        OptionError: fewer than one bin.
    """

    bins: int = 15
    count: Int = field(init=False)  # [B] samples
    right: Int = field(init=False)  # [B] correct ones
    total: Float = field(init=False)  # [B] sum of scores

    def __post_init__(self) -> None:
        _check_bins(self.bins)
        self.count = np.zeros(self.bins, dtype=np.int64)
        self.right = np.zeros(self.bins, dtype=np.int64)
        self.total = np.zeros(self.bins)

    def add(self, score: NDArray[Any], correct: NDArray[Any]) -> None:
        """Count samples: `score` in [0, 1] and `correct`, bool or 0 and 1, of one shape, whatever it is.

        Of a semantic map these are the largest probability of a pixel and whether its class is the true one; leave out pixels
        to ignore.

        Raises:
            EvaluationError: see `reliability`; nothing is counted then.
        """
        given, right = check_outcomes(score, correct)
        values, right = given.reshape(-1), right.reshape(-1)
        edges = _equal_width(self.bins)
        for start in range(0, len(values), _AT_ONCE):
            part = values[start : start + _AT_ONCE].astype(np.float64)
            index = _bin(part, edges)
            self.count += np.bincount(index, minlength=self.bins)
            self.right += np.bincount(index[right[start : start + _AT_ONCE]], minlength=self.bins)
            self.total += _sums(index, part, self.bins)

    def merge(self, other: CalibrationTally) -> None:
        """Add what `other` counted.

        Raises:
            EvaluationError: another number of bins.
        """
        if other.bins != self.bins:
            raise EvaluationError(f"a tally of {other.bins} bins cannot be merged into one of {self.bins}; use one number")
        self.count += other.count
        self.right += other.right
        self.total += other.total

    def result(self) -> Reliability:
        """The reliability of all samples so far."""
        weight = self.count.astype(np.float64)
        return _reliability(_equal_width(self.bins), self.count.copy(), weight, self.total, self.right.astype(np.float64))


def _check_bins(bins: int) -> None:
    if bins < 1:
        raise OptionError(f"there must be at least one bin, got {bins}")


def _check_weights(weights: NDArray[Any] | None, shape: tuple[int, ...]) -> Float | None:
    if weights is None:
        return None
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != shape:
        raise EvaluationError(f"weights have shape {list(values.shape)} and scores {list(shape)}; give one weight for each score")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise EvaluationError("a weight is negative or not finite")
    return values.reshape(-1)


def _check_position(position: Float, count: int) -> Float:
    values = np.asarray(position, dtype=np.float64)
    if values.shape != (count, 4):
        raise EvaluationError(f"positions have shape {list(values.shape)}, expected [{count}, 4]: centre x and y, width, height")
    if not (np.abs(values) <= _FARTHEST).all():
        raise EvaluationError("a position is NaN or far outside the image; divide pixels by the image's width and height")
    return values


def _equal_width(bins: int) -> Float:
    return np.linspace(0.0, 1.0, bins + 1)


def _equal_mass(score: Float, weight: Float | None, bins: int) -> Float:
    """Edges of bins that hold equal weight; none is cut through equal scores, and the last bin is never empty."""
    if len(score) == 0:
        return np.array([0.0, 1.0])
    order = np.argsort(score, kind="stable")
    mass = np.arange(1.0, len(score) + 1) if weight is None else np.cumsum(weight[order])
    targets = np.arange(1, bins) * mass[-1] / bins
    place = np.searchsorted(mass, targets, side="left")
    inner = np.unique(score[order[place]])
    # An inner edge of 0 stands beside the outer one: the first bin is then [0, 0].
    return np.concatenate([[0.0], inner[inner < score.max()], [1.0]])


def _bin(values: Float, edges: Float) -> NDArray[np.intp]:
    """[N] index of the bin (edges[i], edges[i + 1]] of each value in [0, 1]; 0 lies in the first."""
    return np.maximum(np.searchsorted(edges, values, side="left") - 1, 0)


def _sums(index: NDArray[np.intp], values: Float, bins: int) -> Float:
    """[B] sum of the values in each bin."""
    return np.bincount(index, weights=values, minlength=bins).astype(np.float64, copy=False)


def _reliability(edges: Float, count: Int, weight: Float, score: Float, right: Float) -> Reliability:
    """From sums per bin."""
    used = weight > 0
    means = [np.divide(total, weight, out=np.full(len(weight), np.nan), where=used) for total in (score, right)]
    return Reliability(edges, count, weight, *means)
