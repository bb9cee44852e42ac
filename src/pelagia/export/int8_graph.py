"""Which layers of a graph are computed in 8 bits: the same rule for ONNX and for OpenVINO.

Weighted layers are, and what lies between them. What follows the last of them on the way to an output, and what picks boxes in
the middle of a two-stage detector, is arithmetic with coordinates and logits: little work, and 256 steps over an image of 640
pixels would round each corner to 2.5 pixels. Nor have all of these values a range that could be measured: what is not to be
picked, or not to be attended to, is set to the least number there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

__all__ = [
    "Layer",
    "before_outputs",
    "between",
    "fold_constants",
    "in_8_bits",
    "join_silu",
    "layers_of_onnx",
    "layers_of_openvino",
]

#: Layers with weights, and products of two activations (attention). ONNX Runtime has no 8-bit kernel for ConvTranspose.
WEIGHTED = frozenset(
    ("Conv", "Gemm", "MatMul", "Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
)

#: Operators that lie between weighted layers: those that combine all their inputs, and those that change their first one.
_COMBINING = frozenset(("Add", "Concat", "Mul", "Multiply"))
_CHANGING = frozenset(
    (
        *("AveragePool", "AvgPool", "Clamp", "Clip", "GlobalAveragePool", "LeakyRelu", "MaxPool", "ReduceMean", "Relu", "ReLU"),
        *("DepthToSpace", "FakeQuantize", "Flatten", "Interpolate", "Pad", "Reshape", "Resize", "Sigmoid", "Slice", "Split"),
        *("Squeeze", "StridedSlice", "Swish", "Transpose", "Unsqueeze", "VariadicSplit"),
    )
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One operator: its kind, and the names of the operators that make its inputs, "" for constants and inputs of the graph."""

    kind: str
    inputs: tuple[str, ...]


def layers_of_onnx(graph: onnx.ModelProto) -> tuple[dict[str, Layer], list[str]]:
    """Name -> operator, and the names of those that make the outputs."""
    makers = {name: node.name for node in graph.graph.node for name in node.output}
    layers = {node.name: Layer(node.op_type, tuple(makers.get(name, "") for name in node.input)) for node in graph.graph.node}
    return layers, [makers.get(output.name, "") for output in graph.graph.output]


def layers_of_openvino(graph: Any) -> tuple[dict[str, Layer], list[str]]:
    """As `layers_of_onnx`."""
    layers: dict[str, Layer] = {}
    ends: list[str] = []
    for node in graph.get_ordered_ops():
        kind, made = node.get_type_name(), [value.get_node() for value in node.input_values()]
        inputs = tuple("" if item.get_type_name() in ("Constant", "Parameter") else item.get_friendly_name() for item in made)
        if kind == "Result":
            ends += inputs
        elif kind not in ("Constant", "Parameter"):
            layers[node.get_friendly_name()] = Layer(kind, inputs)
    return layers, ends


def in_8_bits(layers: Mapping[str, Layer], ends: Iterable[str], *, float_head: bool) -> set[str]:
    """The operators whose inputs are rounded: weighted layers and what lies between them, without the last on each way to an
    output if `float_head`."""
    chosen = between(layers) | {name for name, layer in layers.items() if layer.kind in WEIGHTED}
    return chosen - before_outputs(layers, ends) if float_head else chosen


def before_outputs(layers: Mapping[str, Layer], ends: Iterable[str]) -> set[str]:
    """The last weighted layer on each way to an output, and what follows it."""
    found: set[str] = set()
    open_ends = list(ends)
    while open_ends:
        name = open_ends.pop()
        if name in layers and name not in found:
            found.add(name)
            open_ends += () if layers[name].kind in WEIGHTED else layers[name].inputs
    return found


def between(layers: Mapping[str, Layer]) -> set[str]:
    """The operators from which a way leads to a weighted layer over nothing but operators of `_COMBINING` and `_CHANGING`."""
    found: set[str] = set()
    open_ends = [name for layer in layers.values() if layer.kind in WEIGHTED for name in layer.inputs]
    while open_ends:
        name = open_ends.pop()
        layer = layers.get(name)
        if layer is not None and name not in found and layer.kind in _COMBINING | _CHANGING:
            found.add(name)
            open_ends += layer.inputs if layer.kind in _COMBINING else layer.inputs[:1]
    return found


def fold_constants(graph: Any, passes: Any) -> None:
    """Compute what depends on constants alone, in an OpenVINO graph.

    The kernels of a depthwise convolution come out of an ONNX file through a Reshape. NNCF takes the axes of their scales from
    the shape before it, and gives a scale to each column of a kernel instead of to each channel; OpenVINO then computes all
    depthwise convolutions in float. Behind the constant itself the axes are right.
    """
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(graph)


def join_silu(graph: Any, openvino: Any) -> int:
    """Make x * sigmoid(x), as it stands in ONNX, one operator, and tell how many there were.

    Else NNCF rounds between the two, and the activation is not computed within the convolution before it: for YOLO11n a
    quarter of the network's time.
    """
    count = 0
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Multiply":
            continue
        for value, gate in (node.input_values(), node.input_values()[::-1]):
            sigmoid = gate.get_node()
            if sigmoid.get_type_name() == "Sigmoid" and _same(sigmoid.input_value(0), value):
                joined = openvino.opset13.swish(value)
                joined.set_friendly_name(node.get_friendly_name())
                node.output(0).replace(joined.output(0))
                count += 1
                break
    return count


def _same(first: Any, second: Any) -> bool:
    names = [(item.get_node().get_friendly_name(), item.get_index()) for item in (first, second)]
    return names[0] == names[1]
