"""A detector small enough to write down, as an ONNX file: it finds what is bright.

On a 64 x 64 input, an 8 x 8 cell of the finest grid whose red channel is bright is an object of class 0, green is class 1; its
box is the cell. Two bins a side with equal logits stand for a distance of half a stride. The coarser grids find nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pelagia.core.card import ModelCard
from pelagia.core.types import Category
from pelagia.infer.runtimes import CARD_KEY

CELLS = 64 + 16 + 4


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
        "two": np.array([0, 2], dtype=np.int64),
        "zero": np.array([0], dtype=np.int64),
        "end": np.array([2], dtype=np.int64),
        "axis": np.array([1], dtype=np.int64),
        "flat": np.array([0, 0, -1], dtype=np.int64),
        "half": np.array(0.5, dtype=np.float32),
        "gain": np.array(40.0, dtype=np.float32),
        "padding": np.full((1, 2, CELLS - 64), -20.0, dtype=np.float32),
        "one_row": np.array([1], dtype=np.int64),
        "sides": np.zeros((1, 8, CELLS), dtype=np.float32),
    }
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Slice", ["pooled", "zero", "end", "axis"], ["red_green"]),
        helper.make_node("Sub", ["red_green", "half"], ["centred"]),
        helper.make_node("Mul", ["centred", "gain"], ["logits"]),
        helper.make_node("Reshape", ["logits", "flat"], ["fine"]),
        helper.make_node("ReduceMin", ["fine"], ["nothing"], axes=[1, 2], keepdims=1),
        helper.make_node("Sub", ["nothing", "nothing"], ["nil"]),
        helper.make_node("Add", ["nil", "padding"], ["coarse"]),
        helper.make_node("Concat", ["fine", "coarse"], ["scores"], axis=2),
        helper.make_node("Add", ["nil", "sides"], ["boxes"]),
    ]
    graph = helper.make_graph(
        nodes,
        "bright",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, channels, 64, 64])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, 8, CELLS]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 2, CELLS]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {CARD_KEY: (card or tiny_card()).to_json()})
    onnx.save(model, path)
    return path
