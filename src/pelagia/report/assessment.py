"""The folder that `pelagia evaluate --out` leaves behind: plots, pictures of the worst images, and one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pelagia.core.draw import draw_instances
from pelagia.core.image import write
from pelagia.core.types import Instances
from pelagia.data.dataset import Dataset
from pelagia.errors import ImageError
from pelagia.infer.assess import Assessment
from pelagia.infer.objects import instances_of
from pelagia.metrics.detection import Evidence
from pelagia.metrics.thresholds import ThresholdRule
from pelagia.report.detection import detection_sections
from pelagia.report.evaluation import (
    angle_sections,
    calibration_sections,
    comparison_sections,
    error_sections,
    interval_sections,
    table_sections,
    taxonomy_sections,
    threshold_sections,
    worst_image_sections,
)
from pelagia.report.evaluation_plots import (
    angle_histogram,
    error_bars,
    interval_plot,
    reliability_diagram,
    size_bars,
)
from pelagia.report.html import Gallery, Picture, Section, write_report
from pelagia.report.plots import counts_scatter, detection_plots

__all__ = ["write_evaluation"]

#: Rules whose thresholds stand side by side.
_RULES = ("f1", "count", "precision=0.9", "recall=0.9")

#: Worst images that are drawn.
_DRAWN = 12


def write_evaluation(folder: Path, evidence: Evidence, assessment: Assessment, dataset: Dataset, *, subtitle: str = "") -> Path:
    """Write plots, pictures and report.html of a detection score; returns the report's path."""
    plots = detection_plots(assessment.result, folder)
    sections: list[Section] = detection_sections(assessment.result, plots)
    sections.append(
        Gallery([Picture(_counts(folder, evidence, assessment), "Objects per image and class, predicted over true.")])
    )
    sections += threshold_sections({rule: evidence.points(rule) for rule in map(ThresholdRule.parse, _RULES)})
    if assessment.errors is not None and assessment.result.truths:
        pictures = {
            "errors": error_bars(assessment.errors, folder / "errors.png"),
            "sizes": size_bars(assessment.errors, folder / "errors_by_size.png"),
        }
        sections += error_sections(assessment.errors, pictures)
    if assessment.worst:
        names = [(dataset.names[item.image], item) for item in assessment.worst]
        sections += worst_image_sections(names, _draw_worst(folder, evidence, assessment, dataset))
    if assessment.calibration is not None:
        diagram = reliability_diagram(assessment.calibration.confidence, folder / "reliability.png")
        sections += calibration_sections(assessment.calibration, {"reliability": diagram})
    if assessment.angles is not None:
        sections += angle_sections(assessment.angles, {"angles": angle_histogram(assessment.angles, folder / "angles.png")})
    if assessment.hierarchy is not None:
        sections += taxonomy_sections(assessment.hierarchy)
    if assessment.voc is not None:
        voc = assessment.voc
        title = f"By the rules of {'DOTA' if voc.kind == 'oriented' else f'Pascal VOC {voc.year}'}"
        sections += table_sections(title, [("mAP", voc.map)], voc.class_rows(), text=f"At an IoU above {voc.iou:g}.")
    if assessment.intervals is not None:
        plot = interval_plot(assessment.intervals, folder / "intervals.png", level=assessment.level)
        sections += interval_sections(assessment.intervals, {"intervals": plot}, level=assessment.level)
    if assessment.differences is not None:
        sections += comparison_sections(assessment.differences, level=assessment.level)
    return write_report(folder / "report.html", "Evaluation", sections, subtitle=subtitle)


def _least(evidence: Evidence, thresholds: Mapping[str, float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([thresholds.get(category.name, np.inf) for category in evidence.categories], dtype=np.float64)


def _counts(folder: Path, evidence: Evidence, assessment: Assessment) -> Path:
    """Predicted over true number of objects, a point for each image and class."""
    predictions, truth = evidence.comparison.predictions, evidence.comparison.truth
    classes = len(evidence.categories)
    shape = evidence.images * classes
    above = evidence.comparison.score >= _least(evidence, assessment.thresholds)[predictions.label]
    counted = above & evidence.outcome[1]
    scored = ~evidence.ranking.ignored[0]
    real = np.bincount((truth.image * classes + truth.label)[scored], minlength=shape)
    found = np.bincount((predictions.image * classes + predictions.label)[counted], minlength=shape)
    used = np.flatnonzero(real + found)
    return counts_scatter(real[used].tolist(), found[used].tolist(), folder / "counts.png")


def _draw_worst(folder: Path, evidence: Evidence, assessment: Assessment, dataset: Dataset) -> dict[str, Path]:
    """Name -> picture of the worst images: what was missed, and what was found that is not there; right finds are left out."""
    right, kept = evidence.outcome
    predictions, truth = evidence.comparison.predictions, evidence.comparison.truth
    above = evidence.comparison.score >= _least(evidence, assessment.thresholds)[predictions.label]
    taken = evidence.ranking.taken[0, evidence.middle]
    rows = evidence.ranking.row[above & right]
    found = np.zeros(len(truth), dtype=np.bool_)
    found[taken[rows]] = True
    missed = truth.select(np.flatnonzero(~found & ~evidence.ranking.ignored[0]))
    false = predictions.select(np.flatnonzero(above & kept & ~right))
    names = [category.name for category in evidence.categories]
    pictures: dict[str, Path] = {}
    for item in assessment.worst[:_DRAWN]:
        try:
            pixels = dataset.image(item.image)
        except ImageError:
            continue  # scores need no images; what is not there cannot be shown
        size = (pixels.shape[1], pixels.shape[0])
        if tuple(dataset.sizes[item.image].tolist()) not in (size, (0, 0)):
            continue  # labelled at another size: nothing would lie where it belongs
        sides = [(instances_of(missed, item.image, size), "missed "), (instances_of(false, item.image, size), "false ")]
        parts = [
            part.replace(scores=np.ones(len(part)), labels=part.labels + offset * len(names))
            for offset, (part, _) in enumerate(sides)
        ]
        both = Instances.concatenate(parts) if sides[0][0].oriented is None else _oriented(parts)
        titles = [word + name for _, word in sides for name in names]
        path = folder / "worst" / f"{len(pictures) + 1:02}.jpg"
        write(path, draw_instances(pixels, both, titles, scores=False))
        pictures[dataset.names[item.image]] = path
    return pictures


def _oriented(parts: list[Instances]) -> Instances:
    return Instances.concatenate([part.replace(boxes=None) for part in parts])
