"""Export to ONNX: raw outputs, the model's card inside the file, and a proof that it answers like the model.

The graph ends at the raw outputs; decoding and suppression stay outside, in numpy, so that one file runs in every ONNX runtime.
(A two-stage detector suppresses between its stages: its graph holds NonMaxSuppression and RoiAlign.)
The batch is free, height and width are those of the card. A file that differs from the model is never left behind.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxscript.onnx_opset import opset18
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from pelagia.core.card import ModelCard
from pelagia.core.files import atomic_path
from pelagia.core.image import letterbox, normalise
from pelagia.data.synthetic import draw_image
from pelagia.errors import ExportError, OptionError
from pelagia.infer.runtimes import CARD_KEY, VALID, OnnxRuntime, PaddedRuntime, Runtime
from pelagia.models.model import Model
from pelagia.models.queries.mask2former import Mask2Former
from pelagia.models.receptive_field import receptive_field
from pelagia.nn.layers import fuse
from pelagia.nn.suppression import OPERATOR

__all__ = [
    "OPSET",
    "TOLERANCE",
    "Difference",
    "ExportReport",
    "FileKind",
    "check_agreement",
    "check_target",
    "compare_runtime",
    "export_onnx",
]

FileKind: TypeAlias = Literal["onnx", "openvino"]

#: What the files of each kind are called in a sentence, and their ending.
_KINDS: dict[FileKind, tuple[str, str]] = {"onnx": ("ONNX", ".onnx"), "openvino": ("OpenVINO", ".xml")}

#: Opset of the graph: the oldest that PyTorch's exporter writes without a conversion.
OPSET = 18

#: Largest |exported - model| / (1 + |model|) over all raw outputs that counts as equal.
TOLERANCE = 1e-3

#: Logits of masks that are so near to 0 may round to either side of it.
_EDGE = 1e-4

#: The roundings of a deep network add up to what intensities moved by up to this share do to its answer; so often a two-stage
#: detector is tried with such.
_ROUNDING, _TRIALS = 1e-5, 4

#: Batches that the exported file is tried with: the free axis must be free.
_BATCHES = (1, 3)


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest differences of one raw output: |a - b|, and |a - b| / (1 + |b|) with b the model's own value; and `limit`, the
    most that the second was allowed to be, infinite where nothing was refused. `left_out` detections of each batch, those that
    differ most, did not count, since rounding decides them in the model too (`check_agreement`)."""

    absolute: float
    relative: float
    limit: float = math.inf
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported, and how far it is from the model."""

    path: Path
    opset: int
    size_bytes: int
    inputs: dict[str, list[str]]
    outputs: dict[str, Difference]
    tolerance: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "path": str(self.path)}


class _Raw(nn.Module):
    """The model with its outputs as a tuple, in the order of their names: graphs have no dictionaries."""

    def __init__(self, model: Model, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, images: Tensor, valid: Tensor | None = None) -> tuple[Tensor, ...]:
        """Raw outputs of images [B, 3, H, W], of which `valid` [B, 2] is image."""
        outputs = self.model(images, valid)
        return tuple(outputs[name] for name in self.names)


def check_target(path: str | Path, kind: FileKind, source: str | Path | None = None) -> None:
    """Before the work rather than after it: whether `path` may be written, with the .bin beside it for OpenVINO.

    Raises:
        OptionError: it has not the ending of its `kind`; it would replace `source`, which the model came from; or a .bin is there
            without its .xml, so that it is not the weights of an earlier export but perhaps another project's checkpoint.
    """
    target, (name, ending) = Path(path), _KINDS[kind]
    if target.suffix != ending:
        others = [f"; for {text} take --format {other}" for other, (text, end) in _KINDS.items() if end == target.suffix]
        raise OptionError(f"a file of {name} ends with {ending}{''.join(others)}", where=target)
    weights = target.with_suffix(".bin")
    written = [target, weights] if kind == "openvino" else [target]
    if source is not None and Path(source).exists() and any(file.exists() and file.samefile(source) for file in written):
        raise OptionError("this would replace the file that the model comes from; choose another name with --out", where=target)
    if kind == "openvino" and weights.exists() and not target.exists():
        raise OptionError(
            f"its weights would replace {weights.name}, which lies there without an .xml and may be another file; "
            "choose another name with --out, or move that file away",
            where=target,
        )


def export_onnx(model: Model, path: str | Path, *, tolerance: float = TOLERANCE) -> ExportReport:
    """Write `model` as ONNX to `path`, run it, and compare it with the model on noise and on a drawn image.

    Raises:
        ExportError: the graph cannot be written, or an output differs by more than `check_agreement` allows; `path` then stays as
            it was.
        OptionError: `path` does not end with .onnx.
    """
    check_target(path, "onnx")
    start = time.perf_counter()
    plain = fuse(model).cpu().float()
    if plain.card.task == "semantic" and "receptive_field" not in plain.card.manifest:
        plain.card = replace(plain.card, manifest={**plain.card.manifest, "receptive_field": receptive_field(plain)})
    height, width = plain.card.input_size
    images = torch.rand((2, 3, height, width), generator=torch.Generator().manual_seed(0))
    inputs = (images, torch.tensor([[height, width], [height - 1, width // 2]])) if plain.card.masks_padding else (images,)
    with torch.inference_mode():
        names = [name for name in plain(*inputs) if name != VALID]  # an input does not come back
    graph = _trace(_Raw(plain, names).eval(), inputs, names)
    onnx.helper.set_model_props(graph, {CARD_KEY: plain.card.to_json(), "license": plain.card.licence})
    with atomic_path(path) as temporary:
        onnx.save(graph, str(temporary))
        runtime = OnnxRuntime(temporary, device="cpu")
        outputs = check_agreement(model, runtime, tolerance, path)
        size = temporary.stat().st_size
    shapes = {"images": ["batch", "3", str(height), str(width)], **({VALID: ["batch", "2"]} if len(inputs) == 2 else {})}
    return ExportReport(Path(path), OPSET, size, shapes, outputs, tolerance, time.perf_counter() - start)


def check_agreement(model: Model, runtime: Runtime, tolerance: float, where: str | Path) -> dict[str, Difference]:
    """`compare_runtime`, which must find no relative difference above `tolerance`; each is returned with the limit that it was
    held to.

    Masked attention (Mask2Former) decides by the sign of a logit who sees which cell. At full size there are millions of them,
    and where one is nearly zero, rounding decides, in the model as in the file, and the answer jumps. Beyond the tolerance such
    a file may therefore differ by twice as much as the model does from itself when all its logits are moved by `_EDGE`, up and
    down: what lies within rounding of the edge, and only that, then changes sides.

    A two-stage detector decides by an overlap, or by which proposal is the last of the best, whether a detection is there. Beyond
    the tolerance twice as many detections may be others in the file as change in the model itself when its images are moved by
    `_ROUNDING`: where none does, none may.

    Raises:
        ExportError: an output differs by more, or has another name or shape.
    """
    outputs = compare_runtime(model, runtime)
    limits, left_out = dict.fromkeys(outputs, tolerance), 0
    if not all(item.relative <= tolerance for item in outputs.values()):
        if isinstance(model, Mask2Former):
            limits = {name: tolerance + 2 * jump for name, jump in _jumps(model).items()}
        elif model.card.decoder == "regions":
            left_out = 2 * _flips(model, tolerance)
            outputs = compare_runtime(model, runtime, left_out=left_out)
    worst = max(outputs, key=lambda name: outputs[name].relative / limits[name])
    if not outputs[worst].relative <= limits[worst]:  # NaN too
        raise ExportError(
            f"the exported graph differs from the model: {worst} by {outputs[worst].absolute:.3g}, relative "
            f"{outputs[worst].relative:.3g}, more than {limits[worst]:g}; nothing was written",
            where=where,
        )
    return {name: replace(item, limit=limits[name], left_out=left_out) for name, item in outputs.items()}


def _jumps(model: Mask2Former) -> dict[str, float]:
    """The largest relative difference of each raw output when the logits of masked attention are moved by `_EDGE`."""
    network = copy.deepcopy(model).cpu().float().eval()
    found: dict[str, float] = {}
    for batch in _BATCHES:
        images = torch.from_numpy(_inputs(model.card, batch))
        answers = []
        for shift in (0.0, _EDGE, -_EDGE):
            network.decoder.shift = shift
            with torch.inference_mode():
                answers.append(network(images))
        for name, value in answers[0].items():
            apart = [float(((other[name] - value).abs() / (1 + value.abs())).max()) for other in answers[1:]]
            found[name] = max(found.get(name, 0.0), *apart)
    return found


def _flips(model: Model, tolerance: float) -> int:
    """The most detections of a batch that change by more than `tolerance` in the model when its images are moved by rounding."""
    network, rng, most = copy.deepcopy(model).cpu().float().eval(), np.random.default_rng(0), 0
    for batch in _BATCHES:
        images, valid = _inputs(model.card, batch), _valid(model.card, batch)
        expected = _answers(network, images, valid)
        for _ in range(_TRIALS):
            moved = images * (1 + _ROUNDING * rng.uniform(-1, 1, images.shape).astype(np.float32))
            apart = _apart(_paired(_answers(network, moved, valid), expected), expected)
            most = max(most, int((_of_detections(apart) > tolerance).sum()))
    return most


def compare_runtime(model: Model, runtime: Runtime, *, left_out: int = 0) -> dict[str, Difference]:
    """The largest difference of each raw output between a runtime and the model, on noise and on a drawn image.

    Args:
        left_out: so many detections of each batch of a two-stage detector, those that differ most, do not count.

    Raises:
        ExportError: the outputs have other names or shapes.
    """
    # As it was trained, not fused: the comparison covers everything that export does.
    reference = copy.deepcopy(model).cpu().float().eval()
    found: dict[str, Difference] = {}
    for batch in _BATCHES:
        images = _inputs(runtime.card, batch)
        valid = _valid(runtime.card, batch)
        expected = _answers(reference, images, valid)
        got = runtime.run(images) if valid is None else cast(PaddedRuntime, runtime).run(images, valid)
        if {name: value.shape for name, value in got.items()} != {name: value.shape for name, value in expected.items()}:
            raise ExportError(
                f"the exported graph gives {_shapes(got)}, the model {_shapes(expected)} for a batch of {batch}",
                where=runtime.card.name,
            )
        regions = runtime.card.decoder == "regions"
        apart = _apart(_paired(got, expected) if regions else got, expected)
        if regions and left_out:
            rows = _of_detections(apart)
            counts = (rows < np.sort(rows, axis=None)[-min(left_out, rows.size)]) | np.isinf(rows)
            apart = {name: value[:, counts] for name, value in apart.items()}
        for name, value in apart.items():
            before = found.get(name, Difference(0.0, 0.0))
            absolute, relative = (each.max(initial=0) for each in value)
            found[name] = Difference(
                float(np.maximum(before.absolute, absolute)),
                float(np.maximum(before.relative, relative)),
            )
    return found


def _answers(network: Model, images: NDArray[np.float32], valid: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
    with torch.inference_mode():
        raw = network(torch.from_numpy(images), None if valid is None else torch.from_numpy(valid))
    return {name: value.numpy() for name, value in raw.items() if name != VALID}


def _apart(got: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """Of each output [2, ...]: |a - b| and |a - b| / (1 + |b|); whole numbers and truth values are compared like the others."""
    found = {}
    for name, value in expected.items():
        wanted = value.astype(np.float64)
        absolute = np.abs(got[name].astype(np.float64) - wanted)
        found[name] = np.stack((absolute, absolute / (1 + np.abs(wanted))))
    return found


def _of_detections(apart: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """[B, D], the largest relative difference of each detection in any output; NaN counts as infinite."""
    rows = [value[1].reshape(*value.shape[1:3], -1).max(axis=2, initial=0) for value in apart.values()]
    worst: NDArray[np.float64] = np.nan_to_num(np.max(rows, axis=0), nan=np.inf)
    return worst


def _paired(got: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """`got` with each image's detections in the order of the most similar ones of `expected`: equal scores may change places."""
    found = {name: value.copy() for name, value in got.items()}
    for image in range(len(expected["scores"])):
        apart = np.abs(got["boxes"][image, None] - expected["boxes"][image, :, None]).sum(axis=2)
        apart = apart + 1e3 * (got["labels"][image, None] != expected["labels"][image, :, None])
        apart = apart + 1e3 * np.abs(got["scores"][image, None] - expected["scores"][image, :, None])
        order = linear_sum_assignment(np.nan_to_num(apart, nan=1e9))[1]
        for name, value in got.items():
            found[name][image] = value[image, order]
    return found


