"""A detector small enough to write down, as an ONNX file: it finds what is bright.

On a 64 x 64 input, an 8 x 8 cell of the finest grid whose red channel is bright is an object of class 0, green is class 1; its
box is the cell. Two bins a side with equal logits stand for a distance of half a stride. The coarser grids find nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pelagia.core.card import ModelCard
from pelagia.core.types import Category
from pelagia.infer.runtimes import CARD_KEY

CELLS = 64 + 16 + 4

#: What `mean_colours` needs, and the shape [B, 2, cells].
CONSTANTS: dict[str, NDArray[Any]] = {
    "zero": np.array([0], dtype=np.int64),
    "end": np.array([2], dtype=np.int64),
    "axis": np.array([1], dtype=np.int64),
    "flat": np.array([0, 0, -1], dtype=np.int64),
}


def mean_colours() -> list[onnx.NodeProto]:
    """From `images` the mean red and green of each cell of 8 x 8 pixels, `red_green` [B, 2, 8, 8]."""
    return [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Slice", ["pooled", "zero", "end", "axis"], ["red_green"]),
    ]


def save_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    metadata: Mapping[str, str],
) -> Path:
    """Write an ONNX file; inputs and outputs are names of float32 and their shapes."""
    (taken, given) = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in some.items()]
        for some in (inputs, outputs)
    )
    fixed = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "main_graph", taken, given, fixed)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
    return path


def tiny_card(**changes: object) -> ModelCard:
    values: dict[str, object] = {
        "name": "bright",
        "task": "detect",
        "decoder": "grids",
        "categories": (Category(3, "red"), Category(7, "green")),
        "input_size": (64, 64),
        "licence": "CC0-1.0",
    }
    return ModelCard(**{**values, **changes})  # type: ignore[arg-type]


def write_tiny(path: Path, card: ModelCard | None = None, *, batch: int | str = "batch", channels: int = 3) -> Path:
    """Write the detector, with `card` in its metadata (none for an empty text)."""
    constants = {
        **CONSTANTS,
        "half": np.array(0.5, dtype=np.float32),
        "gain": np.array(40.0, dtype=np.float32),
        "padding": np.full((1, 2, CELLS - 64), -20.0, dtype=np.float32),
        "sides": np.zeros((1, 8, CELLS), dtype=np.float32),
    }
    nodes = [
        *mean_colours(),
        helper.make_node("Sub", ["red_green", "half"], ["centred"]),
        helper.make_node("Mul", ["centred", "gain"], ["logits"]),
        helper.make_node("Reshape", ["logits", "flat"], ["fine"]),
        helper.make_node("ReduceMin", ["fine"], ["nothing"], axes=[1, 2], keepdims=1),
        helper.make_node("Sub", ["nothing", "nothing"], ["nil"]),
        helper.make_node("Add", ["nil", "padding"], ["coarse"]),
        helper.make_node("Concat", ["fine", "coarse"], ["scores"], axis=2),
        helper.make_node("Add", ["nil", "sides"], ["boxes"]),
    ]
    inputs: dict[str, list[int | str]] = {"images": [batch, channels, 64, 64]}
    outputs: dict[str, list[int | str]] = {"boxes": [batch, 8, CELLS], "scores": [batch, 2, CELLS]}
    return save_graph(path, nodes, constants, inputs, outputs, {CARD_KEY: (card or tiny_card()).to_json()})
