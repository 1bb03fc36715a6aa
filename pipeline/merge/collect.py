"""A batch's two result files to its outcome file: one line for each row of the batch, sorted by row.

Composes the reading of results, their places, and their judgement. Knows nothing of shards or of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.ahead import ahead
from pipeline.durable import replacing
from pipeline.memory import give_back
from pipeline.merge.answer_check import checker
from pipeline.merge.judging import OUTCOMES, Judging, best_lines
from pipeline.merge.parts import parts
from pipeline.merge.places import located
from pipeline.merge.tally import OutcomeSummary, Tally
from pipeline.outcome import Verdict

__all__ = ["OUTCOMES", "OutcomeSummary", "collect_outcomes", "collect_raw"]

_REPEATED = ["status", "error_code", "error_message", "finish_reason", "model", "attempt", "barren"]
SPILL_BYTES = 96 << 20
GROUP_BYTES = 16 << 20


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
    several: bool = False,
    retry_invalid: bool = False,
    aside: Path | None = None,
    spill_bytes: int = SPILL_BYTES,
) -> OutcomeSummary:
    """Write a batch's outcome file.

    Args:
        batch_rows: the frozen row list.
        result_files: output and error file; absent and empty ones hold nothing.
        kind: chat, responses or embeddings.
        schema: JSON Schema of a typed answer, or None.
        end_status: how the batch ended at the service.
        batch_error: code and message of a batch that failed as a whole; every row that its files do not answer fails
            with it.
        max_attempts: executed attempts a row, at most.
        out: the outcome file.
        several: requests ask for several answers.
        retry_invalid: answers that break their schema are asked for again.
        aside: where lines that belong to no row of the batch are kept; by default beside `out`.
        spill_bytes: results above this are parted on disk.

    Raises:
        DiskFullError: no room.
    """
    listed = pq.read_table(batch_rows)
    tally, counts = Tally(), dict.fromkeys(Verdict, 0)
    judged = Judging(schema, end_status, batch_error, max_attempts, several=several, retry_invalid=retry_invalid)
    with replacing(out) as path, _writer(path) as writer:
        found = located(listed, result_files, (kind, several), tally, aside or out.with_suffix(".unknown.jsonl"))
        parted = parts(listed, found, spill_bytes=spill_bytes, folder=out.parent)
        for outcomes in ahead(judged.tables(parted, tally)):
            tally.add_rows(outcomes)
            for verdict in pc.value_counts(outcomes["status"]).to_pylist():
                counts[Verdict(verdict["values"])] += verdict["counts"]
            width = max(1, outcomes.nbytes // max(1, outcomes.num_rows))
            writer.write_table(outcomes, row_group_size=max(1, GROUP_BYTES // width))
            give_back()
    return tally.summary(listed.num_rows, counts)


def _writer(path: Path) -> pq.ParquetWriter:
    """Texts that hardly repeat are written without the detour of a dictionary; row groups are found by `row` alone."""
    return pq.ParquetWriter(path, OUTCOMES, compression="lz4", use_dictionary=_REPEATED, write_statistics=["row"])


RAW = pa.schema([("row", pa.int64()), ("raw", pa.string())])


def collect_raw(
    *,
    batch_rows: Path,
    result_files: Sequence[Path],
    kind: str,
    out: Path,
    schema: dict[str, Any] | None = None,
    several: bool = False,
    spill_bytes: int = SPILL_BYTES,
) -> None:
    """Write the whole response body of each row's best line, as JSON text, beside a batch's outcomes.

    Args:
        batch_rows: the frozen row list.
        result_files: output and error file.
        kind: chat, responses or embeddings.
        out: a file of `RAW`, a line for each row of the batch, in their order.
        schema: JSON Schema of a typed answer, or None.
        several: requests ask for several answers.
        spill_bytes: results above this are parted on disk.
    """
    listed, tally = pq.read_table(batch_rows), Tally()
    found = located(listed, result_files, (kind, several), tally, None, raw=True)
    breaks = checker(schema, several=several) if schema else None
    with replacing(out) as path, pq.ParquetWriter(path, RAW, compression="zstd", use_dictionary=False) as writer:
        for rows, results in parts(listed, found, spill_bytes=spill_bytes, folder=out.parent):
            best = best_lines(rows.num_rows, results, breaks)
            raw = results["raw"].take(pa.array(best, mask=best < 0)).combine_chunks()
            table = pa.table([rows["row"].combine_chunks(), raw], schema=RAW)
            writer.write_table(table, row_group_size=max(1, GROUP_BYTES // max(1, table.nbytes // table.num_rows)))
