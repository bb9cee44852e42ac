"""Sections of a report that go beyond AP: how sure its numbers are, what errors cost, and how far scores can be believed.

Each function gives the sections of one topic, a heading of the table of contents first. `plots` maps names to the files that
`pelagia.report.evaluation_plots` wrote. The names intervals, errors, sizes, reliability, angles and confusion have captions; the
others are shown with their name below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from pelagia.metrics.angles import AngleErrors
from pelagia.metrics.bootstrap import Difference, Interval, Key
from pelagia.metrics.calibration import ClassificationCalibration, DetectionCalibration
from pelagia.metrics.error_types import ERROR_TYPES, ErrorBreakdown, ImageErrors
from pelagia.metrics.reliability import Reliability
from pelagia.metrics.result import number as three
from pelagia.metrics.statistics import LOST
from pelagia.metrics.taxonomy import HierarchicalResult
from pelagia.metrics.thresholds import OperatingPoint, ThresholdRule
from pelagia.report.html import Gallery, Heading, Numbers, Picture, Section, Table, Text

__all__ = [
    "angle_sections",
    "calibration_sections",
    "comparison_sections",
    "error_sections",
    "interval_sections",
    "table_sections",
    "taxonomy_sections",
    "threshold_sections",
    "worst_image_sections",
]

Plots: TypeAlias = Mapping[str, str | Path]
Source: TypeAlias = str | Path | NDArray[np.uint8]

_Item = TypeVar("_Item")

_NO_PICTURES: Mapping[str, Any] = MappingProxyType({})

#: So many images are listed as the worst, and so many names of a level of a taxonomy are written out.
_MOST_ROWS = 40

_CAPTIONS = {
    "intervals": "Point: the number on the data as they are. Line: its interval.",
    "errors": "AP50 gained by mending one type of error and nothing else. Grey: all errors of one side.",
    "sizes": "Errors by the size of the true object, where there is none by that of the prediction.",
    "reliability": "Share of right predictions over their score. Gaps are to the mean score.",
    "angles": "True positives by the angle between true and predicted long side.",
    "confusion": "Percent of the pixels of a true class (row) that were given each class (column).",
}


def interval_sections(
    intervals: Mapping[Key, Interval], plots: Plots = _NO_PICTURES, *, level: float = 0.95, part: str = "class"
) -> list[Section]:
    """Numbers of the whole and of the classes (or what `part` says) with their intervals, which hold the share `level` of
    resamples."""
    sections: list[Section] = [
        Heading("How sure the numbers are"),
        Text(
            f"With each number stands the interval that holds {100 * level:g}% of its values when images are drawn anew, with "
            "replacement, from those of this evaluation (bootstrap). It is wide where a class has few images, and tells nothing "
            "of images of another kind."
        ),
        *_gallery(plots),
    ]
    whole, classes, numbers = _by_class(intervals)
    if whole:
        rows = [[name, item.value, item.low, item.high, item.error] for name, item in whole.items()]
        sections.append(Table(["number", "value", "low", "high", "standard error"], rows))
    scores, losses = ([number for number in numbers if number.startswith(LOST) == lost] for lost in (False, True))
    for title, chosen in ((f"Intervals by {part}", scores), (f"Intervals of the AP50 lost by {part}", losses)):
        if chosen:
            lines = [[name, *(_with_interval(items.get(number)) for number in chosen)] for name, items in classes.items()]
            sections += [Heading(title, 3), Table([part, *(number.removeprefix(LOST) for number in chosen)], lines)]
    return sections if intervals else [*sections, Text("There is no number to show.")]


def error_sections(breakdown: ErrorBreakdown, plots: Plots = _NO_PICTURES) -> list[Section]:
    """What each type of error costs, in all and by class."""
    header, rows = breakdown.rows()
    classes = range(len(breakdown.class_names))
    gains = [
        [breakdown.class_names[label], *(float(breakdown.class_gain[name][label]) for name in ERROR_TYPES)] for label in classes
    ]
    counts = [[breakdown.class_names[label], *(int(breakdown.counts[name][label]) for name in ERROR_TYPES)] for label in classes]
    return [
        Heading("Where AP is lost"),
        Text(
            "Every false positive and every missed object has one type (TIDE, Bolya et al. 2020). A loss is the AP50 gained when "
            f"the errors of that type are mended and nothing else; AP50 is {three(breakdown.ap)}, without a cut of predictions. "
            "Losses do not add up to what is missing: errors hide one another.\n\n"
            "classification: an object of another class. localisation: the place is only roughly right. both: wrong class and "
            "only roughly right. duplicate: the object has a better prediction. background: nothing is there. missed: an object "
            "that nothing points at."
        ),
        *_gallery(plots),
        Table(header, rows, "The sizes are COCO's: small up to 32² pixels, medium up to 96², large above."),
        Heading("AP50 lost by class", 3),
        Table(["class", *ERROR_TYPES], gains),
        Heading("Errors by class", 3),
        Table(["class", *ERROR_TYPES], counts, "By predicted class; missed objects by true class."),
    ]


def calibration_sections(
    calibration: Reliability | DetectionCalibration | ClassificationCalibration,
    plots: Plots = _NO_PICTURES,
    *,
    title: str = "How far scores can be believed",
) -> list[Section]:
    """Calibration errors, and the bins they are read from."""
    note = ""
    if isinstance(calibration, DetectionCalibration):
        bins = calibration.confidence
        cards = [("D-ECE", calibration.d_ece), ("D-ECE, place and size", calibration.d_ece_position)]
        note = (
            "\n\nD-ECE (Kueppers et al. 2020) leaves out bins of few predictions. The share of the predictions in the others is "
            f"{three(calibration.kept)} for bins of the score, and {three(calibration.kept_position)} for joint bins of score, "
            "place and size."
        )
    elif isinstance(calibration, ClassificationCalibration):
        bins = calibration.top_label
        cards = [("class-wise ECE", calibration.classwise_ece), ("Brier score", calibration.brier), ("log loss", calibration.nll)]
    else:
        bins, cards = calibration, []
    cards = [("ECE", bins.ece), *cards, ("largest gap", bins.mce), ("score - accuracy", bins.overconfidence)]
    rows = [
        [low, high, int(bins.count[i]), float(bins.score[i]), float(bins.accuracy[i]), float(bins.gap[i])]
        for i, (low, high) in enumerate(zip(bins.edges[:-1].tolist(), bins.edges[1:].tolist(), strict=True))
        if bins.count[i]
    ]
    return [
        Heading(title),
        Text(
            "A score can be read as a probability when, of all predictions with score p, the share p is right. ECE is the mean "
            f"gap between score and accuracy over bins of the score, weighted by samples. {_tendency(bins.overconfidence)}{note}"
        ),
        Numbers([(name, three(value)) for name, value in cards]),
        *_gallery(plots),
        Table(["score above", "up to", "samples", "mean score", "accuracy", "gap"], rows, "Bins that hold samples."),
    ]


def angle_sections(errors: AngleErrors, plots: Plots = _NO_PICTURES) -> list[Section]:
    """Angle errors of oriented boxes."""
    header, rows = errors.rows()
    return [
        Heading("Angles"),
        Text(
            "The angle between the true and the predicted long side, 0 to 90 degrees, of objects that were found. "
            f"{errors.skipped} nearly square objects are left out: they have no angle."
        ),
        *_gallery(plots),
        Table(header, rows, "In degrees; the last column is not exceeded by 90 % of the objects."),
    ]


def taxonomy_sections(result: HierarchicalResult) -> list[Section]:
    """Scores at each level of a taxonomy, the classes of each level, and hierarchical precision and recall."""
    header, rows = result.rows()
    levels = [f"{row[0]}: {_listed(level.names)}." for row, level in zip(rows, result.levels, strict=True)]
    return [
        Heading("By taxonomy"),
        Text(
            "AP with each class replaced by its ancestor, level by level up to one class for everything; what is gained on the "
            "way was lost by mistaking related classes. In hierarchical precision and recall a prediction is right in so far as "
            "its chain of ancestors is (Kiritchenko et al. 2006)."
        ),
        Numbers([(f"hierarchical {name}", three(getattr(result, name.lower()))) for name in ("precision", "recall", "F1")]),
        Table(header, rows),
        Heading("Classes of each level", 3),
        Text("\n\n".join(levels)),
    ]


def threshold_sections(points: Mapping[ThresholdRule, Mapping[str, OperatingPoint]]) -> list[Section]:
    """For each rule the score from which predictions of a class count, and what is reached there.

    Args:
        points: rule -> class name -> what `Evidence.points` gives.
    """
    sections: list[Section] = [
        Heading("Score thresholds"),
        Text("The score from which predictions of a class count. A dash: no score does what the rule asks for."),
    ]
    if len(points) > 1:
        names = dict.fromkeys(name for chosen in points.values() for name in chosen)
        rows = [[name, *(_score(chosen.get(name)) for chosen in points.values())] for name in names]
        sections.append(Table(["class", *map(_rule_name, points)], rows, "The score by each rule."))
    for rule, chosen in points.items():
        lines = [[name, point.threshold, point.precision, point.recall, point.f1] for name, point in chosen.items()]
        table = Table(["class", "score", "precision", "recall", "F1"], lines, _rule_meaning(rule))
        sections += [Heading(f"By {_rule_name(rule)}", 3), table]
    return sections


def worst_image_sections(
    images: Sequence[tuple[str, ImageErrors]], pictures: Mapping[str, Source] = _NO_PICTURES
) -> list[Section]:
    """The images with most errors, in the order given, and pictures of them.

    Args:
        images: (name, errors) each; the first 40 are listed.
        pictures: name -> picture, for those that are to be shown.
    """
    sections: list[Section] = [Heading("Images with most errors")]
    if not images:
        return [*sections, Text("No image has an error at these scores.")]
    shown = images[:_MOST_ROWS]
    more = len(images) - len(shown)
    left_out = f" {more} more images with fewer errors are not listed." if more else ""
    sections.append(Text(f"{len(images)} image{'' if len(images) == 1 else 's'} with errors, most errors first.{left_out}"))
    gallery = [Picture(pictures[name], f"{name}: {_image_line(errors)}") for name, errors in images if name in pictures]
    if gallery:
        sections.append(Gallery(gallery))
    rows = [[name, errors.correct, errors.false, errors.missed, errors.f1] for name, errors in shown]
    return [*sections, Table(["image", "correct", "false", "missed", "F1"], rows)]


def table_sections(
    title: str,
    summary: Sequence[tuple[str, float]],
    class_rows: tuple[Sequence[str], Sequence[Sequence[object]]],
    plots: Plots = _NO_PICTURES,
    *,
    text: str = "",
    caption: str = "Per class.",
) -> list[Section]:
    """Headline numbers and one table, as semantic, panoptic and label image results give them.

    Args:
        summary: (name, value) each, as of `summary()`.
        class_rows: header and rows, as of `class_rows()` or `threshold_rows()`.
    """
    header, rows = class_rows
    return [
        Heading(title),
        *([Text(text)] if text else []),
        Numbers([(name, three(value)) for name, value in summary]),
        *_gallery(plots),
        Table(header, rows, caption),
    ]


def comparison_sections(
    differences: Mapping[Key, Difference],
    *,
    number: str = "AP50",
    names: tuple[str, str] = ("first", "second"),
    level: float = 0.95,
    part: str = "class",
) -> list[Section]:
    """Two models on the same images: every number of the whole, and `number` of each class.

    Args:
        part: what has numbers of its own, if not a class.
        names: of the two models.
        level: share of resamples that the intervals hold; p below 1 - level is called significant.
    """
    whole, classes, _ = _by_class(differences)
    header = [*names, "difference", "low", "high", "p"]
    by_class = {name: items[number] for name, items in classes.items() if number in items}
    sections: list[Section] = [
        Heading("Comparison of two models"),
        Text(
            f"Difference: {names[1]} minus {names[0]}, with the interval that holds {100 * level:g}% of its values when images, "
            "the same for both, are drawn anew. p is the achieved significance level of the paired bootstrap, two-sided: how "
            "easily so large a difference arises if the models are equally good."
        ),
    ]
    if not whole and not by_class:
        return [*sections, Text("There is no number that both models have.")]
    if whole:
        sections.append(Table(["number", *header], [[name, *_difference_cells(item)] for name, item in whole.items()]))
    if by_class:
        rows = [[name, *_difference_cells(item)] for name, item in by_class.items()]
        # Thresholds are no independent tests, of which some would be significant by chance.
        chance = [Text(_by_chance([item.p for item in by_class.values()], 1 - level))] if part == "class" else []
        sections += [Heading(f"{number} by {part}", 3), Table([part, *header], rows), *chance]
    return sections


def _gallery(plots: Plots) -> list[Section]:
    return [Gallery([Picture(path, _CAPTIONS.get(name, name)) for name, path in plots.items()])] if plots else []


def _by_class(items: Mapping[Key, _Item]) -> tuple[dict[str, _Item], dict[str, dict[str, _Item]], list[str]]:
    """number -> item of the whole; class -> number -> item; and the numbers that classes have, in order."""
    whole = {number: item for (name, number), item in items.items() if not name}
    classes: dict[str, dict[str, _Item]] = {}
    for (name, number), item in items.items():
        if name:
            classes.setdefault(name, {})[number] = item
    return whole, classes, list(dict.fromkeys(number for name, number in items if name))


def _with_interval(item: Interval | None) -> str:
    if item is None or np.isnan(item.value):
        return "-"
    return three(item.value) + ("" if np.isnan(item.low) else f" [{three(item.low)}, {three(item.high)}]")


def _difference_cells(item: Difference) -> list[object]:
    changes = ("-" if np.isnan(value) else f"{value:+.3f}" for value in (item.value, item.low, item.high))
    return [item.first, item.second, *changes, item.p]


def _by_chance(p: Sequence[float], alpha: float) -> str:
    """How many of several tests are significant, and how many would be without any difference."""
    known = [value for value in p if not np.isnan(value)]
    if not known:
        return ""
    found = sum(value < alpha for value in known)
    return (
        f"{found} of {len(known)} classes have p below {alpha:.2g}. Were the models equal in every class, about "
        f"{alpha * len(known):.1f} would by chance."
    )


def _tendency(gap: float) -> str:
    if np.isnan(gap):
        return "There is no sample to tell it from."
    if abs(gap) < 0.0005:
        return "On average scores are neither too high nor too low."
    return f"On average scores are {abs(gap):.3f} too {'high' if gap > 0 else 'low'}."


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_ROWS
    return ", ".join(names[:_MOST_ROWS]) + (f" and {more} more" if more > 0 else "")


def _score(point: OperatingPoint | None) -> float:
    return float("nan") if point is None else point.threshold


def _rule_name(rule: ThresholdRule) -> str:
    if rule.aim == "f":
        return f"F{rule.value:g}"
    return "count" if rule.aim == "count" else f"{rule.aim} {rule.value:g}"


def _rule_meaning(rule: ThresholdRule) -> str:
    meanings = {
        "f": f"The largest F{rule.value:g}.",
        "precision": f"The most objects found at a precision of at least {rule.value:g}.",
        "recall": f"The fewest false predictions at a recall of at least {rule.value:g}.",
        "count": "As many predictions as true objects, so that counts are unbiased.",
    }
    return meanings[rule.aim]


def _image_line(errors: ImageErrors) -> str:
    return f"{errors.correct} correct, {errors.false} false, {errors.missed} missed"
