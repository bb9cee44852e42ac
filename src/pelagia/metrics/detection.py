"""COCO detection metrics, number for number those of pycocotools, and what COCO leaves out.

Average precision (Lin et al. 2014; `pycocotools.cocoeval`): per class, area range and IoU threshold, predictions of all images in
descending score give a precision-recall curve; its upper envelope is read at 101 recalls and averaged. COCO cuts at 100
predictions per image and class, which hides objects on crowded scans, so the uncut number stands beside it. Values that do
not exist (no truth of that kind) are NaN; pycocotools writes -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Category, Float, Instances, Int, Mask
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.confusion import confusion_matrix
from pelagia.metrics.matching import Comparison, Kind, Matches, find_pairs, flatten, match, ranks
from pelagia.metrics.result import AREAS, RECALLS, SCORES, ClassResult, DetectionResult, mean
from pelagia.metrics.thresholds import OperatingPoint, best_f1, score_curve

__all__ = ["COCO_IOU_THRESHOLDS", "compare", "evaluate_detection"]

#: 0.50, 0.55, ... 0.95, by the same arithmetic as pycocotools.
COCO_IOU_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())

#: Added to the number of predictions, as pycocotools does; it shows in the last digit.
_EPS = np.spacing(1)


def evaluate_detection(
    truths: Sequence[Instances],
    predictions: Sequence[Instances],
    categories: Sequence[Category],
    *,
    kind: Kind = "boxes",
    iou_thresholds: Sequence[float] = COCO_IOU_THRESHOLDS,
    max_dets: Sequence[int] = (1, 10, 100, 0),
    score_threshold: float | None = None,
) -> DetectionResult:
    """Score predictions against truth, one `Instances` of each per image.

    Crowds match any number of predictions, which then do not count, and so do difficult objects. A prediction of which more
    than half lies in an ignore region (of any class) does not count unless it finds a true object. Truth is binned by
    `Instances.areas` (else by its own area), unmatched predictions by their own.

    Args:
        kind: what is compared: boxes, oriented boxes (exact IoU), or masks.
        iou_thresholds: AP is averaged over them; each in (0, 1].
        max_dets: most predictions per image and class, 0 for all. AP is cut at the largest number, and given for all beside it.
        score_threshold: from which score the confusion matrix counts; None: each class's score of best F1.

    Raises:
        EvaluationError: other numbers of images, scores missing or NaN, a label without category, or nothing of this `kind`.
        OptionError: a threshold or cut that cannot be used.
    """
    thresholds = np.asarray(iou_thresholds, dtype=np.float64)
    if len(thresholds) == 0 or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise OptionError(f"iou_thresholds must be numbers above 0 and at most 1, got {list(iou_thresholds)}")
    if len(max_dets) == 0 or min(max_dets) < 0:
        raise OptionError(f"max_dets must be positive numbers, or 0 for all, got {list(max_dets)}")
    comparison = compare(truths, predictions, len(categories), kind)
    tally = _tally(comparison, len(categories), thresholds, max_dets)
    best = [point.threshold for point in tally.points]
    chosen = np.array(best if score_threshold is None else [score_threshold] * len(best), dtype=np.float64)
    return _result(comparison, categories, tally, len(truths), thresholds, chosen)


def compare(truths: Sequence[Instances], predictions: Sequence[Instances], classes: int, kind: Kind) -> Comparison:
    """Check that predictions and truth fit together, and lay them out in flat arrays.

    Raises:
        EvaluationError: see `evaluate_detection`.
    """
    if len(truths) != len(predictions):
        raise EvaluationError(f"{len(predictions)} predictions for {len(truths)} images; give one Instances per image")
    for position, item in enumerate(predictions):
        if item.scores is None and len(item):
            raise EvaluationError("the predictions hold no scores, and AP ranks by score", where=f"image {position}")
    found = flatten(predictions, kind, what="predictions")
    everything = flatten(truths, kind, what="truth")
    for shapes, what in ((found, "predictions"), (everything, "truth")):
        bad = np.flatnonzero((shapes.label < 0) | (shapes.label >= classes))
        if len(bad):
            raise EvaluationError(
                f"the {what} hold label {shapes.label[bad[0]]}, but there are {classes} classes",
                where=f"image {shapes.image[bad[0]]}",
            )
    score = _column([item.scores for item in predictions if item.scores is not None], np.float64)
    if np.isnan(score).any():
        raise EvaluationError("a score is NaN", where=f"image {found.image[np.isnan(score)][0]}")

    ignore = _column([item.ignore for item in truths], np.bool_)
    crowd = _column([item.crowd for item in truths], np.bool_)
    difficult = _column([item.difficult for item in truths], np.bool_)
    stated = np.concatenate([np.zeros(0), *(np.full(len(item), np.nan) if item.areas is None else item.areas for item in truths)])
    area = np.where(np.isnan(stated), everything.area, stated)
    real, regions = np.flatnonzero(~ignore), everything.select(np.flatnonzero(ignore))
    excluded = np.zeros(len(found), dtype=np.bool_)
    if len(regions):
        inside = find_pairs(found, regions, (found.image, regions.image), np.ones(len(regions), dtype=np.bool_), 0.5)
        excluded[inside.prediction[inside.value > 0.5]] = True
    return Comparison(found, everything.select(real), score, area[real], crowd[real], (crowd | difficult)[real], excluded)


def _column(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts]).astype(dtype)


@dataclass(frozen=True, slots=True)
class _Tally:
    """Precision, recall and counts of every class."""

    cuts: tuple[int, ...]
    precision: Float  # [T, R, C, A] at the largest cut
    precision_all: Float  # [T, R, C, A] without a cut
    recall: Float  # [T, C, A, M]
    objects: Int  # [C]
    predicted: Int  # [C]
    points: list[OperatingPoint]
    f1: list[Float]
    middle: int


def _tally(comparison: Comparison, classes: int, thresholds: Float, max_dets: Sequence[int]) -> _Tally:
    """Match everything once, then read every class's curves."""
    predictions, truth = comparison.predictions, comparison.truth
    # A threshold of 1 must be reachable in floating point; pycocotools lowers it by the same amount.
    reached = np.minimum(thresholds, 1 - 1e-10)
    keys = predictions.image * classes + predictions.label, truth.image * classes + truth.label
    order, rank = ranks(keys[0], comparison.score)
    ignored = comparison.again | _outside(comparison.truth_area)
    pairs = find_pairs(predictions, truth, keys, comparison.crowd, float(reached.min()))
    matches = match(pairs, order, reached, ignored, comparison.again)

    finite = sorted({cut for cut in max_dets if cut > 0})
    cuts = (*finite, 0) if 0 in max_dets else tuple(finite)
    limit = [cut or len(rank) for cut in cuts]
    main = finite[-1] if finite else len(rank)
    middle = int(np.argmin(np.abs(thresholds - 0.5)))
    shape = (len(thresholds), len(RECALLS), classes, len(AREAS))
    cut, uncut = np.full(shape, np.nan), np.full(shape, np.nan)
    recall = np.full((len(thresholds), classes, len(AREAS), len(cuts)), np.nan)
    points: list[OperatingPoint] = []
    f1: list[Float] = []
    outside = _outside(predictions.area) | comparison.excluded
    by_class, _ = ranks(predictions.label, comparison.score)
    edges = np.searchsorted(predictions.label[by_class], np.arange(classes + 1))
    total = np.stack([np.bincount(truth.label[~part], minlength=classes) for part in ignored])  # [A, C]
    for label in range(classes):
        chosen = by_class[edges[label] : edges[label + 1]]
        place = rank[chosen]
        for area in range(len(AREAS)):
            correct, kept = _outcome(matches, chosen, ignored[area], outside[area], area)
            count = int(total[area, label])
            if area == 0:
                curve = score_curve(comparison.score[chosen], correct[middle], kept[middle], count)
                points.append(best_f1(curve))
                f1.append(curve.f1_at(SCORES))
            if count == 0:
                continue
            uncut[:, :, label, area] = _envelope(correct, kept, count)
            same = not (place >= main).any()
            within = place < main
            cut[:, :, label, area] = uncut[:, :, label, area] if same else _envelope(correct[:, within], kept[:, within], count)
            for position, most in enumerate(limit):
                recall[:, label, area, position] = (correct & (place < most)).sum(axis=1) / count
    return _Tally(cuts, cut, uncut, recall, total[0], np.diff(edges), points, f1, middle)


