"""The peer's half of the benchmarks: run by the Python of the peer's own environment, as a black box through its public calls.

    python peer_ultralytics.py REQUEST.json ANSWER.json

The request names `action`: `train` (architecture, data.yaml, epochs, imgsz, batch, seed, out; and device), `predict` (weights,
images, imgsz), `export` (architecture, imgsz, data, formats, out), `folder` (weights, images, imgsz; and rect, batch, half,
device, threads, precision of OpenVINO) or `samples` (data, imgsz, count). The answer holds what was asked and the seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset


def train(request: dict[str, Any]) -> dict[str, Any]:
    """Train from scratch with the peer's defaults; seconds per epoch of training alone, and in all."""
    model = YOLO(request["architecture"])
    epochs: list[float] = []
    started = [0.0]
    model.add_callback("on_train_epoch_start", lambda trainer: started.__setitem__(0, time.perf_counter()))
    model.add_callback("on_train_epoch_end", lambda trainer: epochs.append(time.perf_counter() - started[0]))
    begin = time.perf_counter()
    try:
        model.train(
            data=request["data"],
            epochs=request["epochs"],
            imgsz=request["imgsz"],
            batch=request["batch"],
            seed=request["seed"],
            project=request["out"],
            name="peer",
            exist_ok=True,
            pretrained=False,
            **request.get("arguments", {}),
            plots=False,  # its plots fetch a font from the network; without them it is a little faster
            val=request.get("val", True),
            device=request.get("device", "cpu"),
        )
    except ModuleNotFoundError:
        if len(epochs) < request["epochs"]:  # a package may be missing that only writing the last weights needs
            raise
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "epoch_seconds": epochs, "weights": str(Path(request["out"]) / "peer" / "weights" / "best.pt")}


def predict(request: dict[str, Any]) -> dict[str, Any]:
    """All detections down to a score of 0.001, at most `most` an image, in pixels of the original images; masks as COCO runs."""
    model = YOLO(request["weights"])
    found: list[dict[str, Any]] = []
    begin = time.perf_counter()
    for image in request["images"]:
        result = model.predict(
            image,
            imgsz=request["imgsz"],
            conf=0.001,
            iou=0.7,
            max_det=request.get("most", 300),
            retina_masks=True,  # masks at the size of the original
            verbose=False,
            device="cpu",
        )[0]
        if result.obb is not None:
            boxes, scores, labels = result.obb.xywhr, result.obb.conf, result.obb.cls
        else:
            boxes, scores, labels = result.boxes.xyxy, result.boxes.conf, result.boxes.cls
        item = {"image": image, "boxes": boxes.tolist(), "scores": scores.tolist(), "labels": labels.int().tolist()}
        if result.masks is not None:
            item["masks"] = [runs(mask) for mask in result.masks.data.numpy() > 0.5]
        elif model.task == "segment":
            item["masks"] = []
        found.append(item)
    return {"seconds": time.perf_counter() - begin, "found": found}


def runs(mask: np.ndarray) -> dict[str, Any]:
    """A bitmap [H, W] as uncompressed COCO run lengths, which go down the columns and begin with background."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = np.concatenate([[0], [0] if len(flat) and flat[0] else [], changes, [len(flat)]])
    return {"size": list(mask.shape), "counts": np.diff(ends).astype(int).tolist()}


def export(request: dict[str, Any]) -> dict[str, Any]:
    """Random weights as yolo11n.pt, and written for other runtimes; what failed, with the reason."""
    os.chdir(request["out"])
    torch.manual_seed(0)
    YOLO(request["architecture"]).save("yolo11n.pt")
    ways = {
        "ONNX Runtime": {"format": "onnx"},
        "OpenVINO": {"format": "openvino"},
        "OpenVINO int8": {"format": "openvino", "int8": True, "data": request["data"]},
    }
    failed = {}
    for name in request["formats"]:
        try:
            YOLO("yolo11n.pt").export(imgsz=request["imgsz"], **ways[name])
        except (ImportError, RuntimeError, AssertionError) as error:
            failed[name] = str(error)
    return {"failed": failed}


def folder(request: dict[str, Any]) -> dict[str, Any]:
    """Images per second of `predict` over a folder, from files to boxes, and processor time of an image; after a first pass."""
    if request.get("precision"):
        ask_precision(request["precision"])
    model = YOLO(request["weights"], task="detect")
    options = {key: request[key] for key in ("rect", "batch", "half") if key in request}
    device = request.get("device", "cpu")

    def once() -> int:
        if request.get("threads"):
            torch.set_num_threads(request["threads"])  # the peer sets its own number whenever it begins
        results = model.predict(request["images"], imgsz=request["imgsz"], verbose=False, device=device, stream=True, **options)
        count = 0
        for _ in results:
            if request.get("threads") and not count:
                torch.set_num_threads(request["threads"])
            count += 1
        if device != "cpu":
            torch.cuda.synchronize()
        return count

    once()
    begin, used = time.perf_counter(), time.process_time()
    count = once()
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    return {"images_per_second": count / seconds, "processor_ms": 1000 * used / count}


def ask_precision(precision: str) -> None:
    """Have OpenVINO, whose own choice depends on the processor, compute in `precision`: the peer offers no such option."""
    openvino = importlib.import_module("openvino")
    opened = openvino.Core

    def core(*args: Any) -> Any:
        found = opened(*args)
        found.set_property("CPU", {"INFERENCE_PRECISION_HINT": precision})
        return found

    openvino.Core = core


def samples(request: dict[str, Any]) -> dict[str, Any]:
    """Augmented training samples of a second, in this one process, decoded images kept in memory; median of five parts."""
    data = check_det_dataset(request["data"])
    settings = get_cfg(overrides={"imgsz": request["imgsz"], "cache": "ram", "task": "detect", "workers": 0})
    dataset = build_yolo_dataset(settings, data["train"], 16, data, mode="train", stride=32)
    count, size = request["count"], len(dataset)
    for index in range(min(count, 2 * size)):  # caches are filled, buffers too
        dataset[index % size]
    rates, used = [], time.process_time()
    for _ in range(5):
        begin = time.perf_counter()
        for index in range(count):
            dataset[index % size]
        rates.append(count / (time.perf_counter() - begin))
    cpu = 5 * count / (time.process_time() - used)
    return {"images_per_second": statistics.median(rates), "per_cpu_second": cpu, "shape": list(dataset[0]["img"].shape)}


def main() -> None:
    """Answer one request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    actions = {"train": train, "predict": predict, "export": export, "folder": folder, "samples": samples}
    answer = actions[request["action"]](request)
    Path(sys.argv[2]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
