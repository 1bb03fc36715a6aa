"""A batch's two result files to its outcome file: one line for each row of the batch, sorted by row.

Joins by custom_id, takes the best of doubled lines, and judges rows that stand in neither file. Results larger than
memory should hold are parted by row range on disk and sorted part by part. Knows nothing of shards or of the source.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.durable import replacing
from pipeline.merge.answers import checker
from pipeline.outcome import INVALID_ANSWER, LOST, Verdict, judge
from pipeline.results import RESULTS, read_results

OUTCOMES = pa.schema(
    [
        ("row", pa.int64()),
        ("custom_id", pa.string()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("answer", pa.string()),
        ("answer_text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("reasoning_tokens", pa.int64()),
        ("model", pa.string()),
        ("attempt", pa.int32()),
        ("barren", pa.int32()),
    ]
)
SPILL_BYTES = 96 << 20
GROUP_ROWS = 20_000
GROUP_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class OutcomeSummary:
    """Counts of one batch: rows by verdict, lines that were unknown, doubled or malformed, tokens of all its lines."""

    rows: int
    succeeded: int
    failed: int
    retry: int
    unknown: int
    doubled: int
    malformed: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(slots=True)
class _Tally:
    unknown: int = 0
    doubled: int = 0
    malformed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def collect_outcomes(
    *,
    batch_rows: Path,
    result_files: Sequence[Path],
    kind: str,
    schema: dict[str, Any] | None,
    end_status: str,
    batch_error: tuple[str, str] | None,
    max_attempts: int,
    out: Path,
    spill_bytes: int = SPILL_BYTES,
) -> OutcomeSummary:
    """Write a batch's outcome file.

    Args:
        batch_rows: the frozen row list.
        result_files: output and error file; absent and empty ones hold nothing.
        kind: chat, responses or embeddings.
        schema: JSON Schema of a typed answer, or None.
        end_status: how the batch ended at the service.
        batch_error: code and message of a batch that failed as a whole; every row fails with it.
        max_attempts: executed attempts a row, at most.
        out: the outcome file.
        spill_bytes: results above this are parted on disk.

    Raises:
        DiskFullError: no room.
    """
    listed = pq.read_table(batch_rows)
    tally, counts = _Tally(), dict.fromkeys(Verdict, 0)
    judged = _Judging(kind, schema, end_status, batch_error, max_attempts)
    with replacing(out) as path, pq.ParquetWriter(path, OUTCOMES, compression="zstd", compression_level=1) as writer:
        files = [] if batch_error else result_files
        for rows, results in _parts(listed, files, kind, tally, spill_bytes=spill_bytes, folder=out.parent):
            outcomes = judged.table(rows, results, tally)
            for verdict in pc.value_counts(outcomes["status"]).to_pylist():
                counts[Verdict(verdict["values"])] += verdict["counts"]
            width = max(1, outcomes.nbytes // max(1, outcomes.num_rows))
            writer.write_table(outcomes, row_group_size=max(1, min(GROUP_ROWS, GROUP_BYTES // width)))
    return OutcomeSummary(
        rows=listed.num_rows,
        succeeded=counts[Verdict.SUCCEEDED],
        failed=counts[Verdict.FAILED],
        retry=counts[Verdict.RETRY],
        unknown=tally.unknown,
        doubled=tally.doubled,
        malformed=tally.malformed,
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
    )


def _parts(
    listed: pa.Table, files: Sequence[Path], kind: str, tally: _Tally, *, spill_bytes: int, folder: Path
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """(rows, their results with a `position` column) in row order; one part, or several when results are large."""
    found = _located(listed, files, kind, tally)
    held: list[pa.Table] = []
    size = 0
    for table in found:
        held.append(table)
        size += table.nbytes
        if size > spill_bytes:
            yield from _spilled(listed, held, found, spill_bytes, folder)
            return
    yield listed, pa.concat_tables(held) if held else _empty()


def _spilled(
    listed: pa.Table, held: list[pa.Table], rest: Iterator[pa.Table], spill_bytes: int, folder: Path
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Part results by row position on disk, each part small enough to be sorted in memory."""
    row_bytes = sum(table.nbytes for table in held) / max(1, sum(table.num_rows for table in held))
    step = max(1, int(spill_bytes / 2 / max(1.0, row_bytes)))
    bounds = range(0, listed.num_rows, step)
    scratch = Path(tempfile.mkdtemp(prefix="parts.", suffix=".tmp", dir=folder))
    try:
        writers: dict[int, tuple[pa.OSFile, pa.ipc.RecordBatchStreamWriter]] = {}
        for table in _chained(held, rest):
            parts = pc.divide(table["position"], step).to_numpy()
            for part in np.unique(parts):
                if part not in writers:
                    sink = pa.OSFile(str(scratch / f"{part}.arrow"), "wb")
                    writers[part] = sink, pa.ipc.new_stream(sink, table.schema)
                writers[part][1].write_table(table.filter(pa.array(parts == part)))
        for sink, writer in writers.values():
            writer.close()
            sink.close()
        for part, start in enumerate(bounds):
            path = scratch / f"{part}.arrow"
            results = _empty()
            if path.exists():
                with pa.OSFile(str(path), "rb") as file:
                    results = pa.ipc.open_stream(file).read_all()
            rows = listed.slice(start, step)
            position = pc.subtract(results["position"], start)
            yield rows, results.set_column(results.schema.get_field_index("position"), "position", position)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _chained(held: list[pa.Table], rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    while held:
        yield held.pop(0)
    yield from rest


def _empty() -> pa.Table:
    return RESULTS.append(pa.field("position", pa.int64())).empty_table()


def _located(listed: pa.Table, files: Sequence[Path], kind: str, tally: _Tally) -> Iterator[pa.Table]:
    """Result lines with the position of their row in the batch's list; unknown ones are counted and left out."""
    known = listed["custom_id"].combine_chunks()
    for file in files:
        for table in read_results(file, kind):
            tally.malformed += pc.sum(pc.equal(table["error_code"], "malformed_result")).as_py() or 0
            tally.prompt_tokens += pc.sum(table["prompt_tokens"]).as_py() or 0
            tally.completion_tokens += pc.sum(table["completion_tokens"]).as_py() or 0
            position = pc.index_in(table["custom_id"], known, skip_nulls=True)
            tally.unknown += position.null_count
            located = table.append_column("position", pc.cast(position, pa.int64()))
            yield located.filter(pc.is_valid(position)) if position.null_count else located


class _Judging:
    """Judges the rows of one batch."""

    def __init__(
        self,
        kind: str,
        schema: dict[str, Any] | None,
        end_status: str,
        batch_error: tuple[str, str] | None,
        max_attempts: int,
    ) -> None:
        self._several = kind == "chat"
        self._breaks: Callable[[str], str | None] | None = checker(schema) if schema else None
        self._batch_error, self._max_attempts = batch_error, max_attempts
        self._absent = (LOST, "the row stands in neither result file")
        if end_status in ("expired", "cancelled"):
            self._absent = (f"batch_{end_status}", f"the batch was {end_status} before the row was answered")

    def table(self, rows: pa.Table, results: pa.Table, tally: _Tally) -> pa.Table:
        """The outcomes of a part's rows, in their order."""
        best = self._best(rows.num_rows, results, tally)
        lines = results.take(pa.array(best, mask=best < 0))
        usable = pc.fill_null(lines["usable"], False).to_numpy().astype(bool)
        columns = {name: lines[name].combine_chunks() for name in RESULTS.names}
        columns["answer_text"] = pa.nulls(len(best), pa.string())
        if self._breaks is not None:
            usable = self._check_answers(columns, usable)
        codes = columns["error_code"].to_pylist() if not usable.all() else [None] * len(best)
        statuses, attempts, barrens = self._verdicts(rows, columns, usable, codes)
        arrays = {
            **columns,
            "row": rows["row"].combine_chunks(),
            "custom_id": rows["custom_id"].combine_chunks(),
            "status": statuses,
            "attempt": attempts,
            "barren": barrens,
        }
        return pa.table([pa.array(arrays[field.name], field.type) for field in OUTCOMES], schema=OUTCOMES)

    def _best(self, count: int, results: pa.Table, tally: _Tally) -> np.ndarray[Any, Any]:
        """For each row the index of its best result line, -1 for none: a usable one first, else the first seen."""
        best = np.full(count, -1, dtype=np.int64)
        positions = results["position"].to_numpy()
        usable = pc.fill_null(results["usable"], False).to_numpy().astype(bool)
        order = np.argsort(usable, kind="stable")  # usable lines last; written backwards, so that the first one stays
        best[positions[order[::1]][~usable[order]][::-1]] = order[~usable[order]][::-1]
        best[positions[order][usable[order]][::-1]] = order[usable[order]][::-1]
        tally.doubled += len(positions) - int((best >= 0).sum())
        return best

    def _check_answers(self, columns: dict[str, Any], usable: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Typed answers that break their schema fail, with their text kept."""
        assert self._breaks is not None
        answers = columns["answer"].to_pylist()
        faults = {
            index: fault
            for index in np.flatnonzero(usable).tolist()
            if (fault := self._breaks(answers[index] or "")) is not None
        }
        columns["answer_text"] = _replaced(columns["answer_text"], {index: answers[index] for index in faults})
        columns["answer"] = _replaced(columns["answer"], dict.fromkeys(faults))
        columns["error_code"] = _replaced(columns["error_code"], dict.fromkeys(faults, INVALID_ANSWER))
        columns["error_message"] = _replaced(columns["error_message"], faults)
        good = usable.copy()
        good[list(faults)] = False
        return good

    def _verdicts(
        self, rows: pa.Table, columns: dict[str, Any], usable: np.ndarray[Any, Any], codes: list[str | None]
    ) -> tuple[list[str], Any, Any]:
        attempts, barrens = rows["attempts"].to_numpy() + 1, np.zeros(rows.num_rows, dtype=np.int32)
        statuses = [Verdict.SUCCEEDED.value] * rows.num_rows
        new_codes: dict[int, Any] = {}
        new_messages: dict[int, Any] = {}
        http = columns["http_status"]
        for index in np.flatnonzero(~usable).tolist():
            code, status = codes[index], http[int(index)].as_py()
            before, barren = int(rows["attempts"][int(index)].as_py()), int(rows["barren"][int(index)].as_py())
            if self._batch_error is not None:
                new_codes[index], new_messages[index] = self._batch_error
                statuses[index], attempts[index], barrens[index] = Verdict.FAILED.value, before, barren
                continue
            if code is None:
                code, message = self._absent
                new_codes[index], new_messages[index] = code, message
            judged = judge(
                usable=False,
                http_status=status,
                code=code,
                attempts=before,
                barren=barren,
                max_attempts=self._max_attempts,
            )
            statuses[index], attempts[index], barrens[index] = judged.verdict.value, judged.attempt, judged.barren
        columns["error_code"] = _replaced(columns["error_code"], new_codes)
        columns["error_message"] = _replaced(columns["error_message"], new_messages)
        return statuses, attempts, barrens


def _replaced(column: pa.Array, values: dict[int, Any]) -> pa.Array:
    """A text column with some values replaced."""
    if not values:
        return column
    mask = np.zeros(len(column), dtype=bool)
    order = sorted(values)
    mask[order] = True
    return pc.replace_with_mask(column, pa.array(mask), pa.array([values[index] for index in order], pa.string()))
