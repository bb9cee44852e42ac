"""One thread ahead: the same items in order, never more than asked for, errors in their place, and a prompt end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from pelagia.core.ahead import ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("most", [0, 1, 5, 100])
def test_the_same_items_in_the_same_order(most: int) -> None:
    assert list(ahead(iter(range(37)), most)) == list(range(37))
    assert list(ahead(iter(()), most)) == []
    assert threads() == []


@pytest.mark.parametrize("most", [0, 1, 4])
def test_no_more_than_asked_for_is_made_ahead(most: int) -> None:
    made: list[int] = []
    reached = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for item in range(20):
            made.append(item)
            reached.release()
            yield item

    with closing(ahead(items(), most)) as found:
        assert made == []  # nothing runs before the first item is asked for
        for item in range(5):
            assert next(found) == item
            # All that may be made is made while the consumer holds an item.
            while len(made) < item + 1 + most:
                assert reached.acquire(timeout=20)
            assert len(made) == item + 1 + most
    assert len(made) == 5 + most
    assert threads() == []


def test_another_thread_makes_all_of_them() -> None:
    makers = list(ahead((threading.get_ident() for _ in range(9)), 2))
    assert len(set(makers)) == 1
    assert makers[0] != threading.get_ident()


def test_an_error_comes_in_its_place_and_ends_the_thread() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise KeyError("broken")

    found = ahead(items(), 5)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="broken"):
        next(found)
    assert threads() == []
    assert list(found) == []


def test_a_consumer_that_fails_ends_the_thread() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1_000_000):
            made.append(item)
            yield item

    def consume() -> None:
        with closing(ahead(items(), 3)) as found:
            for item in found:
                _ = 1 // (2 - item)

    with pytest.raises(ZeroDivisionError):
        consume()
    assert threads() == []
    count = len(made)
    assert count <= 7
    assert len(made) == count


def test_a_forgotten_consumer_ends_the_thread() -> None:
    found = ahead(iter(range(1000)), 2)
    assert next(found) == 0
    assert len(threads()) == 1
    del found
    assert threads() == []
