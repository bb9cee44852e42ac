"""Overlapping tiles of a class map, averaged: no seam where a network that looks everywhere answers a little differently.

A tile of n cells a side weighs its cell i by the Hann window sin^2(pi (i + 1/2) / n), along rows times along columns; weights are
scaled so that those of all tiles that show a cell sum to 1. What is averaged are the probabilities of the classes, on the grid of
the network; their mean is turned back into logits, log p, or log p - log (1 - p) for classes that each say yes or no, and decoded
as any answer is. Where one tile answers alone this gives its own answer.

Blocks are finished row by row within a stripe of columns that is as wide as a fixed budget of memory allows; tiles that two
stripes show are computed for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pelagia.core.ahead import ahead
from pelagia.core.frame import Frame
from pelagia.core.types import SemanticMap
from pelagia.decode import DecodeOptions, decode
from pelagia.decode.pixels import mean_logits, shares
from pelagia.decode.resample import bilinear
from pelagia.errors import ModelError
from pelagia.infer.canvas import Canvas
from pelagia.infer.runtimes import Runtime
from pelagia.infer.tiles import lay_tiles

__all__ = ["MapBlock", "hann_blocks"]

#: Bytes of the sums that a stripe holds.
_BUDGET: Final = 128 << 20


@dataclass(frozen=True, slots=True)
class MapBlock:
    """A rectangle of a class map: its top-left pixel in the scan, `labels` [h, w], and `scores` [K, h, w] if asked for."""

    x: int
    y: int
    labels: NDArray[Any]
    scores: NDArray[np.float32] | None = None

    @property
    def place(self) -> tuple[slice, slice]:
        """Its rows and columns in the map."""
        height, width = self.labels.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


def hann_blocks(
    runtime: Runtime, canvas: Canvas, overlap: int, block: tuple[int, int], batch: int, decoding: DecodeOptions
) -> Iterator[MapBlock]:
    """The blocks of `block` = (width, height) pixels of a class map, from tiles that overlap by `overlap` pixels of the canvas.

    Raises:
        ModelError: the network does not answer with a map of classes.
    """
    tiles = lay_tiles(canvas.size, canvas.tile, overlap, canvas.stride)
    across, down = sorted({tile.x for tile in tiles}), sorted({tile.y for tile in tiles})
    network = _Network(runtime, canvas, decoding)
    # The number of planes and of cells is known from an answer; the first stripe begins with the same tile.
    first = next(network.answers([(0, 0)], 1))
    cell = canvas.tile[0] // first.shape[2]
    rows = first.shape[1] + math.ceil(block[1] * canvas.scale / cell) + 3
    column_bytes = first.shape[0] * rows * 4 * math.ceil(block[0] * canvas.scale / cell)
    width = block[0] * max(_BUDGET // column_bytes, 1)
    for left in range(0, canvas.scan.width, width):
        stripe = _Stripe(canvas, cell, (left, min(left + width, canvas.scan.width)), (across, down), (first.shape[0], rows))
        known = [first] if left == 0 else []
        answers = chain(known, network.answers(stripe.offsets[len(known) :], batch))
        yield from stripe.blocks(network, *block, answers)


class _Network:
    """What a runtime says of tiles, as planes that may be averaged, and means decoded."""

    def __init__(self, runtime: Runtime, canvas: Canvas, decoding: DecodeOptions) -> None:
        self._runtime, self._canvas, self._decoding = runtime, canvas, decoding
        self.card = runtime.card

    def answers(self, offsets: Sequence[tuple[int, int]], batch: int) -> Iterator[NDArray[np.float32]]:
        """[P, h, w] for the tile at each (x, y) of the canvas, in order; read ahead by a thread."""
        with closing(ahead(self._canvas.images(offsets, self.card), 2 * batch)) as images:
            while chosen := list(islice(images, batch)):
                yield from self._planes(np.stack(chosen))

    def _planes(self, images: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        card, (width, height) = self.card, self._canvas.tile
        outputs = self._runtime.run(images)
        found: list[NDArray[np.float32]]
        if card.decoder == "pixels":
            found = [shares(item, card) for item in outputs["logits"]] if "logits" in outputs else []
        else:
            matrix = np.array([[1.0, 0.0, -card.margin], [0.0, 1.0, -card.margin]])
            frames = [Frame(matrix, width, height)] * len(images)
            maps = decode(outputs, frames, card, replace(self._decoding, scores=True))
            found = [item.scores for item in maps if isinstance(item, SemanticMap) and item.scores is not None]
        if len(found) < len(images):
            raise ModelError("the network gives no probabilities of classes to average; use the blend cut", where=card.name)
        if any(height % item.shape[1] or width % item.shape[2] for item in found):
            raise ModelError(f"cells of {found[0].shape[1:]} do not divide a tile of {height} x {width}", where=card.name)
        return found

    def decode(self, planes: NDArray[np.float32], cell: int, corner: tuple[float, float], size: tuple[int, int]) -> SemanticMap:
        """A window of `size` (width, height) of the scan, from mean planes that begin at `corner` (x, y), relative to the window,
        in pixels of the scan."""
        scale = self._canvas.scale
        frame = Frame(np.array([[1 / scale, 0.0, corner[0]], [0.0, 1 / scale, corner[1]]]), *size)
        if self.card.decoder == "pixels":
            card = replace(self.card, margin=0, input_size=(planes.shape[1] * cell, planes.shape[2] * cell))
            found = decode({"logits": mean_logits(planes, card)[None]}, [frame], card, self._decoding)[0]
            assert isinstance(found, SemanticMap)
            return found
        back = frame.inverse
        columns, rows = (
            ((np.arange(count) + 0.5) * back[axis, axis] + back[axis, 2]) / cell - 0.5 for axis, count in enumerate(size)
        )
        scores = np.stack([bilinear(plane, rows, columns) for plane in planes])
        labels = scores.argmax(axis=0).astype(np.uint8)
        return SemanticMap(labels, scores if self._decoding.scores else None)


class _Stripe:
    """The sums of a stripe of columns of the scan, of which a band of rows is held."""

    def __init__(
        self,
        canvas: Canvas,
        cell: int,
        columns: tuple[int, int],
        begins: tuple[Sequence[int], Sequence[int]],
        shape: tuple[int, int],
    ) -> None:
        self._canvas, self._cell, self._columns = canvas, cell, columns
        self._first, last = self._cells(columns[0], columns[1], axis=0)
        width = canvas.tile[0]
        self._across = [x for x in begins[0] if x < last * cell and x + width > self._first * cell]
        self._down = begins[1]
        #: Where the tiles begin that it needs, row by row.
        self.offsets = [(x, y) for y in self._down for x in self._across]
        self._weights = tuple(_weights(begin, side // cell, cell) for begin, side in zip(begins, canvas.tile, strict=True))
        self._band: NDArray[np.float32] = np.zeros((*shape, last - self._first), dtype=np.float32)
        self._top = 0

    def blocks(self, network: _Network, width: int, height: int, answers: Iterator[NDArray[np.float32]]) -> Iterator[MapBlock]:
        """The blocks of the stripe, row by row, from the answers for its `offsets`."""
        limit, y = self._canvas.scan.height, 0
        for number, begin in enumerate(self._down):
            for x in self._across:
                self._add((x, begin), next(answers))
            final = self._down[number + 1] if number + 1 < len(self._down) else self._canvas.size[1]
            while y < limit:
                bottom = min(y + height, limit)
                rows = self._cells(y, bottom, axis=1)
                if rows[1] * self._cell > final:
                    break
                yield from self._finish(network, width, (y, bottom), rows)
                y = bottom
            if y < limit:
                self._drop(min(self._cells(y, y + 1, axis=1)[0], final // self._cell))

    def _cells(self, begin: int, end: int, *, axis: int) -> tuple[int, int]:
        """First and one past the last cell between which pixels `begin` to `end` of the scan are interpolated."""
        low = math.floor((begin + 0.5) * self._canvas.scale / self._cell - 0.5)
        high = math.floor((end - 0.5) * self._canvas.scale / self._cell - 0.5) + 2
        return max(low, 0), min(high, self._canvas.size[axis] // self._cell)

    def _add(self, offset: tuple[int, int], planes: NDArray[np.float32]) -> None:
        left, top = (place // self._cell for place in offset)
        low, high = max(left, self._first), min(left + planes.shape[2], self._first + self._band.shape[2])
        along = self._weights[0][offset[0]][low - left : high - left]
        weights = self._weights[1][offset[1]][:, None] * along
        rows = slice(top - self._top, top - self._top + planes.shape[1])
        self._band[:, rows, low - self._first : high - self._first] += planes[:, :, low - left : high - left] * weights

    def _finish(self, network: _Network, width: int, span: tuple[int, int], rows: tuple[int, int]) -> Iterator[MapBlock]:
        scale, cell = self._canvas.scale, self._cell
        for x in range(self._columns[0], self._columns[1], width):
            right = min(x + width, self._columns[1])
            low, high = self._cells(x, right, axis=0)
            planes = self._band[:, rows[0] - self._top : rows[1] - self._top, low - self._first : high - self._first]
            corner = low * cell / scale - x, rows[0] * cell / scale - span[0]
            found = network.decode(planes, cell, corner, (right - x, span[1] - span[0]))
            yield MapBlock(x, span[0], found.labels, found.scores)

    def _drop(self, top: int) -> None:
        """Forget the rows above row `top` of the cells."""
        gone = top - self._top
        kept = self._band.shape[1] - gone
        for plane in self._band:
            plane[:kept] = plane[gone:].copy()
            plane[kept:] = 0
        self._top = top


def _weights(begins: Sequence[int], count: int, cell: int) -> dict[int, NDArray[np.float32]]:
    """For the tile that begins at each place of an axis the weight of each of its `count` cells; over all tiles they sum to 1."""
    window = np.sin(np.pi * (np.arange(count) + 0.5) / count) ** 2
    total = np.zeros(max(begins) // cell + count)
    for begin in begins:
        total[begin // cell : begin // cell + count] += window
    return {begin: (window / total[begin // cell : begin // cell + count]).astype(np.float32) for begin in begins}
