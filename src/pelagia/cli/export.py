"""`pelagia export`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from pelagia.api import Predictor, load
from pelagia.cli.common import Json, print_json, say, table
from pelagia.core.lazy import resolve
from pelagia.errors import ExportError, OptionError

__all__ = ["export"]


@dataclass(frozen=True)
class _Int8:
    int8: bool = field(default=False, metadata={"help": "Write 8-bit layers, calibrated and scored on the images of --data."})
    data: Path | None = field(default=None, metadata={"help": "Labelled images for --int8: an annotation file or a folder."})
    split: str = field(
        default="", metadata={"help": "Images of this split; by default val where the data have it, else all. 'all' for all."}
    )
    max_ap_drop: float = field(
        default=0.01, metadata={"help": "Refuse to write where AP (of maps mIoU or PQ) falls by more, on the images of --data."}
    )
    calibration: int = field(default=128, metadata={"help": "Most images that the ranges of 8-bit values are measured on."})
    label_format: str | None = field(default=None, metadata={"help": "Format of the labels; sniffed by default."})
    images: Path | None = field(default=None, metadata={"help": "Folder of the images, where the labels do not tell."})
    angle: str | None = field(default=None, metadata={"help": "Meaning of the angle in 5-number COCO boxes: rad-cw or deg-ccw."})


_INT8 = _Int8()


def export(
    model: Path,
    /,
    *,
    format: Literal["onnx", "openvino"] = "onnx",
    out: Annotated[Path | None, Parameter(name=["--out", "--onnx"])] = None,
    tolerance: float = 1e-3,
    options: Annotated[_Int8, Parameter(name="*")] = _INT8,
    json: Json = False,
) -> int:
    """Write a model as ONNX or for OpenVINO and prove that it answers alike.

    Classes, sizes, normalisation, thresholds and licence go into the file; `pelagia predict` takes it without PyTorch. The
    largest difference from the model is printed with its limit, and nothing is written beyond it; with --int8 the loss of AP is.

    Args:
        model: A run folder, a checkpoint, or another project's .pt; with --int8 also a float .onnx.
        format: onnx for one .onnx file, openvino for an .xml with its .bin.
        out: File to write; by default beside the checkpoint, with the ending .onnx or .xml, or .int8.onnx and .int8.xml.
        tolerance: Largest |exported - model| / (1 + |model|) over the raw outputs.
    """
    if options.int8 and options.data is None:
        raise OptionError("--int8 needs labelled images to calibrate and score on: --data data.yaml")
    predictor = load(model, device="cpu")
    assert predictor.path is not None
    ending = (".int8" if options.int8 else "") + (".onnx" if format == "onnx" else ".xml")
    target = out or predictor.path.with_suffix(ending)
    if predictor.model is None and not options.int8:
        raise ExportError("this is an exported file already; export from the checkpoint", where=model)
    plain = resolve("pelagia.export.onnx", purpose="export a model")
    plain.check_target(target, format, predictor.path)
    if options.int8:
        return _export_int8(predictor, target, format, tolerance, options, json=json)
    if format == "onnx":
        report = plain.export_onnx(predictor.model, target, tolerance=tolerance)
    else:
        module = resolve("pelagia.export.openvino", purpose="export a model")
        report = module.export_openvino(predictor.model, target, tolerance=tolerance)
    if json:
        print_json(report.to_dict())
        return 0
    found = report.outputs
    rows = [[name, f"{item.absolute:.2e}", f"{item.relative:.2e}", f"{item.limit:.3g}"] for name, item in found.items()]
    print(table(["output", "largest difference", "relative", "limit"], rows))
    held = all(item.limit <= tolerance for item in found.values())
    within = f"{tolerance:g}" if held else f"the limits above, beyond {tolerance:g} where rounding explains it"
    left_out = max(item.left_out for item in found.values())
    if left_out:
        print(f"\nthe {left_out} detections of each batch that differ most are left out: rounding decides them in the model too")
    height, width = predictor.card.input_size
    print(
        f"\nagrees with the model within {within}: {report.path} ({report.size_bytes / 1e6:.1f} MB, opset {report.opset}, "
        f"input {height} x {width}, any batch, licence of the weights: {predictor.card.licence})"
    )
    return 0


def _export_int8(
    predictor: Predictor, target: Path, kind: Literal["onnx", "openvino"], tolerance: float, options: _Int8, *, json: bool
) -> int:
    dataset = resolve("pelagia.data.open", purpose="open data").open_dataset(
        options.data, format=options.label_format, images=options.images, task=predictor.card.task, angle=options.angle
    )
    name = options.split or ("val" if "val" in dataset.splits else "all")
    if name != "all":
        dataset = dataset.split(name)
        say(f"split {name}: {len(dataset)} images")
    module = resolve("pelagia.export.int8", purpose="write a model with 8-bit layers")
    with tempfile.TemporaryDirectory() as folder:
        source: Any = predictor.path
        if predictor.model is not None:
            source = Path(folder) / "float.onnx"
            resolve("pelagia.export.onnx", purpose="export a model").export_onnx(predictor.model, source, tolerance=tolerance)
        elif source.suffix != ".onnx":
            raise ExportError("8-bit files are made from a checkpoint or a float .onnx", where=source)
        report = module.export_int8(
            source,
            target,
            dataset,
            kind,
            most=options.calibration,
            max_drop=options.max_ap_drop,
            show=False if json else None,
        )
    if json:
        print_json(report.to_dict())
        return 0
    head = "the last layers in float" if report.float_head else "all layers in 8 bits"
    rows = [
        ["float", f"{report.before:.4f}", f"{report.before_ms:.1f}"],
        ["int8", f"{report.after:.4f}", f"{report.after_ms:.1f}"],
    ]
    print(table(["file", report.score, "network ms"], rows))
    print(
        f"\n{report.score} on {report.images} images falls by {report.drop:.4f} (limit {options.max_ap_drop:g}), {head}, "
        f"calibrated on {report.calibration} inputs spread evenly over them: {report.path} ({report.size_bytes / 1e6:.1f} MB)"
    )
    if report.after_ms >= report.before_ms:
        print("It is not faster on this machine: measure with `pelagia benchmark` before you use it.")
    return 0
