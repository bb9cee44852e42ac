"""One object out of its views in overlapping tiles: Pelagia's `join` against SAHI's three ways, the same boxes in one run.

    python benchmarks/merging.py --peer-python PEER_ENV/bin/python

100,000 boxes of 432 tiles: drawn objects on 12,000 x 9,000 pixels, seen by slices of 640 that overlap by a fifth, each view cut
at its slice, moved a little and given a score of its own. SAHI merges by suppression on arrays, by greedy merging on arrays, and
by greedy merging of its objects, what it does by default. Printed are seconds (the median), the ratio to Pelagia, and how many
objects are left of how many drawn. Masks and oriented boxes follow, which SAHI's arrays do not have.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Instances, MaskCrop
from pelagia.infer.joining import join
from pelagia.infer.tiles import Tile, lay_tiles
from training import ask_peer

SIZE, SIDE, OVERLAP, CLASSES = (12_000, 9_000), 640, 128, 5
PEER = Path(__file__).with_name("peer_sahi.py")


def draw(rng: np.random.Generator, views: int) -> tuple[list[Tile], list[Instances], int]:
    """Tiles, what each sees, and of how many objects; `views` in all."""
    share = (views / 100_000) ** 0.5  # fewer views: a smaller scan, as crowded
    size = tuple(max(round(length * share), SIDE) for length in SIZE)
    tiles = lay_tiles(size, (SIDE, SIDE), OVERLAP)  # type: ignore[arg-type]
    centre, side = rng.uniform(0, 1, (views, 2)) * size, rng.uniform(20, 80, (views, 2))
    boxes = np.clip(np.hstack([centre - side / 2, centre + side / 2]), 0, np.tile(size, 2))
    labels = rng.integers(0, CLASSES, views)
    seen: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    for tile in tiles:
        x1, y1, x2, y2 = tile.box
        near = np.flatnonzero((boxes[:, 0] < x2 - 4) & (boxes[:, 2] > x1 + 4) & (boxes[:, 1] < y2 - 4) & (boxes[:, 3] > y1 + 4))
        moved = boxes[near] + rng.normal(0, 0.5, (len(near), 4))
        seen.append((near, np.clip(moved, [x1, y1, x1, y1], [x2, y2, x2, y2])))
    # The first objects that make up the number of views.
    number = np.concatenate([near for near, _ in seen])
    last = int(np.sort(number)[min(views, len(number)) - 1])
    parts = []
    for near, moved in seen:
        kept = near <= last
        scores = rng.uniform(0.3, 0.95, int(kept.sum()))
        parts.append(Instances(labels=labels[near[kept]], boxes=moved[kept], scores=scores))
    return tiles, parts, last + 1


def turned(part: Instances) -> Instances:
    """The same as oriented boxes, a little slender."""
    x1, y1, x2, y2 = part.box_array.T
    angle = np.where(x2 - x1 >= y2 - y1, 0.0, -np.pi / 2)
    values = [(x1 + x2) / 2, (y1 + y2) / 2, np.maximum(x2 - x1, y2 - y1), np.minimum(x2 - x1, y2 - y1), angle]
    return Instances(labels=part.labels, oriented=np.column_stack(values), scores=part.scores)


def masked(part: Instances) -> Instances:
    """The same with masks that fill the boxes."""
    corners = np.rint(part.box_array).astype(int)
    crops = tuple(
        MaskCrop(x1, y1, np.ones((max(y2 - y1, 1), max(x2 - x1, 1)), dtype=np.bool_)) for x1, y1, x2, y2 in corners.tolist()
    )
    return part.replace(masks=crops)


def timed(parts: list[Instances], tiles: list[Tile], size: tuple[int, int], rounds: int) -> tuple[float, int]:
    """Median seconds of `join`, and the number of objects left."""
    join(parts, tiles, size, margin=0.01 * SIDE)
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        left = len(join(parts, tiles, size, margin=0.01 * SIDE))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), left


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="Python of an environment with SAHI; without it only Pelagia is measured")
    parser.add_argument("--boxes", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-merging"))
    args = parser.parse_args()
    tiles, parts, objects = draw(np.random.default_rng(0), args.boxes)
    size = (max(tile.box[2] for tile in tiles), max(tile.box[3] for tile in tiles))
    print(f"{sum(map(len, parts))} boxes of {len(tiles)} tiles, {objects} objects on {size[0]} x {size[1]} pixels")
    ours, left = timed(parts, tiles, size, args.rounds)
    print(f"{'pelagia':32} {ours:8.4f} s          {left:6d} objects left")
    for name, form in (("oriented boxes", turned), ("masks", masked)):
        seconds, left = timed([form(part) for part in parts], tiles, size, args.rounds)
        print(f"{'pelagia, ' + name:32} {seconds:8.4f} s          {left:6d} objects left")
    if args.peer_python:
        out = args.out.resolve()
        out.mkdir(parents=True, exist_ok=True)
        rows = [np.column_stack([part.box_array, part.scores, part.labels]) for part in parts]  # type: ignore[list-item]
        np.save(out / "predictions.npy", np.concatenate(rows))
        request = {"action": "merge", "predictions": str(out / "predictions.npy"), "iou": 0.5, "rounds": args.rounds}
        answer = ask_peer(args.peer_python, request, out, PEER)
        print(f"sahi's backend: {answer.pop('backend')}")
        for name in [key for key in answer if key != "wall"]:
            seconds = statistics.median(answer[name]["seconds"])
            print(f"{'sahi, ' + name:32} {seconds:8.4f} s {seconds / ours:6.1f} x {answer[name]['left']:6d} objects left")


if __name__ == "__main__":
    main()
