"""The objects of a scan, found tile by tile and each reported once."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np

from pelagia.core.scan import Scan
from pelagia.core.types import Instances
from pelagia.decode import DecodeOptions
from pelagia.infer.joining import join
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import Runtime
from pelagia.infer.views import answer, lay, objects_of, views

__all__ = ["tiled_objects"]

#: A detection this near to a border of its tile, as a share of the tile's side, counts as cut by it.
_MARGIN = 0.01


def tiled_objects(
    runtime: Runtime, scan: Scan, tile: tuple[int, int], options: PredictOptions, decoding: DecodeOptions
) -> Instances:
    """The objects of all tiles, each once."""
    card = runtime.card
    size = (scan.width, scan.height)
    tiles = lay(card, size, tile, options)
    unlimited = replace(decoding, most=0)
    parts: list[Instances] = []
    with closing(views(scan, tiles, card, local=False, most=2 * options.batch)) as shown:
        while batch := list(islice(shown, options.batch)):
            found = answer(runtime, [image for image, _ in batch], [frame for _, frame in batch], unlimited)
            parts += [objects_of(item, card) for item in found]
    joined = join(parts, tiles, size, margin=_MARGIN * max(tile), agnostic=options.agnostic)
    return joined.select(np.arange(min(decoding.most, len(joined)))) if decoding.most else joined
