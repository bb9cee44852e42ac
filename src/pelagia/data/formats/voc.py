"""Pascal VOC XML, one file per image, also with roLabelImg's rotated boxes.

Pixels are numbered from 1 and both ends belong to the box (Everingham et al., "The Pascal Visual Object Classes Challenge",
2010): xmin, xmax stand for the continuous interval [xmin - 1, xmax]. Many tools write 0-based edges instead, [xmin, xmax];
`voc_offset` states which, or judges by the numbers. A rotated box (`robndbox`) is cx, cy, w, h in continuous pixels and an angle
in radians, clockwise.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from pelagia.core import oriented as core_oriented
from pelagia.core.files import write_text
from pelagia.core.types import Float, Task
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding
from pelagia.data.formats.common import Collector, Place, ReadOptions, image_files, number, order_classes, read_splits
from pelagia.data.formats.find import ImageFinder
from pelagia.data.formats.writing import (
    Losses,
    WriteOptions,
    decimal,
    place_images,
    read_categories,
    unique_stems,
    write_categories,
)
from pelagia.errors import FormatError, OptionError

__all__ = ["read", "sniff", "write"]

_XML_LIMIT_BYTES = 256 << 20
_USED = {"name", "difficult", "bndbox", "robndbox", "type"}


def sniff(path: Path) -> float:
    """0 to 1: how much `path` looks like Pascal VOC: a folder of XML, or with `Annotations`, or one XML file."""
    if path.is_file():
        return 0.8 if path.suffix.lower() == ".xml" and b"<annotation" in path.read_bytes()[:4096] else 0.0
    if (path / "Annotations").is_dir() and next((path / "Annotations").rglob("*.xml"), None) is not None:
        return 0.95
    first = next(path.glob("*.xml"), None) if path.is_dir() else None
    return 0.8 if first is not None and b"<annotation" in first.read_bytes()[:4096] else 0.0


@dataclass(slots=True)
class _Object:
    name: str
    difficult: bool
    box: Float | None  # xmin, ymin, xmax, ymax as written
    oriented: Float | None
    where: Place


@dataclass(slots=True)
class _File:
    path: Path
    name: str
    size: tuple[int, int] | None
    objects: list[_Object] = field(default_factory=list)


def read(path: Path, options: ReadOptions) -> Dataset:
    """The data set in a VOC folder (`Annotations`, `JPEGImages`, `ImageSets/Main`), a folder of XML files, or one XML file.

    Splits come from `ImageSets/Main`. Without stated classes, names are ordered by the alphabet. Images that have no XML file are
    unlabelled, not background: they are left out with a finding.

    Raises:
        FormatError: no XML file, broken XML, or a malformed object; with file.
    """
    if options.voc_offset not in ("auto", "0", "1"):
        raise OptionError(f"voc_offset must be auto, 0 or 1, got {options.voc_offset!r}")
    root = path.parent if path.is_file() else path
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    sources = [path] if path.is_file() else sorted(folder.rglob("*.xml"))
    if not sources:
        raise FormatError("no XML file in this folder", where=folder)
    parsed = [_parse(source) for source in sources]
    names = {item.name for file in parsed for item in file.objects}
    categories = order_classes(names, read_categories(root), options, path)
    out = Collector.of(root, "voc", categories, options.ignore_categories)
    labels = {c.name: k for k, c in enumerate(out.categories)} | {c.name: -1 - k for k, c in enumerate(out.ignored)}
    offset = _offset(parsed, options.voc_offset, out)
    rows = _add_images(parsed, folder, options, out)
    for file in parsed:
        image = rows.get(file.path)
        for item in file.objects if image is not None else ():
            assert image is not None
            _add_object(item, image, labels[item.name], offset, out)
    places = {Path(out.names[row]).with_suffix("").as_posix(): row for row in rows.values()}
    places |= {file.relative_to(folder).with_suffix("").as_posix(): row for file, row in rows.items()}
    sets = root / "ImageSets" / "Main"
    splits = read_splits(sets, places, out) if sets.is_dir() else {}
    oriented = any(item.oriented is not None for file in parsed for item in file.objects)
    task: Task = "oriented" if oriented else "detect"
    return out.finish(task, splits)


def _parse(path: Path) -> _File:
    if path.stat().st_size > _XML_LIMIT_BYTES:
        raise FormatError(f"more than {_XML_LIMIT_BYTES:,} bytes for the labels of one image", where=path)
    data = path.read_bytes()
    if b"<!ENTITY" in data or b"<!DOCTYPE" in data:
        raise FormatError("the XML declares a document type or entities, which labels never need; refused", where=path)
    try:
        tree = ET.fromstring(data)
    except ET.ParseError as error:
        raise FormatError(f"not XML: {error.msg}", where=f"{path}:{error.position[0]}") from error
    if tree.tag != "annotation":
        raise FormatError(f"expected <annotation>, got <{tree.tag}>", where=path)
    size = None
    width, height = tree.findtext("size/width"), tree.findtext("size/height")
    if width and height and number(width, "width", str(path)) > 0 and number(height, "height", str(path)) > 0:
        size = int(number(width, "width", str(path))), int(number(height, "height", str(path)))
    file = _File(path, (tree.findtext("filename") or path.stem).strip() or path.stem, size)
    for position, node in enumerate(tree.findall("object"), start=1):
        file.objects.append(_object(node, Place(path, id=f"object {position}")))
    return file


def _object(node: ET.Element, where: Place) -> _Object:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise FormatError("the object has no name", where=str(where))
    difficult = number((node.findtext("difficult") or "0").strip() or "0", "difficult", where) != 0
    rotated, plain = node.find("robndbox"), node.find("bndbox")
    if rotated is not None:
        return _Object(name, difficult, None, _fields(rotated, ("cx", "cy", "w", "h", "angle"), where), where)
    if plain is not None:
        return _Object(name, difficult, _fields(plain, ("xmin", "ymin", "xmax", "ymax"), where), None, where)
    raise FormatError(f"object {name!r} has neither bndbox nor robndbox", where=str(where))


def _fields(node: ET.Element, keys: Sequence[str], where: Place) -> Float:
    return np.array([number((node.findtext(key) or "").strip(), key, where) for key in keys])


def _offset(files: Sequence[_File], stated: str, out: Collector) -> int:
    """1 if pixels are numbered from 1, 0 if coordinates are 0-based edges."""
    if stated != "auto":
        return int(stated)
    boxes = [(item.box, file.size) for file in files for item in file.objects if item.box is not None]
    if not boxes:
        return 1
    lowest = min(float(box[:2].min()) for box, _ in boxes)
    reaches = any(size is not None and (box[2] == size[0] or box[3] == size[1]) for box, size in boxes)
    zeros = sum(bool(box[:2].min() <= 0) for box, _ in boxes)
    if lowest <= 0:
        text = "boxes begin at pixel 0, so coordinates are read as 0-based edges; --voc-offset 1 reads Pascal's 1-based pixels"
        out.note("warning", "voc.offset", text, out.root, zeros)
        return 0
    why = "a box ends at the image's width or height" if reaches else "no box begins at pixel 0"
    out.note("info", "voc.offset", f"{why}, so coordinates are read as Pascal's 1-based pixels", out.root)
    return 1


def _add_images(files: Sequence[_File], folder: Path, options: ReadOptions, out: Collector) -> dict[Path, int]:
    names = []
    for file in files:
        parent = file.path.relative_to(folder).parent
        names.append((parent / Path(file.name.replace("\\", "/")).name).as_posix())
    anchor = folder / "x.xml" if folder.name != "Annotations" else folder.parent / "x.xml"
    finder = ImageFinder.beside(anchor, names, options.images)
    rows: dict[Path, int] = {}
    seen: set[Path] = set()
    missing: list[str] = []
    for file, name in zip(files, names, strict=True):
        relative = file.path.relative_to(folder).with_suffix("").as_posix()
        found = finder.find_any((name, relative), out)
        if found is None and file.size is None:
            out.note("error", "image.missing", "the image is missing and its size is not stated; left out", file.path)
            continue
        if found is None:
            missing.append(name)
            rows[file.path] = out.add_image(name, finder.folder / name, file.size or (0, 0))
            continue
        size = file.size or out.size_of(found)
        if size is None:
            continue
        seen.add(found)
        inside = next((place for place in finder.folders if found.is_relative_to(place)), found.parent)
        rows[file.path] = out.add_image(found.relative_to(inside).as_posix(), found, size)
    if missing:
        text = f"images are not found (the first: {missing[0]!r}); looked in {finder.folder}. Name their folder with images="
        out.note("error", "image.missing", text, out.root, len(missing))
    if seen:
        without = [file for file in image_files(finder.folder) if file not in seen]
        if without:
            text = f"images have no XML file: unlabelled, left out (the first: {without[0].name})"
            out.note("warning", "image.unlabelled", text, finder.folder, len(without))
    return rows


def _add_object(item: _Object, image: int, label: int, offset: int, out: Collector) -> None:
    if item.oriented is not None:
        if not (item.oriented[2:4] > 0).all():
            out.note("warning", "box.degenerate", "oriented box without extent; left out", item.where)
            return
        oriented = core_oriented.canonical(item.oriented)
        out.add(image, label, core_oriented.bounds(oriented), item.where, oriented=oriented, difficult=item.difficult)
        return
    assert item.box is not None
    low, high = np.minimum(item.box[:2], item.box[2:]), np.maximum(item.box[:2], item.box[2:])
    if (low != item.box[:2]).any():
        out.note("warning", "box.swapped", "minimum and maximum are exchanged; put in order", item.where)
    out.add(image, label, np.concatenate([low - offset, high]), item.where, difficult=item.difficult)


def write(dataset: Dataset, out: Path, options: WriteOptions) -> list[Finding]:
    """Write `dataset` to the folder `out`: `Annotations/*.xml`, `JPEGImages/`, `ImageSets/Main/*.txt` and `categories.json`.

    Coordinates that are not whole pixels are written with their decimals. Oriented data become `robndbox`.
    """
    losses = Losses(out)
    flat = dataset.annotations
    names = unique_stems(dataset.names, losses)
    oriented = flat.oriented if dataset.task == "oriented" else None
    for what, present in (("outlines", flat.shapes), ("keypoints", flat.keypoints)):
        losses.note(what, f"{what} have no place in Pascal VOC boxes", 0 if present is None else len(flat))
    if flat.oriented is not None and oriented is None:
        losses.note("oriented", "oriented boxes are written upright; use --task oriented", len(flat))
    if dataset.task == "semantic":
        losses.note("semantic", "semantic label images are not written; use --format labels", len(dataset))
    regions = (flat.crowd | flat.ignore) & (flat.ignored_as < 0)
    text = "crowd and ignore regions are written as difficult, the nearest that Pascal VOC has"
    losses.note("flag.region", text, int(np.count_nonzero(regions)))
    if flat.areas is not None:
        losses.note("area", "stated areas are not kept; they are derived again", len(flat), "info")
    losses.note("ids", "ids of objects and images are not kept", len(flat), "info")
    place_images(dataset, out / "JPEGImages", names, options.images, losses)
    for index, name in enumerate(names):
        target = (out / "Annotations" / name).with_suffix(".xml")
        write_text(target, _xml(dataset, index, name, oriented, options.voc_offset))
    for split, rows in dataset.splits.items():
        stems = [Path(names[row]).with_suffix("").as_posix() for row in rows.tolist()]
        write_text(out / "ImageSets" / "Main" / f"{split}.txt", "".join(stem + "\n" for stem in stems))
    write_categories(out, dataset.categories, dataset.ignored)
    return losses.findings


def _xml(dataset: Dataset, index: int, name: str, oriented: Float | None, offset: int) -> str:
    flat = dataset.annotations
    width, height = dataset.sizes[index].tolist()
    rows = [
        "<annotation>",
        f"  <folder>JPEGImages</folder>\n  <filename>{escape(Path(name).name)}</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "  <segmented>0</segmented>",
    ]
    for row in range(int(flat.starts[index]), int(flat.starts[index + 1])):
        ignored = int(flat.ignored_as[row])
        category = dataset.ignored[ignored] if ignored >= 0 else dataset.categories[int(flat.labels[row])]
        region = ignored < 0 and (flat.crowd[row] or flat.ignore[row])
        rows += [
            "  <object>",
            f"    <name>{escape(category.name)}</name>",
            "    <pose>Unspecified</pose>\n    <truncated>0</truncated>",
            f"    <difficult>{int(flat.difficult[row] or region)}</difficult>",
        ]
        x1, y1, x2, y2 = flat.boxes[row].tolist()
        tag, values = "bndbox", {"xmin": x1 + offset, "ymin": y1 + offset, "xmax": x2, "ymax": y2}
        if oriented is not None:
            tag, values = "robndbox", dict(zip(("cx", "cy", "w", "h", "angle"), oriented[row].tolist(), strict=True))
        inner = "".join(f"<{key}>{decimal(value)}</{key}>" for key, value in values.items())
        rows += [f"    <{tag}>{inner}</{tag}>", "  </object>"]
    return "\n".join([*rows, "</annotation>"]) + "\n"
