"""Class maps of scans on the disk, written block by block while they are predicted.

    NAME.tif    the class of each pixel, 8 bits, 255 = no class, tiled, deflate, BigTIFF where it must be
    NAME.zarr   an OME-Zarr 0.5, an image of one resolution: `0` [H, W], the class of each pixel; beside it `probabilities`
                [K, H, W] if they are asked for, and the names of the classes as the attribute `classes`

Probabilities beside a TIFF are a TIFF of their own, float32, a page for each class. Blocks may come in any order and are never
held: a TIFF, which lists its tiles in theirs, is put together at the end from a file of compressed blocks. What is written
appears under its name when it is whole.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.files import atomic_folder, atomic_path
from pelagia.core.lazy import resolve
from pelagia.core.scan import Scan
from pelagia.core.types import SemanticMap
from pelagia.decode import DecodeOptions
from pelagia.errors import OptionError
from pelagia.infer.dense import MapPlan, map_blocks, plan_map
from pelagia.infer.options import PredictOptions
from pelagia.infer.preview import nearest, picture_size, put_shown
from pelagia.infer.runtimes import Runtime
from pelagia.infer.views import tile_size

__all__ = ["Put", "StoredMap", "open_map_writer", "predict_map"]

#: Takes the top-left pixel (x, y) of a block in the map and its values [P, h, w], one plane a page.
Put = Callable[[int, int, NDArray[Any]], None]

#: A TIFF of more bytes needs the 64-bit addresses of BigTIFF; its directories have room below 4 GiB.
_CLASSIC_BYTES = (1 << 32) - (1 << 26)

#: The array of the map in a Zarr: the name that OME-Zarr writers give to the full resolution.
_ZARR_MAP = "0"


@dataclass(frozen=True, slots=True)
class StoredMap:
    """A class map that was written, not held.

    Args:
        path: the file or, for Zarr, the folder.
        width: of the map, in pixels.
        height: of the map, in pixels.
        pixels: of each class, in label order.
        picture: the map as a picture of the scan shows it, at most 50 million pixels of it.
        way: exact, hann or cut, see `pelagia.infer.dense`.
        probabilities: their file, if they were asked for; for Zarr `path`.
    """

    path: Path
    width: int
    height: int
    pixels: tuple[int, ...]
    picture: SemanticMap
    way: str
    probabilities: Path | None = None


def predict_map(
    runtime: Runtime,
    scan: Scan,
    path: str | Path,
    options: PredictOptions | None = None,
    *,
    probabilities: str | Path | None = None,
) -> StoredMap:
    """Predict the class map of a scan in tiles and write it to `path` (.tif, .tiff or .zarr); the map is never held.

    `probabilities` names the TIFF for them; with Zarr any name will do, since they lie in the same group.

    Raises:
        OptionError: the ending is another, or something cannot be written; see also `pelagia.infer.dense.plan_map`.
        ModelError: the model does not answer with a map of classes.
        MissingExtraError: the package zarr is not installed.
    """
    path, options = Path(path), options or PredictOptions()
    plan = plan_map(runtime, scan, tile_size(runtime.card, options), options)
    decoding = DecodeOptions(scores=probabilities is not None)
    count = len(runtime.card.categories)
    size = (scan.width, scan.height)
    scale, shrunk = picture_size(*size)
    places = nearest(size[::-1], scale, shrunk)
    picture = np.zeros(shrunk[::-1], dtype=np.uint8)
    pixels = np.zeros(count + 1, dtype=np.int64)
    with ExitStack() as stack:
        chances = None if probabilities is None else Path(probabilities)
        puts = stack.enter_context(_writers(path, chances, plan, runtime.card))
        for block in map_blocks(runtime, plan, options, decoding):
            puts[0](block.x, block.y, block.labels[None])
            if block.scores is not None and len(puts) > 1:
                puts[1](block.x, block.y, block.scores)
            pixels += np.bincount(np.minimum(block.labels, count).ravel(), minlength=count + 1)
            put_shown(picture, block.labels, (block.x, block.y), places)
    written = path if chances is not None and path.suffix == ".zarr" else chances
    return StoredMap(path, *size, tuple(pixels[:count].tolist()), SemanticMap(picture), plan.way, written)


@contextmanager
def _writers(path: Path, probabilities: Path | None, plan: MapPlan, card: ModelCard) -> Iterator[list[Put]]:
    """Where labels go, and probabilities if asked for."""
    size, count = (plan.canvas.scan.width, plan.canvas.scan.height), len(card.categories)
    parts: list[tuple[str, int, Any]] = [(_ZARR_MAP, 1, np.uint8)]
    if probabilities is not None:
        parts.append(("probabilities", count, np.float32))
    if path.suffix == ".zarr":
        with _zarr_group(path, size, plan.block, parts, card.class_names) as puts:
            yield puts
        return
    if path.suffix not in (".tif", ".tiff"):
        raise OptionError("a class map is written as .tif, .tiff or .zarr", where=path)
    with ExitStack() as stack:
        files = [path] if probabilities is None else [path, probabilities]
        yield [
            stack.enter_context(open_map_writer(file, size, plan.block, planes, dtype))
            for file, (_, planes, dtype) in zip(files, parts, strict=True)
        ]


@contextmanager
def open_map_writer(path: str | Path, size: tuple[int, int], block: tuple[int, int], planes: int, dtype: Any) -> Iterator[Put]:
    """Write a TIFF of `planes` pages of `size` (width, height), in tiles of `block` (width, height, multiples of 16).

    Blocks must begin at multiples of `block` and each be put once; values are whole numbers or float32. On any exception nothing
    is left.

    Raises:
        OptionError: the file cannot be written.
    """
    across, down = (-(-length // side) for length, side in zip(size, block, strict=True))
    places = np.zeros((planes * down * across, 2), dtype=np.int64)  # where each tile begins in the spool, and its bytes
    floats = np.dtype(dtype).kind == "f"
    with atomic_path(path) as temporary, tempfile.TemporaryFile(dir=temporary.parent) as spool:

        def put(x: int, y: int, values: NDArray[Any]) -> None:
            for plane, part in enumerate(values):
                whole = np.zeros(block[::-1], dtype=dtype)
                whole[: part.shape[0], : part.shape[1]] = part
                # Rounding noise in the last bits of floats does not compress, whatever the effort.
                encoded = imagecodecs.floatpred_encode(whole, axis=-1) if floats else whole
                data = zlib.compress(np.asarray(encoded).tobytes(), 1 if floats else 6)
                places[(plane * down + y // block[1]) * across + x // block[0]] = spool.tell(), len(data)
                spool.write(data)

        def tiles() -> Iterator[bytes]:
            for start, count in places.tolist():
                spool.seek(start)
                yield spool.read(count)

        yield put
        if not places[:, 1].all():
            raise OptionError("a block of the map is missing", where=path)
        with tifffile.TiffWriter(temporary, bigtiff=bool(places[:, 1].sum() > _CLASSIC_BYTES)) as writer:
            writer.write(
                tiles(),
                shape=(planes, size[1], size[0]) if planes > 1 else (size[1], size[0]),
                dtype=dtype,
                tile=block[::-1],
                photometric="minisblack",
                compression="zlib",
                predictor=3 if floats else None,
                metadata=None,
            )


@contextmanager
def _zarr_group(
    path: Path, size: tuple[int, int], block: tuple[int, int], parts: Sequence[tuple[str, int, Any]], names: Sequence[str]
) -> Iterator[list[Put]]:
    zarr = resolve("zarr", purpose="write a class map as Zarr")
    image = {
        "axes": [{"name": axis, "type": "space"} for axis in "yx"],
        "datasets": [{"path": _ZARR_MAP, "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}]}],
    }
    about = {"ome": {"version": "0.5", "multiscales": [image]}, "classes": list(names)}
    with atomic_folder(path) as temporary:
        group = zarr.create_group(temporary, zarr_format=3, attributes=about)
        puts = []
        for name, planes, dtype in parts:
            flat = name == _ZARR_MAP
            shape = (size[1], size[0]) if flat else (planes, size[1], size[0])
            chunks = block[::-1] if flat else (1, *block[::-1])
            axes = ("y", "x") if flat else ("class", "y", "x")
            array = group.create_array(name, shape=shape, chunks=chunks, dtype=dtype, dimension_names=axes)
            puts.append(_zarr_put(array, flat=flat))
        yield puts


def _zarr_put(array: Any, *, flat: bool) -> Put:
    def put(x: int, y: int, values: NDArray[Any]) -> None:
        height, width = values.shape[1:]
        place = (slice(y, y + height), slice(x, x + width))
        array[place if flat else (slice(None), *place)] = values[0] if flat else values

    return put
