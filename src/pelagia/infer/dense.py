"""The class map of a scan, block by block, put together from tiles.

Three ways, `PredictOptions.blend`:

    exact  the map of the whole scan, for a network that is local (`ModelCard.manifest["receptive_field"]`): each block comes from
           a tile that shows it with the halo beyond which the network does not look
    hann   probabilities of overlapping tiles, averaged with the weights of a Hann window (`pelagia.infer.blend`)
    cut    each block comes from the tile in which it lies deepest: fast, with seams

`auto` is exact where the network is local and a tile is at least four halos wide, so that the work is at most fourfold; a runtime
that takes inputs of any size gets larger ones for it. Otherwise it is hann. Blocks come one by one, none twice, so that what is
held at a time does not depend on the size of the scan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from pelagia.core.ahead import ahead
from pelagia.core.card import ModelCard
from pelagia.core.frame import Frame
from pelagia.core.scan import Scan
from pelagia.core.types import SemanticMap
from pelagia.decode import DecodeOptions, decode
from pelagia.errors import ModelError, OptionError
from pelagia.infer.blend import MapBlock, hann_blocks
from pelagia.infer.canvas import Canvas
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import Runtime, Shared
from pelagia.infer.views import overlap_of

__all__ = ["MapBlock", "MapPlan", "map_blocks", "plan_map", "tiled_map", "why_not_exact"]

#: An input is enlarged while its sides are shorter: activations of a U-Net over ResNet-18 then take about a gigabyte.
_LARGEST: Final = 1536

#: Sides of a block of the map are multiples of it, as tiles of a TIFF must be.
_GRID: Final = 16


@dataclass(frozen=True)
class MapPlan:
    """How a scan is tiled.

    Args:
        way: exact, hann or cut.
        canvas: the scan as the network sees it, with the size of the tiles.
        halo: pixels of the canvas along a cut border of a tile that are not used.
        block: width and height of a block of the map, in pixels of the scan.
        overlap: of tiles that are averaged, in pixels of the canvas.
    """

    way: Literal["exact", "hann", "cut"]
    canvas: Canvas
    halo: int
    block: tuple[int, int]
    overlap: int = 0


def plan_map(runtime: Runtime, scan: Scan, tile: tuple[int, int], options: PredictOptions) -> MapPlan:
    """Which way a scan goes whose tiles show `tile` = (width, height) of its pixels.

    Raises:
        OptionError: the exact way was asked for, and the network is not known to be local or the halo does not fit its input.
    """
    card, canvas = runtime.card, Canvas.of(scan, runtime.card, tile)
    if options.blend in ("auto", "exact"):
        found = _exact(canvas, card, grows=bool(getattr(runtime, "any_size", False)), dear=options.blend == "exact")
        if found is not None:
            return found
        if options.blend == "exact":
            raise OptionError("; ".join(why_not_exact(card)), where=card.name)
    overlap = round(overlap_of(card, tile, options) * canvas.scale)
    if options.blend == "cut":
        halo = overlap // 2
        block = _block(canvas, halo)
        if block is None:
            raise OptionError(f"an overlap of {options.overlap} leaves nothing of a tile; choose less", where=card.name)
        return MapPlan("cut", canvas, halo, block)
    most = min(canvas.tile) - canvas.stride
    return MapPlan("hann", canvas, 0, (512, 512), min(overlap, max(most, 0)))


def _exact(canvas: Canvas, card: ModelCard, *, grows: bool, dear: bool) -> MapPlan | None:
    field = card.manifest.get("receptive_field") or {}
    if not field.get("local"):
        return None
    cell = int(field["cell"])
    # Between the centres of cells two are mixed, so one more must be right, unless pixels are cells.
    halo = int(field["halo"]) + (cell if cell > 1 or canvas.scale != 1 else 0)
    larger = canvas
    while True:
        block = _block(larger, halo)
        # An axis that a tile covers is not cut.
        enough = all(4 * halo <= side for side, whole in zip(larger.tile, larger.size, strict=True) if side < whole)
        # Never beyond the canvas, which so stays what it is.
        width, height = (
            min(side + canvas.stride * (side < _LARGEST), whole) for side, whole in zip(larger.tile, canvas.size, strict=True)
        )
        last = not grows or (width, height) == larger.tile
        if block is not None and (enough or (dear and last)):
            return MapPlan("exact", larger, halo, block)
        if last:
            return None
        larger = replace(canvas, tile=(width, height))


def why_not_exact(card: ModelCard) -> tuple[str, str]:
    """Why tiles do not give the map of the whole scan, and what to do."""
    field = card.manifest.get("receptive_field")
    if field is None:
        return "the file does not say how far the network looks", "train or export it again, or use the blend hann"
    if not field["local"]:
        return "the network looks at its whole input at once, so no tile answers as the whole scan does", "use the blend hann"
    return (
        f"the network looks {field['halo']} pixels beyond what it answers for, too far for its input of {card.input_size[1]} x "
        f"{card.input_size[0]} pixels",
        "use the blend hann, or a checkpoint in place of an exported file",
    )


def _block(canvas: Canvas, halo: int) -> tuple[int, int] | None:
    """Width and height, in pixels of the scan, of blocks that tiles show with their halo wherever they lie."""
    sides = []
    for tile, length in zip(canvas.tile, (canvas.scan.width, canvas.scan.height), strict=True):
        if length * canvas.scale <= tile:
            sides.append(_GRID * math.ceil(length / _GRID))
            continue
        stride = canvas.stride
        before = stride * math.ceil(halo / stride)  # from a multiple of the stride to the tile's begin
        side = _GRID * math.floor(tile / canvas.scale / _GRID)
        while side > 0:
            shown = side * canvas.scale
            on_grid = abs(shown / stride - round(shown / stride)) < 1e-9
            if shown + halo + (before if on_grid else halo + stride) <= tile + 1e-9:
                break
            side -= _GRID
        if side <= 0:
            return None
        sides.append(side)
    return sides[0], sides[1]


def map_blocks(runtime: Runtime, plan: MapPlan, options: PredictOptions, decoding: DecodeOptions) -> Iterator[MapBlock]:
    """The blocks of a class map, each pixel in one, in any order; with probabilities if `decoding.scores`.

    Raises:
        ModelError: the network does not answer with a map of classes.
    """
    width, height = (side + 2 * plan.canvas.margin for side in plan.canvas.tile)
    card = replace(runtime.card, input_size=(height, width))
    area = math.prod(runtime.card.input_size) / math.prod(card.input_size)
    shared = Shared(runtime)
    # On a CPU more images than cores at once only take memory.
    batch = max(int((min(options.batch, shared.count) if shared.alone else options.batch) * area), 1)
    if plan.way == "hann":
        yield from hann_blocks(runtime, plan.canvas, plan.overlap, plan.block, batch, decoding)
        return
    windows = _windows(plan)
    with closing(ahead(plan.canvas.images((offset for offset, _ in _windows(plan)), card), 2 * batch)) as images:
        while chosen := list(islice(windows, batch)):
            frames = [plan.canvas.frame(*offset, window) for offset, window in chosen]
            found = _maps(runtime, np.stack(list(islice(images, len(chosen)))), frames, card, decoding)
            for (_, (x, y, _, _)), item in zip(chosen, found, strict=True):
                yield MapBlock(x, y, item.labels, item.scores)


def _windows(plan: MapPlan) -> Iterator[tuple[tuple[int, int], tuple[int, int, int, int]]]:
    """Row by row: where a tile begins on the canvas, and the window x1, y1, x2, y2 of the scan that it answers for."""
    canvas = plan.canvas
    sizes = (canvas.scan.width, canvas.scan.height)
    axes = []
    for length, side, tile, whole in zip(sizes, plan.block, canvas.tile, canvas.size, strict=True):
        starts = range(0, length, side)
        # The small number keeps a product such as 0.3 * 640 from falling below a multiple of the stride.
        begins = [canvas.stride * math.floor((start * canvas.scale - plan.halo) / canvas.stride + 1e-9) for start in starts]
        axes.append(
            [
                (min(max(begin, 0), whole - tile), start, min(start + side, length))
                for begin, start in zip(begins, starts, strict=True)
            ]
        )
    for (y, top, bottom), (x, left, right) in product(axes[1], axes[0]):
        yield (x, y), (left, top, right, bottom)


def _maps(
    runtime: Runtime, images: NDArray[np.float32], frames: list[Frame], card: ModelCard, decoding: DecodeOptions
) -> list[SemanticMap]:
    found = decode(runtime.run(images), frames, card, decoding)
    maps = [item for item in found if isinstance(item, SemanticMap)]
    if len(maps) < len(frames):
        raise ModelError(f"the task {card.task!r} does not answer with a map of classes", where=card.name)
    return maps


def tiled_map(
    runtime: Runtime, scan: Scan, tile: tuple[int, int], options: PredictOptions, decoding: DecodeOptions
) -> SemanticMap:
    """The class of every pixel of a scan in memory, and with `decoding.scores` the probability of each class."""
    plan = plan_map(runtime, scan, tile, options)
    count = len(runtime.card.categories)
    labels = np.zeros((scan.height, scan.width), dtype=np.uint8)
    scores = np.zeros((count, *labels.shape), dtype=np.float32) if decoding.scores else None
    for block in map_blocks(runtime, plan, options, decoding):
        rows, columns = block.place
        labels[rows, columns] = block.labels
        if scores is not None and block.scores is not None:
            scores[:, rows, columns] = block.scores
    return SemanticMap(labels, scores, plan.way)
