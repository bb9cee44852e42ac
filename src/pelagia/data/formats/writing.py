"""What the writers share: putting the images in place, the sidecar of categories, and telling what a format cannot hold."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

import numpy as np

from pelagia.core.files import atomic_folder, atomic_path, read_json, write_json
from pelagia.core.types import Category
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding, Severity
from pelagia.errors import FormatError, OptionError

__all__ = [
    "CATEGORIES_FILE",
    "ImageMode",
    "Losses",
    "WriteOptions",
    "decimal",
    "place_images",
    "read_categories",
    "unique_stems",
    "write_categories",
]

#: Written beside formats that hold names or numbers only, so that ids, keypoints and supercategories survive; read if present.
CATEGORIES_FILE = "categories.json"

ImageMode: TypeAlias = Literal["copy", "link", "none"]


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a data set is written.

    Args:
        images: `copy` the image files, make symbolic `link`s, or write labels only (`none`).
        angle: for COCO: write oriented boxes as 5-number `bbox` with this unit and direction; without it, as corner polygons.
        voc_offset: Pascal VOC's first pixel: 1 (the standard) or 0.
    """

    images: ImageMode = "copy"
    angle: str | None = None
    voc_offset: Literal[0, 1] = 1


@dataclass(slots=True)
class Losses:
    """Counts of what the target cannot hold, one finding per kind."""

    where: Path
    _found: dict[str, tuple[Severity, str, int]] = field(default_factory=dict)

    def note(self, code: str, message: str, count: int = 1, severity: Severity = "warning") -> None:
        """Count a loss; the message of the first of its kind is kept."""
        if count:
            old = self._found.get(code)
            self._found[code] = (severity, message, count) if old is None else (old[0], old[1], old[2] + count)

    @property
    def findings(self) -> list[Finding]:
        """What was noted, in order."""
        return [Finding(severity, code, text, str(self.where), n) for code, (severity, text, n) in self._found.items()]


def decimal(value: float) -> str:
    """A number as text: whole numbers without a point, others with 12 significant digits, never in exponent form.

    Twelve digits are a hundred-millionth of a pixel on the largest scans; five decimals of a normalised coordinate would be a
    tenth of a pixel.
    """
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return np.format_float_positional(value, precision=12, unique=True, fractional=False, trim="-")


def place_images(dataset: Dataset, folder: Path, names: Sequence[str], mode: ImageMode, losses: Losses) -> None:
    """Put the images under `folder` by `names`; files that are there with the same size and content time are not copied again.

    Raises:
        OptionError: a source image would be overwritten, or a file cannot be written.
    """
    if mode == "none":
        losses.note("images.none", "images are not copied; give their folder with images= when opening", len(dataset), "info")
        return
    for path, name in zip(dataset.image_paths, names, strict=True):
        target = folder / name
        if not path.exists():
            losses.note("image.missing", f"image files are missing and were not copied (the first: {path})", severity="error")
            continue
        if target.exists() and os.path.samefile(path, target):
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if mode == "link":
                target.unlink(missing_ok=True)
                target.symlink_to(path.resolve())
            elif path.is_dir():  # an OME-Zarr
                with atomic_folder(target) as temporary:
                    shutil.copytree(path, temporary)
            else:
                with atomic_path(target) as temporary:
                    shutil.copyfile(path, temporary)
        except OSError as error:
            raise OptionError(f"cannot put the image here ({error.strerror or error})", where=target) from error


def unique_stems(names: Sequence[str], losses: Losses) -> list[str]:
    """The image names, changed where two differ in their ending only, so that their label files do not collide."""
    taken: dict[str, str] = {}
    result = []
    for name in names:
        path = PurePosixPath(name)
        stem = str(path.with_suffix(""))
        while stem.lower() in taken:
            stem += f"_{path.suffix.lstrip('.')}" if path.suffix else "_2"
            losses.note("image.same_stem", f"images whose names differ in their ending only are renamed (the first: {name!r})")
        taken[stem.lower()] = name
        result.append(stem + path.suffix)
    return result


def write_categories(folder: Path, categories: Sequence[Category], ignored: Sequence[Category]) -> None:
    """Write the sidecar `categories.json`: classes in label order, then categories to ignore."""
    entries = [asdict(c) | {"ignored": False} for c in categories] + [asdict(c) | {"ignored": True} for c in ignored]
    write_json(folder / CATEGORIES_FILE, {"categories": entries}, indent=1)


def read_categories(folder: Path) -> list[Category] | None:
    """The categories of the sidecar, or None if there is none.

    Raises:
        FormatError: the file is not what `write_categories` writes.
    """
    path = folder / CATEGORIES_FILE
    if not path.is_file():
        return None
    document = read_json(path, 64 << 20)
    try:
        return [
            Category(
                id=int(entry["id"]),
                name=str(entry["name"]),
                supercategory=str(entry.get("supercategory", "")),
                keypoints=tuple(str(name) for name in entry.get("keypoints", ())),
                skeleton=tuple((int(a), int(b)) for a, b in entry.get("skeleton", ())),
                flip=tuple(int(i) for i in entry.get("flip", ())),
                is_thing=bool(entry.get("is_thing", True)),
            )
            for entry in document["categories"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"not a list of categories as Pelagia writes it ({error})", where=path) from error
