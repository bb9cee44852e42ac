"""YOLO text labels: boxes, polygons, oriented boxes, keypoints, all in fractions of the image's width and height.

A label file holds one object per line, `class` and then
    box        cx cy w h
    polygon    x1 y1 x2 y2 x3 y3 ...          (3 points or more; parts are joined by bridges of no width)
    oriented   x1 y1 x2 y2 x3 y3 x4 y4        (corners; told from a polygon of 4 points by the task only)
    keypoints  cx cy w h (x y [v]) * K        (`kpt_shape` in data.yaml)
`data.yaml` names the classes and the splits. The label file of `.../images/a/b.jpg` is `.../labels/a/b.txt`; an image without
one, or with an empty one, is background. Fractions refer to the image after its EXIF orientation is applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pelagia.core import oriented as core_oriented
from pelagia.core.image import IMAGE_SUFFIXES
from pelagia.core.types import Category, Float, Task
from pelagia.data.dataset import Dataset
from pelagia.data.formats.common import Collector, Place, ReadOptions, image_files, lines, numbers
from pelagia.data.formats.writing import read_categories
from pelagia.data.formats.yaml_text import load_yaml
from pelagia.errors import FormatError

__all__ = ["NO_SPLIT", "label_file", "plain_name", "read", "sniff"]

_SPLITS = ("train", "val", "valid", "validation", "test")

#: The key of data.yaml under which the writer lists images that are in no split.
NO_SPLIT = "unsplit"

#: A fraction beyond this is no fraction.
_LARGEST_FRACTION = 2.0


def sniff(path: Path) -> float:
    """0 to 1: how much `path` looks like YOLO data: `data.yaml`, a folder with one or with `labels`, or a list of images."""
    if path.is_dir():
        if _yaml_in(path) is not None:
            return 0.9
        if sum(sniff(file) >= 0.9 for file in path.glob("*.y*ml")) > 1:
            return 0.6
        return 0.7 if (path / "labels").is_dir() and next((path / "labels").rglob("*.txt"), None) is not None else 0.0
    if path.suffix.lower() in (".yaml", ".yml"):
        text = path.read_bytes()[:65536]
        return 0.9 if b"names" in text and b"masks" not in text else 0.5
    if path.suffix.lower() == ".txt":
        first = path.read_bytes()[:4096].split(b"\n")[0].strip().lower()
        return 0.8 if first.endswith(tuple(suffix.encode() for suffix in IMAGE_SUFFIXES)) else 0.0
    return 0.0


def _yaml_in(folder: Path) -> Path | None:
    """The data.yaml of a folder, or its only yaml file that names classes and splits."""
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (folder / name).is_file():
            return folder / name
    found = [file for file in sorted(folder.glob("*.y*ml")) if sniff(file) >= 0.9 and b"train" in file.read_bytes()[:65536]]
    return found[0] if len(found) == 1 else None


@dataclass(slots=True)
class _Source:
    """What to read: images per split, classes, and where labels may lie."""

    where: Path
    root: Path
    categories: dict[int, Category]
    splits: dict[str, list[Path]]
    keypoint_shape: tuple[int, int] | None = None
    label_folder: Path | None = None
    notes: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Row:
    image: int
    category: int
    values: Float
    where: Place


def read(path: Path, options: ReadOptions) -> Dataset:
    """The data set of a `data.yaml`, a folder with one, a folder with `images` and `labels`, or a list file of images.

    The task follows from the rows unless `options.task` states it: keypoints by `kpt_shape`, oriented if every row has nine
    numbers (a finding says so), instance if there are polygons, else detect.

    Raises:
        FormatError: a row or the YAML is malformed; with file and line.
    """
    source = _source(path, options)
    categories = list(source.categories.values())
    out = Collector.of(source.root, "yolo", categories, options.ignore_categories)
    for severity, code, text in source.notes:
        out.note("warning" if severity == "warning" else "info", code, text, source.where)
    labels = {c.name: k for k, c in enumerate(out.categories)} | {c.name: -1 - k for k, c in enumerate(out.ignored)}
    number_to_label = {key: labels[category.name] for key, category in source.categories.items()}
    images, splits = _add_images(source, out)
    rows = _rows(images, source, out, number_to_label)
    task = _decide(rows, source, options.task, out)
    for row in rows:
        _add_row(row, task, source, out)
    dataset = out.finish("detect", splits)
    if options.task is None and task == "instance" and dataset.annotations.shapes is None:
        return dataset  # every polygon was degenerate and left out
    return dataset.with_task(task)


def _source(path: Path, options: ReadOptions) -> _Source:
    if path.is_dir():
        found = _yaml_in(path)
        if found is not None:
            return _yaml_source(found, options)
        several = sorted(file.name for file in path.glob("*.y*ml") if sniff(file) >= 0.9)
        if len(several) > 1:
            raise FormatError(f"several YAML files could be meant: {', '.join(several)}; name one", where=path)
        folder = options.images or (path / "images" if (path / "images").is_dir() else path)
        parts = {s: folder / s for s in _SPLITS if (folder / s).is_dir()}
        splits = {_split_name(s): image_files(part) for s, part in parts.items()} or {"": image_files(folder)}
        return _Source(path, path, _named(path, options, None, path), splits)
    if path.suffix.lower() == ".txt":
        return _Source(path, path.parent, _named(path.parent, options, None, path), {"": _from_list(path, path.parent)})
    return _yaml_source(path, options)


def _named(folder: Path, options: ReadOptions, names: Any, where: Path) -> dict[int, Category]:
    """Class number -> category, from `options.classes`, the names in data.yaml, `classes.txt`, or the sidecar."""
    sidecar = {category.name: category for category in read_categories(folder) or ()}
    if options.classes is not None:
        names = list(options.classes)
    elif names is None and sidecar:
        names = list(sidecar)
    elif names is None:
        listing = next((folder / n for n in ("classes.txt", "obj.names", "labels/classes.txt") if (folder / n).is_file()), None)
        if listing is None:
            raise FormatError("class names are not stated; name them with classes=, or write a data.yaml", where=where)
        names = [text for _, text in lines(listing)]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise FormatError("names must be a list of class names or a mapping from number to name", where=where)
    result: dict[int, Category] = {}
    for key, value in names.items():
        if not isinstance(key, int) or isinstance(key, bool):
            raise FormatError(f"names: the class number {key!r} is not a whole number", where=where)
        result[key] = sidecar.get(str(value), Category(key, str(value)))
    if len({category.name for category in result.values()}) < len(result):
        raise FormatError("names: two classes have the same name", where=where)
    return result


def _yaml_source(path: Path, options: ReadOptions) -> _Source:
    document = load_yaml(path)
    categories = _named(path.parent, options, document.get("names"), path)
    source = _Source(path, path.parent, categories, {})
    count = document.get("nc")
    if isinstance(count, int) and count != len(categories):
        source.notes.append(("warning", "yolo.nc", f"nc is {count} but {len(categories)} classes are named; the names count"))
    base = path.parent
    stated = document.get("path")
    if isinstance(stated, str) and stated.strip():
        base = (path.parent / stated).resolve() if stated not in (".", "./") else path.parent
        if not base.is_dir():
            source.notes.append(("warning", "yolo.path", f"the folder path: {stated} does not exist; the file's own is taken"))
            base = path.parent
        source.root = base
    folders: dict[str, list[Path]] = {}
    lists = [key for key in document if key not in _SPLITS and _is_list_file(document[key], base)]
    for key in (*_SPLITS, *lists):
        entries = document.get(key)
        if entries in (None, ""):
            continue
        if not isinstance(entries, str | list) or (isinstance(entries, list) and not all(isinstance(e, str) for e in entries)):
            raise FormatError(f"{key} must be a folder, a list file, or a list of them", where=path)
        for entry in [entries] if isinstance(entries, str) else entries:
            place = _place(entry, base, path, options.images, source)
            folders.setdefault(_split_name(key), []).append(place)
    if not folders:
        raise FormatError("data.yaml names no images: expected train: and val:", where=path)
    if any(note[1] == "yolo.folder" for note in source.notes) and len({tuple(f) for f in folders.values()}) < len(folders):
        text = "the splits cannot be told apart without their folders; the images are in no split"
        source.notes.append(("warning", "yolo.splits", text))
        folders = {"": [place for places in folders.values() for place in places]}
    for name, places in folders.items():
        found = [file for place in places for file in (_from_list(place, base) if place.is_file() else image_files(place))]
        source.splits[name] = list(dict.fromkeys(found))
    shape = document.get("kpt_shape")
    if shape is not None:
        points, size = (int(value) for value in numbers(shape, "kpt_shape", str(path))[:2])
        if size not in (2, 3) or points < 1:
            raise FormatError("kpt_shape must be [number of points, 2 or 3]", where=path)
        source.keypoint_shape = (points, size)
        _name_keypoints(source, document, points, path)
    sibling = path.parent / path.stem
    source.label_folder = sibling if sibling.is_dir() else None
    return source


def _name_keypoints(source: _Source, document: Mapping[str, Any], points: int, path: Path) -> None:
    flip = document.get("flip_idx") or []
    partners = tuple(int(value) for value in numbers(flip, "flip_idx", str(path))) if flip else tuple(range(points))
    if sorted(partners) != list(range(points)):
        raise FormatError(f"flip_idx must hold each of 0 to {points - 1} once", where=path)
    names = tuple(str(name) for name in document.get("kpt_names") or ()) or tuple(f"point_{k}" for k in range(points))
    if len(names) != points:
        raise FormatError(f"kpt_names must hold {points} names", where=path)
    for key, category in source.categories.items():
        if not category.keypoints:
            source.categories[key] = Category(key, category.name, category.supercategory, names, (), partners)


def _place(entry: str, base: Path, path: Path, images: Path | None, source: _Source) -> Path:
    """The folder or list file that an entry means; where it does not exist, the nearest folder above its end that does."""
    if images is not None:
        return images
    candidate = base / entry
    if candidate.exists():
        return candidate
    inside = Path(*[part for part in Path(entry).parts if part != ".."])  # Roboflow writes ../train/images
    if (base / inside).exists():
        source.notes.append(("info", "yolo.entry", f"{entry} does not exist; {base / inside} is taken"))
        return base / inside
    for parent in inside.parents:
        if parent.name and (base / parent).is_dir():
            source.notes.append(("warning", "yolo.folder", f"{entry} does not exist; {base / parent} is taken"))
            return base / parent
    raise FormatError(f"{entry} does not exist in {base}; correct it, or name the folder with images=", where=path)


def _from_list(path: Path, base: Path) -> list[Path]:
    """The images of a list file; `./` is the list's own folder, other relative names are looked for there and in `base`."""
    result = []
    for _, text in lines(path):
        name = text.replace("\\", "/")
        local = path.parent / name
        result.append(local if local.exists() or not (base / name).exists() else base / name)
    return result