def _outside(area: Float) -> Mask:
    """[A, N]: the object's area lies outside the area range."""
    return np.stack([(area < low) | (area > high) for low, high in AREAS.values()])


def _outcome(matches: Matches, chosen: Int, ignored: Mask, outside: Mask, area: int) -> tuple[Mask, Mask]:
    """[T, n] twice: true positives, and true or false positives."""
    taken = matches.of(chosen, area)
    found = taken >= 0
    correct = found & ~np.append(ignored, True)[taken]  # -1 reads the appended one
    return correct, correct | ~(found | outside[chosen])


def _envelope(correct: Mask, kept: Mask, total: int) -> Float:
    """[T, R] interpolated precision: the largest at recall >= r, 0 where r is not reached.

    Recall moves, and precision peaks, only at true positives, so the other predictions are merely counted.
    """
    result = np.zeros((len(correct), len(RECALLS)))
    step = np.searchsorted(np.arange(1, total + 1) / total, RECALLS, side="left")  # true positives that reach r, less one
    seen = np.cumsum(kept, axis=1, dtype=np.int64)
    for row, (hits, counted) in enumerate(zip(correct, seen, strict=True)):
        count = counted[hits]
        precision = np.arange(1, len(count) + 1) / (count + _EPS)
        highest = np.maximum.accumulate(precision[::-1])[::-1]
        reached = step < len(count)
        result[row, reached] = highest[step[reached]]
    return result


