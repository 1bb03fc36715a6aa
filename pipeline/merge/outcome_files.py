"""Outcome files as a merge sees them: which belong to a shard, and their rows by range.

Each is sorted by row, so that a range is found through row-group statistics and read in slices of bounded size. Owns
also the digest of what a shard's output is made of.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.merge.audit import telling_damage

_FOOTER_BYTES = 1 << 16
KEPT_SHARE = 4
"""A row group is kept for the next range where this one took at least that fraction of it: what all the files of a
shard keep is then a few slices, however many they are."""
SLICE_BYTES = 16 << 20
"""Outcomes that are joined at a time, at most, as outcome files estimate them; one row at least."""


@dataclass(frozen=True, slots=True)
class OutcomeFile:
    """A batch's outcomes; `order` grows with the batches' age."""

    path: Path
    order: int
    batch_id: str
    deployment: str
    raw: Path | None = None
    """Response bodies of the same rows, where the output is to have them."""


@dataclass(frozen=True, slots=True)
class MergeShard:
    """A sealed shard and every outcome file that has rows of it."""

    name: str
    row_file: Path
    first_row: int
    stop_row: int
    outcomes: tuple[OutcomeFile, ...]


def inputs_digest(*parts: object) -> str:
    """Hex digest of what an output is made of."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def shard_inputs(shard: MergeShard) -> Iterator[object]:
    """What tells whether a shard's output would be another: its rows, and the ends of its files, where Parquet keeps
    sizes and statistics."""
    yield shard.name, shard.first_row, shard.stop_row
    for path in (shard.row_file, *(file.path for file in shard.outcomes)):
        with telling_damage(path), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _FOOTER_BYTES))
            yield size, hashlib.sha256(file.read()).hexdigest()
    yield [(file.order, file.batch_id, file.deployment, file.raw is not None) for file in shard.outcomes]


class _RangeReader:
    """Rows of one file that is sorted by row, by range, through row-group statistics.

    The file stays open: one that is replaced meanwhile, by the process that acts on the run, is read as it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with telling_damage(path):
            self._file = pq.ParquetFile(path, pre_buffer=False)
        self._ranges, self._row_bytes = [], []
        self._kept: tuple[int, pa.Table] | None = None
        for index in range(self._file.metadata.num_row_groups):
            group = self._file.metadata.row_group(index)
            if statistics := group.column(0).statistics:
                self._ranges.append((statistics.min, statistics.max))
                self._row_bytes.append(group.total_byte_size / max(1, group.num_rows))

    def reach(self, first: int) -> int:
        """How far rows from `first` on may be read together and still be small."""
        room = float(SLICE_BYTES)
        for (low, high), row_bytes in zip(self._ranges, self._row_bytes, strict=True):
            if high < first:
                continue
            start = max(low, first)
            if (high + 1 - start) * row_bytes > room:
                return int(start) + int(room / row_bytes)
            room -= (high + 1 - start) * row_bytes
        return 1 << 62

    def rows(self, first: int, stop: int) -> pa.Table:
        """The file's rows [first, stop)."""
        found = [self._file.schema_arrow.empty_table()]
        for index, (low, high) in enumerate(self._ranges):
            if low < stop and high >= first:
                table = self._group(index)
                at, end = np.searchsorted(table["row"].to_numpy(), [first, stop])
                found.append(table.slice(at, end - at))
                # The next range often begins in it. One of which this range is a small part (pooled retries, of which a
                # shard may have many files) is not worth its memory.
                self._kept = (index, table) if (end - at) * KEPT_SHARE >= table.num_rows else None
        return pa.concat_tables(found)

    def _group(self, index: int) -> pa.Table:
        """A row group, read or still kept."""
        if self._kept is not None and self._kept[0] == index:
            return self._kept[1]
        self._kept = None
        with telling_damage(self._path):
            return self._file.read_row_group(index)

    def close(self) -> None:
        """Let go of the file."""
        self._kept = None
        self._file.close()


class OutcomeReader:
    """A batch's outcomes, with the response bodies where they are wanted; closed by `with`."""

    def __init__(self, file: OutcomeFile) -> None:
        self._outcomes = _RangeReader(file.path)
        self._raw = None if file.raw is None else _RangeReader(file.raw)

    def __enter__(self) -> OutcomeReader:
        return self

    def __exit__(self, *error: object) -> None:
        for reader in (self._outcomes, self._raw):
            if reader is not None:
                reader.close()

    def reach(self, first: int) -> int:
        """As of `_RangeReader`."""
        return min(reader.reach(first) for reader in (self._outcomes, self._raw) if reader is not None)

    def rows(self, first: int, stop: int) -> pa.Table:
        """The outcomes of rows [first, stop)."""
        found = self._outcomes.rows(first, stop)
        return found if self._raw is None else found.append_column("raw", self._raw.rows(first, stop)["raw"])
