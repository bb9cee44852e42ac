"""8-bit files: layers whose ranges are measured on the user's images, kept only if the score on labelled images hardly falls.

Post-training quantization: weights and activations x become round(x / s) + z in 8 bits, with s and z from the values that the
layers take on calibration images (Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018). Weights have one s per output channel. ONNX files hold the pairs of QuantizeLinear
and DequantizeLinear that ONNX Runtime's own tool writes; OpenVINO files what NNCF writes.

All weighted layers are tried first (`int8_graph`). If that costs too much, the last one on each way to an output stays in float:
its values are coordinates and logits, of which rounding costs most.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization

from pelagia.core.card import ModelCard
from pelagia.core.files import atomic_path
from pelagia.core.image import image_size, letterbox
from pelagia.core.lazy import resolve
from pelagia.core.scan import open_scan
from pelagia.data.dataset import Dataset
from pelagia.decode import DecodeOptions
from pelagia.errors import ExportError, OptionError
from pelagia.export.int8_graph import fold_constants, in_8_bits, join_silu, layers_of_onnx, layers_of_openvino
from pelagia.export.onnx import FileKind, check_target
from pelagia.export.openvino import write_ir
from pelagia.infer.evaluate import Scores, evaluate
from pelagia.infer.openvino_runtime import OpenVinoRuntime, openvino_core
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import CARD_KEY, VALID, OnnxRuntime, PaddedRuntime, Runtime
from pelagia.infer.views import answer, is_full_resolution, is_tiled, lay, tile_size, views
from pelagia.metrics.result import DetectionResult
from pelagia.metrics.semantic_result import SemanticResult

__all__ = ["Given", "Int8Report", "calibration_inputs", "export_int8", "score_of"]

#: What a network is given at once, by the names of its inputs.
Given: TypeAlias = Mapping[str, NDArray[Any]]

#: Name of the input with the images.
_IMAGES = "images"

#: Tiles of one large image that calibration looks at.
_TILES = 4

#: Runs of the network before time is taken, the most that are timed, and after how many seconds no more is begun.
_WARM, _TIMED, _SECONDS = 2, 30, 3.0


@dataclass(frozen=True, slots=True)
class Int8Report:
    """What was written, and what 8 bits cost on the images that it was scored on.

    Args:
        score: what was measured: AP, mIoU or PQ.
        before, after: the score of the float file and of the 8-bit file, in the runtime that the file is for.
        before_ms, after_ms: milliseconds of one input through each network alone, on all cores: medians.
        calibration: number of inputs that the ranges were measured on.
        float_head: whether the last layers stayed in float.
    """

    path: Path
    kind: FileKind
    score: str
    before: float
    after: float
    before_ms: float
    after_ms: float
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
        ExportError: the score falls by more, or does not exceed `max_drop` in float, so that nothing would be measured (1 allows
            that too); `source` is not a float file of `pelagia export`, or NNCF cannot quantize it. `path` then stays as it was.
        OptionError: `max_drop` or `most` cannot be used, or `path` cannot be written (`check_target`).
        MissingExtraError: the extra `openvino` is not installed.
    """
    if not 0 <= max_drop <= 1 or most < 1:
        raise OptionError(f"max_drop must lie in 0 to 1 and most be at least 1, got {max_drop} and {most}")
    check_target(path, kind, source)
    start = time.perf_counter()
    _check_source(Path(source))
    opened = _open(source, kind)
    card = opened.card
    score, before = score_of(evaluate(opened, data, show=show))
    if not np.isfinite(before) or before <= max_drop < 1:
        told = f"{score} {before:.4f}" if np.isfinite(before) else f"no {score}"
        raise ExportError(
            f"the model has {told} on these {len(data)} images, so what 8 bits cost cannot be measured; give labelled images of "
            "the kind that it was trained on",
            where=path,
        )
    inputs = calibration_inputs(data, opened, most)
    before_ms = _milliseconds(opened, inputs)
    tried = []
    for float_head in (False, True):
        facts = {"calibration_inputs": len(inputs), "float_head": float_head, "score": score, "float": before}
        with tempfile.TemporaryDirectory() as folder:
            # Scored as a file, in the runtime that it is for; written under its name only then.
            trial = Path(folder) / ("trial.onnx" if kind == "onnx" else "trial.xml")
            graph = _quantize(Path(source), kind, inputs, card, float_head=float_head)
            _write(graph, trial, kind, card)
            runtime = _open(trial, kind)
            after = score_of(evaluate(runtime, data, show=show))[1]
            tried.append(f"{after:.4f} {'with the last layers in float' if float_head else 'with all layers in 8 bits'}")
            if before - after <= max_drop:
                times = (before_ms, _milliseconds(runtime, inputs))
                size = _write(
                    graph, Path(path), kind, replace(card, manifest={**card.manifest, "int8": {**facts, "int8": after}})
                )
                counts = (len(data), len(inputs))
                seconds = time.perf_counter() - start
                return Int8Report(Path(path), kind, score, before, after, *times, *counts, float_head, size, seconds)
    raise ExportError(
        f"{score} falls from {before:.4f} to {' and '.join(tried)}, by more than {max_drop:g} on {len(data)} images; nothing was "
        "written. Calibrate on more images like those of use, or allow more with --max-ap-drop",
        where=path,
    )


