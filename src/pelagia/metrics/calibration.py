"""How far a score can be read as a probability: calibration errors of class probabilities and of detections.

The reliability diagrams that they are read from, and the words, stand in `pelagia.metrics.reliability`. Values that do not exist
(no sample) are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Float, Int, Mask
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.outcomes import check_labels, check_outcomes, check_scores
from pelagia.metrics.reliability import Reliability, bin_of, check_bins, equal_width, from_sums, reliability
from pelagia.metrics.result import json_value, mean

__all__ = [
    "ClassificationCalibration",
    "DetectionCalibration",
    "PlacedScores",
    "classification_calibration",
    "detection_calibration",
    "place_scores",
]

#: Rows of class probabilities may miss the sum 1 by this much: a softmax in half precision does.
_SUM_TOLERANCE = 5e-3

#: Smallest probability that enters a logarithm.
_SMALLEST = float(np.finfo(np.float64).eps)

#: A centre or side beyond this many image sides is taken for pixels.
_FARTHEST = 2.0


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


@dataclass(frozen=True, slots=True, eq=False)
class PlacedScores:
    """Detections in their bins, put there once, so that the errors of any weighting of images can be read.

    Args:
        score, correct: [N], see `detection_calibration`.
        image: [N] index of the image of each.
        edges, bin: of the score alone, and the bin of each detection [N].
        cell: [N] the joint bin of score, place and size, 0 to the number of bins in use; None without positions.
        least: samples below which a bin is dropped.
    """

    score: Float
    correct: Mask
    image: Int
    edges: Float
    bin: NDArray[np.intp]
    cell: NDArray[np.intp] | None
    least: int

    def result(self, weights: Float | None = None) -> DetectionCalibration:
        """The errors when image n counts weights[n] times, each once by default."""
        heavy = np.ones(len(self.score)) if weights is None else weights[self.image]
        size = len(self.edges) - 1
        used = np.bincount(self.bin[heavy > 0], minlength=size).astype(np.int64)
        sums = (np.bincount(self.bin, part, size) for part in (heavy, heavy * self.score, heavy * self.correct))
        confidence = from_sums(self.edges, used, *(part.astype(np.float64, copy=False) for part in sums))
        alone = _joint_error(self.bin, self, heavy)
        joint = (float("nan"), float("nan")) if self.cell is None else _joint_error(self.cell, self, heavy)
        return DetectionCalibration(confidence, alone[0], joint[0], alone[1], joint[1])


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
    placed = place_scores(score, correct, position=position, bins=bins, position_bins=position_bins, least=least)
    return placed.result()


def place_scores(
    score: NDArray[Any],
    correct: NDArray[Any],
    image: Int | None = None,
    *,
    position: Float | None = None,
    bins: int = 20,
    position_bins: Sequence[int] = (5, 5, 5, 5, 5),
    least: int = 8,
) -> PlacedScores:
    """Put detections into bins; see `detection_calibration`.

    Args:
        image: [N] index of the image of each; by default all are of one.
    """
    if least < 1:
        raise OptionError(f"least must be at least 1 sample per bin, got {least}")
    check_bins(bins)
    given, right = check_outcomes(score, correct)
    values, right = given.reshape(-1).astype(np.float64), right.reshape(-1)
    image = np.zeros(len(values), dtype=np.int64) if image is None else image
    edges, cell = equal_width(bins), None
    if position is not None:
        place = _check_position(position, len(values))
        if len(position_bins) != 5:
            raise OptionError(f"position_bins must be five numbers (score, x, y, width, height), got {list(position_bins)}")
        for number in position_bins:
            check_bins(number)
        columns = (values, *np.clip(place, 0, 1).T)
        cells = tuple(bin_of(column, equal_width(size)) for column, size in zip(columns, position_bins, strict=True))
        _, cell = np.unique(np.ravel_multi_index(cells, tuple(position_bins)), return_inverse=True)
    return PlacedScores(values, right, image, edges, bin_of(values, edges), cell, least)


def _joint_error(index: NDArray[np.intp], placed: PlacedScores, heavy: Float) -> tuple[float, float]:
    """The mean |gap| over bins of at least `least` samples, and the share of the samples in them."""
    whole = float(heavy.sum())
    if whole == 0:
        return float("nan"), float("nan")
    count = np.bincount(index, heavy)
    gap = np.bincount(index, heavy * (placed.score - placed.correct))  # count * (mean score - precision)
    used = count >= placed.least
    kept = float(count[used].sum())
    return (float(np.abs(gap[used]).sum() / kept) if kept else float("nan")), kept / whole


def _check_position(position: Float, count: int) -> Float:
    values = np.asarray(position, dtype=np.float64)
    if values.shape != (count, 4):
        raise EvaluationError(f"positions have shape {list(values.shape)}, expected [{count}, 4]: centre x and y, width, height")
    if not (np.abs(values) <= _FARTHEST).all():
        raise EvaluationError("a position is NaN or far outside the image; divide pixels by the image's width and height")
    return values
