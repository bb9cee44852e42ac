"""Average precision by the rules of Pascal VOC, and of DOTA, which follows them with oriented boxes.

Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010. They differ from COCO's: one IoU threshold, to be
exceeded; a prediction asks only the object of largest overlap, and is false when that one is taken; no cut of predictions;
difficult objects neither count nor punish. VOC's pixels are inclusive, with sides of xmax - xmin + 1: in the continuous
coordinates of this package the overlap is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pelagia.core.types import Category, Float, Instances, Int, Mask
from pelagia.errors import EvaluationError, OptionError
from pelagia.metrics.curves import Rules, rank_predictions
from pelagia.metrics.matching import compare
from pelagia.metrics.objects import Kind, Objects, flatten, tallest
from pelagia.metrics.result import json_value, mean, number, text_table

__all__ = ["VocClass", "VocEvidence", "VocMatches", "VocResult", "evaluate_voc", "gather_voc"]

#: 0, 0.1, ... 1 by the same arithmetic as the development kits: the fourth is a hair above 0.3.
_ELEVEN = np.arange(0.0, 1.1, 0.1)


@dataclass(frozen=True)
class VocClass:
    """One class. `truths` without difficult objects; precision and recall [n] along descending score."""

    name: str
    truths: int
    predictions: int
    ap: float
    precision: Float
    recall: Float


@dataclass(frozen=True)
class VocResult:
    """AP per class and its mean, by the definition of `year`, at an overlap above `iou`."""

    kind: Kind
    year: int
    iou: float
    classes: tuple[VocClass, ...]

    @property
    def map(self) -> float:
        """Mean AP over the classes with truth; NaN if there is none."""
        return mean(np.array([item.ap for item in self.classes]))

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN becomes None."""
        rows = [{"name": c.name, "truths": c.truths, "predictions": c.predictions, "ap": json_value(c.ap)} for c in self.classes]
        return {"kind": self.kind, "year": self.year, "iou": self.iou, "map": json_value(self.map), "classes": rows}

    def class_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table of classes, as text."""
        rows = [[c.name, str(c.truths), str(c.predictions), number(c.ap)] for c in self.classes]
        return ["class", "truth", "predicted", "AP"], rows

    def lines(self) -> list[str]:
        """The result as text."""
        header, rows = self.class_rows()
        head = f"mAP {number(self.map)} (VOC {self.year}, {self.kind}, IoU above {self.iou:g})"
        return [head, "", *text_table([header, *rows])]


@dataclass(frozen=True, slots=True, eq=False)
class VocMatches:
    """The predictions of a class that count, along descending score: right or not [n], and the image of each [n]; the image of
    each object that counts [G]; and how many predictions there are with those that do not count."""

    right: Mask
    image: Int
    truth_image: Int
    predictions: int


@dataclass(frozen=True, eq=False)
class VocEvidence:
    """Who matched whom by these rules; the score of any weighting of images is read from it."""

    kind: Kind
    year: Literal[2007, 2010]
    iou: float
    names: tuple[str, ...]
    matches: tuple[VocMatches, ...]

    @property
    def title(self) -> str:
        """Whose rules they are: DOTA's for oriented boxes, else VOC's."""
        return "DOTA" if self.kind == "oriented" else "VOC"

    def average_precision(self, weights: Float) -> Float:
        """[C] AP of each class when image n counts weights[n] times, NaN for a class without truth."""
        values = [self._average(item, weights) for item in self.matches]
        return np.array(values, dtype=np.float64)

    def _average(self, item: VocMatches, weights: Float) -> float:
        total = float(weights[item.truth_image].sum())
        if total <= 0:
            return float("nan")
        heavy = weights[item.image]
        # The interpolated precision changes at right predictions only, and between copies of one of them it does not fall.
        hits = np.cumsum(heavy[item.right])
        counted = np.cumsum(heavy)[item.right]
        precision = np.divide(hits, counted, out=np.zeros(len(hits)), where=counted > 0)
        return _average(precision, hits / total, self.year)

    def result(self) -> VocResult:
        """The score of the data as they are."""
        classes = []
        for name, item in zip(self.names, self.matches, strict=True):
            truths = len(item.truth_image)
            precision, recall = _curve(item.right, truths)
            ap = _average(precision, recall, self.year) if truths else float("nan")
            classes.append(VocClass(name, truths, item.predictions, ap, precision, recall))
        return VocResult(self.kind, self.year, self.iou, tuple(classes))


def evaluate_voc(
    truths: Sequence[Instances],
    predictions: Sequence[Instances],
    categories: Sequence[Category],
    *,
    kind: Kind = "boxes",
    iou: float = 0.5,
    year: Literal[2007, 2010] = 2007,
) -> VocResult:
    """Score predictions, one `Instances` of truth and predictions per image.

    Args:
        kind: `oriented` gives the score of DOTA's task 1 (whose kit uses the definition of 2007), with exact overlap.
        year: 2007: the mean of the interpolated precision at 11 recalls; 2010: the area under the interpolated curve.

    Raises:
        EvaluationError: as `evaluate_detection`, or keypoints, for which these rules say nothing.
        OptionError: an IoU that is not from 0 up to below 1, or another year.
    """
    if len(truths) != len(predictions):
        raise EvaluationError(f"{len(predictions)} predictions for {len(truths)} images; give one Instances per image")
    heights = tallest(truths, predictions) if kind == "masks" else None
    found = flatten(predictions, kind, what="predictions", heights=heights)
    truth = flatten(truths, kind, what="truth", heights=heights)
    return gather_voc(truth, found, categories, iou=iou, year=year).result()


def gather_voc(
    truth: Objects, predictions: Objects, categories: Sequence[Category], *, iou: float = 0.5, year: Literal[2007, 2010] = 2007
) -> VocEvidence:
    """Match objects in flat arrays; see `evaluate_voc`."""
    if year not in (2007, 2010) or not 0 <= iou < 1:
        raise OptionError(f"VOC knows the years 2007 and 2010 and an IoU from 0 to below 1, got {year} and {iou}")
    if truth.kind == "keypoints":
        raise EvaluationError("the rules of VOC do not cover keypoints; use evaluate_detection")
    comparison = compare(truth, predictions, len(categories))
    above = float(np.nextafter(iou, 1))  # VOC asks for more than the threshold
    ranking = rank_predictions(comparison, len(categories), Rules(np.array([above]), {"all": (0.0, np.inf)}, settled=True))
    scored = ~ranking.ignored[0]
    classes = []
    for label in range(len(categories)):
        chosen = ranking.order[ranking.edges[label] : ranking.edges[label + 1]]
        row = ranking.row[chosen]
        taken = np.where(row >= 0, np.append(ranking.taken[0, 0], -1)[row], -1)
        right = (taken >= 0) & np.append(scored, False)[taken]  # -1 reads the appended one
        kept = right | ((taken < 0) & ranking.inside[0, chosen])
        objects = comparison.truth.image[scored & (comparison.truth.label == label)]
        classes.append(VocMatches(right[kept], comparison.predictions.image[chosen][kept], objects, len(chosen)))
    return VocEvidence(truth.kind, year, iou, tuple(category.name for category in categories), tuple(classes))


def _curve(right: Mask, total: int) -> tuple[Float, Float]:
    hits = np.cumsum(right)
    return hits / np.arange(1, len(right) + 1), hits / max(total, 1)


def _average(precision: Float, recall: Float, year: int) -> float:
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if year == 2007:
        place = np.searchsorted(recall, _ELEVEN, side="left")
        return float(np.append(envelope, 0.0)[place].sum() / 11)
    return float((np.diff(recall, prepend=0.0) * envelope).sum())
