"""What one annotation of a COCO JSON file holds beside its box: polygons or a run-length mask, and keypoints.

Format: https://cocodataset.org/#format-data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.types import Float
from pelagia.data.formats.common import Collector, Place, number, numbers
from pelagia.data.outlines import rings_bounds
from pelagia.errors import FormatError, PelagiaError

__all__ = ["derived_box", "read_keypoints", "read_segmentation"]


def read_segmentation(value: Any, image: int, where: Place, out: Collector) -> tuple[list[Float], NDArray[np.uint32] | None]:
    """The polygon rings [P, 2], or the run lengths over the whole image number `image`, whichever `segmentation` holds.

    A mask of another size than the image's, or without a pixel, is left out with a note in `out`.

    Raises:
        FormatError: neither polygons nor a run-length mask, or a broken one.
    """
    if not value:
        return [], None
    if isinstance(value, dict):
        return [], _runs(value, image, where, out)
    if not isinstance(value, list):
        raise FormatError("segmentation must be a list of polygons or a run-length object", where=str(where))
    parts = value if isinstance(value[0], list) else [value]
    rings = []
    for part in parts:
        flat = numbers(part, "polygon", where)
        if len(flat) % 2:
            raise FormatError(f"a polygon needs pairs of x and y, got {len(flat)} numbers", where=str(where))
        rings.append(flat.reshape(-1, 2))
    return out.clean_rings(rings, where), None


def _runs(value: Mapping[str, Any], image: int, where: Place, out: Collector) -> NDArray[np.uint32] | None:
    width, height = out.sizes[image]
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, list | str):
        raise FormatError("a run-length mask needs size [height, width] and counts", where=str(where))
    if [int(number(side, "size", where)) for side in size] != [height, width]:
        text = f"mask of {size[1]} x {size[0]} pixels for an image of {width} x {height}; the mask is left out, its box is kept"
        out.note("error", "mask.size", text, where)
        return None
    if isinstance(counts, str):
        try:
            runs = core_masks.rle_from_string(counts, height, width).counts
        except PelagiaError as error:
            raise FormatError(f"the compressed run lengths are broken ({error.reason})", where=str(where)) from error
    else:
        given = numbers(counts, "counts", where) if counts else np.zeros(0)
        if (given < 0).any() or (given != np.floor(given)).any():
            raise FormatError("run lengths must be whole numbers from 0", where=str(where))
        runs = given.astype(np.uint32)
    if int(runs.sum(dtype=np.int64)) != width * height:
        raise FormatError(f"run lengths add up to {int(runs.sum(dtype=np.int64))}, not to {width} x {height}", where=str(where))
    if not runs[1::2].any():
        out.note("warning", "mask.empty", "the mask has no pixel; left out", where)
        return None
    return runs


def read_keypoints(value: Any, where: Place) -> Float | None:
    """[K, 3] x, y, v, or None where there are none.

    Raises:
        FormatError: not three numbers for each point.
    """
    if not value:
        return None
    flat = numbers(value, "keypoints", where)
    if len(flat) % 3:
        raise FormatError(f"keypoints need x, y, v for each point, got {len(flat)} numbers", where=str(where))
    return flat.reshape(-1, 3)


def derived_box(
    rings: list[Float], runs: NDArray[np.uint32] | None, keypoints: Float | None, width: int, height: int
) -> Float | None:
    """[4] x1, y1, x2, y2: bounds of the rings, else of the mask, else of the labelled keypoints; None where all are absent."""
    if rings:
        return rings_bounds(rings)
    if runs is not None:
        bounds: Float = core_masks.bounds(core_masks.crop_from_rle(core_masks.RLE(height, width, runs)))
        return bounds
    if keypoints is not None and (keypoints[:, 2] > 0).any():
        return rings_bounds([keypoints[keypoints[:, 2] > 0, :2]])
    return None
