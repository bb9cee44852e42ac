"""SAHI's half of the benchmarks, run by the Python of the peers' own environment; Ultralytics behind it is a black box.

    python peer_sahi.py REQUEST.json ANSWER.json

The request names `action`: `merge` (predictions: .npy [N, 6] x1, y1, x2, y2, score, class; iou, rounds) or `scan` (image,
weights, batches, threads, score, slice, overlap). The answer holds seconds, and for a scan the peak memory of a process.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sahi import AutoDetectionModel
from sahi.postprocess.combine import GreedyNMMPostprocess, batched_greedy_nmm, batched_nms, resolve_backend
from sahi.predict import get_sliced_prediction
from sahi.prediction import ObjectPrediction


def merge(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of three ways to one object a place: suppression and greedy merging on arrays, greedy merging of its objects."""
    rows = np.load(request["predictions"])
    iou = request["iou"]
    ways: dict[str, Callable[[], int]] = {
        "nms, arrays": lambda: len(batched_nms(rows, "IOU", iou)),
        "greedy merge, arrays": lambda: len(batched_greedy_nmm(rows, "IOU", iou)),
    }
    answer: dict[str, Any] = {"backend": resolve_backend()}
    for name, way in ways.items():
        way()
        seconds = []
        for _ in range(request["rounds"]):
            begin = time.perf_counter()
            left = way()
            seconds.append(time.perf_counter() - begin)
        answer[name] = {"seconds": seconds, "left": left}
    objects = [
        ObjectPrediction(bbox=row[:4].tolist(), category_id=int(row[5]), category_name=str(int(row[5])), score=float(row[4]))
        for row in rows
    ]
    greedy = GreedyNMMPostprocess(match_threshold=iou, match_metric="IOU", class_agnostic=False)
    begin = time.perf_counter()
    left = len(greedy(objects))
    answer["greedy merge, its objects"] = {"seconds": [time.perf_counter() - begin], "left": left}
    return answer


def scan(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds and peak memory for each batch size, each in a process of its own; the model is warm, reading the image counts."""
    context = multiprocessing.get_context("spawn")
    answer = {}
    for batch in request["batches"]:
        with context.Pool(1) as pool:
            answer[str(batch)] = pool.apply(_scan, (request, batch))
    return answer


def _scan(request: dict[str, Any], batch: int) -> dict[str, Any]:
    torch.set_num_threads(request["threads"])
    model = AutoDetectionModel.from_pretrained(
        model_type="ultralytics",
        model_path=request["weights"],
        confidence_threshold=request["score"],
        device="cpu",
        image_size=request["slice"],
    )
    side = request["slice"]
    how = {"slice_height": side, "slice_width": side, "batch_size": batch, "perform_standard_pred": False, "verbose": 0}
    how |= {"overlap_height_ratio": request["overlap"], "overlap_width_ratio": request["overlap"]}
    get_sliced_prediction(np.zeros((side, side, 3), dtype=np.uint8), model, **how)
    torch.set_num_threads(request["threads"])  # the first prediction sets it anew
    before = _peak()
    begin = time.perf_counter()
    found = get_sliced_prediction(request["image"], model, **how)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "objects": len(found.object_prediction_list), "peak_mib": _peak(), "start_mib": before}


def _peak() -> float:
    """The most memory that this process ever held, in MiB; `getrusage` would count that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Answer one request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    answer = {"merge": merge, "scan": scan}[request["action"]](request)
    Path(sys.argv[2]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
