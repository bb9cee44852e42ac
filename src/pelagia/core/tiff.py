"""The image of a TIFF, BigTIFF or OME-TIFF as 8- or 16-bit grey or RGB; windows of it are in `pelagia.core.tiff_pieces`.

tifffile finds the directory and imagecodecs decodes; what stands here is the meaning of the samples (photometric
interpretation, alpha, palette, planar layout) as the TIFF 6.0 specification gives it, and of the planes of an OME-TIFF.

Of several pages the first is read, which of a pyramid is the full resolution. An OME-TIFF states what its pages are: of its
first image one channel is grey, three channels are red, green and blue in that order, and a stack along z or time is refused.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray

from pelagia.core import header
from pelagia.errors import ImageError

__all__ = ["BROKEN", "TiffPage", "decode_segment", "open_page", "over_white", "read_page", "to_pixels"]

#: What tifffile and imagecodecs raise on broken files (TiffFileError is a ValueError, codec errors are RuntimeErrors).
BROKEN = (ValueError, RuntimeError, OSError, KeyError, IndexError, TypeError, struct.error, ZeroDivisionError, MemoryError)

#: Compression schemes whose decoders stop at the size of the piece: none, CCITT, LZW, deflate, PackBits, LZMA, Zstandard.
_BOUNDED = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000}

#: Those whose data state a size of their own, by which their decoders allocate memory.
_JPEG, _JPEG2000, _PNG, _WEBP = {6, 7, 33007, 34892}, {33003, 33004, 33005, 34712}, {34933}, {50001}

_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6


@dataclass(frozen=True)
class TiffPage:
    """The image of an open TIFF: `width`, `height` as stored, EXIF `orientation`, `channels` after reading (1 or 3).

    `page` says how samples are stored; the data are those of `planes`: one page, or three, the channels of an OME-TIFF. `piece`
    is what the directory states of a tile or strip: columns, rows and planes, of a tile also more than the image has.
    """

    path: Path
    page: Any
    planes: tuple[Any, ...]
    width: int
    height: int
    orientation: int
    channels: int
    dtype: np.dtype[Any]
    piece: tuple[int, int, int]


@contextmanager
def open_page(path: Path, stream: BinaryIO | None = None) -> Iterator[TiffPage]:
    """Open a TIFF and look at its image without decoding it; with a `stream` that one, and `path` is what errors call it.

    Raises:
        ImageError: not a readable TIFF, a stack of planes, or samples of a kind that is not supported (the message says what to
            convert to).
    """
    try:
        # Other files of a multi-file OME-TIFF are never opened: a path inside an image is not to be followed.
        tiff = tifffile.TiffFile(path if stream is None else stream, _multifile=False)
    except BROKEN as error:
        raise ImageError(f"not a readable TIFF ({error}); copy or save the file again", where=path) from error
    with tiff:
        try:
            planes = _planes(tiff, path)
            page = planes[0].keyframe
            tag = page.tags.get(274)
            orientation = int(tag.value) if tag is not None and 1 <= int(tag.value) <= 8 else 1
            width, height = int(page.imagewidth), int(page.imagelength)
            channels = max(_check(page, path), len(planes))  # a broken tag may hold several values, or none
            dtype = np.dtype(np.uint16 if page.bitspersample > 8 and page.photometric != _PALETTE else np.uint8)
            piece = (width, min(int(page.rowsperstrip), height), 1)
            if page.is_tiled:
                piece = (int(page.tilewidth), int(page.tilelength), int(page.tiledepth))
        except BROKEN as error:
            raise ImageError(f"the first page of this TIFF is broken ({error}); save it again", where=path) from error
        yield TiffPage(path, page, planes, width, height, orientation, channels, dtype, piece)


def _planes(tiff: tifffile.TiffFile, path: Path) -> tuple[Any, ...]:
    """The pages of the image: the first one, or the channels of an OME-TIFF's first image at full resolution."""
    if _description_is_cut(tiff):
        raise ImageError("cut short: its description is missing at the end; copy the file again", where=path)
    if not tiff.is_ome:
        return (tiff.pages[0],)
    series = tiff.series[0]
    if series.kind != "ome":  # its other planes lie in other files
        return (tiff.pages[0],)
    sizes = dict(zip(series.axes, series.shape, strict=True))
    stack = {axis: size for axis, size in sizes.items() if axis not in "CSYX" and size > 1}
    if stack:
        told = ", ".join(f"{axis.lower()} {size}" for axis, size in stack.items())
        raise ImageError(
            f"this OME-TIFF is a stack of planes ({told}), and flat images are read; save the plane or the projection that you "
            "mean as an image of its own, for example tifffile.imwrite('plane.tif', tifffile.imread('stack.ome.tif')[0])",
            where=path,
        )
    planes = tuple(series[index] for index in range(len(series)))
    if len(planes) not in (1, 3) or (len(planes) == 3 and sizes.get("S", 1) > 1):
        raise ImageError(
            f"this OME-TIFF has {len(planes)} channels{' of several samples' if sizes.get('S', 1) > 1 else ''}; one (grey) or "
            "three (red, green, blue) are read. Save those that you need as an image of their own",
            where=path,
        )
    if any(plane is None for plane in planes):
        raise ImageError("a channel of this OME-TIFF is not in the file; save it again with all its channels", where=path)
    return planes


