"""Oriented boxes: corners, conventions, exact IoU by clipping, and ProbIoU.

An oriented box is [cx, cy, w, h, angle] with the angle in radians, clockwise on the screen (see `pelagia.core.types`): the axis
of `w` points along (cos angle, sin angle), the axis of `h` along (-sin angle, cos angle), y down.

The exact IoU and the conversions are float64 numpy. `probiou` and `probiou_matrix` take arrays and tensors and are
differentiable: Llerena et al., "Gaussian Bounding Boxes and Probabilistic Intersection-over-Union for Object Detection", 2021
(arXiv:2106.06072).
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar, get_args

import cv2
import numpy as np
from array_api_compat import array_namespace

from pelagia.core.lazy import resolve
from pelagia.core.types import Float
from pelagia.errors import LabelError, OptionError

__all__ = [
    "MANY_PAIRS",
    "OrientedConvention",
    "bounds",
    "canonical",
    "convert",
    "from_corners",
    "from_points",
    "iou",
    "iou_aligned",
    "probiou",
    "probiou_matrix",
    "to_corners",
]

ArrayT = TypeVar("ArrayT")  # a numpy array or a torch tensor

#: How the five numbers of an oriented box can be meant:
#: `canonical` is this package's; `le90` the same but squares also use [-pi/2, pi/2) (MMRotate's long edge 90);
#: `opencv` has degrees clockwise in (0, 90] and either side may be longer (`cv2.minAreaRect` since 4.5.1);
#: `rad-cw`, `rad-ccw`, `deg-cw`, `deg-ccw` name unit and direction, as annotation files use them.
OrientedConvention = Literal["canonical", "le90", "opencv", "rad-cw", "rad-ccw", "deg-cw", "deg-ccw"]

_PAIRS_AT_ONCE = 1 << 16  # bounds the memory of exact IoU, and keeps its temporaries near the cache

#: From so many pairs on they are clipped by a compiled loop, whose import would cost a few more than it saves.
MANY_PAIRS = 1 << 13


def to_corners(oriented: Float) -> Float:
    """[..., 5] oriented boxes -> [..., 4, 2] corners, clockwise on the screen, first (-w/2, -h/2) in the box's own axes."""
    oriented = np.asarray(oriented, dtype=np.float64)
    cos, sin = np.cos(oriented[..., 4]), np.sin(oriented[..., 4])
    along = np.stack([cos, sin], axis=-1) * oriented[..., 2:3] / 2  # [..., 2]
    across = np.stack([-sin, cos], axis=-1) * oriented[..., 3:4] / 2  # [..., 2]
    offsets = np.stack([-along - across, along - across, along + across, across - along], axis=-2)  # [..., 4, 2]
    return oriented[..., None, :2] + offsets


def from_corners(corners: Float) -> Float:
    """[N, 4, 2] corners in any order -> [N, 5], canonical: the rectangle, or the smallest one around four points that are none.

    The smallest rectangle around points has a side along an edge of their convex hull; with four points that is one of the six
    directions between them.
    """
    corners = np.asarray(corners, dtype=np.float64).reshape(-1, 4, 2)
    origin = corners.mean(axis=1, keepdims=True)
    points = corners - origin  # relative, so that far from the origin nothing is lost
    first, second = np.array([0, 1, 2, 3, 0, 1]), np.array([1, 2, 3, 0, 2, 3])
    direction = points[:, second] - points[:, first]  # [N, 6, 2]
    length = np.hypot(direction[..., 0], direction[..., 1])
    usable = length > 0
    direction = np.where(usable[..., None], direction / np.where(usable, length, 1.0)[..., None], np.array([1.0, 0.0]))
    normal = np.stack([-direction[..., 1], direction[..., 0]], axis=-1)
    along, across = direction @ points.transpose(0, 2, 1), normal @ points.transpose(0, 2, 1)  # [N, 6, 4]
    extent_u, extent_v = np.ptp(along, axis=2), np.ptp(across, axis=2)  # [N, 6]
    cost = np.where(usable | ~usable.any(axis=1, keepdims=True), extent_u * extent_v, np.inf)
    best = np.arange(len(corners)), np.argmin(cost, axis=1)
    middle_u = (along.max(axis=2) + along.min(axis=2))[best] / 2
    middle_v = (across.max(axis=2) + across.min(axis=2))[best] / 2
    axis, side = direction[best], normal[best]
    centre = origin[:, 0] + middle_u[:, None] * axis + middle_v[:, None] * side
    angle = np.arctan2(axis[:, 1], axis[:, 0])
    return canonical(np.column_stack([centre, extent_u[best], extent_v[best], angle]))


