"""Elastic deformation as U-Net uses it: a smooth random field of displacements.

Ronneberger, Fischer and Brox, "U-Net", MICCAI 2015, section 3.1: vectors on a coarse 3 x 3 grid are drawn from a Gaussian with a
standard deviation of 10 pixels, and bicubic interpolation gives the displacement of every pixel.

A field [H, W, 2] says for each pixel of a canvas, at its centre p, that it shows what would lie at p + d(p) without it. What lies
at p' therefore moves to the p with p + d(p) = p'.
"""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Float

__all__ = ["Field", "random_field", "settle"]

#: Displacements [H, W, 2], x and y in pixels of the canvas.
Field: TypeAlias = NDArray[np.float32]

#: Points a side of the coarse grid.
_GRID = 3
#: Largest change of the displacement from a pixel to the next. Below 1 nothing folds, and `settle` converges.
_STEEPEST = 0.5
#: Halves the error at least each time: after 30 steps it is below a millionth of any displacement.
_STEPS = 30


def random_field(rng: np.random.Generator, canvas: tuple[int, int], std_px: float) -> Field:
    """[H, W, 2], displacements of a canvas of (width, height): normal on a 3 x 3 grid, bicubic between.

    Where they would change by more than half a pixel from one pixel to the next (a small canvas), the whole field is scaled down.
    """
    coarse = rng.normal(0.0, std_px, (_GRID, _GRID, 2)).astype(np.float32)
    field = np.asarray(cv2.resize(coarse, canvas, interpolation=cv2.INTER_CUBIC), dtype=np.float32)
    steps = [float(np.linalg.norm(np.diff(field, axis=axis), axis=2).max(initial=0.0)) for axis in (0, 1)]
    steepest = float(np.hypot(steps[0], steps[1]))
    return field * np.float32(_STEEPEST / steepest) if steepest > _STEEPEST else field


def settle(points: Float, field: Field) -> Float:
    """[..., 2], the p with p + d(p) = `points` [..., 2], by fixed-point iteration; outside the canvas d is that of its border."""
    found = points
    for _ in range(_STEPS):
        found = points - _at(found, field)
    return found


def _at(points: Float, field: Field) -> Float:
    """d at `points`, linear between pixel centres."""
    height, width = field.shape[:2]
    x, y = np.clip(points[..., 0] - 0.5, 0, width - 1), np.clip(points[..., 1] - 0.5, 0, height - 1)
    left, top = np.minimum(x.astype(np.int64), max(width - 2, 0)), np.minimum(y.astype(np.int64), max(height - 2, 0))
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    u, v = (x - left)[..., None], (y - top)[..., None]
    upper = field[top, left] * (1 - u) + field[top, right] * u
    lower = field[bottom, left] * (1 - u) + field[bottom, right] * u
    result: Float = upper * (1 - v) + lower * v
    return result
