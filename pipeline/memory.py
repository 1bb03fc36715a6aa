"""Memory that is free and still counted as the process's own.

Allocators keep what was let go for the next use, each thread its own: with several threads it comes to two or three
times what is in use, and in a long run with pauses it grows from batch to batch. Owns what is done about it, for the
three that a run has: the C library's, polars' and Arrow's.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

UNUSED_MAX = 250_000_000
"""Bytes held beyond what Arrow's buffers take, interpreter and libraries included."""

ARENAS = 3
"""Heaps of the C library, where it would have eight for each core; with two the reading of results is slower."""

_M_ARENA_MAX = -8
_POLARS = ("_RJEM_MALLOC_CONF", "dirty_decay_ms:50,muzzy_decay_ms:0")
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def settle_allocators() -> None:
    """Have the C library (glibc) keep few heaps, and polars give back what is free; before it and pyarrow are loaded.

    In a run of 1,000,000 rows it is a hundred megabytes, and no time that can be measured.
    """
    os.environ.setdefault(*_POLARS)
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)
    except (OSError, AttributeError):
        return


def give_back() -> None:
    """Let the system have what Arrow's pool holds unused, where that is much or cannot be told.

    Asked for after each piece of a large work; an option by which the pool does so with every buffer costs a third of
    the speed.
    """
    import pyarrow as pa

    held = _anonymous_bytes()
    if held is None or held - pa.total_allocated_bytes() > UNUSED_MAX:
        pa.default_memory_pool().release_unused()


def _anonymous_bytes() -> int | None:
    """The process's memory without what is shared with files; None where the system does not tell."""
    try:
        _, resident, shared, *_ = map(int, _STATM.read_bytes().split())
    except (OSError, ValueError):
        return None
    return (resident - shared) * _PAGE_BYTES
