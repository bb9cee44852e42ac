"""Resampling of what a network answers on its own grid to the pixels of an original."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Float

__all__ = ["bilinear"]


def bilinear(grid: NDArray[Any], y: Float, x: Float) -> NDArray[np.float32]:
    """[h, w] values at the points (i, j) -> [R, C], interpolated at all pairs of `y` [R] and `x` [C]; constant beyond the border.

    The value at (y, x) between the rows i, i + 1 and the columns j, j + 1 is the mean of the four, weighted by (1 - |y - row|)
    (1 - |x - column|). Rows are interpolated first, so that the cost is two multiplications for each result.
    """
    values = grid.astype(np.float32, copy=False)
    low, high, share = _neighbours(y, values.shape[0])
    values = values[low] + (values[high] - values[low]) * share[:, None]  # [R, w]
    low, high, share = _neighbours(x, values.shape[1])
    left = values[:, low]
    found: NDArray[np.float32] = left + (values[:, high] - left) * share
    return found


def _neighbours(position: Float, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The two points on either side of each position, and how far it is from the first to the second."""
    inside = np.clip(position, 0, count - 1)
    low = inside.astype(np.intp)
    return low, np.minimum(low + 1, count - 1), (inside - low).astype(np.float32)
