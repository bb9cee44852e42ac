"""Tiles over a large image, and one object out of its views in several tiles.

Tiles overlap. An object no larger than the overlap is seen whole by at least one tile; others may see a piece of it, cut by
their border. Four rules make one object of its views:

0. Each place has one judge: along x and along y, the tile whose inner borders are farthest from the centre of a detection. What
   other tiles say there does not count, so an object has one chance to be found, as on the whole image, and counts are not
   inflated. In a narrow band where two tiles are nearly as far, both count, and the next rules decide:
1. Seen whole twice: two detections of one class inside the common area of their tiles, one to one by descending IoU. The weaker
   goes.
2. Cut here, whole there: a detection at an inner border of its tile that lies in a detection which another tile sees whole and
   which crosses that border. The cut one goes, whatever its class: a sliver tells little.
3. Cut on both sides (larger than the overlap): two cut detections of one class that agree within the common area of their tiles
   are pieces of one object and become one box around them; their masks are united, and the keypoints are those of the piece that
   sees most of them.

Where objects have masks, "lies in" and "agree" (rules 2 and 3) are counted in pixels of the masks, otherwise in areas of boxes.
Rules 1 to 3 only ever touch detections of different tiles. A predictor without error finds on tiles exactly what it finds on the
whole (a test), and neighbours that touch or overlap are never merged, as a suppression over the whole image would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pelagia.core import boxes as core_boxes
from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.types import Float, Instances, Int, Mask, MaskCrop
from pelagia.data import geometry
from pelagia.errors import OptionError

__all__ = ["Tile", "join", "lay_tiles", "owned"]

#: Two whole views are one object from this IoU on.
_SAME_IOU = 0.5

#: Width of the band in which two tiles count, in margins (4 % of a tile's side in prediction).
_BAND = 4.0

#: A cut view belongs to a whole one that holds at least this share of it; so does, in the common area, a piece to a larger one.
_PIECE_SHARE = 0.7

#: Two pieces also belong together when, within the common area of their tiles, they overlap with at least this IoU.
_PIECE_IOU = 0.5

#: The share where masks are compared: the mask of a sliver is rougher than its box, but chance puts few pixels into another mask.
_MASK_SHARE = 0.5

#: A keypoint counts as seen from this score on.
_SEEN = 0.5


@dataclass(frozen=True, slots=True)
class Tile:
    """A window of an image, in its pixels; it may reach beyond the right and the lower edge."""

    x: int
    y: int
    width: int
    height: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2."""
        return self.x, self.y, self.x + self.width, self.y + self.height


def lay_tiles(image: tuple[int, int], tile: tuple[int, int], overlap: int, multiple: int = 1) -> list[Tile]:
    """Tiles of one size that cover an image, row by row, evenly spread; sizes are width and height.

    Neighbours overlap by `overlap` pixels at least. Offsets are multiples of `multiple`: a network of that stride then sees the
    same grid in every tile; the last tile of a row or column may therefore stick out, by less than `multiple`.

    Raises:
        OptionError: the overlap leaves no step forward.
    """
    most = min(tile) - multiple
    if not 0 <= overlap <= most:
        raise OptionError(
            f"an overlap of {overlap} px does not fit tiles of {tile[0]} x {tile[1]} px; at most {most} px is possible"
        )
    columns, rows = (_offsets(length, side, overlap, multiple) for length, side in zip(image, tile, strict=True))
    return [Tile(x, y, *tile) for y in rows for x in columns]


