"""Where the lost AP went: the error types of TIDE, and the images that hold most errors.

Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020. Every false positive
and every missed object is given one type; mending all errors of one type with an oracle, and nothing else, tells how much AP that
type costs. The gains do not add up to 1 - AP: errors hide one another.

Types, tested in this order, with IoU to the scored truth of the image, foreground t_f = 0.5 and background t_b = 0.1:

- `localisation`: an object of its class overlaps from t_b to below t_f. Oracle: the box is put right.
- `classification`: an object of another class overlaps at least t_f. Oracle: the class is put right.
- `duplicate`: an object of its class overlaps at least t_f, but a better prediction has it. Oracle: removed.
- `background`: nothing overlaps more than t_b. Oracle: removed.
- `both`: an object of another class overlaps from t_b to below t_f. Oracle: removed.
- `missed`: an object that nothing found and that no localisation or classification error points at. Oracle: not counted.

A prediction put right whose object is found already, by a true positive or by another one put right with a higher score, is
removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pelagia.core.types import Float, Int, Mask
from pelagia.errors import OptionError
from pelagia.metrics.curves import AREAS, RECALLS, matches_of
from pelagia.metrics.detection import Evidence
from pelagia.metrics.matching import find_pairs, ranks
from pelagia.metrics.result import json_value, mean, number, text_table

__all__ = ["ERROR_TYPES", "ErrorBreakdown", "ErrorEvidence", "ImageErrors", "error_types", "gather_errors", "worst_images"]

#: In printing order.
ERROR_TYPES = ("classification", "localisation", "both", "duplicate", "background", "missed")

_SIZES = tuple(AREAS)[1:]


@dataclass(frozen=True)
class ErrorBreakdown:
    """What each type of error costs.

    Args:
        ap: AP at the foreground IoU, without a cut, mean over classes.
        gain: type -> AP gained by mending it; `false positive` and `false negative` mend all of a side.
        class_gain: type -> [C] the same per class.
        counts: type -> [C] errors (of the predicted class; missed: of the true class).
        sizes: type -> {small, medium, large: errors}, by the size of the true object, where there is none of the prediction.
        class_names: C names.
    """

    ap: float
    gain: dict[str, float]
    class_gain: dict[str, Float]
    counts: dict[str, Int]
    sizes: dict[str, dict[str, int]]
    class_names: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN becomes None."""
        return {
            "ap": json_value(self.ap),
            "gain": {name: json_value(value) for name, value in self.gain.items()},
            "class_names": list(self.class_names),
            "class_gain": {name: [json_value(float(v)) for v in values] for name, values in self.class_gain.items()},
            "counts": {name: values.tolist() for name, values in self.counts.items()},
            "sizes": self.sizes,
        }

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table of types, as text."""
        header = ["error", "AP50 lost", "errors", *_SIZES]
        rows = []
        for name in (*ERROR_TYPES, "false positive", "false negative"):
            sizes = self.sizes.get(name)
            counts = [str(int(self.counts[name].sum())), *(str(sizes[size]) for size in _SIZES)] if sizes else ["", "", "", ""]
            rows.append([name, number(self.gain[name]), *counts])
        return header, rows

    def lines(self) -> list[str]:
        """The breakdown as text."""
        header, rows = self.rows()
        return text_table([header, *rows])


@dataclass(frozen=True, slots=True)
class ImageErrors:
    """One image at chosen scores: predictions that are right, those that are false, and objects missed."""

    image: int
    correct: int
    false: int
    missed: int

    @property
    def f1(self) -> float:
        """2 correct / (2 correct + false + missed); NaN for an image with neither."""
        whole = 2 * self.correct + self.false + self.missed
        return 2 * self.correct / whole if whole else float("nan")


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """Predictions by class and falling score (`order`: their indices), and which true objects [G] count: all that AP needs."""

    order: Int
    label: Int
    score: Float
    right: Mask
    kept: Mask
    truth: Mask


@dataclass(frozen=True, slots=True, eq=False)
class ErrorEvidence:
    """Every error with its type, and the predictions and objects as each oracle leaves them; what the errors cost under any
    weighting of images is read from it.

    Args:
        kind: [D] index into ERROR_TYPES of each false positive, -1 for other predictions.
        aim: [D] the true object that it is measured by.
        missed: indices of the objects that are missed.
    """

    evidence: Evidence
    kind: Int
    aim: Int
    missed: Int
    plain: _Scored
    mended: dict[str, _Scored]

    @property
    def names(self) -> tuple[str, ...]:
        """C names of classes."""
        return tuple(category.name for category in self.evidence.categories)

    def gains(self, weights: Float | None = None) -> tuple[Float, dict[str, Float]]:
        """AP [C] at the foreground IoU, without a cut, and for each type the AP [C] gained by mending it, when image n counts
        weights[n] times, each once by default. NaN for a class without truth."""
        weights = np.ones(self.evidence.images) if weights is None else weights
        plain = self._average(self.plain, weights)
        gains = {name: self._average(item, weights) - plain for name, item in self.mended.items()}
        # A class of which an oracle leaves no object cannot be wrong any more: it gains all that it lacks.
        return plain, {name: np.where(np.isnan(values), 1 - plain, values) for name, values in gains.items()}

    def _average(self, scored: _Scored, weights: Float) -> Float:
        """[C] AP at 101 recalls."""
        comparison, classes = self.evidence.comparison, len(self.evidence.categories)
        heavy = weights[comparison.predictions.image[scored.order]]
        truth = comparison.truth
        total = np.bincount(truth.label[scored.truth], weights[truth.image[scored.truth]], classes)
        # Precision peaks, and recall moves, only at true positives; the other predictions are merely counted.
        hits = np.flatnonzero(scored.right & scored.kept)
        seen = np.append(0, np.cumsum(heavy * scored.kept))
        gained = np.append(0, np.cumsum(heavy[hits]))
        edges = np.searchsorted(scored.label[hits], np.arange(classes + 1))
        before = seen[np.searchsorted(scored.label, np.arange(classes))]
        result = np.full(classes, np.nan)
        for label in np.flatnonzero(total > 0).tolist():
            low, high = edges[label], edges[label + 1]
            counted = seen[hits[low:high] + 1] - before[label]
            found = gained[low + 1 : high + 1] - gained[low]
            envelope = np.append(np.maximum.accumulate((found / (counted + np.spacing(1)))[::-1])[::-1], 0.0)
            result[label] = envelope[np.searchsorted(found / total[label], RECALLS, side="left")].mean()
        return result

    def breakdown(self) -> ErrorBreakdown:
        """What the errors cost on the data as they are, and how many there are."""
        predictions, truth = self.evidence.comparison.predictions, self.evidence.comparison.truth
        plain, class_gain = self.gains()
        counts, sizes = {}, {}
        for code, name in enumerate(ERROR_TYPES):
            errors = np.flatnonzero(self.kind == code)
            labels, size = predictions.label[errors], predictions.size[errors]
            if name == "missed":
                labels, size = truth.label[self.missed], truth.size[self.missed]
            elif name != "background":
                size = truth.size[self.aim[errors]]
            counts[name] = np.bincount(labels, minlength=len(self.names))
            sizes[name] = {bin_: int(np.count_nonzero((size > low) & (size <= high))) for bin_, (low, high) in _bins().items()}
        gain = {name: mean(values) for name, values in class_gain.items()}
        return ErrorBreakdown(mean(plain), gain, class_gain, counts, sizes, self.names)


def error_types(evidence: Evidence, *, foreground: float = 0.5, background: float = 0.1) -> ErrorBreakdown:
    """Type every error and measure what it costs; see the head of this module.

    Raises:
        OptionError: `foreground` is not among the IoU thresholds of `evidence`, or `background` not below it.
    """
    return gather_errors(evidence, foreground=foreground, background=background).breakdown()


def gather_errors(evidence: Evidence, *, foreground: float = 0.5, background: float = 0.1) -> ErrorEvidence:
    """Type every error, and mend the errors of each type; see `error_types`."""
    place = np.flatnonzero(np.isclose(evidence.rules.thresholds, foreground, atol=1e-9, rtol=0))
    if len(place) == 0 or not 0 < background < foreground:
        known = ", ".join(f"{value:g}" for value in evidence.rules.thresholds)
        raise OptionError(
            f"error types need an IoU of {foreground:g} among the thresholds ({known}) and a lower one for background"
        )
    comparison = evidence.comparison
    predictions, truth = comparison.predictions, comparison.truth
    ignored = evidence.ranking.ignored[0]
    taken = matches_of(evidence.ranking).taken(0, int(place[0])).astype(np.int64)
    right = (taken >= 0) & ~np.append(ignored, True)[taken]
    kept = right | ((taken < 0) & evidence.ranking.inside[0])
    false = np.flatnonzero(kept & ~right)
    order = evidence.ranking.order
    scored = _Scored(order, predictions.label[order], comparison.score[order], right[order], kept[order], ~ignored)

    held = np.zeros(len(truth), dtype=np.bool_)
    held[taken[right]] = True
    kind, aim = _assign(evidence, false, foreground, background)
    pointed = np.zeros(len(truth), dtype=np.bool_)
    pointed[aim[false][np.isin(kind[false], [0, 1])]] = True
    missed = ~held & ~ignored & ~pointed

    typed, aimed = kind[order], aim[order]
    mended = {
        "classification": _put_right(scored, typed == 0, aimed, held, np.append(truth.label, 0)[aimed]),
        "localisation": _put_right(scored, typed == 1, aimed, held, scored.label),
        **{name: _drop(scored, typed == ERROR_TYPES.index(name)) for name in ("both", "duplicate", "background")},
        "missed": replace(scored, truth=~ignored & ~missed),
        "false positive": _drop(scored, scored.kept & ~scored.right),
        "false negative": replace(scored, truth=held & ~ignored),
    }
    return ErrorEvidence(evidence, kind, aim, np.flatnonzero(missed), scored, mended)


def _bins() -> dict[str, tuple[float, float]]:
    """Half-open bins that every size falls into once."""
    low = -np.inf
    bins = {}
    for name in _SIZES:
        high = np.inf if name == _SIZES[-1] else AREAS[name][1]
        bins[name] = (low, high)
        low = high
    return bins


def _assign(evidence: Evidence, false: Int, foreground: float, background: float) -> tuple[Int, Int]:
    """[D] index into ERROR_TYPES of each false positive, -1 for other predictions; [D] the true object it is measured by (0 if
    none)."""
    comparison = evidence.comparison
    scored = np.flatnonzero(~evidence.ranking.ignored[0])
    some, truth = comparison.predictions.select(false), comparison.truth.select(scored)
    crowd = np.zeros(len(truth), dtype=np.bool_)
    pairs = find_pairs(some, truth, (some.image, truth.image), crowd, background, sigmas=comparison.sigmas)
    same = some.label[pairs.prediction] == truth.label[pairs.truth]
    own, own_truth = _best(pairs.prediction[same], pairs.truth[same], pairs.value[same], len(false))
    other, other_truth = _best(pairs.prediction[~same], pairs.truth[~same], pairs.value[~same], len(false))
    tests = [
        (own >= background) & (own < foreground),
        other >= foreground,
        own >= foreground,
        np.maximum(own, other) <= background,
    ]
    code = np.select(tests, [1, 0, 3, 4], default=2)
    which = np.where(np.isin(code, [1, 3]), own_truth, other_truth)
    kind, aim = np.full(len(comparison.predictions), -1), np.zeros(len(comparison.predictions), dtype=np.int64)
    kind[false] = code
    aim[false] = np.append(scored, 0)[which]
    return kind, aim


def _best(rows: Any, columns: Any, values: Float, count: int) -> tuple[Float, Int]:
    """[count] largest value of each row (rows ascending) and its column, of equals the first; 0 and -1 without any."""
    best, column = np.zeros(count), np.full(count, -1, dtype=np.int64)
    begins = np.flatnonzero(np.diff(rows, prepend=-1))
    if len(begins):
        most = np.maximum.reduceat(values, begins)
        peaks = np.flatnonzero(values == np.repeat(most, np.diff(np.append(begins, len(rows)))))
        first = peaks[np.flatnonzero(np.diff(rows[peaks], prepend=-1))]
        best[rows[first]], column[rows[first]] = most, columns[first]
    return best, column


def _put_right(scored: _Scored, chosen: Mask, aim: Int, held: Mask, label: Int) -> _Scored:
    """The chosen predictions find their object, in descending score, each object once; the others of them are removed."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.lexsort((scored.order[rows], -scored.score[rows]))]
    _, first = np.unique(aim[rows], return_index=True)
    winners = rows[first]
    winners = winners[~held[aim[winners]]]
    right, kept = scored.right.copy(), scored.kept & ~chosen
    right[winners] = kept[winners] = True
    if (label[winners] == scored.label[winners]).all():
        return replace(scored, right=right, kept=kept)
    labels = scored.label.copy()
    labels[winners] = label[winners]
    # Ranked anew from the order of the input, which breaks ties.
    place = np.empty(len(labels), dtype=np.int64)
    place[scored.order] = np.arange(len(labels))
    order, _ = ranks(labels[place], scored.score[place])
    row = place[order]
    return _Scored(order, labels[row], scored.score[row], right[row], kept[row], scored.truth)


