"""The rounds of a run: which rows go into which batch, its request file, and what its results mean.

Joins the sealed row files, the ledger and the outcomes, so that the runner need not know any of them. A round's row
list is durable before the ledger knows the batch; leftovers of many batches are pooled into few. Speaks to no
service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.build.packer import Limits
from pipeline.build.template import Template
from pipeline.build.writer import RequestFileOverflow, RequestPart, write_request_file
from pipeline.config import Settings
from pipeline.durable import replacing
from pipeline.errors import BatchmillError
from pipeline.folder import RunFolder
from pipeline.ids import custom_ids
from pipeline.ledger import Ledger
from pipeline.merge.collect import collect_outcomes
from pipeline.shard import Batch, BatchState, Shard

ROW_LIST = pa.schema(
    [("row", pa.int64()), ("attempts", pa.int32()), ("barren", pa.int32()), ("custom_id", pa.string())]
)
_SIZES = ["__batchmill_bytes", "__batchmill_tokens"]


class Rounds:
    """What the runner asks for; see `pipeline.submit.runner.Work`.

    Args:
        folder: the run folder.
        ledger: its ledger, writable.
        settings: as frozen.
        template: compiled against the source's schema.
        deployment: name of the deployment that batches are planned for (the request's `model`).
        max_attempts: executed attempts a row, at most.
        clock: Unix seconds now.
        keep_requests: keep request files after their results are in.
    """

    def __init__(
        self,
        folder: RunFolder,
        ledger: Ledger,
        settings: Settings,
        template: Template,
        *,
        deployment: str,
        max_attempts: int,
        clock: Callable[[], float],
        keep_requests: bool = False,
    ) -> None:
        self._folder, self._ledger, self._settings, self._template = folder, ledger, settings, template
        self._deployment, self._max_attempts, self._clock, self._keep = deployment, max_attempts, clock, keep_requests

    # ---- which rows

    def plan_shard(self, shard: int, tokens_max: int | None) -> None:
        """Freeze the sendable rows of a shard as one batch, or as several where it exceeds `tokens_max`."""
        found = next(known for known in self._ledger.unbatched(1) if known.shard == shard)
        sizes = self._sizes(found)
        sendable = pc.greater(sizes["__batchmill_bytes"], 0)
        rows = pc.filter(pa.array(np.arange(found.first_row, found.stop_row)), sendable)
        zeros = pa.array(np.zeros(len(rows), dtype=np.int32))
        listed = pa.table([rows, zeros, zeros, pc.filter(sizes["custom_id"], sendable)], schema=ROW_LIST)
        with self._ledger.transaction():
            self._plan(listed, [found], tokens_max)
            self._ledger.mark_batched(shard)

    def pool_leftovers(self, tokens_max: int | None) -> None:
        """Freeze the rows to be asked again, of as many finished batches as fill a file, as few batches."""
        tables, taken, total = [], [], 0
        for batch, count in self._ledger.leftovers():
            outcomes = pq.read_table(
                self._folder.outcomes(f"b{batch:06d}"), columns=["row", "custom_id", "attempt", "barren", "status"]
            )
            tables.append(outcomes.filter(pc.equal(outcomes["status"], "retry")))
            taken.append(batch)
            total += count
            if total >= self._settings.lines_max:
                break
        found = pa.concat_tables(tables).sort_by("row")
        listed = pa.table([found["row"], found["attempt"], found["barren"], found["custom_id"]], schema=ROW_LIST)
        shards = self._shards_of_rows(listed["row"])
        with self._ledger.transaction():
            self._plan(listed, shards, tokens_max)
            for batch in taken:
                self._ledger.place_leftover(batch)

    def split(self, batch: Batch, tokens_max: int) -> None:
        """Put a batch's rows into smaller ones; it was never accepted."""
        listed = pq.read_table(self._folder.batch_rows(batch.name))
        with self._ledger.transaction():
            self._plan(listed, self._ledger.shards_of(batch.batch), tokens_max)
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

    def _plan(self, listed: pa.Table, shards: Sequence[Shard], tokens_max: int | None) -> None:
        """Cut a row list into batches within the limits; each list durable before its batch is in the ledger."""
        rows = listed["row"].to_numpy()
        sizes = np.zeros((2, len(rows)), dtype=np.int64)
        for shard in shards:
            start, stop = np.searchsorted(rows, [shard.first_row, shard.stop_row])
            table = pq.read_table(self._folder.row_file(shard.name), columns=_SIZES)
            for index, name in enumerate(_SIZES):
                sizes[index, start:stop] = table[name].to_numpy()[rows[start:stop] - shard.first_row]
        caps = [cap for cap in (tokens_max, self._settings.tokens_max) if cap is not None]
        start = 0
        for stop in _cuts(
            sizes[0], sizes[1], self._settings.lines_max, self._settings.bytes_max, min(caps, default=None)
        ):
            number = self._ledger.next_batch()
            with replacing(self._folder.batch_rows(f"b{number:06d}")) as path:
                pq.write_table(listed.slice(start, stop - start), path, compression="zstd")
            counts = []
            for shard in shards:
                here = np.searchsorted(rows[start:stop], [shard.first_row, shard.stop_row])
                if here[1] > here[0]:
                    counts.append((shard.shard, int(here[1] - here[0])))
            self._ledger.add_batch(
                number,
                self._deployment,
                bytes=int(sizes[0, start:stop].sum()),
                tokens=int(sizes[1, start:stop].sum()),
                shards=counts,
            )
            start = stop

    # ---- requests

    def render(self, batch: Batch) -> Path | None:
        """Write a batch's request file; None where it no longer fits one and smaller batches took its place."""
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
                path, parts, self._template, model=batch.deployment, url=self._settings.url, limits=limits
            )
        except RequestFileOverflow:
            if batch.rows == 1:
                raise BatchmillError(
                    f"Row {values[0]} no longer fits one request file under deployment {batch.deployment!r}."
                ) from None
            self.split(batch, max(1, batch.tokens // 2))
            return None
        if written.lines != batch.rows:
            raise BatchmillError(
                f"{batch.name} renders to {written.lines:,} requests for {batch.rows:,} rows: "
                "a row file was changed after sealing."
            )
        return path

    def drop_request(self, batch: Batch) -> None:
        """Delete a request file whose results are on disk."""
        if not self._keep:
            self._folder.request(batch.name).unlink(missing_ok=True)

    # ---- results

    def results_of(self, batch: Batch) -> tuple[Path, Path]:
        """Where a batch's output and error files go."""
        return self._folder.results(batch.name)

    def collect(self, batch: Batch, error: tuple[str, str] | None) -> None:
        """Write a collected batch's outcomes and close it."""
        summary = collect_outcomes(
            batch_rows=self._folder.batch_rows(batch.name),
            result_files=self._folder.results(batch.name),
            kind=self._settings.kind,
            schema=self._settings.answer,
            end_status=batch.remote_status,
            batch_error=error,
            max_attempts=self._max_attempts,
            out=self._folder.outcomes(batch.name),
        )
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
        )


def _cuts(
    line_bytes: np.ndarray, tokens: np.ndarray, lines_max: int, bytes_max: int, tokens_max: int | None
) -> list[int]:
    """Where to cut a list of rows so that each piece is within the limits; at least one row a piece."""
    bytes_sum, tokens_sum = np.cumsum(line_bytes), np.cumsum(tokens)
    cuts: list[int] = []
    start = 0
    while start < len(line_bytes):
        before_bytes = bytes_sum[start - 1] if start else 0
        stop = min(start + lines_max, int(np.searchsorted(bytes_sum, before_bytes + bytes_max, side="right")))
        if tokens_max is not None:
            before_tokens = tokens_sum[start - 1] if start else 0
            stop = min(stop, int(np.searchsorted(tokens_sum, before_tokens + tokens_max, side="right")))
        start = max(stop, start + 1)
        cuts.append(start)
    return cuts


def with_model(settings: Settings, model: str) -> Settings:
    """The settings for another deployment of the same run."""
    return replace(settings, model=model)