class _Recorder:
    """A runtime that keeps what it is given: what prediction shows the network."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.kept: list[Given] = []

    @property
    def card(self) -> ModelCard:
        return self._runtime.card

    def run(self, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
        self.kept.append({_IMAGES: images.copy()} if valid is None else {_IMAGES: images.copy(), VALID: valid.copy()})
        return _run(self._runtime, self.kept[-1])


def calibration_inputs(data: Dataset, runtime: Runtime, most: int) -> list[Given]:
    """At most `most` inputs of the network, each of one image, as prediction gives them to `runtime`: whole images, or up to four
    tiles of a large one, from images spread evenly over `data`. Nothing is drawn at random."""
    card, options = runtime.card, PredictOptions()
    recorder = _Recorder(runtime)
    for index in np.unique(np.linspace(0, len(data) - 1, min(most, len(data))).round().astype(int)).tolist():
        path = data.image_paths[index]
        size = image_size(path)
        if is_tiled(size, card):
            tiles = lay(card, size, tile_size(card, options), options)
            chosen = [tiles[i] for i in sorted({*np.linspace(0, len(tiles) - 1, _TILES).round().astype(int).tolist()})]
            with open_scan(path) as scan, closing(views(scan, chosen, card, local=True, most=1)) as seen:
                shown = list(seen)
        else:
            enlarge = not is_full_resolution(card)
            shown = [letterbox(data.image(index), card.input_size, enlarge=enlarge, margin=card.margin)]
        for view, frame in shown[: most - len(recorder.kept)]:
            answer(recorder, [view], [frame], DecodeOptions())
        if len(recorder.kept) >= most:
            break
    return recorder.kept


def _run(runtime: Runtime, given: Given) -> dict[str, NDArray[Any]]:
    if VALID in given:
        return cast(PaddedRuntime, runtime).run(given[_IMAGES], given[VALID])
    return runtime.run(given[_IMAGES])


def _milliseconds(runtime: Runtime, inputs: Sequence[Given]) -> float:
    """The median time of one input through the network alone, on all cores."""
    spent: list[float] = []
    begin = time.perf_counter()
    for given in cycle(inputs):
        start = time.perf_counter()
        _run(runtime, given)
        end = time.perf_counter()
        spent.append(1000 * (end - start))
        if len(spent) > _WARM and (len(spent) >= _WARM + _TIMED or end - begin > _SECONDS):
            break
    return float(np.median(spent[_WARM:]))


def score_of(result: Scores) -> tuple[str, float]:
    """Name and value of the one number that stands for a result: AP, mIoU or PQ."""
    if isinstance(result, DetectionResult):
        return "AP", float(result.ap)
    if isinstance(result, SemanticResult):
        return "mIoU", float(result.mean_iou)
    return "PQ", float(result.all.pq)


def _check_source(source: Path) -> None:
    """Quantized layers cannot be quantized again, and another project's graph is not laid out as our card says."""
    opened = OnnxRuntime(source, device="cpu")
    known = {item.key for item in onnx.load(source, load_external_data=False).metadata_props}
    if CARD_KEY not in known:
        raise ExportError("8-bit files are made from a checkpoint or an .onnx of `pelagia export`", where=source)
    if "int8" in opened.card.manifest:
        raise ExportError("this file has 8-bit layers already; give the checkpoint or the float .onnx", where=source)