def _drop(scored: _Scored, chosen: Mask) -> _Scored:
    return replace(scored, kept=scored.kept & ~chosen)


def worst_images(evidence: Evidence, thresholds: Mapping[str, float] | float | None = None) -> list[ImageErrors]:
    """Every image with an error, most errors (false and missed) first, at `evidence.curve_iou`.

    Args:
        thresholds: score from which predictions count: one for all, or by class name; by default each class's best F1.
    """
    names = [category.name for category in evidence.categories]
    if thresholds is None:
        thresholds = {name: point.threshold for name, point in evidence.points().items()}
    table = dict.fromkeys(names, thresholds) if isinstance(thresholds, float | int) else thresholds
    least = np.array([table.get(name, np.inf) for name in names], dtype=np.float64)
    right, kept = evidence.outcome
    predictions, truth = evidence.comparison.predictions, evidence.comparison.truth
    above = evidence.comparison.score >= np.where(np.isnan(least), np.inf, least)[predictions.label]
    objects = np.bincount(truth.image[~evidence.ranking.ignored[0]], minlength=evidence.images)
    correct = np.bincount(predictions.image[above & right], minlength=evidence.images)
    false = np.bincount(predictions.image[above & kept & ~right], minlength=evidence.images)
    errors = objects - correct + false
    order = np.argsort(-errors, kind="stable")
    return [ImageErrors(int(i), int(correct[i]), int(false[i]), int(objects[i] - correct[i])) for i in order[errors[order] > 0]]
