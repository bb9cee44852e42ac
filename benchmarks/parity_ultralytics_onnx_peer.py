"""The peer's side of `parity_ultralytics_onnx.py`; runs in an environment that has ultralytics, onnx, onnxslim and onnxruntime.

Scramble the weights of an architecture, export it to ONNX in the asked form, load the file again as the peer loads it, and write
what it predicts, all through its public calls.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from ultralytics import YOLO

from parity_ultralytics_peer import scramble

__all__: list[str] = []


def answer(peer: YOLO, image: np.ndarray, size: list[int], iou: float) -> dict[str, np.ndarray]:
    """[N, 6] or, oriented, [N, 7] of one image, and its masks."""
    found = peer.predict(
        image, imgsz=size, conf=0.25, iou=iou, max_det=30_000, retina_masks=True, rect=False, verbose=False, device="cpu"
    )[0]
    box = found.obb if found.boxes is None else found.boxes
    arrays = {"final": box.data.numpy()}
    if found.masks is not None:
        arrays["masks"] = np.packbits(found.masks.data.numpy() > 0.5, axis=2)
    return arrays


def main() -> None:
    """Arguments: folder with `image.png` and `twice.png`, then JSON: name, height and width, options of the export, IoU."""
    folder = Path(sys.argv[1])
    request = json.loads(sys.argv[2])
    torch.manual_seed(0)
    peer = YOLO(f"{request['name']}.yaml")
    image, twice = cv2.imread(str(folder / "image.png")), cv2.imread(str(folder / "twice.png"))
    square = torch.from_numpy(image[..., ::-1].copy().transpose(2, 0, 1)[None].astype(np.float32) / 255)
    half = torch.from_numpy(twice[::2, ::2, ::-1].copy().transpose(2, 0, 1)[None].astype(np.float32) / 255)
    spare = square.shape[2] - half.shape[2]
    padded = torch.nn.functional.pad(half, (0, 0, spare // 2, spare - spare // 2), value=114 / 255)
    scramble(peer.model, torch.cat([square, padded]))
    # The peer exports what it loads from a file.
    peer.save(folder / "peer.pt")
    exported = YOLO(folder / "peer.pt").export(format="onnx", imgsz=request["size"], device="cpu", **request["options"])
    loaded = YOLO(exported, task=peer.task)
    arrays = answer(loaded, image, request["size"], request["iou"])
    arrays |= {f"twice_{key}": value for key, value in answer(loaded, twice, request["size"], request["iou"]).items()}
    np.savez(folder / "peer.npz", **arrays)


if __name__ == "__main__":
    main()
