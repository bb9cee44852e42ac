"""Checkpoints of Ultralytics as YOLO11.

Such a `.pt` holds a pickled model object, which `models.torchfile` has read without running it; here the tensors are found in the
tree of `_modules`, `_parameters` and `_buffers`, renamed, and put into the YOLO11 whose names and shapes they fit. Weights that
Ultralytics publishes are under AGPL-3.0, which the card records; this package never ships or fetches them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelagia.core.card import ModelCard
from pelagia.core.types import Category, Task
from pelagia.errors import CheckpointError
from pelagia.models.checkpoint import build
from pelagia.models.model import Model
from pelagia.models.registry import create, entries
from pelagia.models.unpickle import Record

__all__ = ["foreign_name", "load", "recognises"]

#: Position of a part in the reference's list of layers.
_LAYERS = {
    "backbone.stem": 0,
    "backbone.down2": 1,
    "backbone.stage2": 2,
    "backbone.down3": 3,
    "backbone.stage3": 4,
    "backbone.down4": 5,
    "backbone.stage4": 6,
    "backbone.down5": 7,
    "backbone.stage5": 8,
    "pool": 9,
    "attend": 10,
    "neck.top4": 13,
    "neck.top3": 16,
    "neck.down3": 17,
    "neck.bottom4": 19,
    "neck.down4": 20,
    "neck.bottom5": 22,
    "head": 23,
    "prototypes": 23,
}
_WORDS = {
    "norm": "bn",
    "enter": "cv1",
    "first": "cv1",
    "second": "cv2",
    "bypass": "cv2",
    "blocks": "m",
    "attention": "attn",
    "position": "pe",
    "project": "proj",
    "feed": "ffn",
    "sides": "cv2",
    "classes": "cv3",
    "angles": "cv4",
    "coefficients": "cv4",
    "keypoints": "cv4",
    "enlarge": "upsample",
    "refine": "cv2",
    "narrow": "cv3",
}
#: The reference's class branch nests its four convolutions two by two.
_CLASS_BRANCH = {"0": "0.0", "1": "0.1", "2": "1.0", "3": "1.1", "4": "2"}
#: The fixed weights 0 to 15 that turn a distribution into its mean: a parameter there, computed here.
_PROJECTION = "model.23.dfl.conv.weight"
_LICENCE = "AGPL-3.0"
_MOST_TENSORS, _DEEPEST = 100_000, 64


def recognises(content: Any) -> bool:
    """Whether the content of a file is a pickled model of Ultralytics, or a state dictionary with its names."""
    if not isinstance(content, Mapping):
        return False
    holder = content.get("ema") or content.get("model") or content
    return isinstance(holder, Record) or any(str(name).startswith("model.0.conv.") for name in holder)


def load(content: Mapping[Any, Any], path: Path) -> Model:
    """The YOLO11 in the `content` of a file, in evaluation mode, float32.

    The averaged weights (`ema`) are taken where the file has them. Class ids are the reference's class numbers.

    Raises:
        CheckpointError: the weights fit none of the models.
    """
    holder = content.get("ema") or content.get("model") or content
    tensors = _tensors(holder, path)
    if not tensors:
        raise CheckpointError("no weights found under `ema` or `model`; expected an Ultralytics checkpoint", where=path)
    state = holder.state if isinstance(holder, Record) else content
    task, points = _task(tensors, state.get("kpt_shape"), path)
    classes = tensors.get("model.23.cv3.0.2.weight", torch.zeros(0)).shape[0]
    card, renamed = _matching(tensors, task, (classes, points), path)
    size = _input_size(state, content)
    card = replace(
        card,
        categories=_categories(state.get("names"), classes, points),
        input_size=(size, size),
        licence=_licence(content),
        source=f"Ultralytics checkpoint {path.name}",
    )
    return build(renamed, card, where=path)


def foreign_name(name: str) -> str:
    """Name of a tensor of YOLO11 here -> its name in the reference's state dictionary."""
    part = next(part for part in _LAYERS if name.startswith(part + "."))
    words = name[len(part) + 1 :].split(".")
    found: list[str] = []
    for position, word in enumerate(words):
        if word == "join":  # the last convolution: the third of a C3k, which lies in a list of blocks; the second elsewhere
            found.append("cv3" if "blocks" in words[:position] else "cv2")
        elif part == "head" and words[0] == "classes" and position == 2:
            found.append(_CLASS_BRANCH[word])
        else:
            found.append(_WORDS.get(word, word))
    return ".".join(["model", str(_LAYERS[part]), *(["proto"] if part == "prototypes" else []), *found])


