"""The loops of the metrics that numpy cannot say: compiled by numba on first use, kept in its cache, imported late.

Each is a definition in plain Python; the tests run them against slower loops and against pycocotools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pelagia.core.kernels import compiled
from pelagia.core.types import Float, Int, Mask

if TYPE_CHECKING:
    from pelagia.metrics.curves import Walk

__all__ = ["average", "choose", "group", "measure_runs", "overlapping", "settle_ties", "shared_pixels"]

_I32 = NDArray[np.int32]


@compiled
def settle_ties(order: Int, score: Float) -> None:
    """Put objects of equal score into the order of their index, in place; `order` sorts them by score already."""
    begin = 0
    for p in range(1, len(order) + 1):
        if p == len(order) or score[order[p]] != score[order[begin]]:
            if p - begin > 16:
                order[begin:p] = np.sort(order[begin:p])
            else:
                for j in range(begin + 1, p):
                    d, k = order[j], j
                    while k > begin and order[k - 1] > d:
                        order[k] = order[k - 1]
                        k -= 1
                    order[k] = d
            begin = p


@compiled
def group(by_score: Int, key: Int, groups: int) -> tuple[Int, Int, Int]:
    """Objects by group (0 to `groups` - 1), inside it as in `by_score`: the order [N], each one's place in its group [N], and
    where groups begin and end [groups + 1]. A counting sort."""
    edges = np.zeros(groups + 1, np.int64)
    for d in range(len(key)):
        edges[key[d] + 1] += 1
    for k in range(groups):
        edges[k + 1] += edges[k]
    following = edges[:-1].copy()
    order, rank = np.empty(len(key), np.int64), np.empty(len(key), np.int64)
    for d in by_score:
        k = key[d]
        order[following[k]] = d
        rank[d] = following[k] - edges[k]
        following[k] += 1
    return order, rank, edges


@compiled
def overlapping(
    order: Int, boxes: tuple[Float, Float], others: tuple[Float, Float, Int, Mask], spans: tuple[Int, Int, Float], least: float
) -> tuple[_I32, _I32, Float]:
    """Pairs (box, other) of one group: boxes in `order`, for each of them others in ascending index.

    With `least` > 0 the pairs whose IoU (share of the box, where the other is a crowd) reaches it; with `least` = 0 those that
    share some area.

    Args:
        boxes: [N, 4] and their areas [N].
        others: [M, 4], areas [M], index [M] and crowd [M], sorted by group and x1.
        spans: [N] each: the others of box i are start[i]:stop[i], and none of them is wider than widest[i].
    """
    box, area = boxes
    other, other_area, index, crowd = others
    start, stop, widest = spans
    capacity = 1024
    rows, columns, values = np.empty(capacity, np.int32), np.empty(capacity, np.int32), np.empty(capacity, np.float64)
    count = 0
    for i in order:
        x1, y1, x2, y2 = box[i, 0], box[i, 1], box[i, 2], box[i, 3]
        low, high = start[i], stop[i]
        reach = x1 - widest[i]
        while high - low > 8:  # the first other that can reach x1
            middle = (low + high) // 2
            if other[middle, 0] < reach:
                low = middle
            else:
                high = middle
        first = count
        for j in range(low, stop[i]):
            if other[j, 0] >= x2:
                break
            width = min(x2, other[j, 2]) - max(x1, other[j, 0])
            height = min(y2, other[j, 3]) - max(y1, other[j, 1])
            if width <= 0 or height <= 0:
                continue
            value = 0.0
            if least > 0:
                shared = width * height
                whole = area[i] if crowd[j] else area[i] + other_area[j] - shared
                value = shared / whole if whole > 0 else 0.0
                if value < least:
                    continue
            if count == capacity:
                capacity *= 2
                rows, columns = _longer(rows, capacity), _longer(columns, capacity)
                longer = np.empty(capacity, np.float64)
                longer[:count] = values
                values = longer
            rows[count], columns[count], values[count] = i, index[j], value
            count += 1
        if count - first > 16:
            arranged = np.argsort(columns[first:count])
            columns[first:count] = columns[first:count][arranged]
            values[first:count] = values[first:count][arranged]
        else:
            for p in range(first + 1, count):
                g, v, k = columns[p], values[p], p
                while k > first and columns[k - 1] > g:
                    columns[k], values[k] = columns[k - 1], values[k - 1]
                    k -= 1
                columns[k], values[k] = g, v
    return rows[:count], columns[:count], values[:count]


@compiled
def _longer(array: _I32, capacity: int) -> _I32:
    longer = np.empty(capacity, np.int32)
    longer[: len(array)] = array
    return longer


@compiled
def measure_runs(counts: NDArray[np.uint32], starts: Int, heights: Int) -> tuple[Float, Float]:
    """Area [N] and bounds x1, y1, x2, y2 [N, 4] of masks in run lengths; zeros for an empty one."""
    areas, bounds = np.zeros(len(heights), np.float64), np.zeros((len(heights), 4), np.float64)
    for n in range(len(heights)):
        height = heights[n]
        area, place = 0, 0
        left, top, right, bottom = -1, height, 0, 0
        for q in range(starts[n], starts[n + 1]):
            count = int(counts[q])
            if (q - starts[n]) % 2 == 1 and count > 0:
                first, last = place // height, (place + count - 1) // height
                if left < 0:
                    left = first
                right = last + 1
                if last > first:  # a run over the end of a column fills the image from top to bottom there
                    top, bottom = 0, height
                else:
                    top = min(top, place - first * height)
                    bottom = max(bottom, place + count - first * height)
                area += count
            place += count
        areas[n] = area
        if area > 0:
            bounds[n, 0], bounds[n, 1], bounds[n, 2], bounds[n, 3] = left, top, right, bottom
    return areas, bounds


@compiled
def shared_pixels(
    counts: NDArray[np.uint32], starts: Int, others: NDArray[np.uint32], other_starts: Int, rows: Int, columns: Int
) -> Float:
    """[P] pixels that mask rows[p] of the one and mask columns[p] of the other run-length list have in common."""
    result = np.zeros(len(rows), np.float64)
    for p in range(len(rows)):
        i, i_end = starts[rows[p]], starts[rows[p] + 1]
        j, j_end = other_starts[columns[p]], other_starts[columns[p] + 1]
        if i == i_end or j == j_end:
            continue
        left, right = int(counts[i]), int(others[j])
        inside, other_inside = False, False
        shared = 0
        while True:
            step = min(left, right)
            if inside and other_inside:
                shared += step
            left -= step
            right -= step
            if left == 0:
                i += 1
                if i == i_end:
                    break
                left = int(counts[i])
                inside = not inside
            if right == 0:
                j += 1
                if j == j_end:
                    break
                right = int(others[j])
                other_inside = not other_inside
        result[p] = shared
    return result


@compiled
def choose(
    starts: Int, slots: Int, pairs: tuple[_I32, Float], thresholds: Float, ignored: Mask, again: Mask, settled: bool
) -> _I32:
    """[A, T, rows] the true object that each prediction takes, or -1.

    Predictions are in the order in which they choose; the pairs (truth, value) of prediction r are starts[r]:starts[r + 1], truth
    ascending, and its answer goes to place slots[r].
    COCO's rule: the free scored object of largest value that reaches the threshold, of equals the last; an ignored one when there
    is no scored one. With `settled`, VOC's rule: only the first object of largest value is asked; when it is taken, nothing is.
    """
    truth, value = pairs
    areas, steps, rows = len(ignored), len(thresholds), len(starts) - 1
    result = np.full((areas, steps, rows), -1, np.int32)
    most = np.zeros(rows, np.float64)  # the best value of each prediction, below which thresholds need not ask it
    for r in range(rows):
        for p in range(starts[r], starts[r + 1]):
            most[r] = max(most[r], value[p])
    for a in range(areas):
        for t in range(steps):
            taken = np.zeros(len(again), np.bool_)
            for r in range(rows):
                if most[r] < thresholds[t]:
                    continue
                best, best_value, best_ignored = -1, 0.0, True
                for p in range(starts[r], starts[r + 1]):
                    g, v = int(truth[p]), value[p]
                    if v < thresholds[t]:
                        continue
                    if settled:
                        if best < 0 or v > best_value:
                            best, best_value = g, v
                        continue
                    if taken[g] and not again[g]:
                        continue
                    if best < 0 or (best_ignored and not ignored[a, g]) or (best_ignored == ignored[a, g] and v >= best_value):
                        best, best_value, best_ignored = g, v, ignored[a, g]
                if best >= 0 and not (settled and taken[best] and not again[best]):
                    result[a, t, slots[r]] = best
                    taken[best] = True
    return result


@compiled
def average(walk: Walk, cuts: Int, total: Float, weight: Float, recalls: Float) -> tuple[Float, Float]:
    """Precision [C, A, T, R] at the given recalls under cuts[-1], and recall [C, A, T, M] under every cut; NaN without truth.

    Args:
        cuts: [M] most predictions per image and class.
        total: [C, A] scored truth, weighted.
        weight: [N] how often each image counts.
    """
    edges, image, rank, row, inside, taken, ignored = walk
    classes, areas, steps = len(edges) - 1, len(ignored), taken.shape[1]
    precision = np.full((classes, areas, steps, len(recalls)), np.nan)
    recall = np.full((classes, areas, steps, len(cuts)), np.nan)
    longest = 1
    for c in range(classes):
        found = 0
        for p in range(edges[c], edges[c + 1]):
            found += row[p] >= 0
        longest = max(longest, found)
    # Of the predictions of a class that touch truth: row, weight, rank, bits of `inside`, and the false positives before them.
    rows, heavy, place = np.empty(longest, np.int64), np.empty(longest), np.empty(longest, np.int64)
    bits, before = np.empty(longest, np.int64), np.empty((areas, longest))
    hits, counted, unmatched = np.empty(longest), np.empty(longest), np.zeros(areas)
    for c in range(classes):
        found = 0
        unmatched[:] = 0
        for p in range(edges[c], edges[c + 1]):
            w = weight[image[p]]
            if rank[p] >= cuts[-1] or w == 0:
                continue
            if row[p] < 0:
                for a in range(areas):
                    unmatched[a] += w * (inside[p] >> a & 1)
                continue
            rows[found], heavy[found], place[found], bits[found] = row[p], w, rank[p], inside[p]
            for a in range(areas):
                before[a, found] = unmatched[a]
            found += 1
        for a in range(areas):
            if total[c, a] <= 0:
                continue
            for t in range(steps):
                correct, wrong, length = 0.0, 0.0, 0
                recall[c, a, t] = 0
                for k in range(found):
                    g = taken[a, t, rows[k]]
                    if g < 0:
                        wrong += heavy[k] * (bits[k] >> a & 1)
                    elif not ignored[a, g]:
                        correct += heavy[k]
                        hits[length], counted[length] = correct, before[a, k] + wrong + correct
                        length += 1
                        for m in range(len(cuts)):
                            if place[k] < cuts[m]:
                                recall[c, a, t, m] += heavy[k]
                for m in range(len(cuts)):
                    recall[c, a, t, m] /= total[c, a]
                # Interpolated precision: the largest at this recall or above. The tiny term is pycocotools'.
                best, r = 0.0, len(recalls) - 1
                for k in range(length - 1, -1, -1):
                    reached = hits[k] / total[c, a]
                    while r >= 0 and recalls[r] > reached:
                        precision[c, a, t, r] = best
                        r -= 1
                    best = max(best, hits[k] / (counted[k] + 2.220446049250313e-16))
                while r >= 0:
                    precision[c, a, t, r] = best
                    r -= 1
    return precision, recall
