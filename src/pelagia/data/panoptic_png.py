"""Panoptic images: PNG of RGB with 8 bits whose pixel is the id of a segment, R + 256 G + 65536 B, 0 = void (COCO panoptic).

Those of large scans are TIFF with the same pixels, which can be read and written in windows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core import image as core_image
from pelagia.core import tiff
from pelagia.errors import FormatError

__all__ = ["MOST_ID", "from_colours", "read_ids", "to_colours", "write_ids"]

#: The largest id that the three bytes of a pixel hold.
MOST_ID = (1 << 24) - 1

#: Bit depth and colour type of an RGB PNG of 8 bits, bytes 24 and 25 of the file (PNG, section 11.2.1).
_RGB_8 = b"\x08\x02"

#: Photometric interpretation of a TIFF of RGB (TIFF 6.0, tag 262).
_TIFF_RGB = 2


def read_ids(path: Path) -> NDArray[np.int32]:
    """[H, W], the id of every pixel.

    Raises:
        ImageError: missing or broken.
        FormatError: neither a PNG nor a TIFF of RGB with 8 bits.
    """
    pixels = core_image.read(path)
    if not _is_rgb(path):
        raise FormatError("a panoptic map must be a PNG or TIFF of RGB with 8 bits; save it without palette or alpha", where=path)
    return from_colours(pixels)


def _is_rgb(path: Path) -> bool:
    if core_image.is_tiff(path):
        with tiff.open_page(path) as page:
            inner = page.page
            return bool(inner.photometric == _TIFF_RGB and inner.samplesperpixel == 3 and inner.bitspersample == 8)
    with open(path, "rb") as stream:
        head = stream.read(26)
    return head.startswith(b"\x89PNG") and head[24:] == _RGB_8


def write_ids(path: Path, ids: NDArray[np.int32]) -> None:
    """Write a map [H, W] of ids 0 to 16,777,215 as PNG.

    Raises:
        FormatError: an id is negative or larger.
    """
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= MOST_ID:
        raise FormatError(
            f"segment ids must be 0 to {MOST_ID:,}, which three bytes hold, got {ids.min()} to {ids.max()}", where=path
        )
    core_image.write(path, to_colours(ids), overwrite=True)


def to_colours(ids: NDArray[np.int32]) -> NDArray[np.uint8]:
    """[H, W] ids 0 to 16,777,215 as a picture [H, W, 3] of its own memory."""
    least_first = np.ascontiguousarray(ids, dtype="<i4").view(np.uint8)
    return np.array(least_first.reshape(*ids.shape, 4)[..., :3], order="C")


def from_colours(picture: NDArray[Any]) -> NDArray[np.int32]:
    """[H, W, 3] -> [H, W], the ids that `to_colours` painted."""
    padded = np.zeros((*picture.shape[:2], 4), dtype=np.uint8)
    padded[..., :3] = picture  # least byte first
    return padded.view("<i4")[..., 0].astype(np.int32, copy=False)
