"""Prediction on images of any size: shrunk or enlarged to the network's input, or in overlapping tiles where they are large."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.image import image_size, letterbox, read
from pelagia.core.lazy import resolve
from pelagia.core.scan import Scan, open_scan
from pelagia.core.types import Instances, Prediction
from pelagia.decode import DecodeOptions
from pelagia.errors import ImageError, OptionError
from pelagia.infer.dense import tiled_map
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import Runtime
from pelagia.infer.tiled import tiled_objects
from pelagia.infer.views import answer, is_full_resolution, must_tile, tile_size

__all__ = ["FileResult", "predict_batch", "predict_files", "predict_image"]


@dataclass(frozen=True, slots=True)
class FileResult:
    """What came of one image file: `found`, or the sentence why it could not be read."""

    path: Path
    width: int = 0
    height: int = 0
    found: Prediction | None = None
    error: str | None = None
    seconds: float = 0.0


def predict_batch(runtime: Runtime, images: Sequence[NDArray[Any]], options: DecodeOptions) -> list[Prediction]:
    """What the model answers for each whole image, in its pixels; images [H, W, C] of any sizes, each fitted into the input."""
    card = runtime.card
    enlarge = not is_full_resolution(card)
    fitted = [letterbox(image, card.input_size, enlarge=enlarge, margin=card.margin) for image in images]
    return answer(runtime, [image for image, _ in fitted], [frame for _, frame in fitted], options)


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
    tile = tile_size(runtime.card, options)
    if not must_tile((scan.width, scan.height), tile, options.tiling, runtime.card):
        return probable(predict_batch(runtime, [scan.read(0, 0, scan.width, scan.height)], decoding)[0])
    predict = tiled_map if runtime.card.task == "semantic" else tiled_objects
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
    tile = tile_size(runtime.card, options)
    waiting: list[tuple[Path, NDArray[Any] | str]] = []
    for path in map(Path, paths):
        try:
            size = image_size(path)
            if must_tile(size, tile, options.tiling, runtime.card):
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


def _checked(image: NDArray[Any]) -> NDArray[Any]:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype not in (np.uint8, np.uint16) or 0 in image.shape:
        raise OptionError(
            f"an image must be [H, W], [H, W, 1] or [H, W, 3] (RGB) of uint8 or uint16, got {list(image.shape)} {image.dtype}"
        )
    return image