def from_points(points: Float) -> Float:
    """[P, 2] points -> [5], the smallest rectangle around all of them, canonical; P >= 1.

    One side lies along an edge of the convex hull (Freeman & Shapira, CACM 1975). The hull is found in float32, which only picks
    the directions; extents are taken over all points in float64.

    Raises:
        LabelError: no point, or one that is not finite.
    """
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    if len(points) == 0 or not np.isfinite(points).all():
        raise LabelError("a rectangle needs at least one point, all finite")
    origin = (points.min(axis=0) + points.max(axis=0)) / 2
    centred = points - origin
    hull = centred[cv2.convexHull(centred.astype(np.float32), returnPoints=False).reshape(-1)]
    edges = np.roll(hull, -1, axis=0) - hull
    angles = np.unique(np.arctan2(edges[:, 1], edges[:, 0]) % (math.pi / 2))  # turned by a right angle it is the same rectangle
    axes = np.stack([np.cos(angles), np.sin(angles)])  # [2, E]
    along, across = centred @ axes, centred @ np.stack([-axes[1], axes[0]])  # [P, E]
    extent_u, extent_v = np.ptp(along, axis=0), np.ptp(across, axis=0)
    best = int(np.argmin(extent_u * extent_v))
    u, v = (along[:, best].min() + along[:, best].max()) / 2, (across[:, best].min() + across[:, best].max()) / 2
    centre = origin + u * axes[:, best] + v * np.array([-axes[1, best], axes[0, best]])
    return canonical(np.array([*centre, extent_u[best], extent_v[best], angles[best]]))


def canonical(oriented: Float) -> Float:
    """[..., 5] -> the same rectangles with w >= h and the angle in [-pi/2, pi/2), for w = h in [-pi/4, pi/4)."""
    result = _long_edge_first(oriented)
    square = result[..., 2] == result[..., 3]
    result[..., 4] = np.where(square, _wrap(result[..., 4], math.pi / 2), result[..., 4])
    return result


def _long_edge_first(oriented: Float) -> Float:
    result = np.array(oriented, dtype=np.float64)
    w, h = result[..., 2].copy(), result[..., 3].copy()
    swap = w < h
    result[..., 2], result[..., 3] = np.where(swap, h, w), np.where(swap, w, h)
    result[..., 4] = _wrap(np.where(swap, result[..., 4] + math.pi / 2, result[..., 4]), math.pi)
    return result


def _wrap(angle: Float, period: float) -> Float:
    """The equal angle in [-period/2, period/2); an angle already there is left to the bit."""
    wrapped = angle - period * np.floor((angle + period / 2) / period)
    return np.where(wrapped >= period / 2, -period / 2, np.maximum(wrapped, -period / 2))  # rounding can step over either end


def convert(oriented: Float, source: OrientedConvention, target: OrientedConvention) -> Float:
    """[..., 5] oriented boxes of convention `source` -> `target`; only side order, unit, direction and range of the angle change.

    Raises:
        OptionError: an unknown convention.
    """
    for name in (source, target):
        if name not in get_args(OrientedConvention):
            raise OptionError(f"unknown oriented convention {name!r}, expected one of {', '.join(get_args(OrientedConvention))}")
    result = np.array(oriented, dtype=np.float64)
    if source in ("opencv", "deg-cw", "deg-ccw"):
        result[..., 4] = np.deg2rad(result[..., 4])
    if source in ("deg-ccw", "rad-ccw"):
        result[..., 4] = -result[..., 4]
    if target == "le90":
        return _long_edge_first(result)
    result = canonical(result)
    if target in ("deg-ccw", "rad-ccw"):
        result[..., 4] = -result[..., 4]
    if target in ("opencv", "deg-cw", "deg-ccw"):
        result[..., 4] = np.rad2deg(result[..., 4])
    if target == "opencv":
        turn = result[..., 4] <= 0  # from (-90, 0] to (0, 90] by naming the other side first
        w, h = result[..., 2].copy(), result[..., 3].copy()
        result[..., 2], result[..., 3] = np.where(turn, h, w), np.where(turn, w, h)
        result[..., 4] = np.where(turn, result[..., 4] + 90.0, result[..., 4])
        lowest = result[..., 4] <= 0  # -90 needs a second turn
        result[..., 2], result[..., 3] = np.where(lowest, w, result[..., 2]), np.where(lowest, h, result[..., 3])
        result[..., 4] = np.where(lowest, result[..., 4] + 90.0, result[..., 4])
    return result


