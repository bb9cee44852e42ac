"""The first page of a TIFF as 8- or 16-bit grey or RGB.

tifffile finds the directory and imagecodecs decodes; what stands here is the meaning of the samples (photometric
interpretation, alpha, palette, planar layout) as the TIFF 6.0 specification gives it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from pelagia.errors import ImageError

__all__ = ["TiffPage", "in_pieces", "open_page", "over_white", "read_page", "read_piece", "to_pixels"]

#: What tifffile and imagecodecs raise on broken files (TiffFileError is a ValueError, codec errors are RuntimeErrors).
BROKEN = (ValueError, RuntimeError, OSError, KeyError, IndexError, TypeError, struct.error, ZeroDivisionError, MemoryError)

_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6


@dataclass(frozen=True)
class TiffPage:
    """The first page of an open TIFF: `width`, `height` as stored, EXIF `orientation`, `channels` after reading (1 or 3)."""

    path: Path
    page: Any
    width: int
    height: int
    orientation: int
    channels: int
    dtype: np.dtype[Any]


@contextmanager
def open_page(path: Path) -> Iterator[TiffPage]:
    """Open a TIFF and look at its first page without decoding it.

    Raises:
        ImageError: not a readable TIFF, or samples of a kind that is not supported (the message says what to convert to).
    """
    try:
        tiff = tifffile.TiffFile(path)
    except BROKEN as error:
        raise ImageError(f"not a readable TIFF ({error}); save it again", where=path) from error
    with tiff:
        try:
            page = tiff.pages[0]
            tag = page.tags.get(274)
            orientation = int(tag.value) if tag is not None else 1
            width, height = int(page.imagewidth), int(page.imagelength)
            channels = _check(page, path)  # a broken tag may hold several values, or none
            dtype = np.dtype(np.uint16 if page.bitspersample > 8 and page.photometric != _PALETTE else np.uint8)
        except BROKEN as error:
            raise ImageError(f"the first page of this TIFF is broken ({error}); save it again", where=path) from error
        yield TiffPage(path, page, width, height, orientation if 1 <= orientation <= 8 else 1, channels, dtype)


def _check(page: Any, path: Path) -> int:
    """Channels after reading; raises for what cannot be shown as 8- or 16-bit grey or RGB."""
    if page.imagewidth < 1 or page.imagelength < 1:
        raise ImageError(f"the header states {page.imagewidth} x {page.imagelength} pixels", where=path)
    if page.imagedepth != 1:
        raise ImageError("the first page is a volume; save its planes as images of their own", where=path)
    kind = np.dtype(page.dtype).kind if page.dtype is not None else "?"
    if kind not in "ub" or page.bitspersample > 16:
        raise ImageError(
            f"samples are {page.dtype}; expected 8 or 16 bit unsigned integers. Choose an intensity window and save as 16 bit, "
            "for example np.clip((v - low) / (high - low) * 65535, 0, 65535).astype('uint16')",
            where=path,
        )
    samples, photometric = int(page.samplesperpixel), int(page.photometric)
    needed = {_MINISWHITE: 1, _MINISBLACK: 1, _RGB: 3, _PALETTE: 1, _SEPARATED: 4, _YCBCR: 3}.get(photometric)
    if needed is None or samples < needed or samples - needed > 1:
        raise ImageError(
            f"{samples} samples a pixel with photometric interpretation {photometric}; expected grey or RGB, with or without "
            "alpha. Save the channels that you need as grey or RGB",
            where=path,
        )
    return 3 if needed > 1 or photometric == _PALETTE else 1


def to_pixels(data: NDArray[Any], page: Any) -> NDArray[Any]:
    """Decoded samples [H, W] or [H, W, S] of `page` -> [H, W, 1 or 3], uint8 or uint16.

    White-is-zero is inverted, 1-bit becomes 0 and 255, a palette is looked up (its upper 8 bits), CMYK becomes
    RGB = (1 - C) (1 - K), alpha is laid over white.
    """
    data = data[..., None] if data.ndim == 2 else data
    bits, photometric = int(page.bitspersample), int(page.photometric)
    if photometric == _PALETTE:
        palette = (np.asarray(page.colormap) >> 8).astype(np.uint8).T
        return np.take(palette, data[..., 0], axis=0)
    if bits == 1:
        data = data.astype(np.uint8) * np.uint8(255)
    elif bits < 8:
        data = data.astype(np.uint8) * np.uint8(255 // (2**bits - 1))
    if photometric == _MINISWHITE:
        top = 255 if bits <= 8 else 2**bits - 1
        data = np.concatenate([top - data[..., :1], data[..., 1:]], axis=2).astype(data.dtype)
    if photometric == _SEPARATED:
        top = np.iinfo(data.dtype).max
        inks = data[..., :4].astype(np.uint64)
        return (((top - inks[..., :3]) * (top - inks[..., 3:]) + top // 2) // top).astype(data.dtype)
    if data.shape[2] in (2, 4):
        # ExtraSamples: 1 = colours already multiplied by alpha, 2 = not; 0 = unspecified, not alpha.
        extra = next(iter(page.extrasamples or (0,)))
        if extra in (1, 2):
            return over_white(data, premultiplied=extra == 1)
        return data[..., :-1]
    return data


def over_white(image: NDArray[Any], *, premultiplied: bool = False) -> NDArray[Any]:
    """[H, W, C + 1] with alpha last -> [H, W, C]: v a + white (1 - a), rounded to nearest."""
    top = int(np.iinfo(image.dtype).max)
    alpha = image[..., -1:].astype(np.uint32 if top < 256 else np.uint64)
    if (alpha == top).all():
        return image[..., :-1]
    colour = image[..., :-1].astype(alpha.dtype) * (top if premultiplied else alpha)
    laid: NDArray[Any] = np.minimum((colour + top * (top - alpha) + top // 2) // top, top)
    return laid.astype(image.dtype)


def read_page(page: TiffPage) -> NDArray[Any]:
    """All pixels of the page as stored (the orientation is not applied), [H, W, C].

    Raises:
        ImageError: the data is broken or cut short.
    """
    try:
        size = page.page.parent.filehandle.size
        ends = [start + count for start, count in zip(page.page.dataoffsets, page.page.databytecounts, strict=True)]
        if not ends or max(ends) > size:
            raise ImageError("cut short: pixel data is missing at the end; copy the file again", where=page.path)
        data = np.asarray(page.page.asarray())
        if page.page.planarconfig == 2 and data.ndim == 3:
            data = np.moveaxis(data, 0, 2)
        return to_pixels(data, page.page)
    except BROKEN as error:
        raise ImageError(f"the pixel data cannot be decoded ({error}); copy or save the file again", where=page.path) from error


def in_pieces(page: TiffPage, most_pixels: int) -> bool:
    """Whether the page is stored in several tiles or strips of at most `most_pixels` each."""
    inner = page.page
    if inner.planarconfig == 2 and inner.samplesperpixel > 1:
        return False
    pixels = inner.tilelength * inner.tilewidth if inner.is_tiled else inner.rowsperstrip * inner.imagewidth
    return len(inner.dataoffsets) > 1 and 0 < pixels <= most_pixels


def read_piece(page: TiffPage, row: int, column: int) -> NDArray[Any]:
    """Tile (row, column), or strip `row`, of a page with interleaved samples, [h, w, C], cut at the image's border.

    Raises:
        ImageError: its data is broken or cut short.
    """
    inner = page.page
    across = -(-page.width // inner.tilewidth) if inner.is_tiled else 1
    index = row * across + column
    try:
        handle = inner.parent.filehandle
        offset, count = inner.dataoffsets[index], inner.databytecounts[index]
        rows, columns = (inner.tilelength, inner.tilewidth) if inner.is_tiled else (inner.rowsperstrip, page.width)
        cut = min(rows, page.height - row * rows), min(columns, page.width - column * columns)
        if count == 0:  # a sparse file leaves out pieces of nothing but the fill value
            samples = np.full((*cut, int(inner.samplesperpixel)), inner.nodata, dtype=inner.dtype)
            return to_pixels(samples, inner)
        if offset + count > handle.size:
            raise ImageError("cut short: pixel data is missing at the end; copy the file again", where=page.path)
        handle.seek(offset)
        data = handle.read(count)  # before `decode`, which is made at its first use and moves the file's position
        decoded = inner.decode(data, index, jpegtables=inner.jpegtables)[0]
        return to_pixels(np.asarray(decoded)[0, : cut[0], : cut[1]], inner)
    except BROKEN as error:
        raise ImageError(
            f"piece {index} of the pixel data cannot be decoded ({error}); copy or save the file again", where=page.path
        ) from error
