"""What the readers share: text with limits, finding images, and collecting objects with a finding for each correction."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pelagia.core.image import IMAGE_SUFFIXES, image_size
from pelagia.core.ome_zarr import is_zarr
from pelagia.core.types import Category, Float, Int, Task
from pelagia.data.annotation_builder import AnnotationBuilder
from pelagia.data.annotations import Annotations
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding, Severity
from pelagia.data.outlines import rings_bounds
from pelagia.errors import FormatError, ImageError

__all__ = [
    "IGNORE_CATEGORIES",
    "Collector",
    "Place",
    "ReadOptions",
    "image_files",
    "lines",
    "number",
    "numbers",
    "order_classes",
    "read_splits",
    "read_text",
]

#: Names of categories that mark regions to ignore and are no class.
IGNORE_CATEGORIES = ("DontCare",)

#: Largest label or list file that is read.
TEXT_LIMIT_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a caller may state about a source; a reader takes what concerns it.

    Args:
        images: folder of the images, where it cannot be found from the annotations.
        task: what the labels are read as, where a format leaves it open (YOLO: nine numbers are a polygon or an oriented box).
        angle: unit and direction of the angle of 5-number boxes: `rad-cw`, `rad-ccw`, `deg-cw` or `deg-ccw`.
        classes: class names in label order, where the source names none or in another order.
        ignore_categories: names of categories that mark regions to ignore.
        voc_offset: `1` = Pascal VOC's 1-based inclusive pixels, `0` = 0-based edges, `auto` = judge by the numbers.
        keep_empty: keep boxes of COCO files that have no extent or lie outside their image: they cannot be learnt or found, but
            COCO's scores count them as missed.
        find_images: look for the image files of COCO annotations; scores of predictions in files need none.
    """

    images: Path | None = None
    task: Task | None = None
    angle: str | None = None
    classes: tuple[str, ...] | None = None
    ignore_categories: tuple[str, ...] = IGNORE_CATEGORIES
    voc_offset: str = "auto"
    keep_empty: bool = False
    find_images: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a source something stands: a file and a line, or an id."""

    path: Path
    line: int | None = None
    id: str | int | None = None

    def __str__(self) -> str:
        if self.line is not None:
            return f"{self.path}:{self.line}"
        return str(self.path) if self.id is None else f"{self.path}#{self.id}"


def read_text(path: Path, *, limit_bytes: int = TEXT_LIMIT_BYTES) -> str:
    """The text of a file: UTF-8, with or without a byte-order mark; any line ends become line feeds.

    Raises:
        FormatError: missing, too large, or not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > limit_bytes:
            raise FormatError(f"{size:,} bytes, more than the limit of {limit_bytes:,} for a label file", where=path)
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise FormatError("this file does not exist; check the path", where=path) from error
    except OSError as error:
        raise FormatError(f"cannot read this file ({error.strerror or error})", where=path) from error
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 text (byte {error.start}); save it as UTF-8", where=path) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, stripped text) of the lines of `path` that are not blank."""
    for number_, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number_, line.strip()


def number(value: Any, what: str, where: Place | str) -> float:
    """A finite number from a string or a JSON number.

    Raises:
        FormatError: anything else.
    """
    try:
        result = float(value)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{what} must be a number, got {str(value)[:40]!r}", where=str(where)) from error
    if not math.isfinite(result) or isinstance(value, bool):
        raise FormatError(f"{what} must be a finite number, got {str(value)[:40]!r}", where=str(where))
    return result


def numbers(values: Any, what: str, where: Place | str) -> Float:
    """[N] finite numbers from a flat sequence of strings or JSON numbers.

    Raises:
        FormatError: not a sequence of finite numbers.
    """
    try:
        result: Float = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{what} must be numbers, got {str(values)[:60]!r}", where=str(where)) from error
    if result.ndim != 1 or not np.isfinite(result).all():
        raise FormatError(f"{what} must be a flat list of finite numbers, got {str(values)[:60]!r}", where=str(where))
    return result


def image_files(folder: Path, *, most: int | None = None) -> list[Path]:
    """Images in `folder` at every depth, sorted by path; names that begin with a dot are left out. The folder of a Zarr is an
    image and is not searched.

    With `most` the search ends after about as many files of any kind.
    """
    found: list[Path] = []
    seen = 0
    for parent, folders, names in os.walk(folder):
        seen += len(names) + len(folders)
        if most is not None and seen > most:
            break
        inside = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in inside if not is_zarr(Path(parent, name))]
        found += [Path(parent, name) for name in inside if name not in folders]
        found += [Path(parent, name) for name in names if name[:1] != "." and Path(name).suffix.lower() in IMAGE_SUFFIXES]
    return sorted(found)


