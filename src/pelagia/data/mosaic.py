"""Several sources on one canvas, each by one warp.

A mosaic (Bochkovskiy, Wang and Liao, "YOLOv4", 2020) joins four images at a random point. The customary recipe scales each,
pastes it on a canvas of twice the size, warps that canvas and cuts it. Here the steps are multiplied into one matrix per source,
and each source is sampled once, only where it is seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from pelagia.core.image import warp
from pelagia.core.types import Float, Mask
from pelagia.core.warp import stretch
from pelagia.data.colour import Image
from pelagia.data.elastic import Field
from pelagia.data.geometry import Window, chain, invert, keeps_axes

__all__ = ["blank", "mosaic_placements", "paint", "single_placement"]


def single_placement(size: tuple[int, int], canvas: tuple[int, int]) -> Float:
    """[2, 3], an image of `size` (width, height) scaled to fit `canvas` (width, height), centred (a letterbox)."""
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    left, top = (canvas[0] - size[0] * scale) / 2, (canvas[1] - size[1] * scale) / 2
    return np.array([[scale, 0.0, left], [0.0, scale, top]])


def mosaic_placements(sizes: Sequence[tuple[int, int]], canvas: tuple[int, int], rng: np.random.Generator) -> list[Float]:
    """Four maps [2, 3] from images of `sizes` (width, height) to a mosaic whose middle is the middle of `canvas`.

    Each image is scaled to fit the canvas and placed with one corner at a joint, drawn uniformly from the canvas: the first
    image to its upper left, then upper right, lower left, lower right. The mosaic is about twice the canvas, which sees
    its middle.
    Images never overlap; the joint lies on whole pixels.
    """
    width, height = canvas
    joint_x, joint_y = float(rng.integers(0, width + 1)), float(rng.integers(0, height + 1))
    maps = []
    for position, (w, h) in enumerate(sizes):
        scale = min(width / w, height / h)
        left = joint_x - w * scale if position % 2 == 0 else joint_x
        top = joint_y - h * scale if position < 2 else joint_y
        maps.append(np.array([[scale, 0.0, left], [0.0, scale, top]]))
    return maps


def blank(canvas: tuple[int, int], images: Sequence[Image], fill: int) -> Image:
    """A canvas of (width, height) filled with `fill`: RGB if one image is, uint16 if one image is."""
    channels = max(image.shape[2] for image in images)
    deep = any(image.dtype == np.uint16 for image in images)
    return np.full((canvas[1], canvas[0], channels), fill, dtype=np.uint16 if deep else np.uint8)


def paint(
    canvas: Image,
    image: Image,
    matrix: Float,
    fill: int,
    window: Window | None = None,
    *,
    field: Field | None = None,
    interpolation: Literal["linear", "nearest"] = "linear",
) -> None:
    """Draw `image` [H, W, C] through `matrix` onto `canvas`, in place, inside `window` only; its outside leaves the canvas alone.

    A pixel of the canvas belongs to the image if its centre, displaced by `field` [H, W, 2] of the canvas, does. Maps of labels
    are drawn by the same step with the nearest label.
    """
    height, width = image.shape[:2]
    (a, b, x), (c, d, y) = matrix.tolist()
    x1, y1, x2, y2 = window or (0, 0, canvas.shape[1], canvas.shape[0])
    reach = 0.0 if field is None else float(np.abs(field).max(initial=0.0))
    # The least and the greatest coordinate among the corners of the image.
    x1 = max(x1, math.ceil(x + min(a * width, 0) + min(b * height, 0) - reach - 0.5))
    y1 = max(y1, math.ceil(y + min(c * width, 0) + min(d * height, 0) - reach - 0.5))
    x2 = min(x2, math.ceil(x + max(a * width, 0) + max(b * height, 0) + reach - 0.5))
    y2 = min(y2, math.ceil(y + max(c * width, 0) + max(d * height, 0) + reach - 0.5))
    if x2 <= x1 or y2 <= y1:
        return
    if field is None and interpolation == "linear" and _stretches(canvas, image, matrix):
        stretch(image, matrix, canvas, (x1, y1, x2, y2), fill=fill)
        return
    local = chain(np.array([[1.0, 0.0, -x1], [0.0, 1.0, -y1]]), matrix)
    size = (x2 - x1, y2 - y1)
    part = None if field is None else field[y1:y2, x1:x2]
    drawn = warp(image, local, size, fill=fill, interpolation=interpolation, displacement=part)
    target = canvas[y1:y2, x1:x2]
    if keeps_axes(matrix) and part is None:
        target[...] = drawn
    else:
        np.copyto(target, drawn, where=_inside(invert(local), size, (width, height), part)[..., None])


def _stretches(canvas: Image, image: Image, matrix: Float) -> bool:
    """RGB of bytes, neither turned nor sheared."""
    plain = canvas.dtype == image.dtype == np.uint8 and canvas.flags.c_contiguous and image.shape[2] == canvas.shape[2] == 3
    (a, b, _), (c, d, _) = matrix.tolist()
    return plain and max(abs(b), abs(c)) <= 1e-9 * min(abs(a), abs(d))


def _inside(back: Float, size: tuple[int, int], source: tuple[int, int], field: Field | None) -> Mask:
    """[H, W], destination pixels whose centre maps into the source."""
    x, y = np.arange(size[0]) + 0.5, (np.arange(size[1]) + 0.5)[:, None]
    if field is not None:
        x, y = x + field[..., 0], y + field[..., 1]
    u = back[0, 0] * x + (back[0, 1] * y + back[0, 2])
    v = back[1, 0] * x + (back[1, 1] * y + back[1, 2])
    inside: Mask = (u >= 0) & (u < source[0]) & (v >= 0) & (v < source[1])
    return inside
