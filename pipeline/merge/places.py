"""Where result lines belong: the position of each line's row in its batch's list, found by custom_id alone.

A position that is read off a number is believed only where the listed id there is the line's own. Lines that belong to
no row are kept aside. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.merge.tally import Tally
from pipeline.outcome import MALFORMED
from pipeline.result_line import line_rows
from pipeline.results import RESULTS, Block, read_blocks

PLACED = RESULTS.append(pa.field("position", pa.int64()))
"""Result columns, with the position of the line's row in the batch's list."""


def located(
    listed: pa.Table,
    files: Sequence[Path],
    kind: tuple[str, bool],
    tally: Tally,
    aside: Path | None,
    *,
    raw: bool = False,
) -> Iterator[pa.Table]:
    """Result lines with the position of their row in the batch's list; unknown ones are counted and kept aside."""
    places = Places(listed)
    if aside is not None:
        aside.unlink(missing_ok=True)
    for file in files:
        for block in read_blocks(file, kind[0], several=kind[1], raw=raw):
            table = block.table
            tally.lines += table.num_rows
            tally.malformed += pc.sum(pc.equal(table["error_code"], MALFORMED)).as_py() or 0
            position = places.of(table["custom_id"])
            located = table.append_column("position", position)
            if position.null_count:
                tally.unknown += position.null_count
                if aside is not None:
                    _keep_aside(block, position, places, kind, aside)
                located = located.filter(pc.is_valid(position))
            yield located


class Places:
    """Where custom_ids stand in a batch's list."""

    def __init__(self, listed: pa.Table) -> None:
        self._known = listed["custom_id"].combine_chunks()
        rows = listed["row"].to_numpy()
        self._first = int(rows[0]) if len(rows) and int(rows[-1]) - int(rows[0]) + 1 == len(rows) else None
        self._digits_at = len(str(self._known[0])) - len(str(self._first)) if self._first is not None else 0

    def of(self, ids: pa.ChunkedArray) -> pa.Array:
        """The position of each id; null for one that is not listed."""
        ids = ids.combine_chunks()
        guess = self._guessed(ids)
        if guess is not None:
            return guess
        return pc.cast(pc.index_in(ids, self._known, skip_nulls=True), pa.int64())

    def _guessed(self, ids: pa.Array) -> pa.Array | None:
        """Positions read off the row numbers at the ids' ends, each checked; None where any is not it."""
        if self._first is None or not len(ids) or ids.null_count:
            return None
        try:
            rows = pc.cast(pc.utf8_slice_codeunits(ids, self._digits_at), pa.int64())
        except pa.ArrowInvalid:
            return None
        position = pc.subtract(rows, self._first)
        within = pc.and_(pc.greater_equal(position, 0), pc.less(position, len(self._known)))
        if not pc.all(within).as_py() or not self._known.take(position).equals(ids):
            return None
        return position


def _keep_aside(block: Block, position: pa.Array, places: Places, kind: tuple[str, bool], aside: Path) -> None:
    """Add lines that belong to no row of the batch, or not alone to it, to a file of their own."""
    lines = block.lines()
    of_line = list(range(len(lines)))
    if len(lines) != len(position):  # lines lost the newline between them
        read = [[row[0] for row in line_rows(line, kind[0], several=kind[1])] for line in lines]
        of_line = [number for number, ids in enumerate(read) for _ in ids]
        position = places.of(pa.chunked_array([pa.array([name for ids in read for name in ids], pa.string())]))
    unknown = np.flatnonzero(pc.is_null(position).to_numpy(zero_copy_only=False))
    kept = [lines[number] for number in dict.fromkeys(of_line[index] for index in unknown)]
    with aside.open("ab") as file:
        file.write(b"\n".join(kept) + b"\n")
