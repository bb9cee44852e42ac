"""COCO detection metrics, number for number those of pycocotools, and what COCO leaves out.

COCO cuts at 100 predictions per image and class (20 for keypoints), which hides objects on crowded scans, so the uncut number
stands beside it. Values that do not exist (no truth of that kind) are NaN; pycocotools writes -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pelagia.core.keypoints import keypoint_sigmas
from pelagia.core.types import Category, Float, Instances, Mask
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.confusion import confusion_matrix
from pelagia.metrics.curves import (
    Curves,
    Ranking,
    Rules,
    Walk,
    matches_of,
    rank_predictions,
    read_curves,
    truth_weights,
)
from pelagia.metrics.matching import Comparison, Federated, compare, ranks
from pelagia.metrics.objects import Kind, Objects, flatten, tallest
from pelagia.metrics.result import SCORES, ClassResult, DetectionResult, mean
from pelagia.metrics.thresholds import BEST_F1, OperatingPoint, ScoreCurve, ThresholdRule, choose_point, score_curve

__all__ = ["COCO_IOU_THRESHOLDS", "Evidence", "evaluate_detection", "evaluate_objects", "gather"]

#: 0.50, 0.55, ... 0.95, by the same arithmetic as pycocotools.
COCO_IOU_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())


def evaluate_detection(
    truths: Sequence[Instances],
    predictions: Sequence[Instances],
    categories: Sequence[Category],
    *,
    kind: Kind = "boxes",
    iou_thresholds: Sequence[float] = COCO_IOU_THRESHOLDS,
    max_dets: Sequence[int] | None = None,
    score_threshold: float | None = None,
    sigmas: Sequence[float] | None = None,
) -> DetectionResult:
    """Score predictions against truth, one `Instances` of each per image.

    Crowds match any number of predictions, which then do not count, and so do difficult objects. A prediction of which more
    than half lies in an ignore region (of any class) does not count unless it finds a true object. Truth is binned by
    `Instances.areas` (else by its own area), unmatched predictions by their own.

    Args:
        kind: what is compared: boxes, oriented boxes (exact IoU), masks, or keypoints (OKS).
        iou_thresholds: AP is averaged over them; each in (0, 1].
        max_dets: most predictions per image and class, 0 for all. AP is cut at the largest number, and given for all beside it.
            By default 1, 10, 100 and all; for keypoints 20 and all.
        score_threshold: from which score the confusion matrix counts; None: each class's score of best F1.
        sigmas: of OKS, one for each point; by default those of COCO for 17 points, else 0.05.

    Raises:
        EvaluationError: other numbers of images, scores missing or NaN, a label without category, or nothing of this `kind`.
        OptionError: a threshold or cut that cannot be used.
    """
    if len(truths) != len(predictions):
        raise EvaluationError(f"{len(predictions)} predictions for {len(truths)} images; give one Instances per image")
    for position, item in enumerate(predictions):
        if item.scores is None and len(item):
            raise EvaluationError("the predictions hold no scores, and AP ranks by score", where=f"image {position}")
    heights = tallest(truths, predictions) if kind == "masks" else None
    found = flatten(predictions, kind, what="predictions", heights=heights)
    truth = flatten(truths, kind, what="truth", heights=heights)
    return evaluate_objects(
        truth,
        found,
        categories,
        images=len(truths),
        iou_thresholds=iou_thresholds,
        max_dets=max_dets,
        score_threshold=score_threshold,
        sigmas=sigmas,
    )


def evaluate_objects(
    truth: Objects, predictions: Objects, categories: Sequence[Category], *, score_threshold: float | None = None, **rules: Any
) -> DetectionResult:
    """`evaluate_detection` for objects in flat arrays; `rules` are those of `gather`."""
    return gather(truth, predictions, categories, **rules).result(score_threshold=score_threshold)


@dataclass(frozen=True)
class Evidence:
    """Everything that a score of detections rests on: who matched whom. Numbers are read from it for any weighting of images.

    Args:
        images: their number N.
        cuts: most predictions per image and class, ascending; 0 = all stands last.
    """

    categories: tuple[Category, ...]
    images: int
    comparison: Comparison
    ranking: Ranking
    rules: Rules
    cuts: tuple[int, ...]

    @cached_property
    def walk(self) -> Walk:
        """The ranking as the loop over curves reads it."""
        return Walk.of(self.ranking, self.comparison.predictions.image)

    @cached_property
    def middle(self) -> int:
        """Position of the IoU threshold nearest to 0.5, at which curves, operating points and confusion are given."""
        return int(np.argmin(np.abs(self.rules.thresholds - 0.5)))

    @property
    def curve_iou(self) -> float:
        """The threshold at `middle`."""
        return float(self.rules.thresholds[self.middle])

    def curves(self, weights: Float | None = None) -> tuple[Curves, Curves]:
        """The curves at the largest finite cut, and without a cut, when image n counts weights[n] times."""
        heavy = np.ones(self.images) if weights is None else np.asarray(weights, dtype=np.float64)
        total = truth_weights(self.comparison, self.ranking, len(self.categories), heavy)
        finite = tuple(limit for limit in self.cuts if limit)
        cut = read_curves(self.walk, total, finite or (0,), heavy)
        if finite and self.ranking.rank.max(initial=0) >= finite[-1]:
            return cut, read_curves(self.walk, total, (0,), heavy)
        return cut, cut

    def numbers(self, weights: Float | None = None) -> dict[str, Any]:
        """The headline numbers, as fields of `DetectionResult`; `classes` holds AP, AP50, AP@all,
        AP50@all and AR, [C] each."""
        return _numbers(*self.curves(weights), self)

    @cached_property
    def outcome(self) -> tuple[Mask, Mask]:
        """[D] twice, at `curve_iou`: a prediction is right; it is right or wrong (and not left out)."""
        taken = matches_of(self.ranking).taken(0, self.middle)
        right = (taken >= 0) & ~np.append(self.ranking.ignored[0], True)[taken]  # -1 reads the appended one
        return right, right | ((taken < 0) & self.ranking.inside[0])

    def score_curves(self) -> list[ScoreCurve]:
        """Counts by score of each class, at `curve_iou` and without a cut."""
        right, kept = self.outcome
        total = np.bincount(self.comparison.truth.label[~self.ranking.ignored[0]], minlength=len(self.categories))
        result = []
        for label in range(len(self.categories)):
            chosen = self.ranking.order[self.ranking.edges[label] : self.ranking.edges[label + 1]]
            result.append(score_curve(self.comparison.score[chosen], right[chosen], kept[chosen], int(total[label])))
        return result

    def points(self, rule: ThresholdRule = BEST_F1) -> dict[str, OperatingPoint]:
        """Class name -> the operating point that `rule` asks for."""
        curves = self.score_curves()
        return {item.name: choose_point(curve, rule) for item, curve in zip(self.categories, curves, strict=True)}

    def result(self, *, score_threshold: float | None = None) -> DetectionResult:
        """All numbers of the data as they are; see `evaluate_detection`."""
        cut, uncut = self.curves()
        values = _numbers(cut, uncut, self)
        ap, ap50, ap_all, ap50_all, recall = values.pop("classes")
        curves = self.score_curves()
        points = [choose_point(curve) for curve in curves]
        best = [point.threshold for point in points]
        chosen = np.array(best if score_threshold is None else [score_threshold] * len(best), dtype=np.float64)
        predicted = np.diff(self.ranking.edges)
        classes = tuple(
            ClassResult(
                name=category.name,
                id=category.id,
                truths=curves[i].total,
                predictions=int(predicted[i]),
                ap=float(ap[i]),
                ap50=float(ap50[i]),
                ap_all=float(ap_all[i]),
                ap50_all=float(ap50_all[i]),
                recall=float(recall[i]),
                best=points[i],
                precision=uncut.precision[i, 0, self.middle],
                f1=curves[i].f1_at(SCORES),
            )
            for i, category in enumerate(self.categories)
        )
        names = [category.name for category in self.categories]
        return DetectionResult(
            kind=self.comparison.truth.kind,
            images=self.images,
            truths=sum(item.truths for item in classes),
            predictions=len(self.comparison.predictions),
            iou_thresholds=tuple(self.rules.thresholds.tolist()),
            max_dets=self.cuts,
            classes=classes,
            confusion=confusion_matrix(self.comparison, names, chosen, iou=self.curve_iou),
            curve_iou=self.curve_iou,
            **values,
        )


def gather(
    truth: Objects,
    predictions: Objects,
    categories: Sequence[Category],
    *,
    images: int,
    iou_thresholds: Sequence[float] = COCO_IOU_THRESHOLDS,
    max_dets: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    federated: Federated | None = None,
    per_image: int = 0,
) -> Evidence:
    """Match predictions with truth; see `evaluate_detection` for the other arguments.

    Args:
        federated: what was looked for, where labels are not complete.
        per_image: most predictions of an image, of all classes together, 0 for all (LVIS: 300).

    Raises:
        EvaluationError, OptionError: see `evaluate_detection`.
    """
    thresholds = np.asarray(iou_thresholds, dtype=np.float64)
    if len(thresholds) == 0 or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise OptionError(f"iou_thresholds must be numbers above 0 and at most 1, got {list(iou_thresholds)}")
    cuts = tuple(max_dets if max_dets is not None else (20, 0) if truth.kind == "keypoints" else (1, 10, 100, 0))
    if len(cuts) == 0 or min(cuts) < 0:
        raise OptionError(f"max_dets must be positive numbers, or 0 for all, got {list(cuts)}")
    if truth.keypoints is not None and sigmas is None:
        sigmas = keypoint_sigmas(max(truth.keypoints.shape[1], 0 if len(truth) else predictions_points(predictions)))
    if federated is not None and federated.negative.shape != (images, len(categories)):
        raise OptionError(f"federated labels need flags for {images} images and {len(categories)} classes")
    if per_image and predictions.score is not None:
        _, place = ranks(predictions.image, predictions.score)
        predictions = predictions.select(np.flatnonzero(place < per_image))
    comparison = compare(truth, predictions, len(categories), sigmas=sigmas or (), federated=federated)
    rules = Rules(thresholds)
    ranking = rank_predictions(comparison, len(categories), rules)
    return Evidence(tuple(categories), images, comparison, ranking, rules, _ascending(cuts))


def predictions_points(predictions: Objects) -> int:
    """K of predicted keypoints."""
    return 0 if predictions.keypoints is None else predictions.keypoints.shape[1]


def _ascending(cuts: Sequence[int]) -> tuple[int, ...]:
    finite = sorted({cut for cut in cuts if cut > 0})
    return (*finite, 0) if 0 in cuts else tuple(finite)


def _numbers(cut: Curves, uncut: Curves, evidence: Evidence) -> dict[str, Any]:
    """Average the curves into the numbers that are printed."""
    thresholds = evidence.rules.thresholds
    half, three_quarters = (np.isclose(thresholds, level, atol=1e-9, rtol=0) for level in (0.5, 0.75))
    ap, ap_all = (curves.precision.mean(axis=-1) for curves in (cut, uncut))  # [C, A, T]
    recall = cut.recall[..., -1]  # [C, A, T]
    finite = [limit for limit in evidence.cuts if limit]
    by_cut = {limit: cut.recall[:, 0, :, i] for i, limit in enumerate(finite)}
    if 0 in evidence.cuts:
        by_cut[0] = uncut.recall[:, 0, :, -1]
    ranges = list(evidence.rules.areas)
    ap_by, ar_by = ({name: mean(values[:, i]) for i, name in enumerate(ranges)} for values in (ap, recall))
    per_class = [
        _row_means(values) for values in (ap[:, 0], ap[:, 0][:, half], ap_all[:, 0], ap_all[:, 0][:, half], recall[:, 0])
    ]
    return {
        "ap": ap_by["all"],
        "ap50": mean(ap[:, 0][:, half]),
        "ap75": mean(ap[:, 0][:, three_quarters]),
        "ap_all": mean(ap_all[:, 0]),
        "ap50_all": mean(ap_all[:, 0][:, half]),
        **{f"ap_{name}": ap_by[name] for name in ranges[1:]},
        "ar": {limit: mean(values) for limit, values in by_cut.items()},
        "ar50": mean(recall[:, 0][:, half]),
        "ar75": mean(recall[:, 0][:, three_quarters]),
        **{f"ar_{name}": ar_by[name] for name in ranges[1:]},
        "classes": per_class,
    }


def _row_means(values: Float) -> Float:
    """[C] means of the rows; NaN for rows of NaN and without columns."""
    if values.shape[1] == 0:
        return np.full(len(values), np.nan)
    result: Float = values.mean(axis=1)
    return result
