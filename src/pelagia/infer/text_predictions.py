"""Predictions in text files, made by any tool: folders of YOLO labels with scores, and the task files of DOTA.

YOLO has a file per image, `<image name without ending>.txt`, and a line per object; coordinates are fractions of the image:

    box        class cx cy w h score
    oriented   class x1 y1 x2 y2 x3 y3 x4 y4 score        (corners)
    outline    class x1 y1 x2 y2 x3 y3 ... score          (3 points or more)

DOTA (Xia et al., "DOTA: A Large-scale Dataset for Object Detection in Aerial Images", 2018) has a file per class and a line per
object; coordinates are pixels:

    Task1_<class>.txt   image score x1 y1 x2 y2 x3 y3 x4 y4        (corners)
    Task2_<class>.txt   image score x1 y1 x2 y2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from pelagia.core import masks as core_masks
from pelagia.core import oriented as core_oriented
from pelagia.core.image import IMAGE_SUFFIXES
from pelagia.core.types import Float, Instances, Int, Mask, MaskCrop, Task
from pelagia.data.dataset import Dataset
from pelagia.data.formats.common import Place, numbers, read_text
from pelagia.data.formats.writing import CATEGORIES_FILE
from pelagia.errors import EvaluationError, FormatError
from pelagia.infer.match_images import ImageStems, check_folder, known_sizes, match_files, refuse_all, stem_of

__all__ = ["read_dota_predictions", "read_yolo_predictions"]

#: Coordinates beyond are no fractions of an image but pixels.
_FRACTIONS = (-0.5, 1.5)

#: A text file of this name beside labels lists the classes.
_CLASS_LIST = "classes.txt"

#: What a line of YOLO must hold.
_LAYOUT: dict[Task, str] = {
    "detect": "class cx cy w h score (6 numbers)",
    "oriented": "class, four corners and score (10 numbers)",
    "instance": "class, three points or more and score (an even number of numbers, 8 or more)",
}

#: Oriented boxes fitted to corners at once, which bounds the memory.
_BOXES_AT_ONCE = 1 << 17

#: In place of a label.
_LEFT_OUT, _STRANGE = -1, -2


def _rows(path: Path, split: Callable[[str], list[str]]) -> tuple[list[int], list[list[str]]]:
    """Numbers of the lines that are not blank, and their words."""
    rows = [(line, words) for line, text in enumerate(read_text(path).split("\n"), start=1) if (words := split(text))]
    return [line for line, _ in rows], [words for _, words in rows]


def _floats(words: Sequence[Sequence[str]], path: Path, lines: Sequence[int]) -> Float:
    """The numbers of all lines, joined."""
    values = _in_bulk(words)
    return _line_by_line(words, path, lines) if values is None else values


def _in_bulk(words: Sequence[Sequence[str]]) -> Float | None:
    """As `_line_by_line`, but None where that would complain."""
    try:
        values = np.fromiter(map(float, chain.from_iterable(words)), np.float64, sum(map(len, words)))
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None


def _line_by_line(words: Sequence[Sequence[str]], path: Path, lines: Sequence[int]) -> Float:
    parts = [numbers(row, "a prediction", Place(path, line)) for line, row in zip(lines, words, strict=True)]
    return np.concatenate([np.zeros(0), *parts])


@dataclass(frozen=True, slots=True)
class _Table:
    """R lines of text files.

    Args:
        files: the files.
        file, line: [R] index of the file and number of the line that a row stands in.
        values: row r holds values[starts[r]:starts[r + 1]].
        starts: [R + 1].
    """

    files: Sequence[Path]
    file: Int
    line: Int
    values: Float
    starts: Int

    def __len__(self) -> int:
        return len(self.file)

    def place(self, row: int) -> str:
        """File and line of a row."""
        return str(Place(self.files[self.file[row]], int(self.line[row])))

    def refuse(self, bad: Mask, text: Callable[[int], str]) -> None:
        """Raise a FormatError that says `text` of the first bad row [R], if there is one."""
        for row in np.flatnonzero(bad)[:1].tolist():
            raise FormatError(text(row), where=self.place(row))


def _read_table(files: Sequence[Path]) -> _Table:
    values: list[Float] = [np.zeros(0)]
    line: list[int] = []
    width: list[int] = []
    count: list[int] = []
    for path in files:
        lines, words = _rows(path, lambda text: text.replace(",", " ").split())
        values.append(_floats(words, path, lines))
        line += lines
        width += map(len, words)
        count.append(len(lines))
    starts = np.zeros(len(line) + 1, dtype=np.int64)
    np.cumsum(np.array(width, dtype=np.int64), out=starts[1:])
    file: Int = np.repeat(np.arange(len(files), dtype=np.int64), np.array(count, dtype=np.int64))
    return _Table(files, file, np.array(line, dtype=np.int64), np.concatenate(values), starts)


def _per_image(dataset: Dataset, image: Int, found: Instances) -> list[Instances]:
    """The R predictions `found` by image [R], in their order, without those whose label is `_LEFT_OUT`."""
    rows = np.flatnonzero(found.labels >= 0)
    rows = rows[np.argsort(image[rows], kind="stable")]
    edges = np.searchsorted(image[rows], np.arange(len(dataset) + 1)).tolist()
    return [found.select(rows[first:last]) for first, last in pairwise(edges)]


def _fit_corners(corners: Float) -> Float:
    """[R, 4, 2] corners -> [R, 5] oriented boxes."""
    starts = range(0, len(corners), _BOXES_AT_ONCE)
    parts = [core_oriented.from_corners(corners[start : start + _BOXES_AT_ONCE]) for start in starts]
    return np.concatenate([np.zeros((0, 5)), *parts])


# YOLO


def read_yolo_predictions(
    folder: str | Path, dataset: Dataset, *, classes: Sequence[str] | None = None
) -> tuple[list[Instances], list[str]]:
    """One `Instances` per image of `dataset`, with scores and in pixels, from the text files in `folder` or its folder `labels`.

    Beside them, the names (without ending) of files for images that `dataset` does not have: they are left out, since it may be a
    split. An image without a file has no prediction. The task of `dataset` says what a line holds: a box for `detect`, corners
    for `oriented`, an outline for `instance`, where six numbers are a box that serves as outline, and two, a class and a score,
    an object without a mask. The box of an outline is that of its points.

    For data in YOLO's format a class number is the one in data.yaml, which `Category.id` keeps. For other formats, and for YOLO
    data with a `categories.json` (their ids are those of another source), it is a position in `dataset.categories`. Objects of
    categories that the data set ignores are left out.

    Args:
        classes: class names in the order of the numbers, where that is another one. Objects of a class that `dataset` does not
            have are then left out.

    Raises:
        FormatError: no such folder, or a line is malformed, without score, or in pixels; with file and line.
        EvaluationError: none of the files is for an image of `dataset`, two are for one, a name means several images, a class
            number is unknown, or predictions for the task have no such files.
        ImageError: `dataset` does not state the size of an image, and its file is missing or broken.
    """
    folder = Path(folder)
    task = dataset.task
    if task not in _LAYOUT:
        raise EvaluationError(f"these files hold predictions for {', '.join(_LAYOUT)}, but the data are for {task}", where=folder)
    check_folder(folder)
    base = folder / "labels" if (folder / "labels").is_dir() else folder
    texts = [file for file in base.rglob("*.txt") if not file.name.startswith(".") and file.name != _CLASS_LIST]
    files, unknown = match_files(texts, base, dataset.names)
    table = _read_table(list(files.values()))
    _check_widths(table, task)
    labels = _labels(table, _class_numbers(dataset, classes, folder), dataset)
    scores = table.values[table.starts[1:] - 1]
    table.refuse((scores < 0) | (scores > 1), lambda row: f"the last number must be the score, 0 to 1, but it is {scores[row]:g}")
    _check_fractions(table, task)
    image: Int = np.array(list(files), dtype=np.int64)[table.file]
    sizes = known_sizes(dataset, np.unique(image).tolist())[image].astype(np.float64)  # [R, 2]
    boxes: Float | None = None
    oriented: Float | None = None
    masks: tuple[MaskCrop, ...] | None = None
    if task == "detect":
        rows = table.values.reshape(-1, 6)
        centre, half = rows[:, 1:3] * sizes, rows[:, 3:5] * sizes / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1)
    elif task == "oriented":
        oriented = _fit_corners(_corners(table) * sizes[:, None])
    else:
        boxes, masks = _outlines(table, sizes)
    found = Instances(labels=labels, boxes=boxes, oriented=oriented, scores=scores, masks=masks)
    return _per_image(dataset, image, found), unknown


def _class_numbers(dataset: Dataset, classes: Sequence[str] | None, where: Path) -> Mapping[int, int]:
    """Number of a class in the files -> label, `_LEFT_OUT` for one that is not scored."""
    if classes is not None:
        labels = {category.name: label for label, category in enumerate(dataset.categories)}
        if not any(name in labels for name in classes):
            given, known = ", ".join(classes[:5]), ", ".join(dataset.class_names[:5])
            raise EvaluationError(f"none of the classes {given} is in the truth, which has: {known}", where=where)
        return {number: labels.get(name, _LEFT_OUT) for number, name in enumerate(classes)}
    if dataset.format == "yolo" and not (dataset.root / CATEGORIES_FILE).is_file():
        ignored = {category.id: _LEFT_OUT for category in dataset.ignored}
        return ignored | {category.id: label for label, category in enumerate(dataset.categories)}
    return {label: label for label in range(len(dataset.categories))}


def _labels(table: _Table, numbering: Mapping[int, int], dataset: Dataset) -> Int:
    number = table.values[table.starts[:-1]]
    table.refuse(number != np.floor(number), lambda row: f"the class must be a whole number, got {number[row]:g}")
    distinct, inverse = np.unique(number, return_inverse=True)
    of_distinct = np.array([numbering.get(int(value), _STRANGE) for value in distinct.tolist()], dtype=np.int64)
    labels: Int = of_distinct[inverse]
    for row in np.flatnonzero(labels == _STRANGE)[:1].tolist():
        named = [(value, dataset.class_names[label]) for value, label in numbering.items() if label >= 0]
        known = ", ".join(f"{value} {name}" for value, name in sorted(named)[:10])
        text = f"class {number[row]:g} is not in the truth, which has: {known}; state the order of the classes with classes="
        raise EvaluationError(text, where=table.place(row))
    return labels


def _check_widths(table: _Table, task: Task) -> None:
    width = np.diff(table.starts)
    if task == "instance":
        wrong = (width % 2 == 1) | (width == 4)
        scoreless = (width % 2 == 1) & (width >= 5)
    else:
        right = 6 if task == "detect" else 10
        wrong, scoreless = width != right, width == right - 1
    hint = "; the score is missing: save predictions with their confidences (save_conf=True)"
    table.refuse(wrong, lambda row: f"expected {_LAYOUT[task]}, got {width[row]}{hint if scoreless[row] else ''}")


def _corners(table: _Table) -> Float:
    """[R, 4, 2] of the lines of oriented boxes."""
    return table.values.reshape(-1, 10)[:, 1:9].reshape(-1, 4, 2)


def _check_fractions(table: _Table, task: Task) -> None:
    if len(table) == 0:
        return
    first, last = table.starts[:-1], table.starts[1:] - 1
    if task == "oriented":  # a long box may reach far out of its image, but its centre is near it
        centre = _corners(table).mean(axis=1)
        low, high = centre.min(axis=1), centre.max(axis=1)
    else:
        coordinates = table.values.copy()
        coordinates[first] = coordinates[last] = 0.0  # class and score
        low, high = np.minimum.reduceat(coordinates, first), np.maximum.reduceat(coordinates, first)
    least, most = _FRACTIONS
    table.refuse(
        (low < least) | (high > most),
        lambda row: (
            f"{high[row] if high[row] > most else low[row]:g} is no fraction of the image; divide coordinates by its width "
            "and height"
        ),
    )
    box = np.diff(table.starts) == 6
    negative = np.zeros(len(table), dtype=np.bool_)
    negative[box] = (table.values[first[box] + 3] < 0) | (table.values[first[box] + 4] < 0)
    table.refuse(negative, lambda row: "the width and height of a box must not be negative")


#: Corners of a box around its centre, in its width and height.
_AROUND = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])


def _outlines(table: _Table, sizes: Float) -> tuple[Float, tuple[MaskCrop, ...]]:
    """[R, 4] boxes in pixels, and the masks."""
    boxes = np.zeros((len(table), 4))
    masks = []
    for row, (width, height) in enumerate(sizes.tolist()):
        ring = table.values[table.starts[row] + 1 : table.starts[row + 1] - 1].reshape(-1, 2)
        if len(ring) == 2:
            ring = ring[0] + ring[1] * _AROUND
        ring = ring * (width, height)
        if len(ring):
            boxes[row, :2], boxes[row, 2:] = ring.min(axis=0), ring.max(axis=0)
        masks.append(core_masks.crop_from_polygon([ring], int(height), int(width)))
    return boxes, tuple(masks)


# DOTA


def read_dota_predictions(folder: str | Path, dataset: Dataset) -> tuple[list[Instances], list[str]]:
    """One `Instances` per image of `dataset`, with scores and in pixels, from the task files in `folder`.

    `Task1_<class>.txt` is read for oriented data, `Task2_<class>.txt` for all other. Beside the predictions, the names of images
    that `dataset` does not have: they are left out, since it may be a split. Images are named without ending. A class may be
    written with underscores for spaces; the file of a category that the data set ignores is left out.

    Raises:
        FormatError: no such folder, or a line is malformed; with file and line.
        EvaluationError: no file for the task, none of the images or a class is not in `dataset`, or a name means several images.
    """
    folder = Path(folder)
    check_folder(folder)
    oriented = dataset.task == "oriented"
    labels = {category.name: label for label, category in enumerate(dataset.categories)}
    labels |= {category.name: _LEFT_OUT for category in dataset.ignored}
    labels = {name.replace(" ", "_"): label for name, label in labels.items()} | labels
    images = _NamedImages(dataset, folder)
    image: list[int] = []
    label: list[int] = []
    parts: list[Float] = [np.zeros((0, 9 if oriented else 5))]
    for file in _task_files(folder, oriented):
        name = file.stem.partition("_")[2]
        if name not in labels:
            known = ", ".join(dataset.class_names[:10])
            raise EvaluationError(f"the class {name!r} of this file is not in the truth, which has: {known}", where=file)
        if labels[name] == _LEFT_OUT:
            continue
        indices, values = _read_task(file, images, oriented)
        image += indices
        label += [labels[name]] * len(indices)
        parts.append(values)
    if images.unknown and max(image) < 0:
        refuse_all(list(images.unknown), dataset.names, folder)
    place = np.array(image, dtype=np.int64)
    inside = place >= 0
    table = np.concatenate(parts)[inside]
    found = Instances(
        labels=np.array(label, dtype=np.int64)[inside],
        boxes=None if oriented else table[:, 1:],
        oriented=_fit_corners(table[:, 1:].reshape(-1, 4, 2)) if oriented else None,
        scores=table[:, 0],
    )
    return _per_image(dataset, place[inside], found), list(images.unknown)


def _task_files(folder: Path, oriented: bool) -> list[Path]:
    wanted, other = ("Task1", "Task2") if oriented else ("Task2", "Task1")
    files = sorted(folder.glob(f"{wanted}_*.txt"))
    if not files:
        kind, rest = ("oriented", "upright") if oriented else ("upright", "oriented")
        hint = f"; the {other} files here hold {rest} ones" if any(folder.glob(f"{other}_*.txt")) else ""
        raise EvaluationError(f"{kind} boxes are read from {wanted}_<class>.txt, and there is none{hint}", where=folder)
    return files


class _NamedImages:
    """Indices of images by the names in the lines; -1 for those that the data set does not have, which are kept in `unknown`."""

    def __init__(self, dataset: Dataset, where: Path) -> None:
        self.unknown: dict[str, None] = {}
        self._stems = ImageStems(dataset.names, where)
        self._known: dict[str, int] = {}

    def find(self, name: str, path: Path, line: int) -> int:
        """The index; `path` and `line` are for errors."""
        index = self._known.get(name)
        if index is None:
            index = self._known[name] = self._look_up(name, Place(path, line))
        return index

    def _look_up(self, name: str, where: Place) -> int:
        index = self._stems.find(name)
        if index is None and name.lower().endswith(IMAGE_SUFFIXES):
            index = self._stems.find(stem_of(name))
        if index is not None:
            return index
        *before, last = name.split()
        if before and _in_bulk([[last]]) is not None:
            text = f"more numbers than a score and coordinates, for {name!r} is no image of the truth"
            raise FormatError(text, where=str(where))
        self.unknown[name] = None
        return -1


def _read_task(path: Path, images: _NamedImages, oriented: bool) -> tuple[list[int], Float]:
    """The image of every line, and its score and coordinates, [R, 9] or [R, 5]."""
    width = 9 if oriented else 5
    lines, words = _rows(path, lambda text: text.strip().rsplit(maxsplit=width))  # what is left may be a name with spaces
    indices = []
    for line, row in zip(lines, words, strict=True):
        if len(row) != width + 1:
            text = f"expected an image, a score and {width - 1} coordinates, got {len(row)} words"
            raise FormatError(text, where=str(Place(path, line)))
        indices.append(images.find(row[0], path, line))
    values = _floats([row[1:] for row in words], path, lines).reshape(-1, width)
    if not oriented:
        for bad in np.flatnonzero((values[:, 3:] < values[:, 1:3]).any(axis=1))[:1].tolist():
            raise FormatError("x2, y2 must not be less than x1, y1", where=str(Place(path, lines[bad])))
    return indices, values
