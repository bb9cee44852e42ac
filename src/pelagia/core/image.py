"""Images on the array side: reading, writing, one warp, letterboxing, normalisation.

An image is [H, W, C] with C = 1 (grey) or 3 (RGB), uint8 or uint16. Every geometric change in training and in prediction goes
through `warp`, so that both see objects through the same filter.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from pelagia.core import header, tiff
from pelagia.core.card import Normalisation
from pelagia.core.files import atomic_path, write_bytes
from pelagia.core.frame import Frame
from pelagia.core.types import Float
from pelagia.errors import ImageError, OptionError

__all__ = [
    "IMAGE_SUFFIXES",
    "Pixels",
    "find_images",
    "image_size",
    "letterbox",
    "normalise",
    "orient",
    "read",
    "to_rgb",
    "warp",
    "write",
]

Pixels: TypeAlias = NDArray[np.uint8 | np.uint16]
_S = TypeVar("_S", bound=np.generic)

#: File name endings, lower case, that `find_images` takes from a folder.
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

#: Distance in pixels below which a shift counts as whole and a matrix as the identity.
_EXACT_PX = 1e-6


# Reading and writing


def read(path: str | Path, *, max_pixels: int = 1_000_000_000) -> Pixels:
    """The image in a file, [H, W, C], uint8 or uint16, upright.

    Grey stays one channel; a palette is expanded; alpha is laid over white; CMYK becomes RGB; 1-bit becomes 0 and 255; EXIF
    orientation is applied for every format; of a TIFF the first page is read.

    Raises:
        ImageError: missing, of another kind, cut short or broken, of floats or more than 16 bits, or of more than `max_pixels`
            pixels (checked before anything is decoded).
    """
    source = Path(path)
    try:
        with open(source, "rb") as stream:
            kind = _kind(stream.read(12), source)
            if kind != "tiff":
                facts = header.parse(stream, kind)
                _check_size(facts.width, facts.height, max_pixels, source)
                stream.seek(0)
                data = stream.read()
                return orient(_decode(data, facts, source), facts.orientation)
    except OSError as error:
        raise _unreadable(error, source) from error
    except header.HeaderError as error:
        raise ImageError(f"broken image: {error}; copy the file again", where=source) from error
    with tiff.open_page(source) as page:
        _check_size(page.width, page.height, max_pixels, source)
        return orient(tiff.read_page(page), page.orientation)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of the image as `read` would give it, from the header alone.

    Raises:
        ImageError: missing, of another kind, or with a broken header.
    """
    source = Path(path)
    try:
        with open(source, "rb") as stream:
            kind = _kind(stream.read(12), source)
            if kind != "tiff":
                return header.parse(stream, kind).size
    except OSError as error:
        raise _unreadable(error, source) from error
    except header.HeaderError as error:
        raise ImageError(f"broken image: {error}; copy the file again", where=source) from error
    with tiff.open_page(source) as page:
        return (page.height, page.width) if page.orientation >= 5 else (page.width, page.height)


def _kind(head: bytes, path: Path) -> header.Kind:
    kind = header.kind_of(head)
    if kind is None:
        what = "an empty file" if not head else "not an image of a known kind"
        raise ImageError(f"{what}; expected JPEG, PNG, TIFF, BMP or WebP", where=path)
    return kind


def _check_size(width: int, height: int, max_pixels: int, path: Path) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{width} x {height} pixels, more than the limit of {max_pixels:,}; if the file is meant, read it in windows "
            "(a tiled TIFF) or raise the limit",
            where=path,
        )


def _unreadable(error: OSError, path: Path) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageError("this image does not exist; check the path", where=path)
    return ImageError(f"cannot read this file ({error.strerror or error})", where=path)