def _is_list_file(value: Any, base: Path) -> bool:
    return isinstance(value, str) and value.endswith(".txt") and (base / value).is_file()


def _split_name(key: str) -> str:
    if key == NO_SPLIT:
        return ""
    return "val" if key in ("valid", "validation") else key


def plain_name(file: Path, root: Path) -> str:
    """The image's path below `root` without its last folder `images`, so that a data set reads alike wherever it lies."""
    parts = list((file.relative_to(root) if file.is_relative_to(root) else Path(*file.parts[-2:])).parts)
    if "images" in parts[:-1]:
        del parts[len(parts) - 2 - parts[:-1][::-1].index("images")]
    return "/".join(parts)


def label_file(image: Path) -> Path:
    """`.../images/a/b.jpg` -> `.../labels/a/b.txt`, by the last folder called `images`; beside the image if there is none."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[:-1][::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _add_images(source: _Source, out: Collector) -> tuple[list[tuple[int, Path]], dict[str, list[int]]]:
    """(index, file) of the images that can be read, each once, and the splits."""
    rows: dict[Path, int | None] = {}
    splits: dict[str, list[int]] = {}
    for name, files in source.splits.items():
        for file in files:
            if file not in rows:
                size = out.size_of(file)
                rows[file] = None if size is None else out.add_image(plain_name(file, source.root), file, size)
            row = rows[file]
            if row is not None and name:
                splits.setdefault(name, []).append(row)
    return [(row, file) for file, row in rows.items() if row is not None], splits


def _rows(images: Sequence[tuple[int, Path]], source: _Source, out: Collector, number_to_label: Mapping[int, int]) -> list[_Row]:
    rows: list[_Row] = []
    owner: dict[Path, Path] = {}
    empty = 0
    own_folder = source.label_folder
    if own_folder is not None and any(label_file(file).is_file() for _, file in images):
        own_folder = None
    if own_folder is not None:
        out.note("info", "yolo.labels", f"labels are read from {own_folder}, the folder called like the file", source.where)
    for index, file in images:
        path = label_file(file) if own_folder is None else own_folder / f"{file.stem}.txt"
        if not path.is_file():
            empty += 1
            continue
        if path in owner:
            out.note("warning", "label.shared", f"{file.name} and {owner[path].name} share this label file", path)
        owner[path] = file
        for line, text in lines(path):
            row = _parse(text, index, Place(path, line), number_to_label, out)
            if row is not None:
                rows.append(row)
    if empty:
        out.note("info", "image.unlabelled", "images have no label file: they are background", source.where, empty)
    folders = {path.parent for path in owner}
    orphans = [file for folder in sorted(folders) for file in sorted(folder.glob("*.txt")) if file not in owner]
    orphans = [file for file in orphans if file.name not in ("classes.txt", "train.txt", "val.txt", "test.txt")]
    if orphans:
        text = f"label files have no image (the first: {orphans[0].name})"
        out.note("warning", "label.orphan", text, source.where, len(orphans))
    return rows


def _parse(text: str, image: int, where: Place, number_to_label: Mapping[int, int], out: Collector) -> _Row | None:
    tokens = numbers(text.replace(",", " ").split(), "the row", where)
    if len(tokens) < 5:
        raise FormatError(f"a row needs a class and at least 4 numbers, got {len(tokens)} numbers", where=str(where))
    if tokens[0] != int(tokens[0]) or int(tokens[0]) not in number_to_label:
        text = f"class {tokens[0]:g} is not among the named classes; the object is left out"
        out.note("error", "annotation.category", text, where)
        return None
    return _Row(image, number_to_label[int(tokens[0])], tokens[1:], where)


def _decide(rows: Sequence[_Row], source: _Source, task: Task | None, out: Collector) -> Task:
    if task is not None:
        return task
    counts = {len(row.values) for row in rows}
    if source.keypoint_shape is not None:
        return "keypoints" if counts - {4} else "detect"
    if counts == {8}:
        text = "every row has nine numbers: read as oriented boxes; --task instance reads them as polygons of four points"
        out.note("info", "yolo.oriented", text, source.where)
        return "oriented"
    return "instance" if counts - {4} else "detect"


def _add_row(row: _Row, task: Task, source: _Source, out: Collector) -> None:
    scale = np.array(out.sizes[row.image], dtype=np.float64)
    count = len(row.values)
    _check_fractions(row, count, source)
    if source.keypoint_shape is not None and count > 4:
        points, size = source.keypoint_shape
        if count != 4 + points * size:
            text = f"kpt_shape [{points}, {size}] needs {5 + points * size} numbers in a row, got {count + 1}"
            raise FormatError(text, where=str(row.where))
        keypoints = np.full((points, 3), 2.0)
        keypoints[:, :size] = row.values[4:].reshape(points, size)
        if size == 2:
            keypoints[:, 2] = np.where((keypoints[:, :2] == 0).all(axis=1), 0.0, 2.0)
        keypoints[:, :2] *= scale
        out.add(row.image, row.category, _box(row.values[:4], scale), row.where, keypoints=keypoints)
    elif count == 4:
        out.add(row.image, row.category, _box(row.values, scale), row.where)
    elif count % 2 or count < 6:
        text = f"{count + 1} numbers are neither a box (5), nor an oriented box (9), nor a polygon (an odd number from 7)"
        hint = "; six are a prediction with its score" if count == 5 else ""
        raise FormatError(text + hint, where=str(row.where))
    elif task == "oriented" and count == 8:
        corners = row.values.reshape(4, 2) * scale
        oriented = core_oriented.from_corners(corners[None])[0]
        if oriented[3] <= 0:
            out.note("warning", "box.degenerate", "oriented box without extent; left out", row.where)
            return
        out.add(row.image, row.category, core_oriented.bounds(oriented), row.where, oriented=oriented)
    else:
        out.add_polygon(row.image, row.category, [row.values.reshape(-1, 2) * scale], row.where)


def _check_fractions(row: _Row, count: int, source: _Source) -> None:
    shape = source.keypoint_shape
    values = row.values
    if shape is not None and count > 4 and shape[1] == 3:
        values = np.concatenate([values[:4], np.delete(values[4:], np.s_[2::3])])
    if np.abs(values).max() > _LARGEST_FRACTION:
        text = f"{np.abs(values).max():g} is no fraction of the image; coordinates must be divided by its width and height"
        raise FormatError(text, where=str(row.where))


def _box(values: Float, scale: Float) -> Float:
    centre, half = values[:2] * scale, values[2:4] * scale / 2
    return np.concatenate([centre - half, centre + half])
