"""A scan at the scale of a network, of which a tile shows a part.

The canvas is what the network would be given if its input could be of any size: the scan, scaled, continued to a whole number of
strides. A tile is a window of it that begins at a multiple of the stride, so that a tile has the network's grid of the whole, and
a convolution finds in it what it finds in the whole. What surrounds the scan is the same for both: the fill value, or with a
margin first the mirror image. At a scale of 1, or a whole fraction, a tile holds the very pixels of the canvas; at others
resampling may round an intensity otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.image import normalise
from pelagia.core.scan import Scan
from pelagia.core.warp import warp

__all__ = ["Canvas"]


@dataclass(frozen=True)
class Canvas:
    """A scan as a network sees it.

    Args:
        scan: the image.
        scale: pixels of the canvas per pixel of the scan.
        tile: width and height of what the network answers for at once, in pixels of the canvas.
        margin: context around a tile, in pixels of the canvas.
        stride: tiles begin at its multiples.
    """

    scan: Scan
    scale: float
    tile: tuple[int, int]
    margin: int
    stride: int

    @classmethod
    def of(cls, scan: Scan, card: ModelCard, tile: tuple[int, int]) -> Canvas:
        """The canvas for a model whose tiles show `tile` = (width, height) pixels of the scan."""
        height, width = (side - 2 * card.margin for side in card.input_size)
        return cls(scan, width / tile[0], (width, height), card.margin, card.stride)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the canvas: a tile and so many strides that the scan is covered."""
        sides = zip((self.scan.width, self.scan.height), self.tile, strict=True)
        width, height = (
            tile + self.stride * math.ceil(max(length * self.scale - tile, 0.0) / self.stride - 1e-9) for length, tile in sides
        )
        return width, height

    def read(self, x: int, y: int) -> NDArray[Any]:
        """[H, W, C], the network's input for the tile whose top-left pixel is column `x`, row `y` of the canvas."""
        (left, before_x, after_x, width), (top, before_y, after_y, height) = (
            self._source(offset, side, length)
            for offset, side, length in zip((x, y), self.tile, (self.scan.width, self.scan.height), strict=True)
        )
        part: NDArray[Any] = self.scan.read(left, top, width, height)
        if before_x or after_x or before_y or after_y:
            part = np.pad(part, ((before_y, after_y), (before_x, after_x), (0, 0)), mode="symmetric")
        # The window begins at (left - before_x, top - before_y) of the scan.
        shift = [self.margin - offset + self.scale * origin for offset, origin in ((x, left - before_x), (y, top - before_y))]
        matrix = np.array([[self.scale, 0.0, shift[0]], [0.0, self.scale, shift[1]]])
        return warp(part, matrix, (self.tile[0] + 2 * self.margin, self.tile[1] + 2 * self.margin))

    def images(self, offsets: Iterable[tuple[int, int]], card: ModelCard) -> Iterator[NDArray[np.float32]]:
        """The normalised inputs [3, H, W] for tiles that begin at these (x, y), row after row."""
        for x, y in offsets:
            self.scan.forget(above=max(math.floor((y - 2 * self.margin) / self.scale), 0))
            yield normalise(self.read(x, y), card.normalisation)

    def _source(self, offset: int, side: int, length: int) -> tuple[int, int, int, int]:
        """Along one axis: where the pixels of the scan begin that a tile sees, how many mirrored ones come before and after them,
        and how many they are."""
        # Shrinking averages over blocks counted from the scan's corner, so windows begin at a block.
        block = max(math.floor(1 / self.scale + 1e-9), 1)
        reach = 0 if self.scale == 1 else 2 * block
        around = block * math.ceil(self.margin / self.scale / block)
        low = block * math.floor(((offset - self.margin) / self.scale - reach) / block + 1e-9)
        high = block * math.ceil(((offset + side + self.margin) / self.scale + reach) / block - 1e-9)
        begin, end = max(low, 0), min(high, length)
        return begin, min(begin - low, around), min(high - end, around), end - begin

    def frame(self, x: int, y: int, window: tuple[int, int, int, int]) -> Frame:
        """From the input of the tile at (`x`, `y`) to pixels of a window x1, y1, x2, y2 of the scan."""
        back = 1 / self.scale
        left, top = ((offset - self.margin) * back - window[axis] for axis, offset in enumerate((x, y)))
        matrix = np.array([[back, 0.0, left], [0.0, back, top]])
        return Frame(matrix, window[2] - window[0], window[3] - window[1])