def _open(path: str | Path, kind: FileKind) -> Runtime:
    return OnnxRuntime(path, device="cpu") if kind == "onnx" else OpenVinoRuntime(path, device="cpu")


def _quantize(source: Path, kind: FileKind, inputs: Sequence[Given], card: ModelCard, *, float_head: bool) -> Any:
    """The graph with 8-bit layers, of the library of `kind`."""
    sides = onnx.load(source, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    batch = sides[0].dim_value or 1  # two-stage graphs may have a fixed one
    repeated = [{name: np.repeat(value, batch, axis=0) for name, value in item.items()} for item in inputs]
    return (_quantize_onnx if kind == "onnx" else _quantize_openvino)(source, repeated, card, float_head)


def _write(graph: Any, path: Path, kind: FileKind, card: ModelCard) -> int:
    if kind == "openvino":
        return write_ir(graph, path, card, lambda _: None)
    onnx.helper.set_model_props(graph, {CARD_KEY: card.to_json(), "license": card.licence})
    with atomic_path(path) as temporary:
        onnx.save(graph, str(temporary))
        return temporary.stat().st_size


# ONNX Runtime's tool


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands the inputs out one by one, as the tool asks for them."""

    def __init__(self, inputs: Sequence[Given]) -> None:
        self._left = iter(inputs)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next input, None after the last."""
        item = next(self._left, None)
        return None if item is None else dict(item)


def _quantize_onnx(source: Path, inputs: Sequence[Given], card: ModelCard, float_head: bool) -> onnx.ModelProto:
    graph = onnx.load(source)
    chosen = in_8_bits(*layers_of_onnx(graph), float_head=float_head)
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
            nodes_to_quantize=sorted(chosen),
        )
        return onnx.load(written)


# NNCF


def _quantize_openvino(source: Path, inputs: Sequence[Given], card: ModelCard, float_head: bool) -> Any:
    openvino = resolve("openvino", purpose="quantize a model for OpenVINO")
    # NNCF reports its use to its authors unless this is set before it is imported; nothing leaves this machine unasked.
    os.environ.setdefault("NNCF_CI", "1")
    nncf = resolve("nncf", purpose="quantize a model for OpenVINO")
    nncf.set_log_level(logging.ERROR)
    graph = openvino_core().read_model(str(source))
    fold_constants(graph, resolve("openvino.passes", purpose="quantize a model for OpenVINO"))
    join_silu(graph, openvino)
    layers, ends = layers_of_openvino(graph)
    left = sorted(set(layers) - in_8_bits(layers, ends, float_head=float_head))
    try:
        with _quiet(), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            return nncf.quantize(
                graph,
                nncf.Dataset([dict(item) for item in inputs]),
                preset=nncf.QuantizationPreset.MIXED,  # activations are not symmetric about 0 after SiLU or ReLU
                subset_size=len(inputs),
                model_type=nncf.ModelType.TRANSFORMER if card.decoder == "queries" else None,
                ignored_scope=nncf.IgnoredScope(names=left),
            )
    except RuntimeWarning as error:
        raise ExportError(f"NNCF cannot measure the ranges of this graph on these images ({error})", where=card.name) from error


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
