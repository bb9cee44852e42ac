"""Prediction on images of any size: shrunk or enlarged to the network's input, or in overlapping tiles where they are large.

A network is best at the scale at which it learnt. A model whose training images were 640 pixels wide and shown at 320 is given
tiles of 640 pixels, shrunk alike; the size comes from the card (`manifest["image_size"]`, width and height in pixels; one that
learnt on windows at full resolution has `manifest["full_resolution"]`), else the
input size is the scale.
"""

from __future__ import annotations

import math
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
from pelagia.core.types import Instances, Prediction, SemanticMap
from pelagia.decode import DecodeOptions, decode
from pelagia.errors import ImageError, ModelError, OptionError
from pelagia.infer.runtimes import Runtime
from pelagia.infer.tiles import Tile, join, lay_tiles, owned

__all__ = ["FileResult", "PredictOptions", "is_tiled", "objects_of", "predict_batch", "predict_files", "predict_image"]

#: An image is tiled when one of its sides is longer than this many tiles; one tile where the scale is full resolution.
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
    found: Prediction | None = None
    error: str | None = None
    seconds: float = 0.0


def objects_of(found: Prediction, card: ModelCard) -> Instances:
    """`found`, which must be objects.

    Raises:
        ModelError: the model answers with a map.
    """
    if not isinstance(found, Instances):
        raise ModelError(f"the task {card.task!r} does not answer with objects", where=card.name)
    return found


def predict_batch(runtime: Runtime, images: Sequence[NDArray[Any]], options: DecodeOptions) -> list[Prediction]:
    """What the model answers for each whole image, in its pixels; images [H, W, C] of any sizes, each fitted into the input."""
    card = runtime.card
    enlarge = not _full_resolution(card)
    fitted = [letterbox(image, card.input_size, enlarge=enlarge, margin=card.margin) for image in images]
    return _run(runtime, [image for image, _ in fitted], [frame for _, frame in fitted], options)


def predict_image(
    runtime: Runtime,
    image: NDArray[Any] | Scan,
    options: PredictOptions | None = None,
    *,
    decoding: DecodeOptions | None = None,
) -> Prediction:
    """What the model answers for one image [H, W, C] or [H, W] or one scan, in its pixels; tiled where it is large.

    Objects come strongest first. Panoptic maps are never tiled: a large image is shrunk.

    `decoding` replaces what `options` say of scores and suppression.

    Raises:
        OptionError: the image is not 8 or 16 bits with 1 or 3 channels, or the overlap does not fit the tile.
    """
    options = options or PredictOptions()
    decoding = decoding or options.decoding(runtime.card)
    probable = _probable(runtime.card, options)
    scan = Scan.of(_checked(image)) if isinstance(image, np.ndarray) else image
    tile = _tile_size(runtime.card, options)
    if not _tiled((scan.width, scan.height), tile, options.tiling, runtime.card):
        return probable(predict_batch(runtime, [scan.read(0, 0, scan.width, scan.height)], decoding)[0])
    predict = _predict_tiled_map if runtime.card.task == "semantic" else _predict_tiles
    return probable(predict(runtime, scan, tile, options, decoding))


def _probable(card: ModelCard, options: PredictOptions) -> Callable[[Prediction], Prediction]:
    """The stored map of scores to probabilities, if it was asked for; a map of classes stays as it is."""
    if not options.calibrated:
        return lambda found: found
    if not card.calibration:
        raise OptionError(
            "the model holds no calibration; fit one with: pelagia evaluate MODEL DATA --save-calibration platt", where=card.name
        )
    scaling = resolve("pelagia.metrics.scaling", purpose="calibrate scores")
    fitted = scaling.ScoreMap.from_dict(card.calibration, where=card.name)

    def apply(found: Prediction) -> Prediction:
        return found.replace(scores=fitted.apply(found.scores, found.labels)) if isinstance(found, Instances) else found

    return apply


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
            if _tiled(size, tile, options.tiling, runtime.card):
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
    probable: Callable[[Prediction], Prediction],
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
    """Width and height in image pixels of what the network answers for at once."""
    height, width = (side - 2 * card.margin for side in card.input_size)
    trained = card.manifest.get("image_size") or (width, height)
    # A training image fitted into the input was scaled by the smaller ratio.
    scale = max(height, width) / options.tile if options.tile else min(width / trained[0], height / trained[1])
    return max(round(width / scale), 1), max(round(height / scale), 1)


def _full_resolution(card: ModelCard) -> bool:
    return bool(card.manifest.get("full_resolution"))


def _tiled(size: tuple[int, int], tile: tuple[int, int], tiling: Literal["auto", "always", "never"], card: ModelCard) -> bool:
    if card.task == "panoptic" or tiling == "never":
        return False
    largest = 1.0 if _full_resolution(card) else TILE_FACTOR
    return tiling == "always" or size[0] > largest * tile[0] or size[1] > largest * tile[1]


def is_tiled(size: tuple[int, int], card: ModelCard) -> bool:
    """Whether an image of that width and height is predicted in tiles when nothing is said about it."""
    options = PredictOptions()
    return _tiled(size, _tile_size(card, options), options.tiling, card)


