"""Work done in threads ahead of whoever takes its results, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead"]

T = TypeVar("T")


def ahead(steps: Iterable[tuple[Callable[[], T], bool]], *, workers: int) -> Iterator[T]:
    """The result of each step (work, beside), in order.

    What is done beside is done by one of `workers` threads, at most 2 `workers` steps ahead; the rest by the taker's own thread
    when its turn comes. An exception of a step is raised in its place; steps that have not begun are then dropped, as they are
    when the taker stops early.
    """
    queued: deque[Callable[[], T]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pelagia")
    try:
        for work, beside in steps:
            queued.append(pool.submit(work).result if beside else work)
            if len(queued) > 2 * workers:
                yield queued.popleft()()
        while queued:
            yield queued.popleft()()
    finally:
        pool.shutdown(cancel_futures=True)
