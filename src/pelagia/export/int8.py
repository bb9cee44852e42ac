"""8-bit files: layers whose ranges are measured on the user's images, kept only if the score on labelled images hardly falls.

Post-training quantization: weights and activations x become round(x / s) + z in 8 bits, with s and z from the values that the
layers take on calibration images (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018). Weights have one s per output channel. ONNX files hold the pairs of QuantizeLinear
and DequantizeLinear that ONNX Runtime's own tool writes; OpenVINO files what NNCF writes.

All layers are tried first. If that costs too much, the last weighted layer on each way to an output stays in float: its values
are coordinates and logits, of which rounding costs most.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization

from pelagia.core.card import ModelCard
from pelagia.core.files import atomic_path
from pelagia.core.image import letterbox, normalise
from pelagia.core.lazy import resolve
from pelagia.core.scan import Scan
from pelagia.data.dataset import Dataset
from pelagia.errors import ExportError, OptionError
from pelagia.export.openvino import write_ir
from pelagia.infer.evaluate import Scores, evaluate
from pelagia.infer.openvino_runtime import OpenVinoRuntime
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import CARD_KEY, VALID, OnnxRuntime, Runtime
from pelagia.infer.views import in_corners, is_full_resolution, is_tiled, lay, tile_size, views
from pelagia.metrics.result import DetectionResult
from pelagia.metrics.semantic_result import SemanticResult

__all__ = ["FileKind", "Int8Report", "calibration_inputs", "export_int8"]

FileKind: TypeAlias = Literal["onnx", "openvino"]

#: Operators with weights, whose inputs and outputs are 8-bit; what lies between them is too where the operator can.
_WEIGHTED = ("Conv", "MatMul", "Gemm")

#: Tiles of one large image that calibration looks at.
_TILES = 4


@dataclass(frozen=True, slots=True)
class Int8Report:
    """What was written, and what 8 bits cost on the images that it was scored on.

    Args:
        score: what was measured: AP, mIoU or PQ.
        before, after: the score of the float file and of the 8-bit file, in the runtime that the file is for.
        calibration: number of inputs that the ranges were measured on.
        float_head: whether the last layers stayed in float.
    """

    path: Path
    kind: FileKind
    score: str
    before: float
    after: float
    images: int
    calibration: int
    float_head: bool
    size_bytes: int
    seconds: float

    @property
    def drop(self) -> float:
        """`before` minus `after`; negative where 8 bits happen to score higher."""
        return self.before - self.after

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "path": str(self.path), "drop": self.drop}


def export_int8(
    source: str | Path,
    path: str | Path,
    data: Dataset,
    kind: FileKind = "onnx",
    *,
    most: int = 128,
    max_drop: float = 0.01,
    show: bool | None = None,
) -> Int8Report:
    """Write the float file `source` (an .onnx of `pelagia export`) with 8-bit layers to `path`.

    Args:
        data: labelled images; up to `most` inputs, spread evenly, are calibrated on, all are scored.
        max_drop: the most that the score may fall: AP of objects, mIoU of class maps, PQ of panoptic maps.
        show: progress bars of the evaluations; None for where standard error is a terminal.

    Raises:
        ExportError: the score falls by more, or does not exist; `path` then stays as it was.
        OptionError: `max_drop` or `most` cannot be used, or `path` has the wrong ending.
        MissingExtraError: the extra `openvino` is not installed.
    """
    if not 0 <= max_drop <= 1 or most < 1:
        raise OptionError(f"max_drop must lie in 0 to 1 and most be at least 1, got {max_drop} and {most}")
    start = time.perf_counter()
    opened = _open(source, kind)
    card = opened.card
    score, before = _score(evaluate(opened, data, show=show))
    if not np.isfinite(before):
        raise ExportError(f"the model has no {score} on these {len(data)} images, so its loss cannot be measured", where=path)
    inputs = list(calibration_inputs(data, card, most))
    tried = []
    for float_head in (False, True):
        facts = {"calibration_inputs": len(inputs), "float_head": float_head, "score": score, "float": before}
        with tempfile.TemporaryDirectory() as folder:
            # Scored as a file, in the runtime that it is for; written under its name only then.
            trial = Path(folder) / ("trial.onnx" if kind == "onnx" else "trial.xml")
            graph = _quantize(Path(source), kind, inputs, card, float_head=float_head)
            _write(graph, trial, kind, card)
            after = _score(evaluate(_open(trial, kind), data, show=show))[1]
            tried.append(f"{after:.4f} {'with the last layers in float' if float_head else 'with all layers in 8 bits'}")
            if before - after <= max_drop:
                size = _write(
                    graph, Path(path), kind, replace(card, manifest={**card.manifest, "int8": {**facts, "int8": after}})
                )
                counts = (len(data), len(inputs))
                seconds = time.perf_counter() - start
                return Int8Report(Path(path), kind, score, before, after, *counts, float_head, size, seconds)
    raise ExportError(
        f"{score} falls from {before:.4f} to {' and '.join(tried)}, by more than {max_drop:g} on {len(data)} images; nothing was "
        "written. Calibrate on more images like those of use, or allow more with --max-ap-drop",
        where=path,
    )


def calibration_inputs(data: Dataset, card: ModelCard, most: int) -> Iterator[dict[str, NDArray[Any]]]:
    """At most `most` inputs of the network by name, `images` [1, 3, H, W] and where it masks padding `valid` [1, 2], from images
    spread evenly over `data`, as prediction would show them: whole images, or up to four tiles of a large one."""
    options = PredictOptions()
    left = most
    for index in np.unique(np.linspace(0, len(data) - 1, min(most, len(data))).round().astype(int)).tolist():
        image = data.image(index)
        size = (image.shape[1], image.shape[0])
        shown = []
        if is_tiled(size, card):
            tile = tile_size(card, options)
            tiles = lay(card, size, tile, options)
            chosen = [tiles[i] for i in sorted({*np.linspace(0, len(tiles) - 1, _TILES).round().astype(int).tolist()})]
            with closing(views(Scan.of(image), chosen, card, local=True, most=1)) as seen:
                shown = list(seen)
        else:
            shown = [letterbox(image, card.input_size, enlarge=not is_full_resolution(card), margin=card.margin)]
        for view, frame in shown[:left]:
            picture, told = view, {}
            if card.masks_padding:
                (picture,), _, valid = in_corners([view], [frame])
                told = {VALID: valid}
            yield {"images": np.ascontiguousarray(normalise(picture, card.normalisation)[None]), **told}
        left -= len(shown)
        if left <= 0:
            return


def _score(result: Scores) -> tuple[str, float]:
    if isinstance(result, DetectionResult):
        return "AP", float(result.ap)
    if isinstance(result, SemanticResult):
        return "mIoU", float(result.mean_iou)
    return "PQ", float(result.all.pq)


def _open(path: str | Path, kind: FileKind) -> Runtime:
    return OnnxRuntime(path, device="cpu") if kind == "onnx" else OpenVinoRuntime(path, device="cpu")


def _quantize(source: Path, kind: FileKind, inputs: list[dict[str, NDArray[Any]]], card: ModelCard, *, float_head: bool) -> Any:
    """The graph with 8-bit layers, of the library of `kind`."""
    return (_quantize_onnx if kind == "onnx" else _quantize_openvino)(source, inputs, card, float_head)


def _write(graph: Any, path: Path, kind: FileKind, card: ModelCard) -> int:
    if kind == "openvino":
        return write_ir(graph, path, card, lambda _: None)
    if path.suffix != ".onnx":
        raise OptionError("an ONNX file ends with .onnx", where=path)
    onnx.helper.set_model_props(graph, {CARD_KEY: card.to_json(), "license": card.licence})
    with atomic_path(path) as temporary:
        onnx.save(graph, str(temporary))
        return temporary.stat().st_size


# ONNX Runtime's tool


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands the inputs out one by one, as the tool asks for them."""

    def __init__(self, inputs: list[dict[str, NDArray[Any]]]) -> None:
        self._left = iter(inputs)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next inputs by their names, None after the last."""
        return next(self._left, None)


def _quantize_onnx(source: Path, inputs: list[dict[str, NDArray[Any]]], card: ModelCard, float_head: bool) -> onnx.ModelProto:
    graph = onnx.load(source)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        written = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            graph,
            str(written),
            _Reader(inputs),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=_last_onnx(graph) if float_head else [],
        )
        return onnx.load(written)


def _last_onnx(graph: onnx.ModelProto) -> list[str]:
    """Names of the nodes behind the last weighted layers on all ways to an output, those layers included."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    names: set[str] = set()
    open_ends = [output.name for output in graph.graph.output]
    while open_ends:
        node = makers.get(open_ends.pop())
        if node is not None and node.name not in names:
            names.add(node.name)
            open_ends += [] if node.op_type in _WEIGHTED else list(node.input)
    return sorted(names)


