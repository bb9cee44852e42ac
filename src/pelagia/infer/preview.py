"""How much of a large image a picture of it shows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Int

__all__ = ["PICTURE_PIXELS", "nearest", "picture_size", "put_shown"]

#: Annotated pictures of larger images are shrunk to this many pixels.
PICTURE_PIXELS = 50_000_000

#: And to this side, with room for a legend near the most that JPEG can hold.
_PICTURE_SIDE = 45_000


def picture_size(width: int, height: int) -> tuple[float, tuple[int, int]]:
    """The scale of the picture of an image, at most 1, and its width and height."""
    scale = min(math.sqrt(PICTURE_PIXELS / (width * height)), _PICTURE_SIDE / max(width, height), 1.0)
    return scale, (max(round(width * scale), 1), max(round(height * scale), 1))


def nearest(shape: tuple[int, ...], scale: float, size: tuple[int, int]) -> tuple[Int, Int]:
    """Rows and columns of a map [H, W] that the rows and columns of its shrunk picture of `size` (width, height) show."""
    rows, columns = (
        np.minimum(((np.arange(count) + 0.5) / scale).astype(np.int64), length - 1)
        for count, length in zip(size[::-1], shape, strict=True)
    )
    return rows, columns


def put_shown(picture: NDArray[Any], values: NDArray[Any], corner: tuple[int, int], places: tuple[Int, Int]) -> None:
    """Copy the pixels of a block [h, w] of a map at `corner` (x, y) that its picture shows into it; `places` are of `nearest`."""
    chosen = []
    for sources, begin, length in zip(places, corner[::-1], values.shape, strict=True):
        first, last = np.searchsorted(sources, (begin, begin + length))
        chosen.append((slice(first, last), sources[first:last] - begin))
    (rows, from_rows), (columns, from_columns) = chosen
    picture[rows, columns] = values[np.ix_(from_rows, from_columns)]
