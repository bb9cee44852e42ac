"""Opening a labelled data set: which format it is, and reading it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from pelagia.core.types import TASKS, Task
from pelagia.data.dataset import Dataset
from pelagia.data.findings import Finding
from pelagia.data.formats import coco, coco_panoptic, coco_write, dota, label_images, voc, yolo, yolo_write
from pelagia.data.formats.common import ReadOptions
from pelagia.data.formats.writing import WriteOptions
from pelagia.errors import FormatError, OptionError

__all__ = ["FORMATS", "Format", "open_dataset", "sniff"]


@dataclass(frozen=True, slots=True)
class Format:
    """An annotation format: `sniff(path)` gives 0 to 1, `read(path, options)` a data set, `write(dataset, out, options)` what was
    lost."""

    name: str
    title: str
    sniff: Callable[[Path], float]
    read: Callable[[Path, ReadOptions], Dataset]
    write: Callable[[Dataset, Path, WriteOptions], list[Finding]]


#: Every format by the name that `--format` takes.
FORMATS: dict[str, Format] = {
    item.name: item
    for item in (
        Format("coco", "COCO JSON", coco.sniff, coco.read, coco_write.write),
        Format("yolo", "YOLO text labels", yolo.sniff, yolo.read, yolo_write.write),
        Format("voc", "Pascal VOC XML", voc.sniff, voc.read, voc.write),
        Format("dota", "DOTA text labels", dota.sniff, dota.read, dota.write),
        Format("panoptic", "COCO panoptic JSON and PNG", coco_panoptic.sniff, coco_panoptic.read, coco_panoptic.write),
        Format("labels", "label images", label_images.sniff, label_images.read, label_images.write),
    )
}

#: A format whose score is below is not considered; two whose scores differ by less than the second number are a tie.
_CONSIDERED, _TIE = 0.5, 0.05


def sniff(path: str | Path) -> str:
    """The name of the format of `path`.

    Raises:
        FormatError: nothing there, no known format, or more than one that fits as well.
    """
    path = Path(path)
    if not path.exists():
        raise FormatError("this file or folder does not exist; check the path", where=path)
    scores = sorted(((item.sniff(path), item.name) for item in FORMATS.values()), reverse=True)
    best, name = scores[0]
    known = ", ".join(FORMATS)
    if best < _CONSIDERED:
        raise FormatError(f"no known annotation format fits; name it with --format (format=), one of {known}", where=path)
    equal = [other for score, other in scores if best - score < _TIE]
    if len(equal) > 1:
        text = f"this could be {' or '.join(sorted(equal))}; choose with --format (format=), or name the annotation file itself"
        raise FormatError(text, where=path)
    return name


def open_dataset(
    path: str | Path,
    *,
    format: str | None = None,
    images: str | Path | None = None,
    task: Task | None = None,
    angle: str | None = None,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    options: ReadOptions | None = None,
) -> Dataset:
    """The labelled data set at `path`: a COCO JSON, a `data.yaml`, or a folder of one of the formats.

    Args:
        path: annotation file or folder.
        format: `coco`, `yolo`, `voc`, `dota`, `panoptic` or `labels`; None to find out.
        images: folder of the images, where it cannot be found from the annotations.
        task: which truth the data set gives; None for what the labels hold.
        angle: unit and direction of the angle in 5-number boxes, `rad-cw`, `rad-ccw`, `deg-cw` or `deg-ccw`.
        split: take only this split.
        classes: class names in label order, where the source states none.
        options: rarer options of reading; the arguments above come before it.

    Raises:
        FormatError: no known format, or a file breaks its format (the message gives file and line).
        DataError: the labels do not hold what `task` needs.
        OptionError: an option has no such value, or there is no such split.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise OptionError(f"unknown format {format!r}, expected one of {', '.join(FORMATS)}")
    if task is not None and task not in TASKS:
        raise OptionError(f"unknown task {task!r}, expected one of {', '.join(get_args(Task))}")
    if not path.exists():
        raise FormatError("this file or folder does not exist; check the path", where=path)
    base = options or ReadOptions()
    stated = replace(
        base,
        images=base.images if images is None else Path(images),
        task=base.task if task is None else task,
        angle=base.angle if angle is None else angle,
        classes=base.classes if classes is None else tuple(classes),
    )
    dataset = FORMATS[format or sniff(path)].read(path, stated)
    if stated.task is not None:
        dataset = dataset.with_task(stated.task)
    return dataset if split is None else dataset.split(split)
