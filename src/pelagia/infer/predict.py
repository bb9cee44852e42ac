"""Prediction on images of any size: shrunk or enlarged to the network's input, or in overlapping tiles where they are large.

A network is best at the scale at which it learnt. A model whose training images were 640 pixels wide and shown at 320 is given
tiles of 640 pixels, shrunk alike; the size comes from the card (`manifest["image_size"]`, width and height in pixels), else the
input size is the scale.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.image import image_size, letterbox, normalise, read, warp
from pelagia.core.lazy import resolve
from pelagia.core.scan import Scan, open_scan
from pelagia.core.types import Instances
from pelagia.decode import DecodeOptions, decode
from pelagia.errors import ImageError, ModelError, OptionError
from pelagia.infer.runtimes import Runtime
from pelagia.infer.tiles import Tile, join, lay_tiles

__all__ = ["FileResult", "PredictOptions", "predict_batch", "predict_files", "predict_image"]

#: An image is tiled when one of its sides is longer than this many tiles.
TILE_FACTOR = 1.5

#: Tiles overlap by this many times the typical object of the training data, where the card knows it.
_OBJECT_FACTOR = 1.5

#: A detection this near to a border of its tile, as a share of the tile's side, counts as cut by it.
_MARGIN = 0.01


@dataclass(frozen=True)
class PredictOptions:
    """How objects are found in images.

    Raises:
        OptionError: a value cannot be used.
    """

    score: float | None = field(
        default=None,
        metadata={"help": "Objects below it are left out; by default each class's own threshold in the model, else 0.25."},
    )
    # AP gains from keeping overlapping candidates (evaluation uses 0.7); a count does not: measured F1 is higher at 0.5.
    nms_iou: float = field(default=0.5, metadata={"help": "Of two objects of a class that overlap more, the weaker goes."})
    most: int = field(default=0, metadata={"help": "Most objects per image, the strongest; 0 for all."})
    agnostic: bool = field(default=False, metadata={"help": "Of two overlapping objects the weaker goes whatever their classes."})
    tiling: Literal["auto", "always", "never"] = field(
        default="auto", metadata={"help": "Cut large images into tiles; auto: when a side exceeds 1.5 tiles."}
    )
    tile: int = field(
        default=0,
        metadata={"help": "Side of a tile in image pixels; 0 for the size of the images that the model was trained on."},
    )
    overlap: float = field(
        default=0.2,
        metadata={"help": "Least overlap of tiles as a share of their side; widened to 1.5 times the model's typical object."},
    )
    batch: int = field(default=8, metadata={"help": "Images or tiles per step."})
    calibrated: bool = field(
        default=False,
        metadata={"help": "Turn scores into probabilities by the map stored in the model; thresholds stay those of raw scores."},
    )

    def __post_init__(self) -> None:
        for name in ("score", "nms_iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise OptionError(f"{name} must lie in 0 to 1, got {value}")
        if not 0 <= self.overlap <= 0.8:
            raise OptionError(f"overlap must lie in 0 to 0.8, got {self.overlap}")
        if self.batch < 1 or self.most < 0 or self.tile < 0:
            raise OptionError("batch must be at least 1, most and tile at least 0")
        if self.tiling not in ("auto", "always", "never"):
            raise OptionError(f"tiling must be auto, always or never, got {self.tiling!r}")

    def decoding(self, card: ModelCard) -> DecodeOptions:
        """What decoding needs; the card's thresholds hold unless `score` is given."""
        return DecodeOptions(
            score=0.25 if self.score is None else self.score,
            class_scores=dict(card.thresholds) if self.score is None else {},
            nms_iou=self.nms_iou,
            most=self.most,
            agnostic=self.agnostic,
        )


@dataclass(frozen=True, slots=True)
class FileResult:
    """What came of one image file: `found`, or the sentence why it could not be read."""

    path: Path
    width: int = 0
    height: int = 0
    found: Instances | None = None
    error: str | None = None
    seconds: float = 0.0


