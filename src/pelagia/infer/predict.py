"""Prediction on images of any size: shrunk or enlarged to the network's input, or in overlapping tiles where they are large."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.ahead import side_by_side
from pelagia.core.allocator import keep_freed_memory, release_freed_memory
from pelagia.core.card import ModelCard
from pelagia.core.files import remove, temporary_path
from pelagia.core.frame import Frame
from pelagia.core.image import image_size, read
from pelagia.core.lazy import resolve
from pelagia.core.scan import Scan, open_scan
from pelagia.core.types import Instances, Prediction
from pelagia.decode import DecodeOptions
from pelagia.errors import ImageError, MissingExtraError, OptionError
from pelagia.infer.dense import tiled_map
from pelagia.infer.map_writer import StoredMap, predict_map
from pelagia.infer.options import PredictOptions
from pelagia.infer.panoptic_writer import Stored, predict_panoptic
from pelagia.infer.runtimes import Runtime, Shared, cpu_count
from pelagia.infer.tiled import tiled_objects
from pelagia.infer.tiled_panoptic import tiled_panoptic
from pelagia.infer.views import answer, answers, fit, must_tile, tile_size
from pelagia.infer.watching import Watch

__all__ = ["FileResult", "predict_batch", "predict_files", "predict_fitted", "predict_image"]

#: How maps are predicted in tiles, by task; every other task answers with objects.
_TILED: dict[str, Callable[[Runtime, Scan, tuple[int, int], PredictOptions, DecodeOptions], Prediction]] = {
    "semantic": tiled_map,
    "panoptic": tiled_panoptic,
}


@dataclass(frozen=True, slots=True)
class FileResult:
    """What came of one image file: `found`, or the sentence why it could not be read."""

    path: Path
    width: int = 0
    height: int = 0
    found: Prediction | Stored | None = None
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A small image as the network sees it and the way back, or why it could not be read."""

    path: Path
    view: NDArray[Any] | None = None
    frame: Frame | None = None
    seconds: float = 0.0
    error: str | None = None


def predict_batch(runtime: Runtime, images: Sequence[NDArray[Any]], options: DecodeOptions) -> list[Prediction]:
    """What the model answers for each whole image, in its pixels; images [H, W, C] of any sizes, each fitted into the input."""
    return predict_fitted(runtime, [fit(runtime.card, image) for image in images], options)


def predict_fitted(runtime: Runtime, fitted: Sequence[tuple[NDArray[Any], Frame]], options: DecodeOptions) -> list[Prediction]:
    """As `predict_batch`, for images that `views.fit` has fitted into the input."""
    if len(fitted) <= 1:
        return answer(runtime, [image for image, _ in fitted], [frame for _, frame in fitted], options) if fitted else []
    with closing(answers(runtime, iter(fitted), len(fitted), options)) as found:
        return list(found)


def predict_image(
    runtime: Runtime,
    image: NDArray[Any] | Scan,
    options: PredictOptions | None = None,
    *,
    decoding: DecodeOptions | None = None,
) -> Prediction:
    """What the model answers for one image [H, W, C] or [H, W] or one scan, in its pixels; tiled where it is large.

    Objects come strongest first.

    `decoding` replaces what `options` say of scores and suppression.

    Raises:
        OptionError: the image is not 8 or 16 bits with 1 or 3 channels, the overlap does not fit the tile, or a coarse look was
            asked for and the model answers with a map of classes.
    """
    options = options or PredictOptions()
    decoding = decoding or options.decoding(runtime.card)
    probable = _probable(runtime.card, options)
    scan = Scan.of(_checked(image)) if isinstance(image, np.ndarray) else image
    tile = tile_size(runtime.card, options)
    if not must_tile((scan.width, scan.height), tile, options.tiling, runtime.card):
        return probable(predict_batch(runtime, [scan.read(0, 0, scan.width, scan.height)], decoding)[0])
    _check_coarse(runtime.card, options)
    predict = _TILED.get(runtime.card.task, tiled_objects)
    return probable(predict(runtime, scan, tile, options, decoding))


def _check_coarse(card: ModelCard, options: PredictOptions) -> None:
    if options.coarse and card.task == "semantic":
        raise OptionError(
            "coarse is for objects and the things of panoptic maps: a map of classes has no pieces that a larger look could "
            "replace; without it, blend says how tiles become one map",
            where=card.name,
        )


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


