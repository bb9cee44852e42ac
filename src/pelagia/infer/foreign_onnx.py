"""ONNX files that another project exported: what they say of themselves, and their outputs under the names of `pelagia.decode`.

Files of Ultralytics (YOLOv8, YOLO11, YOLO12, YOLO26, exported for detection, oriented boxes or segmentation) hold metadata
properties that are text: `task` (detect, obb, segment), `names` (a Python dictionary, number -> name), `imgsz` ([height, width]),
`stride`, and for information `description`, `version`, `license`. They take RGB images divided by 255. Seen in files exported by
release 8.4; what is written here was observed, no code of theirs was read:

- Exported as it comes, `output0` is [B, 4 + C + E, A]: a candidate is a column of centre x, centre y, width and height in input
  pixels, C probabilities, and E further rows: none, K coefficients of masks, or an angle in radians, clockwise on the screen.
- With suppression inside the graph (`nms=True`, or `end2end`) it is [B, N, 6 + E]: a row is four numbers of the box, a score, a
  class number, and E further numbers; rows of score 0 fill up. The four are
  x1, y1, x2, y2, for oriented boxes centre, width and height.
- `output1`, for segmentation only, is the prototypes [B, K, H / 4, W / 4].
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.card import ModelCard
from pelagia.core.types import Category, Task
from pelagia.errors import CheckpointError, ModelError

__all__ = ["foreign_card", "foreign_outputs"]

#: The project's name of a task -> ours.
_TASKS: dict[str, Task] = {"detect": "detect", "obb": "oriented", "segment": "instance"}

#: Longest list of class names that is read, in characters.
_LONGEST = 1 << 22


def foreign_card(metadata: Mapping[str, str], *, where: str | Path) -> ModelCard | None:
    """The card of a file of Ultralytics by its metadata properties; None for a file of another kind.

    Class ids are its class numbers. Its images were padded, not cut, and 8 bits go to 0 to 1.

    Raises:
        CheckpointError: its task is none of the three, or a property is missing or cannot be read.
    """
    if not {"task", "names", "imgsz"} <= metadata.keys():
        return None
    task = _TASKS.get(metadata["task"])
    if task is None:
        raise CheckpointError(
            f"this ONNX file of another project is for the task {metadata['task']!r}; those for {', '.join(_TASKS)} can be used",
            where=where,
        )
    names, size, stride = (_value(metadata, key, where) for key in ("names", "imgsz", "stride"))
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or sorted(names) != list(range(len(names))):
        raise CheckpointError("its metadata `names` must be a dictionary from 0, 1, 2, ... to the names of classes", where=where)
    size = [size, size] if isinstance(size, int) else size
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise CheckpointError(f"its metadata `imgsz` must be [height, width], got {metadata['imgsz']!r}", where=where)
    if not isinstance(stride, int) or stride < 1:
        raise CheckpointError(f"its metadata `stride` must be a positive number, got {metadata['stride']!r}", where=where)
    if metadata.get("channels", "3") != "3":
        raise CheckpointError(f"it takes images of {metadata['channels']} channels; only 3 can be given", where=where)
    described = re.match(r"Ultralytics (\S+) model", metadata.get("description", ""))
    return ModelCard(
        name=described[1] if described else "Ultralytics",
        task=task,
        decoder="cells",
        categories=tuple(Category(index, str(names[index])) for index in range(len(names))),
        input_size=(size[0], size[1]),
        stride=stride,
        licence="AGPL-3.0" if "AGPL-3.0" in metadata.get("license", "AGPL-3.0") else metadata["license"][:200],
        source=f"ONNX file exported by Ultralytics {metadata.get('version', '')}".strip(),
    )


def foreign_outputs(outputs: Mapping[str, NDArray[Any]], card: ModelCard) -> dict[str, NDArray[Any]]:
    """The outputs of a file whose card `foreign_card` made, as `decode.cells` wants them.

    A row that the graph has selected becomes a candidate of its class alone; its score for the others is -1.

    Raises:
        ModelError: the outputs have none of the layouts above.
    """
    classes = len(card.categories)
    tables = [value for value in outputs.values() if value.ndim == 3]
    maps = [value for value in outputs.values() if value.ndim == 4]
    named: dict[str, NDArray[Any]] = {}
    extra = 0
    if card.task == "instance" and len(maps) == 1:
        named["prototypes"] = maps[0]
        extra = maps[0].shape[1]
    elif card.task == "oriented":
        extra = 1
    if len(tables) != 1 or len(maps) != (card.task == "instance"):
        raise _unknown(outputs, card)
    table = tables[0]
    if table.shape[1] == 4 + classes + extra:
        named["boxes"], named["scores"], rest = np.split(table, [4, 4 + classes], axis=1)
    elif table.shape[2] == 6 + extra:
        table = table.transpose(0, 2, 1)  # [B, 6 + E, N]
        corners, score, label, rest = np.split(table, [4, 5, 6], axis=1)
        own = (label == np.arange(classes, dtype=table.dtype)[:, None]) & (score > 0)  # [B, C, N]
        named["scores"] = np.where(own, score, np.asarray(-1, dtype=table.dtype))
        low, high = corners[:, :2], corners[:, 2:]
        named["boxes"] = corners if card.task == "oriented" else np.concatenate([(low + high) / 2, high - low], axis=1)
    else:
        raise _unknown(outputs, card)
    if extra:
        named["angles" if card.task == "oriented" else "coefficients"] = rest
    return named


def _unknown(outputs: Mapping[str, NDArray[Any]], card: ModelCard) -> ModelError:
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
    return ModelError(
        f"the outputs {shapes} do not fit its task ({card.task}) and {len(card.categories)} classes; export the model again",
        where=card.name,
    )


def _value(metadata: Mapping[str, str], key: str, where: str | Path) -> Any:
    """A property that is written as a Python literal."""
    text = metadata.get(key, "")
    if len(text) <= _LONGEST:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return ast.literal_eval(text)
    raise CheckpointError(f"its metadata `{key}` cannot be read: {text[:80]!r}", where=where)
