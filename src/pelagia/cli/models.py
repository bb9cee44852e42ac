"""`pelagia models`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

from pelagia.api import list_models
from pelagia.cli.common import Json, print_json, table
from pelagia.core.types import Task

if TYPE_CHECKING:
    from pelagia.models.registry import Entry

__all__ = ["models"]

#: Widest line.
_WIDTH = 120


def models(*, task: Task | None = None, json: Json = False) -> int:
    """List the models by paper: tasks, parameters, GFLOPs, weights and their licence, export to ONNX.

    Args:
        task: Only models for this task; the numbers are then those for it, else those for the model's first task.
    """
    entries = list_models(task)
    if json:
        print_json([asdict(entry) for entry in entries])
        return 0
    header = ["model", "parameters", "GFLOPs", "input", "classes", "ONNX", "tasks"]
    lines = iter(table(header, [_row(entry, task) for entry in entries]).split("\n"))
    print(next(lines))
    for paper, group in groupby(entries, key=_paper):
        print("\n" + "\n".join(textwrap.wrap(paper, _WIDTH)))
        members = list(group)
        print("\n".join(next(lines) for _ in members))
        for reason in sorted({entry.exports for entry in members if entry.exports.startswith("no:")}):
            print("\n".join(textwrap.wrap(f"ONNX {reason}", _WIDTH)))
    note = """Parameters and GFLOPs (2 x multiply-additions) are with so many classes at the input size. A model whose ONNX file
    is "not for the web" holds its own suppression: it runs in ONNX Runtime, not in browsers."""
    print("\n" + textwrap.fill(" ".join(note.split()), _WIDTH))
    return 0


def _paper(entry: Entry) -> str:
    weights = f"weights: {entry.weights_licence}" if entry.weights_licence else "no weights to read"
    return f"{entry.title.rstrip('.')}. {entry.authors}, {entry.year}; {weights}"


def _row(entry: Entry, task: Task | None) -> Sequence[object]:
    asked = task or entry.tasks[0]
    return [
        entry.name,
        f"{entry.parameters[asked]:,}" if asked in entry.parameters else "-",
        entry.gflops.get(asked, "-"),
        entry.input_size.get(asked, "-"),
        entry.classes,
        "no" if entry.exports.startswith("no:") else entry.exports,
        ", ".join(entry.tasks),
    ]
