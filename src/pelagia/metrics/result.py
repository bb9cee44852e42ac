"""The result of a detection evaluation: numbers, curves, and how they are printed and stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Float
from pelagia.metrics.confusion import ConfusionMatrix
from pelagia.metrics.thresholds import OperatingPoint

__all__ = ["SCORES", "ClassResult", "DetectionResult", "headline", "json_value", "mean", "number", "text_table"]

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
        kind: what was compared: boxes, oriented, masks, keypoints.
        images: number of images.
        truths, predictions: number of objects that count, and of predictions.
        iou_thresholds: over which AP and AR are averaged.
        max_dets: the cuts, predictions per image and class, ascending; 0 stands last and means all.
        ap, ap50, ap75: at the largest cut (100 by COCO).
        ap_small, ap_medium, ap_large: by truth area up to 32^2, 96^2, and above.
        ap_all, ap50_all: without a cut.
        ar: cut -> average recall; `ar50`, `ar75`, `ar_small`, `ar_medium`, `ar_large` at the largest cut.
        classes: per class, in label order.
        confusion: at `curve_iou` and each class's best threshold unless asked otherwise.
        curve_iou: IoU threshold of the curves, the operating points and the confusion matrix: of those asked the nearest to 0.5.
        notes: what is to be known of how the predictions were made, in sentences.
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
    ar50: float
    ar75: float
    ar_small: float
    ar_medium: float
    ar_large: float
    classes: tuple[ClassResult, ...]
    confusion: ConfusionMatrix
    curve_iou: float
    notes: tuple[str, ...] = ()

    @property
    def stats(self) -> Float:
        """COCO's numbers in COCO's order. [12]: AP, AP50, AP75, AP small, medium, large, AR at the three cuts, AR small, medium,
        large. For keypoints [10]: AP, AP50, AP75, AP medium, large, AR, AR50, AR75, AR medium, large."""
        cuts = [self.ar[cut] for cut in self.max_dets if cut]
        if self.kind == "keypoints":
            recalls = [cuts[-1] if cuts else np.nan, self.ar50, self.ar75, self.ar_medium, self.ar_large]
            return np.array([self.ap, self.ap50, self.ap75, self.ap_medium, self.ap_large, *recalls])
        cuts = cuts[:3] + [np.nan] * (3 - len(cuts[:3]))
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
            **{name: json_value(value) for name, value in single.items()},
            "iou_thresholds": list(self.iou_thresholds),
            "max_dets": list(self.max_dets),
            "ar": {_cut_name(cut): json_value(value) for cut, value in self.ar.items()},
            "classes": [_class_dict(item, curves) for item in self.classes],
            "confusion": self.confusion.to_dict(),
            **notes_dict(self.notes),
        }

    def summary(self) -> list[tuple[str, float]]:
        """(name, value) of the headline numbers, in printing order."""
        return headline({name: getattr(self, name) for name in _HEADLINE}, self.kind)

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
        return [head, *self.notes, *numbers, "", *text_table([header, *rows])]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def headline(values: Mapping[str, Any], kind: str) -> list[tuple[str, float]]:
    """(printed name, value) of the fields `values` of a `DetectionResult`, in printing order."""
    recalls: dict[int, float] = values["ar"]
    main = _cut_name(max(recalls) or 0)
    sizes = ("medium", "large") if kind == "keypoints" else ("small", "medium", "large")
    rows = [("AP", values["ap"]), ("AP50", values["ap50"]), ("AP75", values["ap75"])]
    rows += [(f"AP {size}", values[f"ap_{size}"]) for size in sizes]
    rows += [(f"AR@{_cut_name(cut)}", value) for cut, value in recalls.items()]
    if kind == "keypoints":
        rows += [(f"AR50@{main}", values["ar50"]), (f"AR75@{main}", values["ar75"])]
    rows += [(f"AR {size}@{main}", values[f"ar_{size}"]) for size in sizes]
    return [*rows, ("AP@all", values["ap_all"]), ("AP50@all", values["ap50_all"])]


_HEADLINE = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ap_all", "ap50_all"),
    *("ar", "ar50", "ar75", "ar_small", "ar_medium", "ar_large"),
)

_PLAIN = (
    *("kind", "images", "truths", "predictions", "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ap_all", "ap50_all"),
    *("ar50", "ar75", "ar_small", "ar_medium", "ar_large", "curve_iou", "f1", "thresholds"),
)


def notes_dict(notes: tuple[str, ...]) -> dict[str, Any]:
    """The entry `notes` of a document, if there are any."""
    return {"notes": list(notes)} if notes else {}


def number(value: float) -> str:
    """Three decimals, or a dash for NaN."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def _cut_name(cut: int) -> str:
    return str(cut) if cut else "all"


def json_value(value: Any) -> Any:
    """The value, None for NaN and infinity."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _class_dict(item: ClassResult, curves: bool) -> dict[str, Any]:
    plain = {name: json_value(getattr(item, name)) for name in _CLASS_PLAIN}
    best = {name: json_value(getattr(item.best, name)) for name in ("threshold", "precision", "recall", "f1")}
    arrays = {name: [json_value(float(v)) for v in getattr(item, name)] for name in ("precision", "f1")} if curves else {}
    return {**plain, "best": best, **arrays}


_CLASS_PLAIN = ("name", "id", "truths", "predictions", "ap", "ap50", "ap_all", "ap50_all", "recall")


def text_table(rows: Iterable[list[str]]) -> list[str]:
    """Lines of text: the first column to the left, the others to the right."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        lines.append(
            "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        )
    return lines
