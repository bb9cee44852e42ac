"""Loops of decoding, compiled by numba on first use; this module is imported late (`core.lazy`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pelagia.core.kernels import compiled
from pelagia.core.types import Float, Int, Mask

__all__ = ["assemble_masks", "flood"]


@compiled
def assemble_masks(
    weights: NDArray[np.float32], prototypes: NDArray[np.float32], pixels: Int, affine: Float, level: float
) -> tuple[Mask, Int]:
    """Masks of n boxes from the prototypes [K, h, w] of their image, one after another, row by row: mask i is
    bits[starts[i]:starts[i + 1]].

    A bit tells whether the sum of prototypes by weights[i] [K], interpolated bilinearly at the centre of the pixel and constant
    beyond the outermost cells, reaches `level`.

    Args:
        pixels: [n, 4] first column and row, last column and row + 1 of each box.
        affine: a, b, c, d: pixel column x lies at the cell column a (x + 1/2) + b - 1/2, pixel row y at c (y + 1/2) + d - 1/2.
    """
    _, rows, columns = prototypes.shape
    starts = np.zeros(len(pixels) + 1, np.int64)
    for i in range(len(pixels)):
        width, height = max(pixels[i, 2] - pixels[i, 0], 0), max(pixels[i, 3] - pixels[i, 1], 0)
        starts[i + 1] = starts[i] + width * height
    bits = np.zeros(starts[-1], np.bool_)
    grid = np.empty((rows, columns), np.float32)
    line = np.empty(columns, np.float32)
    for i in range(len(pixels)):
        left, top, right, bottom = pixels[i, 0], pixels[i, 1], pixels[i, 2], pixels[i, 3]
        if right <= left or bottom <= top:
            continue
        # The cells between which the pixels lie.
        x1 = _cell(affine[0] * (left + 0.5) + affine[1] - 0.5, columns)
        x2 = min(_cell(affine[0] * (right - 0.5) + affine[1] - 0.5, columns) + 1, columns - 1)
        y1 = _cell(affine[2] * (top + 0.5) + affine[3] - 0.5, rows)
        y2 = min(_cell(affine[2] * (bottom - 0.5) + affine[3] - 0.5, rows) + 1, rows - 1)
        grid[y1 : y2 + 1, x1 : x2 + 1] = 0
        for k in range(len(prototypes)):
            weight = weights[i, k]
            for y in range(y1, y2 + 1):
                for x in range(x1, x2 + 1):
                    grid[y, x] += weight * prototypes[k, y, x]
        low = np.empty(right - left, np.int64)
        share = np.empty(right - left, np.float32)
        for column in range(left, right):
            place = min(max(affine[0] * (column + 0.5) + affine[1] - 0.5, 0.0), columns - 1.0)
            low[column - left] = int(place)
            share[column - left] = place - int(place)
        n = starts[i]
        for row in range(top, bottom):
            place = min(max(affine[2] * (row + 0.5) + affine[3] - 0.5, 0.0), rows - 1.0)
            y = int(place)
            below, part = min(y + 1, rows - 1), np.float32(place - y)
            for x in range(x1, x2 + 1):
                line[x] = grid[y, x] + (grid[below, x] - grid[y, x]) * part
            for j in range(right - left):
                x = low[j]
                value = line[x] + (line[min(x + 1, columns - 1)] - line[x]) * share[j]
                bits[n] = value >= level
                n += 1
    return bits, starts


@compiled
def _cell(place: float, count: int) -> int:
    """The grid point at or before a position, within the grid."""
    return min(max(int(place), 0), count - 1)


@compiled
def flood(heights: NDArray[np.float32], order: Int, share: float, drop: float) -> Int:
    """[H, W] number of the basin of each pixel, 0 outside: a watershed of `heights` [H, W] flooded from the peaks down.

    `order` holds the flat positions of the pixels to divide, by descending height. Each joins the basin of its highest neighbour
    (of 8) that is flooded already, or founds one. Where basins meet, at height s, the one with the lower peak p goes up in the
    other unless the neck between them is a neck: s < share * p and p - s >= drop.
    """
    rows, columns = heights.shape
    flat = heights.ravel()
    parent = np.full(rows * columns, -1, dtype=np.int64)  # a forest over pixels; a root is its basin's peak
    near = np.empty(8, dtype=np.int64)
    for n in range(len(order)):
        place = order[n]
        y, x = place // columns, place % columns
        found, best = 0, -1
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                if (dy == 0 and dx == 0) or not (0 <= y + dy < rows and 0 <= x + dx < columns):
                    continue
                other = place + dy * columns + dx
                if parent[other] < 0:
                    continue
                if best < 0 or flat[other] > flat[best]:
                    best = other
                root = other
                while parent[root] != root:
                    parent[root] = parent[parent[root]]
                    root = parent[root]
                near[found] = root
                found += 1
        if found == 0:
            parent[place] = place
            continue
        own = best
        while parent[own] != own:
            own = parent[own]
        parent[place] = own
        for i in range(found):
            a, b = own, near[i]
            while parent[a] != a:
                a = parent[a]
            while parent[b] != b:
                b = parent[b]
            if a == b:
                continue
            high, low = (a, b) if flat[a] >= flat[b] else (b, a)
            if flat[place] < share * flat[low] and flat[low] - flat[place] >= drop:
                continue
            parent[low] = high
    found_ids = np.zeros(rows * columns, dtype=np.int64)
    count = 0
    for n in range(len(order)):
        place = order[n]
        if parent[place] == place:
            count += 1
            found_ids[place] = count
    for n in range(len(order)):
        place = order[n]
        root = place
        while parent[root] != root:
            root = parent[root]
        found_ids[place] = found_ids[root]
    return found_ids.reshape(rows, columns)
