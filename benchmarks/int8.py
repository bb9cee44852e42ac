"""Claim: 8 bits cost a trained model less than 0.01 of its score, and make it faster.

    python benchmarks/int8.py RUN_OR_CHECKPOINT --data DATA [--split val | --last 4] [--seconds 5]

One checkpoint on one labelled data set: the score (AP, mIoU or PQ) and its loss against PyTorch in float32, the milliseconds of
one image in the network by itself on all cores, and the images per second of `pelagia predict` from files to answers, of

- PyTorch in float32 and in bfloat16;
- the exported .onnx in ONNX Runtime, and in OpenVINO in float32 and in bfloat16;
- the 8-bit .onnx in ONNX Runtime, and the 8-bit .xml in OpenVINO, what stays in float in float32 and in bfloat16.

The 8-bit files are those of `pelagia export --int8` with its defaults and no limit, calibrated on the images that are scored.
`--last N` scores the last N images, for data that have no split. Nothing else may run beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import pelagia
from pelagia.api import load
from pelagia.data.dataset import Dataset
from pelagia.export.int8 import export_int8, score_of
from pelagia.export.onnx import export_onnx
from pelagia.infer.benchmark import measure
from pelagia.infer.evaluate import evaluate
from pelagia.infer.options import PredictOptions
from pelagia.infer.runtimes import Precision, RuntimeKind

__all__: list[str] = []

#: What is measured: file, runtime, precision.
ROWS: tuple[tuple[str, RuntimeKind, Precision], ...] = (
    ("checkpoint", "torch", "float32"),
    ("checkpoint", "torch", "bfloat16"),
    ("float.onnx", "onnx", "float32"),
    ("float.onnx", "openvino", "float32"),
    ("float.onnx", "openvino", "bfloat16"),
    ("int8.onnx", "onnx", "float32"),
    ("int8.xml", "openvino", "float32"),
    ("int8.xml", "openvino", "bfloat16"),
)


def open_data(args: argparse.Namespace, task: Any) -> Dataset:
    """The images to score."""
    data = pelagia.open_dataset(args.data, task=task, angle=args.angle)
    if args.last:
        return data.subset(np.arange(max(len(data) - args.last, 0), len(data)))
    return data.split(args.split) if args.split else data


def export(checkpoint: Path, data: Dataset, folder: Path, calibration: int) -> list[dict[str, Any]]:
    """Write the three files; what the 8-bit ones say of themselves."""
    model = load(checkpoint, device="cpu").model
    assert model is not None
    export_onnx(model, folder / "float.onnx")
    told = []
    for name, kind in (("int8.onnx", "onnx"), ("int8.xml", "openvino")):
        report = export_int8(
            folder / "float.onnx",
            folder / name,
            data,
            "onnx" if kind == "onnx" else "openvino",
            most=calibration,
            max_drop=1.0,
            show=False,
        )
        print(
            f"{name}: {report.size_bytes / 1e6:.1f} MB, calibrated on {report.calibration} inputs, {report.seconds:.0f} s",
            flush=True,
        )
        told.append(report.to_dict())
    return told


def main() -> None:
    """Export, score, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="run folder or checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="annotation file or folder")
    parser.add_argument("--split", default="", help="images of this split; all by default")
    parser.add_argument("--last", type=int, default=0, help="only the last so many images")
    parser.add_argument("--angle", help="meaning of the angle in 5-number COCO boxes: rad-cw or deg-ccw")
    parser.add_argument("--calibration", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each of the two timings of a row")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    data = open_data(args, load(args.checkpoint, device="cpu").card.task)
    paths = list(data.image_paths)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        exports = export(args.checkpoint, data, folder, args.calibration)
        for file, runtime, precision in ROWS:
            path = args.checkpoint if file == "checkpoint" else folder / file
            predictor = load(path, device="cpu", runtime=runtime, precision=precision)
            name, score = score_of(evaluate(predictor.runtime, data, show=False))
            timing = measure(predictor.runtime, paths, PredictOptions(tiling="never"), seconds=args.seconds)
            rows.append({"file": file, "runtime": timing.runtime, "score": score, **timing.to_dict()})
            first = rows[0]["score"]
            print(
                f"{file:11s} {timing.runtime:36s} {name} {score:.4f} ({score - first:+.4f})  "
                f"{timing.network_ms:7.2f} ms in the network  {timing.images_per_second:7.1f} images/s",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps({"images": len(data), "exports": exports, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
