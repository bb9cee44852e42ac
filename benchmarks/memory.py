"""Peak memory of `pelagia predict` on scans of growing size: it must not grow with the image.

    python benchmarks/memory.py [--sides 4000 8000 16000 30000] [--wide 30000 20000] [--tasks detect instance ...] [--scans DIR]

Writes tiled TIFFs (8-bit RGB, tiles of 512 pixels, deflate) of drawn organisms tile by tile, so that no image is ever held here:
one of each side, and one of `--wide` pixels. Predicts each with a model of random weights in a process of its own, as a user
would, and prints the largest resident set of that process (`ru_maxrss` of wait4) beside the size of the decoded image. With
`--scans` the scans are kept, and taken from there the next time. The first row, one tile, is what Python, PyTorch and the model
need. The threshold is set so that about `--objects` objects are found in 640 x 640 pixels.

YOLO11n answers detect, oriented, instance and keypoints; semantic is a U-Net over a small encoder, so that it ends in time, and
looks everywhere, so that tiles are averaged; semantic-exact is a padded U-Net of 8 channels, whose tiled map is exact;
panoptic is a small Mask2Former.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

import pelagia
from pelagia.core.types import Category, Instances, PanopticMap
from pelagia.models import checkpoint, registry
from pelagia.models.receptive_field import receptive_field

TILE = 512
KEYPOINTS = ("head", "centre", "tail")

#: Starts a command and tells its exit code and ru_maxrss. A small process of its own: the peak of a child counts from what its
#: parent holds when it starts it, and this script holds PyTorch.
MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def drawn_tiles(count: int = 32) -> list[NDArray[np.uint8]]:
    """Tiles of bright organisms on a dark ground with a little noise."""
    rng = np.random.default_rng(0)
    tiles = []
    for _ in range(count):
        tile = np.full((TILE, TILE, 3), (20, 40, 50), dtype=np.uint8)
        for _ in range(12):
            centre, axes = rng.integers(0, TILE, 2).tolist(), rng.integers(6, 60, 2).tolist()
            colour = rng.integers(90, 250, 3).tolist()
            cv2.ellipse(tile, centre, axes, float(rng.uniform(0, 360)), 0, 360, colour, -1, cv2.LINE_AA)
        tiles.append(cv2.add(tile, rng.integers(0, 4, tile.shape, dtype=np.uint8)))
    return tiles


def write_scan(path: Path, width: int, height: int, bank: list[NDArray[np.uint8]]) -> None:
    """A scan made of tiles of the bank, written one by one."""
    down, across = -(-height // TILE), -(-width // TILE)

    def tiles() -> Iterator[NDArray[np.uint8]]:
        order = np.random.default_rng(1)
        for _ in range(down * across):
            yield bank[int(order.integers(len(bank)))]

    tifffile.imwrite(
        path,
        tiles(),
        shape=(height, width, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="rgb",
        compression="zlib",
        compressionargs={"level": 1},
        predictor=True,
        metadata=None,
        bigtiff=width * height > 1 << 29,
        maxworkers=2,
    )


def save_model(path: Path, task: str, bank: list[NDArray[np.uint8]], objects: int) -> float:
    """Save a model of random weights; the score that about `objects` answers in a tile of 640 pixels reach."""
    points = KEYPOINTS if task == "keypoints" else ()
    classes = [Category(index + 1, name, keypoints=points) for index, name in enumerate(("copepod", "diatom", "other"))]
    classes[-1] = replace(classes[-1], is_thing=task != "panoptic")
    names = {"semantic": "unet-timm", "semantic-exact": "unet", "panoptic": "mask2former-r50"}
    name = names.get(task, "yolo11n")
    own: dict[str, dict[str, object]] = {"unet": {"depth": 3, "width": 8, "padding": True}, "yolo11n": {}}
    options = own.get(name, registry.entry(name).tiny)
    kind = task.removesuffix("-exact")
    torch.manual_seed(0)
    model = pelagia.create_model(name, classes, task=kind, input_size=640, options=options)  # type: ignore[arg-type]
    # As they are first drawn, every place of a level has the same score.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    if kind == "semantic":
        model.card = replace(model.card, manifest={"receptive_field": receptive_field(model)})
    checkpoint.save(path, model, model.card)
    if kind == "semantic":
        return 0.25
    scan = np.concatenate([np.concatenate(bank[row : row + 4], axis=1) for row in (0, 4, 8)])
    found = pelagia.load(path, device="cpu").predict(scan, score=0.0)
    if isinstance(found, PanopticMap):
        scores = np.array([segment.score for segment in found.segments])
    else:
        assert isinstance(found, Instances)
        assert found.scores is not None
        scores = found.scores
    wanted = round(objects * 12 * TILE**2 / 640**2)
    return float(np.sort(scores)[-min(wanted, len(scores))])


def predict(model: Path, scan: Path, out: Path, score: float, draw: bool) -> tuple[float, float, int]:
    """Peak resident memory in MB (10^6 bytes), seconds and objects of `pelagia predict` in its own process."""
    command = [sys.executable, "-m", "pelagia", "predict", str(model), str(scan), "--out", str(out), "--device", "cpu"]
    command += ["--score", repr(score), *([] if draw else ["--no-draw"])]
    begin = time.perf_counter()
    told = subprocess.run([sys.executable, "-c", MEASURE, *command], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    seconds = time.perf_counter() - begin
    if int(told[0]):
        raise SystemExit(f"{' '.join(command)} ended with {told[0]}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    images = json.loads((out / "results.json").read_text(encoding="utf-8"))["images"]
    return int(told[1]) * unit / 1e6, seconds, int(images[0].get("count", 0))


def main() -> None:
    """Write, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="*", default=[4000, 8000, 16000, 30000], help="of square scans, in pixels")
    parser.add_argument("--wide", type=int, nargs=2, default=[30000, 20000], metavar=("W", "H"), help="0 0 for none")
    tasks = ["detect", "oriented", "instance", "keypoints", "semantic", "semantic-exact", "panoptic"]
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=["detect"])
    parser.add_argument("--objects", type=int, default=20, help="found in 640 x 640 pixels, about")
    parser.add_argument("--no-draw", dest="draw", action="store_false", help="leave out the annotated pictures")
    parser.add_argument(
        "--folder", type=Path, help="where scans and results are written, and deleted; a temporary one by default"
    )
    parser.add_argument("--scans", type=Path, help="where scans are kept, and taken from if they are there")
    args = parser.parse_args()
    sizes = [(640, 640), *((side, side) for side in args.sides)] + ([tuple(args.wide)] if all(args.wide) else [])
    bank = drawn_tiles()
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        models = {}
        for task in args.tasks:
            models[task] = (folder / f"{task}.safetensors", save_model(folder / f"{task}.safetensors", task, bank, args.objects))
        print(f"{'pixels':>15} {'decoded MB':>10} {'file MB':>8} {'task':>14} {'peak MB':>8} {'seconds':>8} {'objects':>8}")
        for width, height in sizes:
            scan = (args.scans or folder) / f"{width}x{height}.tif"
            if not scan.is_file():
                scan.parent.mkdir(parents=True, exist_ok=True)
                write_scan(scan.with_suffix(".part"), width, height, bank)
                scan.with_suffix(".part").replace(scan)
            facts = f"{width:>7} x{height:>6} {3 * width * height / 1e6:>10.0f} {scan.stat().st_size / 1e6:>8.0f}"
            for task, (model, score) in models.items():
                peak, seconds, objects = predict(model, scan, folder / f"{task} {scan.stem}", score, args.draw)
                print(f"{facts} {task:>14} {peak:>8.0f} {seconds:>8.1f} {objects:>8}", flush=True)
            if args.scans is None:
                scan.unlink()


if __name__ == "__main__":
    main()
