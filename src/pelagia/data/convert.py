"""Converting a data set to another format, with a list of what the target cannot hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelagia.core.types import Task
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding
from pelagia.data.formats.writing import WriteOptions
from pelagia.data.open import FORMATS
from pelagia.data.tasks import with_outlines
from pelagia.errors import OptionError

__all__ = ["ConversionReport", "convert", "richest_task"]


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What was written.

    Args:
        out: the file or folder.
        format: its format.
        task: which truth was written.
        images: how many images it lists.
        objects: how many objects the source holds.
        losses: what the target cannot hold or holds otherwise.
    """

    out: Path
    format: str
    task: Task
    images: int
    objects: int
    losses: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "out": str(self.out),
            "format": self.format,
            "task": self.task,
            "images": self.images,
            "objects": self.objects,
            "losses": [
                {"severity": f.severity, "code": f.code, "message": f.message, "where": f.where, "count": f.count}
                for f in self.losses
            ],
        }


def richest_task(dataset: Dataset) -> Task:
    """The task that keeps most of the labels: keypoints, outlines of all objects, oriented boxes, else the data's own."""
    flat = dataset.annotations
    if dataset.mask_files is not None or len(flat) == 0:
        return dataset.task
    if dataset.panoptic_files is not None:
        return "instance"
    if flat.keypoints is not None:
        return "keypoints"
    if dataset.task == "oriented" or (flat.oriented is not None and flat.shapes is None):
        return "oriented"
    if flat.shapes is not None and flat.shapes.present.all():
        return "instance"
    return dataset.task


def convert(
    dataset: Dataset, out: str | Path, format: str, *, task: Task | None = None, options: WriteOptions | None = None
) -> ConversionReport:
    """Write `dataset` to `out` in `format`.

    Args:
        dataset: what to write.
        out: a folder (for COCO a file `*.json` also does); files of the same names in it are replaced.
        format: `coco`, `yolo`, `voc`, `dota`, `panoptic` or `labels`.
        task: which truth to write, where a format holds one at a time; None for `richest_task`, for the format `panoptic` always
            that task. Panoptic data lose their stuff in formats of single objects.
        options: images, angle convention, first pixel of Pascal VOC.

    Raises:
        OptionError: unknown format, or `out` is the source itself.
        DataError: the labels do not hold what the task or the format needs.
    """
    if format not in FORMATS:
        raise OptionError(f"unknown format {format!r}, expected one of {', '.join(FORMATS)}")
    target = Path(out)
    if target.exists() and dataset.root.exists() and target.samefile(dataset.root):
        raise OptionError("this is the source itself; choose another folder", where=target)
    if target.is_file() and target.suffix.lower() != ".json":
        raise OptionError("this is a file; name a folder to write", where=target)
    if format == "panoptic":
        chosen = dataset.with_task("panoptic")
    else:
        chosen = dataset.with_task(task or richest_task(dataset))
        chosen = chosen if chosen.task == "semantic" else with_outlines(chosen)
    losses = list(chosen.findings[len(dataset.findings) :])
    if chosen.task == "panoptic" and chosen.background is not None and format != "panoptic":
        text = "the background between outlines is no object: its class is written, its pixels are not; --to panoptic keeps them"
        losses.append(Finding("warning", "background", text, str(target), len(chosen)))
    losses += FORMATS[format].write(chosen, target, options or WriteOptions())
    return ConversionReport(target, format, chosen.task, len(chosen), len(chosen.annotations), tuple(losses))
