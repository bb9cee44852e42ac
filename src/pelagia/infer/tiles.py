"""Tiles over a large image: where they lie, and which of them answers for a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pelagia.errors import OptionError

__all__ = ["Tile", "lay_tiles", "owned"]


@dataclass(frozen=True, slots=True)
class Tile:
    """A window of an image, in its pixels; it may reach beyond the right and the lower edge."""

    x: int
    y: int
    width: int
    height: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2."""
        return self.x, self.y, self.x + self.width, self.y + self.height


def lay_tiles(image: tuple[int, int], tile: tuple[int, int], overlap: int, multiple: int = 1) -> list[Tile]:
    """Tiles of one size that cover an image, row by row, evenly spread; sizes are width and height.

    Neighbours overlap by `overlap` pixels at least. Offsets are multiples of `multiple`: a network of that stride then sees the
    same grid in every tile; the last tile of a row or column may therefore stick out, by less than `multiple`.

    Raises:
        OptionError: the overlap leaves no step forward.
    """
    most = min(tile) - multiple
    if not 0 <= overlap <= most:
        raise OptionError(
            f"an overlap of {overlap} px does not fit tiles of {tile[0]} x {tile[1]} px; at most {most} px is possible"
        )
    columns, rows = (_offsets(length, side, overlap, multiple) for length, side in zip(image, tile, strict=True))
    return [Tile(x, y, *tile) for y in rows for x in columns]


def _offsets(length: int, size: int, overlap: int, multiple: int) -> list[int]:
    # In units of `multiple`: the last offset is rounded up, the step down, so coverage and overlap are kept.
    last = -(-max(length - size, 0) // multiple)
    step = max((size - overlap) // multiple, 1)
    count = -(-last // step)
    return [index * last // max(count, 1) * multiple for index in range(count + 1)]


def owned(tiles: Sequence[Tile], size: tuple[int, int]) -> list[tuple[tuple[int, int, int, int], Tile]]:
    """For each tile the window x1, y1, x2, y2 of an image of that width and height for whose pixels it answers, and the tile.

    The windows part the image: neighbours cut their overlap in the middle, so that every pixel lies deep in its tile.
    """
    cuts = []
    for axis, length in enumerate(size):
        spans = sorted({(tile.box[axis], tile.box[axis + 2]) for tile in tiles})
        ends = [(first[1] + second[0]) // 2 for first, second in pairwise(spans)]
        cuts.append({span: (a, b) for span, a, b in zip(spans, [0, *ends], [*ends, length], strict=True)})
    windows = []
    for tile in tiles:
        (x1, x2), (y1, y2) = (cuts[axis][tile.box[axis], tile.box[axis + 2]] for axis in (0, 1))
        windows.append(((x1, y1, x2, y2), tile))
    return windows
