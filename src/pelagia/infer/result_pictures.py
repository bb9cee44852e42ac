"""Annotated pictures of results."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pelagia.core.card import ModelCard
from pelagia.core.draw import draw_prediction
from pelagia.core.frame import Frame
from pelagia.core.image import MAX_PIXELS, Pixels, warp, write
from pelagia.core.palette import Picture
from pelagia.core.scan import Scan, open_scan
from pelagia.core.types import PanopticMap, Prediction, SemanticMap
from pelagia.data.geometry import warp_mask
from pelagia.errors import ImageError
from pelagia.infer.panoptic_writer import Stored
from pelagia.infer.predict import FileResult
from pelagia.infer.preview import nearest, picture_size

__all__ = ["draw_result", "draw_scan", "scaled"]

#: Pixels of a scan that are read at once to shrink it, about: 50 MB of three channels.
_BAND = 16_000_000


def draw_result(result: FileResult, target: str | Path, card: ModelCard) -> Path:
    """Write the image of `result` with what was found as `target` (JPEG), shrunk if it has more than `preview.PICTURE_PIXELS`.

    Raises:
        ImageError: the file has no result, or can no longer be read.
    """
    if result.found is None:
        raise ImageError(result.error or "there is nothing to draw", where=result.path)
    found = result.found.picture if isinstance(result.found, Stored) else result.found
    # It was read under the user's limit once.
    with open_scan(result.path, max_pixels=max(MAX_PIXELS, result.width * result.height)) as scan:
        drawn = draw_scan(scan, found, card)
    write(target, drawn, overwrite=True)
    return Path(target)


def draw_scan(scan: Scan, found: Prediction, card: ModelCard) -> Picture:
    """The picture of a scan with what was found, shrunk if it has more than `preview.PICTURE_PIXELS`; a whole image in memory may
    be drawn into."""
    scale, size = picture_size(scan.width, scan.height)
    if scale < 1:
        image = _shrunk(scan, scale, size)
        if _map_shape(found) != size[::-1]:  # a written map is shrunk already
            found = scaled(found, scale, size)
    else:
        image = scan.read(0, 0, scan.width, scan.height)
    # Where the image is, the picture comes to be: each copy of 50 million pixels takes 150 MB.
    return draw_prediction(image, found, card.categories, overwrite=True)


def _map_shape(found: Prediction) -> tuple[int, ...] | None:
    return found.labels.shape if isinstance(found, SemanticMap) else found.ids.shape if isinstance(found, PanopticMap) else None


def _shrunk(scan: Scan, scale: float, size: tuple[int, int]) -> Pixels:
    """The whole scan `scale` times as large, of `size` (width, height), read in bands of rows: it may be too large to hold."""
    factor = math.floor(1 / scale)  # `warp` averages blocks of so many rows; a band begins and ends between blocks
    rows = max(math.ceil(_BAND / scan.width * scale), 1)
    image: Pixels = np.empty((size[1], size[0], scan.channels), dtype=scan.dtype)
    for top in range(0, size[1], rows):
        bottom = min(top + rows, size[1])
        first = max(math.floor((top / scale - 2) / factor) - 1, 0) * factor
        last = min((math.ceil((bottom / scale + 2) / factor) + 1) * factor, scan.height)
        scan.forget(above=first)
        band = scan.read(0, first, scan.width, last - first)
        image[top:bottom] = warp(band, np.array([[scale, 0.0, 0.0], [0.0, scale, first * scale - top]]), (size[0], bottom - top))
    return image


def scaled(found: Prediction, scale: float, size: tuple[int, int]) -> Prediction:
    """What was found, in a picture `scale` times as large, of `size` (width, height): masks and maps by the nearest pixel."""
    if isinstance(found, SemanticMap):
        return SemanticMap(found.labels[np.ix_(*nearest(found.labels.shape, scale, size))])
    if isinstance(found, PanopticMap):
        return PanopticMap(found.ids[np.ix_(*nearest(found.ids.shape, scale, size))], found.segments)
    frame = Frame(np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]]), *size)
    return found.replace(
        boxes=None if found.boxes is None else frame.boxes(found.boxes),
        oriented=None if found.oriented is None else frame.oriented(found.oriented),
        masks=None if found.masks is None else tuple(warp_mask(mask, frame.matrix, (0, 0, *size)) for mask in found.masks),
        keypoints=None
        if found.keypoints is None
        else np.concatenate([frame.points(found.keypoints[..., :2]), found.keypoints[..., 2:]], axis=2),
    )
