"""What commands share: one JSON document on standard output, or text for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pelagia.core.types import Task

__all__ = ["DataFlags", "Json", "print_json", "say", "table"]

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON document instead of text.")]


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

    def given(self, task: Task | None = None) -> dict[str, Any]:
        """Arguments of `open_dataset` that were given; `task` where none was."""
        values = {"format": self.format, "images": self.images, "task": self.task or task, "angle": self.angle}
        return {name: value for name, value in {**values, "classes": self.classes or None}.items() if value is not None}


def print_json(value: Any) -> None:
    """The only thing that a command with `--json` writes to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def say(text: str) -> None:
    """A sentence for people, on standard error, where it disturbs neither tables nor pipes."""
    print(text, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns under a header; the first is left aligned, and so is text, numbers are right aligned."""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(text.rjust(width) if flag else text.ljust(width) for text, width, flag in zip(row, widths, right, strict=True))
        for row in [list(header), *cells]
    ]
    return "\n".join(line.rstrip() for line in lines)


def _is_number(text: str) -> bool:
    return text in ("", "-") or text.replace(",", "").replace(".", "", 1).lstrip("+-").isdigit()
