"""What a user is told while images are predicted: how many tiles of a large one are done, what was chosen without being asked,
and that intensities go beyond what the model was made for.

Tiles are counted where they go through the network, so that every way of tiling is watched alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.scan import Scan
from pelagia.decode import DecodeOptions
from pelagia.infer.dense import MapPlan, plan_map, why_not_exact
from pelagia.infer.options import PredictOptions
from pelagia.infer.progress import Advance
from pelagia.infer.runtimes import PaddedRuntime, PixelRuntime, Runtime, lanes
from pelagia.infer.tiled import tile_total
from pelagia.infer.tiles import lay_tiles
from pelagia.infer.views import overlap_of, tile_size

__all__ = ["Watch"]


class Watch:
    """Watches the images of a run.

    Args:
        advance: called with 0 steps and a note after each step of the network.
        tell: called with a sentence for each choice that was made without being asked and changes results, and for intensities
            beyond the window of the model; once a run.
    """

    def __init__(self, advance: Advance, tell: Callable[[str], None]) -> None:
        self._advance, self._tell = advance, tell
        self._told: set[str] = set()
        self._telling = Lock()

    def intensities(self, card: ModelCard, kind: np.dtype[Any], path: Path | None) -> None:
        """Tell of the first image of 16 bits if all that the window of the model holds are 8; any thread may call it."""
        high = card.normalisation.high
        if kind == np.uint16 and high <= 255:
            self._tell_once(
                "intensities",
                f"{_name(path)} has 16 bits, and to this model all intensities above {high:g} are white; "
                "train on images of 16 bits, whose range is then measured, or save these with 8",
            )

    def _tell_once(self, key: str, sentence: str) -> None:
        with self._telling:
            if key not in self._told:
                self._told.add(key)
                self._tell(sentence)

    def over(self, runtime: Runtime, scan: Scan, options: PredictOptions) -> Runtime:
        """The runtime by which a scan that is tiled is to be predicted, so that it is watched.

        Raises:
            OptionError: the scan cannot be tiled as the options ask.
        """
        card, size = runtime.card, _size(scan)
        tile = tile_size(card, options)
        if card.task == "semantic":
            plan = plan_map(runtime, scan, tile, options)
            total, chosen = _map_tiles(plan), _blend_chosen(plan, card, options)
        else:
            total, chosen = tile_total(card, size, tile, options), _overlap_chosen(card, tile, options)
        for sentence in [*_tiling_chosen(tile, options), *chosen]:
            self._tell_once(sentence, sentence)
        self.intensities(card, scan.dtype, scan.path)
        name = _name(scan.path)
        done, lock = 0, Lock()

        def counted(more: int) -> None:
            nonlocal done
            with lock:
                done += more
                self._advance(0, f"{name}: {done} of {max(done, total)} tiles")

        return cast(Runtime, _Counted(runtime, counted))


class _Counted:
    """A runtime that says how many images have gone through its network, on whichever lane."""

    def __init__(self, runtime: Runtime, counted: Callable[[int], None]) -> None:
        self._runtime, self._counted = runtime, counted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def lanes(self) -> tuple[Runtime, ...]:
        """See `pelagia.infer.runtimes.lanes`."""
        offered = lanes(self._runtime)
        return () if offered[0] is self._runtime else tuple(cast(Runtime, _Counted(lane, self._counted)) for lane in offered)

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        """As the runtime's."""
        runtime = self._runtime
        found = runtime.run(images) if valid is None else cast(PaddedRuntime, runtime).run(images, valid)
        self._counted(len(images))
        return found

    def run_pixels(
        self, images: Sequence[NDArray[Any]], options: DecodeOptions, valid: NDArray[np.int64] | None = None
    ) -> dict[str, NDArray[Any]]:
        """As the runtime's, where it takes pixels."""
        found = cast(PixelRuntime, self._runtime).run_pixels(images, options, valid)
        self._counted(len(images))
        return found


def _name(path: Path | None) -> str:
    return "image" if path is None else path.name


def _map_tiles(plan: MapPlan) -> int:
    """How many tiles a class map takes; where averaged stripes of a very wide scan share tiles, a few more."""
    canvas = plan.canvas
    if plan.way == "hann":
        return len(lay_tiles(canvas.size, canvas.tile, plan.overlap, canvas.stride))
    across, down = (math.ceil(length / side) for length, side in zip(_size(canvas.scan), plan.block, strict=True))
    return across * down


def _size(scan: Scan) -> tuple[int, int]:
    return scan.width, scan.height


def _tiling_chosen(tile: tuple[int, int], options: PredictOptions) -> list[str]:
    if options.tiling != "auto":
        return []
    return [f"large images are predicted in tiles of {tile[0]} x {tile[1]} pixels; --tiling never shrinks them instead"]


def _blend_chosen(plan: MapPlan, card: ModelCard, options: PredictOptions) -> list[str]:
    if options.blend != "auto" or plan.way == "exact":
        return []
    return [
        f"the class map of tiles is averaged (--blend {plan.way}), not exactly that of the whole image: {why_not_exact(card)[0]}"
    ]


def _overlap_chosen(card: ModelCard, tile: tuple[int, int], options: PredictOptions) -> list[str]:
    overlap = overlap_of(card, tile, options)
    if overlap <= round(options.overlap * min(tile)):
        return []
    return [f"tiles overlap by {overlap} pixels, more than --overlap {options.overlap}: the model's typical object needs it"]
