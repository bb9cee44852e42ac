"""COCO JSON: boxes, polygons, run-length masks, keypoints, and oriented boxes as 5-number `bbox`.

Format: https://cocodataset.org/#format-data (Lin et al., "Microsoft COCO: Common Objects in Context", 2014). How an outline is
stored is told by the type of `segmentation`, never by `iscrowd`: single objects in run lengths are legal and common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from pelagia.core import oriented as core_oriented
from pelagia.core.allocator import paused_collection
from pelagia.core.files import read_json
from pelagia.core.oriented import OrientedConvention
from pelagia.core.types import Float, Task
from pelagia.data.annotation_builder import Columns
from pelagia.data.dataset import Dataset
from pelagia.data.formats.coco_categories import list_of, read_categories
from pelagia.data.formats.coco_columns import plain_columns
from pelagia.data.formats.coco_outlines import derived_box, read_keypoints, read_segmentation
from pelagia.data.formats.common import Collector, Place, ReadOptions, number, numbers
from pelagia.data.formats.find import ImageFinder
from pelagia.data.formats.writing import CATEGORIES_FILE
from pelagia.data.outlines import rings_area
from pelagia.errors import FormatError, OptionError

__all__ = ["ANGLES", "SPLIT_WORDS", "read", "sniff"]

#: Unit and direction of an angle in a file.
ANGLES = ("rad-cw", "rad-ccw", "deg-cw", "deg-ccw")

#: What an array of ids holds; hashes used as ids may be larger.
_LARGEST_ID = 2**63

#: Words in the name of a file or folder -> the split it is.
SPLIT_WORDS = {"train": "train", "valid": "val", "val": "val", "validation": "val", "test": "test"}

#: Words in a file's name that tell which task it serves.
_HINTS: dict[Task, tuple[str, ...]] = {
    "detect": ("detect", "boxes", "bbox", "horizontal", "instances"),
    "oriented": ("oriented", "obb", "rotated"),
    "instance": ("instance", "segm"),
    "keypoints": ("keypoints",),
}

_ANNOTATION_KEYS = {"id", "image_id", "category_id", "bbox", "area", "segmentation", "iscrowd", "ignore", "difficult"}
_ANNOTATION_KEYS |= {"keypoints", "num_keypoints"}


def sniff(path: Path) -> float:
    """0 to 1: how much `path` looks like COCO JSON. Only the name and the first bytes are looked at."""
    if path.is_dir():
        return 0.85 if _json_in(path) else 0.0
    if path.suffix.lower() != ".json":
        return 0.0
    with open(path, "rb") as stream:
        head = stream.read(65536)
    keys = (b'"images"', b'"annotations"', b'"annotation"', b'"categories"')
    return 0.9 if any(key in head for key in keys) else 0.2 if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{" else 0.0


def _json_in(folder: Path) -> list[Path]:
    """COCO files of a folder: `annotations.json` alone if it is there, else all in it, in `annotations`, or in split folders."""
    if (folder / "annotations.json").is_file():
        return [folder / "annotations.json"]
    for places in ((folder,), (folder / "annotations",), tuple(folder / name for name in SPLIT_WORDS)):
        found = [file for place in places if place.is_dir() for file in sorted(place.glob("*.json")) if sniff(file) >= 0.9]
        found = [file for file in found if file.name != CATEGORIES_FILE]
        if found:
            return found
    return []


def _choose(folder: Path, task: Task | None) -> dict[str, Path]:
    """Split -> file: one file for each split, or the one file that fits the task by its name ("" = no split)."""
    files = _json_in(folder)
    if len(files) == 1:
        return {"": files[0]}
    splits: dict[str, list[Path]] = {}
    for file in files:
        words = set(file.stem.replace("-", "_").lower().split("_")) | {file.parent.name.lower()}
        words |= {word.rstrip("0123456789") for word in words}
        splits.setdefault(next((name for key, name in SPLIT_WORDS.items() if key in words), ""), []).append(file)
    fitting = {}
    for split, group in splits.items():
        hints = _HINTS.get(task or "detect", ())
        best = [file for hint in hints for file in group if hint in file.stem.lower()] if len(group) > 1 else group
        if len(group) > 1 and (task is None or not best):
            names = ", ".join(file.name for file in files[:12])
            raise FormatError(f"several annotation files could be meant: {names}; name one, or state the task", where=folder)
        fitting[split] = best[0]
    if not fitting:
        raise FormatError("no COCO JSON in this folder", where=folder)
    return fitting


@dataclass(slots=True)
class _State:
    path: Path
    out: Collector
    angle: OrientedConvention | None
    labels: dict[int, int]  # category id -> label, or -1 - k for the k-th ignored category
    rows: dict[Any, int] = field(default_factory=dict)  # image id as stated -> index
    splits: dict[str, list[int]] = field(default_factory=dict)
    ids: set[int] = field(default_factory=set)
    box_areas: int = 0  # outlines whose stated area is that of the box though the outline's differs
    outlines: int = 0
    oriented: int = 0
    other_keys: set[str] = field(default_factory=set)


def read(path: Path, options: ReadOptions) -> Dataset:
    """The data set in a COCO JSON file, or in a folder with one, or with one for each split.

    Images are looked for in `options.images`, beside the file, and in folders named `images` or after the split. Images that are
    missing stay, with a finding: scoring needs their labels only. The task is `oriented` if a box has five numbers, else
    `detect`; outlines and keypoints are kept for `Dataset.with_task`.

    Raises:
        FormatError: not COCO, an entry is malformed, or 5-number boxes without `options.angle`.
    """
    if options.angle is not None and options.angle not in ANGLES:
        raise OptionError(f"angle must be one of {', '.join(ANGLES)}, got {options.angle!r}")
    files = _choose(path, options.task) if path.is_dir() else {"": path}
    out: Collector | None = None
    splits: dict[str, list[int]] = {}
    state = None
    oriented = False
    for split, file in files.items():
        with paused_collection():
            document = read_json(file)
        if not isinstance(document, dict):
            raise FormatError("not a COCO file: expected a JSON object with images, annotations and categories", where=file)
        categories = read_categories(document, file)
        if out is None:
            root = path if path.is_dir() else path.parent
            first, out = categories, Collector.of(root, "coco", categories, options.ignore_categories)
            out.keep_empty = options.keep_empty
        elif [(c.id, c.name) for c in categories] != [(c.id, c.name) for c in first]:
            raise FormatError("the splits have different categories; open one of their files", where=file)
        labels = {category.id: label for label, category in enumerate(out.categories)}
        labels |= {category.id: -1 - k for k, category in enumerate(out.ignored)}
        state = _State(file, out, cast("OrientedConvention | None", options.angle), labels)
        with paused_collection():
            _read_document(document, state, options)
        oriented = oriented or state.oriented > 0
        for name, rows in state.splits.items():
            splits.setdefault(name, []).extend(rows)
        if split:
            splits.setdefault(split, []).extend(state.rows.values())
    assert out is not None
    if len(files) > 1:
        out.renumber()
    return out.finish("oriented" if oriented else "detect", splits)


def _read_document(document: Mapping[str, Any], state: _State, options: ReadOptions) -> None:
    out, path = state.out, state.path
    _read_images(list_of(document, "images", path), state, options)
    entries = document.get("annotations")
    if entries is None and "annotation" in document:
        entries = document["annotation"]
        out.note("warning", "coco.key", "the list is called 'annotation'; read as 'annotations'", path)
    if not isinstance(entries, list):
        raise FormatError("the key 'annotations' must hold a list", where=path)
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise FormatError(f"annotations[{position}] must be an object", where=path)
        if "segments_info" in entry:
            raise FormatError("this is a panoptic COCO file; open it with --format panoptic (format=)", where=path)
    found = None if state.ids else plain_columns(entries, state.rows, state.labels, out.sizes, keep_empty=out.keep_empty)
    if found is not None:
        _take_columns(*found, entries, state)
    else:
        for position, entry in enumerate(entries):
            _read_annotation(entry, position, state)
    _closing_notes(state)


def _take_columns(columns: Columns, outline_areas: Float, entries: list[dict[str, Any]], state: _State) -> None:
    """Add annotations that need no closer look all at once; the same as `_read_annotation` one by one."""
    state.out.builder.extend(columns)
    state.ids.update(columns.ids.tolist())
    state.other_keys = set().union(*entries) - _ANNOTATION_KEYS
    extent = (columns.boxes[:, 2:] - columns.boxes[:, :2]).prod(axis=1)
    present = ~np.isnan(outline_areas)
    of_box = np.abs(columns.areas - extent) <= 1e-3 * np.maximum(np.abs(columns.areas), extent)
    of_box &= outline_areas < 0.95 * extent
    state.outlines += int(np.count_nonzero(present))
    state.box_areas += int(np.count_nonzero(present & of_box))


def _read_images(entries: list[Any], state: _State, options: ReadOptions) -> None:
    names = []
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str | float):
            raise FormatError("an image needs id (a number or text) and file_name", where=f"{state.path}: images[{position}]")
        name = entry.get("file_name", entry.get("filename"))
        if not isinstance(name, str) or not name:
            raise FormatError("the image has no file_name", where=f"{state.path}#{entry['id']}")
        names.append(name)
    if any("file_name" not in entry for entry in entries):
        state.out.note("warning", "coco.key", "images have 'filename' instead of 'file_name'; read alike", state.path)
    looked_for = options.find_images or not all(entry.get("width") and entry.get("height") for entry in entries)
    finder = ImageFinder.beside(state.path, names if looked_for else [], options.images)
    missing, strange_ids = [], 0
    for name, entry in zip(names, entries, strict=True):
        identity, where = entry["id"], Place(state.path, id=entry["id"])
        file = finder.find(name, state.out) if looked_for else None
        if file is None and looked_for:
            missing.append(name)
            file = finder.folder / name
        if identity in state.rows:
            if state.out.files[state.rows[identity]] == (name if file is None else state.out.relative(file)):
                state.out.note("warning", "image.twice", "the image is listed twice; the second entry is left out", where)
                continue
            raise FormatError("two images have this id", where=str(where))
        size = _size(entry, file, name not in missing[-1:], state, where)
        whole = isinstance(identity, int) and not isinstance(identity, bool) and abs(identity) < _LARGEST_ID
        strange_ids += not whole
        state.rows[identity] = state.out.add_image(name, file, size, identity if whole else None)
        membership = entry.get("split") or []
        for split in [membership] if isinstance(membership, str) else membership:
            state.splits.setdefault(str(split), []).append(state.rows[identity])
    if strange_ids:
        state.out.note("warning", "image.id", "image ids are not whole numbers; numbered from 1", state.path, strange_ids)
    if missing:
        text = f"images are not found (the first: {missing[0]!r}); looked in {finder.folder}. Name their folder with images="
        state.out.note("error", "image.missing", text, state.path, len(missing))


def _size(entry: Mapping[str, Any], file: Path | None, exists: bool, state: _State, where: Place) -> tuple[int, int]:
    width, height = entry.get("width"), entry.get("height")
    if type(width) is int and type(height) is int and width and height:
        return width, height
    if width and height:
        return int(number(width, "width", where)), int(number(height, "height", where))
    size = state.out.size_of(file) if exists and file is not None else None
    if size is None:
        raise FormatError("the image states no width and height, and its file cannot be read", where=str(where))
    state.out.note("info", "image.size", "the image states no width and height; taken from its file", where)
    return size


def _read_annotation(entry: Mapping[str, Any], position: int, state: _State) -> None:
    out = state.out
    where = Place(state.path, id=entry.get("id", f"annotations[{position}]"))
    state.other_keys |= entry.keys() - _ANNOTATION_KEYS
    stated, kind = entry.get("image_id"), entry.get("category_id")
    image = state.rows.get(stated) if isinstance(stated, int | str | float) else None
    if image is None:
        out.note("error", "annotation.image", f"image_id {entry.get('image_id')!r} is no image; left out", where)
        return
    if not isinstance(kind, int | str | float) or kind not in state.labels:
        out.note("error", "annotation.category", f"category_id {entry.get('category_id')!r} is no category; left out", where)
        return
    label = state.labels[entry["category_id"]]
    rings, runs = read_segmentation(entry.get("segmentation"), image, where, out)
    keypoints = read_keypoints(entry.get("keypoints"), where)
    box, oriented = _box(entry.get("bbox"), where, state)
    width, height = out.sizes[image]
    if box is None:
        box = derived_box(rings, runs, keypoints, width, height)
        if box is None:
            out.note("error", "annotation.empty", "the annotation has neither box nor outline nor keypoints; left out", where)
            return
        out.note("info", "annotation.box", "the annotation has no bbox; derived from its outline or keypoints", where)
    outline_area = rings_area(rings) if rings else None if runs is None else float(runs[1::2].sum(dtype=np.int64))
    area = entry.get("area")
    area = outline_area if area is None else number(area, "area", where)
    if area is not None and outline_area is not None:
        extent = float((box[2] - box[0]) * (box[3] - box[1]))
        state.outlines += 1
        state.box_areas += math.isclose(area, extent, rel_tol=1e-3) and outline_area < 0.95 * extent
    added = out.add(
        image,
        label,
        box,
        where,
        id=_identity(entry.get("id"), where, state),
        oriented=oriented,
        extent=entry["bbox"][2:] if oriented is None and len(entry.get("bbox") or ()) == 4 else None,
        area=area,
        crowd=bool(entry.get("iscrowd", 0)),
        difficult=bool(entry.get("difficult", 0)),
        ignore=bool(entry.get("ignore", 0)),
        keypoints=keypoints,
        rings=rings or None,
        runs=runs,
    )
    state.oriented += added and oriented is not None


def _identity(value: Any, where: Place, state: _State) -> int:
    """The id, or a fresh one where it is missing, no whole number, or taken."""
    usable = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_ID
    if not usable or value in state.ids:
        fresh = _fresh(state)
        if usable:
            text = f"two annotations have the id {value}; both are kept, one as {fresh}"
            state.out.note("warning", "annotation.id", text, where)
        value = fresh
    state.ids.add(value)
    return int(value)


def _fresh(state: _State) -> int:
    candidate = len(state.ids) + 1_000_000_000
    while candidate in state.ids:
        candidate += 1
    return candidate


def _box(value: Any, where: Place, state: _State) -> tuple[Float | None, Float | None]:
    """The upright box and the oriented box, each as far as `bbox` gives it."""
    if value is None or value == []:
        return None, None
    given = numbers(value, "bbox", where)
    if len(given) == 4:
        x, y, w, h = given
        return np.array([x, y, x + w, y + h]), None
    if len(given) != 5:
        raise FormatError(f"bbox must have 4 numbers (x, y, w, h) or 5 (cx, cy, w, h, angle), got {len(given)}", where=str(where))
    if state.angle is None:
        raise FormatError(
            "bbox has 5 numbers: an oriented box cx, cy, w, h, angle. Unit and direction of the angle differ between files and "
            f"cannot be guessed: state them with --angle (angle=), one of {', '.join(ANGLES)}",
            where=str(where),
        )
    if state.angle.startswith("rad") and abs(given[4]) > 2 * math.pi + 1e-6:
        text = f"angle {given[4]:g} is beyond 2 pi, so it is not in radians; use --angle deg-cw or deg-ccw"
        raise FormatError(text, where=str(where))
    if given[2] <= 0 or given[3] <= 0:
        return np.array([given[0], given[1], given[0], given[1]]), None
    oriented: Float = core_oriented.convert(given[None], state.angle, "canonical")
    return core_oriented.bounds(oriented)[0], oriented[0]


def _closing_notes(state: _State) -> None:
    if state.outlines and state.box_areas == state.outlines:
        text = "'area' is that of the box although outlines exist; kept, and scores by object size follow it"
        state.out.note("warning", "area.of_box", text, state.path, state.box_areas)
    if state.other_keys:
        keys = ", ".join(sorted(state.other_keys)[:12])
        state.out.note("info", "coco.other_keys", f"keys of annotations that are not used: {keys}", state.path)
