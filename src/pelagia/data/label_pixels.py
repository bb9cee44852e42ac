"""Reading and writing images whose pixel values are labels, not intensities.

A palette PNG stores the label as palette index, so it must not be expanded to colours; an image with three equal channels is
accepted; JPEG is refused, since its compression changes labels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pelagia.core import ome_zarr
from pelagia.core.files import atomic_write
from pelagia.errors import ImageError

__all__ = ["LABEL_SUFFIXES", "MAX_LABEL_PIXELS", "page_count", "read_label_pixels", "write_label_pixels"]

#: Lossless image kinds that may hold labels.
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".zarr")

#: A label image larger than this is refused before it is decoded.
MAX_LABEL_PIXELS = 1_000_000_000


def read_label_pixels(path: str | Path) -> NDArray[Any]:
    """[H, W] uint8 or uint16, the stored values (palette indices for a palette image).

    A TIFF gives its first page, the folder of an OME-Zarr its full resolution. EXIF orientation does not apply: label images
    carry none.

    Raises:
        ImageError: missing, broken, JPEG, more than one different channel, or values beyond 65535.
    """
    path = Path(path)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise ImageError("a label image must not be JPEG: its compression changes label values. Use PNG or TIFF", where=path)
    if path.is_dir():
        pieces = ome_zarr.open_zarr(path)
        _check_size(pieces.height, pieces.width, path)
        _check_size(math.prod(pieces.stated[1:]), pieces.stated[0], path, "is stored in pieces of")
        return _single_channel(pieces.window(slice(0, pieces.height), slice(0, pieces.width)), path)
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            with tifffile.TiffFile(path) as tiff:
                page: Any = tiff.pages[0]
                height, width = page.shape[:2]
                _check_size(int(height), int(width), path)
                if page.is_tiled:
                    rows = int(page.tilelength) * int(page.tiledepth)
                    _check_size(rows, int(page.tilewidth), path, "is stored in pieces of")
                pixels = np.asarray(page.asarray())
        else:
            with Image.open(path) as image:
                _check_size(image.height, image.width, path)
                pixels = np.asarray(image)
    except FileNotFoundError as error:
        raise ImageError("the label image is missing", where=path) from error
    except (OSError, UnidentifiedImageError, ValueError, IndexError, SyntaxError, tifffile.TiffFileError) as error:
        raise ImageError(f"the label image cannot be read ({error})", where=path) from error
    return _single_channel(pixels, path)


def page_count(path: str | Path) -> int:
    """Pages of a TIFF; 1 for other kinds.

    Raises:
        ImageError: broken.
    """
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        return 1
    try:
        with tifffile.TiffFile(path) as tiff:
            return len(tiff.pages)
    except (OSError, tifffile.TiffFileError) as error:
        raise ImageError(f"the label image cannot be read ({error})", where=path) from error


def write_label_pixels(path: str | Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write [H, W] uint8 or uint16 as PNG."""
    with atomic_write(path, "wb") as file:
        Image.fromarray(pixels).save(file, format="PNG")


def _check_size(height: int, width: int, path: Path, what: str = "has") -> None:
    if height * width > MAX_LABEL_PIXELS:
        raise ImageError(f"the label image {what} {width} x {height} pixels, more than {MAX_LABEL_PIXELS:,}", where=path)


def _single_channel(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        pixels = pixels[:, :, :-1]  # alpha says nothing about labels
    if pixels.ndim == 3:
        if (pixels != pixels[:, :, :1]).any():
            raise ImageError("the label image is in colour; expected one channel whose value is the label", where=path)
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2:
        raise ImageError(f"expected a label image [H, W], got shape {list(pixels.shape)}", where=path)
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8)
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    if pixels.dtype.kind in "iu" and pixels.size and int(pixels.min()) >= 0 and int(pixels.max()) <= 65535:
        return pixels.astype(np.uint16)
    raise ImageError(f"label values must be whole numbers 0 to 65535, got {pixels.dtype}", where=path)
