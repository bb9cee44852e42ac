"""ONNX files with the metadata properties and the output layout of Ultralytics' exports, small enough to write down.

The network resembles that of `tiny_onnx`: on a 64 x 64 input, a cell of 8 x 8 pixels whose red channel is bright is an object of
class 0, green is class 1. Its score is the mean brightness of the cell. The boxes of the cells are 10 wide and 6 high; oriented
ones are turned by `ANGLE`; the only prototype is +5 in the left half of the image, -5 in the right half.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tiny_onnx import CONSTANTS, mean_colours, save_graph

ANGLE = 0.3
WIDE, HIGH = 10.0, 6.0
CELLS = 64


def properties(task: str = "detect", **changes: str) -> dict[str, str]:
    """What such a file says of itself."""
    values = {
        "description": "Ultralytics YOLO11n model ",
        "version": "8.4.190",
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "channels": "3",
        "stride": "32",
        "task": task,
        "batch": "1",
        "imgsz": "[64, 64]",
        "names": "{0: 'red', 1: 'green'}",
        "end2end": "False",
    }
    return {**values, **changes}


def cells() -> NDArray[np.float32]:
    """[4, 64] centre x, centre y, width and height of the boxes, row by row."""
    y, x = np.meshgrid(np.arange(8) * 8.0 + 4, np.arange(8) * 8.0 + 4, indexing="ij")
    return np.stack([x.ravel(), y.ravel(), np.full(CELLS, WIDE), np.full(CELLS, HIGH)]).astype(np.float32)


def write_foreign(
    path: Path, metadata: dict[str, str], *, selected: bool = False, batch: int | str = 1, side: int | str = 64
) -> Path:
    """Write the file; `selected` for the layout of a graph that holds its own suppression (here every cell is a row)."""
    task = metadata["task"]
    boxes = cells()
    if selected and task != "obb":
        boxes = np.concatenate([boxes[:2] - boxes[2:] / 2, boxes[:2] + boxes[2:] / 2])
    extra = {"obb": np.full((1, CELLS), ANGLE), "segment": np.ones((1, CELLS))}.get(task, np.zeros((0, CELLS)))
    prototype = np.where(np.arange(16) < 8, 5.0, -5.0) * np.ones((1, 1, 16, 1))
    constants = {
        **CONSTANTS,
        "fixed_boxes": boxes[None].astype(np.float32),
        "fixed_prototypes": prototype.astype(np.float32),
        "map": np.array([0, 1, 1, 1], dtype=np.int64),
    }
    node = helper.make_node
    nodes = [
        *mean_colours(),
        node("Reshape", ["red_green", "flat"], ["scores"]),
        node("ReduceMin", ["scores"], ["least"], axes=[1, 2], keepdims=1),
        node("Sub", ["least", "least"], ["nil"]),
        node("Add", ["nil", "fixed_boxes"], ["boxes"]),
    ]
    beside = []
    if len(extra):  # OpenVINO knows no tensors without elements
        constants["fixed_extra"] = extra[None].astype(np.float32)
        nodes.append(node("Add", ["nil", "fixed_extra"], ["extra"]))
        beside = ["extra"]
    if selected:
        nodes += [
            node("ReduceMax", ["scores"], ["best"], axes=[1], keepdims=1),
            node("ArgMax", ["scores"], ["number"], axis=1, keepdims=1),
            node("Cast", ["number"], ["label"], to=TensorProto.FLOAT),
            node("Concat", ["boxes", "best", "label", *beside], ["columns"], axis=1),
            node("Transpose", ["columns"], ["output0"], perm=[0, 2, 1]),
        ]
        shape: list[int | str] = [batch, CELLS, 6 + len(extra)]
    else:
        nodes.append(node("Concat", ["boxes", "scores", *beside], ["output0"], axis=1))
        shape = [batch, 6 + len(extra), CELLS if side == 64 else "anchors"]
    outputs = {"output0": shape}
    if task == "segment":
        nodes += [node("Reshape", ["nil", "map"], ["nil4"]), node("Add", ["nil4", "fixed_prototypes"], ["output1"])]
        outputs["output1"] = [batch, 1, 16, 16]
    inputs: dict[str, list[int | str]] = {"images": [batch, 3, side, side]}
    return save_graph(path, nodes, constants, inputs, outputs, metadata)