def _offsets(length: int, size: int, overlap: int, multiple: int) -> list[int]:
    # In units of `multiple`: the last offset is rounded up, the step down, so coverage and overlap are kept.
    last = -(-max(length - size, 0) // multiple)
    step = max((size - overlap) // multiple, 1)
    count = -(-last // step)
    return [index * last // max(count, 1) * multiple for index in range(count + 1)]


def owned(tiles: Sequence[Tile], size: tuple[int, int]) -> list[tuple[tuple[int, int, int, int], Tile]]:
    """For each tile the window x1, y1, x2, y2 of an image of that width and height for whose pixels it answers, and the tile.

    The windows part the image: neighbours cut their overlap in the middle, so that every pixel lies deep in its tile.
    """
    cuts = []
    for axis, length in enumerate(size):
        spans = sorted({(tile.box[axis], tile.box[axis + 2]) for tile in tiles})
        ends = [(first[1] + second[0]) // 2 for first, second in pairwise(spans)]
        cuts.append({span: (a, b) for span, a, b in zip(spans, [0, *ends], [*ends, length], strict=True)})
    windows = []
    for tile in tiles:
        (x1, x2), (y1, y2) = (cuts[axis][tile.box[axis], tile.box[axis + 2]] for axis in (0, 1))
        windows.append(((x1, y1, x2, y2), tile))
    return windows


def join(
    parts: Sequence[Instances], tiles: Sequence[Tile], size: tuple[int, int], *, margin: float, agnostic: bool = False
) -> Instances:
    """All objects of an image, strongest first, each once, from the detections of its tiles in pixels of the image.

    Args:
        parts: what each tile found.
        size: width and height of the image; its edges cut nothing.
        margin: a detection that comes so near to an inner border of its tile, in pixels, counts as cut by it.
        agnostic: let views of different classes be one object.
    """
    parts = [part.select(judged) for part, judged in zip(parts, _judged(parts, tiles, size, _BAND * margin), strict=True)]
    found = geometry.join(parts)
    owner = np.repeat(np.arange(len(tiles)), [len(part) for part in parts])
    # An oriented box may stick out of the image; what no tile can show must not make a view look cut or outside.
    boxes = core_boxes.clip(found.box_array, *size)
    views = _Views(found, boxes, owner, _cut_by(boxes, owner, tiles, size, margin), agnostic)
    groups = np.arange(len(found))
    members = np.split(np.arange(len(found)), np.cumsum([len(part) for part in parts])[:-1])
    dropped = np.zeros(len(found), dtype=np.bool_)
    pieces: list[tuple[Int, Int]] = []
    for first, second in _neighbours(tiles):
        zone = _common(tiles[first], tiles[second])
        a, b = (_touching(views.boxes, members[tile], zone) for tile in (first, second))
        if len(a) and len(b):
            _drop_doubles(views, a, b, zone, margin, dropped)
            _drop_cut(views, a, b, tiles[first], dropped)
            _drop_cut(views, b, a, tiles[second], dropped)
            pieces.append(_pieces(views, a, b, zone))
    for a, b in pieces:
        alive = ~dropped[a] & ~dropped[b]
        _unite(groups, a[alive], b[alive])
    merged = _hulls(found, groups, np.flatnonzero(~dropped))
    assert merged.scores is not None
    return merged.select(np.argsort(-merged.scores, kind="stable"))


def _judged(parts: Sequence[Instances], tiles: Sequence[Tile], size: tuple[int, int], band: float) -> list[Mask]:
    """Rule 0: which detections of each tile lie where it is the judge, or within `band` of being it."""
    every = np.array([tile.box for tile in tiles], dtype=np.float64).reshape(-1, 4)
    kept = [np.ones(len(part), dtype=np.bool_) for part in parts]
    for axis in (0, 1):
        spans = np.unique(every[:, [axis, axis + 2]], axis=0)  # [S, 2], the distinct extents of tiles along this axis
        for number, part in enumerate(parts):
            boxes = part.box_array
            centres = (boxes[:, axis] + boxes[:, axis + 2]) / 2
            best = _depth(centres[:, None], spans, size[axis]).max(axis=1)
            kept[number] &= _depth(centres, every[number, [axis, axis + 2]], size[axis]) >= best - band
    return kept


def _depth(centres: Float, span: Float, length: int) -> Float:
    """Distance of centres from the nearer end of a span (or of each of [S, 2]); the ends of the image are infinitely far."""
    low, high = span[..., 0], span[..., 1]
    before = np.where(low > 0, centres - low, np.inf)
    after = np.where(high < length, high - centres, np.inf)
    return np.minimum(before, after)


@dataclass(frozen=True, slots=True)
class _Views:
    """The detections of all tiles: their bounds, tiles, and which of the four inner borders cut them [N, 4]."""

    found: Instances
    boxes: Float
    owner: Int
    cut: Mask
    agnostic: bool

    def same_class(self, a: Int, b: Int) -> Mask:
        """[len(a), len(b)], whether two views may be one object."""
        if self.agnostic:
            return np.ones((len(a), len(b)), dtype=np.bool_)
        equal: Mask = self.found.labels[a, None] == self.found.labels[None, b]
        return equal

    def iou(self, a: Int, b: Int) -> Float:
        """[len(a), len(b)]."""
        oriented = self.found.oriented
        if oriented is None:
            return core_boxes.iou(self.boxes[a], self.boxes[b])
        return core_oriented.iou(oriented[a], oriented[b])

    @property
    def least_share(self) -> float:
        """From which share on a view lies in another."""
        return _PIECE_SHARE if self.found.masks is None else _MASK_SHARE

    def overlap(self, a: Int, b: Int, zone: Float | None = None) -> tuple[Float, Float, Float]:
        """The common area of every pair [len(a), len(b)] and the areas of both, inside `zone`: of masks, else of boxes."""
        if self.found.masks is not None:
            first, second = ([_inside(self.found.masks[index], zone) for index in part.tolist()] for part in (a, b))
            areas = [np.array([crop.area for crop in crops], dtype=np.float64) for crops in (first, second)]
            return core_masks.intersections(first, second), areas[0], areas[1]
        one, other = self.boxes[a], self.boxes[b]
        if zone is not None:
            one, other = (np.clip(part, np.tile(zone[:2], 2), np.tile(zone[2:], 2)) for part in (one, other))
        return core_boxes.intersection(one, other), core_boxes.area(one), core_boxes.area(other)


def _inside(crop: MaskCrop, zone: Float | None) -> MaskCrop:
    """What of a mask lies in `zone`, whole pixels x1, y1, x2, y2, in pixels from its corner."""
    if zone is None:
        return crop
    x1, y1, x2, y2 = (int(value) for value in zone)
    return core_masks.clip(MaskCrop(crop.x - x1, crop.y - y1, crop.bitmap), x2 - x1, y2 - y1)


def _neighbours(tiles: Sequence[Tile]) -> list[tuple[int, int]]:
    """Pairs of tiles with a common area, the earlier first."""
    boxes = np.array([tile.box for tile in tiles], dtype=np.float64).reshape(-1, 4)
    pairs = []
    for first in range(len(tiles)):
        later = boxes[first + 1 :]
        near = ((later[:, :2] < boxes[first, 2:]) & (later[:, 2:] > boxes[first, :2])).all(axis=1)
        pairs += [(first, int(second)) for second in np.flatnonzero(near) + first + 1]
    return pairs


def _common(a: Tile, b: Tile) -> Float:
    """x1, y1, x2, y2 of the common area of two tiles."""
    left, top = np.maximum(a.box[:2], b.box[:2])
    right, bottom = np.minimum(a.box[2:], b.box[2:])
    return np.array([left, top, right, bottom], dtype=np.float64)


def _cut_by(boxes: Float, owner: Int, tiles: Sequence[Tile], size: tuple[int, int], margin: float) -> Mask:
    """[N, 4]: does the left, top, right, lower border of its tile, inside the image, cut a detection?"""
    borders = np.array([tile.box for tile in tiles], dtype=np.float64).reshape(-1, 4)[owner]
    inner = np.concatenate([borders[:, :2] > 0, borders[:, 2:] < size], axis=1)
    near = np.concatenate([boxes[:, :2] <= borders[:, :2] + margin, boxes[:, 2:] >= borders[:, 2:] - margin], axis=1)
    cut: Mask = inner & near
    return cut


def _touching(boxes: Float, members: Int, zone: Float) -> Int:
    own = boxes[members]
    return members[((own[:, :2] < zone[2:]) & (own[:, 2:] > zone[:2])).all(axis=1)]


def _within(boxes: Float, zone: Float, margin: float) -> Mask:
    inside = (boxes[:, :2] >= zone[:2] - margin) & (boxes[:, 2:] <= zone[2:] + margin)
    return np.asarray(inside.all(axis=1))


def _drop_doubles(views: _Views, a: Int, b: Int, zone: Float, margin: float, dropped: Mask) -> None:
    """Rule 1."""
    a, b = (part[_within(views.boxes[part], zone, margin)] for part in (a, b))
    overlap = np.where(views.same_class(a, b), views.iou(a, b), 0.0)
    rows, columns = np.nonzero(overlap >= _SAME_IOU)
    scores = views.found.scores
    assert scores is not None
    taken: set[int] = set()
    for pair in np.argsort(-overlap[rows, columns], kind="stable"):
        one, other = int(a[rows[pair]]), int(b[columns[pair]])
        if one not in taken and other not in taken:
            taken |= {one, other}
            # A cut view never wins over a whole one; else the stronger, else that of the earlier tile.
            rank = [(bool(views.cut[item].any()), -scores[item]) for item in (one, other)]
            dropped[other if rank[0] <= rank[1] else one] = True


def _drop_cut(views: _Views, a: Int, b: Int, tile: Tile, dropped: Mask) -> None:
    """Rule 2: pieces among `a`, which `tile` saw, of whole views among `b`."""
    a = a[views.cut[a].any(axis=1)]
    b = b[~views.cut[b].any(axis=1)]
    x1, y1, x2, y2 = tile.box
    whole = views.boxes[b]
    crosses = np.stack([whole[:, 0] < x1, whole[:, 1] < y1, whole[:, 2] > x2, whole[:, 3] > y2], axis=1)
    through_same = (views.cut[a][:, None, :] & crosses[None]).any(axis=2)
    shared, area, _ = views.overlap(a, b)
    share = shared / np.maximum(area, 1e-12)[:, None]
    dropped[a[(through_same & (share >= views.least_share)).any(axis=1)]] = True


def _pieces(views: _Views, a: Int, b: Int, zone: Float) -> tuple[Int, Int]:
    """Rule 3: pairs of pieces of one object."""
    a, b = (part[views.cut[part].any(axis=1)] for part in (a, b))
    shared, first, second = views.overlap(a, b, zone)
    smaller = np.minimum(first[:, None], second[None])
    union = first[:, None] + second[None] - shared
    agree = (shared >= _PIECE_IOU * np.maximum(union, 1e-12)) | (shared >= views.least_share * np.maximum(smaller, 1e-12))
    rows, columns = np.nonzero(agree & views.same_class(a, b))
    return a[rows], b[columns]


def _unite(groups: Int, a: Int, b: Int) -> None:
    """Give both members of each pair one root in the forest `groups`."""
    for one, other in zip(a.tolist(), b.tolist(), strict=True):
        roots = []
        for item in (one, other):
            while groups[item] != item:
                groups[item] = groups[groups[item]]
                item = int(groups[item])
            roots.append(item)
        groups[max(roots)] = min(roots)


def _hulls(found: Instances, groups: Int, alive: Int) -> Instances:
    """The living detections; those of one group become their hull with the score and class of the strongest."""
    assert found.scores is not None
    roots = groups[alive].copy()
    while (groups[roots] != roots).any():
        roots = groups[roots]
    order = np.lexsort((-found.scores[alive], roots))
    alive, roots = alive[order], roots[order]
    starts = np.flatnonzero(np.r_[True, roots[1:] != roots[:-1]]) if len(roots) else np.zeros(0, dtype=np.int64)
    merged = found.select(alive[starts])
    masks = None if merged.masks is None else list(merged.masks)
    ends = np.append(starts[1:], len(alive))
    for position in np.flatnonzero(ends - starts > 1).tolist():
        group = alive[starts[position] : ends[position]]
        if merged.boxes is not None:
            assert found.boxes is not None
            merged.boxes[position] = [*found.boxes[group, :2].min(axis=0), *found.boxes[group, 2:].max(axis=0)]
        if merged.oriented is not None:
            assert found.oriented is not None
            merged.oriented[position] = _stretch(found.oriented[group])
        if masks is not None:
            assert found.masks is not None
            masks[position] = core_masks.unite([found.masks[index] for index in group.tolist()])
        if merged.keypoints is not None:
            assert found.keypoints is not None
            seen = np.count_nonzero(found.keypoints[group, :, 2] >= _SEEN, axis=1)
            merged.keypoints[position] = found.keypoints[group[np.argmax(seen)]]
    return merged if masks is None else merged.replace(masks=tuple(masks))


def _stretch(pieces: Float) -> Float:
    """[G, 5] pieces of one object -> [5]: the largest piece, stretched along its long side over all pieces.

    The hull would be too wide: the least rectangle of a small piece that a tile's corner cut off points anywhere.
    """
    cx, cy, width, height, angle = pieces[np.argmax(pieces[:, 2] * pieces[:, 3])]
    axis = np.array([np.cos(angle), np.sin(angle)])
    along = (core_oriented.to_corners(pieces).reshape(-1, 2) - [cx, cy]) @ axis
    low, high = min(along.min(), -width / 2), max(along.max(), width / 2)
    return np.array([cx + axis[0] * (low + high) / 2, cy + axis[1] * (low + high) / 2, high - low, height, angle])
