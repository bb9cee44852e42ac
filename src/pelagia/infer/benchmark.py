"""How fast a runtime predicts here, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import numpy as np

from pelagia.core.image import read
from pelagia.decode import decode
from pelagia.errors import ImageError, OptionError
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_files
from pelagia.infer.runtimes import PixelRuntime, Runtime, lanes, prepared, runtime_name
from pelagia.infer.views import fit

__all__ = ["Timing", "measure"]


@dataclass(frozen=True, slots=True)
class Timing:
    """What was measured of one runtime.

    Args:
        runtime: its `runtime_name`.
        batch: images per step; 1 on a CPU, where each core works on an image of its own.
        at_once: images in the network at the same time.
        images: how many were predicted, after a few to warm up.
        images_per_second: from files to objects, as `predict` does it, all cores in use.
        read_ms, network_ms, decode_ms: of one image by itself, one part after the other: reading, fitting and normalising (which
            a GPU does itself); the network on all cores; from raw outputs to objects.
    """

    runtime: str
    batch: int
    at_once: int
    images: int
    images_per_second: float
    read_ms: float
    network_ms: float
    decode_ms: float

    @property
    def shares(self) -> dict[str, float]:
        """Part -> its share of the time of one image by itself, summing to 1."""
        parts = {"reading": self.read_ms, "network": self.network_ms, "decoding": self.decode_ms}
        return {name: value / sum(parts.values()) for name, value in parts.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "shares": self.shares}


def measure(runtime: Runtime, paths: Sequence[Path], options: PredictOptions | None = None, *, seconds: float = 5.0) -> Timing:
    """Predict `paths` over and over for about `seconds`, then the parts of one image for as long.

    Raises:
        OptionError: there is no image, or `seconds` is not positive.
        ImageError: an image cannot be read.
    """
    options = options or PredictOptions()
    if not paths or not seconds > 0:
        raise OptionError("a benchmark needs at least one image and a positive time")
    count = len(lanes(runtime))
    batch = options.batch if count == 1 else 1
    warm = 2 * max(count, batch)
    done, begun, ended = 0, 0.0, 0.0
    for result in predict_files(runtime, cycle(paths), options):
        if result.error is not None:
            raise ImageError(result.error, where=result.path)
        ended = time.perf_counter()
        if done == warm:
            begun = ended
        done += 1
        if begun and ended - begun > seconds and done > warm + batch:
            break
    images = done - warm - 1
    rate = images / (ended - begun)
    return Timing(runtime_name(runtime), batch, count * batch, images, rate, *_parts(runtime, paths, options, batch, seconds))


def _parts(
    runtime: Runtime, paths: Sequence[Path], options: PredictOptions, batch: int, seconds: float
) -> tuple[float, float, float]:
    """Milliseconds of reading, of the network and of decoding an image: medians over steps of `batch` images."""
    card = runtime.card
    decoding = options.decoding(card)
    spent: list[list[float]] = []
    end = time.perf_counter() + seconds
    source: Iterator[Path] = iter(cycle(paths))
    while len(spent) < 2 or time.perf_counter() < end:
        marks = [time.perf_counter()]
        fitted = [fit(card, read(next(source))) for _ in range(batch)]
        images = [image for image, _ in fitted]
        if getattr(runtime, "takes_pixels", False):
            network = partial(cast(PixelRuntime, runtime).run_pixels, images, decoding)
        else:
            network = partial(runtime.run, prepared(runtime, images))
        marks.append(time.perf_counter())
        outputs = network()
        marks.append(time.perf_counter())
        decode(outputs, [frame for _, frame in fitted], card, decoding)
        marks.append(time.perf_counter())
        spent.append([1000 * value / batch for value in np.diff(marks)])
    read_ms, network_ms, decode_ms = np.median(spent[1:], axis=0).tolist()  # the first step warms up
    return read_ms, network_ms, decode_ms