def _decode(data: bytes, facts: header.Header, path: Path) -> Pixels:
    if not header.is_complete(data, facts):
        raise ImageError("cut short: the end of the image is missing; copy the file again", where=path)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"cannot be decoded ({str(error).strip().splitlines()[-1]})", where=path) from error
    if image is None:
        raise ImageError(f"cannot be decoded: broken, or a {facts.kind.upper()} of an unusual kind; save it again", where=path)
    if image.shape[:2] != (facts.height, facts.width):
        raise ImageError("broken image: its header and its data state different sizes; save it again", where=path)
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"samples are {image.dtype}; expected 8 or 16 bits", where=path)
    if image.ndim == 2:
        return np.asarray(image[..., None])
    if image.shape[2] == 4:
        # The fourth byte of a BMP pixel is padding.
        image = image[..., :3] if facts.kind == "bmp" else tiff.over_white(image)
    if facts.grey:
        return np.ascontiguousarray(image[..., :1])
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def orient(image: NDArray[_S], orientation: int) -> NDArray[_S]:
    """The stored image turned upright by its EXIF orientation, 1 to 8 (CIPA DC-008, tag 274)."""
    if orientation == 1:
        return image
    turned: Any = image.swapaxes(0, 1) if orientation >= 5 else image
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def write(path: str | Path, image: Pixels) -> None:
    """Write an image [H, W], [H, W, 1] or [H, W, 3] in the format that the file name ends with, whole or not at all.

    JPEG is written with quality 95, TIFF with deflate in tiles of 512 pixels, so that it can be read in windows.

    Raises:
        OptionError: unknown ending, another shape or sample type, or 16 bits for a format that holds 8.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise OptionError(
            f"cannot write {suffix or 'a name without an ending'}; use one of {' '.join(IMAGE_SUFFIXES)}", where=target
        )
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise OptionError(
            f"an image must be [H, W], [H, W, 1] or [H, W, 3], uint8 or uint16; got {list(image.shape)} {image.dtype}",
            where=target,
        )
    if image.dtype == np.uint16 and suffix not in (".png", ".tif", ".tiff"):
        raise OptionError(f"{suffix} holds 8 bits; write 16-bit images as .png or .tif", where=target)
    grey = image.ndim == 2 or image.shape[2] == 1
    if suffix in (".tif", ".tiff"):
        flat = image.reshape(image.shape[:2]) if grey else image
        with atomic_path(target) as temporary:
            photometric = "minisblack" if grey else "rgb"
            tile = (512, 512) if max(image.shape[:2]) > 512 else None
            tifffile.imwrite(
                temporary, flat, photometric=photometric, compression="zlib", predictor=True, tile=tile, metadata=None
            )
        return
    stored = image if grey else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    parameters = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix in (".jpg", ".jpeg") else []
    try:
        done, data = cv2.imencode(suffix, stored, parameters)
    except cv2.error as error:
        raise OptionError(
            f"{image.shape[1]} x {image.shape[0]} pixels do not fit {suffix} ({error.err})", where=target
        ) from error
    if not done:
        raise OptionError(f"{image.shape[1]} x {image.shape[0]} pixels do not fit {suffix}; write .tif", where=target)
    write_bytes(target, data.tobytes())


def find_images(places: str | Path | Iterable[str | Path]) -> list[Path]:
    """Image files named by files, folders and glob patterns, each once, in the order of the arguments.

    A folder is searched to every depth for `IMAGE_SUFFIXES`, sorted by path, names that begin with a dot left out. A file is
    taken whatever its ending. A pattern (`*`, `?`, `[...]`, `**`) is sorted; folders that it matches are searched too.

    Raises:
        ImageError: a name that does not exist, or a folder or pattern without an image.
    """
    found: dict[Path, None] = {}
    for place in [places] if isinstance(places, str | Path) else places:
        path = Path(place)
        if path.exists():
            matches = [path]
        elif glob.has_magic(str(place)):
            matches = sorted(Path(name) for name in glob.glob(str(place), recursive=True))
            matches = [match for match in matches if match.is_dir() or match.suffix.lower() in IMAGE_SUFFIXES]
        else:
            raise ImageError("no such file or folder; check the path", where=path)
        files = [file for match in matches for file in (_inside(match) if match.is_dir() else [match])]
        if not files:
            raise ImageError(f"no image here; looked for {', '.join(IMAGE_SUFFIXES)}", where=path)
        found.update(dict.fromkeys(files))
    return list(found)


def _inside(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )


# Geometry


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
    factor = max(1, math.floor(1 / scale + 1e-9)) if interpolation == "linear" else 1

    # Cut the part that the canvas sees, on the grid of blocks: cheap for a tile of a scan, and OpenCV's warp takes at most
    # 32,767 pixels a side.
    left, top, right, bottom = _seen(image.shape, matrix, size, factor, reach)
    canvas_shape = (height, width, *image.shape[2:])
    if left >= right or top >= bottom:
        return np.full(canvas_shape, fill, dtype=image.dtype)
    part: Any = image[top:bottom, left:right]
    matrix[:, 2] += matrix[:, :2] @ (left, top)
    if factor > 1:
        part = _block_mean(part, factor, fill)
        matrix[:, :2] *= factor

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
    moved = cv2.warpAffine(source, matrix, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(float(fill),) * 4)
    # OpenCV drops a last axis of 1.
    return np.asarray(moved.view(np.bool_) if part.dtype == np.bool_ else moved).reshape(canvas_shape)


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


# Intensities


def to_rgb(image: NDArray[_S]) -> NDArray[_S]:
    """[H, W], [H, W, 1] or [H, W, 3] -> [H, W, 3]: grey is repeated, RGB is returned as it is; the sample type stays."""
    if image.ndim == 3 and image.shape[2] == 3:
        return image
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 1):
        raise OptionError(f"an image must be [H, W], [H, W, 1] or [H, W, 3], got {list(image.shape)}")
    rgb: NDArray[_S] = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return rgb


def normalise(image: Pixels, normalisation: Normalisation) -> NDArray[np.float32]:
    """Stored intensities [H, W, 1 or 3] -> network input [3, H, W]: clip((v - low) / (high - low), 0, 1), minus mean, over std.

    The result is a view with the channels last in memory, which is what convolutions on a CPU like best.

    Raises:
        OptionError: the window is empty (`high` <= `low`), a `std` is not positive, or the image is of another type.
    """
    low, high = normalisation.low, normalisation.high
    if not high > low or min(normalisation.std) <= 0:
        raise OptionError(f"normalisation needs high > low and std > 0, got {normalisation}")
    if image.dtype not in (np.uint8, np.uint16):
        raise OptionError(f"normalisation takes uint8 or uint16 images, got {image.dtype}")
    # One value for each possible intensity, computed in float64, then one look-up a sample.
    levels = np.clip((np.arange(np.iinfo(image.dtype).max + 1) - low) / (high - low), 0.0, 1.0)[:, None]
    table = ((levels - normalisation.mean) / normalisation.std).astype(np.float32)
    rgb = to_rgb(image)
    if image.dtype == np.uint8:
        planes = cv2.LUT(rgb, table[None])
    else:
        planes = np.stack([np.take(table[:, channel], rgb[..., channel]) for channel in range(3)], axis=2)
    return np.asarray(planes).transpose(2, 0, 1)
