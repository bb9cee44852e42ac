"""Geometry of images: the one warp, and letterboxing by it.

Every geometric change in training and in prediction goes through `warp`, so that both see objects through the same filter.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pelagia.core.frame import Frame
from pelagia.core.lazy import resolve
from pelagia.core.types import Float
from pelagia.errors import OptionError

__all__ = ["block_side", "letterbox", "stretch", "warp"]

_S = TypeVar("_S", bound=np.generic)

#: Distance in pixels below which a shift counts as whole and a matrix as the identity.
_EXACT_PX = 1e-6


def warp(
    image: NDArray[_S],
    matrix: Float,
    size: tuple[int, int],
    *,
    fill: int = 114,
    interpolation: Literal["linear", "nearest"] = "linear",
    displacement: NDArray[np.float32] | None = None,
) -> NDArray[_S]:
    """Move an image [H, W] or [H, W, C] through an affine map into a canvas of `size` = (width, height).

    `matrix` [2, 3] takes continuous source coordinates to continuous destination coordinates. The result at a destination
    pixel is the image, continued by `fill` (a stored intensity) on all sides, interpolated at the image of the pixel's centre.
    With s = sqrt(|det|) of the linear part, an image that shrinks to s <= 1/2 is first averaged over blocks of
    floor(1/s) x floor(1/s) pixels counted from its top-left corner ("linear" only), which keeps thin structures from
    vanishing between samples. Identity and whole-pixel shifts copy exactly.

    With a `displacement` [height, width, 2] (x, y in destination pixels) the result at a pixel is what would be found, without
    it, at the pixel's centre plus its displacement: an elastic deformation within the same one step.

    Raises:
        OptionError: `matrix` is not an invertible finite [2, 3], `size` is not positive, or `displacement` is of another size.
    """
    matrix = np.array(matrix, dtype=np.float64)
    width, height = size
    if matrix.shape != (2, 3) or not np.isfinite(matrix).all():
        raise OptionError(f"a warp needs a finite [2, 3] matrix, got {matrix.tolist()}")
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if scale < 1e-9 or width < 1 or height < 1:
        raise OptionError(f"a warp needs an invertible matrix and a positive size, got scale {scale:g} and {width} x {height}")
    if displacement is not None and displacement.shape != (height, width, 2):
        raise OptionError(f"the displacement must be [{height}, {width}, 2], got {list(displacement.shape)}")
    reach = 0.0 if displacement is None else float(np.abs(displacement).max(initial=0.0))
    factor = block_side(scale) if interpolation == "linear" else 1
    canvas_shape = (height, width, *image.shape[2:])
    seen = _reduce(image, matrix, size, factor, fill, reach)
    if seen is None:
        return np.full(canvas_shape, fill, dtype=image.dtype)
    part, matrix = seen

    if displacement is not None:
        return _displaced(part, matrix, displacement, fill, interpolation).reshape(canvas_shape)
    shift = np.rint(matrix[:, 2])
    stray = np.abs(matrix - np.array([[1, 0, shift[0]], [0, 1, shift[1]]]))
    if (stray * [part.shape[1], part.shape[0], 1]).sum() < _EXACT_PX:
        return _paste(part, (int(shift[0]), int(shift[1])), canvas_shape, fill)

    # OpenCV puts (0, 0) at the centre of the first pixel: M' = T(-1/2) M T(1/2).
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    flags = cv2.INTER_LINEAR if interpolation == "linear" else cv2.INTER_NEAREST
    source = part.view(np.uint8) if part.dtype == np.bool_ else part
    # OpenCV moves bytes of four channels twice as fast as those of three, to the same values.
    padded = source.dtype == np.uint8 and source.ndim == 3 and source.shape[2] == 3
    source = cv2.cvtColor(source, cv2.COLOR_RGB2RGBA) if padded else source
    moved = cv2.warpAffine(source, matrix, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(float(fill),) * 4)
    moved = cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB) if padded else moved
    # OpenCV drops a last axis of 1.
    return np.asarray(moved.view(np.bool_) if part.dtype == np.bool_ else moved).reshape(canvas_shape)


def stretch(
    image: NDArray[np.uint8], matrix: Float, canvas: NDArray[np.uint8], window: tuple[int, int, int, int], *, fill: int = 114
) -> None:
    """Write what `warp` finds of an image [h, w, 3] into the pixels of `window` (x1, y1, x2, y2) of `canvas` [H, W, 3], in place,
    for a `matrix` that scales, mirrors and shifts only.

    Without a rotation the weights are those of a row times those of a column. They are rounded to 256ths: a pixel differs from
    the definition by at most 3/2. The compiled loop takes half the time of the general warp; it is for training,
    which makes thousands, and not for a first prediction, which would wait for the compiler.
    """
    (scale_x, _, x), (_, scale_y, y) = matrix.tolist()
    factor = block_side(math.sqrt(abs(scale_x * scale_y)))
    if factor > 1:
        x1, y1, x2, y2 = window
        local = np.array([[scale_x, 0.0, x - x1], [0.0, scale_y, y - y1]])
        seen = _reduce(image, local, (x2 - x1, y2 - y1), factor, fill, 0.0)
        if seen is None:
            canvas[y1:y2, x1:x2] = fill
            return
        image, local = seen
        (scale_x, _, x), (_, scale_y, y) = local.tolist()
        x, y = x + x1, y + y1
    kernels = resolve("pelagia.core.kernels", purpose="make training samples")
    kernels.stretch(canvas, window, np.ascontiguousarray(image), (scale_x, x), (scale_y, y), fill)


def _displaced(image: Any, matrix: Float, displacement: NDArray[np.float32], fill: int, interpolation: str) -> NDArray[Any]:
    """`image` sampled where pixel centres of the canvas, displaced, map back to."""
    back = np.linalg.inv(matrix[:, :2])
    height, width = displacement.shape[:2]
    x = np.arange(width) + 0.5 + displacement[..., 0] - matrix[0, 2]
    y = (np.arange(height) + 0.5)[:, None] + displacement[..., 1] - matrix[1, 2]
    # OpenCV puts (0, 0) at the centre of the first pixel.
    columns = (back[0, 0] * x + back[0, 1] * y - 0.5).astype(np.float32)
    rows = (back[1, 0] * x + back[1, 1] * y - 0.5).astype(np.float32)
    flags = cv2.INTER_LINEAR if interpolation == "linear" else cv2.INTER_NEAREST
    source = image.view(np.uint8) if image.dtype == np.bool_ else image
    moved = cv2.remap(source, columns, rows, flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(float(fill),) * 4)
    return np.asarray(moved.view(np.bool_) if image.dtype == np.bool_ else moved)


def block_side(scale: float) -> int:
    """Side in pixels of the blocks, counted from the top-left corner, that `warp` averages before it scales by `scale`."""
    return max(1, math.floor(1 / scale + 1e-9))


def _reduce(
    image: NDArray[Any], matrix: Float, size: tuple[int, int], factor: int, fill: int, reach: float
) -> tuple[Any, Float] | None:
    """The part of an image that the canvas sees, averaged over blocks, and the map from there; None if it sees nothing.

    Cutting on the grid of blocks is cheap for a tile of a scan, and OpenCV's warp takes at most 32,767 pixels a side.
    """
    left, top, right, bottom = _seen(image.shape, matrix, size, factor, reach)
    if left >= right or top >= bottom:
        return None
    part: Any = image[top:bottom, left:right]
    matrix = matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ (left, top)
    if factor > 1:
        part = _block_mean(part, factor, fill)
        matrix[:, :2] *= factor
    return part, matrix


def _seen(shape: tuple[int, ...], matrix: Float, size: tuple[int, int], factor: int, reach: float) -> tuple[int, int, int, int]:
    """Columns and rows left, top, right, bottom of the source that the canvas needs, `reach` beyond its border, widened to whole
    blocks."""
    back = np.linalg.inv(matrix[:, :2])
    corners = np.array([[0, 0], [size[0], 0], [0, size[1]], [*size]], dtype=np.float64)
    corners += np.where(corners > 0, reach, -reach)
    corners = (corners - matrix[:, 2]) @ back.T
    margin = 2.0 * factor
    limit = np.array([shape[1], shape[0]], dtype=np.float64)
    low = np.floor((corners.min(axis=0) - margin) / factor) * factor
    high = np.ceil((corners.max(axis=0) + margin) / factor) * factor
    low, high = np.clip(low, 0, limit), np.clip(high, 0, limit)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _block_mean(image: NDArray[Any], factor: int, fill: int) -> NDArray[Any]:
    """Means over factor x factor blocks; blocks that stick out at the right and at the bottom are completed with `fill`."""
    height, width = image.shape[:2]
    rows, columns = height // factor, width // factor
    over_y, over_x = height % factor, width % factor
    if not over_x and not over_y:
        return _area(image, columns, rows)
    means = np.empty((rows + bool(over_y), columns + bool(over_x), *image.shape[2:]), dtype=image.dtype)
    if rows and columns:
        means[:rows, :columns] = _area(image[: rows * factor, : columns * factor], columns, rows)
    if over_x:
        strip = np.full((len(means) * factor, factor, *image.shape[2:]), fill, dtype=image.dtype)
        strip[:height, :over_x] = image[:, columns * factor :]
        means[:, columns:] = _area(strip, 1, len(means))
    if over_y and columns:
        strip = np.full((factor, columns * factor, *image.shape[2:]), fill, dtype=image.dtype)
        strip[:over_y] = image[rows * factor :, : columns * factor]
        means[rows:, :columns] = _area(strip, columns, 1)
    return means


def _area(image: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(resized).reshape(height, width, *image.shape[2:])


def _paste(image: NDArray[Any], at: tuple[int, int], shape: tuple[int, ...], fill: int) -> NDArray[Any]:
    x, y = at
    height, width = image.shape[:2]
    if x <= 0 and y <= 0 and x + width >= shape[1] and y + height >= shape[0]:
        return np.array(image[-y : shape[0] - y, -x : shape[1] - x], order="C")
    canvas = np.full(shape, fill, dtype=image.dtype)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, shape[1]), min(y + height, shape[0])
    if left < right and top < bottom:
        canvas[top:bottom, left:right] = image[top - y : bottom - y, left - x : right - x]
    return canvas


def letterbox(
    image: NDArray[_S], input_size: tuple[int, int], *, enlarge: bool = True, fill: int = 114, margin: int = 0
) -> tuple[NDArray[_S], Frame]:
    """The image fitted into `input_size` = (height, width), aspect kept, centred, padded with `fill`; and the way back.

    It is `warp` with the inverse of `Frame.letterbox`. With a `margin` the image is fitted into what the margin leaves, and the
    margin is filled by mirroring it.
    """
    height, width = input_size[0] - 2 * margin, input_size[1] - 2 * margin
    frame = Frame.letterbox(image.shape[1], image.shape[0], width, height, enlarge=enlarge)
    fitted = warp(image, frame.inverse, (width, height), fill=fill)
    if not margin:
        return fitted, frame
    mirrored = np.pad(fitted, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    back = frame.matrix @ np.array([[1.0, 0.0, -margin], [0.0, 1.0, -margin], [0.0, 0.0, 1.0]])
    return mirrored, Frame(back, frame.width, frame.height)
