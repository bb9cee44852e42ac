"""Work done in threads before its results are asked for, in order: reading beside computing, one computation beside another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead", "side_by_side"]

T = TypeVar("T")

_END = object()


def ahead(items: Iterator[T], most: int) -> Generator[T, None, None]:
    """The same items in the same order; a thread makes up to `most` of them beyond the one in use.

    The thread is the only user of `items`. It starts with the first item that is asked for, and has ended when the generator
    has: exhausted, left by an exception, or closed. A consumer that may stop early holds it in `contextlib.closing`; what the
    thread uses (an open file) then outlives it.

    Raises:
        BaseException: what making an item raised, in the place of that item.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    waiting: deque[Future[object]] = deque()
    try:
        while True:
            while len(waiting) <= most:
                waiting.append(pool.submit(next, items, _END))
            item = waiting.popleft().result()
            if item is _END:
                return
            yield item  # type: ignore[misc]  # not the end, so one of the items
    finally:
        # A step in progress is waited for; those behind it are not begun.
        pool.shutdown(wait=True, cancel_futures=True)


def side_by_side(steps: Iterable[tuple[Callable[[], T], bool]], *, workers: int) -> Generator[T, None, None]:
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
