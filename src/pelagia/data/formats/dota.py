"""DOTA text labels: `x1 y1 x2 y2 x3 y3 x4 y4 class difficulty`, one object per line, in pixels.

Xia et al., "DOTA: A Large-scale Dataset for Object Detection in Aerial Images", 2018. Header lines `imagesource:` and `gsd:` may
come first. Difficulty 0 is easy, 1 difficult, 2 more so; it may be missing. Class names have no spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from pelagia.core import oriented as core_oriented
from pelagia.core.files import write_text
from pelagia.core.types import Category, Float
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding
from pelagia.data.formats.common import (
    Collector,
    Place,
    ReadOptions,
    image_files,
    lines,
    numbers,
    order_classes,
    read_splits,
)
from pelagia.data.formats.writing import (
    Losses,
    WriteOptions,
    decimal,
    place_images,
    read_categories,
    unique_stems,
    write_categories,
)
from pelagia.errors import FormatError

__all__ = ["read", "sniff", "write"]

_FOLDERS = ("labelTxt", "labelTxt-v1.0", "labelTxt-v1.5", "labels")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
_HEADERS = ("imagesource:", "gsd:", "acquisition dates:")


def sniff(path: Path) -> float:
    """0 to 1: how much `path` looks like a DOTA folder: `images` beside `labelTxt`, maybe in split folders."""
    if not path.is_dir():
        return 0.0
    for folder in [path, *(path / split for split in _SPLITS)]:
        for name in _FOLDERS:
            files = islice((folder / name).rglob("*.txt"), 50) if (folder / name).is_dir() else ()
            verdicts = [_looks_right(file) for file in files]
            certain = [verdict for verdict in verdicts if verdict is not None]
            if certain[:1] == [True] or (verdicts and not certain and name.startswith("labelTxt")):
                return 0.92
    return 0.0


def _looks_right(path: Path) -> bool | None:
    """Whether the first object's line is of the kind; None for a file without objects."""
    for line in path.read_bytes()[:65536].decode("utf-8", "replace").lstrip("\ufeff").splitlines():
        tokens = line.split()
        if not tokens or line.strip().lower().startswith(_HEADERS):
            continue
        return len(tokens) >= 9 and all(_is_number(token) for token in tokens[:8]) and not _is_number(tokens[8])
    return None


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


@dataclass(slots=True)
class _Row:
    corners: Float
    name: str
    difficult: bool
    where: Place


def read(path: Path, options: ReadOptions) -> Dataset:
    """The data set in a DOTA folder: `images` and `labelTxt`, with list files for splits, or one such pair per split folder.

    Four corners become the smallest rectangle around them. Difficulty 1 and 2 set the `difficult` flag.

    Raises:
        FormatError: no labels, or a malformed line; with file and line.
    """
    parts = [(name, path / key) for key, name in _SPLITS.items() if _label_folder(path / key) is not None]
    if _label_folder(path) is not None:
        parts = [("", path)]
    if not parts:
        raise FormatError(f"no label folder; expected one of {', '.join(_FOLDERS)} beside images", where=path)
    notes: list[tuple[str, str, Place]] = []
    labels = {folder: _parse_folder(folder, options, notes) for _, folder in parts}
    sidecar = read_categories(path)
    written = {category.name.replace(" ", "_"): category for category in sidecar or ()}
    names = {row.name for files in labels.values() for rows in files.values() for row in rows or ()}
    names = {written[name].name if name in written else name for name in names}
    out = Collector.of(path, "dota", order_classes(names, sidecar, options, path), options.ignore_categories)
    for code, text, where in notes:
        out.note("warning", code, text, where)
    splits: dict[str, list[int]] = {}
    rows_of: dict[str, int] = {}
    for split, folder in parts:
        for file, rows in labels[folder].items():
            size = out.size_of(file)
            if size is None:
                continue
            image = out.add_image(_name(file, options.images or folder / "images", split if len(parts) > 1 else ""), file, size)
            rows_of[file.stem] = rows_of[Path(out.names[image]).with_suffix("").as_posix()] = image
            if split:
                splits.setdefault(split, []).append(image)
            if rows is None:
                out.note("warning", "image.unlabelled", "the image has no label file; taken as background", file)
            for row in rows or ():
                _add(row, image, written, out)
    return out.finish("oriented", splits or read_splits(path, rows_of, out))


def _label_folder(folder: Path) -> Path | None:
    return next((folder / name for name in _FOLDERS if (folder / name).is_dir()), None)


def _name(file: Path, images: Path, split: str) -> str:
    name = file.relative_to(images).as_posix() if file.is_relative_to(images) else file.name
    return f"{split}/{name}" if split else name


