"""Windows of an image that may be too large to hold: a tiled or striped TIFF is decoded piece by piece.

    with open_scan("slide.tif") as scan:
        window = scan.read(x=4096, y=0, width=640, height=640)

Every other format, and a TIFF that is stored in one piece or turned by its EXIF orientation, is decoded whole once.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pelagia.core import tiff
from pelagia.core.image import Pixels, image_size, read
from pelagia.errors import ImageError, OptionError

__all__ = ["CACHE_BYTES", "WHOLE_PIXELS", "Scan", "open_scan"]

#: Decoded pieces kept, so that overlapping windows do not decode twice; two rows of 512-pixel tiles of a 24,000-pixel RGB scan.
CACHE_BYTES = 128 << 20

#: A TIFF of fewer pixels is decoded whole: that is faster than piecewise, and small enough.
WHOLE_PIXELS = 1 << 22

#: A piece (tile or strip) of more pixels is refused: it would defeat the reading in windows.
_PIECE_PIXELS = 1 << 28


class Scan:
    """An open image that is read in windows; made by `open_scan`, closed by `close` or at the end of a `with` block.

    Attributes:
        path: the file, or None for an image in memory.
        width: in pixels, upright.
        height: in pixels, upright.
        channels: 1 or 3.
        dtype: uint8 or uint16.
    """

    def __init__(
        self, path: Path | None, size: tuple[int, int], whole: Pixels | None, page: tiff.TiffPage | None, stack: ExitStack
    ) -> None:
        self.path = path
        self.width, self.height = size
        self._whole, self._page, self._stack = whole, page, stack
        self._pieces: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._held = 0
        if whole is not None:
            self.channels, self.dtype = whole.shape[2], np.dtype(whole.dtype)
        else:
            assert page is not None
            self.channels, self.dtype = page.channels, page.dtype

    @classmethod
    def of(cls, image: Pixels, path: Path | None = None) -> Scan:
        """A scan over an image [H, W], [H, W, 1] or [H, W, 3] in memory."""
        whole = image[..., None] if image.ndim == 2 else image
        return cls(path, (whole.shape[1], whole.shape[0]), whole, None, ExitStack())

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
        if self._whole is not None:
            return self._whole[y : y + height, x : x + width]
        if self._page is None:
            raise OptionError("this scan is closed; open it again", where=self.path)
        page = self._page.page
        rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        window = np.empty((height, width, self.channels), dtype=self.dtype)
        for row in range(y // rows, (y + height - 1) // rows + 1):
            for column in range(x // columns, (x + width - 1) // columns + 1):
                piece = self._piece(row, column)
                top, left = row * rows, column * columns
                y0, y1 = max(y, top), min(y + height, top + piece.shape[0])
                x0, x1 = max(x, left), min(x + width, left + piece.shape[1])
                window[y0 - y : y1 - y, x0 - x : x1 - x] = piece[y0 - top : y1 - top, x0 - left : x1 - left]
        return window

    def _piece(self, row: int, column: int) -> NDArray[Any]:
        """One tile or strip, decoded, cut at the image's border."""
        key = (row, column)
        if key in self._pieces:
            self._pieces.move_to_end(key)
            return self._pieces[key]
        assert self._page is not None
        piece = tiff.read_piece(self._page, row, column)
        self._pieces[key] = piece
        self._held += piece.nbytes
        while self._held > CACHE_BYTES and len(self._pieces) > 1:
            self._held -= self._pieces.popitem(last=False)[1].nbytes
        return piece

    def close(self) -> None:
        """Close the file; an image in memory stays readable."""
        self._stack.close()
        self._page = None
        self._pieces.clear()
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_scan(path: str | Path, *, max_pixels: int = 1_000_000_000) -> Scan:
    """Open an image to read it in windows.

    `max_pixels` limits what is decoded whole; a TIFF in tiles or strips may have any size.

    Raises:
        ImageError: as `pelagia.core.image.read`.
    """
    source = Path(path)
    width, height = image_size(source)
    with ExitStack() as stack:
        with open(source, "rb") as stream:
            is_tiff = stream.read(4)[:2] in (b"II", b"MM")
        if is_tiff and width * height > WHOLE_PIXELS:
            page = stack.enter_context(tiff.open_page(source))
            if page.orientation == 1 and tiff.in_pieces(page, _PIECE_PIXELS):
                return Scan(source, (width, height), None, page, stack.pop_all())
    try:
        return Scan.of(read(source, max_pixels=max_pixels), source)
    except ImageError as error:
        if is_tiff and width * height > max_pixels:
            raise ImageError(
                f"{width} x {height} pixels in one piece, more than the limit of {max_pixels:,}; save it as a tiled TIFF, "
                "or raise the limit",
                where=source,
            ) from error
        raise