def predict_batch(runtime: Runtime, images: Sequence[NDArray[Any]], options: DecodeOptions) -> list[Instances]:
    """Objects of each whole image, in its pixels; images [H, W, C] of any sizes, each fitted into the network's input."""
    fitted = [letterbox(image, runtime.card.input_size) for image in images]
    return _run(runtime, [image for image, _ in fitted], [frame for _, frame in fitted], options)


def predict_image(
    runtime: Runtime,
    image: NDArray[Any] | Scan,
    options: PredictOptions | None = None,
    *,
    decoding: DecodeOptions | None = None,
) -> Instances:
    """Objects of one image [H, W, C] or [H, W] or one scan, strongest first, in its pixels; tiled where it is large.

    `decoding` replaces what `options` say of scores and suppression.

    Raises:
        OptionError: the image is not 8 or 16 bits with 1 or 3 channels, or the overlap does not fit the tile.
    """
    options = options or PredictOptions()
    decoding = decoding or options.decoding(runtime.card)
    probable = _probable(runtime.card, options)
    scan = Scan.of(_checked(image)) if isinstance(image, np.ndarray) else image
    tile = _tile_size(runtime.card, options)
    if options.tiling != "always" and not _needs_tiles((scan.width, scan.height), tile, options):
        return probable(predict_batch(runtime, [scan.read(0, 0, scan.width, scan.height)], decoding)[0])
    return probable(_predict_tiles(runtime, scan, tile, options, decoding))


def _probable(card: ModelCard, options: PredictOptions) -> Callable[[Instances], Instances]:
    """The stored map of scores to probabilities, if it was asked for."""
    if not options.calibrated:
        return lambda found: found
    if not card.calibration:
        raise OptionError(
            "the model holds no calibration; fit one with: pelagia evaluate MODEL DATA --save-calibration platt", where=card.name
        )
    scaling = resolve("pelagia.metrics.scaling", purpose="calibrate scores")
    fitted = scaling.ScoreMap.from_dict(card.calibration, where=card.name)
    return lambda found: found.replace(scores=fitted.apply(found.scores, found.labels))


def predict_files(runtime: Runtime, paths: Iterable[str | Path], options: PredictOptions | None = None) -> Iterator[FileResult]:
    """Objects of each image file, in the order of `paths`; small images are batched, large ones read in windows.

    A file that cannot be read gives a result with its `error`, and the rest goes on.
    """
    options = options or PredictOptions()
    decoding = options.decoding(runtime.card)
    probable = _probable(runtime.card, options)
    tile = _tile_size(runtime.card, options)
    waiting: list[tuple[Path, NDArray[Any] | str]] = []
    for path in map(Path, paths):
        try:
            size = image_size(path)
            if options.tiling == "always" or _needs_tiles(size, tile, options):
                yield from _flush(runtime, waiting, decoding, probable)
                waiting = []
                start = time.perf_counter()
                with open_scan(path) as scan:
                    found = predict_image(runtime, scan, options)
                yield FileResult(path, scan.width, scan.height, found, seconds=time.perf_counter() - start)
                continue
            waiting.append((path, read(path)))
        except ImageError as error:
            waiting.append((path, error.reason))
        if len(waiting) == options.batch:
            yield from _flush(runtime, waiting, decoding, probable)
            waiting = []
    yield from _flush(runtime, waiting, decoding, probable)


def _flush(
    runtime: Runtime,
    waiting: Sequence[tuple[Path, NDArray[Any] | str]],
    decoding: DecodeOptions,
    probable: Callable[[Instances], Instances],
) -> Iterator[FileResult]:
    images = [image for _, image in waiting if not isinstance(image, str)]
    start = time.perf_counter()
    found = iter(predict_batch(runtime, images, decoding) if images else [])
    seconds = (time.perf_counter() - start) / max(len(images), 1)
    for path, image in waiting:
        if isinstance(image, str):
            yield FileResult(path, error=image)
        else:
            yield FileResult(path, image.shape[1], image.shape[0], probable(next(found)), seconds=seconds)


