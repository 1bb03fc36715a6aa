"""The output: the source's rows with the answers beside them, shard by shard, slice by slice.

A slice is a row group of a row file; its outcomes are found through row-group statistics of the outcome files. The
source's columns are carried by pyarrow alone. Written beside and published whole. Knows nothing of the service or of
the ledger.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import __version__
from pipeline.ahead import ahead
from pipeline.errors import AuditError, UsageError
from pipeline.ids import custom_ids
from pipeline.merge.answers import converted
from pipeline.merge.audit import MergeCounts, check_rows, telling_damage
from pipeline.merge.outcome_files import MergeShard, OutcomeFile, OutcomeReader, inputs_digest, shard_inputs
from pipeline.merge.shape import Shape, choose_prefix, own_columns
from pipeline.merge.sinks import PARQUET, check_out, open_sink, told_of
from pipeline.outcome import INVALID_ANSWER

__all__ = [
    "MergeCounts",
    "MergeShard",
    "OutcomeFile",
    "Shape",
    "check_out",
    "choose_prefix",
    "own_columns",
    "write_output",
]

SKIPPED_CODES = frozenset({"over_quota"})
"""Codes that a service gives for rows that were never executed: skipped, not failed (design, *Outcomes*)."""

_TAKEN = [
    "custom_id",
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
_RANK = {"succeeded": 3, "failed": 1, "retry": 0}
_KEPT = 2


def write_output(
    shards: Iterable[MergeShard],
    *,
    out: Path,
    shape: Shape,
    source_schema: pa.Schema,
    prefix: str,
    custom_id_prefix: str,
    id_column: str | None,
    metadata: dict[str, str],
    partial: bool = False,
    never_sent: str | None = None,
    neutralise_formulas: bool = False,
) -> MergeCounts:
    """Write the output of a run.

    Args:
        shards: in row order.
        out: file or folder; see `sinks.check_out`.
        shape: what its own columns look like.
        source_schema: the carried columns.
        prefix: of the output's own columns.
        custom_id_prefix, id_column: what the custom_ids were made of.
        metadata: kept in the file as `batchmill.*`.
        partial: rows without a final outcome are `pending`.
        neutralise_formulas: in CSV, write text that a spreadsheet would compute as text.
        never_sent: code of rows that were never sent, which then are skipped; None: there are none.

    Raises:
        AuditError: rows out would differ from rows in; nothing is written.
        DiskFullError: no room; nothing is written.
    """
    own = own_columns(shape)
    fields = [*source_schema, *(field.with_name(prefix + field.name) for field in own)]
    if clash := {prefix + name for name in own.names} & set(source_schema.names):
        raise UsageError(
            f"The source has a column {min(clash)!r}, as the output would: leave --flatten or --raw out, or choose "
            "another prefix with --prefix."
        )
    told = {f"batchmill.{name}": value for name, value in metadata.items()}
    merged = pa.schema(
        fields, metadata={**(source_schema.metadata or {}), **{k.encode(): v.encode() for k, v in told.items()}}
    )
    merging = _Merging(shape, own, merged, source_schema.names, custom_id_prefix, id_column, partial, never_sent)
    shards = list(shards)
    common = inputs_digest(__version__, shape, merged.serialize().to_pybytes(), id_column, partial, never_sent)
    made_of = {shard.name: inputs_digest(common, *shard_inputs(shard)) for shard in shards}
    whole = inputs_digest(common, *made_of.values())
    if out.suffix.lower() in PARQUET and (facts := told_of(out, whole)) is not None:
        return _told_counts(facts)
    total, expected = MergeCounts(), 0
    plain = {prefix + name for name in ("custom_id", "answer", "answer_text", "raw")}
    with open_sink(out, merged, plain=plain, neutralise_formulas=neutralise_formulas) as sink:
        for shard in shards:
            counts = MergeCounts()
            if (facts := sink.begin(shard.name, made_of[shard.name])) is not None:
                counts = _told_counts(facts)
            else:
                for table, found in ahead(merging.slices(shard)):
                    sink.write(table)
                    counts = counts.plus(found)
            check_rows(f"shard {shard.name}", shard.stop_row - shard.first_row, counts)
            total = total.plus(counts)
            expected += shard.stop_row - shard.first_row
            if not out.suffix:
                sink.tell(_facts(counts, made_of[shard.name]))
        check_rows("the output", expected, total)
        if out.suffix:
            sink.tell(_facts(total, whole))
    return total


def _facts(counts: MergeCounts, inputs: str) -> dict[str, str]:
    counted = {f"batchmill.rows_{name}": str(count) for name, count in asdict(counts).items()}
    return {**counted, "batchmill.inputs": inputs}


def _told_counts(facts: dict[str, str]) -> MergeCounts:
    return MergeCounts(**{name: int(facts[f"batchmill.rows_{name}"]) for name in asdict(MergeCounts())})
_SKIPPED = ("__batchmill_skip_code", "__batchmill_skip_message")
"""What row files keep beside the carried columns of why a row cannot be sent."""


@dataclass(frozen=True, slots=True)
class _Merging:
    """What stays the same while shards are merged."""

    shape: Shape
    own: pa.Schema
    merged: pa.Schema
    carried: list[str]
    custom_id_prefix: str
    id_column: str | None
    partial: bool
    never_sent: str | None

    def slices(self, shard: MergeShard) -> Generator[tuple[pa.Table, MergeCounts], None, None]:
        """A shard's rows with their outcomes, a row group or less at a time, so that neither side is large."""
        row = shard.first_row
        wanted = [*dict.fromkeys([*self.carried, *_SKIPPED, *([self.id_column] if self.id_column else [])])]
        with ExitStack() as stack:  # what is kept for requests alone (images, finished bodies) is not read
            outcomes = [stack.enter_context(OutcomeReader(file)) for file in shard.outcomes]
            with telling_damage(shard.row_file):
                rows = stack.enter_context(pq.ParquetFile(shard.row_file, pre_buffer=False))
            for group in range(rows.num_row_groups):
                with telling_damage(shard.row_file):
                    block = rows.read_row_group(group, columns=wanted)
                start = row
                while start < row + block.num_rows:
                    stop = min((reader.reach(start) for reader in outcomes), default=start + block.num_rows)
                    stop = max(start + 1, min(stop, row + block.num_rows))
                    found = [reader.rows(start, stop) for reader in outcomes]
                    yield self._merged(block.slice(start - row, stop - start), start, found, shard)
                    start = stop
                row += block.num_rows

    def _merged(
        self, block: pa.Table, first_row: int, found: list[pa.Table], shard: MergeShard
    ) -> tuple[pa.Table, MergeCounts]:
        count = block.num_rows
        outcomes = pa.concat_tables(found) if found else None
        best, source = _winners(outcomes, [len(table) for table in found], first_row, count, self.shape)
        columns = self._taken(outcomes, best, count)
        sendable = pc.is_null(block[_SKIPPED[0]]).to_numpy().astype(bool)
        self._settle(columns, block, best, sendable, shard)
        answered = best >= 0
        ids = self._ids(block, first_row, count)
        _check_ids(shard, ids, columns["custom_id"], answered)
        columns["custom_id"] = ids
        batches = pa.array([file.batch_id for file in shard.outcomes] or [""], pa.string())
        deployments = pa.array([file.deployment for file in shard.outcomes] or [""], pa.string())
        index = pa.array(source, mask=~answered)
        columns["batch_id"] = batches.take(index)
        columns["deployment"] = deployments.take(index)
        self._type_answers(columns)
        arrays = [*(block[name] for name in self.carried), *(columns[name] for name in self.own.names)]
        table = pa.table(
            [_typed(a, field.type) for a, field in zip(arrays, self.merged, strict=True)], schema=self.merged
        )
        return table, _counts(columns["status"])

    def _type_answers(self, columns: dict[str, Any]) -> None:
        """Answers as their type; the text stays beside those that do not fit it whole."""
        kind = self.shape.answer_type
        if kind != pa.string():
            texts = columns["answer"]
            columns["answer"], lossy = converted(texts, kind, several=self.shape.several and self.shape.kind == "chat")
            if lossy.any():
                columns["answer_text"] = pc.if_else(pa.array(lossy), texts, columns["answer_text"])
        for field in self.shape.flattened:
            columns[f"answer.{field.name}"] = pc.struct_field(columns["answer"], field.name)

    def _taken(self, outcomes: pa.Table | None, best: Any, count: int) -> dict[str, Any]:
        index = pa.array(best, mask=best < 0)
        if outcomes is None or not outcomes.num_rows:
            return {
                name: pa.nulls(
                    count, pa.int32() if name == "attempt" else pa.int64() if name.endswith("_tokens") else pa.string()
                )
                for name in [*_TAKEN, "raw"]
            }
        names = [*_TAKEN, "raw"] if self.shape.raw else _TAKEN
        if len(best) == outcomes.num_rows and (best == np.arange(count)).all():  # usual: one for each row, in order
            return {name: outcomes[name].combine_chunks() for name in names}
        return {name: outcomes[name].take(index).combine_chunks() for name in names}

    def _settle(self, columns: dict[str, Any], block: pa.Table, best: Any, sendable: Any, shard: MergeShard) -> None:
        """Give every row its one final status."""
        status = columns["status"]
        if self.shape.keep_invalid:
            kept = pc.fill_null(pc.equal(columns["error_code"], INVALID_ANSWER), False)
            status = pc.if_else(kept, "succeeded", status)
            for name in ("error_code", "error_message"):
                columns[name] = pc.if_else(kept, pa.scalar(None, pa.string()), columns[name])
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
        code, message = (block[name] for name in _SKIPPED)
        columns["error_code"] = pc.if_else(skipped, code, columns["error_code"])
        columns["error_message"] = pc.if_else(skipped, message, columns["error_message"])

    def _ids(self, block: pa.Table, first_row: int, count: int) -> pa.Array:
        if self.id_column is not None:
            return pc.cast(block[self.id_column].combine_chunks(), pa.string())
        return custom_ids(self.custom_id_prefix, pa.array(np.arange(first_row, first_row + count), pa.int64()))


def _check_ids(shard: MergeShard, ids: pa.Array, answered_ids: pa.Array, answered: Any) -> None:
    """Check that each outcome is that of its row: asked under the very name that the row has.

    Raises:
        AuditError: one is not.
    """
    if not answered.all():
        ids, answered_ids = (found.filter(pa.array(answered)) for found in (ids, answered_ids))
    if not ids.equals(answered_ids):
        raise AuditError(f"Shard {shard.name}: its rows are not those that were asked: the run folder is damaged.")


def _typed(values: Any, kind: pa.DataType) -> Any:
    return values if values.type == kind else pc.cast(values, kind)


def _winners(
    outcomes: pa.Table | None, lengths: list[int], first_row: int, count: int, shape: Shape
) -> tuple[Any, Any]:
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
    if shape.keep_invalid:
        invalid = pc.fill_null(pc.equal(outcomes["error_code"], INVALID_ANSWER), False)
        rank[np.asarray(invalid)] = _KEPT
    age = np.where(rank >= _KEPT if shape.keep_invalid else rank == _RANK["succeeded"], -files, files)
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
