"""Windows of an image that may be too large to hold: a TIFF or an OME-Zarr is decoded piece by piece.

    with open_scan("slide.tif") as scan:
        window = scan.read(x=4096, y=0, width=640, height=640)

Every other format, and a TIFF that is compressed in one piece, is decoded whole once.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pelagia.core import header, ome_zarr, tiff, tiff_pieces
from pelagia.core.image import MAX_PIXELS, Pixels, check_piece, is_tiff, orient, read
from pelagia.errors import ImageError, OptionError

__all__ = ["CACHE_BYTES", "SCAN_FACTOR", "WHOLE_PIXELS", "Pieces", "Scan", "open_pieces", "open_scan"]

#: Decoded pieces kept, so that overlapping windows do not decode twice; three rows of 512-pixel tiles of a 55,000-pixel RGB scan.
#: The last one is kept whatever its size.
CACHE_BYTES = 256 << 20

#: A TIFF of fewer pixels is decoded whole: that is faster than piecewise, and small enough.
WHOLE_PIXELS = 1 << 22

#: An image that is read in pieces may have so many times the pixels that may be decoded at once.
SCAN_FACTOR = 100


class Pieces(Protocol):
    """An image as stored, in a grid of pieces of `rows` x `columns` pixels, of which each can be decoded alone."""

    @property
    def width(self) -> int:
        """In pixels."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def channels(self) -> int:
        """1 or 3."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""

    @property
    def rows(self) -> int:
        """Of a piece."""

    @property
    def columns(self) -> int:
        """Of a piece."""

    @property
    def stated(self) -> tuple[int, ...]:
        """Columns, rows and lengths along other axes of a piece as the file states it: so much is decoded."""

    def piece(self, row: int, column: int) -> NDArray[Any]:
        """The pixels [h, w, C] of a piece, cut at the image's border.

        Raises:
            ImageError: its data is broken or cut short.
        """


class Scan:
    """An open image that is read in windows; made by `open_scan`, closed by `close` or at the end of a `with` block.

    One thread at a time may use it.

    Attributes:
        path: the file, or None for an image in memory.
        width: in pixels, upright.
        height: in pixels, upright.
        channels: 1 or 3.
        dtype: uint8 or uint16.
    """

    def __init__(self, path: Path | None, source: Pixels | Pieces, orientation: int = 1, stack: ExitStack | None = None) -> None:
        self.path = path
        self._source: Pixels | Pieces | None = source
        self._orientation = orientation
        self._stack = stack or ExitStack()
        self._pieces: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._held = 0
        height, width, self.channels = source.shape if isinstance(source, np.ndarray) else _shape(source)
        self.width, self.height = (height, width) if orientation >= 5 else (width, height)
        self.dtype: np.dtype[Any] = np.dtype(source.dtype)

    @classmethod
    def of(cls, image: Pixels, path: Path | None = None) -> Scan:
        """A scan over an image [H, W], [H, W, 1] or [H, W, 3] in memory."""
        return cls(path, image[..., None] if image.ndim == 2 else image)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.height, self.width, self.channels

    def read(self, x: int, y: int, width: int, height: int) -> Pixels:
        """The window [height, width, C] whose top-left pixel is column `x`, row `y`.

        The result may share memory with the scan: copy it before writing into it.

        Raises:
            OptionError: the window is empty or reaches outside the image, or the scan is closed.
            ImageError: the data of a piece is broken.
        """
        if width < 1 or height < 1 or x < 0 or y < 0 or x + width > self.width or y + height > self.height:
            raise OptionError(
                f"window x={x} y={y} {width} x {height} does not lie in the image of {self.width} x {self.height} pixels",
                where=self.path,
            )
        if self._source is None:
            raise OptionError("this scan is closed; open it again", where=self.path)
        if isinstance(self._source, np.ndarray):
            return self._source[y : y + height, x : x + width]
        # The steps of `orient`, backwards: from the upright window to the stored one.
        if self._orientation in (2, 3, 6, 7):
            x = self.width - x - width
        if self._orientation in (3, 4, 7, 8):
            y = self.height - y - height
        if self._orientation >= 5:
            x, y, width, height = y, x, height, width
        return orient(self._stored(self._source, x, y, width, height), self._orientation)

    def _stored(self, source: Pieces, x: int, y: int, width: int, height: int) -> Pixels:
        """A window of the image as stored."""
        rows, columns = source.rows, source.columns
        window = np.empty((height, width, self.channels), dtype=self.dtype)
        for row in range(y // rows, (y + height - 1) // rows + 1):
            for column in range(x // columns, (x + width - 1) // columns + 1):
                piece = self._piece(source, row, column)
                top, left = row * rows, column * columns
                y0, y1 = max(y, top), min(y + height, top + piece.shape[0])
                x0, x1 = max(x, left), min(x + width, left + piece.shape[1])
                window[y0 - y : y1 - y, x0 - x : x1 - x] = piece[y0 - top : y1 - top, x0 - left : x1 - left]
        return window

    def _piece(self, source: Pieces, row: int, column: int) -> NDArray[Any]:
        key = (row, column)
        if key in self._pieces:
            self._pieces.move_to_end(key)
            return self._pieces[key]
        piece = source.piece(row, column)
        self._pieces[key] = piece
        self._held += piece.nbytes
        while self._held > CACHE_BYTES and len(self._pieces) > 1:
            self._held -= self._pieces.popitem(last=False)[1].nbytes
        return piece

    def forget(self, *, above: int) -> None:
        """Say that no row above `above` will be read soon: pieces that end there are held no longer."""
        if self._orientation != 1:  # rows of the image are not rows of pieces
            return
        for key in [key for key in self._pieces if (key[0] + 1) * self._rows <= above]:
            self._held -= self._pieces.pop(key).nbytes

    @property
    def _rows(self) -> int:
        return self.height if self._source is None or isinstance(self._source, np.ndarray) else self._source.rows

    def close(self) -> None:
        """Close the file; an image in memory stays readable."""
        self._stack.close()
        if not isinstance(self._source, np.ndarray):
            self._source = None
        self._pieces.clear()
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _shape(source: Pieces) -> tuple[int, int, int]:
    return source.height, source.width, source.channels


def open_scan(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Scan:
    """Open an image to read it in windows.

    `max_pixels` limits what is decoded at once: the whole image, or a piece (tile, strip, chunk) of one that is stored in pieces,
    which as a whole may have `SCAN_FACTOR` times as many.

    Raises:
        ImageError: as `pelagia.core.image.read`.
    """
    found = open_pieces(path, max_pixels=max_pixels)
    return Scan.of(read(path, max_pixels=max_pixels), Path(path)) if found is None else found


def open_pieces(path: str | Path, *, max_pixels: int = MAX_PIXELS, data: bytes | None = None) -> Scan | None:
    """As `open_scan`, but None for an image that is small or is not stored in pieces, and so would be decoded whole.

    With `data` these are the bytes of the file, and `path` is what errors call it.

    Raises:
        ImageError: as `pelagia.core.image.read`, except for what decoding finds.
    """
    source = Path(path)
    with ExitStack() as stack:
        pieces, orientation = _open_pieces(source, data, stack)
        if pieces is not None and pieces.width * pieces.height > WHOLE_PIXELS:
            _check_limits(pieces, max_pixels, source)
            return Scan(source, pieces, orientation, stack.pop_all())
    return None


def _open_pieces(source: Path, data: bytes | None, stack: ExitStack) -> tuple[Pieces | None, int]:
    """The pieces of an image that is stored in such, and its orientation."""
    if data is None and source.is_dir():
        return ome_zarr.open_zarr(source), 1
    if not (is_tiff(source) if data is None else header.kind_of(data[:12]) == "tiff"):
        return None, 1
    # A stream over bytes shares their memory.
    page = stack.enter_context(tiff.open_page(source, None if data is None else io.BytesIO(data)))
    pieces = tiff_pieces.pieces_of(page)
    if pieces is not None and page.orientation >= 5 and pieces.columns == pieces.width:
        return None, page.orientation  # turned by a quarter, each window would decode every strip
    return pieces, page.orientation


def _check_limits(pieces: Pieces, max_pixels: int, source: Path) -> None:
    if pieces.width * pieces.height > SCAN_FACTOR * max_pixels:
        raise ImageError(
            f"the file states {pieces.width} x {pieces.height} pixels, more than {SCAN_FACTOR} times the limit of {max_pixels:,}"
            "; if that is meant, raise the limit (--max-pixels)",
            where=source,
        )
    check_piece(pieces.stated, max_pixels, source)
