"""The label images, class maps and panoptic maps of a results folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.files import atomic_path, move
from pelagia.core.image import Pixels, image_size, read, write
from pelagia.core.scan import open_scan
from pelagia.core.types import Instances, MaskCrop, PanopticMap, Prediction, SemanticMap, Task
from pelagia.data.label_pixels import read_label_pixels, write_label_pixels
from pelagia.data.panoptic_png import from_colours, read_ids, to_colours, write_ids
from pelagia.errors import OptionError
from pelagia.infer.map_writer import StoredMap, open_map_writer
from pelagia.infer.panoptic_writer import Stored, StoredPanoptic
from pelagia.infer.preview import nearest, picture_size

__all__ = ["has_probabilities", "map_pixels", "map_suffix", "pixels_of", "read_map", "write_map", "write_probabilities"]

#: Most objects of an image whose numbers a PNG holds; more are written as TIFF of 32 bits.
_MOST_IN_PNG = 65535

#: Label images, and panoptic maps of scans, of more pixels are tiled TIFF, which is written tile by tile; a PNG needs them all at
#: once.
_PNG_PIXELS = 1 << 26

#: Side of its tiles.
_TILE = 512

#: Bytes of them that are compressed at a time.
_BUFFER = 1 << 22


def map_suffix(found: Prediction | Stored, size: tuple[int, int]) -> str:
    """The ending, without its point, of what `write_map` makes of an answer for an image of that (width, height)."""
    if isinstance(found, StoredMap):
        return found.path.suffix.removeprefix(".")
    large = isinstance(found, Instances | StoredPanoptic) and size[0] * size[1] > _PNG_PIXELS
    large |= isinstance(found, Instances) and len(found) > _MOST_IN_PNG
    return "tif" if large else "png"


def write_map(path: Path, found: Prediction | Stored, size: tuple[int, int]) -> None:
    """Write the map of an answer, whole or not at all; one that is written already is moved.

    Of objects a label image: a pixel is the number of its object, counted from 1, 0 the background; a pixel in several belongs to
    the first, which is the strongest. Of a `SemanticMap` its labels, of a `numbered` `PanopticMap` its ids.
    """
    if isinstance(found, StoredPanoptic) and path.suffix == ".png":
        try:
            write(path, read(found.path), overwrite=True)
        finally:
            found.path.unlink(missing_ok=True)
    elif isinstance(found, Stored):
        _move(found.path, path)
    elif isinstance(found, SemanticMap):
        write_label_pixels(path, found.labels)
    elif not isinstance(found, Instances):
        write_ids(path, found.ids)
    else:
        kind: Any = np.uint16 if len(found) <= _MOST_IN_PNG else np.uint32
        masks = found.masks or ()
        if path.suffix == ".png":
            write_label_pixels(path, _labels(masks, range(len(masks)), (0, 0, *size), kind))
            return
        with atomic_path(path) as temporary:
            tifffile.imwrite(
                temporary,
                _label_tiles(masks, size, kind),
                shape=(size[1], size[0]),
                dtype=kind,
                tile=(_TILE, _TILE),
                photometric="minisblack",
                compression="zlib",
                metadata=None,
                buffersize=_BUFFER,
            )


def map_pixels(found: Prediction, size: tuple[int, int]) -> Pixels | None:
    """The map that `write_map` makes of an answer, [H, W], or [H, W, 3] of a `numbered` panoptic map; None where there is none,
    or none that a PNG holds."""
    if isinstance(found, SemanticMap):
        return found.labels
    if isinstance(found, PanopticMap):
        return to_colours(found.ids)
    if found.masks is None or len(found) > _MOST_IN_PNG:
        return None
    return _labels(found.masks, range(len(found)), (0, 0, *size), np.uint16)


def has_probabilities(found: Prediction | Stored) -> bool:
    """Whether an answer has the probabilities of all classes."""
    return (isinstance(found, StoredMap) and found.probabilities is not None) or (
        isinstance(found, SemanticMap) and found.scores is not None
    )


def write_probabilities(path: Path, found: Prediction | Stored, size: tuple[int, int]) -> None:
    """Write the probabilities of a class map as TIFF, float32, a page for each class; a TIFF that is written already is moved."""
    if isinstance(found, StoredMap) and found.probabilities is not None:
        _move(found.probabilities, path)
    elif isinstance(found, SemanticMap) and found.scores is not None:
        with open_map_writer(path, size, (_TILE, _TILE), len(found.scores), np.float32) as put:
            for y in range(0, size[1], _TILE):
                for x in range(0, size[0], _TILE):
                    put(x, y, found.scores[:, y : y + _TILE, x : x + _TILE])


def _move(source: Path, target: Path) -> None:
    try:
        move(source, target)
    except OSError as error:
        raise OptionError(f"cannot write this file ({error.strerror or error}); choose another place", where=target) from error


def pixels_of(found: Prediction | Stored) -> NDArray[Any] | None:
    """The map that a picture of an answer shows, of a written one what is left of it; None for objects."""
    if isinstance(found, Stored):
        return pixels_of(found.picture)
    return found.labels if isinstance(found, SemanticMap) else found.ids if isinstance(found, PanopticMap) else None


def read_map(path: Path, task: Task) -> NDArray[Any]:
    """The pixels of a class map or of a panoptic map; of one in a TIFF of more pixels than a picture has those that it shows.

    Raises:
        ImageError: missing or broken.
    """
    width, height = image_size(path)
    scale, size = picture_size(width, height)
    if scale == 1 or path.suffix == ".png":
        return read_ids(path) if task == "panoptic" else read_label_pixels(path)
    shown = _read_shrunk(path, scale, size)
    return from_colours(shown) if task == "panoptic" else shown[..., 0]


def _read_shrunk(path: Path, scale: float, size: tuple[int, int]) -> NDArray[Any]:
    """[H, W, C] of an image in windows, the pixels that a picture of that size shows."""
    bands = []
    with open_scan(path) as scan:
        rows, columns = nearest((scan.height, scan.width), scale, size)
        for part in np.array_split(rows, -(-scan.height // _TILE)):
            if len(part):
                scan.forget(above=int(part[0]))
                band = scan.read(0, int(part[0]), scan.width, int(part[-1]) + 1 - int(part[0]))
                bands.append(band[part - part[0]][:, columns])
    return np.concatenate(bands)


def _label_tiles(masks: Sequence[MaskCrop], size: tuple[int, int], kind: Any) -> Iterator[NDArray[Any]]:
    windows = np.array([(mask.x, mask.y, mask.x + mask.shape[1], mask.y + mask.shape[0]) for mask in masks])
    windows = windows.reshape(-1, 4)
    for y in range(0, size[1], _TILE):
        for x in range(0, size[0], _TILE):
            near = (windows[:, 0] < x + _TILE) & (windows[:, 1] < y + _TILE) & (windows[:, 2] > x) & (windows[:, 3] > y)
            tile = _labels(masks, np.flatnonzero(near).tolist(), (x, y, _TILE, _TILE), kind)
            tile[size[1] - y :], tile[:, size[0] - x :] = 0, 0  # beyond the image
            yield tile


def _labels(masks: Sequence[MaskCrop], which: Sequence[int], window: tuple[int, int, int, int], kind: Any) -> NDArray[Any]:
    """The window x, y, width, height of the label image, from the masks at the positions `which`."""
    left, top, width, height = window
    pixels: NDArray[Any] = np.zeros((height, width), dtype=kind)
    for index in reversed(which):
        mask = masks[index]
        part = core_masks.clip(MaskCrop(mask.x - left, mask.y - top, mask.bitmap), width, height)
        rows, columns = part.bitmap.shape
        pixels[part.y : part.y + rows, part.x : part.x + columns][part.bitmap] = index + 1
    return pixels
