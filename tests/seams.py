"""Where organisms are most likely to be counted wrongly by tiles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pelagia.infer.tiles import Tile

__all__ = ["on_seams"]


def on_seams(
    rng: np.random.Generator, tiles: Sequence[Tile], size: tuple[int, int], count: int, taxa: int, beside: float
) -> list[tuple[float, float, int]]:
    """`count` places x, y, label on seams (middles of overlaps and borders of tiles), where they cross, and one in four with
    another of its class `beside` it, so many pixels away."""
    lines: list[list[float]] = []
    for axis in (0, 1):
        spans = sorted({(tile.box[axis], tile.box[axis + 2]) for tile in tiles})
        middles = [(a[1] + b[0]) / 2 for a, b in pairwise(spans)]
        lines.append([*middles, *(float(b[0]) for _, b in pairwise(spans)), *(float(a[1]) for a, _ in pairwise(spans))])
    chosen: list[tuple[float, float, int]] = []
    for kind in range(count):
        x, y = (float(rng.uniform(0, length)) for length in size)
        if kind % 3 != 1 and lines[0]:
            x = float(rng.choice(lines[0]))
        if kind % 3 != 2 and lines[1]:
            y = float(rng.choice(lines[1]))
        label = int(rng.integers(taxa))
        chosen.append((x, y, label))
        if kind % 4 == 0:
            angle = rng.uniform(0, 2 * np.pi)
            chosen.append((x + beside * np.cos(angle), y + beside * np.sin(angle), label))
    return chosen
