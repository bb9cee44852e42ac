"""Polygon rings of annotation formats: area, bounds, and joining parts into one ring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pelagia.core.masks import polygon_area
from pelagia.core.types import Float

__all__ = ["bridge", "rings_area", "rings_bounds"]


def rings_area(rings: Sequence[Float]) -> float:
    """The sum over parts of the shoelace area; parts of one object do not overlap, and polygons of these formats have no
    holes."""
    return sum(polygon_area(ring) for ring in rings)


def rings_bounds(rings: Sequence[Float]) -> Float:
    """[4] x1, y1, x2, y2 around all points."""
    points = np.concatenate(rings)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def bridge(rings: Sequence[Float]) -> Float:
    """One ring [P, 2] that covers several, joined by bridges of zero width between their nearest points.

    The next ring is always the one nearest to what is joined already. The area stays; the outline gains each bridge twice.
    """
    joined, *rest = [ring.copy() for ring in rings]
    while rest:
        best: tuple[float, int, int, int] | None = None
        for k, ring in enumerate(rest):
            distance = ((joined[:, None] - ring[None]) ** 2).sum(axis=2)
            i, j = divmod(int(distance.argmin()), len(ring))
            if best is None or distance[i, j] < best[0]:
                best = (float(distance[i, j]), k, i, j)
        assert best is not None
        _, k, i, j = best
        ring = rest.pop(k)
        if _signed(ring) * _signed(joined) < 0:
            ring, j = ring[::-1], len(ring) - 1 - j
        turned = np.concatenate([ring[j:], ring[: j + 1]])
        joined = np.concatenate([joined[: i + 1], turned, joined[i:]])
    return joined


def _signed(ring: Float) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
