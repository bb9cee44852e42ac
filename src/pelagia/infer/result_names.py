"""What results are called: names of images in the tables, and of the files that are made for them."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

from pelagia.core.ome_zarr import is_zarr

__all__ = ["fitting", "named_from", "picture_names", "portable", "relative_names"]

#: Most bytes of a file's name that stay as they are: with the endings that are added, file systems hold 255.
_MOST_BYTES = 240

#: What is no Unicode in a name (Python's stand-ins for such bytes, PEP 383, and halves of UTF-16 pairs), and what looks like its
#: escape.
_ESCAPED = re.compile("[\ud800-\udfff]|%(?=x(?:25|[89A-F][0-9A-F])|uD[89A-F][0-9A-F]{2})")


def relative_names(images: Mapping[Path, Path]) -> list[str]:
    """A name for each image, with forward slashes: its path from the folder that stands with it, or its own if it lies elsewhere.

    Images that would have one name take folders above until their names differ. So a name does not depend on what other images
    there are, except on those that would share it. Names are `portable`.

    Args:
        images: each image, and the folder that it is named from.
    """
    inside = [_inside(path, folder) for path, folder in images.items()]
    names = ["/".join(parts) for _, parts in inside]
    above: dict[int, tuple[str, ...]] = {}
    taken = [0] * len(names)
    while True:
        seen = Counter(names)
        shared = [index for index, name in enumerate(names) if seen[name] > 1]
        above |= {index: _parts(inside[index][0]) for index in shared if index not in above}
        shared = [index for index in shared if taken[index] < len(above[index])]
        if not shared:
            return [portable(name) for name in names]
        for index in shared:
            taken[index] += 1
            names[index] = "/".join((*above[index][-taken[index] :], *inside[index][1]))


def named_from(place: str | Path) -> Path:
    """The folder that images of a place are named from: a folder itself, of a pattern the part before the first wildcard, else
    that in which the image lies.
    """
    path = Path(place)
    if not os.path.exists(path) and glob.has_magic(str(place)):
        return Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
    return path if path.is_dir() and not is_zarr(path) else path.parent


def _inside(path: Path, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """A folder, and the parts of the path of an image in it."""
    whole, place = path.absolute(), folder.absolute()
    parts = whole.relative_to(place).parts if whole.is_relative_to(place) else ()
    return (whole.parent, (path.name,)) if not parts or ".." in parts else (place, parts)


def _parts(folder: Path) -> tuple[str, ...]:
    """The names of a folder and those above, from the drive down."""
    whole = Path(os.path.realpath(folder))
    drive = whole.drive.replace(":", "").replace("\\", "/").split("/")
    return (*filter(None, drive), *whole.relative_to(whole.anchor).parts)


def portable(name: str) -> str:
    """A name that can be written as UTF-8: a byte that is not is written `%xE9`, half of a UTF-16 pair `%uD83D`.

    No two names become one: a `%` that would read as the beginning of an escape is written `%x25`. Other names stay as they are.
    """
    return _ESCAPED.sub(_escape, name)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"%u{code:04X}" if 0xD800 <= code < 0xDC80 or code > 0xDCFF else f"%x{code & 0xFF:02X}"


def fitting(name: str) -> str:
    """A name for files of an image, to which endings can be added: parts of more than 240 bytes are cut, and end in a digest."""
    return "/".join(part if len(part.encode()) <= _MOST_BYTES else _cut(part) for part in name.split("/"))


def _cut(part: str) -> str:
    ending = PurePosixPath(part).suffix
    ending = ending if len(ending.encode()) <= 20 else ""
    digest = f"~{hashlib.sha256(part.encode()).hexdigest()[:16]}{ending}"
    return part.encode()[: _MOST_BYTES - len(digest.encode())].decode(errors="ignore") + digest


def picture_names(names: Sequence[str]) -> list[str]:
    """Names of annotated pictures: the images' own with the ending .jpg; the old ending stays where two would be one."""
    whole = [fitting(name) for name in names]
    short = [PurePosixPath(name).with_suffix(".jpg").as_posix() for name in whole]
    seen = Counter(short)
    return [stem if seen[stem] == 1 else f"{name}.jpg" for name, stem in zip(whole, short, strict=True)]
