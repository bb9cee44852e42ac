"""Claim: YOLO11 here gives the numbers of Ultralytics' YOLO11, for all sizes and tasks: boxes, oriented boxes, masks, keypoints.

    python benchmarks/parity_ultralytics.py --peer /path/to/an/environment/bin/python [--sizes nsmlx] [--image-size 320]
        [--tasks detect oriented instance keypoints]

The peer lives in an environment of its own and is only run. It writes checkpoints of scrambled weights and its answers; the
checkpoints are read by `pelagia.models.foreign`. Compared, as largest difference over largest magnitude: raw outputs, boxes,
angles, keypoints and scores of every cell, and for axis-aligned boxes the detections after non-maximum suppression. (Oriented
suppression differs by design: exact IoU here, ProbIoU there.) The masks that come of the same raw outputs are compared with the
peer's masks at the resolution of the original, by IoU, least and mean: the peer cuts masks at whole pixels and resamples in two
steps. A detection that one side alone has is forgiven, and counted, where rounding decides it: its score lies within the limit
of the threshold, or its IoU with another candidate of its class within what the limit can move it of the threshold of
suppression, or it overlaps one that is forgiven. Exit code 1 beyond 1e-4, with fewer than 20 detections, with more than one in
fifty forgiven, or with a mean IoU of masks below 0.98.

Folded batch normalisation (ours: "fused"; the peer's `predict`: "detections" and their keypoints) is judged otherwise. Unfolded
networks of both sides do the same operations in the same order and so round alike, to 1e-5 of each other, though both are farther
than that from the exact numbers: with scrambled weights a deep network multiplies the rounding of its first layers. A folded one
rounds differently in every layer, so it may be as far from the peer as rounding is large. That is measured: "rounding" is the
distance of the peer's float32 numbers from the same network in float64, the largest of its outputs, and for detections of its
boxes too, relative to the image's side. Folded numbers may differ
from the peer's by five times that, and "folding", the folded network in float64 against the unfolded in float64, shows at 1e-9
that nothing but rounding is different.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pelagia.core.frame import Frame
from pelagia.core.masks import paste
from pelagia.core.types import Instances
from pelagia.decode import DecodeOptions, decode
from pelagia.decode.grids import anchors
from pelagia.models.foreign import load_foreign
from pelagia.models.model import Model
from pelagia.models.runtime import TorchRuntime
from pelagia.nn.layers import fuse

__all__: list[str] = []

TOLERANCE = 1e-4
#: Where one side has folded its batch normalisation and the other has not, rounding differs in every layer: so many times what
#: rounding does to the peer's own numbers.
FOLDED_FACTOR = 5.0
#: In float64 folding must change nothing.
FOLDING_TOLERANCE = 1e-9
LEAST_DETECTIONS = 20
MOST_FORGIVEN = 0.02
#: Thresholds of both sides.
SCORE, SUPPRESSION = 0.25, 0.7
LEAST_MASK_IOU = 0.98
#: Task -> the ending of the peer's configuration.
ENDINGS = {"detect": "", "oriented": "-obb", "instance": "-seg", "keypoints": "-pose"}
#: Our raw output -> the peer's name of it.
RAW = {"boxes": "boxes", "scores": "scores", "coefficients": "mask_coefficient", "prototypes": "proto", "keypoints": "kpts"}


def relative(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """max |ours - theirs| / max |theirs|."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def decoded_cells(outputs: dict[str, NDArray[Any]], size: int) -> NDArray[Any]:
    """Boxes of every cell as cx, cy, w, h and (oriented) angle, by the definition in `pelagia.decode.grids`, in float64."""
    centres, strides = anchors((size, size))
    logits = outputs["boxes"].astype(np.float64)
    logits = logits.reshape(len(logits), 4, -1, logits.shape[2])
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    sides = (weights * np.arange(logits.shape[2])[None, None, :, None]).sum(axis=2) / weights.sum(axis=2)  # [B, 4, A]
    left, top, right, bottom = np.moveaxis(sides * strides, 1, 0)
    along, across = (right - left) / 2, (bottom - top) / 2
    if "angles" not in outputs:
        return np.stack([centres[:, 0] + along, centres[:, 1] + across, left + right, top + bottom], axis=1)
    angle = (1 / (1 + np.exp(-outputs["angles"][:, 0].astype(np.float64))) - 0.25) * np.pi
    x = centres[:, 0] + along * np.cos(angle) - across * np.sin(angle)
    y = centres[:, 1] + along * np.sin(angle) + across * np.cos(angle)
    return np.stack([x, y, left + right, top + bottom, angle], axis=1)


def decoded_keypoints(outputs: dict[str, NDArray[Any]], size: int) -> NDArray[Any]:
    """Keypoints of every cell, x, y and score [B, P, 3, A], by the definition in `pelagia.decode.grids`, in float64."""
    centres, strides = anchors((size, size))
    values = outputs["keypoints"].astype(np.float64)
    values = values.reshape(len(values), -1, 3, values.shape[2])
    found = np.empty(values.shape)
    found[:, :, :2] = 2 * values[:, :, :2] * strides + (centres - strides[:, None] / 2).T
    found[:, :, 2] = 1 / (1 + np.exp(-values[:, :, 2]))
    return found