def bounds(oriented: Float) -> Float:
    """[..., 5] oriented boxes -> [..., 4], the tight axis-aligned boxes x1, y1, x2, y2 around them."""
    oriented = np.asarray(oriented, dtype=np.float64)
    cx, cy, w, h, angle = (oriented[..., i] for i in range(5))
    cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    half_w, half_h = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return np.stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h], axis=-1)


def iou_aligned(a: Float, b: Float) -> Float:
    """Exact IoU of pairs: [N, 5] and [N, 5] -> [N], float64; 0 where both have zero area."""
    first, second = np.asarray(a, dtype=np.float64).reshape(-1, 5), np.asarray(b, dtype=np.float64).reshape(-1, 5)
    first, second = np.broadcast_arrays(first, second)
    result = np.empty(len(first))
    many = len(first) >= MANY_PAIRS
    kernel = resolve("pelagia.core.kernels", purpose="compare oriented boxes").oriented_intersections if many else None
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        if kernel is None:
            common = _intersection(first[part].T, second[part].T)
        else:
            common = kernel(np.ascontiguousarray(first[part]), np.ascontiguousarray(second[part]))
        union = first[part, 2] * first[part, 3] + second[part, 2] * second[part, 3] - common
        result[part] = np.minimum(common / np.where(union > 0, union, 1.0), 1.0)
    return result


