"""Panoptic images: PNG of RGB with 8 bits whose pixel is the id of a segment, R + 256 G + 65536 B, 0 = void (COCO panoptic)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pelagia.core import image as core_image
from pelagia.errors import FormatError

__all__ = ["MOST_ID", "read_ids", "write_ids"]

#: The largest id that the three bytes of a pixel hold.
MOST_ID = (1 << 24) - 1

#: Bit depth and colour type of an RGB PNG of 8 bits, bytes 24 and 25 of the file (PNG, section 11.2.1).
_RGB_8 = b"\x08\x02"


def read_ids(path: Path) -> NDArray[np.int32]:
    """[H, W], the id of every pixel.

    Raises:
        ImageError: missing or broken.
        FormatError: not a PNG of RGB with 8 bits.
    """
    pixels = core_image.read(path)
    with open(path, "rb") as stream:
        head = stream.read(26)
    if not head.startswith(b"\x89PNG") or head[24:] != _RGB_8:
        raise FormatError("a panoptic map must be a PNG of RGB with 8 bits; save it without palette and alpha", where=path)
    padded = np.zeros((*pixels.shape[:2], 4), dtype=np.uint8)
    padded[..., :3] = pixels  # least byte first
    return padded.view("<i4")[..., 0].astype(np.int32, copy=False)


def write_ids(path: Path, ids: NDArray[np.int32]) -> None:
    """Write a map [H, W] of ids 0 to 16,777,215.

    Raises:
        FormatError: an id is negative or larger.
    """
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= MOST_ID:
        raise FormatError(
            f"segment ids must be 0 to {MOST_ID:,}, which three bytes hold, got {ids.min()} to {ids.max()}", where=path
        )
    core_image.write(path, np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=2).astype(np.uint8))
