"""`pelagia models`."""

from __future__ import annotations

from dataclasses import asdict

from pelagia.api import list_models
from pelagia.cli.common import Json, print_json, table
from pelagia.core.types import Task

__all__ = ["models"]


def models(*, task: Task | None = None, json: Json = False) -> int:
    """List the models: paper, tasks, parameters, GFLOPs.

    Args:
        task: Only models for this task.
    """
    entries = list_models(task)
    if json:
        print_json([asdict(entry) for entry in entries])
        return 0
    rows = [
        [
            entry.name,
            entry.year,
            name,
            f"{entry.parameters[name]:,}" if name in entry.parameters else "-",
            entry.gflops.get(name, "-"),
            entry.input_size.get(name, "-"),
            entry.title,
        ]
        for entry in entries
        for name in entry.tasks
        if task in (None, name)
    ]
    print(table(["model", "year", "task", "parameters", "GFLOPs", "input", "paper"], rows))
    print("\nParameters and GFLOPs (2 x multiply-additions) with 80 classes at the input size.")
    return 0
