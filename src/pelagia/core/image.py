"""Images on the array side: finding, reading, writing, normalisation; and, from `pelagia.core.warp`, one warp and letterboxing.

An image is [H, W, C] with C = 1 (grey) or 3 (RGB), uint8 or uint16.
"""

from __future__ import annotations

import glob
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from pelagia.core import header, ome_zarr, tiff
from pelagia.core.card import Normalisation
from pelagia.core.files import atomic_path, write_bytes
from pelagia.core.warp import letterbox, warp
from pelagia.errors import ImageError, OptionError

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Pixels",
    "check_piece",
    "decode",
    "encode",
    "find_images",
    "image_size",
    "is_tiff",
    "letterbox",
    "normalise",
    "orient",
    "planes",
    "read",
    "to_rgb",
    "warp",
    "write",
]

Pixels: TypeAlias = NDArray[np.uint8 | np.uint16]
_S = TypeVar("_S", bound=np.generic)

#: File name endings, lower case, that `find_images` takes from a folder.
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_TIFF_SUFFIXES = (".tif", ".tiff")

#: Pixels above which an image, or a piece of one, is taken for a decompression bomb unless the user says otherwise.
MAX_PIXELS = 1_000_000_000

#: The most pixels that OpenCV decodes, whatever the user says.
_OPENCV_PIXELS = 1 << 30

#: Rows that are changed at once where an image is changed in place.
_BAND = 256


# Reading and writing


def read(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The image in a file or in the folder of an OME-Zarr, [H, W, C], uint8 or uint16, upright.

    Grey stays one channel; a palette is expanded; alpha is laid over white; CMYK becomes RGB; 1-bit becomes 0 and 255; EXIF
    orientation is applied for every format; of a TIFF the first page is read, of an OME-TIFF or OME-Zarr its full resolution
    (`pelagia.core.tiff` and `pelagia.core.ome_zarr` say which planes).

    Raises:
        ImageError: missing, of another kind, cut short or broken, of floats or more than 16 bits, or of more than `max_pixels`
            pixels, or stored in a piece of more (checked before anything is decoded).
    """
    source = Path(path)
    if source.is_dir():
        pieces = ome_zarr.open_zarr(source)
        _check_size(pieces.width, pieces.height, max_pixels, source)
        check_piece(pieces.stated, max_pixels, source)
        return pieces.window(slice(0, pieces.height), slice(0, pieces.width))
    try:
        with open(source, "rb") as stream:
            kind = _kind(stream.read(12), source)
            if kind != "tiff":
                return _read_whole(stream, kind, max_pixels, source)
    except OSError as error:
        raise _unreadable(error, source) from error
    return _read_tiff(None, max_pixels, source)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, name: str = "image") -> Pixels:
    """The image in the bytes of a file, as `read` gives it; nothing is written. Errors call it `name`.

    Raises:
        ImageError: as `read`.
    """
    source, stream = Path(name), io.BytesIO(data)
    kind = _kind(data[:12], source)
    return _read_tiff(stream, max_pixels, source) if kind == "tiff" else _read_whole(stream, kind, max_pixels, source)


def _read_whole(stream: BinaryIO, kind: header.Kind, max_pixels: int, source: Path) -> Pixels:
    """A JPEG, PNG, BMP or WebP."""
    try:
        facts = header.parse(stream, kind)
    except header.HeaderError as error:
        raise ImageError(f"broken image: {error}; copy the file again", where=source) from error
    _check_size(facts.width, facts.height, max_pixels, source)
    if facts.width * facts.height > _OPENCV_PIXELS:
        raise ImageError(
            f"{facts.width} x {facts.height} pixels; a {kind.upper()} is decoded up to {_OPENCV_PIXELS:,}. Save it as a tiled "
            "TIFF",
            where=source,
        )
    stream.seek(0)
    return orient(_decode(stream.read(), facts, source), facts.orientation)


def _read_tiff(stream: BinaryIO | None, max_pixels: int, source: Path) -> Pixels:
    """A TIFF in `stream`, else in the file `source`."""
    with tiff.open_page(source, stream) as page:
        _check_size(page.width, page.height, max_pixels, source)
        check_piece(page.piece, max_pixels, source)
        return orient(tiff.read_page(page), page.orientation)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of the image as `read` would give it, from the header alone.

    Raises:
        ImageError: missing, of another kind, or with a broken header.
    """
    source = Path(path)
    if source.is_dir():
        pieces = ome_zarr.open_zarr(source)
        return pieces.width, pieces.height
    try:
        with open(source, "rb") as stream:
            kind = _kind(stream.read(12), source)
            if kind != "tiff":
                return header.parse(stream, kind).size
    except OSError as error:
        raise _unreadable(error, source) from error
    except header.HeaderError as error:
        raise ImageError(f"broken image: {error}; copy the file again", where=source) from error
    with tiff.open_page(source) as page:
        return (page.height, page.width) if page.orientation >= 5 else (page.width, page.height)


def is_tiff(path: str | Path) -> bool:
    """Whether a file begins as a TIFF or BigTIFF does.

    Raises:
        ImageError: missing or unreadable.
    """
    source = Path(path)
    try:
        with open(source, "rb") as stream:
            return header.kind_of(stream.read(12)) == "tiff"
    except OSError as error:
        raise _unreadable(error, source) from error


def _kind(head: bytes, path: Path) -> header.Kind:
    kind = header.kind_of(head)
    if kind is None:
        what = "an empty file" if not head else "not an image of a known kind"
        raise ImageError(f"{what}; expected JPEG, PNG, TIFF, BMP or WebP", where=path)
    return kind


def _check_size(width: int, height: int, max_pixels: int, path: Path) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{width} x {height} pixels, more than the limit of {max_pixels:,} for an image decoded whole; save it as a tiled "
            "TIFF, or raise the limit (--max-pixels)",
            where=path,
        )


