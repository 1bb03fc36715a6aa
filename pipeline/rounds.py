"""The rounds of a run: which rows go into which batch, its request file, and what its results mean.

Joins the sealed row files, the ledger and the outcomes, so that the runner need not know any of them. A round's row
list is durable before the ledger knows the batch; leftovers of many batches are pooled into few. Speaks to no
service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.build.packer import Limits, Packer
from pipeline.build.writer import (
    BYTES_COLUMN,
    TOKENS_COLUMN,
    Renders,
    RequestFileOverflow,
    RequestPart,
    write_request_file,
)
from pipeline.claims import Claims, rows_named_in
from pipeline.config import Settings
from pipeline.durable import replacing
from pipeline.errors import BatchmillError
from pipeline.folder import RunFolder
from pipeline.ids import custom_ids
from pipeline.ledger import Ledger
from pipeline.merge.collect import OutcomeSummary, collect_outcomes
from pipeline.results import gives_several
from pipeline.shard import Batch, BatchState, Shard
from pipeline.submit.work import Reading

ROW_LIST = pa.schema(
    [("row", pa.int64()), ("attempts", pa.int32()), ("barren", pa.int32()), ("custom_id", pa.string())]
)
_SIZES = [BYTES_COLUMN, TOKENS_COLUMN]


class Rounds:
    """What the runner asks for; see `pipeline.submit.work.Work`.

    Args:
        folder: the run folder.
        ledger: its ledger, writable.
        settings: as frozen.
        template: compiled against the source's schema.
        max_attempts: executed attempts a row, at most, in one round of `run` or `retry`.
        clock: Unix seconds now.
        keep_requests: keep request files after their results are in.
    """

    def __init__(
        self,
        folder: RunFolder,
        ledger: Ledger,
        settings: Settings,
        template: Renders,
        *,
        max_attempts: int,
        clock: Callable[[], float],
        keep_requests: bool = False,
    ) -> None:
        self._folder, self._ledger, self._settings, self._template = folder, ledger, settings, template
        self._clock, self._keep = clock, keep_requests
        self._max_attempts = max_attempts * int(ledger.get("rounds") or 1)
        self._claims = Claims(folder, ledger)
        self._readings: dict[int, OutcomeSummary] = {}

    # ---- which rows

    def plan_shard(self, shard: int, first_tokens: int | None, tokens_max: int | None) -> None:
        """Freeze the sendable rows of a shard as batches: the first of at most `first_tokens`."""
        found = next(known for known in self._ledger.unbatched(1) if known.shard == shard)
        sizes = self._sizes(found)
        sendable = pc.greater(sizes[BYTES_COLUMN], 0)
        rows = pc.filter(pa.array(np.arange(found.first_row, found.stop_row)), sendable)
        zeros = pa.array(np.zeros(len(rows), dtype=np.int32))
        listed = pa.table([rows, zeros, zeros, pc.filter(sizes["custom_id"], sendable)], schema=ROW_LIST)
        with self._ledger.transaction():
            self._plan(self._claims.unclaimed(listed, after=0), [found], first_tokens, tokens_max)
            self._ledger.mark_batched(shard)

    def pool_leftovers(self, tokens_max: int | None) -> None:
        """Freeze the rows to be asked again, of as many finished batches as fill a file, as few batches."""
        tables, taken, total = [], [], 0
        for batch, count in self._ledger.leftovers():
            outcomes = pq.read_table(
                self._folder.outcomes(f"b{batch:06d}"), columns=["row", "custom_id", "attempt", "barren", "status"]
            )
            outcomes = outcomes.filter(pc.equal(outcomes["status"], "retry"))
            tables.append(self._claims.unclaimed(outcomes, after=batch))
            taken.append(batch)
            total += count
            if total >= self._settings.lines_max:
                break
        found = self._claims.unanswered(pa.concat_tables(tables)).sort_by("row")
        listed = pa.table([found["row"], found["attempt"], found["barren"], found["custom_id"]], schema=ROW_LIST)
        with self._ledger.transaction():
            self.plan_rows(listed, tokens_max)
            for batch in taken:
                self._ledger.place_leftover(batch)

    def plan_rows(self, listed: pa.Table, tokens_max: int | None = None) -> None:
        """Freeze rows of any shards (of `ROW_LIST`, sorted) as few batches; within the caller's transaction."""
        if listed.num_rows:
            self._plan(listed, self._shards_of_rows(listed["row"]), None, tokens_max, kind="pooled")

    def split(self, batch: Batch, first_tokens: int | None, tokens_max: int | None) -> None:
        """Put a batch's rows into smaller ones; it was never accepted."""
        listed = pq.read_table(self._folder.batch_rows(batch.name))
        with self._ledger.transaction():
            left = self._claims.unclaimed(listed, after=batch.batch)
            shards = self._ledger.shards_of(batch.batch)
            self._plan(left, shards, first_tokens, tokens_max, kind=batch.kind, since=batch.since)
            self._ledger.move(batch, BatchState.SPLIT, self._clock(), f"at most {tokens_max} tokens each")

    def _sizes(self, shard: Shard) -> pa.Table:
        """Line bytes, tokens and custom_id of every row of a shard."""
        id_column = self._settings.id_column
        columns = [*_SIZES, id_column] if id_column else _SIZES
        table = pq.read_table(self._folder.row_file(shard.name), columns=columns)
        if id_column:
            ids = pc.cast(table[id_column], pa.string())
        else:
            ids = custom_ids(self._settings.id_prefix, pa.array(np.arange(shard.first_row, shard.stop_row)))
        return table.select(_SIZES).append_column("custom_id", ids)

    def _shards_of_rows(self, rows: pa.ChunkedArray) -> list[Shard]:
        """The shards that hold any of the rows (sorted)."""
        values = rows.to_numpy()
        covering = self._ledger.shards_covering(int(values[0]), int(values[-1]))
        return [
            shard
            for shard in covering
            if np.searchsorted(values, shard.stop_row) > np.searchsorted(values, shard.first_row)
        ]

    def _plan(
        self,
        listed: pa.Table,
        shards: Sequence[Shard],
        first_tokens: int | None,
        tokens_max: int | None,
        *,
        kind: str = "first",
        since: float | None = None,
    ) -> None:
        """Cut a row list into batches within the limits; each list durable before its batch is in the ledger."""
        rows = listed["row"].to_numpy()
        sizes = self._sizes_of(rows, shards)
        caps = [cap for cap in (tokens_max, self._settings.tokens_max) if cap is not None]
        limits = Limits(self._settings.lines_max, self._settings.bytes_max, min(caps, default=None))
        start = 0
        for stop in _cuts(sizes, limits, first_tokens):
            self._freeze(
                listed.slice(start, stop - start), sizes[:, start:stop], shards, kind=kind,
                since=self._clock() if since is None else since,
            )  # fmt: skip
            start = stop

    def _sizes_of(self, rows: np.ndarray, shards: Sequence[Shard]) -> np.ndarray:
        """Line bytes and tokens of rows, as measured at sealing."""
        sizes = np.zeros((2, len(rows)), dtype=np.int64)
        for shard in shards:
            start, stop = np.searchsorted(rows, [shard.first_row, shard.stop_row])
            table = pq.read_table(self._folder.row_file(shard.name), columns=_SIZES)
            for index, name in enumerate(_SIZES):
                sizes[index, start:stop] = table[name].to_numpy()[rows[start:stop] - shard.first_row]
        return sizes

    def _freeze(self, listed: pa.Table, sizes: np.ndarray, shards: Sequence[Shard], *, kind: str, since: float) -> int:
        """Make one batch of a row list; its number."""
        number = self._ledger.next_batch()
        with replacing(self._folder.batch_rows(f"b{number:06d}")) as path:
            pq.write_table(listed, path, compression="zstd")
        rows, counts = listed["row"].to_numpy(), []
        for shard in shards:
            here = np.searchsorted(rows, [shard.first_row, shard.stop_row])
            if here[1] > here[0]:
                counts.append((shard.shard, int(here[1] - here[0])))
        self._ledger.add_batch(
            number, bytes=int(sizes[0].sum()), tokens=int(sizes[1].sum()), shards=counts, kind=kind, since=since
        )
        return number

    # ---- batches found at the service

    def adopt(self, result_like: list[Path], deployment: str, file_id: str, remote_id: str) -> int:
        """Take over a batch whose rows are those named in request or result files; how many rows that are."""
        rows, ids = rows_named_in(result_like, self._settings, self._folder, self._ledger)
        if not len(rows):
            return 0
        zeros = pa.array(np.zeros(len(rows), dtype=np.int32))
        self._take_over(pa.table([rows, zeros, zeros, ids], schema=ROW_LIST), deployment, file_id, remote_id)
        return len(rows)

    def adopt_copy(self, batch: Batch, deployment: str, file_id: str, remote_id: str) -> None:
        """Take over a second batch with the rows of one that is known."""
        listed = pq.read_table(self._folder.batch_rows(batch.name))
        self._take_over(listed, deployment, file_id, remote_id, kind="copy")

    def _take_over(
        self, listed: pa.Table, deployment: str, file_id: str, remote_id: str, *, kind: str = "adopted"
    ) -> None:
        """An adopted batch of these rows; planned batches give them up."""
        shards = self._shards_of_rows(listed["row"])
        with self._ledger.transaction():
            sizes = self._sizes_of(listed["row"].to_numpy(), shards)
            number = self._freeze(listed, sizes, shards, kind=kind, since=self._clock())
            self._ledger.adopt(self._ledger.batch(number), deployment, file_id, remote_id, self._clock())
        self._claims.forget()
        for batch in self._ledger.open_batches():
            if batch.state is BatchState.PLANNED and self._claims.touches(self._folder.batch_rows(batch.name), number):
                self.split(batch, None, None)

    # ---- requests

    def render(self, batch: Batch, model: str) -> Path | None:
        """Write a batch's request file; None where it no longer fits one and smaller batches took its place.

        Args:
            batch: planned.
            model: the `model` of every line: what the deployment is called at its service.
        """
        id_column = self._settings.id_column
        rows = pq.read_table(self._folder.batch_rows(batch.name), columns=["row"])["row"].combine_chunks()
        values = rows.to_numpy()
        parts = []
        for shard in self._ledger.shards_of(batch.batch):
            start, stop = np.searchsorted(values, [shard.first_row, shard.stop_row])
            whole = stop - start == shard.requests
            parts.append(
                RequestPart(
                    row_file=self._folder.row_file(shard.name),
                    first_row=shard.first_row,
                    rows=None if whole else rows.slice(start, stop - start),
                    custom_id_prefix=None if id_column else self._settings.id_prefix,
                    id_column=id_column,
                )
            )
        limits = Limits(self._settings.lines_max, self._settings.bytes_max, None)
        path = self._folder.request(batch.name)
        try:
            written = write_request_file(
                path, parts, self._template, model=model, url=self._settings.url, limits=limits,
                synced=self._keep or bool(self._ledger.get("by_hand")),
            )  # fmt: skip
        except RequestFileOverflow:
            if batch.rows == 1:
                raise BatchmillError(
                    f"Row {values[0]} no longer fits one request file under deployment {batch.deployment!r}."
                ) from None
            self.split(batch, None, max(1, batch.tokens // 2))
            return None
        if written.lines != batch.rows:
            raise BatchmillError(
                f"{batch.name} renders to {written.lines:,} requests for {batch.rows:,} rows: "
                "a row file was changed after sealing."
            )
        return path

    def drop_request(self, batch: Batch) -> None:
        """Delete a request file, unless request files are to be kept."""
        if not self._keep:
            self._folder.request(batch.name).unlink(missing_ok=True)

    # ---- results

    def results_of(self, batch: Batch) -> tuple[Path, Path]:
        """Where a batch's output and error files go."""
        return self._folder.results(batch.name)

    def read(self, batch: Batch) -> Reading:
        """Read a batch's results and write its outcomes, without closing it."""
        summary = self._readings[batch.batch] = self._collected(batch, None)
        return Reading(summary.lines, summary.lost)

    def close(self, batch: Batch, error: tuple[str, str] | None) -> None:
        """Write a collected batch's outcomes and close it; `error`: every row fails with it."""
        summary = self._readings.pop(batch.batch, None)
        if summary is None or error is not None:
            summary = self._collected(batch, error)
        self._ledger.move(
            self._ledger.batch(batch.batch),
            BatchState.DONE,
            self._clock(),
            f"{summary.succeeded} succeeded, {summary.failed} failed, {summary.retry} to be asked again",
            succeeded=summary.succeeded,
            failed=summary.failed,
            leftover=summary.retry,
            prompt_tokens=summary.prompt_tokens,
            completion_tokens=summary.completion_tokens,
            cached_tokens=summary.cached_tokens,
            reasoning_tokens=summary.reasoning_tokens,
            unknown_lines=summary.unknown,
            doubled_lines=summary.doubled,
            malformed_lines=summary.malformed,
            lost_rows=summary.lost,
            answered_rows=summary.answered,
            invalid_answers=summary.invalid,
        )
        self.drop_request(batch)

    def _collected(self, batch: Batch, error: tuple[str, str] | None) -> OutcomeSummary:
        return collect_outcomes(
            batch_rows=self._folder.batch_rows(batch.name),
            result_files=self._folder.results(batch.name),
            kind=self._settings.kind,
            schema=self._settings.answer,
            end_status=batch.remote_status,
            batch_error=error,
            max_attempts=self._max_attempts,
            out=self._folder.outcomes(batch.name),
            several=gives_several(self._settings.kind, self._settings.body),
            retry_invalid=bool(self._ledger.get("retry_invalid")),
            aside=self._folder.path / "results" / f"{batch.name}.unknown.jsonl",
        )


def _cuts(sizes: np.ndarray, limits: Limits, first_tokens: int | None) -> list[int]:
    """Where to cut a list of rows so that each piece is within the limits, the first within `first_tokens` too."""
    count = sizes.shape[1]
    if not count:
        return []
    start = 0
    if first_tokens is not None:
        first = min(first_tokens, limits.tokens_max or first_tokens)
        begins = Packer(Limits(limits.lines_max, limits.bytes_max, first)).cut(sizes[0], sizes[1])
        if not begins:
            return [count]
        start = begins[0]
    rest = Packer(limits).cut(sizes[0, start:], sizes[1, start:])
    return [*([start] if start else []), *(start + begin for begin in rest), count]
