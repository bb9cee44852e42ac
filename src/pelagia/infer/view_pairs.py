"""Pairs of views of different tiles that meet in the common area of their tiles, and how far they agree there.

A view is one detection of one tile. Every array over pairs has one row a pair: nothing is built for all views times all views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pelagia.core import boxes as core_boxes
from pelagia.core import oriented as core_oriented
from pelagia.core.types import Float, Instances, Int, Mask, MaskCrop
from pelagia.infer.tiles import Tile

__all__ = ["Pairs", "Views", "borders", "judged", "meet", "one_to_one"]

#: Pixels of two masks that are compared at once.
_PIXELS = 1 << 20


@dataclass(frozen=True, slots=True)
class Views:
    """The detections of all tiles: themselves, their bounds within the image [N, 4], the tile of each [N], which of the four
    inner borders of its tile cut it [N, 4]; and width and height of the image."""

    found: Instances
    boxes: Float
    owner: Int
    cut: Mask
    size: tuple[int, int]

    @property
    def pieces(self) -> Mask:
        """[N], whether any border cuts a view."""
        return np.asarray(self.cut.any(axis=1))

    def iou(self, a: Int, b: Int) -> Float:
        """IoU of the boxes of pairs [P], of oriented boxes exact."""
        if self.found.oriented is not None:
            return core_oriented.iou_aligned(self.found.oriented[a], self.found.oriented[b])
        return core_boxes.iou_aligned(self.boxes[a], self.boxes[b], eps=1e-12)

    def common(self, a: Int, b: Int, zone: Float | None = None) -> tuple[Float, Float, Float]:
        """Of pairs [P]: the common area and the areas of both, of masks or else of boxes, inside `zone` [P, 4] if given."""
        if self.found.masks is not None:
            return _common_pixels(self.found.masks, a, b, zone)
        if self.found.oriented is not None:
            return _common_oriented(self.found.oriented, a, b, zone)
        one, other = self.boxes[a], self.boxes[b]
        if zone is not None:
            one, other = (_clipped(part, zone) for part in (one, other))
        return _area(_clipped(one, other)), _area(one), _area(other)


def borders(tiles: Sequence[Tile]) -> Float:
    """[T, 4] x1, y1, x2, y2."""
    return np.array([tile.box for tile in tiles], dtype=np.float64).reshape(-1, 4)


def _clipped(boxes: Float, windows: Float) -> Float:
    """The part of each box [P, 4] in its window [P, 4]; turned inside out where there is none."""
    return np.concatenate([np.maximum(boxes[:, :2], windows[:, :2]), np.minimum(boxes[:, 2:], windows[:, 2:])], axis=1)


def _area(boxes: Float) -> Float:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    return np.asarray(sides[:, 0] * sides[:, 1])


def _common_oriented(oriented: Float, a: Int, b: Int, zone: Float | None) -> tuple[Float, Float, Float]:
    one, other = oriented[a], oriented[b]
    shared = _intersection(one, other)
    if zone is None:
        return shared, one[:, 2] * one[:, 3], other[:, 2] * other[:, 3]
    # Rectangles of pieces end at their tiles, so what they share lies in the common area but for their corners.
    sides = zone[:, 2:] - zone[:, :2]
    window = np.column_stack([(zone[:, :2] + zone[:, 2:]) / 2, sides, np.zeros(len(zone))])
    first, second = _intersection(one, window), _intersection(other, window)
    return np.minimum(shared, np.minimum(first, second)), first, second


def _intersection(a: Float, b: Float) -> Float:
    """Common area of pairs of oriented boxes, from IoU = c / (A + B - c)."""
    iou = core_oriented.iou_aligned(a, b)
    return np.asarray(iou * (a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3]) / (1 + iou))


def _common_pixels(masks: Sequence[MaskCrop], a: Int, b: Int, zone: Float | None) -> tuple[Float, Float, Float]:
    result = np.zeros((3, len(a)))
    limits = [None] * len(a) if zone is None else zone.astype(np.int64).tolist()
    for row, (i, j, limit) in enumerate(zip(a.tolist(), b.tolist(), limits, strict=True)):
        one, other = _window(masks[i], limit), _window(masks[j], limit)
        for place, k, window in ((1, i, one), (2, j, other)):
            result[place, row] = masks[k].area if limit is None else np.count_nonzero(_part(masks[k], window))
        both = (max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))
        if both[0] < both[2] and both[1] < both[3]:
            result[0, row] = _shared(masks[i], masks[j], both)
    return result[0], result[1], result[2]


def _shared(one: MaskCrop, other: MaskCrop, window: tuple[int, int, int, int]) -> int:
    """Pixels of a window that are set in both, counted in strips: crops may be as large as a scan."""
    x1, y1, x2, y2 = window
    rows = max(_PIXELS // (x2 - x1), 1)
    strips = ((x1, top, x2, min(top + rows, y2)) for top in range(y1, y2, rows))
    return sum(int(np.count_nonzero(_part(one, strip) & _part(other, strip))) for strip in strips)


def _window(crop: MaskCrop, limit: Sequence[int] | None) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = crop.x, crop.y, crop.x + crop.shape[1], crop.y + crop.shape[0]
    if limit is None:
        return x1, y1, x2, y2
    x1, y1 = max(x1, limit[0]), max(y1, limit[1])
    return x1, y1, max(min(x2, limit[2]), x1), max(min(y2, limit[3]), y1)


def _part(crop: MaskCrop, window: tuple[int, int, int, int]) -> Mask:
    x1, y1, x2, y2 = window
    return crop.part(slice(max(y1 - crop.y, 0), max(y2 - crop.y, 0)), slice(max(x1 - crop.x, 0), max(x2 - crop.x, 0)))


def judged(boxes: Float, owner: Int, tiles: Sequence[Tile], size: tuple[int, int], band: float) -> Mask:
    """[N], whether the tile of a view is the judge of its centre, or within `band` pixels of being it (rule 0 of `joining`)."""
    every = borders(tiles)
    kept = np.ones(len(boxes), dtype=np.bool_)
    for axis in (0, 1):
        spans = np.unique(every[:, [axis, axis + 2]], axis=0)  # [S, 2], the distinct extents of tiles along this axis
        centres = (boxes[:, axis] + boxes[:, axis + 2]) / 2
        # Of spans whose both ends rise, the deeper of two neighbours changes where the one's end is as far as the other's begin.
        best = spans[np.searchsorted((spans[:-1, 1] + spans[1:, 0]) / 2, centres)]
        own = every[owner][:, [axis, axis + 2]]
        kept &= _depth(centres, own, size[axis]) >= _depth(centres, best, size[axis]) - band
    return kept


def _depth(centres: Float, span: Float, length: int) -> Float:
    """Distance of centres [N] from the nearer end of a span [N, 2]; the ends of the image are infinitely far."""
    low, high = span[:, 0], span[:, 1]
    before = np.where(low > 0, centres - low, np.inf)
    after = np.where(high < length, high - centres, np.inf)
    return np.minimum(before, after)


@dataclass(frozen=True, slots=True)
class Pairs:
    """P pairs of views, `a` of the earlier tile; `group` [P] numbers pairs of tiles, whose common area is `zone` [P, 4]."""

    group: Int
    a: Int
    b: Int
    zone: Float

    def at(self, index: Int | Mask) -> Pairs:
        """Some of the pairs."""
        return Pairs(self.group[index], self.a[index], self.b[index], self.zone[index])


def meet(boxes: Float, owner: Int, tiles: Sequence[Tile], among: Mask) -> Pairs:
    """All pairs of views of different tiles, `among` some [N], whose boxes share a part of the common area of their tiles.

    The tiles lie as `lay_tiles` lays them. Views are sorted along the longer side of each common area; a view meets there
    those that begin before it ends, so the work follows the number of pairs that overlap along it.
    """
    every = borders(tiles)
    chosen = np.flatnonzero(among)
    view, other = _visits(_clipped(boxes[chosen], every[owner[chosen]]), owner[chosen], every)
    view = chosen[view]
    key = np.minimum(owner[view], other) * len(tiles) + np.maximum(owner[view], other)
    keys, group = np.unique(key, return_inverse=True)
    group = group.reshape(-1)
    zones = _clipped(every[keys // len(tiles)], every[keys % len(tiles)])
    sides = zones[:, 2:] - zones[:, :2]
    axis = np.where(sides[:, 0] > sides[:, 1], 0, 1)[group]
    rows = np.arange(len(view))
    inside = _clipped(boxes[view], zones[group])
    # One line for all groups: each has a stretch of its own on it.
    shift = group * (sides.max(initial=0.0) + 2.0) - zones[group, axis]
    start, stop = inside[rows, axis] + shift, inside[rows, axis + 2] + shift
    order = np.argsort(start, kind="stable")
    early = owner[view[order]] < other[order]
    one, two = order[early], order[~early]
    begins, follows = _reach(start[two], start[one], stop[one], "left"), _reach(start[one], start[two], stop[two], "right")
    first = np.concatenate([one[begins[0]], one[follows[1]]])
    second = np.concatenate([two[begins[1]], two[follows[0]]])
    share = _area(_clipped(inside[first], inside[second])) > 0
    first, second = first[share], second[share]
    return Pairs(keys[group[first]], view[first], view[second], zones[group[first]])


def _visits(boxes: Float, owner: Int, every: Float) -> tuple[Int, Int]:
    """Views [V] and the tiles other than their own [V] that they reach into."""
    spans, places, lows, highs = [], [], [], []
    for axis in (0, 1):
        distinct, place = np.unique(every[:, [axis, axis + 2]], axis=0, return_inverse=True)
        spans.append(len(distinct))
        places.append(place.reshape(-1))
        lows.append(np.searchsorted(distinct[:, 1], boxes[:, axis], side="right"))
        highs.append(np.searchsorted(distinct[:, 0], boxes[:, axis + 2], side="left"))
    tile_at = np.full(spans, -1, dtype=np.int64)
    tile_at[places[0], places[1]] = np.arange(len(every))
    wide, tall = (np.maximum(high - low, 0) for low, high in zip(lows, highs, strict=True))
    several = np.flatnonzero(wide * tall > 1)
    counts = (wide * tall)[several]
    view = np.repeat(several, counts)
    number = np.arange(len(view)) - np.repeat(np.cumsum(counts) - counts, counts)
    other = tile_at[lows[0][view] + number % wide[view], lows[1][view] + number // wide[view]]
    elsewhere = (other != owner[view]) & (other >= 0)
    return view[elsewhere], other[elsewhere]


def _reach(starts: Float, low: Float, high: Float, side: str) -> tuple[Int, Int]:
    """Positions in `low` and in the sorted `starts`, for each start in [low, high), without `low` itself if `side` is right."""
    first = np.searchsorted(starts, low, side=side)  # type: ignore[call-overload]
    last = np.searchsorted(starts, high, side="left")
    counts = np.maximum(last - first, 0)
    which = np.repeat(np.arange(len(low)), counts)
    offset = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return which, first[which] + offset


def one_to_one(pairs: Pairs, strength: Float, difference: Float) -> Int:
    """Which pairs are taken when no view is taken twice in a pair of tiles: by descending strength, then by least difference."""
    if not len(pairs.a):
        return np.zeros(0, dtype=np.int64)
    count = int(max(pairs.a.max(), pairs.b.max())) + 1
    ends = [np.unique(pairs.group * count + end, return_inverse=True, return_counts=True)[1:] for end in (pairs.a, pairs.b)]
    alone = np.logical_and.reduce([counts[place.reshape(-1)] == 1 for place, counts in ends])
    contested = np.flatnonzero(~alone)
    contested = contested[np.lexsort((difference[contested], -strength[contested]))]
    one, two = (place.reshape(-1)[contested].tolist() for place, _ in ends)
    taken: tuple[set[int], set[int]] = (set(), set())
    won = []
    for index, i, j in zip(contested.tolist(), one, two, strict=True):
        if i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
            won.append(index)
    return np.sort(np.concatenate([np.flatnonzero(alone), np.array(won, dtype=np.int64)]))
