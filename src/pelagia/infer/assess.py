"""Everything that one evaluation can tell beside its numbers: how sure they are, what kinds of errors cost most, which scores can
be believed, and how another model compares on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pelagia.core.lazy import resolve
from pelagia.core.types import Float, Int
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.angles import AngleErrors, angle_errors
from pelagia.metrics.bootstrap import Difference, Interval, Key, detection_statistic, intervals, paired_differences, share_bounds
from pelagia.metrics.calibration import DetectionCalibration, detection_calibration
from pelagia.metrics.detection import Evidence
from pelagia.metrics.error_types import ErrorBreakdown, ImageErrors, error_types, worst_images
from pelagia.metrics.result import DetectionResult, json_value, number, text_table
from pelagia.metrics.taxonomy import HierarchicalResult, Taxonomy, hierarchical_scores
from pelagia.metrics.thresholds import ThresholdRule

if TYPE_CHECKING:
    from pelagia.metrics.scaling import MapKind, ScoreMap

__all__ = ["AssessOptions", "Assessment", "assess", "fit_calibration", "interval_dicts", "interval_lines", "rule_thresholds"]


@dataclass(frozen=True)
class AssessOptions:
    """What is told beside the scores.

    Raises:
        OptionError: a value cannot be used.
    """

    resamples: int = field(
        default=0, metadata={"help": "Bootstrap resamples of the images for intervals of every number, such as 1000; 0 for none."}
    )
    level: float = field(default=0.95, metadata={"help": "Level of the intervals."})
    seed: int = field(default=0, metadata={"help": "Seed of the resampling."})
    errors: bool = field(
        default=False,
        metadata={"help": "Print what kinds of errors cost and how far scores can be believed; a report always tells."},
    )
    threshold: str = field(
        default="f1",
        metadata={"help": "How each class's score threshold is chosen: f1, f0.5, f2, precision=0.9, recall=0.9 or count."},
    )

    def __post_init__(self) -> None:
        ThresholdRule.parse(self.threshold)
        if self.resamples and self.resamples < 2:
            raise OptionError(f"resamples must be 0 or at least 2, got {self.resamples}")
        if not 0 < self.level < 1:
            raise OptionError(f"level must lie between 0 and 1, got {self.level}")


@dataclass(frozen=True)
class Assessment:
    """What `assess` found; None where it was not asked for or does not apply."""

    result: DetectionResult
    errors: ErrorBreakdown | None
    worst: tuple[ImageErrors, ...]
    calibration: DetectionCalibration | None
    thresholds: dict[str, float]
    angles: AngleErrors | None = None
    hierarchy: HierarchicalResult | None = None
    intervals: dict[Key, Interval] | None = None
    differences: dict[Key, Difference] | None = None

    def to_dict(self, *, curves: bool = True) -> dict[str, Any]:
        """JSON values; parts that are None are left out."""
        found = self.result.to_dict(curves=curves)
        found["chosen_thresholds"] = self.thresholds
        for name in ("errors", "calibration", "angles", "hierarchy"):
            part = getattr(self, name)
            if part is not None:
                found[name] = part.to_dict()
        if self.intervals is not None:
            found["intervals"] = interval_dicts(self.intervals)
        if self.differences is not None:
            found["differences"] = _dicts(self.differences, _DIFFERENCE)
        found["worst_images"] = [
            {"image": item.image, "correct": item.correct, "false": item.false, "missed": item.missed} for item in self.worst
        ]
        return found

    def lines(self) -> list[str]:
        """The assessment as text."""
        lines = self.result.lines()
        if self.errors is not None and self.result.truths:
            lines += ["", "What the lost AP50 goes to:", *self.errors.lines()]
        if self.calibration is not None and not np.isnan(self.calibration.confidence.ece):
            gap = self.calibration.confidence.overconfidence
            tendency = "too sure" if gap > 0 else "not sure enough"
            text = f"Scores: ECE {number(self.calibration.confidence.ece)}, D-ECE {number(self.calibration.d_ece)}"
            lines += ["", f"{text}; on average {number(abs(gap))} {tendency}"]
        for part in (self.angles, self.hierarchy):
            if part is not None:
                lines += ["", *part.lines()]
        if self.intervals is not None:
            lines += ["", *interval_lines(self.intervals)]
        if self.differences is not None:
            rows = [
                [_name(key), *map(number, (v.first, v.second, v.value, v.low, v.high, v.p))]
                for key, v in self.differences.items()
                if not key[0]
            ]
            lines += ["", *text_table([["comparison", "this", "other", "difference", "low", "high", "p"], *rows])]
        return lines


def interval_dicts(found: Mapping[Key, Interval]) -> list[dict[str, Any]]:
    """JSON values: one object per number."""
    return _dicts(found, _INTERVAL)


def interval_lines(found: Mapping[Key, Interval]) -> list[str]:
    """The numbers of the whole as text."""
    rows = [[_name(key), *map(number, (v.value, v.low, v.high))] for key, v in found.items() if not key[0]]
    return text_table([["interval", "value", "low", "high"], *rows])


def _dicts(found: Mapping[Key, Any], fields: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"class": key[0], "number": key[1], **{name: json_value(getattr(value, name)) for name in fields}}
        for key, value in found.items()
    ]


_INTERVAL = ("value", "low", "high", "error")
_DIFFERENCE = ("first", "second", "value", "low", "high", "p")


def _name(key: Key) -> str:
    return " ".join(part for part in key if part)


def assess(
    evidence: Evidence,
    options: AssessOptions | None = None,
    *,
    sizes: Int | None = None,
    taxonomy: Taxonomy | None = None,
    against: Evidence | None = None,
) -> Assessment:
    """Score, and tell what `options` ask for.

    Args:
        sizes: [N, 2] width and height of the images, for calibration by place; None to leave that out.
        taxonomy: how classes are related; None for no hierarchical scores.
        against: the evidence of another model on the same images.

    Raises:
        EvaluationError: `against` is of other images.
    """
    options = options or AssessOptions()
    thresholds = rule_thresholds(evidence, options.threshold)
    kind = evidence.comparison.truth.kind
    has_half = bool(np.isclose(evidence.rules.thresholds, 0.5, atol=1e-9).any())
    statistic = detection_statistic(evidence, thresholds) if options.resamples or against is not None else None
    differences = None
    resampling: dict[str, Any] = {"level": options.level, "seed": options.seed}
    if against is not None and statistic is not None:
        if against.comparison.truth.kind != kind:
            other_kind = against.comparison.truth.kind
            raise EvaluationError(f"one is compared by {kind}, the other by {other_kind}; choose with --compare")
        if against.images != evidence.images or len(against.comparison.truth) != len(evidence.comparison.truth):
            raise EvaluationError("the two are scored on other images; compare models on the same data set and split")
        other = detection_statistic(against, rule_thresholds(against, options.threshold))
        many = options.resamples or 1000
        differences = paired_differences(statistic, other, evidence.images, resamples=many, **resampling)
    sure = None
    if options.resamples and statistic is not None:
        sure = intervals(statistic, evidence.images, resamples=options.resamples, bounds=share_bounds, **resampling)
    return Assessment(
        result=evidence.result(),
        errors=error_types(evidence) if options.errors and has_half and kind != "keypoints" else None,
        worst=tuple(worst_images(evidence, thresholds)),
        calibration=_calibration(evidence, sizes) if options.errors else None,
        thresholds=thresholds,
        angles=angle_errors(evidence) if kind == "oriented" else None,
        hierarchy=None if taxonomy is None else hierarchical_scores(evidence, taxonomy, thresholds),
        intervals=sure,
        differences=differences,
    )


def rule_thresholds(evidence: Evidence, rule: str) -> dict[str, float]:
    """Class name -> the score that `rule` (see `ThresholdRule.parse`) chooses, for the classes that have one."""
    points = evidence.points(ThresholdRule.parse(rule))
    return {name: point.threshold for name, point in points.items() if not np.isnan(point.threshold)}


def fit_calibration(evidence: Evidence, kind: MapKind) -> ScoreMap:
    """The map that makes scores the probability of being right at `evidence.curve_iou`, per class where there are enough.

    Raises:
        EvaluationError: nothing to fit it to.
    """
    right, kept = evidence.outcome
    names = tuple(category.name for category in evidence.categories)
    label = evidence.comparison.predictions.label
    scaling = resolve("pelagia.metrics.scaling", purpose="fit a calibration")
    fitted: ScoreMap = scaling.fit_score_map(
        evidence.comparison.score[kept], right[kept], kind, labels=label[kept], classes=names
    )
    return fitted


def _calibration(evidence: Evidence, sizes: Int | None) -> DetectionCalibration | None:
    right, kept = evidence.outcome
    score = evidence.comparison.score
    if not kept.any() or score[kept].min() < 0 or score[kept].max() > 1:
        return None  # logits: nothing that claims to be a probability
    position: Float | None = None
    if sizes is not None and (sizes > 0).all():
        predictions = evidence.comparison.predictions
        x1, y1, x2, y2 = predictions.bounds[kept].T
        width, height = sizes[predictions.image[kept]].T
        position = np.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], axis=1)
    return detection_calibration(score[kept], right[kept], position=position)
