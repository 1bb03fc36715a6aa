"""Rows of a batch and their result lines to outcomes: which line counts for a row, and what it means for the row.

Owns the columns of an outcome file. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.merge.answer_check import checker
from pipeline.merge.tally import Tally
from pipeline.outcome import INVALID_ANSWER, LOST, Judgement, Verdict, judge
from pipeline.results import RESULTS

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

GROUP_ROWS = 20_000
"""Rows that are judged at a time, at most; a row group of an outcome file has no more."""

Check = Callable[[str], str | None]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Places = np.ndarray[Any, np.dtype[np.int64]]


class Judging:
    """Judges the rows of one batch."""

    def __init__(
        self,
        schema: dict[str, Any] | None,
        end_status: str,
        batch_error: tuple[str, str] | None,
        max_attempts: int,
        *,
        several: bool,
        retry_invalid: bool,
    ) -> None:
        self._retry_invalid = retry_invalid
        self._breaks: Check | None = checker(schema, several=several) if schema else None
        self._batch_error, self._max_attempts = batch_error, max_attempts
        self._absent = (LOST, "the row stands in neither result file")
        if end_status in ("expired", "cancelled"):
            self._absent = (f"batch_{end_status}", f"the batch was {end_status} before the row was answered")

    def tables(self, parted: Iterable[tuple[pa.Table, pa.Table]], tally: Tally) -> Generator[pa.Table, None, None]:
        """The outcomes of parts of rows with their result lines, in the order of the rows, a group at a time."""
        for rows, results in parted:
            best = best_lines(rows.num_rows, results, self._breaks)
            tally.doubled += results.num_rows - int((best >= 0).sum())
            for start in range(0, rows.num_rows, GROUP_ROWS):
                yield self._table(rows.slice(start, GROUP_ROWS), results, best[start : start + GROUP_ROWS], tally)

    def _table(self, rows: pa.Table, results: pa.Table, best: Places, tally: Tally) -> pa.Table:
        """The outcomes of some rows; `best`: which result line counts for each."""
        lines = results.take(pa.array(best, mask=best < 0))
        usable = pc.fill_null(lines["usable"], False).to_numpy().astype(bool)
        columns = {name: lines[name].combine_chunks() for name in RESULTS.names}
        status = columns["http_status"]
        good = pc.and_(pc.greater_equal(status, 200), pc.less(status, 300))
        tally.answered += pc.sum(good).as_py() or 0
        columns["answer_text"] = pa.nulls(len(best), pa.string())
        if self._breaks is not None:
            usable = self._check_answers(columns, usable, self._breaks)
        columns["row"], columns["custom_id"] = rows["row"].combine_chunks(), rows["custom_id"].combine_chunks()
        self._settle(rows, columns, usable)
        return pa.table([pa.array(columns[field.name], field.type) for field in OUTCOMES], schema=OUTCOMES)

    def _check_answers(self, columns: dict[str, Any], usable: Flags, breaks: Check) -> Flags:
        """Typed answers that break their schema fail, with their text kept."""
        places = np.flatnonzero(usable)
        answers = columns["answer"].take(pa.array(places)).to_pylist()
        faults = [breaks(answer or "") for answer in answers]
        broken = [number for number, fault in enumerate(faults) if fault is not None]
        at = places[broken]
        columns["answer_text"] = _with_values(columns["answer_text"], at, [answers[number] for number in broken])
        columns["answer"] = _with_values(columns["answer"], at, [None] * len(broken))
        columns["error_code"] = _with_values(columns["error_code"], at, [INVALID_ANSWER] * len(broken))
        columns["error_message"] = _with_values(columns["error_message"], at, [faults[number] for number in broken])
        good = usable.copy()
        good[at] = False
        return good

    def _settle(self, rows: pa.Table, columns: dict[str, Any], usable: Flags) -> None:
        """Status, attempts and codes; only rows without a usable answer are looked at one by one."""
        bad = np.flatnonzero(~usable)
        chosen = pa.array(bad)
        attempts, barrens = rows["attempts"].to_numpy() + 1, np.zeros(rows.num_rows, dtype=np.int32)
        statuses, codes, messages = [], [], []
        facts = [
            columns["error_code"],
            columns["error_message"],
            columns["http_status"],
            rows["attempts"],
            rows["barren"],
        ]
        for index, code, message, http_status, before, barren in zip(
            bad.tolist(), *(column.take(chosen).to_pylist() for column in facts), strict=True
        ):
            if self._batch_error is not None:
                code, message = self._batch_error  # noqa: PLW2901 - the batch's own word stands over the line's
                judged = Judgement(Verdict.FAILED, before, barren)
            else:
                if code is None:
                    code, message = self._absent  # noqa: PLW2901
                judged = judge(
                    usable=False,
                    http_status=http_status,
                    code=code,
                    attempts=before,
                    barren=barren,
                    max_attempts=self._max_attempts,
                    retry_invalid=self._retry_invalid,
                )
            attempts[index], barrens[index] = judged.attempt, judged.barren
            statuses.append(judged.verdict.value)
            codes.append(code)
            messages.append(message)
        columns["status"] = _with_values(pa.repeat(Verdict.SUCCEEDED.value, rows.num_rows), bad, statuses)
        columns["error_code"] = _with_values(columns["error_code"], bad, codes)
        columns["error_message"] = _with_values(columns["error_message"], bad, messages)
        columns["attempt"], columns["barren"] = attempts, barrens


def best_lines(count: int, results: pa.Table, breaks: Check | None = None) -> Places:
    """For each row the index of its best result line, -1 for none.

    A usable line comes before a failure, one that keeps to the schema before one that breaks it, and else the first.

    Args:
        count: rows.
        results: their lines, of `PLACED`.
        breaks: what is wrong with an answer under its schema, where there is one.
    """
    best = np.full(count, -1, dtype=np.int64)
    positions = results["position"].to_numpy()
    usable = pc.fill_null(results["usable"], False).to_numpy().astype(bool)
    lines = np.arange(len(positions))
    for chosen in (lines[~usable], lines[usable]):  # backwards, so that the first one stays
        best[positions[chosen][::-1]] = chosen[::-1]
    if breaks is None:
        return best
    doubled = np.flatnonzero(np.bincount(positions[usable], minlength=count) > 1)
    rivals = lines[usable & np.isin(positions, doubled)]
    settled: set[int] = set()
    for line, answer in zip(rivals.tolist(), results["answer"].take(pa.array(rivals)).to_pylist(), strict=True):
        position = int(positions[line])
        if position not in settled and breaks(answer or "") is None:
            best[position] = line
            settled.add(position)
    return best


def _with_values(column: pa.Array, at: Places, values: Sequence[str | None]) -> pa.Array:
    """A text column with other values at some places (sorted)."""
    if not len(at):
        return column
    mask = np.zeros(len(column), dtype=bool)
    mask[at] = True
    return pc.replace_with_mask(column, pa.array(mask), pa.array(values, pa.string()))