def _parse_folder(folder: Path, options: ReadOptions, notes: list[tuple[str, str, Place]]) -> dict[Path, list[_Row] | None]:
    """Image file -> its rows, None where it has no label file."""
    images = options.images or (folder / "images" if (folder / "images").is_dir() else folder)
    labels = _label_folder(folder)
    assert labels is not None
    found: dict[Path, list[_Row] | None] = {}
    used = set()
    for file in image_files(images):
        target = (labels / file.relative_to(images)).with_suffix(".txt")
        used.add(target)
        found[file] = _parse(target, notes) if target.is_file() else None
    orphans = sorted(set(labels.rglob("*.txt")) - used)
    if orphans:
        notes.append(("label.orphan", f"{len(orphans)} label files have no image (the first: {orphans[0].name})", Place(labels)))
    return found


def _parse(path: Path, notes: list[tuple[str, str, Place]]) -> list[_Row]:
    rows = []
    for line, text in lines(path):
        if text.lower().startswith(_HEADERS):
            continue
        where = Place(path, line)
        tokens = text.split()
        if len(tokens) < 9:
            raise FormatError(f"expected 8 coordinates, a class and a difficulty, got {len(tokens)} words", where=str(where))
        corners = numbers(tokens[:8], "the corners", where).reshape(4, 2)
        difficulty, words = 0, tokens[8:]
        if len(words) > 1 and words[-1].lstrip("-").isdigit():
            difficulty, words = int(words[-1]), words[:-1]
        elif len(words) > 1:
            notes.append(("dota.difficulty", f"difficulty {words[-1]!r} is no number; taken as 0", where))
            words = words[:-1]
        rows.append(_Row(corners, " ".join(words), difficulty > 0, where))
    return rows


def _add(row: _Row, image: int, written: dict[str, Category], out: Collector) -> None:
    name = written[row.name].name if row.name in written else row.name
    label = next((k for k, c in enumerate(out.categories) if c.name == name), None)
    if label is None:
        label = -1 - next(k for k, c in enumerate(out.ignored) if c.name == name)
    oriented = core_oriented.from_corners(row.corners[None])[0]
    if not oriented[3] > 0:
        out.note("warning", "box.degenerate", "oriented box without extent; left out", row.where)
        return
    out.add(image, label, core_oriented.bounds(oriented), row.where, oriented=oriented, difficult=row.difficult)


def write(dataset: Dataset, out: Path, options: WriteOptions) -> list[Finding]:
    """Write `dataset` to the folder `out`: `images/`, `labelTxt/*.txt`, list files of the splits, and `categories.json`.

    Data without oriented boxes get them from outlines, or write their upright boxes. Spaces in class names become underscores.
    """
    losses = Losses(out)
    given = dataset.annotations
    for what, present in (("outlines", given.shapes), ("keypoints", given.keypoints)):
        losses.note(what, f"{what} have no place in DOTA labels", 0 if present is None else len(given))
    if dataset.task == "semantic":
        losses.note("semantic", "semantic label images are not written; use --format labels", len(dataset))
    dataset = dataset.with_task("oriented")
    flat = dataset.annotations
    regions = (flat.crowd | flat.ignore) & (flat.ignored_as < 0)
    text = "crowd and ignore regions are written as difficult, the nearest that DOTA has"
    losses.note("flag.region", text, int(np.count_nonzero(regions)))
    if flat.areas is not None:
        losses.note("area", "stated areas are not kept; they are derived again", len(flat), "info")
    losses.note("ids", "ids of objects and images are not kept", len(flat), "info")
    spaced = [c.name for c in (*dataset.categories, *dataset.ignored) if " " in c.name]
    if spaced:
        losses.note("class.space", f"spaces in class names become underscores (the first: {spaced[0]!r})", len(spaced))
    names = unique_stems(dataset.names, losses)
    place_images(dataset, out / "images", names, options.images, losses)
    for index, name in enumerate(names):
        rows = range(int(flat.starts[index]), int(flat.starts[index + 1]))
        write_text((out / "labelTxt" / name).with_suffix(".txt"), "".join(_line(dataset, row) for row in rows))
    _write_lists(dataset, out, names)
    write_categories(out, dataset.categories, dataset.ignored)
    return losses.findings


def _line(dataset: Dataset, row: int) -> str:
    flat = dataset.annotations
    assert flat.oriented is not None
    ignored = int(flat.ignored_as[row])
    category = dataset.ignored[ignored] if ignored >= 0 else dataset.categories[int(flat.labels[row])]
    difficult = flat.difficult[row] or (ignored < 0 and (flat.crowd[row] or flat.ignore[row]))
    corners = core_oriented.to_corners(flat.oriented[row]).reshape(-1).tolist()
    return f"{' '.join(decimal(value) for value in corners)} {category.name.replace(' ', '_')} {int(difficult)}\n"


def _write_lists(dataset: Dataset, out: Path, names: Sequence[str]) -> None:
    for split, rows in dataset.splits.items():
        stems = [Path(names[row]).with_suffix("").as_posix() for row in rows.tolist()]
        write_text(out / f"{split}.txt", "".join(stem + "\n" for stem in stems))