# NNCF


def _quantize_openvino(source: Path, inputs: list[dict[str, NDArray[Any]]], card: ModelCard, float_head: bool) -> Any:
    openvino = resolve("openvino", purpose="quantize a model for OpenVINO")
    # NNCF reports its use to its authors unless this is set before it is imported; nothing leaves this machine unasked.
    os.environ.setdefault("NNCF_CI", "1")
    nncf = resolve("nncf", purpose="quantize a model for OpenVINO")
    nncf.set_log_level(logging.ERROR)
    graph = openvino.Core().read_model(str(source))
    _join_silu(graph, openvino)
    with _quiet():
        return nncf.quantize(
            graph,
            nncf.Dataset(inputs),
            preset=nncf.QuantizationPreset.MIXED,  # activations are not symmetric about 0 after SiLU or ReLU
            subset_size=len(inputs),
            model_type=nncf.ModelType.TRANSFORMER if card.decoder == "queries" else None,
            ignored_scope=nncf.IgnoredScope(names=_last_openvino(graph)) if float_head else None,
        )


def _join_silu(graph: Any, openvino: Any) -> int:
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


def _last_openvino(graph: Any) -> list[str]:
    """As `_last_onnx`, in OpenVINO's graph."""
    names: set[str] = set()
    open_ends = list(graph.get_results())
    while open_ends:
        for value in open_ends.pop().input_values():
            node = value.get_node()
            if node.get_type_name() in ("Constant", "Parameter") or node.get_friendly_name() in names:
                continue
            names.add(node.get_friendly_name())
            if node.get_type_name() not in ("Convolution", "GroupConvolution", "MatMul"):
                open_ends.append(node)
    return sorted(names)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Both tools print progress and advice on standard output and through the root logger, which belong to the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
