"""The class map of a scan, put together from its tiles."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.scan import Scan
from pelagia.core.types import SemanticMap
from pelagia.decode import DecodeOptions
from pelagia.errors import ModelError
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import Runtime
from pelagia.infer.tiles import owned
from pelagia.infer.views import answer, lay, views

__all__ = ["tiled_map"]


def tiled_map(
    runtime: Runtime, scan: Scan, tile: tuple[int, int], options: PredictOptions, decoding: DecodeOptions
) -> SemanticMap:
    """The class of every pixel, taken from the tile in which it lies deepest."""
    card = runtime.card
    tiles = lay(card, (scan.width, scan.height), tile, options)
    labels: NDArray[Any] = np.zeros((scan.height, scan.width), dtype=np.uint8 if len(card.categories) < 255 else np.uint16)
    windows = iter(owned(tiles, (scan.width, scan.height)))
    with closing(views(scan, tiles, card, local=True, most=2 * options.batch)) as shown:
        while batch := list(islice(shown, options.batch)):
            for part in answer(runtime, [image for image, _ in batch], [frame for _, frame in batch], decoding):
                if not isinstance(part, SemanticMap):
                    raise ModelError(f"the task {card.task!r} does not answer with a map of classes", where=card.name)
                (x1, y1, x2, y2), owner = next(windows)
                labels[y1:y2, x1:x2] = part.labels[y1 - owner.y : y2 - owner.y, x1 - owner.x : x2 - owner.x]
    return SemanticMap(labels)
