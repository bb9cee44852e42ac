"""The one progress bar of the package: on standard error, only where someone watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar

from pelagia.core.lazy import resolve

__all__ = ["Advance", "bar", "track"]

T = TypeVar("T")

#: Call with the number of finished steps and a short note that is shown beside the bar.
Advance: TypeAlias = Callable[[int, str], None]


@contextmanager
def bar(description: str, total: int | None, *, show: bool | None = None) -> Iterator[Advance]:
    """A bar for work that is not a simple loop; yields the function that moves it.

    Shown when `show` is true, or when it is None and standard error is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield _silent
        return
    # Loaded late: it costs a tenth of the time that a cold start may take, and most starts show no bar.
    rich = resolve("rich.progress", purpose="show progress")
    console = resolve("rich.console", purpose="show progress").Console(stderr=True)
    columns = (
        rich.TextColumn("[progress.description]{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}"),
    )
    with rich.Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total, note="")
        yield partial(_move, progress, task)


def track(items: Iterable[T], description: str, *, total: int | None = None, show: bool | None = None) -> Iterator[T]:
    """Iterate over `items` and move a bar; `total` defaults to their length where they have one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(description, total, show=show) as advance:
        for item in items:
            yield item
            advance(1, "")


def _move(progress: Any, task: Any, steps: int, note: str = "") -> None:
    progress.update(task, advance=steps, note=note)


def _silent(steps: int, note: str = "") -> None:
    """Nobody watches."""
