"""Law: whatever becomes of result lines on their way, each row gets its right answer or its right failure.

The oracle below knows nothing of the code that it judges: it cuts the bytes at newlines, reads each line with Python's
own `json`, and applies the table of outcomes in a few lines.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import results
from pipeline.merge.collect import collect_outcomes
from pipeline.merge.output import MergeShard, OutcomeFile, Shape, write_output

ROWS, FIRST, ATTEMPTS_MAX = 12, 1_000, 3
SHARDS = [(0, 5), (5, 12)]
FATES = ["answer", "answer", "long", "refused", "busy", "expired", "empty", "lost"]
GARBAGE = [b"\xff\xfe", b'"', b"{", b"}", b",", b"\\", b"\x00", b" ", b"]]]", "\u2028".encode(), b"\r"]


def name_of(row: int, style: str) -> str:
    """The row's custom_id: of a run, or of a column whose values look alike."""
    return {"run": f"run-{FIRST + row}", "words": "x" * (row + 1), "digits": f"{(row * 7 + 3) % 12:02d}"}[style]


def result_line(custom_id: str, row: int, fate: str, nonce: int) -> bytes:
    """What the service says of a row; an answer names its row and is like no other."""
    found: dict[str, Any] = {"custom_id": custom_id, "response": None, "error": None}
    if fate in ("answer", "long", "empty"):
        text = {"answer": f"row<{row}>{nonce}", "long": f"row<{row}>{nonce}" + "é\n" * 300, "empty": None}[fate]
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        body: Any = {"model": "m", "choices": [choice], "usage": {"prompt_tokens": row, "completion_tokens": nonce}}
        found["response"] = {"status_code": 200, "body": body}
    elif fate in ("refused", "busy"):
        body = {"error": {"code": f"{fate}<{row}>", "message": f"row<{row}>"}}
        found["response"] = {"status_code": 400 if fate == "refused" else 429, "body": body}
    else:
        found["error"] = {"code": "batch_expired", "message": f"row<{row}>"}
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


def damaged(line: bytes, chance: random.Random) -> bytes:
    """A line that was cut, or had garbage put into it or over it; nothing makes one id of another."""
    at = chance.randrange(1, len(line))
    how = chance.randrange(4)
    if how == 0:
        return line[:at]
    if how == 1:
        return line[at:]
    return line[:at] + chance.choice(GARBAGE) + line[at + (how == 2) :]


def oracle_line(line: bytes) -> list[tuple[str | None, str | None, str | None, int | None]]:
    """(custom_id, answer, code, status) of each result that stands on a line."""
    try:
        text, at, found = line.decode("utf-8").strip(), 0, []
        while at < len(text):
            value, at = json.JSONDecoder().raw_decode(text, at)
            found.append(value)
            while text[at : at + 1].isspace():
                at += 1
        assert all(isinstance(value, dict) for value in found)
    except (ValueError, AssertionError):
        return [(seen_id(line), None, "malformed_result", None)]
    return [oracle_object(value, line) for value in found]


def seen_id(line: bytes) -> str | None:
    """The id that a broken line still shows."""
    head, mark, tail = line.partition(b'"custom_id":"')
    name, end, _ = tail.partition(b'"')
    return name.decode("ascii") if mark and end and name.isascii() and b"\\" not in name and name else None


def oracle_object(found: dict[str, Any], line: bytes) -> tuple[str | None, str | None, str | None, int | None]:
    custom_id, response, error = found.get("custom_id"), found.get("response"), found.get("error")
    if not isinstance(custom_id, str):
        return seen_id(line), None, "malformed_result", None
    if error:
        return custom_id, None, error.get("code") or "error", None
    if not response:
        return custom_id, None, "malformed_result", None
    status, body = response.get("status_code", 200), response.get("body")
    if status == 200 and isinstance(body, dict) and body.get("error"):  # an error under a status that says nothing
        status = 500
    if status != 200:
        return custom_id, None, ((body or {}).get("error") or {}).get("code") or f"http_{status}", status
    try:
        answer = body["choices"][0]["message"]["content"]
    except (KeyError, TypeError):
        answer = None
    return (custom_id, answer, None, 200) if answer is not None else (custom_id, None, "malformed_result", None)


def oracle(content: list[bytes], names: dict[str, int]) -> dict[int, tuple[str | None, str | None, int | None]]:
    """What a batch's files say of each row: the first answer, else the first failure, else nothing."""
    best: dict[int, tuple[str | None, str | None, int | None]] = {}
    for line in b"\n".join(content).split(b"\n"):
        for custom_id, answer, code, status in oracle_line(line) if line.strip() else ():
            row = names.get(custom_id or "")
            if row is not None and (row not in best or (best[row][0] is None and answer is not None)):
                best[row] = (answer, code, status)
    return best


def asked_again(code: str, status: int | None, attempts: int, barren: int) -> tuple[bool, int, int]:
    """Whether a row is asked again after a failure, and its counts then."""
    if code == "batch_expired":
        return barren + 1 < 3, attempts, barren + 1
    again = code in ("malformed_result", "no_result") or status in (0, 408, 409, 429) or (status or 0) >= 500
    return again and attempts + 1 < ATTEMPTS_MAX, attempts + 1, 0


CASES = given(
    st.randoms(use_true_random=False),
    st.sampled_from(["run", "words", "digits"]),
    st.sampled_from([600, 1 << 20]),
    st.sampled_from([1_500, 1 << 20]),
)


