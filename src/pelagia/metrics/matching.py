"""The matcher: which prediction found which true object. One for every kind of shape; only `similarity` knows which it is.

It follows COCO's rule (Lin et al., "Microsoft COCO", 2014; `pycocotools.cocoeval`). Inside one image and one class, predictions
go in descending score. Each takes the free true object of largest similarity that reaches the threshold (of equals the last in
the order of the truth); an ignored true object only when no scored one is left for it. Truth that can be matched again (crowds,
difficult objects) is never used up.

How it stays vectorised: only pairs whose similarity reaches the lowest threshold matter, and they are few. Predictions that share
no such pair, directly or through others, cannot disturb one another, so the k-th predictions of all connected components are
settled together, for all area ranges and thresholds at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pelagia.core import oriented as oriented_boxes
from pelagia.core.types import Float, Instances, Int, Mask, MaskCrop
from pelagia.errors import EvaluationError

__all__ = ["Comparison", "Kind", "Matches", "Pairs", "Shapes", "find_pairs", "flatten", "match", "ranks", "similarity"]

Kind: TypeAlias = Literal["boxes", "oriented", "masks"]

#: Pairs held at once while similarities are computed, and while they are matched (times areas times thresholds).
_PAIRS_AT_ONCE = 1 << 20
_MATCHED_AT_ONCE = 1 << 14

#: Groups with more true objects than this are narrowed by a sweep along x before pairs are listed.
_SWEEP_FROM = 32


@dataclass(frozen=True, slots=True)
class Shapes:
    """Objects of all images in flat arrays, images in order.

    Args:
        image: [N] position of the image in the sequence.
        label: [N] class index.
        bounds: [N, 4] tight axis-aligned bounds in pixels.
        area: [N] square pixels: of the box, the oriented box or the mask.
        oriented: [N, 5] when oriented boxes are compared.
        masks: the crops when masks are compared.
    """

    kind: Kind
    image: Int
    label: Int
    bounds: Float
    area: Float
    oriented: Float | None = None
    masks: tuple[MaskCrop, ...] | None = None

    def __len__(self) -> int:
        return len(self.image)

    def select(self, index: NDArray[Any]) -> Shapes:
        """The objects at integer `index`, in that order."""
        return Shapes(
            self.kind,
            self.image[index],
            self.label[index],
            self.bounds[index],
            self.area[index],
            None if self.oriented is None else self.oriented[index],
            None if self.masks is None else tuple(self.masks[i] for i in index),
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Predictions and truth of a whole data set, ready to be matched.

    Args:
        score: [D].
        truth_area: [G] square pixels by which truth is binned, as the source states it.
        crowd: [G] similarity is the share of the prediction that lies inside.
        again: [G] may be matched any number of times and is never scored (crowds, difficult objects).
        excluded: [D] lies in an ignore region: not scored unless it finds a true object.
    """

    predictions: Shapes
    truth: Shapes
    score: Float
    truth_area: Float
    crowd: Mask
    again: Mask
    excluded: Mask


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs (prediction, truth) with their similarity, [P] each; indices into the `Shapes` they came from."""

    prediction: Int
    truth: Int
    value: Float

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True, slots=True)
class Matches:
    """What the matcher found. `row` [D]: where prediction d stands in `truth`, -1 when it overlaps nothing enough.
    `truth` [A, T, rows]: index of the true object taken under area range a and threshold t, or -1."""

    row: Int
    truth: NDArray[np.int32]

    def of(self, prediction: NDArray[Any], area: int) -> NDArray[np.int32]:
        """[T, n]: the true object that each of n predictions took in area range `area`, or -1."""
        rows = self.row[prediction]
        found = np.full((self.truth.shape[1], len(rows)), -1, dtype=np.int32)
        present = np.flatnonzero(rows >= 0)
        found[:, present] = self.truth[area][:, rows[present]]
        return found


def flatten(items: Sequence[Instances], kind: Kind, *, what: str) -> Shapes:
    """Join the objects of all images. `what` ("truth", "predictions") names them in errors.

    Raises:
        EvaluationError: oriented boxes or masks are asked for but absent, or a coordinate is not finite.
    """
    counts = np.array([len(item) for item in items], dtype=np.int64)
    image = np.repeat(np.arange(len(items), dtype=np.int64), counts)
    used = [item for item in items if len(item)]
    label = np.concatenate([item.labels for item in used]) if used else np.zeros(0, dtype=np.int64)
    rotated: Float | None = None
    crops: tuple[MaskCrop, ...] | None = None
    if kind == "oriented":
        column = [_oriented(item, what) for item in used]
        rotated = np.concatenate(column) if column else np.zeros((0, 5))
        area = rotated[:, 2] * rotated[:, 3]
        bounds = Instances(labels=label, oriented=rotated).box_array
    elif kind == "masks":
        crops = tuple(crop for item in used for crop in _masks(item, what))
        area = np.array([crop.area for crop in crops], dtype=np.float64)
        bounds = np.array([_crop_bounds(crop) for crop in crops], dtype=np.float64).reshape(-1, 4)
    else:
        bounds = np.concatenate([item.box_array for item in used]) if used else np.zeros((0, 4))
        area = (bounds[:, 2] - bounds[:, 0]) * (bounds[:, 3] - bounds[:, 1])
    broken = np.flatnonzero(~np.isfinite(bounds).all(axis=1))
    if len(broken):
        raise EvaluationError(
            f"{len(broken)} boxes of the {what} hold NaN or infinity; mend or remove them", where=f"image {image[broken[0]]}"
        )
    return Shapes(kind, image, label, bounds, area, rotated, crops)


def _oriented(item: Instances, what: str) -> Float:
    if item.oriented is not None:
        return item.oriented
    raise EvaluationError(f"the {what} hold no oriented boxes; evaluate them as plain boxes, or give oriented ones")


def _masks(item: Instances, what: str) -> tuple[MaskCrop, ...]:
    if item.masks is not None:
        return item.masks
    raise EvaluationError(f"the {what} hold no masks; evaluate them as boxes, or give masks")


def _crop_bounds(crop: MaskCrop) -> tuple[int, int, int, int]:
    height, width = crop.bitmap.shape
    return crop.x, crop.y, crop.x + width, crop.y + height


def ranks(key: Int, score: Float) -> tuple[Int, Int]:
    """Order by group and descending score, ties in the given order, and each one's place inside its group.

    Returns:
        order: [N] such that key[order] ascends and scores descend inside a key.
        rank: [N] 0 for the best of a group, in the original order of the input.
    """
    order = np.lexsort((-score, key))
    sorted_key = key[order]
    starts = np.flatnonzero(np.diff(sorted_key, prepend=sorted_key[:1] - 1))
    sizes = np.diff(np.append(starts, len(key)))
    rank = np.empty(len(key), dtype=np.int64)
    rank[order] = np.arange(len(key)) - np.repeat(starts, sizes)
    return order, rank


def similarity(predictions: Shapes, truth: Shapes, pairs: tuple[Int, Int], crowd: Mask) -> Float:
    """[P] overlap of the pairs (prediction index, truth index).

    |a n b| / |a u b|, or |a n b| / |a| with a the prediction where `crowd` [P] is set. Boxes have continuous edges (no + 1),
    masks count pixels, oriented boxes are clipped exactly.
    """
    left, right = pairs
    area_a, area_b = predictions.area[left], truth.area[right]
    if predictions.kind == "oriented":
        assert predictions.oriented is not None
        assert truth.oriented is not None
        iou = np.asarray(oriented_boxes.iou_aligned(predictions.oriented[left], truth.oriented[right]), dtype=np.float64)
        shared = iou * (area_a + area_b) / (1 + iou)
        return np.where(crowd, _divide(shared, area_a), iou)
    if predictions.kind == "masks":
        assert predictions.masks is not None
        assert truth.masks is not None
        shared = np.array([_shared_pixels(predictions.masks[i], truth.masks[j]) for i, j in zip(left, right, strict=True)])
    else:
        a, b = predictions.bounds[left], truth.bounds[right]
        width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
        height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
    return _divide(shared, np.where(crowd, area_a, area_a + area_b - shared))


def _divide(part: Float, whole: Float) -> Float:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _shared_pixels(a: MaskCrop, b: MaskCrop) -> int:
    ax1, ay1, ax2, ay2 = _crop_bounds(a)
    bx1, by1, bx2, by2 = _crop_bounds(b)
    x1, y1, x2, y2 = max(ax1, bx1), max(ay1, by1), min(ax2, bx2), min(ay2, by2)
    if x1 >= x2 or y1 >= y2:
        return 0
    first = a.bitmap[y1 - ay1 : y2 - ay1, x1 - ax1 : x2 - ax1]
    second = b.bitmap[y1 - by1 : y2 - by1, x1 - bx1 : x2 - bx1]
    return int(np.count_nonzero(first & second))


def find_pairs(predictions: Shapes, truth: Shapes, keys: tuple[Int, Int], crowd: Mask, least: float) -> Pairs:
    """All pairs of one group whose similarity is at least `least` (> 0).

    Args:
        keys: group of each prediction [D] and of each true object [G], such as image * classes + class.
        crowd: [G], see `similarity`.
    """
    key_d, key_g = keys
    by_x = np.lexsort((truth.bounds[:, 0], key_g))
    sorted_key = key_g[by_x]
    start = np.searchsorted(sorted_key, key_d, side="left")
    stop = np.searchsorted(sorted_key, key_d, side="right")
    _sweep(predictions.bounds, truth.bounds[by_x], (start, stop))
    found = []
    for rows, columns in _product(start, stop):
        columns = by_x[columns]
        a, b = predictions.bounds[rows], truth.bounds[columns]
        touching = np.flatnonzero((a[:, 0] < b[:, 2]) & (b[:, 0] < a[:, 2]) & (a[:, 1] < b[:, 3]) & (b[:, 1] < a[:, 3]))
        rows, columns = rows[touching], columns[touching]
        value = similarity(predictions, truth, (rows, columns), crowd[columns])
        near = np.flatnonzero(value >= least)
        found.append((rows[near], columns[near], value[near]))
    if not found:
        return Pairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    row, column, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Pairs(row, column, values)


def _sweep(boxes: Float, others: Float, ranges: tuple[Int, Int]) -> None:
    """Narrow `ranges` (start, stop; in place) of large groups to the others, sorted by x1, that can touch each box in x."""
    start, stop = ranges
    large = np.flatnonzero(stop - start > _SWEEP_FROM)
    if len(large) == 0:
        return
    firsts, inverse = np.unique(start[large], return_inverse=True)
    members = np.split(large[np.argsort(inverse, kind="stable")], np.cumsum(np.bincount(inverse))[:-1])
    for first, member in zip(firsts, members, strict=True):
        last = stop[member[0]]
        left = others[first:last, 0]
        # A hair more than the widest, so that rounding never loses a touching pair; the exact test follows.
        widest = (others[first:last, 2] - left).max() * (1 + 1e-9) + 1e-9 * np.abs(others[first:last]).max()
        start[member] = first + np.searchsorted(left, boxes[member, 0] - widest, side="left")
        stop[member] = np.maximum(first + np.searchsorted(left, boxes[member, 2], side="left"), start[member])


def _product(start: Int, stop: Int) -> Iterator[tuple[Int, Int]]:
    """The pairs (i, j) with start[i] <= j < stop[i], about a million at a time."""
    counts = stop - start
    ends = np.cumsum(counts)
    low = 0
    while low < len(counts):
        before = ends[low - 1] if low else 0
        high = max(int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, side="right")), low + 1)
        size = counts[low:high]
        rows = np.repeat(np.arange(low, high), size)
        offset = start[low:high] - (ends[low:high] - size - before)
        yield rows, np.arange(len(rows)) + np.repeat(offset, size)
        low = high


def match(pairs: Pairs, order: Int, thresholds: Float, ignored: Mask, again: Mask) -> Matches:
    """Match greedily, for every area range and threshold.

    Args:
        pairs: from `find_pairs`; a pair below every threshold may be missing.
        order: [D] predictions in the order in which they choose inside a group (see `ranks`).
        thresholds: [T] similarity that a match needs.
        ignored: [A, G], true objects not scored in area range a.
        again: [G], true objects that any number of predictions may match (crowds, difficult); always ignored ones.
    """
    turn = np.empty(len(order), dtype=np.int64)
    turn[order] = np.arange(len(order))
    row = np.full(len(order), -1, dtype=np.int64)
    present, where = np.unique(turn[pairs.prediction], return_inverse=True)
    row[order[present]] = np.arange(len(present))
    result = np.full((len(present), len(ignored), len(thresholds)), -1, dtype=np.int32)
    if len(pairs):
        depth = _depths(where, pairs.truth, ~again[pairs.truth], len(present))
        # Inside a prediction the pairs ascend in preference: similarity, then place in the truth.
        arranged = np.lexsort((pairs.truth, pairs.value, where, depth[where]))
        state = _State(where[arranged], pairs.truth[arranged], pairs.value[arranged], again, np.ascontiguousarray(ignored.T))
        taken = np.zeros((len(again), len(ignored), len(thresholds)), dtype=np.bool_)
        for low, high in _rounds(depth[state.row], state.row):
            _settle(state, slice(low, high), thresholds, taken, result)
    return Matches(row, np.ascontiguousarray(result.transpose(1, 2, 0)))


@dataclass(frozen=True, slots=True)
class _State:
    """Pairs in the order of settlement, and what is fixed about the truth."""

    row: Int  # [P]
    truth: Int  # [P]
    value: Float  # [P]
    again: Mask  # [G]
    ignored: Mask  # [G, A]


def _depths(row: Int, truth: Int, binding: Mask, rows: int) -> Int:
    """Place of each prediction among those of its connected component of binding pairs, in the order of choice."""
    row, truth = row[binding], truth[binding]
    nodes = rows + (int(truth.max()) + 1 if len(truth) else 0)
    graph = coo_array((np.ones(len(row), dtype=np.int8), (row, truth + rows)), shape=(nodes, nodes))
    component = connected_components(graph, directed=False)[1][:rows]
    return ranks(component.astype(np.int64), np.zeros(rows))[1]


def _rounds(depth: Int, row: Int) -> Iterator[tuple[int, int]]:
    """Slices of pairs that may be settled together: one depth, whole predictions, not too many at once."""
    edges = np.append(np.flatnonzero(np.diff(depth, prepend=-1)), len(depth))
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        while high - low > _MATCHED_AT_ONCE:
            cut = low + int(np.searchsorted(row[low:high], row[low + _MATCHED_AT_ONCE - 1], side="right"))
            yield low, cut
            low = cut
        if low < high:
            yield low, high


def _settle(state: _State, part: slice, thresholds: Float, taken: Mask, result: NDArray[np.int32]) -> None:
    """Let the predictions of `part` choose; `taken` [G, A, T] and `result` [rows, A, T] are changed in place."""
    row, truth = state.row[part], state.truth[part]
    count = len(row)
    free = ~taken[truth] | state.again[truth][:, None, None]
    free &= (state.value[part][:, None] >= thresholds)[:, None, :]
    place = np.arange(1, count + 1, dtype=np.int32)[:, None] + np.where(state.ignored[truth], 0, count).astype(np.int32)
    preference = np.where(free, place[:, :, None], 0)  # [P, A, T]; scored truth stands above all ignored truth
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    best = preference if len(starts) == count else np.maximum.reduceat(preference, starts, axis=0)
    segment, area, threshold = np.nonzero(best)
    chosen = truth[(best[segment, area, threshold] - 1) % count]
    result[row[starts][segment], area, threshold] = chosen
    taken[chosen, area, threshold] = True