def _description_is_cut(tiff: tifffile.TiffFile) -> bool:
    """Whether the first directory states an image description (tag 270) beyond the end of the file.

    tifffile passes over a tag that it cannot read, and a part of an OME-TIFF would then look like a plain grey image.
    """
    handle, order = tiff.filehandle, tiff.byteorder
    count, entry, offset_form = ("Q", "HHQQ", "Q") if tiff.is_bigtiff else ("H", "HHII", "I")
    inline = struct.calcsize(offset_form)
    handle.seek(tiff.pages[0].offset)
    (entries,) = struct.unpack(order + count, handle.read(struct.calcsize(order + count)))
    directory = handle.read(entries * struct.calcsize(order + entry))
    for tag, kind, length, place in struct.iter_unpack(order + entry, directory):
        if tag == 270 and kind in (1, 2, 7) and length > inline and place + length > handle.size:  # bytes or text
            return True
    return False


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
    if page.compression not in _BOUNDED | _JPEG | _JPEG2000 | _PNG | _WEBP:
        raise ImageError(
            f"compression {getattr(page.compression, 'name', page.compression)} is not supported; save the image with deflate, "
            "LZW or JPEG, in tiles",
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
    """All pixels of the image as stored (the orientation is not applied), [H, W, C].

    Raises:
        ImageError: the data is broken or cut short.
    """
    return np.concatenate([_read_plane(page, plane) for plane in page.planes], axis=2)


def _read_plane(page: TiffPage, plane: Any) -> NDArray[Any]:
    inner = page.page
    try:
        segments = list(zip(plane.dataoffsets, plane.databytecounts, strict=True))
        handle = inner.parent.filehandle
        if not segments or max(start + count for start, count in segments) > handle.size:
            raise ImageError("cut short: pixel data is missing at the end; copy the file again", where=page.path)
        if int(inner.compression) not in _BOUNDED:
            for index, (start, count) in enumerate(segments):
                handle.seek(start)
                _refuse_bomb(page, index, handle.read(count))
        data = np.asarray(plane.asarray())
        if inner.planarconfig == 2 and data.ndim == 3:
            data = np.moveaxis(data, 0, 2)
        return to_pixels(data, inner)
    except BROKEN as error:
        raise ImageError(f"the pixel data cannot be decoded ({error}); copy or save the file again", where=page.path) from error


def decode_segment(page: TiffPage, plane: Any, index: int) -> NDArray[Any]:
    """Samples [h, w, S] of tile or strip `index` of a plane as its data hold them: a tile reaches beyond the image's border.

    Raises:
        ImageError: its data is broken or cut short.
    """
    inner = page.page
    try:
        handle = inner.parent.filehandle
        offset, count = plane.dataoffsets[index], plane.databytecounts[index]
        if count == 0:  # a sparse file leaves out pieces of nothing but the fill value
            samples = 1 if inner.planarconfig == 2 else int(inner.samplesperpixel)
            return np.full((page.piece[1], page.piece[0], samples), inner.nodata, dtype=inner.dtype)
        if offset + count > handle.size:
            raise ImageError("cut short: pixel data is missing at the end; copy the file again", where=page.path)
        handle.seek(offset)
        data = handle.read(count)  # before `decode`, which is made at its first use and moves the file's position
        if int(inner.compression) not in _BOUNDED:
            _refuse_bomb(page, index, data)
        decoded = inner.decode(data, index, jpegtables=plane.jpegtables, jpegheader=inner.jpegheader)[0]
        return np.asarray(decoded[0])  # a plane of no depth
    except BROKEN as error:
        raise ImageError(
            f"piece {index} of the pixel data cannot be decoded ({error}); copy or save the file again", where=page.path
        ) from error


def _refuse_bomb(page: TiffPage, index: int, data: bytes) -> None:
    """Compressed data that state a size of their own must mean the size that the directory states, or a little more."""
    scheme = int(page.page.compression)
    if not data or (scheme in _JPEG and page.page.jpegheader is not None):
        return  # left out; or data without a header, whose size is the directory's
    try:
        if scheme in _JPEG2000:
            start = data.index(b"\xff\x4f\xff\x51")  # SOC and SIZ (ITU-T T.800, A.5.1)
            right, lower, left, top = struct.unpack_from(">4I", data, start + 8)
            width, height = right - left, lower - top
        else:
            kind: header.Kind = "jpeg" if scheme in _JPEG else "png" if scheme in _PNG else "webp"
            width, height = header.parse(io.BytesIO(data), kind).size
    except (ValueError, struct.error) as error:
        raise ImageError(
            f"piece {index} of the pixel data has a broken header ({error}); copy or save the file again", where=page.path
        ) from error
    columns, rows, _ = page.piece
    # Encoders round up to whole blocks, of 16 pixels at most.
    if width > columns + 16 or height > rows + 16:
        raise ImageError(
            f"piece {index} of the pixel data states {width} x {height} pixels where the file states {columns} x {rows}; "
            "save it again",
            where=page.path,
        )
