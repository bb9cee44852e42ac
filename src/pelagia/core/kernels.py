"""Loops that numpy cannot say, compiled by numba on first use, kept in its cache; this module is imported late (`core.lazy`).

Each is a definition in plain Python. `compiled` is the one way in which loops are compiled here and in other layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pelagia.core.types import Float, Int

__all__ = ["compiled", "decode_runs", "near_pairs", "oriented_intersections", "stretch"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Machine code without the interpreter's lock; not cached where no folder can be written."""
    try:
        return cast(_Function, njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:
        return cast(_Function, njit(nogil=True, error_model="numpy")(function))


@compiled
def decode_runs(text: NDArray[np.uint8], lengths: Int, pixels: Int, counts: NDArray[np.uint32], sizes: Int) -> tuple[int, int]:
    """COCO's compressed run lengths, N texts one after another, into `counts` (as long as `text`) and `sizes` [N], runs of each.

    Groups of 5 bits, least first, 48 added, 32 if more follow, the last group's bit 16 the sign; from the fourth on a run is
    written as its difference to the one two before. Returns how many runs there are, or (-1 - the fault, position of the mask): 0
    a character that is none, 1 cut short, 2 a number too long, 3 a run below 0 or above the image, 4 the sum is not the image,
    5 empty.
    """
    place, count = 0, 0
    for n in range(len(lengths)):
        end, first, total = place + int(lengths[n]), count, 0
        if lengths[n] == 0:
            return -6, n
        while place < end:
            value, shift = 0, 0
            while True:
                if place == end:
                    return -2, n
                group = int(text[place]) - 48
                place += 1
                if group < 0 or group > 63:
                    return -1, n
                if shift > 30:
                    return -3, n
                value |= (group & 31) << shift
                shift += 5
                if not group & 32:
                    if group & 16:
                        value -= 1 << shift
                    break
            if count - first > 2:
                value += int(counts[count - 2])
            if value < 0 or value > pixels[n]:
                return -4, n
            counts[count] = value
            count += 1
            total += value
        if total != pixels[n]:
            return -5, n
        sizes[n] = count - first
    return count, 0


@compiled
def oriented_intersections(a: Float, b: Float) -> Float:
    """Common area of pairs of oriented boxes, [N, 5] and [N, 5] -> [N]: `core.oriented` with one pair after another.

    In the frame of b, Green's theorem: each edge of a adds the integral of clamp(x, -c, c) dy over its part with |y| <= d.
    """
    found = np.empty(len(a))
    xs, ys = np.empty(5), np.empty(5)
    for n in range(len(a)):
        cos, sin = math.cos(b[n, 4]), math.sin(b[n, 4])
        dx, dy = a[n, 0] - b[n, 0], a[n, 1] - b[n, 1]
        x, y = dx * cos + dy * sin, dy * cos - dx * sin
        cos, sin = math.cos(a[n, 4] - b[n, 4]), math.sin(a[n, 4] - b[n, 4])
        ux, uy, vx, vy = cos * a[n, 2] / 2, sin * a[n, 2] / 2, -sin * a[n, 3] / 2, cos * a[n, 3] / 2
        c, d = b[n, 2] / 2, b[n, 3] / 2
        xs[0], xs[1], xs[2], xs[3], xs[4] = x - ux - vx, x + ux - vx, x + ux + vx, x - ux + vx, x - ux - vx
        ys[0], ys[1], ys[2], ys[3], ys[4] = y - uy - vy, y + uy - vy, y + uy + vy, y - uy + vy, y - uy - vy
        total = 0.0
        for k in range(4):
            low, high = min(max(ys[k], -d), d), min(max(ys[k + 1], -d), d)
            if low == high:
                continue
            rise, run = ys[k + 1] - ys[k], xs[k + 1] - xs[k]
            start, end = xs[k] + run * ((low - ys[k]) / rise), xs[k] + run * ((high - ys[k]) / rise)
            left, right = min(start, end), max(start, end)
            inner_left, inner_right = min(max(left, -c), c), min(max(right, -c), c)
            mean = inner_left
            if right > left:
                below, above = max(min(right, -c) - left, 0.0), max(right - max(left, c), 0.0)
                mean = ((inner_right - inner_left) * (inner_left + inner_right) / 2 + c * (above - below)) / (right - left)
            total += mean * (high - low)
        area_a, area_b = a[n, 2] * a[n, 3], b[n, 2] * b[n, 3]
        found[n] = min(total, area_a, area_b) if total > 4e-15 * area_b else 0.0
    return found


@compiled
def near_pairs(asked: Int, first: Int, end: Int, target: Int, bounds: Float, areas: Float, threshold: float) -> tuple[Int, Int]:
    """Of the pairs (asked[k], target[first[k]:end[k]]) those whose IoU may be above `threshold`, in order: the common part is at
    most that of the bounds [4, N], x1, y1, x2, y2, and at most the smaller area [N]; rounding does not decide.
    """
    most = 0
    for k in range(len(asked)):
        most += end[k] - first[k]
    i, j = np.empty(most, np.int64), np.empty(most, np.int64)
    count = 0
    for k in range(len(asked)):
        a = asked[k]
        for place in range(first[k], end[k]):
            b = target[place]
            width = min(bounds[2, a], bounds[2, b]) - max(bounds[0, a], bounds[0, b])
            height = min(bounds[3, a], bounds[3, b]) - max(bounds[1, a], bounds[1, b])
            if width <= 0 or height <= 0:
                continue
            common = min(width * height, areas[a], areas[b]) * (1 + 1e-9)
            if common > threshold * (areas[a] + areas[b] - common):
                i[count], j[count] = a, b
                count += 1
    return i[:count], j[:count]


@compiled
def stretch(
    canvas: NDArray[np.uint8],
    window: tuple[int, int, int, int],
    image: NDArray[np.uint8],
    x: tuple[float, float],
    y: tuple[float, float],
    fill: int,
) -> None:
    """Bilinear interpolation of `image` [h, w, 3], continued by `fill` on all sides, into `window` (x1, y1, x2, y2) of `canvas`
    [H, W, 3], in place; u of the image lies at x[0] u + x[1] of the canvas, v at y[0] v + y[1].

    The weight of a sample is that of its row times that of its column, each rounded to 256ths. All loops but one are plain enough
    for the processor's vectors; that one moves a pixel, four channels of 16 bits, as one number.
    """
    height, width, _ = image.shape
    x1, y1, x2, y2 = window
    count = x2 - x1
    source = image.reshape(height, width * 3)
    target = canvas.reshape(len(canvas), canvas.shape[1] * 3)
    # The left one of two samples, in a line that begins and ends with a pixel of `fill`, and the weight of the right one.
    # Unsigned, since numba asks of every signed index whether it counts from the end.
    taps, shares = np.empty(count, np.uint64), np.empty(4 * count, np.uint16)
    first, last = width, -1
    for column in range(count):
        place = (x1 + column + 0.5 - x[1]) / x[0] - 0.5
        left = min(max(math.floor(place), -1), width - 1)
        first, last = min(first, left), max(last, left + 1)
        taps[column] = left + 1
        shares[4 * column : 4 * column + 4] = math.floor(256 * min(max(place - left, 0.0), 1.0) + 0.5)
    first, last = max(first, 0), min(last + 1, width)
    line = np.full(4 * (width + 2), 256 * fill, np.uint16)
    seen, words, right = line[4 * (first + 1) : 4 * (last + 1)], line.view(np.uint64), np.uint64(1)
    low, high, found = np.empty(count, np.uint64), np.empty(count, np.uint64), np.empty(4 * count, np.uint8)
    lows, highs = low.view(np.uint16), high.view(np.uint16)
    for row in range(y1, y2):
        place = (row + 0.5 - y[1]) / y[0] - 0.5
        upper = min(max(math.floor(place), -1), height - 1)
        below = np.uint16(math.floor(256 * min(max(place - upper, 0.0), 1.0) + 0.5))
        above = np.uint16(256 - below)
        one = source[max(upper, 0), 3 * first : 3 * last]
        if 0 <= upper < height - 1:
            two = source[upper + 1, 3 * first : 3 * last]
            for k in range(last - first):
                seen[4 * k] = np.uint16(one[3 * k]) * above + np.uint16(two[3 * k]) * below
                seen[4 * k + 1] = np.uint16(one[3 * k + 1]) * above + np.uint16(two[3 * k + 1]) * below
                seen[4 * k + 2] = np.uint16(one[3 * k + 2]) * above + np.uint16(two[3 * k + 2]) * below
                seen[4 * k + 3] = 0
        else:
            share = below if upper < 0 else above
            rest = fill * (256 - share)
            for k in range(last - first):
                for c in range(3):
                    seen[4 * k + c] = np.uint16(one[3 * k + c]) * share + rest
        for k in range(count):
            tap = taps[k]
            low[k], high[k] = words[tap], words[tap + right]
        for k in range(4 * count):
            weight = np.uint32(shares[k])
            value = np.uint32(lows[k]) * (np.uint32(256) - weight) + np.uint32(highs[k]) * weight + np.uint32(32768)
            found[k] = np.uint8(value >> np.uint32(16))
        drawn = target[row, 3 * x1 : 3 * x2]
        for k in range(count):
            drawn[3 * k], drawn[3 * k + 1], drawn[3 * k + 2] = found[4 * k], found[4 * k + 1], found[4 * k + 2]