def check_piece(lengths: Sequence[int], max_pixels: int, path: Path) -> None:
    """Refuse pieces (tiles, strips or chunks) that the file states to have these columns, rows and lengths along other axes.

    A piece is decoded whole, however little of it lies in the image.

    Raises:
        ImageError: it has more than `max_pixels` pixels.
    """
    if math.prod(lengths) > max_pixels:
        told = " x ".join(str(length) for place, length in enumerate(lengths) if place < 2 or length > 1)
        raise ImageError(
            f"stored in pieces of {told} pixels, more than the limit of {max_pixels:,}; save it with smaller tiles, or raise the "
            "limit (--max-pixels)",
            where=path,
        )


def _unreadable(error: OSError, path: Path) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError("this image does not exist; check the path", where=path)
    return ImageError(f"cannot read this file ({error.strerror or error})", where=path)


def _decode(data: bytes, facts: header.Header, path: Path) -> Pixels:
    if not header.is_complete(data, facts):
        raise ImageError("cut short: the end of the image is missing; copy the file again", where=path)
    try:
        image = _decode_jpeg(data) if facts.kind == "jpeg" and not facts.inks else _decode_opencv(data, facts)
    except (cv2.error, imagecodecs.Jpeg8Error) as error:
        raise ImageError(f"cannot be decoded ({str(error).strip().splitlines()[-1]})", where=path) from error
    if image is None:
        raise ImageError(f"cannot be decoded: broken, or a {facts.kind.upper()} of an unusual kind; save it again", where=path)
    if image.shape[:2] != (facts.height, facts.width):
        raise ImageError("broken image: its header and its data state different sizes; save it again", where=path)
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"samples are {image.dtype}; expected 8 or 16 bits", where=path)
    if image.ndim == 2:
        return image[..., None]
    return np.ascontiguousarray(image[..., :1]) if facts.grey else image


def _decode_jpeg(data: bytes) -> Pixels:
    """A JPEG of one or three components, [H, W] or [H, W, 3].

    The library and its defaults are OpenCV's, and so are the pixels; called directly it is faster, and the image lies in memory
    once.
    """
    return np.asarray(imagecodecs.jpeg8_decode(data))