def _tile_size(card: ModelCard, options: PredictOptions) -> tuple[int, int]:
    """Width and height in image pixels of what the network sees at once."""
    height, width = card.input_size
    trained = card.manifest.get("image_size") or (width, height)
    # A training image fitted into the input was scaled by the smaller ratio.
    scale = max(height, width) / options.tile if options.tile else min(width / trained[0], height / trained[1])
    return max(round(width / scale), 1), max(round(height / scale), 1)


def _needs_tiles(size: tuple[int, int], tile: tuple[int, int], options: PredictOptions) -> bool:
    large = size[0] > TILE_FACTOR * tile[0] or size[1] > TILE_FACTOR * tile[1]
    return options.tiling != "never" and large


def _predict_tiles(
    runtime: Runtime, scan: Scan, tile: tuple[int, int], options: PredictOptions, decoding: DecodeOptions
) -> Instances:
    card = runtime.card
    size = (scan.width, scan.height)
    scale = card.input_size[1] / tile[0]
    stride = card.stride / scale
    tiles = lay_tiles(size, tile, _overlap(card, tile, options), round(stride) if stride.is_integer() else 1)
    unlimited = replace(decoding, most=0)
    parts: list[Instances] = []
    views = _views(scan, tiles, card.input_size)
    while batch := list(islice(views, options.batch)):
        parts += _run(runtime, [image for image, _ in batch], [frame for _, frame in batch], unlimited)
    found = join(parts, tiles, size, margin=_MARGIN * max(tile), agnostic=options.agnostic)
    return found.select(np.arange(min(decoding.most, len(found)))) if decoding.most else found


def _overlap(card: ModelCard, tile: tuple[int, int], options: PredictOptions) -> int:
    """Pixels: the asked share, or 1.5 typical objects if that is more, but at most half a tile unless asked for."""
    asked = options.overlap * min(tile)
    typical = float(card.manifest.get("object_px") or 0.0)
    return round(max(asked, min(_OBJECT_FACTOR * typical, min(tile) / 2)))


def _views(scan: Scan, tiles: Sequence[Tile], input_size: tuple[int, int]) -> Iterator[tuple[NDArray[Any], Frame]]:
    """Each tile at the network's size, with its frame. A row of tiles is read at once: stripped files give whole rows anyway."""
    height, width = input_size
    top, band = -1, scan.read(0, 0, 1, 1)
    for tile in tiles:
        if tile.y != top:
            top = tile.y
            band = scan.read(0, top, scan.width, min(tile.height, scan.height - top))
        scale = width / tile.width
        part = band[:, tile.x : tile.x + tile.width]
        image = warp(part, np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]]), (width, height))
        back = np.array([[1 / scale, 0.0, tile.x], [0.0, 1 / scale, tile.y]])
        yield image, Frame(back, scan.width, scan.height)


def _run(runtime: Runtime, images: Sequence[NDArray[Any]], frames: Sequence[Frame], options: DecodeOptions) -> list[Instances]:
    card = runtime.card
    batch = np.stack([normalise(image, card.normalisation) for image in images])
    found = []
    for item in decode(runtime.run(batch), frames, card, options):
        if not isinstance(item, Instances):
            raise ModelError(f"the task {card.task!r} does not answer with objects", where=card.name)
        found.append(item)
    return found


def _checked(image: NDArray[Any]) -> NDArray[Any]:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype not in (np.uint8, np.uint16) or 0 in image.shape:
        raise OptionError(
            f"an image must be [H, W], [H, W, 1] or [H, W, 3] (RGB) of uint8 or uint16, got {list(image.shape)} {image.dtype}"
        )
    return image
