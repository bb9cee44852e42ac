"""Whether a file is still what it was: its size and time of change, and its content where those differ.

A scan may have a gigabyte, and a survey ten thousand of them, so the rule is that of `make` and `git`: a file of the same size
and the same time of change (to the nanosecond) is taken as unchanged; one that was copied or touched is read, and its SHA-256
decides. The SHA-256 is computed once, when the result is written, just after the image was read. A folder (OME-Zarr) is the sum
of its files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pelagia.core.files import content_hash, files_in
from pelagia.errors import FormatError

__all__ = ["Look", "Stamp", "look", "readable"]

#: Bytes, and the time of the last change in nanoseconds since 1970.
Look = tuple[int, int]


def look(path: Path) -> Look | None:
    """Size and time of change of a file, of a folder the sum and the latest of its files; None where there is nothing to read."""
    try:
        facts = [file.stat() for file in (files_in(path) if path.is_dir() else [path])]
    except OSError:
        return None
    return sum(fact.st_size for fact in facts), max((fact.st_mtime_ns for fact in facts), default=0)


def readable(path: Path) -> bool:
    """Whether a file, or every file of a folder, can be read to its end."""
    try:
        content_hash(path)
    except (OSError, FormatError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file was when a result was made from it: size in bytes, time of change, SHA-256 of the content."""

    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path, before: Look | None = None) -> Self | None:
        """The stamp of a file now; None if it cannot be read, or if it is not what it was at the look `before`."""
        first = before or look(path)
        if first is None:
            return None
        try:
            content = content_hash(path)
        except FormatError:
            return None
        return cls(*first, content) if look(path) == first else None

    @classmethod
    def from_dict(cls, values: Any) -> Self | None:
        """What `to_dict` wrote; None for anything else."""
        fits = isinstance(values, dict) and values.keys() == {"size", "mtime_ns", "sha256"}
        return cls(**values) if fits else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def holds(self, path: Path) -> bool:
        """Whether the file is still the same, by the rule of this module."""
        now = look(path)
        if now is None or now[0] != self.size:
            return False
        if now[1] == self.mtime_ns:
            return True
        try:
            return content_hash(path) == self.sha256
        except FormatError:
            return False
