"""From a mask to its outline along pixel edges.

The corners of the outline determine it: along every row and along every column they pair up as ends of edges, and following a row
edge and a column edge in turn gives the rings.
"""

from __future__ import annotations

import numpy as np

from pelagia.core.types import Float, Int, Mask, MaskCrop

__all__ = ["to_polygons"]


def to_polygons(crop: MaskCrop) -> list[Float]:
    """The outlines along pixel edges, one ring [P, 2] per part (pixels joined by a side), clockwise on the screen.

    A hole is joined to the outline above it by a vertical bridge of zero width, so that formats without holes keep the shape:
    `rasterise` of the rings gives the mask back to the pixel, and their shoelace areas add up to its area.
    """
    padded = np.pad(crop.bitmap, 1)
    row, column, above = _corners(padded)
    # Corners 2k and 2k + 1 end the k-th edge along a row. It is walked to the right where the pixel below is set, so that the
    # object stays on the right hand; then comes the edge along the column.
    left = np.arange(0, len(row), 2)
    rightward = padded[row[left] + 1, column[left] + 1]
    start, end = np.where(rightward, left, left + 1), np.where(rightward, left + 1, left)
    after = np.empty(len(row), dtype=np.int64)
    after[start], after[end] = end, above[end]
    links = after.tolist()
    firsts = _first_corners(links)
    points: list[tuple[float, float]] = list(zip(column.tolist(), row.tolist(), strict=True))
    holes = [index for index in firsts if not rightward[index // 2]]
    # From right to left: each bridge is put at the beginning of the edge it meets, so those of one edge come in order.
    for hole in sorted(holes, key=lambda index: -points[index][0]):
        c, r = int(column[hole]), int(row[hole])
        roof = int(np.flatnonzero(~padded[: r + 1, c + 1])[-1])
        hit = int(start[rightward & (row[left] == roof) & (column[left] <= c) & (c < column[left + 1])][0])
        size = len(points)
        points += [(c + 0.5, roof), (c + 0.5, r), (c + 0.5, r), (c + 0.5, roof)]
        links += [size + 1, hole, size + 3, links[hit]]
        links[hit], links[hole + 1] = size, size + 2
    offset = np.array([crop.x, crop.y], dtype=np.float64)
    return [_ring(points, links, index) + offset for index in firsts if rightward[index // 2]]


def _corners(padded: Mask) -> tuple[Int, Int, Int]:
    """Corners of the pixel outline of a padded bitmap, in row order: row, column, the other end along the column.

    Where two pixels touch by a corner only, the outline has two corners, paired so that the pixels stay apart.
    """
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    double = (a == d) & (b == c) & (a != b)
    cell = np.repeat(np.arange(a.size), np.where(double, 2, a ^ b ^ c ^ d).ravel())
    row, column = np.divmod(cell, a.shape[1])
    # The first of two corners ends the edge from the left, the second begins the one to the right. With the top-left pixel set,
    # the first belongs to the edge above, otherwise to the edge below.
    second = np.diff(cell, prepend=-1) == 0
    below = double[row, column] & (second == a[row, column])
    order = np.lexsort((below, row, column))
    above = np.empty_like(order)
    above[order[0::2]], above[order[1::2]] = order[1::2], order[0::2]
    return row, column, above


def _first_corners(links: list[int]) -> list[int]:
    """The first corner of each ring; corners being in row order, that is the left end of its topmost, leftmost edge."""
    seen = [False] * len(links)
    firsts = []
    for index in range(len(links)):
        if not seen[index]:
            firsts.append(index)
            while not seen[index]:
                seen[index] = True
                index = links[index]
    return firsts


def _ring(points: list[tuple[float, float]], links: list[int], first: int) -> Float:
    ring, index = [points[first]], links[first]
    while index != first:
        ring.append(points[index])
        index = links[index]
    return np.array(ring, dtype=np.float64)
