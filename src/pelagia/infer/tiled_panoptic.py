"""The panoptic map of a scan, put together from the segments of its tiles.

Each pixel is answered by the tile in which it lies deepest, as in a class map: where that tile sees stuff, the class of stuff has
the pixel, and all pixels of a class of stuff are one segment. Things are objects with masks: their views in several tiles are
joined as those of any object (`joining`), so that each is one segment, a thing larger than the overlap is united from its
pieces, and touching neighbours stay two. A thing covers what its joined mask covers, the stronger above the weaker; pixels in
which the deepest tile saw a thing that was joined into another view go to that thing, and to none where there is none.

In memory are the ids of the scan and the cropped masks of its things.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.card import ModelCard
from pelagia.core.scan import Scan
from pelagia.core.types import Instances, MaskCrop, PanopticMap, Segment
from pelagia.decode import DecodeOptions
from pelagia.errors import ModelError
from pelagia.infer.joining import CUT_MARGIN, join
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import Runtime
from pelagia.infer.tiles import Tile, owned
from pelagia.infer.views import answers, lay, views

__all__ = ["tiled_panoptic"]

_Window = tuple[int, int, int, int]

#: Rows whose ids are renumbered at once.
_ROWS = 1024


def tiled_panoptic(
    runtime: Runtime, scan: Scan, tile: tuple[int, int], options: PredictOptions, decoding: DecodeOptions
) -> PanopticMap:
    """The segments of all tiles: things by descending score, then stuff by class; ids from 1, 0 where no segment is.

    A thing has the score of its strongest view, stuff the mean of its tiles' scores weighted by pixels.

    Raises:
        ModelError: the model does not answer with a panoptic map.
    """
    card = runtime.card
    size = (scan.width, scan.height)
    tiles = lay(card, size, tile, options)
    windows = owned(tiles, size)
    ids = np.zeros((scan.height, scan.width), dtype=np.int32)  # of stuff label + 1 for now
    stuff: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])  # label -> pixels, score times pixels
    parts: list[Instances] = []
    waiting = iter(windows)
    with (
        closing(views(scan, tiles, card, local=True, most=2 * options.batch)) as shown,
        closing(answers(runtime, shown, options.batch, decoding)) as found,
    ):
        for part in found:
            if not isinstance(part, PanopticMap):
                raise ModelError(f"the task {card.task!r} does not answer with a panoptic map", where=card.name)
            window, owner = next(waiting)
            _put_stuff(ids, part, window, owner, card, stuff)
            parts.append(_things(part, owner, size, card))
    things = join(parts, tiles, size, margin=CUT_MARGIN * max(tile))
    first = len(card.categories) + 1
    _put_things(ids, things, first)
    for part, (window, _) in zip(parts, windows, strict=True):
        _put_rest(ids, part, window, things, first)
    return _numbered(ids, things, first, stuff)


def _put_stuff(
    ids: NDArray[np.int32],
    part: PanopticMap,
    window: _Window,
    owner: Tile,
    card: ModelCard,
    stuff: defaultdict[int, list[float]],
) -> None:
    """Write the stuff of a tile where it answers, label + 1, and tally its score."""
    x1, y1, x2, y2 = window
    seen = part.ids[y1 - owner.y : y2 - owner.y, x1 - owner.x : x2 - owner.x]
    for segment in part.segments:
        if not card.categories[segment.label].is_thing:
            here = seen == segment.id
            pixels = int(np.count_nonzero(here))
            if pixels:
                ids[y1:y2, x1:x2][here] = segment.label + 1
                stuff[segment.label][0] += pixels
                stuff[segment.label][1] += pixels * (1.0 if segment.score is None else segment.score)


def _things(part: PanopticMap, tile: Tile, size: tuple[int, int], card: ModelCard) -> Instances:
    """The things of a tile, in pixels of the scan."""
    labels, scores, crops = [], [], []
    for segment in part.segments:
        if card.categories[segment.label].is_thing:
            crop = core_masks.crop_from_bitmap(part.ids == segment.id)
            crop = core_masks.clip(MaskCrop(crop.x + tile.x, crop.y + tile.y, crop.bitmap), *size)
            if crop.area:
                labels.append(segment.label)
                scores.append(1.0 if segment.score is None else segment.score)
                crops.append(crop)
    if not crops:
        return Instances.empty(scores=True)
    boxes = np.array([core_masks.bounds(crop) for crop in crops])
    return Instances(labels=np.array(labels), boxes=boxes, scores=np.array(scores), masks=tuple(crops))


def _put_things(ids: NDArray[np.int32], things: Instances, first: int) -> None:
    """Write the joined things, `first` plus their position, the stronger above the weaker."""
    for position in range(len(things) - 1, -1, -1):
        crop = _mask(things, position)
        _under(ids, crop)[crop.bitmap] = first + position


def _put_rest(ids: NDArray[np.int32], part: Instances, window: _Window, things: Instances, first: int) -> None:
    """Give pixels without a segment, in which this tile answers and saw a thing, to the thing of that class under most of it."""
    x1, y1, x2, y2 = window
    for row in range(len(part)):
        crop = _mask(part, row)
        inside = core_masks.clip(MaskCrop(crop.x - x1, crop.y - y1, crop.bitmap), x2 - x1, y2 - y1)
        here = _under(ids[y1:y2, x1:x2], inside)
        rest = inside.bitmap & (here == 0)
        if rest.any():
            owners, pixels = np.unique(_under(ids, crop)[crop.bitmap], return_counts=True)
            same = [k for k, owner in enumerate(owners.tolist()) if owner >= first and _alike(things, owner - first, part, row)]
            if same:
                here[rest] = owners[max(same, key=lambda k: int(pixels[k]))]


def _alike(things: Instances, position: int, part: Instances, row: int) -> bool:
    return bool(things.labels[position] == part.labels[row])


def _mask(found: Instances, position: int) -> MaskCrop:
    assert found.masks is not None
    return found.masks[position]


def _under(ids: NDArray[np.int32], crop: MaskCrop) -> NDArray[np.int32]:
    """The part of the map that lies under a crop."""
    rows, columns = crop.bitmap.shape
    return ids[crop.y : crop.y + rows, crop.x : crop.x + columns]


def _numbered(ids: NDArray[np.int32], things: Instances, first: int, stuff: defaultdict[int, list[float]]) -> PanopticMap:
    """Ids without gaps, of what is left after things have covered one another and stuff."""
    used = np.zeros(first + len(things), dtype=np.bool_)
    for rows in _bands(ids):
        used[np.unique(rows)] = True
    order = [*(np.flatnonzero(used[first:]) + first).tolist(), *(code for code in range(1, first) if used[code])]
    number = np.zeros(len(used), dtype=np.int32)
    number[order] = np.arange(1, len(order) + 1)
    for rows in _bands(ids):
        rows[:] = number[rows]
    assert things.scores is not None
    segments = []
    for identity, code in enumerate(order, start=1):
        if code >= first:
            label, score = int(things.labels[code - first]), float(things.scores[code - first])
        else:
            pixels, total = stuff[code - 1]
            label, score = code - 1, total / pixels
        segments.append(Segment(identity, label, score))
    return PanopticMap(ids, tuple(segments))


def _bands(ids: NDArray[np.int32]) -> Sequence[NDArray[np.int32]]:
    return [ids[top : top + _ROWS] for top in range(0, len(ids), _ROWS)]
