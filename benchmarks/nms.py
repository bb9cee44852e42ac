"""NMS of Pelagia against torchvision in one process on the same boxes: milliseconds, ratio, and whether the answers agree.

    python benchmarks/nms.py

The first cases are sparse (boxes of a whole scan, or of many classes), the others crowded. torchvision has no oriented NMS; that
line compares with clipping every pair whose bounds overlap.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import ops

from pelagia.core import nms
from pelagia.core import oriented as oriented_boxes

Array = NDArray[np.float64]


def timed(function: Callable[[], NDArray[np.int64]], repeats: int = 3) -> tuple[float, NDArray[np.int64]]:
    """The best of some runs in milliseconds, and the result; both sides get as many."""
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best * 1000, result


def spread(rng: np.random.Generator, count: int, size: tuple[int, int], low: float, high: float) -> Array:
    """Boxes with centres uniform in an image and sides uniform in pixels."""
    centre, side = rng.uniform(0, 1, (count, 2)) * size, rng.uniform(low, high, (count, 2))
    return np.hstack([centre - side / 2, centre + side / 2])


def report(name: str, boxes: Array, scores: Array, threshold: float, labels: NDArray[np.int64] | None = None) -> None:
    """One line for axis-aligned boxes."""
    ours, kept = timed(lambda: nms.nms(boxes, scores, threshold, labels))
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores)
    if labels is None:
        theirs, expected = timed(lambda: ops.nms(*tensors, threshold).numpy())
    else:
        classes = torch.from_numpy(labels)
        theirs, expected = timed(lambda: ops.batched_nms(*tensors, classes, threshold).numpy())
    line(name, len(boxes), len(kept), ours, theirs, np.array_equal(np.sort(kept), np.sort(expected)))


def line(name: str, count: int, kept: int, ours: float, theirs: float, agree: bool) -> None:
    """Print one comparison."""
    verdict = "agree" if agree else "DIFFER"
    print(f"{name:44s} {count:6d} boxes {kept:6d} kept {ours:8.1f} ms {theirs:9.1f} ms {theirs / ours:7.1f} x  {verdict}")


def all_pairs(boxes: Array, scores: Array, threshold: float) -> NDArray[np.int64]:
    """The greedy rule over the matrix of all exact IoUs."""
    order = np.argsort(-scores, kind="stable")
    overlap = oriented_boxes.iou(boxes[order], boxes[order]) > threshold
    stay = np.ones(len(order), dtype=np.bool_)
    for i in range(len(order)):
        if stay[i]:
            stay[i + 1 :] &= ~overlap[i, i + 1 :]
    return order[stay]


def main() -> None:
    rng = np.random.default_rng(0)
    count = 50_000
    scores = rng.uniform(0, 1, count)
    print(f"{'':70s} Pelagia   torchvision   ratio")
    report("80 classes, 1280 x 960", spread(rng, count, (1280, 960), 10, 100), scores, 0.5, rng.integers(0, 80, count))
    report("one class, scan of 14,000 x 24,000", spread(rng, count, (14_000, 24_000), 20, 80), scores, 0.5)
    report("one class, scan, sizes 5 to 500, IoU 0.3", spread(rng, count, (14_000, 24_000), 5, 500), scores, 0.3)
    report("one class, 2000 x 2000, IoU 0.7", spread(rng, count, (2000, 2000), 50, 150), scores, 0.7)
    objects = np.repeat(spread(rng, 168, (1000, 1000), 40, 120), 50, axis=0) + rng.normal(0, 4, (8400, 4))
    report("8400 anchors, 50 around each object, IoU 0.7", objects, scores[:8400], 0.7)
    report("all overlapping, IoU 0.5", spread(rng, count, (200, 200), 50, 150), scores, 0.5)
    report("all overlapping, IoU 0.7", spread(rng, count, (200, 200), 50, 150), scores, 0.7)
    report("all equal", np.repeat([[0.0, 0.0, 10.0, 10.0]], count, axis=0), scores, 0.5)
    for extent in (2000, 500):
        number = 5000
        centre, side = rng.uniform(0, extent, (number, 2)), rng.uniform(10, 80, (number, 2))
        boxes = np.column_stack([centre, side, rng.uniform(-1.5, 1.5, number)])
        ours, kept = timed(lambda boxes=boxes: nms.nms_oriented(boxes, scores[:5000], 0.3))
        theirs, expected = timed(lambda boxes=boxes: all_pairs(boxes, scores[:5000], 0.3))
        line(
            f"oriented, {extent} x {extent}, IoU 0.3, all pairs", number, len(kept), ours, theirs, np.array_equal(kept, expected)
        )


if __name__ == "__main__":
    main()
