"""The numbers of an evaluation as functions of how often each image counts: what intervals and paired tests are made of.

Each function takes what was matched or counted once, and gives a `Statistic` that only weighs it anew. At whole weights the
values are those of a data set in which image n stands weights[n] times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pelagia.core.types import Category, Float
from pelagia.metrics.angles import AngleErrors
from pelagia.metrics.bootstrap import Key, Statistic
from pelagia.metrics.detection import Evidence
from pelagia.metrics.result import headline, mean
from pelagia.metrics.taxonomy import HierarchicalEvidence, HierarchicalResult
from pelagia.metrics.voc import VocEvidence

if TYPE_CHECKING:
    from pelagia.metrics.calibration import PlacedScores
    from pelagia.metrics.error_types import ErrorEvidence
    from pelagia.metrics.label_images import LabelImageResult
    from pelagia.metrics.panoptic import PanopticTally
    from pelagia.metrics.reliability import CalibrationTally, Reliability
    from pelagia.metrics.semantic import SemanticTally

__all__ = [
    "LOST",
    "angle_statistic",
    "calibration_statistic",
    "detection_statistic",
    "error_statistic",
    "hierarchy_statistic",
    "joined",
    "label_image_statistic",
    "panoptic_statistic",
    "pixel_calibration_statistic",
    "semantic_statistic",
    "share_bounds",
    "voc_statistic",
]

_ANGLE = "angle error"
_OVERCONFIDENCE = "overconfidence"

#: Before the type of an error, in the name of the AP50 that it costs.
LOST = "AP50 lost, "


def share_bounds(key: Key) -> tuple[float, float]:
    """What a number of this module lies between: shares from 0 to 1, angles from 0 to 90, ratios of counts from 0, the signed gap
    of scores from -1 to 1."""
    if key[1] == "count ratio":
        return 0.0, np.inf
    if key[1] == _OVERCONFIDENCE:
        return -1.0, 1.0
    return (0.0, 90.0) if key[1].startswith(_ANGLE) else (0.0, 1.0)


def joined(*statistics: Statistic) -> Statistic:
    """The numbers of all of them."""

    def statistic(weights: Float) -> dict[Key, float]:
        found: dict[Key, float] = {}
        for part in statistics:
            found |= part(weights)
        return found

    return statistic


def detection_statistic(evidence: Evidence, thresholds: Mapping[str, float] | None = None) -> Statistic:
    """All headline numbers; per class AP, AP50, AR; and at `thresholds` (class name -> score; by default those of best F1)
    precision, recall, F1 and the ratio of the predicted to the true count."""
    names = [category.name for category in evidence.categories]
    if thresholds is None:
        thresholds = {name: point.threshold for name, point in evidence.points().items()}
    correct, counted, real = _counts(evidence, np.array([thresholds.get(name, np.nan) for name in names]))

    def statistic(weights: Float) -> dict[Key, float]:
        values = evidence.numbers(weights)
        found: dict[Key, float] = {("", name): value for name, value in headline(values, evidence.comparison.truth.kind)}
        ap, ap50, _, _, recall = values["classes"]
        right, predicted, objects = (weights @ matrix for matrix in (correct, counted, real))
        with np.errstate(invalid="ignore", divide="ignore"):
            rows = {
                "AP": ap,
                "AP50": ap50,
                "AR": recall,
                "precision": right / predicted,
                "recall": right / objects,
                "F1": 2 * right / (predicted + objects),
                "count ratio": predicted / objects,
            }
        rows = {name: np.where(np.isfinite(values), values, np.nan) for name, values in rows.items()}
        return found | _by_class(names, rows)

    return statistic


def _counts(evidence: Evidence, thresholds: Float) -> tuple[Float, Float, Float]:
    """[N, C] each: true positives, predictions that count, and true objects; the first two from their class's threshold."""
    right, kept = evidence.outcome
    predictions, truth = evidence.comparison.predictions, evidence.comparison.truth
    above = evidence.comparison.score >= thresholds[predictions.label]
    scored = ~evidence.ranking.ignored[0]
    shape = (evidence.images, len(evidence.categories))
    places = [(predictions, above & right), (predictions, above & kept), (truth, scored)]
    matrices = []
    for objects, chosen in places:
        flat = objects.image[chosen] * shape[1] + objects.label[chosen]
        matrices.append(np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64))
    missing = np.isnan(thresholds)
    for matrix in matrices[:2]:
        matrix[:, missing] = np.nan
    return matrices[0], matrices[1], matrices[2]


def voc_statistic(evidence: VocEvidence) -> Statistic:
    """mAP and the AP of each class by the rules of VOC or DOTA."""

    def statistic(weights: Float) -> dict[Key, float]:
        values = evidence.average_precision(weights)
        return {("", f"{evidence.title} mAP"): mean(values)} | _by_class(evidence.names, {f"{evidence.title} AP": values})

    return statistic


