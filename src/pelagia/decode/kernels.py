"""Loops of decoding, compiled by numba on first use; this module is imported late (`core.lazy`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pelagia.core.kernels import compiled
from pelagia.core.types import Int

__all__ = ["flood"]


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
