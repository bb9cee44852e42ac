"""The panoptic map of a scan, put together from the segments of its tiles.

Each pixel is answered by the tile in which it lies deepest, as in a class map: where that tile sees stuff, the class of stuff has
the pixel, and all pixels of a class of stuff are one segment. Things are objects with masks: their views in several tiles are
joined as those of any object (`joining`), so that each is one segment, a thing larger than the overlap is united from its
pieces, and touching neighbours stay two. A thing covers what its joined mask covers, the stronger above the weaker; pixels in
which the deepest tile saw a thing that was joined into another view go to that thing, and to none where there is none.

With `options.coarse` the scan is looked at again, shrunk (`coarse`): things longer than the overlap replace their pieces, and lie
below all that finer tiles saw. Of these looks only things are taken, and their masks held at the size at which they were seen.

In memory are the cropped masks of the things, in bits, and the stuff of each tile, compressed. The map comes in bands of rows, of
which as many are held as a row of tiles shows; whoever wants it whole puts them together.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.card import ModelCard
from pelagia.core.lazy import resolve
from pelagia.core.scan import Scan
from pelagia.core.types import Instances, Int, Mask, MaskCrop, PackedCrop, PanopticMap, Segment
from pelagia.decode import DecodeOptions
from pelagia.errors import ModelError
from pelagia.infer.coarse import Enlarged, Shrunk, levels, take_larger
from pelagia.infer.joining import CUT_MARGIN, join_views
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import Runtime
from pelagia.infer.tiled import coarse_tiles
from pelagia.infer.tiles import Tile, owned
from pelagia.infer.views import answers, lay, overlap_of, views

__all__ = ["TiledSegments", "see_segments", "tiled_panoptic"]

_Window = tuple[int, int, int, int]

#: Rows of ids that are counted or renumbered at once: numpy makes 8 bytes of each.
_ROWS = 64


def tiled_panoptic(
    runtime: Runtime, scan: Scan, tile: tuple[int, int], options: PredictOptions, decoding: DecodeOptions
) -> PanopticMap:
    """The segments of all tiles and the whole map; as `see_segments`."""
    seen = see_segments(runtime, scan, tile, options, decoding)
    ids = np.empty((scan.height, scan.width), dtype=np.int32)
    for top, band in seen.bands():
        ids[top : top + len(band)] = band
    return PanopticMap(ids, seen.segments)


def see_segments(
    runtime: Runtime, scan: Scan, tile: tuple[int, int], options: PredictOptions, decoding: DecodeOptions
) -> TiledSegments:
    """The segments of all tiles: things by descending score, then stuff by class; ids from 1, 0 where no segment is.

    With `options.coarse` things longer than the overlap come from larger tiles too. A thing has the score of its
    strongest view, stuff the mean of its tiles' scores weighted by pixels.

    Raises:
        ModelError: the model does not answer with a panoptic map.
    """
    card = runtime.card
    size = (scan.width, scan.height)
    tiles = lay(card, size, tile, options)
    stuff: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])  # label -> pixels, score times pixels
    looks: list[_Look] = []
    with closing(_seen(runtime, scan, tiles, options, decoding)) as found:
        for part, (window, owner) in zip(found, owned(tiles, size), strict=True):
            looks.append(_Look(window, _stuff(part, window, owner, card, stuff), _things(part, owner, size, card)))
    things, cut = join_views([look.things for look in looks], tiles, size, margin=CUT_MARGIN * max(tile))
    level = np.zeros(len(things), dtype=np.int64)
    longest = float(overlap_of(card, tile, options))
    for number, factor in enumerate(levels(size, tile) if options.coarse else [], start=1):
        larger, overlap = _coarse(runtime, scan, coarse_tiles(size, tile, factor, options), options, decoding)
        things, cut, came = take_larger((things, cut), larger, longest)
        level, longest = np.append(level, number)[came], overlap
    return TiledSegments(_Map(looks, things, level, len(card.categories) + 1, scan.width), stuff)


def _seen(
    runtime: Runtime, scan: Scan, tiles: Sequence[Tile], options: PredictOptions, decoding: DecodeOptions
) -> Generator[PanopticMap, None, None]:
    """The map of each tile, in its pixels."""
    card = runtime.card
    with (
        closing(views(scan, tiles, card, local=True, most=2 * options.batch)) as shown,
        closing(answers(runtime, shown, options.batch, decoding)) as found,
    ):
        for part in found:
            if not isinstance(part, PanopticMap):
                raise ModelError(f"the task {card.task!r} does not answer with a panoptic map", where=card.name)
            yield part


def _coarse(
    runtime: Runtime,
    scan: Scan,
    laid: tuple[Sequence[Tile], int, int],
    options: PredictOptions,
    decoding: DecodeOptions,
) -> tuple[tuple[Instances, Mask], float]:
    """The things that larger tiles show, joined while they are small, which are pieces, and the overlap in pixels of the scan.

    `laid` are the tiles in pixels of the shrunk scan, how many times it is shrunk, and their overlap there.
    """
    tiles, zoom, overlap = laid
    shrunk = Shrunk(scan, zoom)
    size = (shrunk.width, shrunk.height)
    with closing(_seen(runtime, shrunk, tiles, options, decoding)) as found:
        parts = [_things(part, owner, size, runtime.card) for part, owner in zip(found, tiles, strict=True)]
    things, cut = join_views(parts, tiles, size, margin=CUT_MARGIN * max(tiles[0].width, tiles[0].height))
    boxes = np.minimum(zoom * things.box_array, np.tile([scan.width, scan.height], 2))
    masks = tuple(Enlarged(mask, zoom, (scan.width, scan.height)) for mask in things.masks or ())
    return (things.replace(boxes=boxes, masks=masks if things.masks is not None else None), cut), float(zoom * overlap)


class TiledSegments:
    """The joined segments of a scan.

    Attributes:
        segments: S of them, their ids 1 to S; each has a pixel.
        areas: [S], pixels.
        boxes: [S, 4], the bounds x1, y1, x2, y2 of their pixels.
    """

    def __init__(self, coded: _Map, stuff: dict[int, list[float]]) -> None:
        self._coded = coded
        first, things = coded.first, coded.things
        areas, boxes = _measured(coded.bands(), first + len(things))
        # Without gaps, of what is left after things have covered one another and stuff.
        order = [*(np.flatnonzero(areas[first:]) + first).tolist(), *(code for code in range(1, first) if areas[code])]
        self._number = np.zeros(len(areas), dtype=np.int32)
        self._number[order] = np.arange(1, len(order) + 1)
        self.areas, self.boxes = areas[order], boxes[order]
        assert things.scores is not None
        segments = []
        for identity, code in enumerate(order, start=1):
            if code >= first:
                label, score = int(things.labels[code - first]), float(things.scores[code - first])
            else:
                pixels, total = stuff[code - 1]
                label, score = code - 1, total / pixels
            segments.append(Segment(identity, label, score))
        self.segments = tuple(segments)

    def bands(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """From top to bottom the first row of each band of the map and its ids [h, W]."""
        for top, band in self._coded.bands():
            for at in range(0, len(band), _ROWS):
                yield top + at, self._number[band[at : at + _ROWS]]


@dataclass(frozen=True, slots=True)
class _Look:
    """What a tile saw: `stuff` in the window for which it answers, label + 1 and 0 elsewhere, and its things."""

    window: _Window
    stuff: bytes
    things: Instances


@dataclass(frozen=True, slots=True)
class _Map:
    """The map with codes in place of ids: stuff label + 1, and `first` plus the position of a thing. `level` [N] tells which look
    saw a thing, 0 the finest."""

    looks: Sequence[_Look]
    things: Instances
    level: Int
    first: int
    width: int

    def bands(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """The first row of each band, one a row of tiles, and its codes [h, W]; to be read, before the next is asked for."""
        rows = [list(row) for _, row in groupby(self.looks, key=lambda look: look.window[1])]
        spans = _spans(self.things.masks or ())
        bands: dict[int, NDArray[np.int32]] = {}  # number of the row -> its codes
        tops = [row[0].window[1] for row in rows]
        reaches = [_spans([mask for look in row for mask in look.things.masks or ()]) for row in rows]
        for number, row in enumerate(rows):
            low = min([int(reach[:, 0].min(initial=tops[number])) for reach in reaches[number:]])
            high = int(reaches[number][:, 1].max(initial=row[0].window[3]))
            for other in range(number, len(rows)):
                if other not in bands and tops[other] < high:
                    bands[other] = self._painted(rows[other], spans)
            for other in [other for other in bands if other < number and rows[other][0].window[3] <= low]:
                del bands[other]
            placed = [(tops[other], bands[other]) for other in sorted(bands)]
            for look in row:
                x1, y1, x2, _ = look.window
                _put_rest(bands[number][:, x1:x2], look.things, (x1, y1), placed, self.things, self.first)
            yield tops[number], bands[number]

    def _painted(self, row: Sequence[_Look], spans: Int) -> NDArray[np.int32]:
        """The codes of stuff, above them things: of finer looks above those of coarser, then the stronger above the weaker."""
        y1, y2 = row[0].window[1], row[0].window[3]
        band = np.zeros((y2 - y1, self.width), dtype=np.int32)
        for look in row:
            x1, _, x2, _ = look.window
            band[:, x1:x2] = np.frombuffer(zlib.decompress(look.stuff), dtype=_kind(self.first)).reshape(y2 - y1, x2 - x1)
        here = np.flatnonzero((spans[:, 0] < y2) & (spans[:, 1] > y1))
        for position in here[np.argsort(self.level[here], kind="stable")][::-1].tolist():
            crop = _mask(self.things, position)
            top, bottom = max(crop.y, y1), min(crop.y + crop.shape[0], y2)
            bitmap = crop.part(slice(top - crop.y, bottom - crop.y), slice(None))
            band[top - y1 : bottom - y1, crop.x : crop.x + bitmap.shape[1]][bitmap] = self.first + position
        return band


def _kind(first: int) -> Any:
    return np.uint8 if first <= 256 else np.uint16


def _spans(masks: Sequence[MaskCrop]) -> Int:
    """[N, 2], the first row of each mask and one past its last."""
    return np.array([(mask.y, mask.y + mask.shape[0]) for mask in masks], dtype=np.int64).reshape(-1, 2)


def _stuff(part: PanopticMap, window: _Window, owner: Tile, card: ModelCard, tally: defaultdict[int, list[float]]) -> bytes:
    """The stuff of a tile where it answers, label + 1, compressed; its scores are tallied."""
    x1, y1, x2, y2 = window
    seen = part.ids[y1 - owner.y : y2 - owner.y, x1 - owner.x : x2 - owner.x]
    labels = np.zeros(seen.shape, dtype=_kind(len(card.categories) + 1))
    for segment in part.segments:
        if not card.categories[segment.label].is_thing:
            here = seen == segment.id
            pixels = int(np.count_nonzero(here))
            if pixels:
                labels[here] = segment.label + 1
                tally[segment.label][0] += pixels
                tally[segment.label][1] += pixels * (1.0 if segment.score is None else segment.score)
    return zlib.compress(labels.tobytes(), 1)


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
                crops.append(PackedCrop(crop.x, crop.y, crop.bitmap))
    if not crops:
        return Instances.empty(scores=True)
    boxes = np.array([core_masks.bounds(crop) for crop in crops])
    return Instances(labels=np.array(labels), boxes=boxes, scores=np.array(scores), masks=tuple(crops))


def _put_rest(
    codes: NDArray[np.int32],
    part: Instances,
    corner: tuple[int, int],
    bands: Sequence[tuple[int, NDArray[np.int32]]],
    things: Instances,
    first: int,
) -> None:
    """Give pixels without a segment, in a window whose `codes` begin at `corner`, in which its tile saw a thing, to the thing of
    that class under most of it."""
    height, width = codes.shape
    for row in range(len(part)):
        crop = _mask(part, row)
        inside = core_masks.clip(MaskCrop(crop.x - corner[0], crop.y - corner[1], crop.bitmap), width, height)
        rows, columns = inside.bitmap.shape
        here = codes[inside.y : inside.y + rows, inside.x : inside.x + columns]
        rest = inside.bitmap & (here == 0)
        if rest.any():
            owners, pixels = np.unique(_under(bands, crop)[crop.bitmap], return_counts=True)
            same = [k for k, owner in enumerate(owners.tolist()) if owner >= first and _alike(things, owner - first, part, row)]
            if same:
                here[rest] = owners[max(same, key=lambda k: int(pixels[k]))]


def _alike(things: Instances, position: int, part: Instances, row: int) -> bool:
    return bool(things.labels[position] == part.labels[row])


def _mask(found: Instances, position: int) -> MaskCrop:
    assert found.masks is not None
    return found.masks[position]


def _under(bands: Sequence[tuple[int, NDArray[np.int32]]], crop: MaskCrop) -> NDArray[np.int32]:
    """The codes that lie under a crop, from bands one below the other."""
    rows, columns = crop.shape
    return np.concatenate(
        [band[max(crop.y - top, 0) : max(crop.y + rows - top, 0), crop.x : crop.x + columns] for top, band in bands]
    )


def _measured(bands: Iterator[tuple[int, NDArray[np.int32]]], count: int) -> tuple[Int, Int]:
    """Of each code below `count` the pixels [count] and the bounds [count, 4]; 0 is no segment, and has none."""
    find = resolve("scipy.ndimage", purpose="find the bounds of segments").find_objects
    areas = np.zeros(count, dtype=np.int64)
    boxes = np.tile(np.array([np.iinfo(np.int64).max] * 2 + [0] * 2), (count, 1))
    for top, band in bands:
        for at in range(0, len(band), _ROWS):
            areas += np.bincount(band[at : at + _ROWS].reshape(-1), minlength=count)
        for code, window in enumerate(find(band, max_label=count - 1), start=1):
            if window is not None:
                rows, columns = window
                box = boxes[code]
                box[:2] = np.minimum(box[:2], (columns.start, top + rows.start))
                box[2:] = np.maximum(box[2:], (columns.stop, top + rows.stop))
    areas[0] = 0
    return areas, boxes
