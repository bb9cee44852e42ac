"""Pelagia's half of the benchmark of throughput, a process for each measurement as on the peer's side.

    python throughput_worker.py REQUEST.json ANSWER.json

The request names `action`: `export` (weights, data, out) or `folder` (weights, images, runtime, precision).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pelagia
from pelagia.api import load
from pelagia.core.image import find_images
from pelagia.export.int8 import export_int8
from pelagia.export.onnx import export_onnx
from pelagia.export.openvino import export_openvino


def export(request: dict[str, Any]) -> dict[str, Any]:
    """The peer's weights as ONNX, for OpenVINO, and with 8-bit layers."""
    out = Path(request["out"])
    model = load(request["weights"], device="cpu").model
    assert model is not None
    export_onnx(model, out / "ours.onnx")
    export_openvino(model, out / "ours.xml")
    data = pelagia.open_dataset(request["data"], task="detect").split("val")
    report = export_int8(out / "ours.onnx", out / "ours.int8.xml", data, "openvino", max_drop=1.0, show=False)
    return report.to_dict()


def folder(request: dict[str, Any]) -> dict[str, Any]:
    """Images per second and processor time of an image, after a first pass over a part."""
    predictor = load(request["weights"], device="cpu", runtime=request["runtime"], precision=request["precision"])
    paths = find_images(request["images"])
    list(predictor.predict_files(paths[:8], tiling="never"))
    begin, used = time.perf_counter(), time.process_time()
    found = sum(result.found is not None for result in predictor.predict_files(paths, tiling="never"))
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    assert found == len(paths)
    return {"images_per_second": found / seconds, "processor_ms": 1000 * used / found}


def main() -> None:
    """Answer one request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps({"export": export, "folder": folder}[request["action"]](request)))


if __name__ == "__main__":
    main()