def _result(
    comparison: Comparison, categories: Sequence[Category], tally: _Tally, images: int, thresholds: Float, chosen: Float
) -> DetectionResult:
    """Average the curves into the numbers that are printed."""
    cut, uncut, recall = tally.precision, tally.precision_all, tally.recall
    main = len([most for most in tally.cuts if most]) - 1  # -1, the last, when there is only "all"
    half, three_quarters = (np.isclose(thresholds, level, atol=1e-9, rtol=0) for level in (0.5, 0.75))
    by_area = [mean(cut[..., area]) for area in range(len(AREAS))]
    ar_by_area = [mean(recall[:, :, area, main]) for area in range(len(AREAS))]
    classes = tuple(
        ClassResult(
            name=category.name,
            id=category.id,
            truths=int(tally.objects[i]),
            predictions=int(tally.predicted[i]),
            ap=mean(cut[:, :, i, 0]),
            ap50=mean(cut[half, :, i, 0]),
            ap_all=mean(uncut[:, :, i, 0]),
            ap50_all=mean(uncut[half, :, i, 0]),
            recall=mean(recall[:, i, 0, main]),
            best=tally.points[i],
            precision=uncut[tally.middle, :, i, 0],
            f1=tally.f1[i],
        )
        for i, category in enumerate(categories)
    )
    iou = float(thresholds[tally.middle])
    return DetectionResult(
        kind=comparison.predictions.kind,
        images=images,
        truths=int(tally.objects.sum()),
        predictions=len(comparison.predictions),
        iou_thresholds=tuple(thresholds.tolist()),
        max_dets=tally.cuts,
        ap=by_area[0],
        ap50=mean(cut[half, :, :, 0]),
        ap75=mean(cut[three_quarters, :, :, 0]),
        ap_small=by_area[1],
        ap_medium=by_area[2],
        ap_large=by_area[3],
        ap_all=mean(uncut[..., 0]),
        ap50_all=mean(uncut[half, :, :, 0]),
        ar={most: mean(recall[:, :, 0, position]) for position, most in enumerate(tally.cuts)},
        ar_small=ar_by_area[1],
        ar_medium=ar_by_area[2],
        ar_large=ar_by_area[3],
        classes=classes,
        confusion=confusion_matrix(comparison, [category.name for category in categories], chosen, iou=iou),
        curve_iou=iou,
    )
