"""Label images: instance masks (a number per object, 0 = background) and semantic masks (a class per pixel, 255 = ignore).

The images lie in `images`, the label images under the same stems in a folder such as `instances`, `masks` or `semantic`; list
files `train.txt`, `val.txt` name the splits. A YAML file with `train: {images, masks}` and `classes` works as well.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pelagia.core import masks as core_masks
from pelagia.core.lazy import resolve
from pelagia.core.types import IGNORE_INDEX, Category, MaskCrop
from pelagia.data.dataset import Dataset
from pelagia.data.formats.common import Collector, Place, ReadOptions, image_files, read_splits, read_text
from pelagia.data.formats.label_write import OBJECTS_FILE, write
from pelagia.data.formats.writing import read_categories
from pelagia.data.formats.yaml_text import load_yaml
from pelagia.data.label_pixels import LABEL_SUFFIXES, page_count, read_label_pixels
from pelagia.errors import FormatError, OptionError

__all__ = ["read", "sniff", "write"]

_IMAGE_FOLDERS = ("images", "image", "imgs")
_INSTANCE_FOLDERS = ("instances", "instance", "instance_masks")
_SEMANTIC_FOLDERS = ("semantic", "masks", "mask", "labels", "label", "annotations")
_Kind: TypeAlias = Literal["instance", "semantic"]


def sniff(path: Path) -> float:
    """0 to 1: how much `path` looks like label images: folders of images and of label images, or a YAML file with both."""
    if path.is_file():
        head = path.read_bytes()[:65536] if path.suffix.lower() in (".yaml", ".yml") else b""
        return 0.9 if (b"masks" in head and b"classes" in head) or b"masks_dir" in head else 0.0
    return 0.6 if _pair(path) is not None else 0.0


def _pair(path: Path) -> tuple[Path, Path, _Kind | None] | None:
    """The folders of images and of labels, and which kind the name tells."""
    images = next((path / name for name in _IMAGE_FOLDERS if (path / name).is_dir()), None)
    if images is None:
        return None
    for name in (*_INSTANCE_FOLDERS, *_SEMANTIC_FOLDERS):
        folder = path / name
        if folder.is_dir() and any(file.suffix.lower() in (*LABEL_SUFFIXES, ".jpg", ".jpeg") for file in image_files(folder)):
            return images, folder, "instance" if name in _INSTANCE_FOLDERS else "semantic"
    return None


@dataclass(slots=True)
class _Source:
    root: Path
    pairs: dict[Path, Path | None]  # image -> label image
    kind: _Kind
    names: dict[int, str] | None  # pixel value -> class
    splits: dict[str, list[Path]]
    base: Path
    notes: list[tuple[str, str]]


def read(path: Path, options: ReadOptions) -> Dataset:
    """The data set in a folder of images and label images, or of a YAML file that names both.

    `options.task` (`instance` or `semantic`) decides what the numbers mean; otherwise the folder's name does. Instance masks have
    one class, `object` unless `options.classes` names it, or the classes of `objects.csv`. In semantic masks a value is a class
    and 255 is ignored; masks of 0 and 255 alone (16 bit: 0 and 65535) are binary, and 255 becomes class 1. Where objects are
    wanted, masks of a folder called `semantic` and binary masks of one not called for instances stay semantic: their values
    number no objects, which `Dataset.with_task` then finds as components.

    Raises:
        FormatError: no label image, or sizes that differ from the images'.
        ImageError: a label image that is broken, in colour, or JPEG.
    """
    source = _yaml_source(path, options) if path.is_file() else _folder_source(path, options)
    labelled = {image: label for image, label in source.pairs.items() if label is not None}
    if not labelled:
        raise FormatError("no image has a label image of the same name", where=path)
    without = [image for image, label in source.pairs.items() if label is None]
    reader = _read_instances if source.kind == "instance" else _read_semantic
    return reader(source, labelled, without, options)


def _folder_source(path: Path, options: ReadOptions) -> _Source:
    pair = _pair(path)
    if pair is None:
        folders = ", ".join((*_INSTANCE_FOLDERS, *_SEMANTIC_FOLDERS))
        raise FormatError(f"expected a folder images beside one of label images ({folders})", where=path)
    images, labels, kind = pair
    if options.images is not None:
        images = options.images
    pairs = _match(images, labels)
    if options.task is not None:
        if options.task not in ("instance", "semantic", "detect", "oriented"):
            raise OptionError(f"label images serve the tasks instance and semantic, not {options.task!r}", where=path)
        classes = kind == "semantic" and (labels.name == "semantic" or _are_binary(pairs.values()))
        kind = "semantic" if options.task == "semantic" or classes else "instance"
    return _Source(path, pairs, kind or "instance", None, {}, images, [])


def _are_binary(labels: Iterable[Path | None]) -> bool:
    """Whether label images hold 0 and the largest value of their type alone."""
    values: set[int] = set()
    for label in labels:
        values |= set() if label is None else set(np.flatnonzero(_histogram(read_label_pixels(label))).tolist())
        if not (values <= {0, IGNORE_INDEX} or values <= {0, 65535}):
            return False
    return max(values, default=0) > 0


def _match(images: Path, labels: Path) -> dict[Path, Path | None]:
    """Image -> the label image of the same relative name or stem."""
    by_stem = {file.relative_to(labels).with_suffix("").as_posix(): file for file in image_files(labels)}
    result: dict[Path, Path | None] = {}
    for file in image_files(images):
        stem = file.relative_to(images).with_suffix("").as_posix()
        matches = (stem, f"{stem}_mask", f"{stem}_label", f"{stem}_labels", f"{stem}_masks", f"{stem}_instances")
        result[file] = next((by_stem[name] for name in matches if name in by_stem), None)
    return result


def _yaml_source(path: Path, options: ReadOptions) -> _Source:
    document = load_yaml(path)
    classes = document.get("classes", document.get("names"))
    if isinstance(classes, list):
        classes = dict(enumerate(classes))
    if not isinstance(classes, dict) or not all(isinstance(key, int) for key in classes):
        raise FormatError("classes must map pixel values to names", where=path)
    pairs: dict[Path, Path | None] = {}
    splits: dict[str, list[Path]] = {}
    notes: list[tuple[str, str]] = []
    chosen: dict[str, tuple[Path, Path]] = {}
    for split in ("train", "val", "test"):
        entry = document.get(split)
        if isinstance(entry, dict) and "images" in entry and "masks" in entry:
            images = options.images or _existing(path, str(entry["images"]), "images", notes)
            chosen[split] = images, _existing(path, str(entry["masks"]), path.stem, notes)
        elif isinstance(entry, str) and isinstance(document.get("masks_dir"), str):
            images = options.images or _existing(path, entry, "images", notes)
            masks = Path(*[document["masks_dir"] if part == "images" else part for part in Path(entry).parts])
            chosen[split] = images, _existing(path, masks.as_posix(), path.stem, notes)
    if not chosen:
        raise FormatError("expected train: {images: folder, masks: folder}", where=path)
    for split, (images, masks) in chosen.items():
        found = _match(images, masks)
        pairs |= found
        splits[split] = list(found)
    if len({images for images, _ in chosen.values()}) < len(chosen):
        notes.append(("yaml.splits", "the splits have the same folder and cannot be told apart; the images are in no split"))
        splits = {}
    base = next(iter(chosen.values()))[0]
    return _Source(path.parent, pairs, "semantic", {int(k): str(v) for k, v in classes.items()}, splits, base, notes)


def _existing(path: Path, entry: str, fallback: str, notes: list[tuple[str, str]]) -> Path:
    """The folder `entry` beside the file `path`; where there is none, the folder `fallback` there, with a note."""
    folder = path.parent / entry
    if folder.is_dir():
        return folder
    other = path.parent / fallback
    if not other.is_dir():
        raise FormatError(f"the folder {entry} does not exist; correct it, or name the images' folder with images=", where=path)
    notes.append(("yaml.folder", f"{entry} does not exist; {other} is taken"))
    return other


def _start(source: _Source, without: list[Path], categories: list[Category], options: ReadOptions) -> Collector:
    out = Collector.of(source.root, "labels", categories, options.ignore_categories if source.kind == "instance" else ())
    for code, text in source.notes:
        out.note("warning", code, text, source.root)
    if without:
        text = f"images have no label image: unlabelled, left out (the first: {without[0].name})"
        out.note("warning", "image.unlabelled", text, source.root, len(without))
    return out


def _add_image(image: Path, label: Path, shape: tuple[int, ...], source: _Source, out: Collector) -> int | None:
    size = out.size_of(image)
    if size is None:
        return None
    if size != (shape[1], shape[0]):
        text = f"the label image has {shape[1]} x {shape[0]} pixels, its image {size[0]} x {size[1]}; they must agree"
        raise FormatError(text, where=label)
    if page_count(label) > 1:
        out.note("warning", "label.pages", "the label image has several pages; the first is read", label)
    name = image.relative_to(source.base).as_posix() if image.is_relative_to(source.base) else image.name
    return out.add_image(name, image, size)


def _splits(source: _Source, rows: Mapping[Path, int], out: Collector) -> dict[str, list[int]]:
    if source.splits:
        return {name: [rows[file] for file in files if file in rows] for name, files in source.splits.items()}
    places = {name: row for row, name in enumerate(out.names)}
    places |= {Path(name).with_suffix("").as_posix(): row for row, name in enumerate(out.names)}
    return read_splits(source.root, places, out)


def _read_instances(source: _Source, labelled: Mapping[Path, Path], without: list[Path], options: ReadOptions) -> Dataset:
    sidecar = read_categories(source.root)
    classes = _object_classes(source.root)
    names = list(options.classes or ()) or ["object"]
    categories = sidecar or [Category(k + 1, name) for k, name in enumerate(names)]
    out = _start(source, without, list(categories), options)
    numbered = {c.name: k for k, c in enumerate(out.categories)} | {c.name: -1 - k for k, c in enumerate(out.ignored)}
    rows: dict[Path, int] = {}
    for image, label in labelled.items():
        pixels = read_label_pixels(label)
        index = _add_image(image, label, pixels.shape, source, out)
        if index is None:
            continue
        rows[image] = index
        of_value = classes.get(out.names[index], {})
        ndimage = resolve("scipy.ndimage", purpose="read label images")
        windows: list[tuple[slice, ...] | None] = [*ndimage.find_objects(pixels)]  # None for a number that is absent
        for value, window in enumerate(windows, start=1):
            if window is None:
                continue
            crop = MaskCrop(window[1].start, window[0].start, pixels[window] == value)
            where = Place(label, id=value)
            name = of_value.get(value)
            if name is not None and name not in numbered:
                raise FormatError(f"{OBJECTS_FILE} names the class {name!r}, which is not stated", where=str(where))
            runs = core_masks.crop_to_rle(crop, *pixels.shape).counts
            out.add(
                index,
                0 if name is None else numbered[name],
                core_masks.bounds(crop),
                where,
                id=value,
                area=float(crop.area),
                runs=runs,
            )
    return out.finish("instance", _splits(source, rows, out))


def _object_classes(root: Path) -> dict[str, dict[int, str]]:
    """Image name -> label value -> class name, from `objects.csv`."""
    path = root / OBJECTS_FILE
    if not path.is_file():
        return {}
    found: dict[str, dict[int, str]] = {}
    for line, row in enumerate(csv.DictReader(io.StringIO(read_text(path))), start=2):
        try:
            found.setdefault(row["image"], {})[int(row["value"])] = row["class"]
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError("expected the columns image, value, class", where=f"{path}:{line}") from error
    return found


def _read_semantic(source: _Source, labelled: Mapping[Path, Path], without: list[Path], options: ReadOptions) -> Dataset:
    values: set[int] = set()
    shapes: dict[Path, tuple[int, ...]] = {}
    for image, label in labelled.items():
        pixels = read_label_pixels(label)
        shapes[image] = pixels.shape
        values |= set(np.flatnonzero(_histogram(pixels)).tolist())
    table, categories, binary = _classes(source, values, options)
    out = _start(source, without, categories, options)
    if binary:
        text = "the masks hold 0 and the largest value alone: read as background and one class (255 is else the value to ignore)"
        out.note("info", "mask.binary", text, source.root)
    unknown = sorted(values - set(table))
    if unknown:
        text = f"pixel values {unknown[:10]} stand for no class; name all classes with --classes (classes=)"
        raise FormatError(text, where=source.root)
    rows: dict[Path, int] = {}
    files = []
    for image, label in labelled.items():
        index = _add_image(image, label, shapes[image], source, out)
        if index is not None:
            rows[image] = index
            files.append(out.relative(label))
    same = all(value == label for value, label in table.items())
    return out.finish(
        "semantic",
        _splits(source, rows, out),
        mask_files=tuple(files),
        mask_values=None if same else tuple(sorted(table.items())),
    )


def _histogram(pixels: NDArray[Any]) -> NDArray[np.int64]:
    return np.bincount(pixels.reshape(-1), minlength=256)


def _classes(source: _Source, values: set[int], options: ReadOptions) -> tuple[dict[int, int], list[Category], bool]:
    """Pixel value -> label, the classes, and whether the masks are binary, 0 and the largest of their type."""
    most = max(values, default=0)
    binary = values <= {0, most} and most in (IGNORE_INDEX, 65535) and source.names is None
    sidecar = read_categories(source.root)
    names = source.names
    if names is None and options.classes is not None:
        names = dict(enumerate(options.classes))
    if names is None and sidecar is not None:
        return {k: k for k in range(len(sidecar))} | {IGNORE_INDEX: IGNORE_INDEX}, list(sidecar), False
    if binary:
        names = names or {0: "background", 1: "foreground"}
        if len(names) == 2:
            return {0: 0, most: 1}, [Category(key, name) for key, name in names.items()], True
    if names is None:
        names = {value: f"class_{value}" for value in range(max(values - {IGNORE_INDEX}, default=0) + 1)}
    if len(names) > IGNORE_INDEX:
        raise FormatError(f"{len(names)} classes, but labels from 255 on are taken (255 = ignore)", where=source.root)
    table = {value: label for label, value in enumerate(names)}
    table.setdefault(IGNORE_INDEX, IGNORE_INDEX)
    return table, [Category(value, name) for value, name in names.items()], False
