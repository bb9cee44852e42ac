"""What a source of predictions is (a model, objects in files, whole-image answers), told from names and first bytes."""

from __future__ import annotations

import json
import mmap
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

from pelagia.core.image import IMAGE_SUFFIXES
from pelagia.core.types import TASKS, Task

__all__ = ["RESULTS_FILE", "MapKind", "is_model", "is_predictions", "map_kind", "maps_of", "results_file", "results_task"]

#: What `pelagia predict` writes.
RESULTS_FILE = "results.json"

MapKind: TypeAlias = Literal["label-images", "semantic", "panoptic"]


#: What weights are stored in.
_WEIGHTS = (".onnx", ".xml", ".safetensors", ".pt", ".pth", ".bin")


def is_model(source: str | Path) -> bool:
    """Whether `source` is called like weights, or is a folder that holds a run of training."""
    path = Path(source)
    return path.suffix.lower() in _WEIGHTS or (path.is_dir() and _is_run(path))


def results_file(source: str | Path) -> Path | None:
    """The results.json at `source`, a file or the folder that `pelagia predict` wrote; None for anything else."""
    path = Path(source)
    file = path / RESULTS_FILE if path.is_dir() and not _is_run(path) else path
    return file if file.suffix.lower() == ".json" and file.is_file() and results_task(file) is not None else None


def results_task(file: Path) -> Task | None:
    """The task of the model whose answers a results.json holds; None for another file."""
    with suppress(OSError, ValueError, TypeError, AttributeError), open(file, "rb") as stream:
        head = stream.read(1 << 16).decode("utf-8", "ignore")
        if head.startswith('{"model":'):
            model, _ = json.JSONDecoder().raw_decode(head, len('{"model":'))
            return model["task"] if model.get("task") in TASKS else None
    return None


def maps_of(source: Path, kind: MapKind) -> Path:
    """Where the maps lie: in the folder of a results.json of `pelagia predict`, else at `source` itself."""
    file = results_file(source)
    return source if file is None else file.parent / {"panoptic": "panoptic.json", "semantic": "semantic"}.get(kind, "labels")


def is_predictions(source: str | Path) -> bool:
    """Whether `source` holds predictions: a JSON file, a folder of `pelagia predict`, or one of text files that is no run."""
    path = Path(source)
    if not path.is_dir():
        return path.suffix.lower() == ".json"
    return results_file(path) is not None or (not _is_run(path) and (any(path.glob("*.txt")) or any(path.glob("labels/*.txt"))))


def _is_run(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or (folder / "config.json").is_file()


def map_kind(source: str | Path, compare: str) -> MapKind | None:
    """Which of these kinds `source` is to be scored as: what `compare` says, or what it looks like; None for anything else.

    A model is none of them, whatever it answers. Results of `pelagia predict` are what their model answers with; a folder of
    images holds label images, unless semantic maps are asked for; a JSON file with `segments_info` is panoptic.
    """
    if is_model(source):
        return None
    if compare in ("label-images", "semantic", "panoptic"):
        return compare  # type: ignore[return-value]
    path = Path(source)
    if compare != "auto":
        return None
    file = results_file(path)
    if file is not None:
        task = results_task(file)
        return task if task in ("semantic", "panoptic") else None
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
