"""Rows that another batch already has: those of batches that were found at the service and taken over.

Such a batch may hold rows of a shard that this ledger has not sent yet, of a batch that it has planned, or of leftovers
that it would pool. Nobody pays twice: whoever plans rows asks here first. Knows nothing of the service.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import Settings
from pipeline.folder import RunFolder
from pipeline.ids import custom_ids
from pipeline.ledger import Ledger

_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*("(?:[^"\\]|\\.)*")')


class Claims:
    """What adopted batches hold.

    Args:
        folder: the run folder.
        ledger: its ledger.
    """

    def __init__(self, folder: RunFolder, ledger: Ledger) -> None:
        self._folder, self._ledger = folder, ledger
        self._adopted: list[int] | None = None

    def forget(self) -> None:
        """Another batch was adopted: look again."""
        self._adopted = None

    def _batches(self, after: int) -> list[int]:
        if self._adopted is None:
            self._adopted = self._ledger.adopted_batches()
        return [number for number in self._adopted if number > after]

    def _rows(self, number: int) -> pa.ChunkedArray:
        return pq.read_table(self._folder.batch_rows(f"b{number:06d}"), columns=["row"])["row"]

    def unclaimed(self, listed: pa.Table, *, after: int) -> pa.Table:
        """The rows of a list that no batch adopted after batch `after` holds."""
        for number in self._batches(after):
            listed = listed.filter(pc.invert(pc.is_in(listed["row"], self._rows(number))))
        return listed

    def touches(self, row_list: Path, number: int) -> bool:
        """Whether a row list shares rows with a batch."""
        rows = pq.read_table(row_list, columns=["row"])["row"]
        return bool(pc.any(pc.is_in(rows, self._rows(number))).as_py())

    def unanswered(self, outcomes: pa.Table) -> pa.Table:
        """The rows that no other batch has answered or still holds; matters only where batches were adopted."""
        if not self._batches(0) or not outcomes.num_rows:
            return outcomes
        seen: set[int] = set()
        for _, number, _, _ in self._ledger.outcome_files():
            if number in seen:
                continue
            seen.add(number)
            done = pq.read_table(self._folder.outcomes(f"b{number:06d}"), columns=["row", "status"])
            good = done.filter(pc.equal(done["status"], "succeeded"))["row"]
            outcomes = outcomes.filter(pc.invert(pc.is_in(outcomes["row"], good)))
        for batch in self._ledger.open_batches():
            outcomes = outcomes.filter(pc.invert(pc.is_in(outcomes["row"], self._rows(batch.batch))))
        # Two batches of the same rows may both leave a row unanswered: it is asked again once.
        _, first = np.unique(outcomes["row"].to_numpy(), return_index=True)
        return outcomes.take(pa.array(first))


def rows_named_in(
    files: Sequence[Path], settings: Settings, folder: RunFolder, ledger: Ledger
) -> tuple[pa.Array, pa.Array]:
    """The rows whose custom_ids stand in request or result files, and those ids; sorted, each once.

    Args:
        files: JSON lines, compressed.
        settings: the run's, for how its ids are made.
        folder, ledger: where an id column's values are looked up.
    """
    if settings.id_column is None:
        numbers = set()
        head = settings.id_prefix + "-"
        for name in _ids_in(files):
            tail = name.removeprefix(head)
            if tail != name and tail.isascii() and tail.isdigit():
                numbers.add(int(tail))
        rows = pa.array(sorted(numbers), pa.int64())
        return rows, custom_ids(settings.id_prefix, rows)
    names = pa.array(sorted(set(_ids_in(files))), pa.string())
    found_rows, found_ids = [], []
    for shard in ledger.shards():
        ids = pc.cast(pq.read_table(folder.row_file(shard.name), columns=[settings.id_column])[0], pa.string())
        here = pc.is_in(ids, names)
        found_rows.append(np.flatnonzero(here.to_numpy()) + shard.first_row)
        found_ids.append(ids.filter(here).combine_chunks())
    rows = pa.array(np.concatenate(found_rows) if found_rows else [], pa.int64())
    return rows, pa.concat_arrays(found_ids) if found_ids else pa.array([], pa.string())


def _ids_in(files: Sequence[Path]) -> Iterator[str]:
    """Every custom_id that stands in JSON lines, also in lines that are cut short."""
    for path in files:
        with pa.input_stream(str(path), compression="zstd") as stream:
            rest = b""
            while piece := stream.read(4 << 20):
                *lines, rest = (rest + piece).split(b"\n")
                yield from filter(None, map(_id_of, lines))
            if name := _id_of(rest):
                yield name


def _id_of(line: bytes) -> str | None:
    try:
        found = orjson.loads(line)
        name = found.get("custom_id") if isinstance(found, dict) else None
        return name if isinstance(name, str) else None
    except orjson.JSONDecodeError:
        seen = _CUSTOM_ID.search(line)
        return orjson.loads(seen[1]) if seen else None
