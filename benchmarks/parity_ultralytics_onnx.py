"""Claim: ONNX files that Ultralytics exports give the same objects here as in Ultralytics.

    python benchmarks/parity_ultralytics_onnx.py --peer /path/to/an/environment/bin/python [--image-size 320]

The peer lives in an environment of its own (ultralytics, onnx, onnxslim, onnxruntime) and is only run. It scrambles random
weights, exports them as they come, simplified, with free sizes, and with suppression inside the graph, and predicts with the
exported file. Compared are boxes, scores and classes as largest difference (boxes relative to the image's side), and the masks by
IoU, on an image of the size of the input, and on a wider one of twice the resolution, which both sides must shrink and pad. (Its
pixels are doubled ones, so that both shrink it to the same pixels: a scrambled network magnifies what two interpolations differ.)
Oriented candidates are compared without suppression, which differs by design (exact IoU here, ProbIoU there). Objects without a
pixel in their mask, which the peer leaves out, and boxes of no area, which are left out here, are not compared. Exit code 1
beyond 1e-3, with fewer than 20 objects, or with a mean IoU of masks below 0.98.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from parity_ultralytics import LEAST_DETECTIONS, LEAST_MASK_IOU, pairs
from pelagia.core import oriented
from pelagia.core.masks import paste
from pelagia.core.types import Instances
from pelagia.decode import DecodeOptions
from pelagia.infer.options import PredictOptions
from pelagia.infer.predict import predict_image
from pelagia.infer.runtimes import OnnxRuntime

__all__: list[str] = []

TOLERANCE = 1e-3
FORMS: dict[str, dict[str, Any]] = {
    "as it comes": {"simplify": False},
    "simplified": {"simplify": True},
    "free sizes": {"dynamic": True},
    "suppression inside": {"nms": True, "iou": 0.7, "conf": 0.25, "max_det": 1000},
}
NAMES = ("yolo11n", "yolo11n-seg", "yolo11n-obb", "yolov8n", "yolov8n-seg", "yolov8n-obb", "yolo12n", "yolo26n")


def rows(found: Instances) -> NDArray[Any]:
    """Objects as the peer writes them: x1 y1 x2 y2 score class, or cx cy w h angle score class."""
    places = found.box_array if found.oriented is None else found.oriented
    return np.column_stack([places, found.scores, found.labels])


def same(ours: NDArray[Any], theirs: NDArray[Any], size: float) -> tuple[list[int], float]:
    """Partners and largest difference; of oriented boxes the corners are compared, for a square has four names."""
    if ours.shape[1] == 6:
        return pairs(ours, theirs, size)
    plain = []
    for found in (ours, theirs):
        corners = oriented.to_corners(oriented.canonical(found[:, :5].astype(np.float64)))
        order = np.argsort(corners[..., 0] + 1e-3 * corners[..., 1], axis=1)
        plain.append(np.column_stack([np.take_along_axis(corners, order[..., None], 1).reshape(-1, 8), found[:, 5:]]))
    if len(plain[0]) != len(plain[1]):
        return [], float("inf")
    scale = np.array([size] * 8 + [1.0, 1.0])
    distance = np.abs((plain[0][:, None] - plain[1][None]) / scale).max(axis=2)
    return distance.argmin(axis=1).tolist(), float(max(distance.min(axis=0).max(), distance.min(axis=1).max()))


def masks_iou(found: Instances, theirs: NDArray[Any], chosen: list[int], height: int, width: int) -> NDArray[Any]:
    """IoU of each mask with the peer's; of a mask of a few pixels the border is the whole, so it is left out."""
    assert found.masks is not None
    ious = []
    for mask, row in zip(found.masks, chosen, strict=True):
        ours, other = paste(mask, height, width), np.unpackbits(theirs[row], axis=1)[:, :width].astype(bool)
        either = np.count_nonzero(ours | other)
        if either >= 100:
            ious.append(np.count_nonzero(ours & other) / either)
    return np.array(ious)


def write_images(folder: Path, image: NDArray[np.uint8]) -> None:
    """The image, and a part of it that is wider than the input, every pixel doubled."""
    cv2.imwrite(str(folder / "image.png"), image)
    cv2.imwrite(str(folder / "twice.png"), image[: image.shape[0] * 3 // 4].repeat(2, 0).repeat(2, 1))


def compare(folder: Path, name: str, form: str, size: list[int], peer: str) -> bool:
    """Export, predict on both sides, print one row; True when within tolerance."""
    inside = form == "suppression inside"
    iou = 1.0 if name.endswith("obb") and not inside else 0.7
    request = {"name": name, "size": size, "options": FORMS[form], "iou": iou}
    environment = {**os.environ, "YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(folder)}
    environment.pop("PYTHONPATH", None)
    script = Path(__file__).resolve().with_name("parity_ultralytics_onnx_peer.py")
    command = [peer, str(script), str(folder), json.dumps(request)]
    done = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"{name:12s} {form:20s} the peer cannot: {done.stderr.strip().splitlines()[-1][:150]}", flush=True)
        return False
    runtime = OnnxRuntime(folder / "peer.onnx")
    theirs = np.load(folder / "peer.npz")
    options = DecodeOptions(score=0.25, nms_iou=1.0 if inside else iou)  # what was suppressed inside stays as it is
    good, shown = True, ""
    for prefix, file in (("", "image.png"), ("twice_", "twice.png")):
        image = cv2.imread(str(folder / file))[..., ::-1]
        height, width = image.shape[:2]
        found = predict_image(runtime, image, PredictOptions(tiling="never"), decoding=options)
        assert isinstance(found, Instances)
        if found.masks is not None:
            found = found.select(np.flatnonzero([mask.bitmap.any() for mask in found.masks]))
        ours = rows(found)
        expected = theirs[f"{prefix}final"]
        if expected.shape[1] == 6:
            present = np.flatnonzero((expected[:, 2:4] > expected[:, :2]).all(axis=1))
            chosen, worst = same(ours, expected[present], max(height, width))
            chosen = present[chosen].tolist()
        else:
            chosen, worst = same(ours, expected, max(height, width))
        good &= len(ours) >= LEAST_DETECTIONS and worst <= TOLERANCE
        shown += f"  {width} x {height}: {len(ours)} objects, largest difference {worst:.1e}"
        if found.masks is not None and chosen:
            ious = masks_iou(found, theirs[f"{prefix}masks"], chosen, height, width)
            good &= len(ious) >= LEAST_DETECTIONS and float(np.mean(ious)) >= LEAST_MASK_IOU
            shown += f", mean IoU of {len(ious)} masks {np.mean(ious):.4f}"
    print(f"{name:12s} {form:20s} {shown}  {'ok' if good else 'BEYOND TOLERANCE'}", flush=True)
    return good


def main() -> int:
    """Every architecture as it comes, YOLO11 in every form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="python of an environment with ultralytics, onnx, onnxslim, onnxruntime")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--names", nargs="+", default=NAMES)
    options = parser.parse_args()
    side = options.image_size
    rng = np.random.default_rng(0)
    good = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        coarse = (rng.random((side // 16, side // 16, 3)) * 255).astype(np.uint8)
        smooth = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.float64)
        image = np.round(0.8 * smooth + 0.2 * 255 * rng.random(smooth.shape)).astype(np.uint8)
        for name in options.names:
            for form in FORMS if name.startswith("yolo11") else ("as it comes",):
                write_images(folder, image)
                good &= compare(folder, name, form, [side, side], options.peer)
        if "yolo11n" in options.names:
            write_images(folder, image[: side // 2])
            good &= compare(folder, "yolo11n", "as it comes", [side // 2, side], options.peer)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
