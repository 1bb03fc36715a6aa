"""The output: the source's rows with the answers beside them, shard by shard, slice by slice.

A slice is a row group of a row file; its outcomes are found through row-group statistics of the outcome files. The
source's columns are carried by pyarrow alone. Written beside and published whole. Knows nothing of the service or of
the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import AuditError, UsageError
from pipeline.ids import custom_ids
from pipeline.merge.answers import answer_type, converted
from pipeline.merge.audit import MergeCounts, check_rows
from pipeline.merge.sinks import check_out, open_sink

__all__ = ["MergeCounts", "MergeShard", "OutcomeFile", "check_out", "choose_prefix", "write_output"]

FALLBACK_PREFIX = "llm_"
SKIPPED_CODES = frozenset({"over_quota"})
"""Codes that a service gives for rows that were never executed: skipped, not failed (design, *Outcomes*)."""

_RESERVED = ["__batchmill_bytes", "__batchmill_skip_code", "__batchmill_skip_message"]
_TAKEN = [
    "status",
    "answer",
    "answer_text",
    "finish_reason",
    "error_code",
    "error_message",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "model",
    "attempt",
]
_RANK = {"succeeded": 2, "failed": 1, "retry": 0}


@dataclass(frozen=True, slots=True)
class OutcomeFile:
    """A batch's outcomes; `order` grows with the batches' age."""

    path: Path
    order: int
    batch_id: str
    deployment: str


@dataclass(frozen=True, slots=True)
class MergeShard:
    """A sealed shard and every outcome file that has rows of it."""

    name: str
    row_file: Path
    first_row: int
    stop_row: int
    outcomes: tuple[OutcomeFile, ...]


def own_columns(kind: str, schema: dict[str, Any] | None) -> pa.Schema:
    """The output's own columns, before any prefix."""
    answer = pa.list_(pa.float32()) if kind == "embeddings" else answer_type(schema) if schema else pa.string()
    text = [pa.field("answer_text", pa.string())] if schema else []
    return pa.schema(
        [
            pa.field("custom_id", pa.string()),
            pa.field("status", pa.string()),
            pa.field("answer", answer),
            *text,
            pa.field("finish_reason", pa.string()),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("prompt_tokens", pa.int64()),
            pa.field("completion_tokens", pa.int64()),
            pa.field("cached_tokens", pa.int64()),
            pa.field("reasoning_tokens", pa.int64()),
            pa.field("model", pa.string()),
            pa.field("deployment", pa.string()),
            pa.field("attempt", pa.int32()),
            pa.field("batch_id", pa.string()),
        ]
    )


def choose_prefix(source_schema: pa.Schema, schema: dict[str, Any] | None, asked: str | None) -> str:
    """The prefix of the output's own columns: none, or `llm_` where the source has one of their names.

    Raises:
        UsageError: the prefix asked for, or `llm_`, collides as well.
    """
    names = own_columns("chat", schema).names
    taken = set(source_schema.names)
    for prefix in ("", FALLBACK_PREFIX) if asked is None else (asked,):
        if not any(prefix + name in taken for name in names):
            return prefix
    clash = next(prefix + name for name in names if prefix + name in taken)
    raise UsageError(f"The source has a column {clash!r}, as the output would: choose another prefix with --prefix.")


