"""An iterator that is one item ahead of whoever takes from it: what is read next and what is written now overlap."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

T = TypeVar("T")
_END = object()


def ahead(items: Generator[T, None, None]) -> Iterator[T]:
    """The same items; the next one is made in a thread while one is in use, and never more than that.

    What the generator raises is raised here. It is closed when the taking ends, however it ends.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(_next, items)
        try:
            while (item := coming.result()) is not _END:
                coming = thread.submit(_next, items)
                yield cast(T, item)
        finally:
            thread.submit(items.close)  # in its own thread, after what it may be at


def _next(items: Generator[T, None, None]) -> Any:
    return next(items, _END)
