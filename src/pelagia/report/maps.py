"""What `pelagia evaluate --out` leaves behind for maps: plots, pictures of the worst images, and one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pelagia.core.draw import draw_prediction
from pelagia.core.image import write
from pelagia.core.palette import Picture as Pixels
from pelagia.errors import ImageError
from pelagia.infer.maps import MapEvaluation, MapImages
from pelagia.metrics.bootstrap import Difference, Interval, Key
from pelagia.metrics.label_images import LabelImageResult
from pelagia.metrics.panoptic import PanopticResult
from pelagia.metrics.semantic_result import SemanticResult
from pelagia.report.evaluation import calibration_sections, comparison_sections, interval_sections, table_sections
from pelagia.report.evaluation_plots import interval_plot, reliability_diagram, semantic_confusion
from pelagia.report.html import Gallery, Heading, Picture, Section, Table, Text, write_report

__all__ = ["write_maps"]

#: The number that is compared class by class, or threshold by threshold; and by which an image alone is judged.
_COMPARED: dict[type, str] = {LabelImageResult: "F1", SemanticResult: "IoU", PanopticResult: "PQ"}
_JUDGED: dict[type, str] = {LabelImageResult: "accuracy at IoU 0.5", SemanticResult: "mean IoU", PanopticResult: "PQ"}

#: Worst images that are listed, and that are drawn.
_LISTED, _DRAWN = 40, 12

#: Pixels of white between truth and prediction.
_GAP = 8


def write_maps(
    folder: Path,
    found: MapEvaluation,
    sure: Mapping[Key, Interval] | None = None,
    differences: Mapping[Key, Difference] | None = None,
    *,
    level: float = 0.95,
    subtitle: str = "",
) -> Path:
    """Write report.html of a score of label images, semantic or panoptic maps, with intervals and a comparison of that `level` if
    given; returns its path."""
    result, compared = found.result, _COMPARED[type(found.result)]
    numbered = isinstance(result, LabelImageResult)
    part = "threshold" if numbered else "class"
    plots = {}
    if isinstance(result, SemanticResult):
        plots["confusion"] = semantic_confusion(result, folder / "confusion.png")
    rows = result.threshold_rows() if isinstance(result, LabelImageResult) else result.class_rows()
    notes = "" if isinstance(result, LabelImageResult) else "\n\n".join(f"{note}." for note in result.notes)
    caption = "By IoU threshold." if numbered else "Per class."
    sections = table_sections("Accuracy", result.summary(), rows, plots, text=notes, caption=caption)
    sections += _worst_sections(folder, found.images, _JUDGED[type(result)])
    if found.calibration is not None:
        diagram = reliability_diagram(found.calibration, folder / "reliability.png")
        title = "How far the probabilities of pixels can be believed"
        sections += calibration_sections(found.calibration, {"reliability": diagram}, title=title)
    if sure is not None:
        plot = interval_plot(sure, folder / "intervals.png", compared, level=level)
        sections += interval_sections(sure, {"intervals": plot}, level=level, part=part)
    if differences is not None:
        sections += comparison_sections(differences, number=compared, level=level, part=part)
    return write_report(folder / "report.html", "Evaluation", sections, subtitle=subtitle)


def _worst_sections(folder: Path, images: MapImages, judged: str) -> list[Section]:
    """The images of lowest score, the first of them drawn with their truth on the left."""
    worst = images.worst(_LISTED).tolist()
    sections: list[Section] = [Heading("Images with the lowest scores")]
    if not worst:
        return [*sections, Text("Every image is perfect.")]
    pictures: list[Picture] = []
    for index in worst[:_DRAWN]:
        path = folder / "worst" / f"{len(pictures) + 1:02}.jpg"
        if _draw_pair(images, index, path):
            pictures.append(Picture(path, f"{images.names[index]}: {judged} {images.score[index]:.3f}"))
    sections.append(Text(f"By {judged} of the image alone." + (" Left the truth, right the prediction." if pictures else "")))
    if pictures:
        sections.append(Gallery(pictures))
    rows = [[images.names[index], float(images.score[index])] for index in worst]
    return [*sections, Table(["image", judged], rows)]


def _draw_pair(images: MapImages, index: int, path: Path) -> bool:
    """Whether there was an image to draw truth and prediction onto."""
    if images.pixels is None:
        return False
    try:
        pixels = images.pixels(index)
    except ImageError:
        return False  # scores need no images; what is not there cannot be shown
    maps = images.maps(index)
    if any((item.labels if hasattr(item, "labels") else item.ids).shape != pixels.shape[:2] for item in maps):
        return False  # labelled at another size: nothing would lie where it belongs
    write(path, _beside(*(draw_prediction(pixels, item, images.categories) for item in maps)))
    return True


def _beside(left: Pixels, right: Pixels) -> Pixels:
    """Two pictures in one, white where one is lower than the other."""
    height = max(len(left), len(right))
    sides = [np.pad(side, ((0, height - len(side)), (0, 0), (0, 0)), constant_values=255) for side in (left, right)]
    gap = np.full((height, _GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([sides[0], gap, sides[1]], axis=1)