def _decode_opencv(data: bytes, facts: header.Header) -> Pixels | None:
    """[H, W] or RGB; None if it cannot be decoded."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if facts.inks else cv2.IMREAD_UNCHANGED
    image: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None or image.ndim == 2:
        return image
    if image.shape[2] == 4:
        # The fourth byte of a BMP pixel is padding.
        image = image[..., :3] if facts.kind == "bmp" else tiff.over_white(image)
    return np.asarray(image[..., :1] if facts.grey else cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def orient(image: NDArray[_S], orientation: int) -> NDArray[_S]:
    """The stored image turned upright by its EXIF orientation, 1 to 8 (CIPA DC-008, tag 274)."""
    if orientation == 1:
        return image
    turned: Any = image.swapaxes(0, 1) if orientation >= 5 else image
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def write(path: str | Path, image: Pixels, *, overwrite: bool = False) -> None:
    """Write an image [H, W], [H, W, 1] or [H, W, 3] in the format that the file name ends with, whole or not at all.

    JPEG is written with quality 95, TIFF with deflate in tiles of 512 pixels, so that it can be read in windows. With
    `overwrite` the memory of `image` is used on the way, and holds something else in the end: a copy of a scan takes memory.

    Raises:
        OptionError: unknown ending, another shape or sample type, or 16 bits for a format that holds 8.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    _check_writable(image, suffix, target)
    if suffix in _TIFF_SUFFIXES:
        flat = image.reshape(image.shape[:2]) if _is_grey(image) else image
        with atomic_path(target) as temporary:
            photometric = "minisblack" if _is_grey(image) else "rgb"
            tile = (512, 512) if max(image.shape[:2]) > 512 else None
            tifffile.imwrite(
                temporary, flat, photometric=photometric, compression="zlib", predictor=True, tile=tile, metadata=None
            )
        return
    write_bytes(target, _encoded(image, suffix, target, overwrite=overwrite).data)


def encode(image: Pixels, suffix: str = ".png", *, overwrite: bool = False) -> bytes:
    """The bytes of the file that `write` makes of an image under a name with that ending, which must not be that of a TIFF.

    Raises:
        OptionError: as `write`, or the ending of a TIFF.
    """
    if suffix in _TIFF_SUFFIXES:
        raise OptionError(f"{suffix} is written to files only; use .png")
    _check_writable(image, suffix, None)
    return _encoded(image, suffix, None, overwrite=overwrite).tobytes()


def _check_writable(image: Pixels, suffix: str, target: Path | None) -> None:
    if suffix not in IMAGE_SUFFIXES:
        raise OptionError(
            f"cannot write {suffix or 'a name without an ending'}; use one of {' '.join(IMAGE_SUFFIXES)}", where=target
        )
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise OptionError(
            f"an image must be [H, W], [H, W, 1] or [H, W, 3], uint8 or uint16; got {list(image.shape)} {image.dtype}",
            where=target,
        )
    if image.dtype == np.uint16 and suffix not in (".png", *_TIFF_SUFFIXES):
        raise OptionError(f"{suffix} holds 8 bits; write 16-bit images as .png or .tif", where=target)


def _is_grey(image: Pixels) -> bool:
    return image.ndim == 2 or image.shape[2] == 1


def _encoded(image: Pixels, suffix: str, target: Path | None, *, overwrite: bool) -> NDArray[np.uint8]:
    """The file as bytes [N]."""
    stored = image if _is_grey(image) else _swapped(image, overwrite=overwrite)
    parameters = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix in (".jpg", ".jpeg") else []
    try:
        done, data = cv2.imencode(suffix, stored, parameters)
    except cv2.error as error:
        raise OptionError(
            f"{image.shape[1]} x {image.shape[0]} pixels do not fit {suffix} ({error.err})", where=target
        ) from error
    if not done:
        raise OptionError(f"{image.shape[1]} x {image.shape[0]} pixels do not fit {suffix}; write .tif", where=target)
    return np.asarray(data)


def _swapped(image: Pixels, *, overwrite: bool) -> Pixels:
    """RGB as the BGR that OpenCV writes, in place if it may."""
    if not (overwrite and image.flags.writeable):
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    for top in range(0, len(image), _BAND):
        image[top : top + _BAND] = cv2.cvtColor(image[top : top + _BAND], cv2.COLOR_RGB2BGR)
    return image


def find_images(places: str | Path | Iterable[str | Path]) -> list[Path]:
    """Images named by files, folders and glob patterns, each once, in the order of the arguments.

    A folder is searched to every depth for `IMAGE_SUFFIXES`, sorted by path, names that begin with a dot left out; the folder of
    a Zarr is an image, not a folder of images. A file is taken whatever its ending. A pattern (`*`, `?`, `[...]`, `**`) is
    sorted; folders that it matches are searched too.

    Raises:
        ImageError: a name that does not exist, or a folder or pattern without an image.
    """
    found: dict[Path, None] = {}
    for place in [places] if isinstance(places, str | Path) else places:
        path = Path(place)
        if os.path.exists(path):
            matches = [path]
        elif glob.has_magic(str(place)):
            matches = sorted(Path(name) for name in glob.glob(str(place), recursive=True))
            matches = [match for match in matches if match.is_dir() or match.suffix.lower() in IMAGE_SUFFIXES]
        else:
            raise ImageError("no such file or folder; check the path", where=path)
        files = [file for match in matches for file in (_inside(match) if match.is_dir() else [match])]
        if not files:
            raise ImageError(f"no image here; looked for {', '.join(IMAGE_SUFFIXES)}, .zarr", where=path)
        found.update(dict.fromkeys(files))
    return list(found)