def pairs(ours: NDArray[Any], theirs: NDArray[Any], size: float, limit: float) -> tuple[NDArray[np.int64], float]:
    """The row of `theirs` for each row of `ours`, x1 y1 x2 y2 score class, by class and place, -1 for none within `limit`; and
    the largest difference among the pairs, boxes relative to the image's side.
    """
    scale = np.array([size, size, size, size, 1.0, 1.0])
    left = np.ones(len(theirs), dtype=bool)
    chosen, worst = np.full(len(ours), -1), 0.0
    for place, row in enumerate(ours):
        distance = np.where(left, np.abs((theirs.astype(np.float64) - row) / scale).max(axis=1), np.inf)
        best = int(distance.argmin()) if len(distance) else -1
        if best >= 0 and distance[best] <= limit:
            left[best] = False
            chosen[place] = best
            worst = max(worst, float(distance[best]))
    return chosen, worst


def iou(row: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """IoU of one box with [N, 4 or more]."""
    sides = np.minimum(row[2:4], others[:, 2:4]) - np.maximum(row[:2], others[:, :2])
    both = sides.clip(min=0).prod(axis=1)
    return both / ((row[2:4] - row[:2]).prod() + (others[:, 2:4] - others[:, :2]).prod(axis=1) - both)


def every_cell(outputs: dict[str, NDArray[Any]], size: int) -> NDArray[Any]:
    """Boxes of the first image, not cut at its border, with score and best class [A, 6]."""
    cx, cy, width, height = decoded_cells(outputs, size)[0, :4]
    chances = 1 / (1 + np.exp(-outputs["scores"][0].astype(np.float64)))
    box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    return np.stack([*box, chances.max(axis=0), chances.argmax(axis=0)], axis=1)


def undecided(alone: NDArray[Any], candidates: NDArray[Any], size: float, limit: float) -> int:
    """How many of the rows that one side alone has rounding does not explain; see the head of this file.

    Suppression compares boxes before they are cut at the image's border, so a row is taken for the candidate that it came of.
    Corners that move by e change the IoU of boxes of w x h by at most about 4 e (w + h) / (w h).
    """
    cut = np.column_stack([candidates[:, :4].clip(0, size), candidates[:, 4:]])
    scale = np.array([size, size, size, size, 1.0, 1e-3])  # of another class is far
    alone = candidates[[int(np.abs((cut - row) / scale).max(axis=1).argmin()) for row in alone]]
    sides = alone[:, 2:4] - alone[:, :2]
    slack = 4 * limit * size * sides.sum(axis=1) / sides.prod(axis=1)
    forgiven = np.abs(alone[:, 4] - SCORE) <= limit
    for place, row in enumerate(alone):
        overlaps = iou(row, candidates[candidates[:, 5] == row[5]])
        forgiven[place] |= bool((np.abs(overlaps - SUPPRESSION) <= slack[place]).any())
    while True:  # what a forgiven one suppresses hangs on it
        near = np.array([iou(row, alone[forgiven & (alone[:, 5] == row[5])]).max(initial=0) for row in alone])
        more = forgiven | (near >= SUPPRESSION - slack)
        if (more == forgiven).all():
            return int((~forgiven).sum())
        forgiven = more


def detections(model: Model, outputs: dict[str, NDArray[Any]], frame: Frame) -> tuple[Instances, NDArray[Any]]:
    """Objects of the first image, and their boxes, scores and classes as rows."""
    first = {name: value[:1] for name, value in outputs.items()}
    found = decode(first, [frame], model.card, DecodeOptions(score=SCORE, nms_iou=SUPPRESSION))[0]
    assert isinstance(found, Instances)
    return found, np.column_stack([found.box_array, found.scores, found.labels])


def mask_ious(model: Model, outputs: dict[str, NDArray[Any]], theirs: Any, size: int, limit: float) -> NDArray[Any]:
    """IoU with the peer's of each mask whose detection the peer has too, in an original of twice the size."""
    found, rows = detections(model, outputs, Frame.letterbox(2 * size, 2 * size, size, size))
    chosen, _ = pairs(rows, theirs["twice"], 2 * size, limit)
    assert found.masks is not None
    ious = []
    for mask, row in zip(found.masks, chosen.tolist(), strict=True):
        if row < 0:
            continue
        ours, other = paste(mask, 2 * size, 2 * size), np.unpackbits(theirs["masks"][row], axis=1).astype(bool)
        both, either = np.count_nonzero(ours & other), np.count_nonzero(ours | other)
        if either >= 100:  # of a mask of a few pixels the border is the whole
            ious.append(both / either)
    return np.array(ious)


def compare(folder: Path, name: str, images: NDArray[np.float32]) -> bool:
    """Print one row; True when within tolerance."""
    size = images.shape[2]
    theirs = np.load(folder / f"{name}.npz")
    model = load_foreign(folder / f"{name}.pt")
    model.card = replace(model.card, input_size=(size, size))
    task, bad, forgiven = model.card.task, 0, 0
    exact = copy.deepcopy(model).double()
    with torch.inference_mode():
        plain = {key: value.numpy() for key, value in model(torch.from_numpy(images)).items()}
        doubled = torch.from_numpy(images).double()
        in_double, folded = ({key: value.numpy() for key, value in net(doubled).items()} for net in (exact, fuse(exact)))
    fused = TorchRuntime(model).run(images)
    compared = [key for key in plain if key != "angles"]
    rounding = max(relative(theirs[RAW[key]], in_double[key]) for key in compared)
    of_boxes = float(np.abs(theirs["decoded"][:, :4] - decoded_cells(in_double, size)[:, :4]).max()) / size
    values = {f"raw {key}": relative(plain[key], theirs[RAW[key]]) for key in compared}
    values |= {f"fused {key}": relative(fused[key], theirs[RAW[key]]) for key in compared}
    values["folding"] = max(relative(folded[key], in_double[key]) for key in compared)
    limit = max(TOLERANCE, FOLDED_FACTOR * max(rounding, of_boxes))
    cells = decoded_cells(plain, size)
    classes = len(model.card.categories)
    values["decoded boxes"] = relative(cells[:, :4], theirs["decoded"][:, :4])
    chance = 1 / (1 + np.exp(-plain["scores"].astype(np.float64)))
    values["decoded scores"] = relative(chance, theirs["decoded"][:, 4 : 4 + classes])
    if task == "oriented":
        values["angles"] = relative(cells[:, 4], theirs["decoded"][:, -1])
        count = len(theirs["final"])
    else:
        found, rows = detections(model, plain, Frame.identity(size, size))
        chosen, values["detections"] = pairs(rows, theirs["final"], size, limit)
        count = len(rows)
        alone = np.concatenate([rows[chosen < 0], np.delete(theirs["final"], chosen[chosen >= 0], axis=0)])
        cells_of_first = every_cell(plain, size)
        bad = undecided(alone, cells_of_first[cells_of_first[:, 4] >= SCORE - limit], size, limit)
        forgiven = len(alone)
    if task == "keypoints":
        points = decoded_keypoints(plain, size)
        values["decoded keypoints"] = relative(
            points.reshape(len(points), -1, points.shape[3]), theirs["decoded"][:, 4 + classes :]
        )
        assert found.keypoints is not None
        mine, final = found.keypoints[chosen >= 0], theirs["final_keypoints"][chosen[chosen >= 0]]
        # The peer cuts points at the border of the image.
        inside = ((final[..., :2] > 1) & (final[..., :2] < size - 1)).all(axis=2)
        values["detections' keypoints"] = relative(mine[inside], final[inside])
    limits = {key: max(TOLERANCE, FOLDED_FACTOR * rounding) for key in values if key.startswith("fused")}
    limits |= {key: limit for key in values if key.startswith("detections")}
    limits["folding"] = FOLDING_TOLERANCE
    good = count >= LEAST_DETECTIONS and bad == 0 and forgiven <= MOST_FORGIVEN * count
    good &= all(value <= limits.get(key, TOLERANCE) for key, value in values.items())
    shown = "  ".join(f"{key} {value:.1e}" for key, value in {**values, "rounding": rounding, "of boxes": of_boxes}.items())
    if task == "instance":
        ious = mask_ious(model, plain, theirs, size, limit)
        good &= len(ious) >= LEAST_DETECTIONS and float(ious.mean()) >= LEAST_MASK_IOU
        shown += f"  IoU of {len(ious)} masks: least {ious.min(initial=1):.3f}, mean {ious.mean():.4f}"
    if forgiven:
        shown += f"  {forgiven} on one side alone, {forgiven - bad} of them at a threshold"
    print(f"{name:14s} {count:5d} detections  {shown}  {'ok' if good else 'BEYOND TOLERANCE'}", flush=True)
    return good


def main() -> int:
    """Run the peer, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="python of an environment with ultralytics")
    parser.add_argument("--sizes", default="nsmlx")
    parser.add_argument("--tasks", nargs="+", choices=list(ENDINGS), default=list(ENDINGS))
    parser.add_argument("--image-size", type=int, default=640)
    options = parser.parse_args()
    names = [f"yolo11{size}{ENDINGS[task]}" for task in options.tasks for size in options.sizes]
    rng = np.random.default_rng(0)
    side = options.image_size
    coarse = torch.from_numpy(rng.random((2, 3, side // 16, side // 16), dtype=np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1).numpy()
    images = np.round((0.8 * smooth + 0.2 * rng.random(smooth.shape, dtype=np.float32)) * 255).astype(np.float32) / np.float32(
        255
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "images.npy", images)
        script = Path(__file__).with_name("parity_ultralytics_peer.py")
        environment = {**os.environ, "YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(folder)}
        environment.pop("PYTHONPATH", None)
        good = True
        for name in names:  # one at a time: the files of the largest are 230 MB
            subprocess.run([options.peer, str(script), str(folder), name], check=True, cwd=folder, env=environment)
            good &= compare(folder, name, images)
            for path in folder.glob(f"{name}.*"):
                path.unlink()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
