"""Values that stand twice, among any number of them, in bounded memory.

128-bit hashes go to bucket files, each small enough to be sorted by itself at the end. Knows nothing of what the values
mean.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BUCKETS = 256
_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<i8")])


class Buckets:
    """Collects values with a number each.

    Args:
        beside: folder in which a temporary one is made; None: the system's place for those.
    """

    def __init__(self, beside: Path | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ids.", suffix=".tmp", dir=beside))

    def add(self, values: Sequence[str], numbers: NDArray[np.int64]) -> None:
        """Remember values; their numbers tell where they stood."""
        entries = np.empty(len(values), dtype=_ENTRY)
        digests = b"".join(
            hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).digest() for value in values
        )
        pairs = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
        entries["high"], entries["low"] = pairs[:, 0], pairs[:, 1]
        entries["number"] = numbers
        buckets = (entries["high"] % BUCKETS).astype(np.int64)
        order = np.argsort(buckets, kind="stable")
        bounds = np.searchsorted(buckets[order], np.arange(BUCKETS + 1))
        for bucket in range(BUCKETS):
            part = entries[order[bounds[bucket] : bounds[bucket + 1]]]
            if len(part):
                with (self._folder / f"{bucket:03d}").open("ab") as file:
                    file.write(part.tobytes())

    def doubles(self) -> Iterator[tuple[int, int]]:
        """Every number whose value has a lower number too, with the lowest of these; in no order."""
        for path in sorted(self._folder.iterdir()):
            entries = np.fromfile(path, dtype=_ENTRY)
            entries.sort(order=["high", "low", "number"])
            same = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
            first = 0
            for at in np.flatnonzero(same):
                if at == 0 or not same[at - 1]:
                    first = int(entries["number"][at])
                yield int(entries["number"][at + 1]), first

    def close(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self._folder, ignore_errors=True)
