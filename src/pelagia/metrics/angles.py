"""How well the angle of oriented boxes is found, apart from AP, which mixes it with size and place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pelagia.core.types import Float
from pelagia.errors import EvaluationError
from pelagia.metrics.curves import matches_of
from pelagia.metrics.detection import Evidence
from pelagia.metrics.result import json_value, number, text_table

__all__ = ["AngleErrors", "angle_errors"]

#: A box whose long side is less than this times the short one has no angle to speak of: a square has four.
SQUARE = 1.1


@dataclass(frozen=True)
class AngleErrors:
    """Angles between true and predicted long sides, 0 to 90 degrees, over true positives.

    Args:
        degrees: [n] of all objects that have an angle.
        by_class: class name -> [n].
        skipped: true positives left out since the object is nearly square.
    """

    degrees: Float
    by_class: dict[str, Float]
    skipped: int

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table, as text: objects, mean, median and 90th percentile in degrees."""
        header = ["angle error", "objects", "mean", "median", "90 %"]
        chosen = {"all": self.degrees, **self.by_class}
        return header, [[name, str(len(v)), *(number(value) for value in _summary(v).values())] for name, v in chosen.items()]

    def to_dict(self) -> dict[str, Any]:
        """JSON values, in degrees; NaN becomes None."""
        chosen = {"all": self.degrees, **self.by_class}
        rows = {name: {"objects": len(v), **{k: json_value(x) for k, x in _summary(v).items()}} for name, v in chosen.items()}
        return {"skipped_nearly_square": self.skipped, "degrees": rows}

    def lines(self) -> list[str]:
        """The result as text."""
        header, rows = self.rows()
        return [*text_table([header, *rows]), f"{self.skipped} nearly square objects (sides within {SQUARE:g}) left out"]


def _summary(degrees: Float) -> dict[str, float]:
    if len(degrees) == 0:
        return dict.fromkeys(("mean", "median", "p90"), float("nan"))
    return {"mean": float(degrees.mean()), "median": float(np.median(degrees)), "p90": float(np.quantile(degrees, 0.9))}


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
    shaped = np.maximum(w, h) >= SQUARE * np.minimum(w, h)
    labels = truth.label[found[shaped]]
    by_class = {category.name: degrees[shaped][labels == i] for i, category in enumerate(evidence.categories)}
    return AngleErrors(degrees[shaped], by_class, int(np.count_nonzero(~shaped)))
