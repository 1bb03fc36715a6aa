"""An iterator that is one item ahead."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from pipeline.ahead import ahead


def test_items_come_in_order_and_one_ahead() -> None:
    """While an item is in use, the next one is made, and no other."""
    made: list[int] = []
    reached = [threading.Event() for _ in range(5)]

    def items() -> Generator[int, None, None]:
        for number in range(5):
            made.append(number)
            reached[number].set()
            yield number

    taken = []
    for item in ahead(items()):
        taken.append(item)
        if item < 4:
            assert reached[item + 1].wait(10)
        assert len(made) <= item + 2
    assert taken == list(range(5))


def test_what_is_raised_on_either_side_ends_both() -> None:
    """The maker's error comes out in its place; the taker's closes the maker."""
    closed = threading.Event()

    def items(fails: bool) -> Generator[int, None, None]:
        try:
            yield 1
            if fails:
                raise KeyError("x")
            yield 2
            yield 3
        finally:
            closed.set()

    found = ahead(items(fails=True))
    assert next(found) == 1
    with pytest.raises(KeyError):
        next(found)
    assert closed.wait(10)
    closed.clear()
    found = ahead(items(fails=False))
    assert next(found) == 1
    found.close()  # type: ignore[attr-defined]
    assert closed.wait(10)
    assert list(ahead(item for item in ())) == []
