"""The objects of a scan, found tile by tile and each reported once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.scan import Scan
from pelagia.core.types import Instances, Mask, PackedCrop
from pelagia.decode import DecodeOptions
from pelagia.infer.coarse import Shrunk, levels, shrink, take_larger
from pelagia.infer.joining import CUT_MARGIN, join_views
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import Runtime
from pelagia.infer.tiles import Tile, lay_tiles
from pelagia.infer.views import answers, lay, objects_of, overlap_of, views

__all__ = ["coarse_tiles", "tile_total", "tiled_objects"]


def tiled_objects(
    runtime: Runtime, scan: Scan, tile: tuple[int, int], options: PredictOptions, decoding: DecodeOptions
) -> Instances:
    """The objects of all tiles, each once; with `options.coarse` those longer than the overlap from larger tiles too."""
    size = (scan.width, scan.height)
    unlimited = replace(decoding, most=0)
    tiles = lay(runtime.card, size, tile, options)
    parts = _parts(runtime, scan, tiles, options, unlimited)
    found = join_views(parts, tiles, size, margin=CUT_MARGIN * max(tile), agnostic=options.agnostic)
    longest = float(overlap_of(runtime.card, tile, options))
    for factor in levels(size, tile) if options.coarse else []:
        larger, overlap = _coarse(runtime, scan, tile, factor, options, unlimited)
        found = take_larger(found, larger, longest, agnostic=options.agnostic)[:2]
        longest = overlap
    joined = found[0]
    return joined.select(np.arange(min(decoding.most, len(joined)))) if decoding.most else joined


def _coarse(
    runtime: Runtime, scan: Scan, tile: tuple[int, int], factor: float, options: PredictOptions, decoding: DecodeOptions
) -> tuple[tuple[Instances, Mask], float]:
    """What tiles `factor` times larger show, with their pieces, and their overlap, in pixels of the scan."""
    tiles, zoom, overlap = coarse_tiles(_size(scan), tile, factor, options)
    further = Frame(np.array([[zoom, 0.0, 0.0], [0.0, zoom, 0.0]]), *_size(scan))
    parts = _parts(runtime, Shrunk(scan, zoom), tiles, options, decoding, further)
    large = [Tile(zoom * one.x, zoom * one.y, zoom * one.width, zoom * one.height) for one in tiles]
    margin = CUT_MARGIN * max(large[0].width, large[0].height)
    found = join_views(parts, large, _size(scan), margin=margin, agnostic=options.agnostic)
    return found, float(zoom * overlap)


def coarse_tiles(
    size: tuple[int, int], tile: tuple[int, int], factor: float, options: PredictOptions
) -> tuple[list[Tile], int, int]:
    """The tiles `factor` times larger, in pixels of the shrunk scan, how many times it is shrunk, and their overlap there."""
    zoom = shrink(factor)
    width, height = (math.ceil(side * factor / zoom) for side in tile)
    overlap = round(options.overlap * min(width, height))
    return lay_tiles((-(-size[0] // zoom), -(-size[1] // zoom)), (width, height), overlap), zoom, overlap


def tile_total(card: ModelCard, size: tuple[int, int], tile: tuple[int, int], options: PredictOptions) -> int:
    """How many tiles are looked at in a scan of that width and height, by models that answer with objects or segments."""
    coarse = levels(size, tile) if options.coarse else []
    return len(lay(card, size, tile, options)) + sum(len(coarse_tiles(size, tile, factor, options)[0]) for factor in coarse)


def _size(scan: Scan) -> tuple[int, int]:
    return scan.width, scan.height


def _parts(
    runtime: Runtime,
    scan: Scan,
    tiles: Sequence[Tile],
    options: PredictOptions,
    decoding: DecodeOptions,
    further: Frame | None = None,
) -> list[Instances]:
    """What each tile shows, in pixels of `scan`, or of the image to which `further` leads from there."""
    with closing(views(scan, tiles, runtime.card, local=False, most=2 * options.batch)) as shown:
        placed = ((image, frame if further is None else _through(frame, further)) for image, frame in shown)
        with closing(answers(runtime, placed, options.batch, decoding)) as found:
            return [_packed(objects_of(item, runtime.card)) for item in found]


def _packed(found: Instances) -> Instances:
    """The same, masks in bits: those of all tiles are held until they are joined, and what is left of them to the end."""
    if found.masks is None:
        return found
    return found.replace(masks=tuple(PackedCrop(mask.x, mask.y, mask.bitmap) for mask in found.masks))


def _through(first: Frame, then: Frame) -> Frame:
    """One frame for both, one after the other."""
    linear = then.matrix[:, :2] @ first.matrix
    linear[:, 2] += then.matrix[:, 2]
    return Frame(linear, then.width, then.height)
