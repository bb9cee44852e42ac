"""A TIFF in pieces that are decoded one by one: its tiles, blocks of its strips, or blocks of rows of uncompressed data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.tiff import BROKEN, TiffPage, decode_segment, to_pixels
from pelagia.errors import ImageError

__all__ = ["TiffPieces", "pieces_of"]

#: Most rows and pixels that are read at once where the file leaves the choice: strips of a few rows, or uncompressed data.
_BLOCK_ROWS, _BLOCK_PIXELS = 256, 1 << 23


@dataclass(frozen=True)
class TiffPieces:
    """The pieces of a page as stored: `rows` x `columns` pixels each, cut at the image's right and lower border.

    `strips` is how many strips make a piece, 0 for tiles and for `raw` data, whose rows lie one after the other in the file.
    """

    page: TiffPage
    rows: int
    columns: int
    strips: int = 0
    raw: bool = False

    @property
    def width(self) -> int:
        """Of the image as stored, in pixels."""
        return self.page.width

    @property
    def height(self) -> int:
        """Of the image as stored, in pixels."""
        return self.page.height

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.page.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        return self.page.dtype

    @property
    def stated(self) -> tuple[int, ...]:
        """Columns, rows and planes of a piece as the file states it."""
        return (self.columns, self.rows) if self.raw or self.strips else self.page.piece

    def piece(self, row: int, column: int) -> NDArray[Any]:
        """The pixels [h, w, C] of a piece.

        Raises:
            ImageError: its data is broken or cut short.
        """
        planes = [self._plane(plane, row, column) for plane in self.page.planes]
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    def _plane(self, plane: Any, row: int, column: int) -> NDArray[Any]:
        """The piece of one page: its samples, which may lie apart, together."""
        inner = self.page.page
        apart = int(inner.samplesperpixel) if inner.planarconfig == 2 else 1
        try:
            samples = [(self._raw if self.raw else self._decoded)(plane, row, column, sample) for sample in range(apart)]
            return to_pixels(samples[0] if apart == 1 else np.concatenate(samples, axis=2), inner)
        except BROKEN as error:
            raise ImageError(f"cannot be decoded ({error}); copy or save the file again", where=self.page.path) from error

    def _decoded(self, plane: Any, row: int, column: int, sample: int) -> NDArray[Any]:
        page = self.page
        height, width = min(self.rows, page.height - row * self.rows), min(self.columns, page.width - column * self.columns)
        if not self.strips:
            across, down = -(-page.width // self.columns), -(-page.height // self.rows)
            return decode_segment(page, plane, (sample * down + row) * across + column)[:height, :width]
        count = -(-page.height // int(page.page.rowsperstrip))
        first, last = row * self.strips, min((row + 1) * self.strips, count)
        strips = [decode_segment(page, plane, sample * count + index) for index in range(first, last)]
        return (strips[0] if len(strips) == 1 else np.concatenate(strips))[:height]

    def _raw(self, plane: Any, row: int, column: int, sample: int) -> NDArray[Any]:
        page, inner = self.page, self.page.page
        samples = 1 if inner.planarconfig == 2 else int(inner.samplesperpixel)
        kind = np.dtype(inner.parent.byteorder + inner.dtype.char)
        line = page.width * samples * kind.itemsize
        height = min(self.rows, page.height - row * self.rows)
        handle = inner.parent.filehandle
        handle.seek(int(plane.dataoffsets[0]) + (sample * page.height + row * self.rows) * line)
        data = handle.read(height * line)
        if len(data) < height * line:
            raise ImageError("cut short: pixel data is missing at the end; copy the file again", where=page.path)
        return np.frombuffer(data, kind).reshape(height, page.width, samples).astype(kind.newbyteorder("="), copy=False)


def pieces_of(page: TiffPage) -> TiffPieces | None:
    """How to read the page in pieces; None where it is stored in one that is compressed."""
    inner = page.page
    block = max(min(_BLOCK_ROWS, _BLOCK_PIXELS // page.width), 1)
    if inner.bitspersample in (8, 16) and all(_is_raw(page, plane) for plane in page.planes):
        return TiffPieces(page, min(block, page.height), page.width, raw=True)
    if inner.is_tiled:
        rows, columns = int(inner.tilelength), int(inner.tilewidth)
        if rows < 1 or columns < 1:
            raise ImageError(f"the header states tiles of {columns} x {rows} pixels; save it again", where=page.path)
        return TiffPieces(page, rows, columns) if rows < page.height or columns < page.width else None
    rows = int(inner.rowsperstrip)
    if not 0 < rows < page.height:
        return None
    strips = max(block // rows, 1)
    return TiffPieces(page, strips * rows, page.width, strips)


def _is_raw(page: TiffPage, plane: Any) -> bool:
    """Whether the samples of a plane stand in the file row by row as they are, none left out."""
    inner = page.page
    plain = inner.compression == 1 and inner.predictor == 1 and inner.fillorder == 1 and not inner.is_subsampled
    if inner.is_tiled or not plain or inner.dtype is None or inner.dtype.itemsize * 8 != inner.bitspersample:
        return False
    offsets, counts = plane.dataoffsets, plane.databytecounts
    joined = all(start + count == following for start, count, following in zip(offsets, counts, offsets[1:], strict=False))
    stored = page.width * page.height * int(inner.samplesperpixel) * inner.dtype.itemsize
    return joined and len(offsets) == len(counts) > 0 and all(counts) and sum(counts) >= stored
