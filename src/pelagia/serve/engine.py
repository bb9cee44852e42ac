"""From the bytes of an image file to the bytes of an answer; nothing is written, and nothing here knows of HTTP."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from pelagia import __version__
from pelagia.core.image import decode, encode
from pelagia.core.palette import ONE_CLASS, colour, shade
from pelagia.core.scan import Scan, open_pieces
from pelagia.core.types import Instances, PanopticMap, Prediction
from pelagia.errors import ImageError, OptionError
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.preview import picture_size
from pelagia.infer.result_maps import map_pixels, pixels_of
from pelagia.infer.result_names import portable
from pelagia.infer.result_pictures import draw_scan
from pelagia.infer.result_tables import dump
from pelagia.infer.result_values import category_dicts, found_in, image_dict, numbered
from pelagia.infer.runtimes import Runtime, runtime_name
from pelagia.infer.views import must_tile, tile_size
from pelagia.infer.watching import Watch
from pelagia.serve.parameters import Asked

__all__ = ["SCAN_FACTOR", "Answer", "Engine"]

#: Shades of a class, after which they repeat.
_SHADES = 7

#: A TIFF that is read in windows may have so many times the pixels that may be held: a billion by default, which are some 4,000
#: tiles of 640 pixels, and take a CPU minutes.
SCAN_FACTOR = 10

_PNG = "image/png"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's content, its media type, and how many milliseconds its parts took."""

    content: bytes
    media: str
    milliseconds: dict[str, float]


class Engine:
    """A model that answers; any number of threads may ask.

    One image at a time is in the network, which uses all cores; another is decoded or drawn meanwhile. A TIFF in tiles or strips
    that is predicted in tiles is not decoded before, but read in windows as they come into the network.

    Args:
        runtime: the model.
        max_pixels: most pixels that are held at once: of an image that is decoded whole, of a map, of a picture, of a piece of a
            TIFF that is read in windows. Such a TIFF may have `SCAN_FACTOR` times as many.
        tell: called once with a sentence where intensities go beyond what the model was made for.
    """

    def __init__(self, runtime: Runtime, max_pixels: int, tell: Callable[[str], None] = lambda _: None) -> None:
        self._runtime, self._max_pixels = runtime, max_pixels
        self._watch = Watch(lambda *_: None, tell)
        self._alone = Lock()

    def warm_up(self) -> None:
        """Predict a black image, so that the first answer takes no longer than others and a broken model is known at once.

        Raises:
            ModelError: the model fails.
        """
        with self._alone:
            predict_image(self._runtime, np.zeros((64, 64, 3), dtype=np.uint8))

    def facts(self, options: PredictOptions) -> dict[str, Any]:
        """What the model is, as JSON values; `options` are those of requests that choose none."""
        card = self._runtime.card
        classes = category_dicts(card)
        for label, item in enumerate(classes):
            own = colour(label)
            item["colour"] = _hex(own)
            item["shades"] = [_hex(shade(own, step)) for step in range(_SHADES)]
            item["shades_alone"] = [_hex(shade(own, step, ONE_CLASS)) for step in range(_SHADES)]
        return {
            "name": card.name,
            "task": card.task,
            "classes": classes,
            "input_size": list(card.input_size),
            "thresholds": card.thresholds,
            "score": options.decoding(card).score,
            "calibrated": bool(card.calibration),
            "licence": card.licence,
            "source": card.source,
            "runtime": runtime_name(self._runtime),
            "options": options.identity(),
            "pelagia": __version__,
        }

    def answer(self, data: bytes, asked: Asked) -> Answer:
        """Predict the image in `data`, the bytes of a file of any format that `core.image` reads.

        Raises:
            ImageError: it is no image, a broken one or too large.
            OptionError: an option does not fit the model.
            ModelError: the model fails.
        """
        card, name, times = self._runtime.card, portable(asked.name), [time.perf_counter()]
        scan = open_pieces(name, max_pixels=self._max_pixels, data=data)
        with scan or Scan.of(decode(data, max_pixels=self._max_pixels, name=name), Path(name)) as scan:
            self._check_size(scan, asked)
            self._watch.intensities(card, scan.dtype, scan.path)
            times.append(time.perf_counter())
            with self._alone:
                times.append(time.perf_counter())
                found = predict_image(self._runtime, scan, asked.options)
                times.append(time.perf_counter())
            content, media = self._content(scan, numbered(found)[0] if isinstance(found, PanopticMap) else found, asked)
        times.append(time.perf_counter())
        names = ("decode", "wait", "predict", "encode")
        took = {name: 1000 * (end - start) for name, start, end in zip(names, times, times[1:], strict=False)}
        return Answer(content, media, took)

    def _check_size(self, scan: Scan, asked: Asked) -> None:
        told, most = f"{scan.width} x {scan.height} pixels, more than", f"the limit of {self._max_pixels:,}"
        rest = "predict it with `pelagia predict`, or raise the limit (--max-pixels)"
        if scan.width * scan.height > SCAN_FACTOR * self._max_pixels:
            raise ImageError(f"{told} {SCAN_FACTOR} times {most}; {rest}", where=scan.path)
        if self._held((scan.width, scan.height), asked) > self._max_pixels:
            what = "a map, a picture or an image that is not predicted in tiles"
            raise ImageError(f"{told} {most} for {what}; {rest}", where=scan.path)

    def _held(self, size: tuple[int, int], asked: Asked) -> int:
        """Pixels of a scan of that (width, height) that the answer needs at once, beside windows."""
        card, options = self._runtime.card, asked.options
        tiled = must_tile(size, tile_size(card, options), options.tiling, card)
        if not tiled or card.task in ("semantic", "panoptic") or asked.map or asked.answer == "map":
            return math.prod(size)
        return math.prod(picture_size(*size)[1]) if asked.answer == "picture" else 0

    def _content(self, scan: Scan, found: Prediction, asked: Asked) -> tuple[bytes, str]:
        card, size = self._runtime.card, (scan.width, scan.height)
        if asked.answer == "map":
            return self._map(found, size), _PNG
        item = image_dict(found, portable(asked.name), size, card)
        if asked.answer == "picture":
            # From the numbers of the document, as `pelagia predict` draws.
            masks = found.masks if isinstance(found, Instances) else None
            return encode(draw_scan(scan, found_in(item, card, pixels_of(found), masks=masks), card), overwrite=True), _PNG
        if asked.map:
            item["map"] = f"data:{_PNG};base64,{base64.b64encode(self._map(found, size)).decode()}"
        return dump(item).encode(), "application/json"

    def _map(self, found: Prediction, size: tuple[int, int]) -> bytes:
        pixels = map_pixels(found, size)
        if pixels is None:
            raise OptionError(f"the task {self._runtime.card.task!r} has no map; ask for the answer json or picture")
        return encode(pixels, overwrite=True)


def _hex(own: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*own)
