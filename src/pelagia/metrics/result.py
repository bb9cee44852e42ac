"""The result of a detection evaluation: numbers, curves, and how they are printed and stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Float
from pelagia.metrics.confusion import ConfusionMatrix
from pelagia.metrics.thresholds import OperatingPoint

__all__ = ["AREAS", "RECALLS", "SCORES", "ClassResult", "DetectionResult", "mean"]

#: COCO's area ranges in square pixels, both ends included.
AREAS: dict[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}

#: The 101 recalls at which precision is read.
RECALLS: Float = np.linspace(0.0, 1.0, 101)

#: The scores at which F1 is given.
SCORES: Float = np.linspace(0.0, 1.0, 101)


def mean(values: NDArray[Any]) -> float:
    """The mean of what is not NaN; NaN if nothing is."""
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if len(valid) else float("nan")


@dataclass(frozen=True)
class ClassResult:
    """One class.

    Args:
        truths: objects that count (no crowd, no difficult).
        predictions: all predictions of the class.
        ap, ap50: at the largest cut of predictions per image; `ap_all`, `ap50_all` without a cut.
        recall: AR, the mean over IoU thresholds of the recall at the largest cut.
        best: the operating point of largest F1, at `DetectionResult.curve_iou`.
        precision: [101] interpolated precision at recalls 0, 0.01, ... 1, at `curve_iou`, without a cut.
        f1: [101] F1 when scores from 0, 0.01, ... 1 count.
    """

    name: str
    id: int
    truths: int
    predictions: int
    ap: float
    ap50: float
    ap_all: float
    ap50_all: float
    recall: float
    best: OperatingPoint
    precision: Float
    f1: Float


@dataclass(frozen=True)
class DetectionResult:
    """COCO's numbers and more. NaN says that a number does not exist (no object of that size, threshold not asked for).

    Args:
        kind: what was compared: boxes, oriented, masks.
        images: number of images.
        truths, predictions: number of objects that count, and of predictions.
        iou_thresholds: over which AP and AR are averaged.
        max_dets: the cuts, predictions per image and class, ascending; 0 stands last and means all.
        ap, ap50, ap75: at the largest cut (100 by COCO).
        ap_small, ap_medium, ap_large: by truth area up to 32^2, 96^2, and above.
        ap_all, ap50_all: without a cut.
        ar: cut -> average recall; `ar_small`, `ar_medium`, `ar_large` at the largest cut.
        classes: per class, in label order.
        confusion: at `curve_iou` and each class's best threshold unless asked otherwise.
        curve_iou: IoU threshold of the curves, the operating points and the confusion matrix: of those asked the nearest to 0.5.
    """

    kind: str
    images: int
    truths: int
    predictions: int
    iou_thresholds: tuple[float, ...]
    max_dets: tuple[int, ...]
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ap_all: float
    ap50_all: float
    ar: dict[int, float]
    ar_small: float
    ar_medium: float
    ar_large: float
    classes: tuple[ClassResult, ...]
    confusion: ConfusionMatrix
    curve_iou: float

    @property
    def stats(self) -> Float:
        """[12] in COCO's order: AP, AP50, AP75, AP small, medium, large, AR at the three cuts, AR small, medium, large."""
        cuts = [self.ar[cut] for cut in self.max_dets if cut][:3]
        cuts += [float("nan")] * (3 - len(cuts))
        sizes = [self.ap_small, self.ap_medium, self.ap_large]
        return np.array([self.ap, self.ap50, self.ap75, *sizes, *cuts, self.ar_small, self.ar_medium, self.ar_large])

    @property
    def thresholds(self) -> dict[str, float]:
        """Class name -> score of best F1, for the classes that have one. What a checkpoint stores."""
        return {item.name: item.best.threshold for item in self.classes if not np.isnan(item.best.threshold)}

    @property
    def f1(self) -> float:
        """Mean over classes of the best F1."""
        return mean(np.array([item.best.f1 for item in self.classes]))

    def to_dict(self, *, curves: bool = True) -> dict[str, Any]:
        """JSON values; NaN becomes None. Without `curves` the arrays of 101 points are left out."""
        single = {name: getattr(self, name) for name in _PLAIN}
        return {
            **{name: _json(value) for name, value in single.items()},
            "iou_thresholds": list(self.iou_thresholds),
            "max_dets": list(self.max_dets),
            "ar": {_cut_name(cut): _json(value) for cut, value in self.ar.items()},
            "classes": [_class_dict(item, curves) for item in self.classes],
            "confusion": self.confusion.to_dict(),
        }

    def summary(self) -> list[tuple[str, float]]:
        """(name, value) of the headline numbers, in printing order."""
        main = _cut_name(max(self.max_dets) or 0)
        rows = [
            ("AP", self.ap),
            ("AP50", self.ap50),
            ("AP75", self.ap75),
            ("AP small", self.ap_small),
            ("AP medium", self.ap_medium),
            ("AP large", self.ap_large),
            *((f"AR@{_cut_name(cut)}", value) for cut, value in self.ar.items()),
            (f"AR small@{main}", self.ar_small),
            (f"AR medium@{main}", self.ar_medium),
            (f"AR large@{main}", self.ar_large),
        ]
        return [*rows, ("AP@all", self.ap_all), ("AP50@all", self.ap50_all)]

    def class_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table of classes, as text."""
        header = ["class", "truth", "predicted", "AP", "AP50", "AR", "best score", "precision", "recall", "F1"]
        rows = [
            [
                item.name,
                str(item.truths),
                str(item.predictions),
                *(number(value) for value in (item.ap, item.ap50, item.recall)),
                *(number(value) for value in (item.best.threshold, item.best.precision, item.best.recall, item.best.f1)),
            ]
            for item in self.classes
        ]
        return header, rows

    def lines(self) -> list[str]:
        """The result as text: one line on the data, the headline numbers, and a table of classes."""
        head = f"{self.images} images, {self.truths} objects, {self.predictions} predictions ({self.kind})"
        numbers = [f"  {name:<14} {number(value)}" for name, value in self.summary()]
        header, rows = self.class_rows()
        return [head, *numbers, "", *_table([header, *rows])]

    def __str__(self) -> str:
        return "\n".join(self.lines())


_PLAIN = (
    *("kind", "images", "truths", "predictions", "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ap_all", "ap50_all"),
    *("ar_small", "ar_medium", "ar_large", "curve_iou", "f1", "thresholds"),
)


def number(value: float) -> str:
    """Three decimals, or a dash for NaN."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def _cut_name(cut: int) -> str:
    return str(cut) if cut else "all"


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _class_dict(item: ClassResult, curves: bool) -> dict[str, Any]:
    plain = {name: _json(getattr(item, name)) for name in _CLASS_PLAIN}
    best = {name: _json(getattr(item.best, name)) for name in ("threshold", "precision", "recall", "f1")}
    arrays = {name: [_json(float(v)) for v in getattr(item, name)] for name in ("precision", "f1")} if curves else {}
    return {**plain, "best": best, **arrays}


_CLASS_PLAIN = ("name", "id", "truths", "predictions", "ap", "ap50", "ap_all", "ap50_all", "recall")


def _table(rows: Iterable[list[str]]) -> list[str]:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        lines.append(
            "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        )
    return lines
