"""Result files to outcomes: whatever happens to the lines, each row gets its own answer or its own failure."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.merge import judging
from pipeline.merge.collect import OUTCOMES, OutcomeSummary, collect_outcomes, collect_raw
from pipeline.merge.output import MergeShard, OutcomeFile, Shape, write_output

ROW_LIST = pa.schema(
    [("row", pa.int64()), ("attempts", pa.int32()), ("barren", pa.int32()), ("custom_id", pa.string())]
)
GRADE = {
    "type": "object",
    "properties": {"score": {"type": "integer"}},
    "required": ["score"],
    "additionalProperties": False,
}


def good(row: int, text: str | None = None) -> bytes:
    """A row's result line; its answer names the row."""
    message = {"content": f"answer of {row}" if text is None else text}
    body = {
        "model": "m",
        "choices": [{"finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1},
    }
    return json.dumps({"custom_id": f"run-{row}", "response": {"status_code": 200, "body": body}}).encode()


def bad(row: int, status: int = 400) -> bytes:
    """A row's failure."""
    body = {"error": {"code": f"code{status}", "message": f"no {row}"}}
    return json.dumps({"custom_id": f"run-{row}", "response": {"status_code": status, "body": body}}).encode()


def collect(
    folder: Path, lines: list[bytes], rows: list[int], *, attempts: int = 0, name: str = "b", **options: Any
) -> tuple[OutcomeSummary, pa.Table]:
    """Collect one batch whose output file has these lines; returns its summary and outcomes."""
    count = len(rows)
    listed = pa.table([rows, [attempts] * count, [0] * count, [f"run-{row}" for row in rows]], schema=ROW_LIST)
    pq.write_table(listed, folder / f"{name}.rows.parquet")
    result = folder / f"{name}.output.jsonl"
    result.write_bytes(b"\n".join(lines))
    given: dict[str, Any] = {"schema": None, "end_status": "completed", "batch_error": None, **options}
    summary = collect_outcomes(
        batch_rows=folder / f"{name}.rows.parquet",
        result_files=[result, folder / "none"],
        kind="chat",
        max_attempts=3,
        out=folder / f"{name}.parquet",
        **given,
    )
    table = pq.read_table(folder / f"{name}.parquet")
    assert table.schema.equals(OUTCOMES)
    assert table["row"].to_pylist() == rows
    return summary, table


def test_answers_join_by_id_in_any_order(tmp_path: Path) -> None:
    """The order of the file means nothing; unknown lines are kept aside, doubled ones counted."""
    lines = [good(7), good(3), good(99), bad(5), good(3, "second"), b"garbage"]
    summary, table = collect(tmp_path, lines, [3, 5, 7])
    assert table["answer"].to_pylist() == ["answer of 3", None, "answer of 7"]
    assert table["status"].to_pylist() == ["succeeded", "failed", "succeeded"]
    assert (summary.unknown, summary.doubled, summary.malformed, summary.lost) == (2, 1, 1, 0)
    assert (summary.prompt_tokens, summary.answered) == (20, 2), "a doubled line is not used twice"
    assert (tmp_path / "b.unknown.jsonl").read_bytes().split(b"\n")[:-1] == [good(99), b"garbage"]


def test_a_usable_line_beats_a_failure_whichever_comes_first(tmp_path: Path) -> None:
    """Best outcome of doubled lines wins, the earliest among equals."""
    for lines in ([bad(1), good(1), good(1, "late")], [good(1), bad(1), good(1, "late")]):
        _, table = collect(tmp_path, lines, [1])
        assert table["answer"].to_pylist() == ["answer of 1"]
    _, table = collect(tmp_path, [bad(1, 400), bad(1, 404)], [1])
    assert table["error_code"].to_pylist() == ["code400"]


@pytest.mark.parametrize(
    ("end", "code", "attempt", "barren"),
    [("completed", "no_result", 1, 0), ("expired", "batch_expired", 0, 1), ("cancelled", "batch_cancelled", 0, 1)],
)
def test_rows_in_neither_file(tmp_path: Path, end: str, code: str, attempt: int, barren: int) -> None:
    """They are asked again; it costs an attempt only where the batch was completed."""
    _, table = collect(tmp_path, [], [1, 2], end_status=end)
    assert table["error_code"].to_pylist() == [code] * 2
    assert table["status"].to_pylist() == ["retry"] * 2
    assert (table["attempt"].to_pylist()[0], table["barren"].to_pylist()[0]) == (attempt, barren)


def test_a_batch_that_failed_as_a_whole_fails_its_rows(tmp_path: Path) -> None:
    """With its code, and without having been tried."""
    _, table = collect(tmp_path, [], [1], batch_error=("invalid_request", "bad"))
    assert table.select(["status", "error_code", "error_message", "attempt"]).to_pylist() == [
        {"status": "failed", "error_code": "invalid_request", "error_message": "bad", "attempt": 0}
    ]


def test_an_answer_that_breaks_its_schema_fails_or_is_asked_again(tmp_path: Path) -> None:
    """Its text is kept; --retry-invalid asks again while attempts are left."""
    lines = [good(1, '{"score": 1}'), good(2, '{"score": "high"}'), good(3, "no JSON")]
    summary, table = collect(tmp_path, lines, [1, 2, 3], schema=GRADE)
    assert table["status"].to_pylist() == ["succeeded", "failed", "failed"]
    assert table["answer"].to_pylist() == ['{"score": 1}', None, None]
    assert table["answer_text"].to_pylist() == [None, '{"score": "high"}', "no JSON"]
    assert summary.invalid == 2
    for attempts, status in ((0, "retry"), (2, "failed")):
        _, table = collect(tmp_path, lines, [1, 2, 3], schema=GRADE, retry_invalid=True, attempts=attempts)
        assert table["status"].to_pylist() == ["succeeded", status, status]


def test_large_results_are_parted_on_disk_with_the_same_outcome(tmp_path: Path) -> None:
    """What does not fit in memory is sorted part by part; nothing is left of the parts."""
    rows = list(range(500))
    lines = [good(row, "x" * 2_000 + str(row)) for row in rows if row % 7] + [bad(0), bad(7, 500)]
    random.Random(1).shuffle(lines)
    summary, whole = collect(tmp_path, lines, rows)
    parted_summary, parted = collect(tmp_path, lines, rows, spill_bytes=50_000)
    assert parted.equals(whole)
    assert parted_summary == summary
    assert not list(tmp_path.glob("parts.*"))


def merged(folder: Path, rows: int, batches: list[str], **shape: Any) -> list[dict[str, Any]]:
    """The output of a shard of so many rows."""
    text = pa.array([f"q{row}" for row in range(rows)])
    none = pa.nulls(rows, pa.string())
    names = ["q", "__batchmill_bytes", "__batchmill_tokens", "__batchmill_skip_code", "__batchmill_skip_message"]
    sizes = pa.array([1] * rows, pa.int64())
    pq.write_table(pa.table([text, sizes, sizes, none, none], names=names), folder / "rows.parquet", row_group_size=4)
    files = tuple(OutcomeFile(folder / f"{name}.parquet", order, name, "d") for order, name in enumerate(batches))
    write_output(
        [MergeShard("000000-000000", folder / "rows.parquet", 0, rows, files)],
        out=folder / "out.parquet",
        shape=Shape("chat", **shape),
        source_schema=pa.schema([("q", pa.string())]),
        prefix="",
        custom_id_prefix="run",
        id_column=None,
        metadata={},
    )
    found: list[dict[str, Any]] = pq.read_table(folder / "out.parquet").to_pylist()
    return found


def test_results_that_grow_are_parted_until_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short answers first, long ones later, and one row with far too many lines: no part is larger than it may be, but
    for that row."""
    rows = list(range(64))
    lines = [good(row) for row in rows] + [good(row, "y" * 20_000 + str(row)) for row in rows]
    lines += [good(5, "z" * 20_000)] * 30
    sizes = []
    seen = judging.best_lines

    def watched(count: int, results: pa.Table, breaks: Any = None) -> Any:
        sizes.append((count, results.nbytes))
        return seen(count, results, breaks)

    monkeypatch.setattr(judging, "best_lines", watched)
    monkeypatch.setattr("pipeline.results.PIECE_BYTES", 30_000)
    summary, table = collect(tmp_path, lines, rows, spill_bytes=100_000)
    assert table["answer"].to_pylist() == [f"answer of {row}" for row in rows]
    assert summary.doubled == 64 + 30
    assert sum(count for count, _ in sizes) == 64
    assert max(size for count, size in sizes if count > 1) < 200_000
    assert not list(tmp_path.glob("parts.*"))


def test_an_answer_that_keeps_to_its_schema_beats_an_earlier_one_that_does_not(tmp_path: Path) -> None:
    """Among doubled lines of a row; its body is the one that is kept."""
    lines = [good(1, "no JSON"), bad(2), good(1, '{"score": 7}'), good(1, '{"score": 8}'), good(2, '{"score": "x"}')]
    summary, table = collect(tmp_path, lines, [1, 2], schema=GRADE)
    assert table["answer"].to_pylist() == ['{"score": 7}', None]
    assert table["error_code"].to_pylist() == [None, "invalid_answer"]
    assert summary.doubled == 3
    collect_raw(
        batch_rows=tmp_path / "b.rows.parquet",
        result_files=[tmp_path / "b.output.jsonl"],
        kind="chat",
        out=tmp_path / "raw.parquet",
        schema=GRADE,
    )
    raw = pq.read_table(tmp_path / "raw.parquet")["raw"].to_pylist()
    assert ["7" in raw[0], "x" in raw[1]] == [True, True]


def test_of_glued_lines_only_those_that_are_unknown_are_kept_aside(tmp_path: Path) -> None:
    """Not the whole block that they stand in."""
    lines = [good(1), good(2) + good(99), good(3)]
    summary, table = collect(tmp_path, lines, [1, 2, 3])
    assert table["status"].to_pylist() == ["succeeded"] * 3
    assert summary.unknown == 1
    assert (tmp_path / "b.unknown.jsonl").read_bytes() == good(2) + good(99) + b"\n"


def test_keep_invalid_and_flatten_shape_the_output(tmp_path: Path) -> None:
    """Kept answers succeed with their text; flattened ones are columns, without `answer`."""
    lines = [good(0, '{"score": 4}'), good(1, '{"score": "high"}')]
    collect(tmp_path, lines, [0, 1], schema=GRADE)
    found = merged(tmp_path, 2, ["b"], schema=GRADE)
    assert [(row["status"], row["answer"], row["answer_text"]) for row in found] == [
        ("succeeded", {"score": 4}, None),
        ("failed", None, '{"score": "high"}'),
    ]
    kept = merged(tmp_path, 2, ["b"], schema=GRADE, flatten=True, keep_invalid=True)
    assert [(row["status"], row["answer.score"], row["answer_text"], row["error_code"]) for row in kept] == [
        ("succeeded", 4, None, None),
        ("succeeded", None, '{"score": "high"}', None),
    ]
    assert "answer" not in kept[0]


def test_raw_bodies_are_those_of_the_answers(tmp_path: Path) -> None:
    """Row by row the body of the line that counts, also when results are parted on disk."""
    rows = list(range(40))
    lines = [bad(3, 500), *(good(row) for row in rows), good(5, "late"), b"garbage"]
    random.Random(2).shuffle(lines)
    collect(tmp_path, lines, rows)
    for spill_bytes in (1, 1 << 20):
        collect_raw(
            batch_rows=tmp_path / "b.rows.parquet",
            result_files=[tmp_path / "b.output.jsonl"],
            kind="chat",
            out=tmp_path / "raw.parquet",
            spill_bytes=spill_bytes,
        )
        answers = pq.read_table(tmp_path / "b.parquet")["answer"].to_pylist()
        bodies = [json.loads(text) for text in pq.read_table(tmp_path / "raw.parquet")["raw"].to_pylist()]
        assert [body["choices"][0]["message"]["content"] for body in bodies] == answers


def test_merging_again_does_only_what_changed(tmp_path: Path) -> None:
    """The same inputs leave the file alone; other outcomes or another shape write it anew."""
    out = tmp_path / "out.parquet"
    collect(tmp_path, [good(row) for row in range(9)], list(range(9)))
    first = merged(tmp_path, 9, ["b"])
    inode = out.stat().st_ino
    assert merged(tmp_path, 9, ["b"]) == first
    assert out.stat().st_ino == inode
    collect(tmp_path, [good(row, f"new {row}") for row in range(9)], list(range(9)))
    assert merged(tmp_path, 9, ["b"])[4]["answer"] == "new 4"
    inode = out.stat().st_ino
    merged(tmp_path, 9, ["b"], several=True)
    assert out.stat().st_ino != inode
