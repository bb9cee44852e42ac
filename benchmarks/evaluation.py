"""Scoring COCO results: Pelagia beside pycocotools, faster-coco-eval and hotcoco, on the same files, loading included.

    python benchmarks/evaluation.py --peer-python PEER_ENV/bin/python
    python benchmarks/evaluation.py --scaling
    python benchmarks/evaluation.py --bootstrap 1000

The set is drawn by seed: 5,000 images of 80 classes with about 36,000 objects and 100 predictions each, 1 % crowds; for masks its
first 500 images with elliptic masks. Every tool runs in a process of its own, imports first (not timed), then loads and scores
the two files; time and peak memory are printed, and the twelve numbers are compared with pycocotools'. Then whole commands are
timed: `pelagia evaluate` and a script that calls hotcoco. Tools take turns, `--rounds` times; medians are given. `--scaling`
scores 0.5, 1, 2 and 4 million predictions and shows the time of each; `--bootstrap` times intervals of every number. The peers'
environment is made from `benchmarks/requirements.txt`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pelagia.core.masks import crop_from_bitmap, crop_to_rle, rle_to_string
from pelagia.core.types import MaskCrop
from pelagia.infer.evaluate import gather_file
from pelagia.metrics.bootstrap import intervals
from pelagia.metrics.statistics import detection_statistic

WORKER = Path(__file__).with_name("evaluation_worker.py")
WIDTH, HEIGHT, CLASSES = 640, 480, 80


def ellipse(box: list[float]) -> str:
    """COCO's compressed run lengths of the ellipse in a box x, y, w, h."""
    x1, y1 = max(int(box[0]), 0), max(int(box[1]), 0)
    x2, y2 = min(int(box[0] + box[2]) + 1, WIDTH), min(int(box[1] + box[3]) + 1, HEIGHT)
    x, y = np.meshgrid(np.arange(x1, max(x2, x1 + 1)) + 0.5, np.arange(y1, max(y2, y1 + 1)) + 0.5)
    inside = ((x - box[0] - box[2] / 2) / (box[2] / 2)) ** 2 + ((y - box[1] - box[3] / 2) / (box[3] / 2)) ** 2 <= 1
    inside[0, 0] |= not inside.any()
    crop = crop_from_bitmap(inside)
    return rle_to_string(crop_to_rle(MaskCrop(crop.x + x1, crop.y + y1, crop.bitmap), HEIGHT, WIDTH))


def draw(folder: Path, images: int, found: int, *, masks: bool, seed: int = 0) -> tuple[Path, Path, int]:
    """Write truth and `found` predictions per image; returns both paths and the number of predictions."""
    rng = np.random.default_rng(seed)
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    popular = rng.dirichlet(np.full(CLASSES, 0.7))
    for image in range(1, images + 1):
        count = int(rng.poisson(7.2))
        size = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2))).clip(max=HEIGHT - 1)
        corner = rng.random((count, 2)) * (np.array([WIDTH, HEIGHT]) - size)
        boxes, labels = np.round(np.concatenate([corner, size], axis=1), 2), rng.choice(CLASSES, count, p=popular) + 1
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            entry = {
                "id": len(truth) + 1,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                "iscrowd": int(rng.random() < 0.01),
            }
            entry["area"] = round(box[2] * box[3], 2)
            if masks:
                entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": ellipse(box)}
            truth.append(entry)
        near = min(3 * count, found)
        source = rng.integers(0, max(count, 1), near)
        shifted = boxes[source] if count else np.zeros((0, 4))
        shifted = shifted + rng.normal(0, 0.08, (near, 4)) * np.tile(shifted[:, 2:], 2)
        wide = np.exp(rng.uniform(np.log(8), np.log(300), (found - near, 2))).clip(max=HEIGHT - 1)
        other = np.concatenate([rng.random((found - near, 2)) * (np.array([WIDTH, HEIGHT]) - wide), wide], axis=1)
        every = np.concatenate([shifted, other])
        every[:, 2:] = every[:, 2:].clip(min=1)
        kinds = np.concatenate([labels[source] if count else labels[:0], rng.choice(CLASSES, found - near, p=popular) + 1])
        kinds = np.where(rng.random(found) < 0.1, rng.integers(1, CLASSES + 1, found), kinds)
        score = np.concatenate([rng.beta(3, 2, near), rng.beta(1, 6, found - near)])
        for box, label, value in zip(np.round(every, 3).tolist(), kinds.tolist(), np.round(score, 6).tolist(), strict=True):
            item: dict[str, Any] = {"image_id": image, "category_id": label, "score": value}
            if masks:
                item["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": ellipse(box)}
            else:
                item["bbox"] = box
            results.append(item)
    frame = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i:06}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)],
    }
    gt, dt = folder / f"truth-{images}-{masks}.json", folder / f"results-{images}-{found}-{masks}.json"
    gt.write_text(json.dumps({**frame, "annotations": truth}))
    dt.write_text(json.dumps(results))
    return gt, dt, len(results)


