"""A second look at a scan, shrunk, for objects larger than the overlap of its tiles.

The scan is looked at again in tiles that are 4, 16, ... times as large, shown at the same network size, until one shows all of
it: a pyramid whose levels cost a sixteenth of the one before. Each level is asked only for objects that the level before cannot
be sure to see whole, those longer than its overlap. Of the finer level

- pieces, objects that no tile saw whole, go where a coarse object holds most of them, whatever their class;
- objects that a tile saw whole stay, and a coarse one that is the same, or a clump of such, is not taken; nor is one that the
  pieces already give almost exactly, for they know its border better.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core.scan import Scan
from pelagia.core.types import Instances, Int, Mask, MaskCrop, PackedCrop
from pelagia.data import geometry
from pelagia.errors import OptionError
from pelagia.infer.joining import least_share
from pelagia.infer.view_pairs import Views

__all__ = ["Enlarged", "Shrunk", "levels", "shrink", "take_larger"]

#: How many times larger the tiles of a level are than those of the one before.
_STEP = 4

#: The last level shows the whole scan in one tile; a level of _STEP that is nearly as large is left out.
_NEARLY = 1.5

#: A coarse object is one that a finer tile saw whole from this IoU on,
_SAME_IOU = 0.5

#: and one that was put together from pieces from this on.
_UNITED_IOU = 0.9

#: A coarse object of which whole objects of its class fill this share is a clump of them, seen as one from afar.
_CLUMP_SHARE = 0.5

#: Whole objects count as part of it from this share of the overlap on.
_LEAST_SIZE = 0.1

#: Bytes of the scan that are read at once to be shrunk.
_BYTES = 32 << 20


class Shrunk(Scan):
    """A scan at 1 / `factor` of its size: each pixel is the mean of factor x factor pixels; only a strip is read at a time."""

    def __init__(self, scan: Scan, factor: int) -> None:
        super().__init__(scan.path, np.zeros((1, 1, scan.channels), dtype=scan.dtype))
        self._scan, self.factor = scan, factor
        self.width, self.height = -(-scan.width // factor), -(-scan.height // factor)

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[Any]:
        """As `Scan.read`, in shrunk pixels; the last column and row repeat the scan's border where it does not fill them."""
        if width < 1 or height < 1 or x < 0 or y < 0 or x + width > self.width or y + height > self.height:
            raise OptionError(f"window x={x} y={y} {width} x {height} is outside {self.width} x {self.height} pixels")
        scan, factor = self._scan, self.factor
        result = np.empty((height, width, scan.channels), dtype=scan.dtype)
        left, wide = x * factor, min((x + width) * factor, scan.width) - x * factor
        rows = max(_BYTES // (factor * wide * scan.channels * scan.dtype.itemsize), 1)
        for top in range(0, height, rows):
            count = min(rows, height - top)
            upper = (y + top) * factor
            tall = min(upper + count * factor, scan.height) - upper
            strip = scan.read(left, upper, wide, tall)
            beyond = ((0, count * factor - tall), (0, width * factor - wide), (0, 0))
            if any(after for _, after in beyond):
                strip = np.pad(strip, beyond, mode="edge")
            small = cv2.resize(np.ascontiguousarray(strip), (width, count), interpolation=cv2.INTER_AREA)
            result[top : top + count] = small.reshape(count, width, scan.channels)
        return result

    def forget(self, *, above: int) -> None:
        """As `Scan.forget`, in shrunk pixels."""
        self._scan.forget(above=above * self.factor)


class Enlarged(MaskCrop):
    """A mask of a shrunk scan in pixels of the scan, of `size` = (width, height): each of its pixels is factor x factor of those
    that the scan has. It is held as it was found, and enlarged by the part."""

    __slots__ = ("_factor", "_shape", "_small")
    _factor: int
    _shape: tuple[int, int]
    _small: PackedCrop

    def __init__(self, small: MaskCrop, factor: int, size: tuple[int, int]) -> None:
        height, width = small.shape
        x, y = factor * small.x, factor * small.y
        shape = (min(factor * height, size[1] - y), min(factor * width, size[0] - x))
        packed = PackedCrop(small.x, small.y, small.bitmap)
        for name, value in (("x", x), ("y", y), ("_small", packed), ("_factor", factor), ("_shape", shape)):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._small, self._factor, (self.x + self._shape[1], self.y + self._shape[0]))

    @property
    def bitmap(self) -> Mask:
        """[h, w], of its own memory."""
        return self.part(slice(None), slice(None))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the bitmap."""
        return self._shape

    @property
    def area(self) -> int:
        """Number of pixels set."""
        high, wide = (np.minimum(self._factor, length - np.arange(0, length, self._factor)) for length in self._shape)
        small = self._small.bitmap
        set_in_row = self._factor * np.count_nonzero(small, axis=1) - (self._factor - wide[-1]) * small[:, -1]
        return int(high @ set_in_row)

    def part(self, rows: slice, columns: slice) -> Mask:
        """The bitmap of some rows and columns of the crop."""
        y, x = (np.arange(length)[asked] // self._factor for length, asked in zip(self._shape, (rows, columns), strict=True))
        if not len(y) or not len(x):
            return np.zeros((len(y), len(x)), dtype=np.bool_)
        return self._small.part(slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1))[np.ix_(y - y[0], x - x[0])]


def levels(size: tuple[int, int], tile: tuple[int, int]) -> list[float]:
    """How many times larger than `tile` the tiles of the coarse levels are, for a scan of that width and height."""
    whole = max(size[0] / tile[0], size[1] / tile[1])
    factors = []
    factor = float(_STEP)
    while factor * _NEARLY < whole:
        factors.append(factor)
        factor *= _STEP
    return [*factors, whole] if whole > 1 else []


def shrink(factor: float) -> int:
    """The whole number of times that a scan is shrunk for tiles `factor` times larger; the rest is left to the view."""
    return max(math.floor(factor), 1)


def take_larger(
    fine: tuple[Instances, Mask], coarse: tuple[Instances, Mask], longest: float, *, agnostic: bool = False
) -> tuple[Instances, Mask, Int]:
    """Objects, strongest first, and whether they are pieces: `fine` with those of `coarse` that are longer than `longest` pixels.

    Both come with their pieces (see `joining.join_views`), in pixels of one image. Told is also the position of each in `fine`,
    -1 for those of `coarse`.
    """
    sides = coarse[0].box_array[:, 2:] - coarse[0].box_array[:, :2]
    larger = np.flatnonzero((sides > longest).any(axis=1))
    many, found = len(fine[0]), geometry.join([fine[0], coarse[0].select(larger)])
    cut = np.concatenate([fine[1], coarse[1][larger]])
    views = Views(found, found.box_array, np.zeros(len(found), dtype=np.int64), cut[:, None], (0, 0))
    stays = np.ones(len(found), dtype=np.bool_)
    # What can be replaced, be the same or be part of a clump: pieces, and objects that are not much smaller.
    extent = (views.boxes[:many, 2:] - views.boxes[:many, :2]).max(axis=1, initial=0.0)
    candidates = np.flatnonzero(cut[:many] | (extent >= _LEAST_SIZE * longest))
    for item in range(many, len(found)):
        box = views.boxes[item]
        near = candidates[((views.boxes[candidates, :2] < box[2:]) & (views.boxes[candidates, 2:] > box[:2])).all(axis=1)]
        if not len(near):
            continue
        itself = np.full(len(near), item)
        alike = agnostic | (found.labels[near] == found.labels[item])
        shared, area, whole = views.common(near, itself)
        clump = shared[alike & ~cut[near]].sum() >= _CLUMP_SHARE * whole[0]
        if clump or (alike & (views.iou(near, itself) >= np.where(cut[near], _UNITED_IOU, _SAME_IOU))).any():
            stays[item] = False
            continue
        stays[near[cut[near] & (shared >= least_share(found) * np.maximum(area, 1e-12))]] = False
    assert found.scores is not None
    kept = np.flatnonzero(stays)
    kept = kept[np.argsort(-found.scores[kept], kind="stable")]
    return found.select(kept), cut[kept], np.where(kept < many, kept, -1)
