"""From a shape's strokes to a patch of optical density: stretched, turned, shaded, averaged down from a finer grid."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Float, Mask, MaskCrop
from pelagia.data.geometry import move_points, tight_crop
from pelagia.data.synthetic_shapes import Shape

__all__ = ["Body", "render", "stamp"]


@dataclass(frozen=True, slots=True)
class Body:
    """A drawn body around the origin: density patch, its mask, and the column and row of the patch's first pixel."""

    density: NDArray[np.float32]
    mask: Mask
    x: int
    y: int
    ends: Float


def render(rng: np.random.Generator, shape: Shape, length: float, breadth: float, darkness: float) -> Body:
    """Draw a shape so that its extent along and across the body is `length` x `breadth` pixels, turned at random.

    The density is scaled until the rectangle length x breadth loses the share `darkness` of its light.
    """
    fine = 4 if length <= 160 else 2
    unit = length / 2
    lines = [max(stroke.width * unit, 1.15) if stroke.width else 0.0 for stroke in shape.strokes]
    stretch, shift = _fit(shape, lines, length, breadth)
    angle, side = rng.uniform(0, 2 * np.pi), float(rng.choice([-1.0, 1.0]))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([1.0, side])
    matrix = np.column_stack([turn @ np.diag(stretch), turn @ shift + rng.random(2)])
    corners = move_points(np.concatenate([stroke.points for stroke in shape.strokes]), matrix)
    margin = max(lines) / 2 + 3
    low, high = np.floor(corners.min(axis=0) - margin).astype(int), np.ceil(corners.max(axis=0) + margin).astype(int)
    columns, rows = (int(value) for value in high - low)
    ink = np.zeros((rows * fine, columns * fine), dtype=np.float32)
    for stroke, width in zip(shape.strokes, lines, strict=True):
        _paint_stroke(ink, (move_points(stroke.points, matrix) - low) * fine, width * fine, stroke.density)
    size = (columns, rows)
    cover = cv2.resize((ink > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    patch = cv2.resize(ink * _grain(rng, ink.shape, fine), size, interpolation=cv2.INTER_AREA)
    patch = cv2.GaussianBlur(patch, (0, 0), float(rng.uniform(0.35, 0.6)))
    patch *= np.float32(_strength(patch, darkness * length * breadth))
    ends = move_points(np.array([shape.head, shape.tail]), matrix)
    return Body(patch, _largest_part(cover >= 0.5), int(low[0]), int(low[1]), ends)


def stamp(density: NDArray[np.float32], semantic: NDArray[np.uint8], body: Body, x: int, y: int, kind: int) -> MaskCrop | None:
    """Add a body shifted by (x, y); its mask inside the image, trimmed, or None if nothing of it is inside."""
    rows, columns = body.mask.shape
    left, top = body.x + x, body.y + y
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + columns, density.shape[1]), min(top + rows, density.shape[0])
    if x2 <= x1 or y2 <= y1:
        return None
    inside = (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))
    mask = body.mask[inside]
    if not mask.any():
        return None
    density[y1:y2, x1:x2] += body.density[inside]
    semantic[y1:y2, x1:x2][mask] = kind
    return tight_crop(mask, x1, y1)


def _fit(shape: Shape, lines: list[float], length: float, breadth: float) -> tuple[Float, Float]:
    """Scale [2] and shift [2] that bring the strokes, line widths included, to length x breadth around the origin."""
    wanted, scale = np.array([length, breadth]), np.full(2, length / 2)
    half = np.array(lines)[:, None] / 2
    lowest = np.array([stroke.points.min(axis=0) for stroke in shape.strokes])
    highest = np.array([stroke.points.max(axis=0) for stroke in shape.strokes])
    for _ in range(4):
        low, high = (lowest * scale - half).min(axis=0), (highest * scale + half).max(axis=0)
        scale = scale * wanted / np.maximum(high - low, 1e-6)
    low, high = (lowest * scale - half).min(axis=0), (highest * scale + half).max(axis=0)
    return scale, -(low + high) / 2


def _paint_stroke(ink: NDArray[np.float32], points: Float, width: float, density: float) -> None:
    fixed = np.rint((points - 0.5) * 16).astype(np.int32)
    if width:
        cv2.polylines(ink, [fixed], False, density, thickness=max(1, round(width)), lineType=cv2.LINE_8, shift=4)
    else:
        cv2.fillPoly(ink, [fixed], density, lineType=cv2.LINE_8, shift=4)


def _grain(rng: np.random.Generator, shape: tuple[int, ...], fine: int) -> NDArray[np.float32]:
    """Soft granules of tissue, about three pixels across, mean 1."""
    cells = rng.uniform(0.65, 1.35, (max(2, shape[0] // (3 * fine)), max(2, shape[1] // (3 * fine)))).astype(np.float32)
    return np.asarray(cv2.resize(cells, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR))


def _strength(patch: NDArray[np.float32], target: float) -> float:
    """The factor k for which the patch's lost light, sum(1 - exp(-k density)), is `target`; at most what makes it black."""
    values = patch[patch > 1e-3].astype(np.float64)
    if not len(values):
        return 1.0
    low, high = 0.0, 4.0 / float(np.median(values))
    for _ in range(14):
        middle = (low + high) / 2
        if np.sum(1 - np.exp(-middle * values)) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _largest_part(mask: NDArray[np.bool_]) -> Mask:
    """The mask without crumbs that antialiasing tore off: its largest 8-connected part."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    return np.asarray(labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])), dtype=np.bool_)