@dataclass(slots=True)
class Collector:
    """A data set in the making: readers put images and objects in, and every correction leaves a finding."""

    root: Path
    format: str
    categories: tuple[Category, ...]
    ignored: tuple[Category, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    builder: AnnotationBuilder = field(default_factory=AnnotationBuilder)
    keep_empty: bool = False

    @classmethod
    def of(cls, root: Path, format: str, categories: Sequence[Category], ignore: Sequence[str]) -> Collector:
        """A collector whose `categories` named in `ignore` mark regions to ignore."""
        classes = tuple(c for c in categories if c.name not in ignore)
        ignored = tuple(c for c in categories if c.name in ignore)
        collector = cls(root, format, classes, ignored)
        for category in ignored:
            collector.note("info", "category.ignored", f"objects of {category.name!r} are regions to ignore, not a class", root)
        return collector

    def note(self, severity: Severity, code: str, message: str, where: Place | Path | str, count: int = 1) -> None:
        """Add a finding."""
        self.findings.append(Finding(severity, code, message, str(where), count))

    def add_image(self, name: str, file: Path | None, size: tuple[int, int], id: int | None = None) -> int:
        """Add an image; returns its index. `name` is what the source calls it; a name used twice gets its path instead. `file` is
        None when nobody looked for it: then it is where its name says."""
        index = len(self.names)
        self.names.append(self._tame(name))
        self.files.append(self.names[index] if file is None else self.relative(file))
        self.image_ids.append(index + 1 if id is None else id)
        self.sizes.append(size)
        return index

    def relative(self, file: Path) -> str:
        """`file` relative to the root, or whole if it lies elsewhere."""
        whole, root = file.as_posix(), self.root.as_posix().rstrip("/") + "/"
        if root == "./" and not file.is_absolute():
            return whole
        return whole[len(root) :] if whole.startswith(root) else whole

    def _tame(self, name: str) -> str:
        """The name as a relative path with forward slashes that cannot leave the folder it is written to."""
        if name[:1] not in ("/", ".") and not any(mark in name for mark in ("\\", ":", "//", "/.")) and name[-1:] != "/":
            return name or "image"
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..") and not part.endswith(":")]
        tame = "/".join(parts) or "image"
        if tame != name:
            self.note("info", "image.name", f"image name {name!r} is not a plain relative path; called {tame!r}", self.root)
        return tame

    def renumber(self) -> None:
        """Number the images from 1 if two have the same id, as in data of several files."""
        if len(set(self.image_ids)) < len(self.image_ids):
            self.note("info", "image.id", "files share image ids; the images are numbered from 1", self.root)
            self.image_ids = list(range(1, len(self.image_ids) + 1))

    def size_of(self, file: Path) -> tuple[int, int] | None:
        """Width and height of an image file, EXIF applied; None, with a finding, if it is missing or broken."""
        try:
            return image_size(file)
        except ImageError as error:
            self.note("error", "image.unreadable", f"{error.reason}; the image and its labels are left out", file)
            return None

    def add(self, image: int, category: int, box: Sequence[float] | Float, where: Place, **optional: Any) -> bool:
        """Add an object. `category` is a label, or -1 - k for the k-th ignored category. False if it was left out.

        A box without extent, and one that lies wholly outside its image, can neither be learnt nor found: it is left out with
        a finding. Keyword arguments are those of `AnnotationBuilder.add`.
        """
        x1, y1, x2, y2 = (float(value) for value in box)
        empty = self.keep_empty and x2 >= x1 and y2 >= y1
        if not (x2 > x1 and y2 > y1) and not empty:
            text = f"box of {x2 - x1:g} x {y2 - y1:g} pixels has no extent; left out"
            self.note("warning", "box.degenerate", text, where)
            return False
        width, height = self.sizes[image]
        if width > 0 and not (x1 < width and y1 < height and x2 > 0 and y2 > 0) and not empty:
            text = f"box {x1:g}, {y1:g}, {x2:g}, {y2:g} lies outside its image of {width} x {height}; left out"
            self.note("warning", "box.outside", text, where)
            return False
        if category < 0:
            optional["ignored_as"] = -1 - category
        self.builder.add(image, max(category, 0), (x1, y1, x2, y2), **optional)
        return True

    def clean_rings(self, rings: Sequence[Float], where: Place) -> list[Float]:
        """The rings of at least three different points; others are left out with a finding."""
        kept = []
        for ring in rings:
            if len(ring) > 1 and (ring[0] == ring[-1]).all():
                ring = ring[:-1]
            extent = np.ptp(ring, axis=0) if len(ring) else np.zeros(2)
            if len(ring) < 3 or not (extent > 0).all():
                text = f"polygon ring of {len(ring)} points encloses nothing; left out"
                self.note("warning", "polygon.degenerate", text, where)
                continue
            kept.append(ring)
        return kept

    def add_polygon(self, image: int, category: int, rings: Sequence[Float], where: Place, **optional: Any) -> bool:
        """Add an object given by its outline alone: the box is the bounds of the rings."""
        kept = self.clean_rings(rings, where)
        if not kept:
            return False
        return self.add(image, category, rings_bounds(kept), where, rings=kept, **optional)

    def finish(self, task: Task, splits: Mapping[str, Sequence[int] | Int] | None = None, **extra: Any) -> Dataset:
        """The data set. Image names that occur twice are replaced by the images' paths, with a finding."""
        self._make_names_unique()
        annotations: Annotations = self.builder.build(len(self.names))
        return Dataset(
            categories=self.categories,
            task=task,
            format=self.format,
            root=self.root,
            names=tuple(self.names),
            files=tuple(self.files),
            image_ids=np.asarray(self.image_ids, dtype=np.int64).reshape(-1),
            sizes=np.asarray(self.sizes, dtype=np.int64).reshape(-1, 2),
            annotations=annotations,
            splits={name: np.asarray(rows, dtype=np.int64).reshape(-1) for name, rows in (splits or {}).items()},
            findings=tuple(self.findings),
            ignored=self.ignored,
            **extra,
        )

    def _make_names_unique(self) -> None:
        seen: dict[str, int] = {}
        for index, name in enumerate(self.names):
            if name in seen and self.files[index] != self.files[seen[name]]:
                self.names[index] = self.files[index]
                text = f"two images are called {name!r}; this one goes by its path"
                self.note("info", "image.same_name", text, self.files[index])
            seen.setdefault(self.names[index], index)


def order_classes(found: set[str], sidecar: Sequence[Category] | None, options: ReadOptions, where: Path) -> list[Category]:
    """The categories of a format that knows names only: from `options.classes` or the sidecar, else by alphabet from id 1.

    Raises:
        FormatError: an object's class is not among the stated ones.
    """
    if options.classes is not None:
        known = {category.name: category for category in sidecar or ()}
        stated = [known.get(name, Category(k + 1, name)) for k, name in enumerate(options.classes)]
    elif sidecar is not None:
        stated = list(sidecar)
    else:
        return [Category(k + 1, name) for k, name in enumerate(sorted(found))]
    names = {category.name for category in stated}
    extra = sorted(found - names - set(options.ignore_categories))
    if extra:
        raise FormatError(f"the labels name classes that are not stated: {', '.join(extra[:8])}", where=where)
    return stated + [Category(-k, name) for k, name in enumerate(sorted(found - names), start=1)]


def read_splits(folder: Path, rows: Mapping[str, int], out: Collector) -> dict[str, list[int]]:
    """Splits from list files `<split>.txt` in `folder`: one image a line, by name, path or stem; a second column is a flag of
    Pascal VOC. `rows` maps each of these to an index."""
    splits: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.txt")):
        if path.stem in ("trainval", "classes") and any((folder / f"{name}.txt").is_file() for name in ("train", "val")):
            continue
        entries = [(line, text) for line, text in lines(path)]
        found = [(line, rows.get(text, rows.get(text.split()[0]))) for line, text in entries]
        if not any(row is not None for _, row in found):
            continue  # some other text
        if any(len(text.split()) == 2 and text.split()[1] in ("-1", "0", "1") for _, text in entries):
            continue  # a list of Pascal VOC per class
        for line, row in found:
            if row is None:
                out.note("error", "split.image", "the image is not in the data; left out of the split", Place(path, line))
        splits[path.stem] = [row for _, row in found if row is not None]
    return splits
