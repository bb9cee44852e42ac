"""Scores of semantic maps: pixel accuracy, IoU, Dice, and the boundary measures of `pelagia.metrics.boundary`.

Every score is computed from counts of pixels, and the counts are summed over the data set: the IoU of a class is that of all its
pixels together, not a mean over images (the rule of Pascal VOC and Cityscapes), and the boundary measures take all its boundary
pixels together (Csurka et al. average over images instead). Sums of whole numbers are the same in any order, so a scan that does
not fit into memory, counted window by window, gives exactly the numbers of the whole.

    tally = SemanticTally(classes=3)
    for truth, predicted in pairs:
        tally.add(truth, predicted)
    print(tally.result())
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pelagia.core.types import IGNORE_INDEX, Category, Int, Mask, SemanticMap
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.boundary import BOUNDARY_COUNTS, DEFAULT_BOUNDARY, BoundaryOptions, Codes, Window, boundary_counts, halo
from pelagia.metrics.semantic_result import SemanticResult

__all__ = ["LabelReader", "SemanticTally", "evaluate_semantic", "tally_scan"]

#: Gives the labels of rows y0 to y1 and columns x0 to x1 (ends excluded) of a scan: (y0, y1, x0, x1) -> [y1 - y0, x1 - x0].
LabelReader: TypeAlias = Callable[[int, int, int, int], NDArray[Any]]

#: More classes than this would need more than 128 MiB for their confusion.
_MOST_CLASSES = 4096

#: Pixels counted at once, which keeps the pairs of labels (8 bytes a pixel) in the cache.
_COUNTED_AT_ONCE = 1 << 18

#: Side of the windows in which `evaluate_semantic` counts; smaller images are counted in one piece.
_WINDOW = 4096


class SemanticTally:
    """Adds up how predicted label maps agree with true ones, image by image or window by window.

    A pixel counts unless its true label is `ignore_index`. A predicted `ignore_index` on a counted pixel says "no class": it is
    wrong, and stands in the confusion's last column, `none`. Any other value outside 0 to C - 1 is an error, in the truth
    anywhere, in a prediction on counted pixels.

    Args:
        classes: number of classes, C.
        ignore_index: label of the pixels that are not scored; no class.
        boundary: widths of the boundary measures; None leaves them out, which is several times faster and needs no context.

    Raises:
        OptionError: no class, too many, or an `ignore_index` that is one of them.
    """

    def __init__(
        self, classes: int, *, ignore_index: int = IGNORE_INDEX, boundary: BoundaryOptions | None = DEFAULT_BOUNDARY
    ) -> None:
        if not 1 <= classes <= _MOST_CLASSES:
            raise OptionError(f"classes must be a number from 1 to {_MOST_CLASSES}, got {classes}")
        if 0 <= ignore_index < classes:
            raise OptionError(
                f"ignore_index {ignore_index} is one of the {classes} classes; choose a label that no class has, such as 65535"
            )
        self.classes, self.ignore_index, self.boundary = classes, ignore_index, boundary
        self._images = 0
        self._sums: dict[int | None, Int] = {}  # image -> [C, C + 1 + 7]: confusion, then boundary counts

    def add(
        self,
        truth: NDArray[Any],
        predicted: NDArray[Any],
        *,
        core: tuple[slice, slice] | None = None,
        origin: tuple[int, int] = (0, 0),
        shape: tuple[int, int] | None = None,
        image: int | None = None,
        where: str | None = None,
    ) -> None:
        """Count the pixels of an image, or of a window of one.

        Each pixel of an image must be in one core only; that is the caller's duty, which `tally_scan` takes over.

        Args:
            truth, predicted: [H, W] labels, integers.
            core: rows and columns of the pixels that are counted, in the window; None for all. The others are context for the
                boundary measures: at least `halo` pixels on each side, unless the image ends before.
            origin: row and column of the window's first pixel in the image.
            shape: height and width of the image; None says that the window is the image.
            image: index of the image, 0 or more; its sums are then kept apart (8 C (C + 8) bytes) and `result` can weight them.
            where: name of the image in errors; by default its index.

        Raises:
            EvaluationError: arrays that do not fit together or hold values that are no label; nothing is counted then.
            OptionError: a window outside the image, or with too little context.
        """
        if image is not None and (not isinstance(image, (int, np.integer)) or image < 0):
            raise OptionError(f"image must be an index, 0 or more, got {image}")
        where = f"image {image}" if where is None and image is not None else where
        truth, predicted = _labels(truth, "truth", where), _labels(predicted, "prediction", where)
        _check_sizes(truth, predicted, where)
        window = _window((truth.shape[0], truth.shape[1]), core, origin, shape, self.boundary)
        codes = self._codes(truth, 0), self._codes(predicted, self.classes + 1)
        sums = np.zeros((self.classes, self.classes + 1 + len(BOUNDARY_COUNTS)), dtype=np.int64)
        sums[:, : self.classes + 1] = self._confusion((truth, predicted), codes, window, where)
        if self.boundary is not None:
            known = np.where(codes[0] == 0, codes[0], codes[1])
            sums[:, self.classes + 1 :] = boundary_counts(codes[0], known, self.classes, window, self.boundary)
        self._put(None if image is None else int(image), sums)
        # The image is counted with its first pixel, which is in one of its windows only.
        self._images += window.origin[0] + window.core[0].start == 0 and window.origin[1] + window.core[1].start == 0

    def merge(self, other: SemanticTally) -> None:
        """Add the counts of another tally, made with the same options; an image index means the same image in both.

        Raises:
            EvaluationError: the options differ.
        """
        for name in ("classes", "ignore_index", "boundary"):
            own, others = getattr(self, name), getattr(other, name)
            if own != others:
                raise EvaluationError(f"tallies of different {name} cannot be merged: {own} and {others}")
        for image, sums in list(other._sums.items()):
            self._put(image, sums)
        self._images += other._images

    def result(self, weights: ArrayLike | None = None, *, categories: Sequence[Category] | None = None) -> SemanticResult:
        """The scores of all that was counted.

        Args:
            weights: [N] how often each image counts, in the order of their indices (for a bootstrap: how often it was drawn);
                needs every `add` to have named its `image`. None counts everything once.
            categories: C, their names and ids; None for numbers.

        Raises:
            OptionError: weights or categories do not fit.
        """
        sums: NDArray[Any] = np.zeros((self.classes, self.classes + 1 + len(BOUNDARY_COUNTS)), dtype=np.int64)
        if weights is None:
            for part in self._sums.values():
                sums += part
        else:
            stack = self.image_sums()
            sums = np.tensordot(_weights(weights, len(stack)), stack, axes=1)
        return self.from_sums(sums, categories)

    def from_sums(self, sums: NDArray[Any], categories: Sequence[Category] | None = None) -> SemanticResult:
        """The scores of counts [C, C + 8] as `image_sums` gives them for each image: of one of them, or of a weighted sum.

        Raises:
            OptionError: another number of categories.
        """
        categories = [Category(label, str(label)) for label in range(self.classes)] if categories is None else categories
        if len(categories) != self.classes:
            raise OptionError(f"{len(categories)} categories for a tally of {self.classes} classes")
        split = self.classes + 1
        boundary = None if self.boundary is None else sums[:, split:]
        return SemanticResult(tuple(categories), self._images, sums[:, :split], boundary, self.boundary)

    def image_sums(self) -> Int:
        """[N, C, C + 8] the counts of each image, zero for an index not added: confusion [C, C + 1], then `BOUNDARY_COUNTS`.

        Raises:
            OptionError: something was added without `image`.
        """
        if None in self._sums:
            raise OptionError("some pixels were added without an image index, so images cannot be told apart; give image=")
        count = max((image for image in self._sums if image is not None), default=-1) + 1
        stack = np.zeros((count, self.classes, self.classes + 1 + len(BOUNDARY_COUNTS)), dtype=np.int64)
        for image, sums in self._sums.items():
            stack[image] = sums
        return stack

    def _put(self, image: int | None, sums: Int) -> None:
        self._sums[image] = self._sums[image] + sums if image in self._sums else sums.copy()

    def _codes(self, labels: NDArray[Any], ignored: int) -> Codes:
        """Labels 0 to C - 1 -> 1 to C, the ignore index -> `ignored`, all others -> C + 2."""
        other = self.classes + 2
        kind: np.dtype[Any] = np.dtype(np.uint8 if other < np.iinfo(np.uint8).max else np.uint16)
        codes: NDArray[Any]
        if labels.dtype not in (np.uint8, np.uint16):
            wide = labels.astype(np.int64)
            codes = np.where((wide >= 0) & (wide < self.classes), wide + 1, other)
            codes[wide == self.ignore_index] = ignored
            return codes.astype(kind)
        table = np.full(np.iinfo(labels.dtype).max + 1, other, dtype=kind)
        known = min(self.classes, len(table))
        table[:known] = np.arange(1, known + 1)
        if 0 <= self.ignore_index < len(table):
            table[self.ignore_index] = ignored
        codes = table[labels]
        return codes

    def _confusion(
        self, labels: tuple[NDArray[Any], NDArray[Any]], codes: tuple[Codes, Codes], window: Window, where: str | None
    ) -> Int:
        """[C, C + 1] of the core, by one count of pairs of codes."""
        width = self.classes + 3
        truth, predicted = (item[window.core] for item in codes)
        pairs = np.zeros(width * width, dtype=np.int64)
        rows = max(max(_COUNTED_AT_ONCE, width * width) // truth.shape[1], 1)
        for top in range(0, len(truth), rows):
            pair = truth[top : top + rows].astype(np.intp) * width + predicted[top : top + rows]
            pairs += np.bincount(pair.ravel(), minlength=width * width)
        counts = pairs.reshape(width, width)
        if counts[-1].any():
            raise EvaluationError(self._stranger("truth", labels[0], codes[0] == width - 1, window), where=where)
        if counts[1:-2, -1].any():
            wrong = (codes[1] == width - 1) & (codes[0] != 0)
            raise EvaluationError(self._stranger("prediction", labels[1], wrong, window), where=where)
        return counts[1:-2, 1:-1]

    def _stranger(self, what: str, labels: NDArray[Any], wrong: Mask, window: Window) -> str:
        """The message on the first label of the core that is none."""
        row, column = np.argwhere(wrong[window.core])[0].tolist()
        label = labels[window.core][row, column]
        row += window.origin[0] + window.core[0].start
        column += window.origin[1] + window.core[1].start
        return (
            f"the {what} holds the label {label} at row {row}, column {column}, but there are {self.classes} classes: "
            f"expected 0 to {self.classes - 1}, or {self.ignore_index} for none"
        )


def tally_scan(
    truth: LabelReader,
    predicted: LabelReader,
    shape: tuple[int, int],
    tally: SemanticTally,
    tile: int = 2048,
    *,
    image: int | None = None,
    where: str | None = None,
) -> None:
    """Add a scan to `tally` window by window; the counts are exactly those of `tally.add` on the whole.

    Args:
        truth, predicted: give the labels of a part of the scan.
        shape: height and width of the scan.
        tile: side of the squares that are counted at a time; with boundary measures a window is up to 2 `halo` larger.
        image, where: as in `SemanticTally.add`.

    Raises:
        OptionError: `tile` or `shape` below 1.
        EvaluationError: see `SemanticTally.add`, or a part of another size than asked for. What was counted before stays.
    """
    height, width = shape
    if tile < 1 or height < 1 or width < 1:
        raise OptionError(f"tile and shape must be at least 1, got {tile} and {_size(shape)}", where=where)
    for rows, core_rows in _steps(height, tile, halo(tally.boundary, shape)):
        for columns, core_columns in _steps(width, tile, halo(tally.boundary, shape)):
            parts = []
            for reader, what in ((truth, "truth"), (predicted, "prediction")):
                part = np.asarray(reader(rows.start, rows.stop, columns.start, columns.stop))
                if part.shape != (len(rows), len(columns)):
                    raise EvaluationError(
                        f"the reader of the {what} gave {_size(part.shape)} labels for rows {rows.start} to {rows.stop}, "
                        f"columns {columns.start} to {columns.stop}; it must give [{len(rows)}, {len(columns)}]",
                        where=where,
                    )
                parts.append(part)
            core, origin = (core_rows, core_columns), (rows.start, columns.start)
            tally.add(parts[0], parts[1], core=core, origin=origin, shape=shape, image=image, where=where)


def evaluate_semantic(
    truths: Sequence[SemanticMap],
    predictions: Sequence[SemanticMap],
    categories: Sequence[Category],
    *,
    ignore_index: int = IGNORE_INDEX,
    boundary: BoundaryOptions | None = DEFAULT_BOUNDARY,
) -> SemanticResult:
    """Score predicted label maps against true ones, one `SemanticMap` of each per image. Large maps are counted in windows.

    Args:
        categories: C, in the order of the labels.
        ignore_index, boundary: as in `SemanticTally`.

    Raises:
        EvaluationError: other numbers of maps, other sizes, or a label without category.
        OptionError: see `SemanticTally`.
    """
    tally = tally_maps(truths, predictions, len(categories), ignore_index=ignore_index, boundary=boundary)
    return tally.result(categories=categories)


def tally_maps(
    truths: Sequence[SemanticMap],
    predictions: Sequence[SemanticMap],
    classes: int,
    *,
    ignore_index: int = IGNORE_INDEX,
    boundary: BoundaryOptions | None = DEFAULT_BOUNDARY,
) -> SemanticTally:
    """The sums that `evaluate_semantic` reads, image by image, so that images can be weighted.

    Raises:
        EvaluationError, OptionError: see `evaluate_semantic`.
    """
    if len(truths) != len(predictions):
        raise EvaluationError(f"{len(predictions)} predictions for {len(truths)} images; give one SemanticMap per image")
    tally = SemanticTally(classes, ignore_index=ignore_index, boundary=boundary)
    for position, (truth, predicted) in enumerate(zip(truths, predictions, strict=True)):
        where = f"image {position}"
        true_labels, labels = _labels(truth.labels, "truth", where), _labels(predicted.labels, "prediction", where)
        _check_sizes(true_labels, labels, where)
        shape = true_labels.shape[0], true_labels.shape[1]
        tally_scan(_reader(true_labels), _reader(labels), shape, tally, _WINDOW, image=position, where=where)
    return tally


def _reader(labels: NDArray[Any]) -> LabelReader:
    return lambda y0, y1, x0, x1: labels[y0:y1, x0:x1]


def _steps(length: int, tile: int, context: int) -> Iterator[tuple[range, slice]]:
    """Along one axis: the window in the scan, and its core in the window."""
    for start in range(0, length, tile):
        stop = min(start + tile, length)
        window = range(max(start - context, 0), min(stop + context, length))
        yield window, slice(start - window.start, stop - window.start)


def _labels(labels: NDArray[Any], what: str, where: str | None) -> NDArray[Any]:
    array = np.asarray(labels)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "bui":
        raise EvaluationError(
            f"the {what} must be labels [H, W] of an integer type, not empty; got {list(array.shape)} of {array.dtype}",
            where=where,
        )
    return array


def _check_sizes(truth: NDArray[Any], predicted: NDArray[Any], where: str | None) -> None:
    if truth.shape != predicted.shape:
        raise EvaluationError(
            f"the prediction has {_size(predicted.shape)} labels (height x width), the truth {_size(truth.shape)}; "
            "bring it to the size of the image first, without interpolation",
            where=where,
        )


def _weights(weights: ArrayLike, count: int) -> NDArray[Any]:
    """[N], int64 if they are whole so that the sums stay so."""
    values = np.asarray(weights)
    if values.shape != (count,):
        raise OptionError(f"weights must have shape [{count}], one per image, got {list(values.shape)}")
    if values.dtype.kind not in "biuf" or not (np.isfinite(values).all() and (values >= 0).all()):
        raise OptionError("weights must be numbers, 0 or more")
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)


def _window(
    size: tuple[int, int],
    core: tuple[slice, slice] | None,
    origin: tuple[int, int],
    shape: tuple[int, int] | None,
    options: BoundaryOptions | None,
) -> Window:
    """The window of `size`, checked."""
    shape = size if shape is None else shape
    core = (slice(None), slice(None)) if core is None else core
    need = halo(options, shape)
    parts = []
    for length, part, start, whole in zip(size, core, origin, shape, strict=True):
        if start < 0 or start + length > whole:
            raise OptionError(f"a window of {_size(size)} pixels from {origin} does not lie in an image of {_size(shape)}")
        low, high, step = part.indices(length)
        if step != 1 or low >= high:
            raise OptionError(f"core must be two slices of step 1 that hold a pixel of the window of {_size(size)}, got {core}")
        if (low < need and start > 0) or (length - high < need and start + length < whole):
            raise OptionError(
                f"the boundary measures need {need} pixels of context around the core {core} of a window of {_size(size)}; "
                "widen the window by halo(), or leave them out with boundary=None"
            )
        parts.append(slice(low, high))
    return Window(origin, shape, (parts[0], parts[1]))


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