def error_statistic(errors: ErrorEvidence) -> Statistic:
    """The AP that each type of error costs, of all classes and of each."""

    def statistic(weights: Float) -> dict[Key, float]:
        _, gains = errors.gains(weights)
        rows = {f"{LOST}{name}": values for name, values in gains.items()}
        return {("", name): mean(values) for name, values in rows.items()} | _by_class(errors.names, rows)

    return statistic


def calibration_statistic(placed: PlacedScores) -> Statistic:
    """The calibration errors of the scores of detections."""

    def statistic(weights: Float) -> dict[Key, float]:
        result = placed.result(weights)
        numbers = _reliability(result.confidence) | {("", "D-ECE"): result.d_ece}
        return numbers if placed.cell is None else numbers | {("", "D-ECE, place and size"): result.d_ece_position}

    return statistic


def pixel_calibration_statistic(tally: CalibrationTally, images: int) -> Statistic:
    """The calibration errors of the probabilities of pixels.

    Raises:
        OptionError: something was added without the index of its image.
    """
    stack = np.zeros((images, 3 * tally.bins))
    known = tally.image_sums()  # an image without a scored pixel may be missing at the end
    stack[: len(known)] = known.reshape(len(known), -1)

    def statistic(weights: Float) -> dict[Key, float]:
        return _reliability(tally.result((weights @ stack).reshape(3, tally.bins)))

    return statistic


def _reliability(diagram: Reliability) -> dict[Key, float]:
    return {("", "ECE"): diagram.ece, ("", "MCE"): diagram.mce, ("", _OVERCONFIDENCE): diagram.overconfidence}


def angle_statistic(errors: AngleErrors) -> Statistic:
    """Mean, median and 90th percentile of the angle errors of all objects and of each class, in degrees."""
    titles = {"mean": f"{_ANGLE}, mean", "median": f"{_ANGLE}, median", "p90": f"{_ANGLE}, 90 %"}

    def statistic(weights: Float) -> dict[Key, float]:
        summary = errors.summary(weights)
        rows = {("", title): summary["all"][name] for name, title in titles.items()}
        return rows | {(label, title): summary[label][name] for label in errors.names for name, title in titles.items()}

    return statistic


def hierarchy_statistic(evidence: HierarchicalEvidence) -> Statistic:
    """AP and AP50 of each level above the classes, which have theirs already, and hierarchical precision, recall and F1."""

    def statistic(weights: Float) -> dict[Key, float]:
        found: dict[Key, float] = {}
        for level in evidence.result(weights, first=1).levels:
            values = {"AP": level.ap, "AP50": level.ap50, "AP@all": level.ap_all, "AP50@all": level.ap50_all}
            found |= {("", f"{level.title} {name}"): value for name, value in values.items()}
        whole = HierarchicalResult((), *evidence.shares(weights))
        values = {"precision": whole.precision, "recall": whole.recall, "F1": whole.f1}
        return found | {("", f"hierarchical {name}"): value for name, value in values.items()}

    return statistic


def semantic_statistic(tally: SemanticTally, categories: Sequence[Category]) -> Statistic:
    """The headline numbers, and per class IoU, Dice, accuracy, precision and the boundary measures.

    Raises:
        OptionError: something was added without the index of its image.
    """
    # Products of float64 are fast, and whole numbers of pixels are exact in it up to 2^53.
    stack = tally.image_sums().astype(np.float64)
    flat = stack.reshape(len(stack), -1)
    names = [category.name for category in categories]

    def statistic(weights: Float) -> dict[Key, float]:
        result = tally.from_sums((weights @ flat).reshape(stack.shape[1:]), categories)
        rows = {"IoU": result.iou, "Dice": result.dice, "accuracy": result.class_accuracy, "precision": result.class_precision}
        if result.boundary is not None:
            rows |= {"boundary F": result.boundary_f, "boundary IoU": result.boundary_iou}
        return _whole(result.summary()) | _by_class(names, rows)

    return statistic


def panoptic_statistic(tally: PanopticTally) -> Statistic:
    """PQ, SQ and RQ of all classes, things and stuff, and of each class."""
    names = [category.name for category in tally.categories]

    def statistic(weights: Float) -> dict[Key, float]:
        result = tally.result(weights)
        return _whole(result.summary()) | _by_class(names, {"PQ": result.pq, "SQ": result.sq, "RQ": result.rq})

    return statistic


def label_image_statistic(result: LabelImageResult) -> Statistic:
    """The headline numbers, and all scores at each threshold of IoU, which stands in the place of a class."""
    levels = [f"IoU {level:g}" for level in result.thresholds.tolist()]

    def statistic(weights: Float) -> dict[Key, float]:
        found = result.at(weights)
        return _whole(found.summary()) | _by_class(levels, found.columns())

    return statistic


def _whole(rows: Sequence[tuple[str, float]]) -> dict[Key, float]:
    return {("", name): value for name, value in rows}


def _by_class(names: Sequence[str], rows: Mapping[str, Float]) -> dict[Key, float]:
    return {(name, number): float(rows[number][i]) for i, name in enumerate(names) for number in rows}