def write_output(
    shards: Iterable[MergeShard],
    *,
    out: Path,
    kind: str,
    schema: dict[str, Any] | None,
    source_schema: pa.Schema,
    prefix: str,
    custom_id_prefix: str,
    id_column: str | None,
    metadata: dict[str, str],
    partial: bool = False,
    never_sent: str | None = None,
) -> MergeCounts:
    """Write the output of a run.

    Args:
        shards: in row order.
        out: file or folder; see `sinks.check_out`.
        kind: chat, responses or embeddings.
        schema: JSON Schema of a typed answer, or None.
        source_schema: the carried columns.
        prefix: of the output's own columns.
        custom_id_prefix, id_column: what the custom_ids were made of.
        metadata: kept in the file as `batchmill.*`.
        partial: rows without a final outcome are `pending`.
        never_sent: code of rows that were never sent, which then are skipped; None: there are none.

    Raises:
        AuditError: rows out would differ from rows in; nothing is written.
        DiskFullError: no room; nothing is written.
    """
    own = own_columns(kind, schema)
    fields = [*source_schema, *(field.with_name(prefix + field.name) for field in own)]
    told = {f"batchmill.{name}": value for name, value in metadata.items()}
    merged = pa.schema(
        fields, metadata={**(source_schema.metadata or {}), **{k.encode(): v.encode() for k, v in told.items()}}
    )
    merging = _Merging(own, merged, source_schema.names, custom_id_prefix, id_column, partial, never_sent)
    total, expected = MergeCounts(), 0
    with open_sink(out, merged) as sink:
        for shard in shards:
            sink.begin(shard.name)
            counts = MergeCounts()
            for table, found in merging.slices(shard):
                sink.write(table)
                counts = counts.plus(found)
            check_rows(f"shard {shard.name}", shard.stop_row - shard.first_row, counts)
            total = total.plus(counts)
            expected += shard.stop_row - shard.first_row
        check_rows("the output", expected, total)
    return total


@dataclass(frozen=True, slots=True)
class _Merging:
    """What stays the same while shards are merged."""

    own: pa.Schema
    merged: pa.Schema
    carried: list[str]
    custom_id_prefix: str
    id_column: str | None
    partial: bool
    never_sent: str | None

    def slices(self, shard: MergeShard) -> Iterator[tuple[pa.Table, MergeCounts]]:
        """A shard's rows with their outcomes, a row group at a time."""
        outcomes = [_OutcomeReader(file) for file in shard.outcomes]
        row = shard.first_row
        with pq.ParquetFile(shard.row_file, pre_buffer=False) as rows:
            for group in range(rows.num_row_groups):
                block = rows.read_row_group(group)
                found = [reader.rows(row, row + block.num_rows) for reader in outcomes]
                yield self._merged(block, row, found, shard)
                row += block.num_rows

    def _merged(
        self, block: pa.Table, first_row: int, found: list[pa.Table], shard: MergeShard
    ) -> tuple[pa.Table, MergeCounts]:
        count = block.num_rows
        outcomes = pa.concat_tables(found) if found else None
        best, source = _winners(outcomes, [len(table) for table in found], first_row, count)
        columns = self._taken(outcomes, best, count)
        sendable = pc.is_null(block["__batchmill_skip_code"]).to_numpy().astype(bool)
        self._settle(columns, block, best, sendable, shard)
        columns["custom_id"] = self._ids(block, first_row, count)
        answered = best >= 0
        batches = pa.array([file.batch_id for file in shard.outcomes] or [""], pa.string())
        deployments = pa.array([file.deployment for file in shard.outcomes] or [""], pa.string())
        index = pa.array(source, mask=~answered)
        columns["batch_id"] = batches.take(index)
        columns["deployment"] = deployments.take(index)
        answer = self.own.field("answer").type
        if answer != pa.string():
            columns["answer"] = converted(columns["answer"], answer)
        arrays = [*(block[name] for name in self.carried), *(columns[name] for name in self.own.names)]
        table = pa.table(
            [_typed(a, field.type) for a, field in zip(arrays, self.merged, strict=True)], schema=self.merged
        )
        return table, _counts(columns["status"])

    def _taken(self, outcomes: pa.Table | None, best: Any, count: int) -> dict[str, Any]:
        index = pa.array(best, mask=best < 0)
        if outcomes is None or not outcomes.num_rows:
            return {
                name: pa.nulls(
                    count, pa.int32() if name == "attempt" else pa.int64() if name.endswith("_tokens") else pa.string()
                )
                for name in _TAKEN
            }
        return {name: outcomes[name].take(index).combine_chunks() for name in _TAKEN}

    def _settle(self, columns: dict[str, Any], block: pa.Table, best: Any, sendable: Any, shard: MergeShard) -> None:
        """Give every row its one final status."""
        status = columns["status"]
        retry = pc.fill_null(pc.equal(status, "retry"), False)
        status = pc.if_else(retry, "pending" if self.partial else "failed", status)
        over = pc.fill_null(pc.is_in(columns["error_code"], pa.array(sorted(SKIPPED_CODES))), False)
        status = pc.if_else(over, "skipped", status)
        unsent = sendable & (best < 0)
        if unsent.any():
            if not self.partial and self.never_sent is None:
                raise AuditError(
                    f"Shard {shard.name}: {int(unsent.sum()):,} rows have no outcome, although the run is finished: "
                    "the run folder is damaged."
                )
            status = pc.if_else(pa.array(unsent), "pending" if self.partial else "skipped", status)
            if not self.partial:
                columns["error_code"] = pc.if_else(pa.array(unsent), self.never_sent, columns["error_code"])
        skipped = pa.array(~sendable)
        columns["status"] = pc.if_else(skipped, "skipped", status)
        code, message = block["__batchmill_skip_code"], block["__batchmill_skip_message"]
        columns["error_code"] = pc.if_else(skipped, code, columns["error_code"])
        columns["error_message"] = pc.if_else(skipped, message, columns["error_message"])

    def _ids(self, block: pa.Table, first_row: int, count: int) -> pa.Array:
        if self.id_column is not None:
            return pc.cast(block[self.id_column], pa.string())
        return custom_ids(self.custom_id_prefix, pa.array(np.arange(first_row, first_row + count), pa.int64()))


