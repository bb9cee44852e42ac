"""How well the angle of oriented boxes is found, apart from AP, which mixes it with size and place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pelagia.core.types import Float, Int
from pelagia.errors import EvaluationError
from pelagia.metrics.curves import matches_of
from pelagia.metrics.detection import Evidence
from pelagia.metrics.result import json_value, number, text_table

__all__ = ["AngleErrors", "angle_errors"]

#: A box whose long side is less than this times the short one has no angle to speak of: a square has four.
SQUARE = 1.1

_SUMMARY = ("mean", "median", "p90")


@dataclass(frozen=True)
class AngleErrors:
    """Angles between true and predicted long sides, 0 to 90 degrees, over true positives.

    Args:
        degrees: [n] of all objects that have an angle, ascending.
        label, image: [n] class and image of each.
        names: C class names.
        skipped: true positives left out since the object is nearly square.
    """

    degrees: Float
    label: Int
    image: Int
    names: tuple[str, ...]
    skipped: int

    @property
    def by_class(self) -> dict[str, Float]:
        """Class name -> [n] its angles, ascending."""
        return {name: self.degrees[self.label == label] for label, name in enumerate(self.names)}

    def summary(self, weights: Float | None = None) -> dict[str, dict[str, float]]:
        """`all` and each class -> mean, median and 90th percentile in degrees, NaN where no object is; image n counts weights[n]
        times, a whole number."""
        heavy = np.ones(len(self.degrees)) if weights is None else weights[self.image]
        chosen = {"all": np.ones(len(self.degrees), dtype=np.bool_)}
        chosen |= {name: self.label == label for label, name in enumerate(self.names)}
        return {name: _summary(self.degrees[where], heavy[where]) for name, where in chosen.items()}

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table, as text: objects, mean, median and 90th percentile in degrees."""
        header = ["angle error", "objects", "mean", "median", "90 %"]
        counts = {"all": len(self.degrees), **{name: len(values) for name, values in self.by_class.items()}}
        return header, [[name, str(counts[name]), *map(number, values.values())] for name, values in self.summary().items()]

    def to_dict(self) -> dict[str, Any]:
        """JSON values, in degrees; NaN becomes None."""
        counts = {"all": len(self.degrees), **{name: len(values) for name, values in self.by_class.items()}}
        rows = {
            name: {"objects": counts[name], **{key: json_value(value) for key, value in values.items()}}
            for name, values in self.summary().items()
        }
        return {"skipped_nearly_square": self.skipped, "degrees": rows}

    def lines(self) -> list[str]:
        """The result as text."""
        header, rows = self.rows()
        return [*text_table([header, *rows]), f"{self.skipped} nearly square objects (sides within {SQUARE:g}) left out"]


def _summary(degrees: Float, weights: Float) -> dict[str, float]:
    """Of ascending values, each repeated `weights` times."""
    ends = np.cumsum(weights)
    total = float(ends[-1]) if len(ends) else 0.0
    if total <= 0:
        return dict.fromkeys(_SUMMARY, float("nan"))
    mean = float(degrees @ weights) / total
    return {"mean": mean, "median": _quantile(degrees, ends, 0.5), "p90": _quantile(degrees, ends, 0.9)}


def _quantile(values: Float, ends: Float, share: float) -> float:
    """The linear quantile (Hyndman and Fan 1996, definition 7) of ascending values; value i fills the places up to ends[i]."""
    place = share * (float(ends[-1]) - 1)
    below = np.floor(place)
    low, high = values[np.searchsorted(ends, [below, min(below + 1, ends[-1] - 1)], side="right")].tolist()
    return float(low + (high - low) * (place - below))


def angle_errors(evidence: Evidence) -> AngleErrors:
    """Angle errors of the true positives at `evidence.curve_iou`, of any score.

    The error is |a - b| modulo pi, at most pi / 2: a box turned by half a turn is the same box.

    Raises:
        EvaluationError: the shapes compared are not oriented boxes.
    """
    predictions, truth = evidence.comparison.predictions, evidence.comparison.truth
    if predictions.oriented is None or truth.oriented is None:
        raise EvaluationError("angles are compared for oriented boxes only; evaluate with the task 'oriented'")
    right = np.flatnonzero(evidence.outcome[0])
    found = matches_of(evidence.ranking).taken(0, evidence.middle)[right]
    _, _, w, h, angle = truth.oriented[found].T
    apart = np.mod(predictions.oriented[right, 4] - angle, np.pi)
    degrees = np.degrees(np.minimum(apart, np.pi - apart))
    shaped = np.flatnonzero(np.maximum(w, h) >= SQUARE * np.minimum(w, h))
    shaped = shaped[np.argsort(degrees[shaped], kind="stable")]
    return AngleErrors(
        degrees=degrees[shaped],
        label=truth.label[found[shaped]],
        image=truth.image[found[shaped]],
        names=tuple(category.name for category in evidence.categories),
        skipped=len(right) - len(shaped),
    )
