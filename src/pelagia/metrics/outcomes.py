"""Checks of what measures and maps of scores are given: scores, whether each prediction is right, and its class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Int, Mask
from pelagia.errors import EvaluationError

__all__ = ["check_labels", "check_outcomes", "check_scores"]

#: Interpolated probabilities may leave [0, 1] by rounding; so much is cut off without a word.
_ROUNDING = 1e-6


def check_scores(score: NDArray[Any]) -> NDArray[Any]:
    """`score` as an array, of whatever shape and number type, all in [0, 1]; what lies outside by up to 1e-6 is put on the end.

    Raises:
        EvaluationError: not numbers, NaN, or outside [0, 1].
    """
    values = np.asarray(score)
    if values.dtype.kind not in "fiub":
        raise EvaluationError(f"scores must be real numbers, got an array of {values.dtype}")
    if values.size == 0:
        return values
    low, high = float(values.min()), float(values.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN fails both
        raise EvaluationError("a score is NaN or lies outside 0 to 1; logits must go through a sigmoid or a softmax first")
    return values if low >= 0 and high <= 1 else np.clip(values, 0, 1)


def check_outcomes(score: NDArray[Any], correct: NDArray[Any]) -> tuple[NDArray[Any], Mask]:
    """Scores and outcomes of one shape.

    Raises:
        EvaluationError: shapes that differ, scores that are none (see `check_scores`), or outcomes other than 0 and 1.
    """
    values, right = check_scores(score), np.asarray(correct)
    if values.shape != right.shape:
        raise EvaluationError(
            f"scores have shape {list(values.shape)} and outcomes {list(right.shape)}; give one outcome for each score"
        )
    if right.dtype != np.bool_ and not ((right == 0) | (right == 1)).all():
        raise EvaluationError("an outcome is neither right (1) nor wrong (0)")
    return values, right.astype(np.bool_, copy=False)


def check_labels(labels: NDArray[Any], classes: int) -> Int:
    """Labels as int64, all in 0 to `classes` - 1.

    Raises:
        EvaluationError: not whole numbers, or a label without class.
    """
    values = np.asarray(labels)
    if values.size and values.dtype.kind not in "iu":
        raise EvaluationError(f"labels must be whole numbers, got an array of {values.dtype}")
    bad = np.flatnonzero((values < 0) | (values >= classes))
    if len(bad):
        raise EvaluationError(f"label {values.reshape(-1)[bad[0]]} at {bad[0]}, but there are {classes} classes")
    return values.astype(np.int64)