@settings(max_examples=20, deadline=None)
@CASES
def test_each_row_gets_its_right_answer_or_its_right_failure(
    chance: random.Random, style: str, piece_bytes: int, spill_bytes: int
) -> None:
    """Lines interleaved over two files, doubled, lost, foreign, glued and damaged, over several attempts; ids of every
    kind, blocks and parts of every size: status, answer, code, attempts and batch are what the oracle says."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "PIECE_BYTES", piece_bytes)
        play(Path(folder), chance, style, spill_bytes)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@CASES
def test_it_holds_for_many_more(chance: random.Random, style: str, piece_bytes: int, spill_bytes: int) -> None:
    """The same, at length."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "PIECE_BYTES", piece_bytes)
        play(Path(folder), chance, style, spill_bytes)


def play(folder: Path, chance: random.Random, style: str, spill_bytes: int) -> None:
    names = {name_of(row, style): row for row in range(ROWS)}
    expected = {row: (None, None, 0, None) for row in range(ROWS)}  # answer, code, attempts, batch
    open_rows, counts = list(range(ROWS)), dict.fromkeys(range(ROWS), (0, 0))
    batches: list[OutcomeFile] = []
    for order in range(4):
        if not open_rows:
            break
        files = service(chance, open_rows, style, order)
        for number, content in enumerate(files):
            (folder / f"{order}.{number}").write_bytes(content)
        batch = {"row": open_rows, "attempts": [counts[row][0] for row in open_rows]}
        batch |= {"barren": [counts[row][1] for row in open_rows], "custom_id": [name_of(r, style) for r in open_rows]}
        types = pa.schema(
            [("row", pa.int64()), ("attempts", pa.int32()), ("barren", pa.int32()), ("custom_id", pa.string())]
        )
        pq.write_table(pa.table(batch, schema=types), folder / f"{order}.rows.parquet")
        collect_outcomes(
            batch_rows=folder / f"{order}.rows.parquet",
            result_files=[folder / f"{order}.0", folder / f"{order}.1"],
            kind="chat",
            schema=None,
            end_status="completed",
            batch_error=None,
            max_attempts=ATTEMPTS_MAX,
            out=folder / f"{order}.parquet",
            spill_bytes=spill_bytes,
        )
        batches.append(OutcomeFile(folder / f"{order}.parquet", order, f"batch{order}", "d"))
        said = oracle(files, {name: row for name, row in names.items() if row in open_rows})
        left = []
        for row in open_rows:
            answer, code, status = said.get(row, (None, "no_result", None))
            attempts, barren = counts[row]
            again, tried, barren = asked_again(code or "", status, attempts, barren)
            if answer is not None:
                again, tried = False, attempts + 1
            counts[row] = (tried, barren)
            expected[row] = (answer, code, tried, f"batch{order}")  # type: ignore[assignment]
            left += [row] if again else []
        open_rows = left
    for row, found in enumerate(merged(folder, batches, style)):
        answer, code, attempts, batch = expected[row]
        assert (found["custom_id"], found["q"]) == (name_of(row, style), f"q{row}")
        assert found["answer"] == answer
        assert found["status"] == ("failed" if answer is None else "succeeded")
        assert (found["error_code"], found["attempt"], found["batch_id"]) == (code, attempts, batch)
        for other in set(range(ROWS)) - {row}:
            assert f"<{other}>" not in f"{found['answer']} {found['error_code']} {found['error_message']}"


def service(chance: random.Random, rows: list[int], style: str, order: int) -> list[bytes]:
    """The two files of a batch, after everything that may happen to them."""
    files: list[list[bytes]] = [[], []]
    for row in rows:
        fate = chance.choice(FATES)
        if fate == "lost":
            continue
        line = result_line(name_of(row, style), row, fate, chance.randrange(10_000))
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            into = files[chance.random() < 0.3]
            into.append(damaged(line, chance) if chance.random() < 0.15 else line)
        if chance.random() < 0.1:  # another answer, or a failure, of the same row
            files[0].append(result_line(name_of(row, style), row, chance.choice(FATES[:5]), chance.randrange(10_000)))
    files[0] += [result_line(f"other-{FIRST + row}", 99, "answer", order) for row in rows if chance.random() < 0.1]
    files[1] += [b"", b" ", b"null", b"\x00\x00"][: chance.randrange(5)]
    made = []
    for lines in files:
        chance.shuffle(lines)
        ends = [b"" if chance.random() < 0.05 else chance.choice([b"\n", b"\n", b"\r\n"]) for _ in lines]
        made.append(b"".join(line + end for line, end in zip(lines, ends, strict=True)))
    return made


def merged(folder: Path, batches: list[OutcomeFile], style: str) -> list[dict[str, Any]]:
    """The output of two shards."""
    shards = []
    reserved = [f"__batchmill_{name}" for name in ("bytes", "tokens", "skip_code", "skip_message")]
    for number, (first, stop) in enumerate(SHARDS):
        rows, none = range(first, stop), pa.nulls(stop - first, pa.string())
        sizes = pa.array([1] * len(rows), pa.int64())
        own = [pa.array([f"q{row}" for row in rows]), pa.array([name_of(row, style) for row in rows])]
        table = pa.table([*own, sizes, sizes, none, none], names=["q", "key", *reserved])
        pq.write_table(table, folder / f"shard{number}.parquet", row_group_size=3)
        shards.append(
            MergeShard(f"000000-{number:06d}", folder / f"shard{number}.parquet", first, stop, tuple(batches))
        )
    write_output(
        shards,
        out=folder / "out.parquet",
        shape=Shape("chat"),
        source_schema=pa.schema([("q", pa.string()), ("key", pa.string())]),
        prefix="",
        custom_id_prefix="run",
        id_column="key",
        metadata={},
    )
    found: list[dict[str, Any]] = pq.read_table(folder / "out.parquet").to_pylist()
    return found
