"""How fast a runtime predicts here, and where the time goes."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pelagia.core.files import remove
from pelagia.core.frame import Frame
from pelagia.core.image import image_size, read
from pelagia.core.scan import open_scan
from pelagia.decode import DecodeOptions, decode
from pelagia.errors import ImageError, OptionError
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_files
from pelagia.infer.runtimes import PixelRuntime, Runtime, Shared, prepared, runtime_name
from pelagia.infer.views import fit, lay, must_tile, tile_size, views

__all__ = ["Timing", "measure"]


@dataclass(frozen=True, slots=True)
class Timing:
    """What was measured of one runtime.

    Args:
        runtime: its `runtime_name`.
        batch: images or tiles per step; 1 on a CPU, where each core works on one of its own.
        at_once: images or tiles in the network at the same time.
        images: how many were predicted, after a few to warm up.
        tiled: how many of them in tiles.
        images_per_second: from files to objects or maps, as `predict` does it, all cores in use.
        read_ms, network_ms, decode_ms: of one image by itself, or of one tile of a tiled image, one part after the other:
            reading, fitting and normalising (which a GPU does itself); the network on all cores; from raw outputs to objects.
    """

    runtime: str
    batch: int
    at_once: int
    images: int
    tiled: int
    images_per_second: float
    read_ms: float
    network_ms: float
    decode_ms: float

    @property
    def shares(self) -> dict[str, float]:
        """Part -> its share of the time of one image, or tile, by itself, summing to 1."""
        parts = {"reading": self.read_ms, "network": self.network_ms, "decoding": self.decode_ms}
        return {name: value / sum(parts.values()) for name, value in parts.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "shares": self.shares}


def measure(runtime: Runtime, paths: Sequence[Path], options: PredictOptions | None = None, *, seconds: float = 5.0) -> Timing:
    """Predict `paths` over and over for about `seconds`, then the parts of one image for as long.

    An image that `options` tile takes all cores: one of them warms up, and one or more are measured, however long they take.

    Raises:
        OptionError: there is no image, or `seconds` is not positive.
        ImageError: an image cannot be read.
    """
    options = options or PredictOptions()
    if not paths or not seconds > 0:
        raise OptionError("a benchmark needs at least one image and a positive time")
    count = Shared(runtime).count
    batch = options.batch if count == 1 else 1
    done, tiled, least, begun, ended = 0, 0, 2 * max(count, batch), 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        maps = Path(folder)  # maps of scans are written, not held
        for result in predict_files(runtime, cycle(paths), options, maps=maps):
            if result.error is not None:
                raise ImageError(result.error, where=result.path)
            ended = time.perf_counter()
            large = _is_tiled(runtime, (result.width, result.height), options)
            done, tiled = done + 1, tiled + large
            if begun and ended - begun > seconds and (large or done >= batch):
                break
            if not begun and (large or done > least):
                done, tiled, begun = 0, 0, ended
            for written in list(maps.iterdir()) if large else []:
                remove(written)
    parts = _parts(runtime, paths, options, batch, seconds)
    return Timing(runtime_name(runtime), batch, count * batch, done, tiled, done / (ended - begun), *parts)


def _is_tiled(runtime: Runtime, size: tuple[int, int], options: PredictOptions) -> bool:
    return must_tile(size, tile_size(runtime.card, options), options.tiling, runtime.card)


def _parts(
    runtime: Runtime, paths: Sequence[Path], options: PredictOptions, batch: int, seconds: float
) -> tuple[float, float, float]:
    """Milliseconds of reading, of the network and of decoding an image or a tile: medians over steps of `batch`."""
    decoding = options.decoding(runtime.card)
    spent: list[list[float]] = []
    end = time.perf_counter() + seconds
    source: Iterator[Path] = iter(cycle(paths))
    while len(spent) < 2 or time.perf_counter() < end:
        shown, reading = _read(runtime, next(source), options, batch)
        preparing, network, finding = _answer(runtime, shown, decoding)
        spent.append([1000 * value for value in (reading + preparing, network, finding)])
    read_ms, network_ms, decode_ms = np.median(spent[1:], axis=0).tolist()  # the first step warms up
    return read_ms, network_ms, decode_ms


def _read(runtime: Runtime, path: Path, options: PredictOptions, batch: int) -> tuple[list[tuple[NDArray[Any], Frame]], float]:
    """An image `batch` times, or that many of its tiles, as the network sees them, and the seconds that reading took for each.

    All tiles are read: the first of an image that must be decoded whole takes nearly all the time.
    """
    card, size = runtime.card, image_size(path)
    start = time.perf_counter()
    if not _is_tiled(runtime, size, options):
        shown = [fit(card, read(path, max_pixels=options.max_pixels)) for _ in range(batch)]
        return shown, (time.perf_counter() - start) / batch
    tiles = lay(card, size, tile_size(card, options), options)
    with (
        open_scan(path, max_pixels=options.max_pixels) as scan,
        closing(views(scan, tiles, card, local=True, most=1)) as seen,
    ):
        shown = list(islice(seen, batch))
        deque(seen, maxlen=0)
    return shown, (time.perf_counter() - start) / len(tiles)


def _answer(runtime: Runtime, shown: Sequence[tuple[NDArray[Any], Frame]], options: DecodeOptions) -> list[float]:
    """Seconds of normalising, of the network and of decoding, for each view."""
    images, frames = [image for image, _ in shown], [frame for _, frame in shown]
    marks = [time.perf_counter()]
    if getattr(runtime, "takes_pixels", False):
        network = partial(cast(PixelRuntime, runtime).run_pixels, images, options)
    else:
        network = partial(runtime.run, prepared(runtime, images))
    marks.append(time.perf_counter())
    outputs = network()
    marks.append(time.perf_counter())
    decode(outputs, frames, runtime.card, options)
    marks.append(time.perf_counter())
    seconds: list[float] = (np.diff(marks) / len(shown)).tolist()
    return seconds
