"""How commands open labelled images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pelagia.core.types import Task
from pelagia.data.dataset import Dataset
from pelagia.data.formats.common import IGNORE_CATEGORIES, ReadOptions
from pelagia.data.open import open_dataset
from pelagia.data.split import read_splits

__all__ = ["NO_FLAGS", "DataFlags"]


@dataclass(frozen=True)
class DataFlags:
    """How labelled images are opened."""

    format: str | None = field(default=None, metadata={"help": "Format of the labels; sniffed by default."})
    images: Path | None = field(default=None, metadata={"help": "Folder of the images, where the labels do not tell."})
    task: Task | None = field(
        default=None, metadata={"help": "Which truth to take, such as oriented; by default what the labels hold."}
    )
    angle: str | None = field(default=None, metadata={"help": "Meaning of the angle in 5-number COCO boxes: rad-cw or deg-ccw."})
    classes: tuple[str, ...] = field(default=(), metadata={"help": "Names of the classes, where the labels only number them."})
    splits: Path | None = field(default=None, metadata={"help": "Splits in the file that `pelagia split` wrote."})
    voc_offset: Literal["auto", "0", "1"] = field(
        default="auto", metadata={"help": "Pascal VOC: 1 for 1-based inclusive pixels, 0 for 0-based edges; judged by default."}
    )
    ignore_categories: tuple[str, ...] = field(
        default=IGNORE_CATEGORIES, metadata={"help": "Names of categories that mark regions to ignore and are no class."}
    )

    def open(self, path: Path, task: Task | None = None, *, keep_empty: bool = False, find_images: bool = True) -> Dataset:
        """The data set at `path`, with `task` unless another was given on the command line; the others as in `ReadOptions`."""
        dataset = open_dataset(
            path,
            format=self.format,
            images=self.images,
            task=self.task or task,
            angle=self.angle,
            classes=self.classes or None,
            options=ReadOptions(
                voc_offset=self.voc_offset,
                ignore_categories=self.ignore_categories,
                keep_empty=keep_empty,
                find_images=find_images,
            ),
        )
        return dataset if self.splits is None else dataset.with_splits(read_splits(dataset, self.splits))


#: Nothing was given on the command line.
NO_FLAGS = DataFlags()