def iou(a: Float, b: Float) -> Float:
    """Exact IoU of every pair: [N, 5] and [M, 5] -> [N, M], float64.

    Only pairs whose axis-aligned bounds overlap are clipped, so the work follows their number.
    """
    a, b = np.asarray(a, dtype=np.float64).reshape(-1, 5), np.asarray(b, dtype=np.float64).reshape(-1, 5)
    result = np.zeros((len(a), len(b)))
    box_a, box_b = bounds(a), bounds(b)
    rows_at_once = max(1, (1 << 20) // max(1, len(b)))
    for start in range(0, len(a), rows_at_once):
        part = box_a[start : start + rows_at_once, None]
        near = (
            (part[..., 0] < box_b[:, 2])
            & (part[..., 2] > box_b[:, 0])
            & (part[..., 1] < box_b[:, 3])
            & (part[..., 3] > box_b[:, 1])
        )
        i, j = np.nonzero(near)
        i += start
        result[i, j] = iou_aligned(a[i], b[j])
    return result


def _intersection(a: Float, b: Float) -> Float:
    """Common area of aligned pairs, columns [5, N] -> [N].

    In the frame of b, where b is |x| <= c, |y| <= d, Green's theorem gives the area of a within b as the integral of
    clamp(x, -c, c) dy along the border of a, over the part with |y| <= d. Every edge adds a closed form; nothing is sorted and no
    case is told apart, so touching, equal and degenerate boxes need no tolerance.
    """
    cos_b, sin_b = np.cos(b[4]), np.sin(b[4])
    dx, dy = a[0] - b[0], a[1] - b[1]  # relative first: far from the origin the difference is exact
    x, y = dx * cos_b + dy * sin_b, dy * cos_b - dx * sin_b
    turn = a[4] - b[4]
    cos, sin = np.cos(turn), np.sin(turn)
    ux, uy, vx, vy = cos * a[2] / 2, sin * a[2] / 2, -sin * a[3] / 2, cos * a[3] / 2
    c, d = b[2] / 2, b[3] / 2
    xs = (x - ux - vx, x + ux - vx, x + ux + vx, x - ux + vx)
    ys = (y - uy - vy, y + uy - vy, y + uy + vy, y - uy + vy)
    total = np.zeros_like(x)
    for i in range(4):
        total += _edge_integral(xs[i], ys[i], xs[(i + 1) % 4], ys[(i + 1) % 4], c, d)
    area_a, area_b = a[2] * a[3], b[2] * b[3]
    total = np.where(total > 4e-15 * area_b, total, 0.0)  # what rounding leaves of boxes apart is nothing
    result: Float = np.minimum(total, np.minimum(area_a, area_b))
    return result


def _edge_integral(x0: Float, y0: Float, x1: Float, y1: Float, c: Float, d: Float) -> Float:
    """Integral of clamp(x, -c, c) dy along the part of the edge with |y| <= d.

    Differences are taken before quotients, and each quotient lies in [0, 1]: nothing cancels.
    """
    low, high = np.clip(y0, -d, d), np.clip(y1, -d, d)
    rise, run = y1 - y0, x1 - x0
    divisor = np.where(rise == 0, 1.0, rise)  # a level edge adds nothing: low = high
    start, end = x0 + run * ((low - y0) / divisor), x0 + run * ((high - y0) / divisor)
    left, right = np.minimum(start, end), np.maximum(start, end)
    inner_left, inner_right = np.clip(left, -c, c), np.clip(right, -c, c)
    below = np.maximum(np.minimum(right, -c) - left, 0.0)
    above = np.maximum(right - np.maximum(left, c), 0.0)
    inside = inner_right - inner_left
    span = right - left
    weighted = inside * (inner_left + inner_right) / 2 + c * (above - below)
    mean = np.where(span > 0, weighted / np.where(span > 0, span, 1.0), inner_left)
    result: Float = mean * (high - low)
    return result


def probiou(a: ArrayT, b: ArrayT, eps: float = 1e-12) -> ArrayT:
    """ProbIoU of pairs: oriented boxes [..., 5] whose leading dimensions broadcast -> [...], in [0, 1].

    Each box becomes a Gaussian with its centre as mean and variances w²/12, h²/12 along its axes. With the Bhattacharyya
    distance D, ProbIoU = 1 - sqrt(1 - exp(-D)), one minus the Hellinger distance.

    D is written as a sum of squares (relative angle, products of sides) instead of differences of covariances, so float32 holds
    for slender and for equal boxes; the gradient is finite everywhere, 0 for equal boxes. Sides count as at least 1e-3 px.
    """
    xp = array_namespace(a, b)
    first: Any = a
    second: Any = b
    w1, h1, w2, h2 = (xp.clip(side, 1e-3) for side in (first[..., 2], first[..., 3], second[..., 2], second[..., 3]))
    turn = first[..., 4] - second[..., 4]
    cos2, sin2 = xp.cos(turn) ** 2, xp.sin(turn) ** 2
    volume = 4 * w1 * h1 * w2 * h2  # 144 * 4 sqrt(det S1 det S2)
    excess = (w1 * h1 - w2 * h2) ** 2 + cos2 * (w1 * h2 - h1 * w2) ** 2 + sin2 * (w1 * w2 - h1 * h2) ** 2
    dx, dy = first[..., 0] - second[..., 0], first[..., 1] - second[..., 1]
    form = 0.0
    for angle, w, h in ((first[..., 4], w1, h1), (second[..., 4], w2, h2)):
        cos, sin = xp.cos(angle), xp.sin(angle)
        form = form + (h * (dx * cos + dy * sin)) ** 2 + (w * (dy * cos - dx * sin)) ** 2
    distance = 3 * form / (excess + volume) + xp.log1p(excess / volume) / 2
    squared = -xp.expm1(-distance)  # Hellinger distance squared
    result: ArrayT = 1 - xp.where(squared > eps, xp.sqrt(xp.clip(squared, eps)), squared)
    return result


def probiou_matrix(a: ArrayT, b: ArrayT) -> ArrayT:
    """ProbIoU of every pair: [N, 5] and [M, 5] -> [N, M]."""
    first: Any = a
    second: Any = b
    result: ArrayT = probiou(first[:, None, :], second[None, :, :])
    return result
