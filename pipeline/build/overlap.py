"""Work done ahead in threads, with its results in order.

Reading, rendering and writing release the interpreter's lock, so that threads use every core; the order of the results
is the order of the work, whatever the number of threads. Bounded: a fixed number of pieces is under way at once.
Knows nothing of what the work is.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS_MAX = 8
"""Each thread holds a piece of work and several times its size while it renders."""

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")


def cores() -> int:
    """How many threads are of use here, at most `THREADS_MAX`."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(THREADS_MAX, usable))


def in_order(
    work: Callable[[_Piece], _Result], pieces: Iterable[_Piece], *, threads: int | None = None
) -> Iterator[tuple[_Piece, _Result]]:
    """Do the work on each piece in threads.

    Args:
        work: called in a thread; an exception is raised where its result would have been.
        pieces: drawn in the caller's thread, at most two more than there are threads before a result is taken.
        threads: how many; None: one a core.

    Yields:
        Each piece with its result, in the order of the pieces.
    """
    count = threads or cores()
    pending: deque[tuple[_Piece, Future[_Result]]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="batchmill-work") as pool:
        try:
            for piece in pieces:
                pending.append((piece, pool.submit(work, piece)))
                if len(pending) > count + 1:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()
