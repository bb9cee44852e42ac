"""What the tests of metrics compare with: loops written from the definitions, and pycocotools."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from shapely.geometry import Polygon

from drawn import SIDE, whole
from pelagia.core.oriented import to_corners
from pelagia.core.types import Instances
from pelagia.metrics.objects import Kind

#: (prediction, its index, truth, its index, crowd) -> similarity
Overlap = Callable[[Instances, int, Instances, int, bool], float]

# ---------------------------------------------------------------------------------------------- similarities


def box_overlap(found: Instances, i: int, truth: Instances, j: int, crowd: bool) -> float:
    a, b = found.box_array[i], truth.box_array[j]
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1])
    return float(width * height / (area if crowd else area + (b[2] - b[0]) * (b[3] - b[1]) - width * height))


def oriented_overlap(found: Instances, i: int, truth: Instances, j: int, crowd: bool) -> float:
    assert found.oriented is not None
    assert truth.oriented is not None
    a, b = (Polygon(to_corners(item.oriented[k : k + 1])[0]) for item, k in ((found, i), (truth, j)))
    shared = a.intersection(b).area
    return float(shared / (a.area if crowd else a.area + b.area - shared))


def mask_overlap(found: Instances, i: int, truth: Instances, j: int, crowd: bool) -> float:
    assert found.masks is not None
    assert truth.masks is not None
    a, b = whole(found.masks[i]) > 0, whole(truth.masks[j]) > 0
    area = a.sum() if crowd else (a | b).sum()
    return float((a & b).sum() / area) if area else 0.0


def pose_overlap(sigmas: Sequence[float]) -> Overlap:
    """Object keypoint similarity (cocodataset.org/#keypoints-eval), one point after the other."""

    def similarity(found: Instances, i: int, truth: Instances, j: int, crowd: bool) -> float:
        assert found.keypoints is not None
        assert truth.keypoints is not None
        x1, y1, x2, y2 = truth.box_array[j]
        area = (x2 - x1) * (y2 - y1) if truth.areas is None else truth.areas[j]
        labelled = [k for k in range(len(sigmas)) if truth.keypoints[j, k, 2] > 0]
        values = []
        for k in labelled or range(len(sigmas)):
            x, y = found.keypoints[i, k, :2]
            dx, dy = x - truth.keypoints[j, k, 0], y - truth.keypoints[j, k, 1]
            if not labelled:  # the distance to the box, grown by its sides
                dx = max(2 * x1 - x2 - x, 0, x - 2 * x2 + x1)
                dy = max(2 * y1 - y2 - y, 0, y - 2 * y2 + y1)
            values.append(math.exp(-(dx**2 + dy**2) / (2 * (area + 2.0**-52) * (2 * sigmas[k]) ** 2)))
        return sum(values) / len(values)

    return similarity


# ---------------------------------------------------------------------------------------------- matching and AP by loops


@dataclass(frozen=True)
class Verdict:
    """What became of prediction `index` of an image: right, wrong, or (None) not scored; `truth` is the object taken or -1."""

    image: int
    index: int
    label: int
    score: float
    truth: int
    right: bool | None


def again(truth: Instances, j: int) -> bool:
    """May be matched any number of times."""
    return bool(truth.crowd[j] or truth.difficult[j])


def unscored(truth: Instances, j: int) -> bool:
    """Neither rewarded nor missed."""
    blank = truth.keypoints is not None and not (truth.keypoints[j, :, 2] > 0).any()
    return bool(again(truth, j) or truth.ignore[j] or blank)


def coco_matches(
    truth: Instances, found: Instances, group: tuple[Iterable[int], Iterable[int]], threshold: float, overlap: Overlap
) -> dict[int, int]:
    """COCO's rule inside one group (predictions, true objects): prediction -> true object."""
    assert found.scores is not None
    rows, columns = list(group[0]), list(group[1])
    used: set[int] = set()
    taken: dict[int, int] = {}
    for i in sorted(rows, key=lambda i: -found.scores[i]):
        for left_out in (False, True):
            reach = threshold
            for j in columns:
                if j in used or unscored(truth, j) != left_out:
                    continue
                value = overlap(found, i, truth, j, bool(truth.crowd[j]))
                if value >= reach:
                    taken[i], reach = j, value
            if i in taken:
                break
        if i in taken and not again(truth, taken[i]):
            used.add(taken[i])
    return taken


def in_ignored_region(truth: Instances, found: Instances, i: int, overlap: Overlap) -> bool:
    return truth.keypoints is None and any(overlap(found, i, truth, int(j), True) > 0.5 for j in np.flatnonzero(truth.ignore))


def judge(
    truths: Sequence[Instances], predictions: Sequence[Instances], threshold: float, overlap: Overlap, *, limit: int = 10**9
) -> list[Verdict]:
    """Every prediction, in the order given; of an image and class only the `limit` of highest score."""
    verdicts = []
    for image, (truth, found) in enumerate(zip(truths, predictions, strict=True)):
        assert found.scores is not None
        taken: dict[int, int] = {}
        kept: set[int] = set()
        for label in np.unique(found.labels):
            rows = sorted(np.flatnonzero(found.labels == label).tolist(), key=lambda i: -found.scores[i])[:limit]
            kept |= set(rows)
            columns = np.flatnonzero((truth.labels == label) & ~truth.ignore).tolist()
            taken |= coco_matches(truth, found, (rows, columns), threshold, overlap)
        for i in sorted(kept):
            j = taken.get(i, -1)
            right: bool | None = j >= 0
            if (j >= 0 and unscored(truth, j)) or (j < 0 and in_ignored_region(truth, found, i, overlap)):
                right = None
            verdicts.append(Verdict(image, i, int(found.labels[i]), float(found.scores[i]), j, right))
    return verdicts


def count_truth(truths: Sequence[Instances], label: int) -> int:
    return sum(truth.labels[j] == label and not unscored(truth, j) for truth in truths for j in range(len(truth)))


def curve(outcomes: Iterable[tuple[float, bool | None]], total: int) -> list[tuple[float, float]]:
    """(recall, precision) after each scored prediction, in descending score, equal ones in the order given."""
    scored = sorted((item for item in outcomes if item[1] is not None), key=lambda item: -item[0])
    points, hits = [], 0
    for place, (_, right) in enumerate(scored, start=1):
        hits += bool(right)
        points.append((hits / total, hits / place))
    return points


def interpolated(outcomes: Iterable[tuple[float, bool | None]], total: int) -> float:
    """The mean over 101 recalls of the largest precision at that recall or above; NaN without truth."""
    if total == 0:
        return math.nan
    points = curve(outcomes, total)
    return float(np.mean([max((p for r, p in points if r >= level), default=0.0) for level in np.linspace(0, 1, 101)]))


def naive_ap(
    truths: Sequence[Instances],
    predictions: Sequence[Instances],
    label: int,
    threshold: float,
    overlap: Overlap,
    limit: int = 10**9,
) -> float:
    """AP of one class and threshold, of the first `limit` predictions of every image."""
    verdicts = judge(truths, predictions, threshold, overlap, limit=limit)
    return interpolated([(v.score, v.right) for v in verdicts if v.label == label], count_truth(truths, label))


# ---------------------------------------------------------------------------------------------- pycocotools


def _annotation(item: Instances, index: int, kind: Kind) -> dict[str, Any]:
    x1, y1, x2, y2 = item.box_array[index].tolist()
    values: dict[str, Any] = {"category_id": int(item.labels[index]) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    if kind == "masks":
        assert item.masks is not None
        values["segmentation"] = coco_mask.encode(np.asfortranarray(whole(item.masks[index])))
        del values["bbox"]
    if kind == "keypoints":
        assert item.keypoints is not None
        values["keypoints"] = item.keypoints[index].ravel().tolist()
        values["num_keypoints"] = int((item.keypoints[index, :, 2] > 0).sum())
        if item.scores is not None:
            del values["bbox"]
    return values


def reference(
    truths: list[Instances],
    predictions: list[Instances],
    classes: int,
    *,
    kind: Kind = "boxes",
    most: tuple[int, ...] | None = None,
    sigmas: Sequence[float] | None = None,
) -> COCOeval:
    """The same data through pycocotools; `most` replaces its cuts."""
    masks = kind == "masks"
    truth, results = [], []
    for image, (real, found) in enumerate(zip(truths, predictions, strict=True), start=1):
        for index in range(len(real)):
            area = real.box_array[index, 2:] - real.box_array[index, :2]
            own = float(real.masks[index].area) if masks and real.masks else float(area[0] * area[1])
            stated = own if real.areas is None else float(real.areas[index])
            truth.append({**_annotation(real, index, kind), "id": len(truth) + 1, "image_id": image, "area": stated})
            truth[-1]["iscrowd"] = int(real.crowd[index])
        assert found.scores is not None
        scores = found.scores.tolist()
        results += [{**_annotation(found, i, kind), "image_id": image, "score": score} for i, score in enumerate(scores)]
    frame = {
        "images": [{"id": image + 1, "height": SIDE, "width": SIDE} for image in range(len(truths))],
        "categories": [{"id": label + 1} for label in range(classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        gt, dt = COCO(), COCO()
        gt.dataset = {**frame, "annotations": truth}
        gt.createIndex()
        dt.dataset = {**frame, "annotations": []}
        dt.createIndex()
        names = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}
        evaluation = COCOeval(gt, gt.loadRes(results) if results else dt, names[kind])
        if most is not None:
            evaluation.params.maxDets = list(most)
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        if most is None:
            evaluation.summarize()
    return evaluation
