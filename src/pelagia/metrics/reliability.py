"""Reliability diagrams: the mean score of predictions against the share of them that is right, in bins of the score.

A score is calibrated when, of all predictions with score p, the share p is right. Predictions are put into bins, and in each
the mean score is compared with the accuracy (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). Which
predictions are right is decided elsewhere: by the matcher for objects, by comparison with the truth for images and pixels.
Values that do not exist (no sample) are NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Float, Int
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.outcomes import check_outcomes
from pelagia.metrics.result import json_value, mean

__all__ = ["CalibrationTally", "Reliability", "bin_of", "brier", "check_bins", "equal_width", "from_sums", "reliability"]

#: Pixels that a tally takes at once; bounds its memory.
_AT_ONCE = 1 << 20


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
    check_bins(bins)
    given, right = check_outcomes(score, correct)
    values = given.reshape(-1).astype(np.float64)
    weight = _check_weights(weights, given.shape)
    edges = _equal_mass(values, weight, bins) if adaptive else equal_width(bins)
    index = bin_of(values, edges)
    used = weight if weight is not None else np.ones(len(values))
    size = len(edges) - 1
    return from_sums(
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


@dataclass(slots=True)
class CalibrationTally:
    """Reliability of any number of samples, such as the pixels of many images, in the memory of its bins.

    Counts and sums of scores are float64, in which counts are exact up to 2^53. Bins are of equal width as in `reliability`;
    `result` gives the same numbers as that function for all samples at once, up to the rounding of the sums. Tallies of several
    processes are merged.

    Raises:
        OptionError: fewer than one bin.
    """

    bins: int = 15
    _sums: dict[int | None, Float] = field(init=False, repr=False, default_factory=dict)  # each [3, B]: see `image_sums`

    def __post_init__(self) -> None:
        check_bins(self.bins)

    @property
    def sums(self) -> Float:
        """[3, B] of all samples; see `image_sums`."""
        whole: Float = np.sum([np.zeros((3, self.bins)), *self._sums.values()], axis=0)
        return whole

    def add(self, score: NDArray[Any], correct: NDArray[Any], *, image: int | None = None) -> None:
        """Count samples: `score` in [0, 1] and `correct`, bool or 0 and 1, of one shape, whatever it is.

        Of a semantic map these are the largest probability of a pixel and whether its class is the true one; leave out pixels
        to ignore. Samples of an `image` (its index) are kept apart, so that images can be weighted.

        Raises:
            EvaluationError: see `reliability`; nothing is counted then.
        """
        given, right = check_outcomes(score, correct)
        values, right = given.reshape(-1), right.reshape(-1)
        edges, sums = equal_width(self.bins), np.zeros((3, self.bins))
        for start in range(0, len(values), _AT_ONCE):
            part = values[start : start + _AT_ONCE].astype(np.float64)
            index = bin_of(part, edges)
            sums[0] += np.bincount(index, minlength=self.bins)
            sums[1] += _sums(index, part, self.bins)
            sums[2] += np.bincount(index[right[start : start + _AT_ONCE]], minlength=self.bins)
        self._put(image, sums)

    def merge(self, other: CalibrationTally) -> None:
        """Add what `other` counted; an image index means the same image in both.

        Raises:
            EvaluationError: another number of bins.
        """
        if other.bins != self.bins:
            raise EvaluationError(f"a tally of {other.bins} bins cannot be merged into one of {self.bins}; use one number")
        for image, sums in list(other._sums.items()):
            self._put(image, sums)

    def image_sums(self) -> Float:
        """[N, 3, B] of each image, zero for an index not added: samples, sum of their scores, correct ones.

        Raises:
            OptionError: something was added without `image`.
        """
        if None in self._sums:
            raise OptionError("some samples were added without an image index, so images cannot be told apart; give image=")
        count = max((image for image in self._sums if image is not None), default=-1) + 1
        stack = np.zeros((count, 3, self.bins))
        for image, sums in self._sums.items():
            stack[image] = sums
        return stack

    def result(self, sums: Float | None = None) -> Reliability:
        """The reliability of all samples so far, or of `sums` [3, B], such as a weighted sum of `image_sums`."""
        weight, score, right = self.sums if sums is None else sums
        return from_sums(equal_width(self.bins), weight.astype(np.int64), weight, score, right)

    def _put(self, image: int | None, sums: Float) -> None:
        self._sums[image] = self._sums[image] + sums if image in self._sums else sums


def check_bins(bins: int) -> None:
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


def equal_width(bins: int) -> Float:
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


def bin_of(values: Float, edges: Float) -> NDArray[np.intp]:
    """[N] index of the bin (edges[i], edges[i + 1]] of each value in [0, 1]; 0 lies in the first."""
    return np.maximum(np.searchsorted(edges, values, side="left") - 1, 0)


def _sums(index: NDArray[np.intp], values: Float, bins: int) -> Float:
    """[B] sum of the values in each bin."""
    return np.bincount(index, weights=values, minlength=bins).astype(np.float64, copy=False)


def from_sums(edges: Float, count: Int, weight: Float, score: Float, right: Float) -> Reliability:
    """From sums per bin."""
    used = weight > 0
    means = [np.divide(total, weight, out=np.full(len(weight), np.nan), where=used) for total in (score, right)]
    return Reliability(edges, count, weight, *means)
