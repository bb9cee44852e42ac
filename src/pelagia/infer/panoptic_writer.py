"""Panoptic maps of scans on the disk, written in bands of rows: tiled TIFF whose colours are ids of segments, as in COCO's PNG.

R + 256 G + 65536 B, 0 = void; 8 bits, tiles of 512 pixels, deflate, BigTIFF where it must be
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tifffile
from numpy.typing import NDArray

from pelagia.core.files import atomic_path
from pelagia.core.scan import Scan
from pelagia.core.types import Int, PanopticMap, Segment
from pelagia.data.panoptic_png import MOST_ID, to_colours
from pelagia.errors import OptionError
from pelagia.infer.map_writer import StoredMap
from pelagia.infer.options import PredictOptions
from pelagia.infer.preview import nearest, picture_size, put_shown
from pelagia.infer.runtimes import Runtime
from pelagia.infer.tiled_panoptic import TiledSegments, see_segments
from pelagia.infer.views import tile_size

__all__ = ["Stored", "StoredPanoptic", "predict_panoptic"]

#: Side of a tile of the file.
_TILE = 512

#: Bytes that are compressed at a time.
_BUFFER = 1 << 22

#: Of this many bytes of pixels on a TIFF gets the 64-bit addresses of BigTIFF: compressed they may be as many.
_CLASSIC_BYTES = (1 << 32) - (1 << 26)


@dataclass(frozen=True, slots=True)
class StoredPanoptic:
    """A panoptic map that was written, not held.

    Args:
        path: the file.
        width: of the map, in pixels.
        height: of the map, in pixels.
        segments: S of them, with ids from 1 on.
        areas: [S], pixels.
        boxes: [S, 4], the bounds x1, y1, x2, y2 of their pixels.
        picture: the map as a picture of the scan shows it, at most 50 million pixels of it.
    """

    path: Path
    width: int
    height: int
    segments: tuple[Segment, ...]
    areas: Int
    boxes: Int
    picture: PanopticMap


#: A map of either kind that was written.
Stored: TypeAlias = StoredMap | StoredPanoptic


def predict_panoptic(runtime: Runtime, scan: Scan, path: str | Path, options: PredictOptions | None = None) -> StoredPanoptic:
    """Predict the panoptic map of a scan in tiles and write it to `path` (.tif, .tiff); the map is never held.

    Raises:
        OptionError: something cannot be written, or there are more segments than three bytes can number.
        ModelError: the model does not answer with a panoptic map.
    """
    options = options or PredictOptions()
    seen = see_segments(runtime, scan, tile_size(runtime.card, options), options, options.decoding(runtime.card))
    if len(seen.segments) > MOST_ID:
        raise OptionError(f"{len(seen.segments):,} segments are more than a panoptic map can number ({MOST_ID:,})", where=path)
    size = (scan.width, scan.height)
    scale, shrunk = picture_size(*size)
    picture = np.zeros(shrunk[::-1], dtype=np.int32)
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            _tiles(_shown(seen, picture, nearest(size[::-1], scale, shrunk)), scan.width),
            shape=(scan.height, scan.width, 3),
            dtype=np.uint8,
            tile=(_TILE, _TILE),
            photometric="rgb",
            compression="zlib",
            metadata=None,
            bigtiff=3 * scan.width * scan.height > _CLASSIC_BYTES,
            buffersize=_BUFFER,
        )
    return StoredPanoptic(Path(path), *size, seen.segments, seen.areas, seen.boxes, PanopticMap(picture, seen.segments))


def _shown(seen: TiledSegments, picture: NDArray[np.int32], places: tuple[Int, Int]) -> Iterator[NDArray[np.int32]]:
    """The bands of the map; on the way the picture gets the pixels that it shows."""
    for top, band in seen.bands():
        put_shown(picture, band, (0, top), places)
        yield band


def _tiles(bands: Iterator[NDArray[np.int32]], width: int) -> Iterator[NDArray[np.uint8]]:
    """The tiles [512, 512, 3] of a map, row by row, from bands [h, width] of ids."""
    strip = np.zeros((_TILE, -(-width // _TILE) * _TILE, 3), dtype=np.uint8)
    filled = 0
    for band in bands:
        at = 0
        while at < len(band):
            rows = min(_TILE - filled, len(band) - at)
            strip[filled : filled + rows, :width] = to_colours(band[at : at + rows])
            filled, at = filled + rows, at + rows
            if filled == _TILE:
                yield from _cut(strip)
                filled = 0
    if filled:
        strip[filled:] = 0
        yield from _cut(strip)


def _cut(strip: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for x in range(0, strip.shape[1], _TILE):
        yield strip[:, x : x + _TILE].copy()  # compressed when the strip may hold other rows
