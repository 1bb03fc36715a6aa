"""Results in the order of their rows, in parts that fit in memory: parted by position on disk where they are large.

Knows nothing of what the columns mean, but for `position`.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.merge.places import PLACED

FILES_MAX = 64
"""Parts that are written at a time; those that turn out too large are parted once more."""

PARTS_A_SPILL = 4
"""A part on disk is meant to be this fraction of what may be held: the next one is read while one is judged."""


def parts(
    listed: pa.Table, placed: Iterator[pa.Table], *, spill_bytes: int, folder: Path
) -> Generator[tuple[pa.Table, pa.Table], None, None]:
    """Bring results into the order of their rows.

    Args:
        listed: the batch's rows.
        placed: result lines with a `position` in `listed`, in any order.
        spill_bytes: what is held in memory, at most, but for the lines of a single row.
        folder: where parts may be kept meanwhile; nothing is left there.

    Yields:
        (rows, their results, positions counting from the first of them), in the order of the rows, each row once.
    """
    held: list[pa.Table] = []
    size = 0
    for table in placed:
        held.append(table)
        size += table.nbytes
        if size > spill_bytes and listed.num_rows > 1:
            row_bytes = size / max(1, sum(one.num_rows for one in held))
            step = max(1, int(spill_bytes / PARTS_A_SPILL / max(1.0, row_bytes)))
            whole = listed.num_rows
            step = min(max(step, -(-whole // FILES_MAX)), -(-whole // 2))  # always fewer rows than before
            yield from _spilled(listed, itertools.chain(_given_up(held), placed), step, spill_bytes, folder)
            return
    yield listed, pa.concat_tables(held) if held else PLACED.empty_table()


def _given_up(held: list[pa.Table]) -> Iterator[pa.Table]:
    while held:
        yield held.pop(0)


def _spilled(
    listed: pa.Table, placed: Iterator[pa.Table], step: int, spill_bytes: int, folder: Path
) -> Generator[tuple[pa.Table, pa.Table], None, None]:
    """Part results by position on disk, `step` rows each."""
    scratch = Path(tempfile.mkdtemp(prefix="parts.", suffix=".tmp", dir=folder))
    try:
        _written(placed, step, scratch)
        for part, start in enumerate(range(0, listed.num_rows, step)):
            path = scratch / f"{part}.arrow"
            yield from parts(listed.slice(start, step), _read(path, start), spill_bytes=spill_bytes, folder=scratch)
            path.unlink(missing_ok=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _written(placed: Iterator[pa.Table], step: int, scratch: Path) -> None:
    writers: dict[int, tuple[pa.OSFile, pa.ipc.RecordBatchStreamWriter]] = {}
    try:
        for table in placed:
            numbers = pc.divide(table["position"], step).to_numpy()
            for part in np.unique(numbers).tolist():
                if part not in writers:
                    sink = pa.OSFile(str(scratch / f"{part}.arrow"), "wb")
                    writers[part] = sink, pa.ipc.new_stream(sink, table.schema)
                writers[part][1].write_table(table.filter(pa.array(numbers == part)))
    finally:
        for sink, writer in writers.values():
            writer.close()
            sink.close()


def _read(path: Path, start: int) -> Iterator[pa.Table]:
    """A part's results piece by piece, with positions counting from `start`; nothing for one that got none."""
    if not path.exists():
        return
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            table = pa.Table.from_batches([batch])
            at = table.schema.get_field_index("position")
            yield table.set_column(at, table.schema.field(at), pc.subtract(table["position"], start))
