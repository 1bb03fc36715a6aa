"""Memory that is free and still counted as the process's own.

Arrow's pool keeps what was let go in the heap of each thread that used it: with several threads it comes to two or
three times what is in use. Having it back after each piece of a large work costs a few per cent of the time, an option
of the pool that gives every buffer back at once a third: it is asked for only when it has become much. Owns nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa

UNUSED_MAX = 240_000_000
"""Bytes held beyond what Arrow's buffers take, interpreter and libraries included."""

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def give_back() -> None:
    """Let the system have what Arrow's pool holds unused, where that is much or cannot be told."""
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