def _inside(folder: Path) -> list[Path]:
    if ome_zarr.is_zarr(folder):
        return [folder]
    found = []
    for name, folders, files in os.walk(folder):
        place = Path(name)
        folders[:] = [item for item in folders if not item.startswith(".")]
        images = [item for item in folders if ome_zarr.is_zarr(place / item)]
        folders[:] = [item for item in folders if item not in images]
        images += [item for item in files if Path(item).suffix.lower() in IMAGE_SUFFIXES and not item.startswith(".")]
        found += [place / item for item in images]
    return sorted(item for item in found if item.is_file() or item.is_dir() or item.is_symlink())  # one to nowhere is told of


# Intensities


def to_rgb(image: NDArray[_S]) -> NDArray[_S]:
    """[H, W], [H, W, 1] or [H, W, 3] -> [H, W, 3]: grey is repeated, RGB is returned as it is; the sample type stays."""
    if image.ndim == 3 and image.shape[2] == 3:
        return image
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 1):
        raise OptionError(f"an image must be [H, W], [H, W, 1] or [H, W, 3], got {list(image.shape)}")
    rgb: NDArray[_S] = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return rgb


def normalise(image: Pixels, normalisation: Normalisation) -> NDArray[np.float32]:
    """Stored intensities [H, W, 1 or 3] -> network input [3, H, W]: clip((v - low) / (high - low), 0, 1), minus mean, over std.

    The result is a view with the channels last in memory, which is what convolutions on a CPU like best.

    Raises:
        OptionError: the window is empty (`high` <= `low`), a `std` is not positive, or the image is of another type.
    """
    table = _values(image.dtype, normalisation)
    rgb = to_rgb(image)
    if image.dtype == np.uint8 and rgb.flags.c_contiguous and (table == table[0]).all():
        found = cv2.LUT(rgb.reshape(len(rgb), -1), table[0]).reshape(rgb.shape)  # one table is looked up faster than three
    elif image.dtype == np.uint8:
        found = cv2.LUT(rgb, np.ascontiguousarray(table.T)[None])
    else:
        found = np.stack([np.take(table[channel], rgb[..., channel]) for channel in range(3)], axis=2)
    return np.asarray(found).transpose(2, 0, 1)


def planes(images: Sequence[Pixels], normalisation: Normalisation) -> NDArray[np.float32]:
    """`normalise` of B images of one size, the same to the bit, as [B, 3, H, W] with the columns last in memory: what an exported
    graph reads.

    Raises:
        OptionError: as `normalise`.
    """
    found = np.empty((len(images), 3, *images[0].shape[:2]), dtype=np.float32)
    for image, block in zip(images, found, strict=True):
        table = _values(image.dtype, normalisation)
        parts = cv2.split(to_rgb(image))
        for values, part, plane in zip(table, parts, block, strict=True):
            if image.dtype == np.uint8:
                cv2.LUT(part, values, plane)
            else:
                np.take(values, part, out=plane)
    return found


def _values(dtype: np.dtype[Any], normalisation: Normalisation) -> NDArray[np.float32]:
    """[3, 256 or 65,536]: the network input for each intensity of each channel, computed in float64."""
    low, high = normalisation.low, normalisation.high
    if not high > low or min(normalisation.std) <= 0:
        raise OptionError(f"normalisation needs high > low and std > 0, got {normalisation}")
    if dtype not in (np.uint8, np.uint16):
        raise OptionError(f"normalisation takes uint8 or uint16 images, got {dtype}")
    levels = np.clip((np.arange(np.iinfo(dtype).max + 1) - low) / (high - low), 0.0, 1.0)
    mean, std = (np.array(values)[:, None] for values in (normalisation.mean, normalisation.std))
    return np.asarray((levels - mean) / std, dtype=np.float32)