def _predict_tiles(
    runtime: Runtime, scan: Scan, tile: tuple[int, int], options: PredictOptions, decoding: DecodeOptions
) -> Instances:
    """The objects of all tiles, each once."""
    card = runtime.card
    size = (scan.width, scan.height)
    tiles = _lay(card, size, tile, options)
    unlimited = replace(decoding, most=0)
    parts: list[Instances] = []
    views = _views(scan, tiles, card, local=False)
    while batch := list(islice(views, options.batch)):
        found = _run(runtime, [image for image, _ in batch], [frame for _, frame in batch], unlimited)
        parts += [objects_of(item, card) for item in found]
    joined = join(parts, tiles, size, margin=_MARGIN * max(tile), agnostic=options.agnostic)
    return joined.select(np.arange(min(decoding.most, len(joined)))) if decoding.most else joined


def _predict_tiled_map(
    runtime: Runtime, scan: Scan, tile: tuple[int, int], options: PredictOptions, decoding: DecodeOptions
) -> SemanticMap:
    """The class of every pixel, taken from the tile in which it lies deepest."""
    card = runtime.card
    tiles = _lay(card, (scan.width, scan.height), tile, options)
    labels: NDArray[Any] = np.zeros((scan.height, scan.width), dtype=np.uint8 if len(card.categories) < 255 else np.uint16)
    windows = iter(owned(tiles, (scan.width, scan.height)))
    views = _views(scan, tiles, card, local=True)
    while batch := list(islice(views, options.batch)):
        for part in _run(runtime, [image for image, _ in batch], [frame for _, frame in batch], decoding):
            if not isinstance(part, SemanticMap):
                raise ModelError(f"the task {card.task!r} does not answer with a map of classes", where=card.name)
            (x1, y1, x2, y2), owner = next(windows)
            labels[y1:y2, x1:x2] = part.labels[y1 - owner.y : y2 - owner.y, x1 - owner.x : x2 - owner.x]
    return SemanticMap(labels)


def _lay(card: ModelCard, size: tuple[int, int], tile: tuple[int, int], options: PredictOptions) -> list[Tile]:
    stride = card.stride * tile[0] / (card.input_size[1] - 2 * card.margin)
    return lay_tiles(size, tile, _overlap(card, tile, options), round(stride) if stride.is_integer() else 1)


def _overlap(card: ModelCard, tile: tuple[int, int], options: PredictOptions) -> int:
    """Pixels: the asked share, or 1.5 typical objects if that is more, but at most half a tile unless asked for."""
    asked = options.overlap * min(tile)
    typical = float(card.manifest.get("object_px") or 0.0)
    return round(max(asked, min(_OBJECT_FACTOR * typical, min(tile) / 2)))


def _views(scan: Scan, tiles: Sequence[Tile], card: ModelCard, *, local: bool) -> Iterator[tuple[NDArray[Any], Frame]]:
    """Each tile at the network's size, with its frame: back to the scan, or `local` to the tile.

    A row of tiles is read at once: stripped files give whole rows anyway. A margin of the input shows what surrounds the tile, at
    the border of the scan its mirror image.
    """
    height, width = card.input_size
    top, band = -1, scan.read(0, 0, 1, 1)
    for tile in tiles:
        scale = (width - 2 * card.margin) / tile.width
        around = math.ceil(card.margin / scale)
        if tile.y != top:
            top = tile.y
            above = max(top - around, 0)
            band = scan.read(0, above, scan.width, min(top + tile.height + around, scan.height) - above)
            band = _mirrored(band, around - (top - above), top + tile.height + around - scan.height, around)
        # The band begins `around` pixels above and to the left of the tiles.
        part = band[:, tile.x : tile.x + tile.width + 2 * around]
        shift = card.margin - around * scale
        image = warp(part, np.array([[scale, 0.0, shift], [0.0, scale, shift]]), (width, height))
        left, upper = (0, 0) if local else (tile.x, tile.y)
        size = (tile.width, tile.height) if local else (scan.width, scan.height)
        corner = card.margin / scale
        yield image, Frame(np.array([[1 / scale, 0.0, left - corner], [0.0, 1 / scale, upper - corner]]), *size)


def _mirrored(band: NDArray[Any], above: int, below: int, beside: int) -> NDArray[Any]:
    """Rows and columns added by mirroring where a margin reaches beyond the scan; nothing without a margin."""
    if not beside:
        return band
    return np.pad(band, ((max(above, 0), min(max(below, 0), beside)), (beside, beside), (0, 0)), mode="symmetric")


def _run(runtime: Runtime, images: Sequence[NDArray[Any]], frames: Sequence[Frame], options: DecodeOptions) -> list[Prediction]:
    card = runtime.card
    batch = np.stack([normalise(image, card.normalisation) for image in images])
    return decode(runtime.run(batch), frames, card, options)


def _checked(image: NDArray[Any]) -> NDArray[Any]:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype not in (np.uint8, np.uint16) or 0 in image.shape:
        raise OptionError(
            f"an image must be [H, W], [H, W, 1] or [H, W, 3] (RGB) of uint8 or uint16, got {list(image.shape)} {image.dtype}"
        )
    return image
