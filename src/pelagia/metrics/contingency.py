"""How two maps of ids share their pixels: what panoptic quality and scores of label images are counted from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Float, Int
from pelagia.errors import EvaluationError, OptionError

__all__ = ["Contingency", "checked_weights", "contingency", "per_id", "ratio"]


@dataclass(frozen=True, slots=True)
class Contingency:
    """How many pixels each id of one map shares with each id of another: the pairs that occur, K of them.

    Args:
        truth_ids, predicted_ids: [T], [P] the ids that occur, ascending; 0 stands first if it occurs.
        truth, predicted: [K] indices into them.
        pixels: [K] number of pixels, at least 1.
    """

    truth_ids: Int
    predicted_ids: Int
    truth: Int
    predicted: Int
    pixels: Int

    @property
    def truth_area(self) -> Int:
        """[T] pixels of each id."""
        return per_id(self.truth, self.pixels, len(self.truth_ids))

    @property
    def predicted_area(self) -> Int:
        """[P] pixels of each id."""
        return per_id(self.predicted, self.pixels, len(self.predicted_ids))


def per_id(index: Int, pixels: Int, count: int) -> Int:
    """[count] sum of `pixels` at each index."""
    return np.bincount(index, weights=pixels, minlength=count).astype(np.int64)


def _size(array: NDArray[Any]) -> str:
    height, width = array.shape
    return f"{height} x {width} (H x W)"


def contingency(truth: NDArray[Any], predicted: NDArray[Any], *, where: str | None = None) -> Contingency:
    """The contingency table of two maps of ids [H, W], in time linear in pixels when neighbouring pixels mostly agree.

    Raises:
        EvaluationError: an array is not [H, W], not of integers, or holds a negative id, or the sizes differ.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    for array, what in ((truth, "truth"), (predicted, "prediction")):
        if array.ndim != 2:
            raise EvaluationError(f"the {what} has shape {list(array.shape)}; give a map of ids [H, W]", where=where)
        if not np.issubdtype(array.dtype, np.integer):
            raise EvaluationError(f"the {what} holds {array.dtype} values; ids are integers, 0 where nothing is", where=where)
    if truth.shape != predicted.shape:
        raise EvaluationError(
            f"the truth is {_size(truth)}, the prediction {_size(predicted)}; bring both to one size", where=where
        )
    left, right = truth.ravel(), predicted.ravel()
    # Runs of equal pixels are counted at once, so that only runs, far fewer than pixels, are sorted.
    begins = np.ones(len(left), dtype=np.bool_)
    begins[1:] = left[1:] != left[:-1]
    begins[1:] |= right[1:] != right[:-1]
    start = np.flatnonzero(begins)
    length = np.diff(start, append=len(left))
    truth_ids, row = np.unique(left[start], return_inverse=True)
    predicted_ids, column = np.unique(right[start], return_inverse=True)
    for ids, what in ((truth_ids, "truth"), (predicted_ids, "prediction")):
        if len(ids) and not 0 <= int(ids[0]) <= int(ids[-1]) <= np.iinfo(np.int64).max:
            raise EvaluationError(f"the {what} holds ids from {ids[0]} to {ids[-1]}; ids are 0 or positive", where=where)
    width = max(len(predicted_ids), 1)
    cell, inverse = np.unique(row * width + column, return_inverse=True)
    pixels = per_id(inverse, length, len(cell))
    return Contingency(truth_ids.astype(np.int64), predicted_ids.astype(np.int64), cell // width, cell % width, pixels)


def checked_weights(weights: Int | Float | None, images: int) -> Int:
    """[N] how often each image counts: once, or as a bootstrap drew it.

    Raises:
        OptionError: not one whole number >= 0 for each image.
    """
    if weights is None:
        return np.ones(images, dtype=np.int64)
    times = np.asarray(weights)
    usable = times.shape == (images,) and times.dtype.kind in "iuf" and bool(np.isfinite(times).all())
    if not usable or (times < 0).any() or (times != np.floor(times)).any():
        raise OptionError(f"weights must be {images} whole numbers, 0 or above, one for each image")
    counts: Int = times.astype(np.int64)
    return counts


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> Float:
    """part / whole, NaN where whole is 0."""
    share: Float = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return share
