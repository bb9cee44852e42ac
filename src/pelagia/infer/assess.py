"""Everything that one evaluation can tell beside its numbers: how sure they are, what kinds of errors cost most, which scores can
be believed, and how another model compares on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pelagia.core.lazy import resolve
from pelagia.core.types import Float, Int
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.angles import AngleErrors, angle_errors
from pelagia.metrics.bootstrap import Difference, Interval, Key, Statistic, intervals, paired_differences
from pelagia.metrics.calibration import DetectionCalibration, PlacedScores, place_scores
from pelagia.metrics.detection import Evidence
from pelagia.metrics.error_types import ErrorBreakdown, ErrorEvidence, ImageErrors, gather_errors, worst_images
from pelagia.metrics.result import DetectionResult, json_value, number, text_table
from pelagia.metrics.statistics import (
    angle_statistic,
    calibration_statistic,
    detection_statistic,
    error_statistic,
    hierarchy_statistic,
    joined,
    share_bounds,
    voc_statistic,
)
from pelagia.metrics.taxonomy import HierarchicalEvidence, HierarchicalResult, Taxonomy, gather_hierarchy
from pelagia.metrics.thresholds import ThresholdRule
from pelagia.metrics.voc import VocEvidence, VocResult

if TYPE_CHECKING:
    from pelagia.metrics.scaling import MapKind, ScoreMap

__all__ = [
    "AssessOptions",
    "Assessment",
    "assess",
    "certainty",
    "certainty_dicts",
    "certainty_lines",
    "fit_calibration",
    "rule_thresholds",
]


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
    """What `assess` found; None where it was not asked for or does not apply. `level` is that of intervals and differences."""

    result: DetectionResult
    errors: ErrorBreakdown | None
    worst: tuple[ImageErrors, ...]
    calibration: DetectionCalibration | None
    thresholds: dict[str, float]
    angles: AngleErrors | None = None
    hierarchy: HierarchicalResult | None = None
    voc: VocResult | None = None
    intervals: dict[Key, Interval] | None = None
    differences: dict[Key, Difference] | None = None
    level: float = 0.95

    def to_dict(self, *, curves: bool = True) -> dict[str, Any]:
        """JSON values; parts that are None are left out."""
        found = self.result.to_dict(curves=curves)
        found["chosen_thresholds"] = self.thresholds
        for name in ("errors", "calibration", "angles", "hierarchy", "voc"):
            part = getattr(self, name)
            if part is not None:
                found[name] = part.to_dict()
        found |= certainty_dicts(self.intervals, self.differences)
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
        for part in (self.angles, self.hierarchy, self.voc):
            if part is not None:
                lines += ["", *part.lines()]
        return lines + certainty_lines(self.intervals, self.differences)


def certainty(
    statistic: Statistic, other: Statistic | None, images: int, options: AssessOptions
) -> tuple[dict[Key, Interval] | None, dict[Key, Difference] | None]:
    """Intervals of the numbers of `statistic`, if `options` ask for resamples, and its paired test against `other`, if given (of
    1,000 resamples unless they say otherwise).

    Raises:
        EvaluationError: fewer than two images.
    """
    resampling: dict[str, Any] = {"level": options.level, "seed": options.seed}
    sure, differences = None, None
    if options.resamples:
        sure = intervals(statistic, images, resamples=options.resamples, bounds=share_bounds, **resampling)
    if other is not None:
        differences = paired_differences(statistic, other, images, resamples=options.resamples or 1000, **resampling)
    return sure, differences


def certainty_dicts(sure: Mapping[Key, Interval] | None, differences: Mapping[Key, Difference] | None) -> dict[str, Any]:
    """JSON values of intervals and differences, one object per number, of those that were asked for."""
    found: dict[str, Any] = {}
    if sure is not None:
        found["intervals"] = _dicts(sure, _INTERVAL)
    if differences is not None:
        found["differences"] = _dicts(differences, _DIFFERENCE)
    return found


def certainty_lines(sure: Mapping[Key, Interval] | None, differences: Mapping[Key, Difference] | None) -> list[str]:
    """The numbers of the whole as text, each table after an empty line."""
    lines: list[str] = []
    if sure is not None:
        rows = [[_name(key), *map(number, (v.value, v.low, v.high))] for key, v in sure.items() if not key[0]]
        lines += ["", *text_table([["interval", "value", "low", "high"], *rows])]
    if differences is not None:
        rows = [
            [_name(key), *map(number, (v.first, v.second, v.value, v.low, v.high, v.p))]
            for key, v in differences.items()
            if not key[0]
        ]
        lines += ["", *text_table([["comparison", "this", "other", "difference", "low", "high", "p"], *rows])]
    return lines


def _dicts(found: Mapping[Key, Any], fields: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"class": key[0], "number": key[1], **{name: json_value(getattr(value, name)) for name in fields}}
        for key, value in found.items()
    ]


_INTERVAL = ("value", "low", "high", "error")
_DIFFERENCE = ("first", "second", "value", "low", "high", "p")


def _name(key: Key) -> str:
    return " ".join(part for part in key if part)


@dataclass(frozen=True)
class _Side:
    """What is told of one model: everything that is matched once."""

    evidence: Evidence
    thresholds: dict[str, float]
    angles: AngleErrors | None
    hierarchy: HierarchicalEvidence | None
    voc: VocEvidence | None
    errors: ErrorEvidence | None
    scores: PlacedScores | None

    def statistic(self) -> Statistic:
        """Every number of it."""
        parts = [detection_statistic(self.evidence, self.thresholds)]
        if self.errors is not None:
            parts.append(error_statistic(self.errors))
        if self.scores is not None:
            parts.append(calibration_statistic(self.scores))
        if self.angles is not None:
            parts.append(angle_statistic(self.angles))
        if self.hierarchy is not None:
            parts.append(hierarchy_statistic(self.hierarchy))
        if self.voc is not None:
            parts.append(voc_statistic(self.voc))
        return joined(*parts)


def assess(
    evidence: Evidence,
    options: AssessOptions | None = None,
    *,
    sizes: Int | None = None,
    taxonomy: Taxonomy | None = None,
    voc: Callable[[Evidence], VocEvidence] | None = None,
    against: Evidence | None = None,
) -> Assessment:
    """Score, and tell what `options` ask for.

    Args:
        sizes: [N, 2] width and height of the images, for calibration by place; None to leave that out.
        taxonomy: how classes are related; None for no hierarchical scores.
        voc: matches the predictions of an evidence by the rules of VOC or DOTA; None for no such score.
        against: the evidence of another model on the same images.

    Raises:
        EvaluationError: `against` is of other images.
    """
    options = options or AssessOptions()
    kind = evidence.comparison.truth.kind

    def side(of: Evidence) -> _Side:
        thresholds = rule_thresholds(of, options.threshold)
        angles = angle_errors(of) if kind == "oriented" else None
        hierarchy = None if taxonomy is None else gather_hierarchy(of, taxonomy, thresholds)
        has_half = bool(np.isclose(of.rules.thresholds, 0.5, atol=1e-9).any())
        errors = gather_errors(of) if options.errors and has_half and kind != "keypoints" else None
        scores = _placed_scores(of, sizes) if options.errors else None
        return _Side(of, thresholds, angles, hierarchy, None if voc is None else voc(of), errors, scores)

    if against is not None:
        _check_alike(evidence, against)
    own = side(evidence)
    statistic = own.statistic() if options.resamples or against is not None else None
    sure, differences = None, None
    if statistic is not None:
        other = None if against is None else side(against).statistic()
        sure, differences = certainty(statistic, other, evidence.images, options)
    return Assessment(
        result=evidence.result(),
        errors=None if own.errors is None else own.errors.breakdown(),
        worst=tuple(worst_images(evidence, own.thresholds)),
        calibration=None if own.scores is None else own.scores.result(),
        thresholds=own.thresholds,
        angles=own.angles,
        hierarchy=None if own.hierarchy is None else own.hierarchy.result(),
        voc=None if own.voc is None else own.voc.result(),
        intervals=sure,
        differences=differences,
        level=options.level,
    )


def _check_alike(evidence: Evidence, against: Evidence) -> None:
    kind, other_kind = evidence.comparison.truth.kind, against.comparison.truth.kind
    if other_kind != kind:
        raise EvaluationError(f"one is compared by {kind}, the other by {other_kind}; choose with --compare")
    if against.images != evidence.images or len(against.comparison.truth) != len(evidence.comparison.truth):
        raise EvaluationError("the two are scored on other images; compare models on the same data set and split")


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


def _placed_scores(evidence: Evidence, sizes: Int | None) -> PlacedScores | None:
    right, kept = evidence.outcome
    score = evidence.comparison.score
    if not kept.any() or score[kept].min() < 0 or score[kept].max() > 1:
        return None  # logits: nothing that claims to be a probability
    position: Float | None = None
    if sizes is not None and (sizes > 0).all():
        predictions = evidence.comparison.predictions
        x1, y1, x2, y2 = predictions.bounds[kept].T
        width, height = sizes[predictions.image[kept]].T
        shares = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        position = np.clip(np.stack(shares, axis=1), 0, 1)  # a box may lie anywhere, however far outside
    return place_scores(score[kept], right[kept], evidence.comparison.predictions.image[kept], position=position)
