"""Polygon rings of annotation formats: area, bounds, the least rectangle, and joining parts into one ring."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from pelagia.core import oriented as core_oriented
from pelagia.core.types import Float

__all__ = ["bridge", "least_rectangle", "ring_area", "rings_area", "rings_bounds"]


def ring_area(ring: Float) -> float:
    """The unsigned shoelace area of a ring [P, 2]."""
    shifted = ring - ring[0]
    x, y = shifted[:, 0], shifted[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def rings_area(rings: Sequence[Float]) -> float:
    """The sum over parts; parts of one object do not overlap, and polygons of annotation formats have no holes."""
    return float(sum(ring_area(ring) for ring in rings))


def rings_bounds(rings: Sequence[Float]) -> Float:
    """[4] x1, y1, x2, y2 around all points."""
    points = np.concatenate(rings)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def least_rectangle(points: Float) -> Float:
    """[5] cx, cy, w, h, angle: the rectangle of least area around points [P, 2], canonical.

    One side of it lies along an edge of the convex hull (Freeman & Shapira 1975), so every edge is tried. The hull is found in
    float32, the extents are taken over all points in float64.
    """
    origin = points.mean(axis=0)
    centred = points - origin
    index = cv2.convexHull(centred.astype(np.float32), returnPoints=False).reshape(-1)
    hull = centred[index]
    edges = np.roll(hull, -1, axis=0) - hull
    edges = edges[np.hypot(edges[:, 0], edges[:, 1]) > 0]
    if len(edges) == 0:
        edges = np.array([[1.0, 0.0]])
    angles = np.unique(np.arctan2(edges[:, 1], edges[:, 0]) % (np.pi / 2))
    cos, sin = np.cos(angles), np.sin(angles)
    along = hull @ np.stack([cos, sin])  # [P, E]
    across = hull @ np.stack([-sin, cos])
    low_u, high_u, low_v, high_v = along.min(axis=0), along.max(axis=0), across.min(axis=0), across.max(axis=0)
    best = int(np.argmin((high_u - low_u) * (high_v - low_v)))
    u, v = (low_u[best] + high_u[best]) / 2, (low_v[best] + high_v[best]) / 2
    centre = origin + np.array([u * cos[best] - v * sin[best], u * sin[best] + v * cos[best]])
    sides = [high_u[best] - low_u[best], high_v[best] - low_v[best]]
    box: Float = core_oriented.canonical(np.array([[*centre, *sides, angles[best]]]))[0]
    return box


def bridge(rings: Sequence[Float]) -> Float:
    """One ring [P, 2] that covers several, joined by bridges of zero width between their nearest points.

    The next ring is always the one nearest to what is joined already. The area stays; the outline gains each bridge twice.
    """
    joined, *rest = [ring.copy() for ring in rings]
    while rest:
        best: tuple[float, int, int, int] | None = None
        for k, ring in enumerate(rest):
            distance = ((joined[:, None] - ring[None]) ** 2).sum(axis=2)
            i, j = np.unravel_index(int(distance.argmin()), distance.shape)
            if best is None or distance[i, j] < best[0]:
                best = (float(distance[i, j]), k, int(i), int(j))
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
