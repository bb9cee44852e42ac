"""Claim: exact geometry at the speed of the machine: rotated IoU, rotated NMS and NMS against the usual tools, in one process.

    python benchmarks/geometry.py [--share 1.0]

Medians in milliseconds on the same boxes, the ratio, and whether the answers agree. Rotated IoU: shapely with a tree (only pairs
that meet) and OpenCV (pairs whose bounds meet). Rotated NMS: the greedy rule with shapely and its tree. NMS: torchvision. The
first cases of NMS are sparse (boxes of a whole scan, or of many classes), the others crowded. `--share` scales the numbers of
boxes, to try the script. The peers are in the extra `dev`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torchvision import ops

from pelagia.core import nms
from pelagia.core import oriented as oriented_boxes

Array = NDArray[Any]


def timed(function: Callable[[], Array], repeats: int = 5) -> tuple[float, Array]:
    """The median of some runs in milliseconds, and the result; a first run, which may compile, does not count."""
    result = function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000, result


def turned(rng: np.random.Generator, count: int, extent: float) -> Array:
    """Oriented boxes with sides of 10 to 80 pixels, centres uniform in a square."""
    centre, side = rng.uniform(0, extent, (count, 2)), rng.uniform(10, 80, (count, 2))
    return np.column_stack([centre, side, rng.uniform(-1.5, 1.5, count)])


def spread(rng: np.random.Generator, count: int, size: tuple[int, int], low: float, high: float) -> Array:
    """Boxes with centres uniform in an image and sides uniform in pixels."""
    centre, side = rng.uniform(0, 1, (count, 2)) * size, rng.uniform(low, high, (count, 2))
    return np.hstack([centre - side / 2, centre + side / 2])


def report(name: str, boxes: Array, scores: Array, threshold: float, labels: NDArray[np.int64] | None = None) -> None:
    """One line for axis-aligned boxes."""
    ours, kept = timed(lambda: nms.nms(boxes, scores, threshold, labels))
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores)
    if labels is None:
        theirs, expected = timed(lambda: ops.nms(*tensors, threshold).numpy(), repeats=3)
    else:
        classes = torch.from_numpy(labels)
        theirs, expected = timed(lambda: ops.batched_nms(*tensors, classes, threshold).numpy(), repeats=3)
    name = f"NMS of {len(boxes)}, {name}, IoU {threshold}, {len(kept)} kept, torchvision"
    line(name, ours, theirs, np.array_equal(kept, expected))


def line(name: str, ours: float, theirs: float, agree: bool) -> None:
    """Print one comparison."""
    print(f"{name:76s} {ours:8.1f} ms {theirs:9.1f} ms {theirs / ours:7.1f} x  {'agree' if agree else 'DIFFER'}", flush=True)


def shapely_iou(a: Array, b: Array) -> Array:
    """[N, M] by shapely: a tree finds the pairs that meet."""
    first, second = (shapely.polygons(oriented_boxes.to_corners(boxes)) for boxes in (a, b))
    i, j = shapely.STRtree(second).query(first, predicate="intersects")
    common = shapely.area(shapely.intersection(first[i], second[j]))
    result = np.zeros((len(a), len(b)))
    result[i, j] = common / (shapely.area(first)[i] + shapely.area(second)[j] - common)
    return result


def opencv_iou(a: Array, b: Array) -> Array:
    """[N, M] by OpenCV, pair by pair where the bounds meet; it computes in float32."""
    first, second = oriented_boxes.bounds(a), oriented_boxes.bounds(b)
    rectangles = [[((x, y), (w, h), math.degrees(angle)) for x, y, w, h, angle in boxes.tolist()] for boxes in (a, b)]
    result = np.zeros((len(a), len(b)))
    meet = (first[:, None, :2] < second[None, :, 2:]).all(axis=2) & (first[:, None, 2:] > second[None, :, :2]).all(axis=2)
    for i, j in zip(*np.nonzero(meet), strict=True):
        kind, region = cv2.rotatedRectangleIntersection(rectangles[0][i], rectangles[1][j])
        if kind != cv2.INTERSECT_NONE:
            common = cv2.contourArea(cv2.convexHull(region))
            result[i, j] = common / (a[i, 2] * a[i, 3] + b[j, 2] * b[j, 3] - common)
    return result


def shapely_greedy(boxes: Array, scores: Array, threshold: float) -> Array:
    """The greedy rule with shapely: its tree finds the neighbours of every object that stays."""
    order = np.argsort(-scores, kind="stable")
    shapes = shapely.polygons(oriented_boxes.to_corners(boxes[order]))
    areas, tree = shapely.area(shapes), shapely.STRtree(shapes)
    stay = np.ones(len(order), dtype=np.bool_)
    for i in range(len(order)):
        if stay[i]:
            near = tree.query(shapes[i], predicate="intersects")
            near = near[(near > i) & stay[near]]
            common = shapely.area(shapely.intersection(shapes[near], shapes[i]))
            stay[near[common / (areas[near] + areas[i] - common) > threshold]] = False
    return order[stay]


def rotated(rng: np.random.Generator, share: float) -> None:
    """IoU matrices and suppression of oriented boxes."""
    number = round(1000 * share)
    for extent in (2000, 1000, 500):
        a, b = turned(rng, number, extent), turned(rng, number, extent)
        ours, exact = timed(lambda a=a, b=b: oriented_boxes.iou(a, b))
        name = f"rotated IoU {number} x {number}, {np.count_nonzero(exact)} meet"
        for peer, function, tolerance in (("shapely", shapely_iou, 1e-9), ("OpenCV", opencv_iou, 1e-2)):
            theirs, expected = timed(lambda a=a, b=b, function=function: function(a, b), repeats=3)
            apart = float(np.abs(exact - expected).max())
            line(f"{name}, {peer} ({apart:.0e} apart)", ours, theirs, apart <= tolerance)
    number = round(5000 * share)
    for extent in (2000, 1000, 500):
        for threshold in (0.3, 0.7):
            boxes, scores = turned(rng, number, extent), rng.uniform(0, 1, number)
            ours, kept = timed(lambda boxes=boxes, scores=scores, t=threshold: nms.nms_oriented(boxes, scores, t))
            theirs, expected = timed(lambda boxes=boxes, scores=scores, t=threshold: shapely_greedy(boxes, scores, t), repeats=3)
            name = f"rotated NMS of {number}, {extent} px, IoU {threshold}, {len(kept)} kept, shapely"
            line(name, ours, theirs, np.array_equal(kept, expected))


def main() -> None:
    """Print every comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0)
    share = parser.parse_args().share
    rng = np.random.default_rng(0)
    count = round(50_000 * share)
    scores = rng.uniform(0, 1, count)
    print(f"{'':79s} Pelagia          peer     ratio")
    rotated(rng, share)
    report("one class, 14,000 x 24,000", spread(rng, count, (14_000, 24_000), 20, 80), scores, 0.5)
    report("one class, sizes 5 to 500", spread(rng, count, (14_000, 24_000), 5, 500), scores, 0.3)
    report("80 classes, 1280 x 960", spread(rng, count, (1280, 960), 10, 100), scores, 0.5, rng.integers(0, 80, count))
    report("one class, 2000 x 2000", spread(rng, count, (2000, 2000), 50, 150), scores, 0.7)
    objects = spread(rng, 168, (1000, 1000), 40, 120).repeat(max(round(50 * share), 1), axis=0)
    objects += rng.normal(0, 4, objects.shape)
    report("many around each of 168 objects", objects, scores[: len(objects)], 0.7)
    report("all overlapping", spread(rng, count, (200, 200), 50, 150), scores, 0.5)
    report("all equal", np.repeat([[0.0, 0.0, 10.0, 10.0]], count, axis=0), scores, 0.5)


if __name__ == "__main__":
    main()