def ask(python: str, tool: str, gt: Path, dt: Path, kind: str) -> dict[str, Any]:
    """Run one tool in its own process."""
    run = subprocess.run([python, str(WORKER), tool, str(gt), str(dt), kind], capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{tool} failed:\n{run.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answer


def compare(args: argparse.Namespace, folder: Path, kind: str) -> None:
    """One table of all tools on one set."""
    masks = kind == "segm"
    gt, dt, count = draw(folder, 500 if masks else args.images, 100, masks=masks)
    print(f"\n{kind}: {count:,} predictions, {dt.stat().st_size / 1e6:.0f} MB")
    tools = ["pelagia", *(["hotcoco", "faster-coco-eval", "pycocotools"] if args.peer_python else [])]
    found: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
    ask(sys.executable, "pelagia", gt, dt, kind)  # fills the cache of compiled functions
    for turn in range(args.rounds):
        for tool in tools:
            if tool == "pycocotools" and turn:
                continue  # a minute and a half, and the numbers do not change
            found[tool].append(ask(sys.executable if tool == "pelagia" else args.peer_python, tool, gt, dt, kind))
    seconds = {tool: statistics.median(item["seconds"] for item in items) for tool, items in found.items()}
    reference = np.array(found.get("pycocotools", found["pelagia"])[0]["stats"])
    print(f"{'':18} {'seconds':>8} {'x Pelagia':>9} {'first':>8} {'peak GB':>8} {'added GB':>8} {'largest difference':>19}")
    for tool, items in found.items():
        apart = np.abs(np.array(items[0]["stats"]) - reference).max()
        first, peak, added = (statistics.median(item[name] for item in items) for name in ("first", "peak_gb", "added_gb"))
        ratio = seconds[tool] / seconds["pelagia"]
        print(f"{tool:18} {seconds[tool]:8.3f} {ratio:9.2f} {first:8.3f} {peak:8.2f} {added:8.2f} {apart:19.1e}")
    if args.peer_python:
        commands = {
            "pelagia evaluate": [sys.executable, "-m", "pelagia", "evaluate", str(dt), str(gt)],
            "script with hotcoco": [args.peer_python, str(WORKER), "hotcoco", str(gt), str(dt), kind, "1"],
        }
        for name, command in commands.items():
            times = []
            for _ in range(args.rounds):
                begin = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                times.append(time.perf_counter() - begin)
            print(f"whole command, {name:20} {statistics.median(times):6.2f} s")


def main() -> None:
    """Draw the sets, run the tools, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="Python of an environment with the peers; without it only Pelagia runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--kinds", nargs="+", choices=["bbox", "segm"], default=["bbox", "segm"])
    parser.add_argument("--bootstrap", type=int, metavar="RESAMPLES", help="only time the intervals of so many resamples")
    parser.add_argument("--scaling", action="store_true", help="only show how the time grows with the number of predictions")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.bootstrap:
            gt, dt, _ = draw(folder, args.images, 100, masks=False)
            evidence = gather_file(dt, gt)
            begin = time.perf_counter()
            found = intervals(detection_statistic(evidence), evidence.images, resamples=args.bootstrap)
            seconds = time.perf_counter() - begin
            ap = found["", "AP"]
            print(f"{args.bootstrap} resamples of {args.images} images, {len(found)} numbers: {seconds:.1f} s")
            print(f"AP {ap.value:.4f} [{ap.low:.4f}, {ap.high:.4f}]")
            return
        if args.scaling:
            for found in (100, 200, 400, 800):
                gt, dt, count = draw(folder, args.images, found, masks=False)
                items = [ask(sys.executable, "pelagia", gt, dt, "bbox") for _ in range(args.rounds)]
                seconds = statistics.median(item["seconds"] for item in items)
                peak = statistics.median(item["peak_gb"] for item in items)
                print(
                    f"{count:10,} predictions {seconds:7.3f} s {1e6 * seconds / count:6.2f} us each, peak {peak:.2f} GB",
                    flush=True,
                )
                dt.unlink()
            return
        for kind in args.kinds:
            compare(args, folder, kind)


if __name__ == "__main__":
    main()
