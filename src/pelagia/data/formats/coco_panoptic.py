"""COCO panoptic: a JSON file that lists the segments of each image, and PNG that paint them (`panoptic_json`)."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from pelagia.core.types import Float
from pelagia.data.dataset import Dataset
from pelagia.data.formats.coco import SPLIT_WORDS
from pelagia.data.formats.common import Collector, Place, ReadOptions
from pelagia.data.formats.find import ImageFinder
from pelagia.data.formats.panoptic_json import PanopticFile, read_panoptic
from pelagia.data.formats.panoptic_write import write
from pelagia.data.formats.writing import CATEGORIES_FILE
from pelagia.data.label_maps import segment_bounds
from pelagia.data.panoptic_png import read_ids
from pelagia.errors import FormatError

__all__ = ["read", "sniff", "write"]


def sniff(path: Path) -> float:
    """0 to 1: a JSON file with `segments_info`, or a folder whose JSON files all hold it."""
    if path.is_file():
        return 1.0 if _is_panoptic(path) else 0.0
    return 0.95 if _json_in(path) else 0.0


def _is_panoptic(path: Path) -> bool:
    if path.suffix.lower() != ".json":
        return False
    with (
        suppress(OSError, ValueError),  # an empty file cannot be mapped
        open(path, "rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(b'"segments_info"') >= 0
    return False


def _json_in(folder: Path) -> list[Path]:
    for place in (folder, folder / "annotations"):
        found = [file for file in sorted(place.glob("*.json")) if file.name != CATEGORIES_FILE] if place.is_dir() else []
        if found and all(_is_panoptic(file) for file in found):
            return found
    return []


def read(path: Path, options: ReadOptions) -> Dataset:
    """The data set of a panoptic JSON file, or of a folder with one, or with one for each split (told by its name).

    The PNG lie in the folder that is called like the JSON file without its ending. Images are looked for as those of COCO files.
    A box that is not stated or impossible is taken from the pixels; a segment without a pixel is left out, with a finding.

    Raises:
        FormatError: not such a file, or an entry is malformed; several files that are not told apart by their splits.
        ImageError: a PNG that had to be read is broken.
    """
    files = _split_files(path) if path.is_dir() else {"": path}
    out: Collector | None = None
    splits: dict[str, list[int]] = {}
    pngs: list[str] = []
    for split, file in files.items():
        source = read_panoptic(file)
        if out is None:
            first = source.categories
            out = Collector.of(path if path.is_dir() else path.parent, "panoptic", first, options.ignore_categories)
        elif [(c.id, c.name) for c in source.categories] != [(c.id, c.name) for c in first]:
            raise FormatError("the splits have different categories; open one of their files", where=file)
        for name, rows in _add_file(source, out, options, pngs).items():
            if name or split:
                splits.setdefault(name or split, []).extend(rows)
    assert out is not None
    if len(files) > 1:
        out.renumber()
    return out.finish("panoptic", splits, panoptic_files=tuple(pngs))


def _split_files(folder: Path) -> dict[str, Path]:
    files = _json_in(folder)
    if len(files) == 1:
        return {"": files[0]}
    found: dict[str, Path] = {}
    for file in files:
        words = {word.rstrip("0123456789") for word in file.stem.replace("-", "_").lower().split("_")}
        split = next((name for key, name in SPLIT_WORDS.items() if key in words), "")
        if not split or split in found:
            names = ", ".join(file.name for file in files[:12])
            raise FormatError(f"several panoptic files could be meant: {names}; name one", where=folder)
        found[split] = file
    if not found:
        raise FormatError("no panoptic JSON in this folder", where=folder)
    return found


def _add_file(source: PanopticFile, out: Collector, options: ReadOptions, pngs: list[str]) -> Mapping[str, list[int]]:
    """Add the images of a file; returns the rows of each split, "" for those of none."""
    # Without a list of images the PNG's names without their ending are all that is known of the images' names.
    names = source.names if source.listed else [str(Path(name).with_suffix("")) for name in source.names]
    finder = ImageFinder.beside(source.path, names, options.images, avoid=source.folder)
    label_of = {category.id: label for label, category in enumerate(out.categories)}
    label_of |= {category.id: -1 - k for k, category in enumerate(out.ignored)}
    splits: dict[str, list[int]] = {}
    missing = []
    for index, name in enumerate(names):
        png = source.folder / source.files[index]
        if not png.is_file():
            out.note("error", "mask.missing", "the panoptic PNG is missing; the image is left out", png)
            continue
        image = finder.find(name, out)
        if image is None:
            missing.append(name)
            image = finder.folder / name
        width, height = (int(side) for side in source.sizes[index])
        if not width or not height:
            height, width = read_ids(png).shape
        identity = source.image_ids[index]
        shown = name if source.listed else image.name
        row = out.add_image(shown, image, (width, height), identity if isinstance(identity, int) else None)
        pngs.append(out.relative(png))
        _add_segments(source, index, row, label_of, out)
        for split in source.splits[index] or ("",):
            splits.setdefault(split, []).append(row)
    if missing:
        text = f"images are not found (the first: {missing[0]!r}); looked in {finder.folder}. Name their folder with images="
        out.note("error", "image.missing", text, source.path, len(missing))
    return splits


def _add_segments(source: PanopticFile, index: int, image: int, label_of: Mapping[int, int], out: Collector) -> None:
    rows = range(int(source.starts[index]), int(source.starts[index + 1]))
    width, height = out.sizes[image]
    boxes = source.boxes[rows.start : rows.stop].copy()
    with np.errstate(invalid="ignore"):
        sound = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (boxes[:, :2] < (width, height)).all(axis=1)
        sound &= (boxes[:, 2:] > 0).all(axis=1)
    if not sound.all():
        bounds: Float = segment_bounds(read_ids(source.folder / source.files[index]), source.ids[rows.start : rows.stop])
        boxes[~sound] = bounds[~sound]
    for row, box in zip(rows, boxes, strict=True):
        where = Place(source.path, id=int(source.ids[row]))
        if not (box[2:] > box[:2]).all():
            text = f"the segment has no pixel in {source.files[index]}; left out"
            out.note("warning", "segment.empty", text, where)
            continue
        label = label_of[source.categories[int(source.labels[row])].id]
        out.add(image, label, box, where, id=int(source.ids[row]), crowd=bool(source.crowd[row]))
