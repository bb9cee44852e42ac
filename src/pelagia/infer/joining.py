"""One object out of its views in several overlapping tiles.

An object no larger than the overlap is seen whole by at least one tile; others may see a piece of it, cut by their border. Five
rules make one object of its views:

0. Each place has one judge: along x and along y, the tile whose inner borders are farthest from the centre of a detection. What
   other tiles say there does not count, so an object has one chance to be found, as on the whole image, and counts are not
   inflated. In a narrow band where two tiles are nearly as far, both count, and the next rules decide:
1. Seen whole twice: two detections of one class inside the common area of their tiles, one to one by descending IoU, of which
   at least one lies where the other's tile counts too. The weaker goes.
2. Cut here, whole there: a detection at an inner border of its tile that lies in a detection which another tile sees whole and
   which crosses that border. The cut one goes, whatever its class: a sliver tells little. It stays where a piece in the other
   tile agrees with it better: then it belongs to a larger object that lies there too.
3. Cut on both sides (larger than the overlap): two cut detections of one class that agree within the common area of their tiles,
   one to one by descending IoU, are pieces of one object and become one box around them; so is a piece without such a partner
   that lies in a larger one. Without masks the larger one must have no partner either: bounds of a long object hold what it
   does not touch, and two detections of one tile would become one. Masks of pieces are united, and the keypoints are those of
   the piece that sees most of them.
4. Crossing (plain boxes): the boxes of a long object that goes on aslant hardly agree. Two pieces of one class in tiles side by
   side, each cut by the border that lies in the other's tile and longer than the common area, are one object too if neither has
   a partner by rule 3 and each is the only such piece that the other meets there. A predictor without error sees what crosses
   the common area in both tiles, so the only candidate is the object itself; what runs side by side is left in pieces.

Where objects have masks, "lies in" and "agree" (rules 2 and 3) are counted in pixels of the masks, otherwise in areas of boxes,
of oriented boxes by clipping. Rules 1 to 4 only ever touch detections of different tiles. A predictor without error finds on
tiles exactly what it finds on the whole (a test), and neighbours that touch or overlap are never merged, as a suppression over
the whole image would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pelagia.core import boxes as core_boxes
from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.types import Float, Instances, Int, Mask
from pelagia.data import geometry
from pelagia.infer.tiles import Tile
from pelagia.infer.view_pairs import Pairs, Views, borders, judged, meet, one_to_one

__all__ = ["CUT_MARGIN", "join", "join_views", "least_share"]

#: A detection this near to a border of its tile, as a share of the tile's side, counts as cut by it.
CUT_MARGIN = 0.01

#: Two whole views are one object from this IoU on.
_SAME_IOU = 0.5

#: Width of the band in which two tiles count, in margins (1 % of a tile's side in prediction): about as far as the centres of two
#: views of one object lie apart. Without it, each may leave the object to the other; what lies in it has two chances to be found,
#: so that a wider one counts more on tiles than on the whole image (tests/test_trained_tiles.py prints both counts).
_BAND = 1.0

#: A cut view belongs to a whole one that holds at least this share of it; so does, in the common area, a piece to a larger one.
_PIECE_SHARE = 0.7

#: Two pieces also belong together when, within the common area of their tiles, they overlap with at least this IoU.
_PIECE_IOU = 0.5

#: The share where masks are compared: the mask of a sliver is rougher than its box, but chance puts few pixels into another mask.
_MASK_SHARE = 0.5

#: A keypoint counts as seen from this score on.
_SEEN = 0.5

#: Pieces of at least this share of the largest one's area tell how a united oriented box lies.
_LARGE_PIECE = 0.5

#: So do pieces that differ by less from the direction of the large ones, or from the right angle to it; radians.
_PARALLEL = 0.1


def join(
    parts: Sequence[Instances], tiles: Sequence[Tile], size: tuple[int, int], *, margin: float, agnostic: bool = False
) -> Instances:
    """All objects of an image, strongest first, each once, from the detections of its tiles in pixels of the image.

    Args:
        parts: what each tile found.
        tiles: as `lay_tiles` lays them.
        size: width and height of the image; its edges cut nothing.
        margin: a detection that comes so near to an inner border of its tile, in pixels, counts as cut by it.
        agnostic: let views of different classes be one object.
    """
    return join_views(parts, tiles, size, margin=margin, agnostic=agnostic)[0]


def join_views(
    parts: Sequence[Instances], tiles: Sequence[Tile], size: tuple[int, int], *, margin: float, agnostic: bool = False
) -> tuple[Instances, Mask]:
    """As `join`, and for each object whether no tile saw it whole."""
    found = geometry.join(parts)
    owner = np.repeat(np.arange(len(tiles)), [len(part) for part in parts])
    counts = judged(found.box_array, owner, tiles, size, _BAND * margin)
    # An oriented box may stick out of the image; what no tile can show must not make a view look cut or outside.
    boxes = core_boxes.clip(found.box_array, *size)
    views = Views(found, boxes, owner, _cut_by(boxes, owner, tiles, size, margin), size)

    def alike(pairs: Pairs) -> Mask:
        return np.asarray(agnostic | (found.labels[pairs.a] == found.labels[pairs.b]))

    # What a judge did not count is no object, but it tells to which object of the other tile a piece does not belong.
    pieces = meet(boxes, owner, tiles, views.pieces & (views.pieces & counts).any())
    agree = _Agreement(views, pieces.at(alike(pieces) & (counts[pieces.a] | counts[pieces.b])), borders(tiles))
    pairs = meet(boxes, owner, tiles, counts)
    dropped = ~counts
    _drop_doubles(views, pairs.at(alike(pairs)), tiles, margin, dropped)
    _drop_cut(views, pairs, borders(tiles), agree, dropped)
    return _merged(views, agree.pieces(~dropped), np.flatnonzero(~dropped))


def _cut_by(boxes: Float, owner: Int, tiles: Sequence[Tile], size: tuple[int, int], margin: float) -> Mask:
    """[N, 4]: does the left, top, right, lower border of its tile, inside the image, cut a detection?"""
    every = borders(tiles)[owner]
    inner = np.concatenate([every[:, :2] > 0, every[:, 2:] < size], axis=1)
    near = np.concatenate([boxes[:, :2] <= every[:, :2] + margin, boxes[:, 2:] >= every[:, 2:] - margin], axis=1)
    cut: Mask = inner & near
    return cut


def _facing(views: Views, pairs: Pairs, every: Float) -> Mask:
    """[P], whether a border of each tile that lies inside the other one cuts the view: then neither need be all of the object."""
    result = np.ones(len(pairs.a), dtype=np.bool_)
    for view, other in ((pairs.a, pairs.b), (pairs.b, pairs.a)):
        own, around = every[views.owner[view]], every[views.owner[other]]
        inside = (own > np.tile(around[:, :2], 2)) & (own < np.tile(around[:, 2:], 2))
        result &= (views.cut[view] & inside).any(axis=1)
    return result


def _drop_doubles(views: Views, pairs: Pairs, tiles: Sequence[Tile], margin: float, dropped: Mask) -> None:
    """Rule 1 among `pairs` of one class."""
    slack = margin * np.array([-1.0, -1.0, 1.0, 1.0])
    within = np.ones(len(pairs.a), dtype=np.bool_)
    room = pairs.zone + slack
    for own in (views.boxes[pairs.a], views.boxes[pairs.b]):
        for side in (0, 1):
            within &= (own[:, side] >= room[:, side]) & (own[:, side + 2] <= room[:, side + 2])
    pairs = pairs.at(within)
    pairs = pairs.at(~_facing(views, pairs, borders(tiles)))
    strength = views.iou(pairs.a, pairs.b)
    alike = strength >= _SAME_IOU
    pairs, strength = pairs.at(alike), strength[alike]
    if views.found.masks is not None:  # objects that cross have like boxes, but not like masks
        shared, one, other = views.common(pairs.a, pairs.b)
        strength = strength + _iou(shared, one, other)
        alike = shared >= _MASK_SHARE * np.minimum(one, other)
        pairs, strength = pairs.at(alike), strength[alike]
    known = [
        judged(views.found.box_array[view], views.owner[seer], tiles, views.size, _BAND * margin)
        for view, seer in ((pairs.a, pairs.b), (pairs.b, pairs.a))
    ]
    pairs, strength = pairs.at(known[0] | known[1]), strength[known[0] | known[1]]
    scores, cut = views.found.scores, views.pieces
    assert scores is not None
    pairs = pairs.at(one_to_one(pairs, strength, np.abs(scores[pairs.a] - scores[pairs.b])))
    a, b = pairs.a, pairs.b
    # A cut view never wins over a whole one; else the stronger, else that of the earlier tile.
    first = (cut[a] < cut[b]) | ((cut[a] == cut[b]) & (scores[a] >= scores[b]))
    dropped[np.where(first, b, a)] = True


def least_share(found: Instances) -> float:
    """From which share on a piece lies in another object."""
    return _PIECE_SHARE if found.masks is None else _MASK_SHARE


class _Agreement:
    """How far pairs of one class, both cut, agree within the common area of their tiles (rules 3 and 4)."""

    def __init__(self, views: Views, pairs: Pairs, every: Float) -> None:
        self.views, self.pairs, self.every = views, pairs, every
        self.shared, self.first, self.second = views.common(pairs.a, pairs.b, pairs.zone)
        self.iou = _iou(self.shared, self.first, self.second)

    def best(self, group: Int, view: Int) -> Float:
        """The largest agreement that views [Q] have with a piece in that pair of tiles; 0 where they have none."""
        count = len(self.views.found)
        keys = np.concatenate([self.pairs.group * count + end for end in (self.pairs.a, self.pairs.b)])
        known, place = np.unique(keys, return_inverse=True)
        most = np.zeros(len(known) + 1)
        np.maximum.at(most, place.reshape(-1), np.tile(self.iou, 2))
        wanted = group * count + view
        at = np.searchsorted(known, wanted)
        at = np.where((at < len(known)) & (np.append(known, -1)[at] == wanted), at, len(known))
        return most[at]

    def pieces(self, alive: Mask) -> Pairs:
        """Rules 3 and 4: pairs of pieces of one object among the views that are left."""
        pairs, iou = self.pairs, self.iou
        alike = np.flatnonzero(iou >= _PIECE_IOU)
        chosen = alike[one_to_one(pairs.at(alike), iou[alike], np.zeros(len(alike)))]
        # A piece without a partner belongs to a larger one in which it lies: by masks to any (both arms of a U to its bend).
        count = len(self.views.found)
        keys = [pairs.group * count + end for end in (pairs.a, pairs.b)]
        taken = np.concatenate([key[chosen] for key in keys])
        alone = [~np.isin(key, taken) for key in keys]
        free = np.where(self.first <= self.second, *alone) if self.views.found.masks is not None else alone[0] & alone[1]
        lies = self.shared >= least_share(self.views.found) * np.maximum(np.minimum(self.first, self.second), 1e-12)
        agreeing = np.union1d(chosen, np.flatnonzero(free & lies))
        result = pairs.at(np.union1d(agreeing, self._crossing(agreeing)))
        return result.at(alive[result.a] & alive[result.b])

    def _crossing(self, agreeing: Int) -> Int:
        """Rule 4: which pairs cross the common area of their tiles, when those of rule 3 are known."""
        views, pairs = self.views, self.pairs
        if views.found.masks is not None or views.found.oriented is not None:
            return np.zeros(0, dtype=np.int64)
        first, second = (self.every[views.owner[end]] for end in (pairs.a, pairs.b))
        crosses = np.zeros(len(pairs.a), dtype=np.bool_)
        for axis in (0, 1):
            beside = (first[:, 1 - axis] == second[:, 1 - axis]) & (first[:, axis] < second[:, axis])
            facing = views.cut[pairs.a, axis + 2] & views.cut[pairs.b, axis]
            longer = views.boxes[pairs.a, axis] < pairs.zone[:, axis]
            longer &= views.boxes[pairs.b, axis + 2] > pairs.zone[:, axis + 2]
            crosses |= beside & facing & longer
        only = crosses.copy()
        for end in (pairs.a, pairs.b):
            _, place = np.unique(pairs.group * len(views.found) + end, return_inverse=True)
            place = place.reshape(-1)
            only &= (np.bincount(place, weights=crosses)[place] == 1) & ~np.isin(place, place[agreeing])
        return np.flatnonzero(only)


def _iou(shared: Float, one: Float, other: Float) -> Float:
    return np.asarray(shared / np.maximum(one + other - shared, 1e-12))


def _drop_cut(views: Views, pairs: Pairs, every: Float, agree: _Agreement, dropped: Mask) -> None:
    """Rule 2: cut views that lie in a whole view of another tile."""
    cut = views.pieces
    for piece, other in ((pairs.a, pairs.b), (pairs.b, pairs.a)):
        candidates = np.flatnonzero(cut[piece] & ~cut[other])
        own, boxes = every[views.owner[piece[candidates]]], views.boxes[other[candidates]]
        crosses = np.concatenate([boxes[:, :2] < own[:, :2], boxes[:, 2:] > own[:, 2:]], axis=1)
        candidates = candidates[(views.cut[piece[candidates]] & crosses).any(axis=1)]
        a, b, group, zone = piece[candidates], other[candidates], pairs.group[candidates], pairs.zone[candidates]
        shared, area, _ = views.common(a, b)
        lies = shared >= least_share(views.found) * np.maximum(area, 1e-12)
        a, b, group, zone = a[lies], b[lies], group[lies], zone[lies]
        dropped[a[_iou(*views.common(a, b, zone)) >= agree.best(group, a)]] = True


def _merged(views: Views, pieces: Pairs, alive: Int) -> tuple[Instances, Mask]:
    """The living detections, strongest first; those joined by `pieces` become their hull with the score and class of the
    strongest. And for each whether it was cut."""
    found = views.found
    assert found.scores is not None
    parent: dict[int, int] = {}
    for one, other in zip(pieces.a.tolist(), pieces.b.tolist(), strict=True):
        roots = [_root(parent, item) for item in (one, other)]
        parent[max(roots)] = min(roots)
    groups: dict[int, list[int]] = {}
    for item in sorted(parent):
        groups.setdefault(_root(parent, item), []).append(item)
    heads = {}
    gone = np.zeros(len(found), dtype=np.bool_)
    for group in groups.values():
        members = np.array(group)
        head = int(members[np.argmax(found.scores[members])])
        heads[head] = members
        gone[members] = True
        gone[head] = False
    kept = alive[~gone[alive]]
    kept = kept[np.argsort(-found.scores[kept], kind="stable")]
    place = np.zeros(len(found), dtype=np.int64)
    place[kept] = np.arange(len(kept))
    merged, cut = found.select(kept), views.pieces[kept]
    return _with_hulls(merged, found, {int(place[head]): members for head, members in heads.items()}), cut


def _root(parent: dict[int, int], item: int) -> int:
    """The root of an item in a forest, its path halved on the way."""
    parent.setdefault(item, item)
    while parent[item] != item:
        parent[item] = parent[parent[item]]
        item = parent[item]
    return item


def _with_hulls(merged: Instances, found: Instances, groups: dict[int, Int]) -> Instances:
    """`merged` with the shapes of the groups, position in it -> members in `found`, put together."""
    masks = None if merged.masks is None else list(merged.masks)
    for position, group in groups.items():
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
    """[G, 5] pieces of one object -> [5]: the least rectangle around the large ones and those parallel to them, stretched along
    its long side over all.

    The hull of all would be too wide: the least rectangle of a small piece that a tile's corner cut off points anywhere. The
    direction of one piece alone would miss the ends of a long object.
    """
    areas = pieces[:, 2] * pieces[:, 3]
    corners = core_oriented.to_corners(pieces)  # [G, 4, 2]
    large = areas >= _LARGE_PIECE * areas.max()
    turn = pieces[:, 4] - core_oriented.from_points(corners[large].reshape(-1, 2))[4] + np.pi / 4
    parallel = np.abs(turn % (np.pi / 2) - np.pi / 4) < _PARALLEL
    cx, cy, width, height, angle = core_oriented.from_points(corners[large | parallel].reshape(-1, 2))
    axis = np.array([np.cos(angle), np.sin(angle)])
    along = (corners.reshape(-1, 2) - [cx, cy]) @ axis
    low, high = min(along.min(), -width / 2), max(along.max(), width / 2)
    return np.array([cx + axis[0] * (low + high) / 2, cy + axis[1] * (low + high) / 2, high - low, height, angle])