def predict_files(
    runtime: Runtime,
    paths: Iterable[str | Path],
    options: PredictOptions | None = None,
    *,
    maps: Path | None = None,
    watch: Watch | None = None,
) -> Iterator[FileResult]:
    """Objects of each image file, in the order of `paths`; small images are batched, large ones read in windows.

    Small images are read, fitted and decoded in threads beside the network (`core.ahead`). On a CPU each is a step of its own,
    on the next free core; a GPU gets batches, whose images are read by a thread on each core. A file that cannot be read gives a
    result with its `error`, and the rest goes on. With a folder `maps` the class map or panoptic map of a scan is not held but
    written there, as a temporary file or folder that whoever takes the result moves away. `watch` tells how far a scan has
    come, and what users should know of how images are seen.
    """
    options = options or PredictOptions()
    decoding = options.decoding(runtime.card)
    probable = _probable(runtime.card, options)
    tile = tile_size(runtime.card, options)
    shared = Shared(runtime)
    small = partial(_small_images, shared, decoding=decoding, probable=probable)
    readers = ThreadPoolExecutor(cpu_count(), thread_name_prefix="reader")

    def opened(path: Path) -> Callable[[], _Fitted]:
        """A small image, which on a CPU is read by who asks for it."""
        read_it = partial(_fit, runtime.card, path, options.max_pixels, watch)
        return read_it if shared.alone else readers.submit(read_it).result

    def steps() -> Iterator[tuple[Callable[[], list[FileResult]], bool]]:
        """Small images beside the network; scans, which take all cores, by themselves."""
        waiting: list[Callable[[], _Fitted]] = []
        most = 1 if shared.alone else options.batch
        for path in map(Path, paths):
            try:
                large = options.tiling != "never" and must_tile(image_size(path), tile, options.tiling, runtime.card)
            except (ImageError, MissingExtraError):
                large = False  # reading it will say why
            if not large:
                waiting.append(opened(path))
            if waiting and (large or len(waiting) == most):
                if shared.alone:
                    # Each image frees what the next one needs. Large blocks go back: scans of the folder could not use them.
                    keep_freed_memory(all_sizes=False)
                yield partial(small, waiting), True
                waiting = []
            if large:
                yield partial(_scan_file, runtime, path, options, maps, watch), False
        if waiting:
            yield partial(small, waiting), True

    # Steps of a GPU wait for their images: there are enough of them to keep all cores reading.
    workers = shared.callers if shared.alone else shared.count + math.ceil(cpu_count() / options.batch)
    try:
        with closing(side_by_side(steps(), workers=workers)) as found:
            for results in found:
                yield from results
    finally:
        readers.shutdown(cancel_futures=True)


def _scan_file(runtime: Runtime, path: Path, options: PredictOptions, maps: Path | None, watch: Watch | None) -> list[FileResult]:
    start = time.perf_counter()
    found: Prediction | Stored
    try:
        with open_scan(path, max_pixels=options.max_pixels) as scan:
            if watch is not None:
                runtime = watch.over(runtime, scan, options)
            _check_coarse(runtime.card, options)
            if maps is None or runtime.card.task not in _TILED:
                found = predict_image(runtime, scan, options)
            elif runtime.card.task == "panoptic":
                found = predict_panoptic(runtime, scan, temporary_path(maps / f"{path.stem}.tif"), options)
            else:
                found = _stored_map(runtime, scan, maps / path.stem, options)
    except ImageError as error:
        return [FileResult(path, error=error.reason)]
    release_freed_memory()
    return [FileResult(path, scan.width, scan.height, found, seconds=time.perf_counter() - start)]


def _stored_map(runtime: Runtime, scan: Scan, place: Path, options: PredictOptions) -> StoredMap:
    """A class map, and its probabilities if asked for, under temporary names beside `place`; both or none."""
    ending = {"tiff": ".tif", "zarr": ".zarr"}[options.map_format]
    files = [temporary_path(place.with_name(f"{place.name}{ending}")) for _ in range(2)]
    try:
        return predict_map(runtime, scan, files[0], options, probabilities=files[1] if options.probabilities else None)
    except BaseException:
        for file in files:  # a disk may be full when one of them is whole
            with suppress(OSError):
                remove(file)
        raise


def _fit(card: ModelCard, path: Path, max_pixels: int, watch: Watch | None) -> _Fitted:
    """One small image, read and fitted into the input."""
    try:
        image = read(path, max_pixels=max_pixels)
    except (ImageError, MissingExtraError) as error:
        return _Fitted(path, error=error.reason)
    if watch is not None:
        watch.intensities(card, image.dtype, path)
    begin = time.perf_counter()
    view, frame = fit(card, image)
    return _Fitted(path, view, frame, time.perf_counter() - begin)


def _small_images(
    runtime: Runtime,
    images: Sequence[Callable[[], _Fitted]],
    *,
    decoding: DecodeOptions,
    probable: Callable[[Prediction], Prediction],
) -> list[FileResult]:
    """The results of one step."""
    fitted = [image() for image in images]
    shown = [(item.view, item.frame) for item in fitted if item.view is not None and item.frame is not None]
    begin = time.perf_counter()
    found = iter(answer(runtime, [view for view, _ in shown], [frame for _, frame in shown], decoding) if shown else [])
    seconds = (time.perf_counter() - begin) / max(len(shown), 1)
    return [
        FileResult(item.path, error=item.error)
        if item.frame is None
        else FileResult(item.path, item.frame.width, item.frame.height, probable(next(found)), seconds=item.seconds + seconds)
        for item in fitted
    ]


def _checked(image: NDArray[Any]) -> NDArray[Any]:
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype not in (np.uint8, np.uint16) or 0 in image.shape:
        raise OptionError(
            f"an image must be [H, W], [H, W, 1] or [H, W, 3] (RGB) of uint8 or uint16, got {list(image.shape)} {image.dtype}"
        )
    return image
