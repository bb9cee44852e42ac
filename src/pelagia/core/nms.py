"""Non-maximum suppression: plain, per class, oriented and soft.

The greedy rule: take objects by descending score, the lower index first among equals; one goes when its IoU with a stronger one
of the same label that stays is above the threshold (the rule of `torchvision.ops.nms`).

Exact, near-linear on sparse objects and bounded in memory on crowded ones:

- A pair can only suppress when its sizes and centres are alike. For IoU > t of axis-aligned boxes, each side's ratio is above t,
  and the centres differ along each axis by less than q (s1 + s2) / 2 with q = (1 - t) / (1 + t), s the longer sides. So boxes
  are put on one grid per label and size level, and only neighbouring cells are compared.
- Where the grid promises too many pairs, the strongest objects are settled first and remove what they suppress, in rounds whose
  length follows a budget of pairs; N x N is never allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from pelagia.core import boxes as axis_aligned
from pelagia.core import oriented as oriented_boxes
from pelagia.core.lazy import resolve
from pelagia.core.types import Float, Int, Mask
from pelagia.errors import LabelError, OptionError

__all__ = ["MANY_PAIRS", "nms", "nms_oriented", "soft_nms"]

_PAIRS_AT_ONCE = 1 << 17  # pairs whose overlap is computed together: temporaries of a few MiB, near the cache
_PAIRS_A_ROUND = 1 << 17  # candidate pairs that one round may have,
_PAIRS_AN_OBJECT = 16  # or so many per object if that is more; above, the round is shortened
_FIRST_ROUND = 256  # objects of the shortest round

_NONE = np.zeros(0, dtype=np.int64)

#: From so many candidate pairs on, those that are apart are left out by a compiled loop, whose import would cost a few more than
#: it saves.
MANY_PAIRS = 1 << 16

#: (i, j) index pairs into the sorted objects -> whether one suppresses the other.
_Suppresses = Callable[[Int, Int], Mask]


@dataclass(frozen=True)
class _Rule:
    """When one object suppresses another: exactly, and by bounds [4, N] and areas [N] when it cannot."""

    suppresses: _Suppresses
    bounds: Float
    areas: Float
    threshold: float


def nms(boxes: ArrayLike, scores: ArrayLike, iou_threshold: float, labels: ArrayLike | None = None) -> Int:
    """Greedy NMS of axis-aligned boxes.

    Args:
        boxes: [N, 4] x1, y1, x2, y2.
        scores: [N].
        iou_threshold: a box goes when its IoU with a kept stronger one is above it; in [0, 1].
        labels: [N] or None; only boxes of equal label suppress each other.

    Returns:
        [K] indices kept, by descending score, the lower index first among equals.

    Raises:
        OptionError: the threshold is outside [0, 1].
        LabelError: shapes disagree, or a box or score is not finite.
    """
    array, order, groups = _prepare(boxes, 4, scores, iou_threshold, labels)
    sides = array[:, 2:] - array[:, :2]
    live = np.flatnonzero((sides > 0).all(axis=1))  # an empty box overlaps nothing
    columns = np.ascontiguousarray(array[live].T)
    x1, y1, x2, y2 = columns
    areas = (x2 - x1) * (y2 - y1)

    def suppresses(i: Int, j: Int) -> Mask:
        width = np.minimum(x2[i], x2[j]) - np.maximum(x1[i], x1[j])
        height = np.minimum(y2[i], y2[j]) - np.maximum(y1[i], y1[j])
        common = np.maximum(width, 0.0) * np.maximum(height, 0.0)
        result: Mask = common / (areas[i] + areas[j] - common) > iou_threshold
        return result

    grid = _Grid.build(
        centres=(columns[:2] + columns[2:]) / 2,
        sizes=sides[live].max(axis=1),
        groups=groups[live],
        ratio=iou_threshold,
        reach=(1 - iou_threshold) / (1 + iou_threshold),
    )
    keep = np.ones(len(array), dtype=np.bool_)
    keep[live] = _greedy(grid, _Rule(suppresses, columns, areas, iou_threshold))
    return order[keep]


def nms_oriented(oriented: ArrayLike, scores: ArrayLike, iou_threshold: float, labels: ArrayLike | None = None) -> Int:
    """Greedy NMS of oriented boxes [N, 5] by their exact IoU; otherwise as `nms`."""
    array, order, groups = _prepare(oriented, 5, scores, iou_threshold, labels)
    live = np.flatnonzero((array[:, 2:4] > 0).all(axis=1))
    objects = array[live]
    areas = objects[:, 2] * objects[:, 3]
    bounds = np.ascontiguousarray(oriented_boxes.bounds(objects).T)
    x1, y1, x2, y2 = bounds

    def suppresses(i: Int, j: Int) -> Mask:
        # The intersection is at most that of the bounds, and at most the smaller area: most pairs need no clipping.
        width = np.minimum(x2[i], x2[j]) - np.maximum(x1[i], x1[j])
        height = np.minimum(y2[i], y2[j]) - np.maximum(y1[i], y1[j])
        most = np.maximum(width, 0.0) * np.maximum(height, 0.0)
        most = np.minimum(most, np.minimum(areas[i], areas[j])) * (1 + 1e-9)  # rounding must not decide here
        result: Mask = most > iou_threshold * (areas[i] + areas[j] - most)
        near = np.flatnonzero(result)
        result[near] = oriented_boxes.iou_aligned(objects[i[near]], objects[j[near]]) > iou_threshold
        return result

    # The discs around both must meet (reach 1). The common part is at most diag_2 long along the long side of 1, so
    # IoU <= diag_2 / w_1 <= sqrt(2) diag_2 / diag_1.
    grid = _Grid.build(
        centres=objects[:, :2].T,
        sizes=np.hypot(objects[:, 2], objects[:, 3]),
        groups=groups[live],
        ratio=iou_threshold / math.sqrt(2),
        reach=1.0,
    )
    keep = np.ones(len(array), dtype=np.bool_)
    keep[live] = _greedy(grid, _Rule(suppresses, bounds, areas, iou_threshold))
    return order[keep]


def _prepare(
    boxes: ArrayLike, columns: int, scores: ArrayLike, iou_threshold: float, labels: ArrayLike | None
) -> tuple[Float, Int, Int]:
    """Checked boxes by descending score, the order that sorted them, and dense label numbers in that order."""
    if not 0.0 <= iou_threshold <= 1.0:
        raise OptionError(f"the IoU threshold of NMS must lie in 0 to 1, got {iou_threshold}")
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        array = array.reshape(0, columns)
    if array.ndim != 2 or array.shape[1] != columns:
        raise LabelError(f"NMS needs {columns} numbers per box, as an array [N, {columns}], got shape {list(array.shape)}")
    strength = np.asarray(scores, dtype=np.float64).reshape(-1)
    classes = np.zeros(len(array), dtype=np.int64) if labels is None else np.asarray(labels).reshape(-1)
    if not len(array) == len(strength) == len(classes):
        raise LabelError(f"NMS got {len(array)} boxes, {len(strength)} scores and {len(classes)} labels; the numbers must agree")
    broken = ~(np.isfinite(array).all(axis=1) & np.isfinite(strength))
    if broken.any():
        raise LabelError(
            f"NMS got {np.count_nonzero(broken)} boxes or scores that are not finite, the first at {np.argmax(broken)}"
        )
    order = np.argsort(-strength, kind="stable")
    groups = np.unique(classes, return_inverse=True)[1].reshape(-1)
    return array[order], order, groups[order]


def soft_nms(
    boxes: ArrayLike,
    scores: ArrayLike,
    *,
    sigma: float = 0.5,
    iou_threshold: float | None = None,
    score_threshold: float = 0.001,
    labels: ArrayLike | None = None,
) -> tuple[Int, Float]:
    """Soft-NMS (Bodla et al., ICCV 2017, arXiv:1704.04503): overlap lowers a score instead of removing the box.

    The strongest box left is taken, and each other box of its label has its score multiplied by exp(-IoU² / sigma), or, when
    `iou_threshold` is given, by 1 - IoU where the IoU is above it. Boxes whose score falls below `score_threshold` leave.

    Returns:
        [K] indices in the order taken and [K] their lowered scores. The time is that of one IoU row per box taken.

    Raises:
        OptionError: sigma is not positive, or the threshold is outside [0, 1].
        LabelError: shapes disagree, or a box or score is not finite.
    """
    if sigma <= 0:
        raise OptionError(f"sigma of soft NMS must be positive, got {sigma}")
    array, order, groups = _prepare(boxes, 4, scores, 0.0 if iou_threshold is None else iou_threshold, labels)
    strength = np.asarray(scores, dtype=np.float64).reshape(-1)[order]
    rest = np.flatnonzero(strength >= score_threshold)
    taken: list[int] = []
    while len(rest):
        best = rest[np.argmax(strength[rest])]
        taken.append(int(best))
        rest = rest[rest != best]
        overlap = axis_aligned.iou(array[best : best + 1], array[rest])[0]
        gaussian = iou_threshold is None
        decay = np.exp(-(overlap**2) / sigma) if gaussian else np.where(overlap > iou_threshold, 1 - overlap, 1.0)
        strength[rest] *= np.where(groups[rest] == groups[best], decay, 1.0)
        rest = rest[strength[rest] >= score_threshold]
    index = np.array(taken, dtype=np.int64)
    return order[index], strength[index]


@dataclass(frozen=True)
class _Grid:
    """Objects, strongest first, on grids by label and size level; partners lie in neighbouring cells.

    Level l holds the sizes in [m r^l, m r^(l+1)), the lowest level also smaller ones. Its cells have side c_l = reach m r^(l+1),
    at least the distance along x or y of two partners up to level l. So the partners of an object on its own level and above
    lie in the 3 x 3 cells around its centre on those levels' grids, at most `climb` levels up.
    """

    centres: Float  # [2, N], the least is 0
    level: Int  # [N], from 0
    groups: Int  # [N], dense label numbers
    cells: Float  # [levels], side of a cell in pixels
    climb: int
    rows: int  # of the finest grid, with a margin of one cell on either side
    columns: int

    @classmethod
    def build(cls, *, centres: Float, sizes: Float, groups: Int, ratio: float, reach: float) -> _Grid:
        """Partners' sizes differ by less than the factor 1 / `ratio`, their centres by less than `reach` (s1 + s2) / 2."""
        if len(sizes) == 0:
            return cls(centres, groups, groups, np.ones(1), 0, 3, 3)
        slack = 1 + 1e-6  # rounding must not part two partners
        centres = centres - centres.min(axis=1, keepdims=True)
        reach = max(reach, 1e-3) * slack
        base = min(max(slack / ratio if ratio > 0 else 4.0, 1.25), 4.0)
        # Keys fit 64 bits: small objects share a level, and objects as large as everything share the highest.
        side = min(math.isqrt((1 << 62) // (128 * (int(groups.max()) + 1))), 1 << 24)
        extent = float(centres.max())
        smallest = max(extent / (side * reach), float(sizes.min()))
        largest = min(max(extent / reach, smallest), float(sizes.max()))
        level = np.floor(np.log(np.clip(sizes, smallest, largest) / smallest) / math.log(base)).astype(np.int64)
        highest = int(level.max())
        cells: Float = reach * smallest * np.power(base, np.arange(1, highest + 2, dtype=np.float64)) * slack
        climb = highest if ratio <= 0 else min(highest, math.ceil(math.log(slack / ratio) / math.log(base) - 1e-9))
        columns, rows = (int(value / cells[0]) + 3 for value in centres.max(axis=1))
        return cls(centres, level, groups, cells, climb, rows, columns)

    def keys(self, index: Int, up: int) -> Int:
        """Cells of the objects `index` on the grids `up` levels above their own, where there are such."""
        level = self.level[index] + up
        column, row = (self.centres[:, index] / self.cells[level]).astype(np.int64) + 1
        result: Int = ((self.groups[index] * len(self.cells) + level) * self.rows + row) * self.columns + column
        return result

    def windows(self, query: Int, target: Int, *, lowest: int = 0) -> tuple[Int, Int, Int, Int]:
        """Candidate partners from `lowest` levels up: (query, first, end, sorted target), the ranges being into the last."""
        keys = self.keys(target, 0)
        order = np.argsort(keys, kind="stable")
        keys, target = keys[order], target[order]
        parts: list[tuple[Int, Int, Int]] = []
        for up in range(lowest, self.climb + 1):
            asking = query[self.level[query] + up < len(self.cells)]
            middle = self.keys(asking, up)
            for row in (-1, 0, 1):
                centre = middle + row * self.columns
                first, end = np.searchsorted(keys, centre - 1, "left"), np.searchsorted(keys, centre + 1, "right")
                found = first < end
                parts.append((asking[found], first[found], end[found]))
        asked, first, end = (np.concatenate(column) for column in zip(*parts, strict=True))
        return asked, first, end, target


def _pairs(rule: _Rule, asked: Int, first: Int, end: Int, target: Int) -> Iterator[tuple[Int, Int]]:
    """Windows of `_Grid.windows` -> index pairs, in chunks of bounded size; some that cannot suppress are left out."""
    counts = end - first
    stop = np.cumsum(counts)
    many = len(asked) > 0 and stop[-1] >= MANY_PAIRS
    near = resolve("pelagia.core.kernels", purpose="suppress boxes").near_pairs if many else None
    begin = 0
    while begin < len(asked):
        before = 0 if begin == 0 else int(stop[begin - 1])
        until = max(begin + 1, int(np.searchsorted(stop, before + _PAIRS_AT_ONCE, "right")))
        if near is not None:
            part = slice(begin, until)
            yield near(asked[part], first[part], end[part], target, rule.bounds, rule.areas, rule.threshold)
        else:
            part_counts = counts[begin:until]
            offset = first[begin:until] - (stop[begin:until] - part_counts - before)
            yield (
                np.repeat(asked[begin:until], part_counts),
                target[np.repeat(offset, part_counts) + np.arange(int(part_counts.sum()))],
            )
        begin = until


def _greedy(grid: _Grid, rule: _Rule) -> Mask:
    """[N] which objects stay, objects numbered from the strongest."""
    count = len(grid.level)
    keep = np.zeros(count, dtype=np.bool_)
    alive = np.ones(count, dtype=np.bool_)
    rest = np.arange(count)
    while len(rest):
        windows = grid.windows(rest, rest)
        candidates = int((windows[2] - windows[1]).sum())
        budget = max(_PAIRS_A_ROUND, _PAIRS_AN_OBJECT * len(rest))
        block = rest
        if candidates > budget:
            block = rest[: max(_FIRST_ROUND, int(len(rest) * math.sqrt(budget / candidates)))]
            windows = grid.windows(block, block)
        kept = block[_settle(block, grid.level, _pairs(rule, *windows), rule.suppresses)]
        keep[kept] = True
        rest = rest[len(block) :]
        if len(rest):
            _remove(alive, _pairs(rule, *grid.windows(kept, rest)), rule.suppresses, weak=1)
            if grid.climb:  # the windows only look up: the larger of `kept` are found from the smaller of `rest`
                _remove(alive, _pairs(rule, *grid.windows(rest, kept, lowest=1)), rule.suppresses, weak=0)
            rest = rest[alive[rest]]
    return keep


def _remove(alive: Mask, pairs: Iterator[tuple[Int, Int]], suppresses: _Suppresses, *, weak: Literal[0, 1]) -> None:
    """Unset in `alive` the member `weak` of each pair that suppresses."""
    for pair in pairs:
        left = alive[pair[weak]]
        i, j = pair[0][left], pair[1][left]
        hit = suppresses(i, j)
        alive[(i, j)[weak][hit]] = False


def _settle(block: Int, level: Int, pairs: Iterator[tuple[Int, Int]], suppresses: _Suppresses) -> Mask:
    """[len(block)] which objects of a block stay, by the greedy rule over all its pairs."""
    strong: list[Int] = []
    weak: list[Int] = []
    for i, j in pairs:
        once = (i < j) | (level[i] != level[j])  # on one level each pair is met from both sides
        i, j = i[once], j[once]
        hit = suppresses(i, j)
        strong.append(np.minimum(i[hit], j[hit]))
        weak.append(np.maximum(i[hit], j[hit]))
    stay = np.ones(len(block), dtype=np.bool_)
    position = np.empty(len(level), dtype=np.int64)
    position[block] = np.arange(len(block))
    first, second = position[np.concatenate([_NONE, *strong])], position[np.concatenate([_NONE, *weak])]
    order = np.argsort(first, kind="stable")
    first, second = first[order], second[order]
    begin = np.flatnonzero(np.diff(first, prepend=-1))
    ends = np.append(begin, len(second))[1:]
    for i, start, end in zip(first[begin].tolist(), begin.tolist(), ends.tolist(), strict=True):
        if stay[i]:
            stay[second[start:end]] = False
    return stay
