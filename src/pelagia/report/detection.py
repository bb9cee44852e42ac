"""The section of a report that tells how good a detector is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pelagia.metrics.result import DetectionResult
from pelagia.report.html import Gallery, Heading, Numbers, Picture, Section, Table, Text

__all__ = ["detection_sections"]

_CAPTIONS = {
    "precision_recall": "Precision over recall, per class and mean; the numbers are average precision.",
    "f1": "F1 when predictions above a score count; the peak is the best threshold.",
    "confusion": "Which class was taken for which. The last row is found where nothing is, the last column is missed.",
}


def detection_sections(result: DetectionResult, plots: Mapping[str, str | Path], *, title: str = "Accuracy") -> list[Section]:
    """Headline numbers, the COCO table, the classes, and `plots` (name -> file, from `detection_plots`)."""
    values = dict(result.summary())
    cards = [(name, "-" if value != value else f"{value:.3f}") for name, value in values.items() if name in _HEADLINES]
    header, rows = result.class_rows()
    overlap = {"boxes": "boxes", "oriented": "oriented boxes (exact overlap)", "masks": "masks"}.get(result.kind, result.kind)
    return [
        Heading(title),
        Text(
            f"{result.images} images with {result.truths} objects, {result.predictions} predictions, compared by {overlap}. "
            "AP is the mean over IoU thresholds "
            f"{result.iou_thresholds[0]:.2f} to {result.iou_thresholds[-1]:.2f}, as COCO defines it."
        ),
        *(Text(f"{note}.") for note in result.notes),
        Numbers([*cards, ("best F1", "-" if result.f1 != result.f1 else f"{result.f1:.3f}")]),
        Table(header, rows, f"Per class. Precision, recall and F1 are at the best score and IoU {result.curve_iou:.2f}."),
        Gallery([Picture(path, _CAPTIONS.get(name, name)) for name, path in plots.items() if name != "confusion"]),
        *(Gallery([Picture(plots[name], _CAPTIONS[name])]) for name in ("confusion",) if name in plots),
        Heading("All numbers", 3),
        Table(["number", "value"], [[name, value] for name, value in values.items()]),
    ]


_HEADLINES = ("AP", "AP50", "AP75", "AP@all", "AP50@all")