def _typed(values: Any, kind: pa.DataType) -> Any:
    return values if values.type == kind else pc.cast(values, kind)


def _winners(outcomes: pa.Table | None, lengths: list[int], first_row: int, count: int) -> tuple[Any, Any]:
    """For each row the index of its best outcome (-1: none) and of the file it is from.

    A success beats a failure, which beats a row to be asked again; among successes the earliest, otherwise the latest.
    """
    best, source = np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.int64)
    if outcomes is None or not outcomes.num_rows:
        return best, source
    at = outcomes["row"].to_numpy() - first_row
    files = np.repeat(np.arange(len(lengths)), lengths)
    status = outcomes["status"].combine_chunks()
    rank = np.zeros(len(at), dtype=np.int64)
    for name, value in _RANK.items():
        rank[pc.equal(status, name).to_numpy(zero_copy_only=False)] = value
    age = np.where(rank == _RANK["succeeded"], -files, files)
    order = np.lexsort((age, rank))  # the best last: a later write to the same row wins
    best[at[order]] = order
    source[at[order]] = files[order]
    return best, source


def _counts(status: Any) -> MergeCounts:
    found = {entry["values"]: entry["counts"] for entry in pc.value_counts(status).to_pylist()}
    return MergeCounts(
        rows=len(status),
        succeeded=found.get("succeeded", 0),
        failed=found.get("failed", 0),
        skipped=found.get("skipped", 0),
        pending=found.get("pending", 0),
    )


class _OutcomeReader:
    """Rows of one outcome file by range, through row-group statistics; the file is sorted by row."""

    def __init__(self, file: OutcomeFile) -> None:
        self._path = file.path
        metadata = pq.read_metadata(file.path)
        self._ranges = [
            (statistics.min, statistics.max)
            for index in range(metadata.num_row_groups)
            if (statistics := metadata.row_group(index).column(0).statistics)
        ]

    def rows(self, first: int, stop: int) -> pa.Table:
        """The outcomes of rows [first, stop)."""
        groups = [index for index, (low, high) in enumerate(self._ranges) if low < stop and high >= first]
        with pq.ParquetFile(self._path, pre_buffer=False) as file:
            if not groups:
                return file.schema_arrow.empty_table()
            table = file.read_row_groups(groups)
        row = table["row"]
        return table.filter(pc.and_(pc.greater_equal(row, first), pc.less(row, stop)))
