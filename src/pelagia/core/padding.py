"""Which part of a canvas an image covers, and moving it to the upper left corner.

Models that look away from padding (DETR's attention, the proposals of Faster R-CNN) are told heights and widths: their references
lay an image into the upper left corner of the canvas and pad at the right and at the bottom. Samples and views are centred, so
they are shifted by whole pixels, which changes no value.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Float

__all__ = ["Window", "covered", "to_corner"]

#: x1, y1, x2, y2 in whole pixels.
Window: TypeAlias = tuple[int, int, int, int]

#: Share of a pixel that rounding may put beside it.
_EXACT_PX = 1e-6


def covered(matrix: Float, size: tuple[int, int], canvas: tuple[int, int]) -> Window | None:
    """The pixels of a `canvas` (width, height) that an image of `size` (width, height) covers, wholly or in part.

    `matrix` [2, 3] maps the image to the canvas. None if the image is turned by other than right angles (no rectangle shows it),
    or if nothing of it is on the canvas.
    """
    linear = np.abs(matrix[:, :2])
    if (linear.min(axis=1) > _EXACT_PX * linear.max()).any():
        return None
    corners = np.array([[0.0, 0.0], size]) @ matrix[:, :2].T + matrix[:, 2]
    low = np.clip(np.floor(corners.min(axis=0) + _EXACT_PX), 0, canvas).astype(int).tolist()
    high = np.clip(np.ceil(corners.max(axis=0) - _EXACT_PX), 0, canvas).astype(int).tolist()
    if low[0] >= high[0] or low[1] >= high[1]:
        return None
    return low[0], low[1], high[0], high[1]


def to_corner(image: NDArray[Any], window: Window, fill: int) -> NDArray[Any]:
    """`image` [H, W, ...] with the pixels of `window` in its upper left corner and `fill` elsewhere."""
    x1, y1, x2, y2 = window
    if (x1, y1) == (0, 0):
        return image
    moved = np.full_like(image, fill)
    moved[: y2 - y1, : x2 - x1] = image[y1:y2, x1:x2]
    return moved