def _suppress(boxes: Any, scores: Any, iou: float) -> Any:
    """`pelagia::suppress` (`nn.suppression`): [G, N, 4] and [G, N] -> [G, N] bool, the groups as the batch of ONNX's operator."""
    most = opset18.Constant(value_ints=[np.iinfo(np.int64).max])
    found = opset18.NonMaxSuppression(
        boxes,
        opset18.Unsqueeze(scores, opset18.Constant(value_ints=[1])),
        most,
        opset18.Constant(value_floats=[iou]),
        opset18.Constant(value_floats=[0.0]),
    )  # [K, 3]: group, class, box
    place = opset18.Gather(found, opset18.Constant(value_ints=[0, 2]), axis=1)
    ones = opset18.Expand(opset18.Constant(value_float=1.0), opset18.Shape(place, start=0, end=1))
    zeros = opset18.Expand(opset18.Constant(value_float=0.0), opset18.Shape(scores))
    return opset18.Cast(opset18.ScatterND(zeros, place, ones), to=onnx.TensorProto.BOOL)


def _inputs(card: ModelCard, batch: int) -> NDArray[np.float32]:
    """[batch, 3, H, W]: a drawn survey image, the rest noise, normalised as the card says."""
    rng = np.random.default_rng(batch)
    drawn, _ = letterbox(draw_image(rng, 512, 384).image, card.input_size)
    height, width = card.input_size
    noise = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(batch - 1)]
    return np.stack([normalise(image, card.normalisation) for image in (drawn, *noise)])


def _valid(card: ModelCard, batch: int) -> NDArray[np.int64] | None:
    """[batch, 2], all of the first image and less and less of the others, for models that look away from padding."""
    if not card.masks_padding:
        return None
    return np.array([[side * 4 // (4 + place) for side in card.input_size] for place in range(batch)])


def _trace(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str]) -> onnx.ModelProto:
    known, batch = ["images", VALID][: len(inputs)], torch.export.Dim("batch")
    with warnings.catch_warnings():
        # The exporter warns of its own internals, which nobody who exports can act on; what matters is compared afterwards.
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module,
                inputs,
                input_names=known,
                output_names=names,
                dynamic_shapes={name: {0: batch} for name in known},
                opset_version=OPSET,
                dynamo=True,
                custom_translation_table={OPERATOR: _suppress},
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"PyTorch cannot write this model as ONNX ({error})") from error
    if program is None:
        raise ExportError("PyTorch's exporter gave no graph")
    return program.model_proto


def _shapes(outputs: dict[str, NDArray[Any]]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
