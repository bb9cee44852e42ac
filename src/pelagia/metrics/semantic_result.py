"""The result of a semantic evaluation: the formulas from counts to scores, and how they are printed and stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagia.core.types import Category, Float
from pelagia.metrics.boundary import BOUNDARY_COUNTS, BoundaryOptions
from pelagia.metrics.result import json_value, mean, notes_dict, number, text_table

__all__ = ["NONE", "SemanticResult"]

#: Name of the last column of the confusion: counted pixels for which the prediction names no class.
NONE = "none"


@dataclass(frozen=True)
class SemanticResult:
    """Scores of semantic maps, all derived from counts of pixels. NaN says that a number does not exist.

    A mean over classes is over those whose score exists. Below, n[i, j] is the confusion, t its row sums and p its column sums.

    Args:
        categories: C, in label order.
        images: number of images.
        confusion: [C, C + 1] pixels, rows the true class, columns the predicted one, the last one `none`; whole numbers unless
            images were weighted by fractions.
        boundary: [C, 7] the counts named in `BOUNDARY_COUNTS`, or None if they were not made.
        boundary_options: the widths of the boundary measures, None without them.
        notes: what is to be known of how the predictions were made, in sentences.
    """

    categories: tuple[Category, ...]
    images: int
    confusion: NDArray[Any]
    boundary: NDArray[Any] | None
    boundary_options: BoundaryOptions | None = None
    notes: tuple[str, ...] = ()

    @property
    def truth_px(self) -> NDArray[Any]:
        """[C] t, the counted pixels of each true class."""
        total: NDArray[Any] = self.confusion.sum(axis=1)
        return total

    @property
    def predicted_px(self) -> NDArray[Any]:
        """[C] p, the counted pixels of each predicted class."""
        total: NDArray[Any] = self.confusion[:, :-1].sum(axis=0)
        return total

    @property
    def pixels(self) -> float:
        """All counted pixels."""
        total: float = self.confusion.sum().item()
        return total

    @property
    def none_share(self) -> float:
        """Share of the counted pixels for which the prediction names no class."""
        return float(_ratio(self.confusion[:, -1].sum(), self.confusion.sum()))

    @property
    def pixel_accuracy(self) -> float:
        """sum n[c, c] / sum n."""
        return float(_ratio(self._hits.sum(), self.confusion.sum()))

    @property
    def class_accuracy(self) -> Float:
        """[C] n[c, c] / t[c], the recall of each class; NaN without truth."""
        return _ratio(self._hits, self.truth_px)

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of `class_accuracy`."""
        return mean(self.class_accuracy)

    @property
    def class_precision(self) -> Float:
        """[C] n[c, c] / p[c]; NaN without prediction."""
        return _ratio(self._hits, self.predicted_px)

    @property
    def iou(self) -> Float:
        """[C] n[c, c] / (t[c] + p[c] - n[c, c]), the Jaccard index; NaN without truth and prediction."""
        return _ratio(self._hits, self.truth_px + self.predicted_px - self._hits)

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` (mIoU); a class that is only predicted enters with 0."""
        return mean(self.iou)

    @property
    def frequency_weighted_iou(self) -> float:
        """sum t[c] iou[c] / sum t[c]."""
        there = self.truth_px > 0
        return float(_ratio((self.truth_px[there] * self.iou[there]).sum(), self.truth_px.sum()))

    @property
    def dice(self) -> Float:
        """[C] 2 n[c, c] / (t[c] + p[c]), the F1 score of pixels; NaN without truth and prediction."""
        return _ratio(2 * self._hits, self.truth_px + self.predicted_px)

    @property
    def mean_dice(self) -> float:
        """Mean of `dice`."""
        return mean(self.dice)

    @property
    def boundary_precision(self) -> Float:
        """[C] share of the predicted boundary pixels near true ones; NaN without predicted ones."""
        return _ratio(self._count("predicted_boundary_right"), self._count("predicted_boundary"))

    @property
    def boundary_recall(self) -> Float:
        """[C] share of the true boundary pixels near predicted ones; NaN without true ones."""
        return _ratio(self._count("true_boundary_found"), self._count("true_boundary"))

    @property
    def boundary_f(self) -> Float:
        """[C] 2 P R / (P + R) of boundary precision and recall; 0 if only one of the maps has a boundary, NaN if none has."""
        precision, recall = np.nan_to_num(self.boundary_precision), np.nan_to_num(self.boundary_recall)
        both = precision + recall
        score = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
        return np.where(self._count("true_boundary") + self._count("predicted_boundary") > 0, score, np.nan)

    @property
    def mean_boundary_f(self) -> float:
        """Mean of `boundary_f`."""
        return mean(self.boundary_f)

    @property
    def boundary_iou(self) -> Float:
        """[C] IoU of the true and the predicted band along the contours; NaN without truth and prediction."""
        common = self._count("common_band")
        return _ratio(common, self._count("true_band") + self._count("predicted_band") - common)

    @property
    def mean_boundary_iou(self) -> float:
        """Mean of `boundary_iou`."""
        return mean(self.boundary_iou)

    @property
    def _hits(self) -> NDArray[Any]:
        return self.confusion.diagonal()

    def _count(self, name: str) -> NDArray[Any]:
        if self.boundary is None:
            return np.zeros(len(self.categories), dtype=np.int64)
        return self.boundary[:, BOUNDARY_COUNTS.index(name)]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; NaN becomes None."""
        options = self.boundary_options
        return {
            "kind": "semantic",
            "images": self.images,
            "pixels": self.pixels,
            "none_share": json_value(self.none_share),
            **{name: json_value(getattr(self, name)) for name in _SINGLE},
            "boundary_options": None if options is None else {"theta_px": options.theta_px, "band_px": options.band_px},
            "classes": [
                {
                    "name": category.name,
                    "id": category.id,
                    "truth_px": self.truth_px[label].item(),
                    "predicted_px": self.predicted_px[label].item(),
                    **{name: json_value(float(getattr(self, name)[label])) for name in _PER_CLASS},
                }
                for label, category in enumerate(self.categories)
            ],
            "confusion": {"class_names": [*(item.name for item in self.categories), NONE], "counts": self.confusion.tolist()},
            **notes_dict(self.notes),
        }

    def summary(self) -> list[tuple[str, float]]:
        """(name, value) of the headline numbers, in printing order."""
        rows = [
            ("mIoU", self.mean_iou),
            ("mean Dice", self.mean_dice),
            ("pixel accuracy", self.pixel_accuracy),
            ("class accuracy", self.mean_class_accuracy),
            ("fw IoU", self.frequency_weighted_iou),
        ]
        if self.boundary is None:
            return rows
        return [*rows, ("boundary F", self.mean_boundary_f), ("boundary IoU", self.mean_boundary_iou)]

    def class_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table of classes, as text."""
        header = ["class", "truth px", "predicted px", "IoU", "Dice", "accuracy", "precision"]
        columns = [self.iou, self.dice, self.class_accuracy, self.class_precision]
        if self.boundary is not None:
            header += ["boundary F", "boundary IoU"]
            columns += [self.boundary_f, self.boundary_iou]
        rows = [
            [category.name, f"{truth:.0f}", f"{predicted:.0f}", *(number(float(column[label])) for column in columns)]
            for label, (category, truth, predicted) in enumerate(
                zip(self.categories, self.truth_px, self.predicted_px, strict=True)
            )
        ]
        return header, rows

    def lines(self) -> list[str]:
        """The result as text: one line on the data, the headline numbers, and a table of classes."""
        head = f"{self.images} images, {self.pixels:.0f} pixels (semantic)"
        if self.none_share > 0:
            head += f", {100 * self.none_share:.2g} % of them without a predicted class"
        numbers = [f"  {name:<14} {number(value)}" for name, value in self.summary()]
        header, rows = self.class_rows()
        return [head, *self.notes, *numbers, "", *text_table([header, *rows])]

    def __str__(self) -> str:
        return "\n".join(self.lines())


_SINGLE = (
    *("mean_iou", "mean_dice", "pixel_accuracy", "mean_class_accuracy", "frequency_weighted_iou"),
    *("mean_boundary_f", "mean_boundary_iou"),
)

_PER_CLASS = (
    *("iou", "dice", "class_accuracy", "class_precision"),
    *("boundary_precision", "boundary_recall", "boundary_f", "boundary_iou"),
)


def _ratio(part: NDArray[Any] | np.generic, whole: NDArray[Any] | np.generic) -> Float:
    """part / whole, NaN where `whole` is 0."""
    parts, wholes = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    share: Float = np.divide(parts, wholes, out=np.full(wholes.shape, np.nan), where=wholes > 0)
    return share
