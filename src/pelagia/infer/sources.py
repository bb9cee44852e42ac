"""What a source of predictions is (a model, objects in files, whole-image answers), told from names and first bytes."""

from __future__ import annotations

import mmap
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

from pelagia.core.image import IMAGE_SUFFIXES

__all__ = ["MapKind", "is_predictions", "map_kind"]

MapKind: TypeAlias = Literal["label-images", "semantic", "panoptic"]


def is_predictions(source: str | Path) -> bool:
    """Whether `source` holds predictions of objects: a JSON file, or a folder of text files that is no run of training."""
    path = Path(source)
    if not path.is_dir():
        return path.suffix.lower() == ".json"
    return not _is_run(path) and (any(path.glob("*.txt")) or any(path.glob("labels/*.txt")))


def _is_run(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or (folder / "config.json").is_file()


def map_kind(source: str | Path, compare: str) -> MapKind | None:
    """Which of these kinds `source` is to be scored as: what `compare` says, or what it looks like; None for anything else.

    A folder of images holds label images, unless semantic maps are asked for; a JSON file with `segments_info` is panoptic.
    """
    if compare in ("label-images", "semantic", "panoptic"):
        return compare  # type: ignore[return-value]
    path = Path(source)
    if compare != "auto":
        return None
    if path.suffix.lower() == ".json" and path.is_file():
        with suppress(OSError, ValueError), open(path, "rb") as stream:  # an empty file cannot be mapped
            if stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
                return None  # a list: results of objects
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return "panoptic" if content.find(b'"segments_info"') >= 0 else None
        return None
    if not path.is_dir() or _is_run(path) or is_predictions(path):
        return None
    pictures = any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.iterdir())
    return "label-images" if pictures else None
