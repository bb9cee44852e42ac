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
from pelagia.models.weights import PUBLISHED

if TYPE_CHECKING:
    from pelagia.models.registry import Entry

__all__ = ["models"]

#: Widest line: that of the narrowest usual terminal, so that nothing is broken by it.
_WIDTH = 80


def models(*, task: Task | None = None, json: Json = False) -> int:
    """List the models by paper: its year and address, tasks, parameters, GFLOPs, weights and their licence, export to ONNX.

    Args:
        task: Only models for this task; the numbers are then those for it, else those for the model's first task.
    """
    entries = list_models(task)
    if json:
        published = {name: asdict(item) for name, item in PUBLISHED.items()}
        print_json([asdict(entry) | {"published": published.get(entry.name)} for entry in entries])
        return 0
    header = ["model", "parameters", "GFLOPs", "input", "classes", "ONNX"]
    lines = iter(table(header, [_row(entry, task) for entry in entries]).split("\n"))
    print(next(lines))
    for paper, group in groupby(entries, key=_paper):
        members = list(group)
        reasons = sorted({f"ONNX {entry.exports}" for entry in members if entry.exports.startswith("no:")})
        rows = [next(lines) for _ in members]
        print("", *map(_fill, paper), *rows, *map(_fill, _weights(members)), *map(_fill, reasons), sep="\n")
    note = """Parameters and GFLOPs (2 x multiply-additions) are with so many classes at the input size. A model whose ONNX file
    is "not for the web" holds its own suppression: it runs in ONNX Runtime, not in browsers. Published weights are fetched by
    `pelagia train` with `--pretrained`, and by nothing else."""
    print("\n" + textwrap.fill(" ".join(note.split()), _WIDTH))
    return 0


def _fill(text: str) -> str:
    """Lines of a paragraph; the continued ones are indented, addresses stay whole."""
    return textwrap.fill(text, _WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _paper(entry: Entry) -> tuple[str, str]:
    return f"{entry.title.rstrip('.')}. {entry.authors}, {entry.year}, {entry.url}", f"tasks: {', '.join(entry.tasks)}"


def _weights(members: Sequence[Entry]) -> list[str]:
    """Which files are read and their licence; then what can be fetched, by model, with what its authors report."""
    read: dict[str, list[str]] = {}
    fetched: dict[str, list[str]] = {}
    for entry in members:
        licence = f" (licence: {entry.weights_licence})" if entry.weights_licence else ""
        read.setdefault(entry.weights + licence or "none to read", []).append(entry.name)
        item = PUBLISHED.get(entry.name)
        if item is not None:
            place = f"published: {item.source}; from {item.url.removesuffix(item.file_name)}"
            fetched.setdefault(place, []).append(f"{entry.name}: {item.file_name}, {item.metric}")
    several = len(read) > 1
    told = [f"weights of {', '.join(names)}: {text}" if several else f"weights: {text}" for text, names in read.items()]
    return told + [line for place, files in fetched.items() for line in (place, *(f"  {file}" for file in files))]


def _row(entry: Entry, task: Task | None) -> Sequence[object]:
    asked = task or entry.tasks[0]
    return [
        entry.name,
        f"{entry.parameters[asked]:,}" if asked in entry.parameters else "-",
        entry.gflops.get(asked, "-"),
        entry.input_size.get(asked, "-"),
        entry.classes,
        "no" if entry.exports.startswith("no:") else entry.exports,
    ]
