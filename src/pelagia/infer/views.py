"""What the network looks at: whole images or tiles, brought to the scale at which it learnt, and its answers in their pixels.

A network is best at the scale at which it learnt. A model whose training images were 640 pixels wide and shown at 320 is given
tiles of 640 pixels, shrunk alike; the size comes from the card (`manifest["image_size"]`, width and height in pixels; one that
learnt on windows at full resolution has `manifest["full_resolution"]`), else the
input size is the scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from pelagia.core.ahead import ahead, side_by_side
from pelagia.core.allocator import keep_freed_memory
from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.padding import covered, to_corner
from pelagia.core.scan import Scan
from pelagia.core.types import Instances, Prediction
from pelagia.core.warp import letterbox, warp
from pelagia.data.augment import FILL
from pelagia.decode import DecodeOptions, decode
from pelagia.errors import ModelError
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import PaddedRuntime, PixelRuntime, Runtime, Shared, prepared
from pelagia.infer.tiles import Tile, lay_tiles

__all__ = [
    "TILE_FACTOR",
    "answer",
    "answers",
    "fit",
    "in_corners",
    "is_full_resolution",
    "is_tiled",
    "lay",
    "must_tile",
    "objects_of",
    "overlap_of",
    "tile_size",
    "views",
]

#: An image is tiled when one of its sides is longer than this many tiles; one tile where the scale is full resolution.
TILE_FACTOR = 1.5

#: Tiles overlap by this many times the typical object of the training data, where the card knows it.
_OBJECT_FACTOR = 1.5


def tile_size(card: ModelCard, options: PredictOptions) -> tuple[int, int]:
    """Width and height in image pixels of what the network answers for at once."""
    height, width = (side - 2 * card.margin for side in card.input_size)
    trained = card.manifest.get("image_size") or (width, height)
    # A training image fitted into the input was scaled by the smaller ratio.
    scale = max(height, width) / options.tile if options.tile else min(width / trained[0], height / trained[1])
    return max(round(width / scale), 1), max(round(height / scale), 1)


def is_full_resolution(card: ModelCard) -> bool:
    return bool(card.manifest.get("full_resolution"))


def fit(card: ModelCard, image: NDArray[Any]) -> tuple[NDArray[Any], Frame]:
    """A whole image as the network sees it, and the way back."""
    return letterbox(image, card.input_size, enlarge=not is_full_resolution(card), margin=card.margin)


def must_tile(size: tuple[int, int], tile: tuple[int, int], tiling: Literal["auto", "always", "never"], card: ModelCard) -> bool:
    if tiling == "never":
        return False
    largest = 1.0 if is_full_resolution(card) else TILE_FACTOR
    return tiling == "always" or size[0] > largest * tile[0] or size[1] > largest * tile[1]


def is_tiled(size: tuple[int, int], card: ModelCard) -> bool:
    """Whether an image of that width and height is predicted in tiles when nothing is said about it."""
    options = PredictOptions()
    return must_tile(size, tile_size(card, options), options.tiling, card)


def lay(card: ModelCard, size: tuple[int, int], tile: tuple[int, int], options: PredictOptions) -> list[Tile]:
    stride = card.stride * tile[0] / (card.input_size[1] - 2 * card.margin)
    return lay_tiles(size, tile, overlap_of(card, tile, options), round(stride) if stride.is_integer() else 1)


def overlap_of(card: ModelCard, tile: tuple[int, int], options: PredictOptions) -> int:
    """Pixels: the asked share, or 1.5 typical objects if that is more, but at most half a tile unless asked for."""
    asked = options.overlap * min(tile)
    typical = float(card.manifest.get("object_px") or 0.0)
    return round(max(asked, min(_OBJECT_FACTOR * typical, min(tile) / 2)))


def views(
    scan: Scan, tiles: Sequence[Tile], card: ModelCard, *, local: bool, most: int
) -> Generator[tuple[NDArray[Any], Frame], None, None]:
    """Each tile at the network's size, with its frame: back to the scan, or `local` to the tile.

    A thread reads the scan and warps, at most `most` views beyond the one in use; hold the generator in `contextlib.closing`, so
    that the thread has ended when the scan is closed. A margin of the input shows what surrounds the tile, at the border of the
    scan its mirror image.

    Raises:
        ImageError: a part of the scan is broken.
    """
    return ahead(_views(scan, tiles, card, local=local), most)


def _views(scan: Scan, tiles: Sequence[Tile], card: ModelCard, *, local: bool) -> Iterator[tuple[NDArray[Any], Frame]]:
    height, width = card.input_size
    for tile in tiles:
        scale = (width - 2 * card.margin) / tile.width
        around = math.ceil(card.margin / scale)
        scan.forget(above=max(tile.y - around, 0))  # tiles come row by row
        part = _surroundings(scan, tile, around)
        shift = card.margin - around * scale
        image = warp(part, np.array([[scale, 0.0, shift], [0.0, scale, shift]]), (width, height))
        left, upper = (0, 0) if local else (tile.x, tile.y)
        size = (tile.width, tile.height) if local else (scan.width, scan.height)
        corner = card.margin / scale
        yield image, Frame(np.array([[1 / scale, 0.0, left - corner], [0.0, 1 / scale, upper - corner]]), *size)


def _surroundings(scan: Scan, tile: Tile, around: int) -> NDArray[Any]:
    """The pixels of a tile and `around` it on all sides, mirrored where that reaches beyond the scan; a tile that sticks out
    itself is cut there."""
    ends = [(tile.x, tile.width, scan.width), (tile.y, tile.height, scan.height)]
    (x1, x2, left, right), (y1, y2, above, below) = (
        (
            max(start - around, 0),
            min(start + side + around, length),
            max(around - start, 0),
            min(max(start + side + around - length, 0), around),
        )
        for start, side, length in ends
    )
    part = scan.read(x1, y1, x2 - x1, y2 - y1)
    return np.pad(part, ((above, below), (left, right), (0, 0)), mode="symmetric") if around else part


def answers(
    runtime: Runtime, shown: Iterator[tuple[NDArray[Any], Frame]], batch: int, options: DecodeOptions
) -> Generator[Prediction, None, None]:
    """The answer to each view, in order: on a CPU each view goes through the network alone, on the next free core, and is decoded
    beside the others; elsewhere `batch` of them go together. Held in `contextlib.closing` where it may be left early."""
    shared = Shared(runtime)
    if shared.alone:
        keep_freed_memory(all_sizes=False)  # each view frees what the next one needs, but rows of tiles and maps differ

    def steps() -> Iterator[tuple[Callable[[], list[Prediction]], bool]]:
        while chosen := list(islice(shown, 1 if shared.alone else batch)):
            yield partial(answer, shared, [image for image, _ in chosen], [frame for _, frame in chosen], options), True

    with closing(side_by_side(steps(), workers=shared.callers)) as found:
        for part in found:
            yield from part


def answer(runtime: Runtime, images: Sequence[NDArray[Any]], frames: Sequence[Frame], options: DecodeOptions) -> list[Prediction]:
    card = runtime.card
    if not card.masks_padding:
        return decode(_outputs(runtime, images, options), frames, card, options)
    moved, places, valid = in_corners(images, frames)
    outputs = _outputs(runtime, moved, options, valid)
    return decode({**outputs, "valid": valid}, places, card, options)


def _outputs(
    runtime: Runtime, images: Sequence[NDArray[Any]], options: DecodeOptions, valid: NDArray[np.int64] | None = None
) -> dict[str, NDArray[Any]]:
    """What the network answers; a device of its own gets the images as they are stored."""
    if getattr(runtime, "takes_pixels", False):
        return cast(PixelRuntime, runtime).run_pixels(images, options, valid)
    batch = prepared(runtime, images)
    return runtime.run(batch) if valid is None else cast(PaddedRuntime, runtime).run(batch, valid)


def in_corners(
    images: Sequence[NDArray[Any]], frames: Sequence[Frame]
) -> tuple[list[NDArray[Any]], list[Frame], NDArray[np.int64]]:
    """The images moved to the upper left corner of the input, their frames, and their heights and widths."""
    moved, places, valid = [], [], []
    for image, frame in zip(images, frames, strict=True):
        canvas = (image.shape[1], image.shape[0])
        x1, y1, x2, y2 = window = covered(frame.inverse, (frame.width, frame.height), canvas) or (0, 0, *canvas)
        moved.append(to_corner(image, window, FILL))
        back = frame.matrix + np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]) * (frame.matrix[:, :2] @ [x1, y1])[:, None]
        places.append(Frame(back, frame.width, frame.height))
        valid.append((y2 - y1, x2 - x1))
    return moved, places, np.array(valid)


def objects_of(found: Prediction, card: ModelCard) -> Instances:
    """`found`, which must be objects.

    Raises:
        ModelError: the model answers with a map.
    """
    if not isinstance(found, Instances):
        raise ModelError(f"the task {card.task!r} does not answer with objects", where=card.name)
    return found