def _task(tensors: dict[str, Tensor], shape: Any, where: str | Path) -> tuple[Task, int]:
    """The task by the branches of the head, and the number of keypoints.

    The branch of angles, coefficients and keypoints has one name: one row is an angle, prototypes go with coefficients, and the
    rest are keypoints of `shape` (points, numbers for each), which a plain state dictionary does not state.
    """
    extra = tensors.get("model.23.cv4.0.2.weight")
    if extra is None:
        return "detect", 0
    if any(name.startswith("model.23.proto.") for name in tensors):
        return "instance", 0
    rows = extra.shape[0] if extra.ndim else 0
    if rows == 1:
        return "oriented", 0
    if isinstance(shape, list | tuple) and len(shape) == 2:
        points, numbers = shape
    elif rows % 3 == 0 and rows % 2:
        points, numbers = rows // 3, 3
    else:
        raise CheckpointError(
            f"{rows} numbers for keypoints may be {rows // 2} points of x and y or {rows // 3} of x, y and visibility; give the "
            "whole checkpoint, which says so, and not its state dictionary alone",
            where=where,
        )
    if numbers != 3 or points != rows / 3:
        raise CheckpointError(
            f"its keypoints are {points} x {numbers}; only points of x, y and visibility (3 numbers) can be read", where=where
        )
    return "keypoints", rows // 3


def _tensors(holder: Any, where: str | Path) -> dict[str, Tensor]:
    """Tensors by dotted name: from a module tree, or from a plain state dictionary."""
    if not isinstance(holder, Record):
        if not isinstance(holder, Mapping):
            return {}
        return {str(name): value for name, value in holder.items() if isinstance(value, Tensor)}
    found: dict[str, Tensor] = {}
    waiting: list[tuple[str, Record, int]] = [("", holder, 0)]
    visited = 0
    while waiting:
        prefix, record, depth = waiting.pop()
        visited += 1
        if visited > _MOST_TENSORS or len(found) > _MOST_TENSORS or depth > _DEEPEST:
            raise CheckpointError("the tree of modules is too large or refers to itself", where=where)
        for group in ("_parameters", "_buffers"):
            for name, value in _mapping(record.state.get(group)).items():
                if isinstance(value, Tensor):
                    found[prefix + str(name)] = value
        for name, value in _mapping(record.state.get("_modules")).items():
            if isinstance(value, Record):
                waiting.append((f"{prefix}{name}.", value, depth + 1))
    return found


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _matching(
    tensors: dict[str, Tensor], task: Task, counts: tuple[int, int], where: str | Path
) -> tuple[ModelCard, dict[str, Tensor]]:
    """Card of the YOLO11 with so many classes and keypoints whose tensors have exactly these names and shapes, and the tensors
    under its names.
    """
    classes, points = counts
    projection = tensors.pop(_PROJECTION, None)
    shapes = {name: value.shape for name, value in tensors.items()}
    if classes and (projection is None or projection.flatten().tolist() == list(range(16))):
        categories = _categories(None, classes, points)
        for entry in entries(task):
            if not entry.builder.endswith(":YOLO11"):
                continue
            with torch.device("meta"):
                model = create(entry.name, categories, task)
            expected = model.state_dict()
            names = {name: foreign_name(name) for name in expected}
            if {names[name]: value.shape for name, value in expected.items()} == shapes:
                return model.card, {ours: tensors[theirs] for ours, theirs in names.items()}
    raise CheckpointError(
        f"its {len(tensors)} tensors fit no YOLO11 (n, s, m, l, x) for detection, oriented boxes, masks or keypoints; other "
        "models and tasks of Ultralytics cannot be read",
        where=where,
    )


def _categories(names: Any, count: int, points: int) -> tuple[Category, ...]:
    """Classes by their number; the file knows how many keypoints they have, but not what these are called."""
    found = dict(enumerate(names)) if isinstance(names, list | tuple) else _mapping(names)
    keypoints = tuple(f"point {number}" for number in range(points))
    return tuple(Category(index, str(found.get(index, f"class {index}")), keypoints=keypoints) for index in range(count))


def _licence(content: Mapping[Any, Any]) -> str:
    """Ultralytics' licence unless the file states another: it claims the weights that its program trains as well."""
    stated = content.get("license")
    return stated[:200] if isinstance(stated, str) and stated and _LICENCE not in stated else _LICENCE


def _input_size(state: Mapping[str, Any], content: Mapping[Any, Any]) -> int:
    """The side that it was trained with, a multiple of 32; 640 where the file does not say."""
    for holder in (content.get("train_args"), state.get("args")):
        holder = holder.state if isinstance(holder, Record) else holder
        size = _mapping(holder).get("imgsz")
        size = max(size, default=0) if isinstance(size, list | tuple) and all(isinstance(v, int) for v in size) else size
        if isinstance(size, int) and not isinstance(size, bool) and 32 <= size <= 16_384:
            return -(-size // 32) * 32
    return 640
