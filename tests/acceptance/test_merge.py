"""From result files to an output that one can compute with, as a stranger does it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.acceptance.command import CLASSIFY, assert_one_sentence, batchmill, last_json

PROMPT = 'body:\n  model: m\n  messages: [{role: user, content: "{{ text }}"}]\n'
ROWS = 30


def answers(request_file: Path) -> list[bytes]:
    """A result line for each request, its answer naming the row."""
    lines = []
    for line in request_file.read_bytes().split(b"\n")[:-1]:
        custom_id = json.loads(line)["custom_id"]
        body = {"model": "m", "choices": [{"finish_reason": "stop", "message": {"content": f"answer to {custom_id}"}}]}
        lines.append(json.dumps({"custom_id": custom_id, "response": {"status_code": 200, "body": body}}).encode())
    return lines


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder with a run built for upload by hand, in three files."""
    pq.write_table(
        pa.table({"text": [f"t{i}" for i in range(ROWS)], "key": [f"k-{i}" for i in range(ROWS)]}),
        tmp_path / "d.parquet",
    )
    (tmp_path / "p.yaml").write_text(PROMPT)
    build(tmp_path, "r")
    return tmp_path


def build(cwd: Path, run: str, *more: object) -> None:
    """Build a run's request files."""
    done = batchmill(
        "build", "d.parquet", "--prompt", "p.yaml", "--service", "emulator", "--run-dir", run, "--max-lines", 12, *more,
        cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def merge(cwd: Path, *arguments: object) -> Any:
    """Merge with JSON."""
    return batchmill("merge", *arguments, cwd=cwd)


def test_files_downloaded_by_hand_are_found_out_in_any_names_and_mixture(built: Path) -> None:
    """Mixed, shuffled, spread over odd names, in two goes: what is missing is said, then every row has its answer."""
    lines = [line for file in sorted((built / "r" / "requests").glob("*.jsonl")) for line in answers(file)]
    random.Random(1).shuffle(lines)
    downloads = built / "downloads"
    (downloads / "more").mkdir(parents=True)
    (downloads / "file-abc").write_bytes(b"\n".join(lines[:10]))
    (downloads / "more" / "output (1).json").write_bytes(b"\n".join(lines[5:20]) + b"\n")
    (downloads / "notes.txt").write_text("not a result")
    (downloads / "again.jsonl").write_bytes((built / "r" / "requests" / "b000001.jsonl").read_bytes())

    done = merge(built, "r", "--results", "downloads", "--out", "o.parquet")
    assert_one_sentence(done, 4, "lacks results", "--partial")
    assert "rows have no result yet" in done.stderr
    assert not (built / "o.parquet").exists()

    partial = merge(built, "r", "--partial", "--out", "part.parquet")
    assert partial.returncode == 4, partial.stderr
    statuses = pq.read_table(built / "part.parquet")["status"].to_pylist()
    assert (statuses.count("succeeded"), statuses.count("pending")) == (20, 10)

    (downloads / "rest").write_bytes(b"\n".join(lines[20:]))
    done = merge(built, "r", "--results", "downloads", "--out", "o.parquet")
    assert done.returncode == 0, done.stderr
    output = pq.read_table(built / "o.parquet").to_pylist()
    assert [row["text"] for row in output] == [f"t{index}" for index in range(ROWS)]
    assert [row["answer"] for row in output] == [f"answer to {row['custom_id']}" for row in output]
    again = merge(built, "r", "--results", "downloads", "--out", "o.parquet")
    assert again.returncode == 0, again.stderr
    assert pq.read_table(built / "o.parquet").to_pylist() == output


def test_results_of_another_run_are_refused_whole(built: Path) -> None:
    """By their custom_ids; with an id column by unknown ids alone; nothing is taken."""
    (built / "p.yaml").write_text(PROMPT.replace("{{ text }}", "other {{ text }}"))
    build(built, "other")
    (built / "downloads").mkdir()
    (built / "downloads" / "x.jsonl").write_bytes(b"\n".join(answers(built / "other" / "requests" / "b000001.jsonl")))
    assert_one_sentence(merge(built, "r", "--results", "downloads"), 2, "another run", "x.jsonl")
    assert not list((built / "r" / "results").iterdir())
    build(built, "keyed", "--id-column", "key")
    assert_one_sentence(merge(built, "keyed", "--results", "downloads"), 2, "another run", "x.jsonl")
    assert_one_sentence(merge(built, "r", "--results", "nowhere"), 2, "nowhere")


def run_typed(cwd: Path, data: str, out: str, *more: object) -> Any:
    """Run a typed prompt over the emulator."""
    return batchmill(
        "run", data, "--prompt", CLASSIFY, "--service", "emulator", "--out", out, "--limit", 40, *more, cwd=cwd
    )


OWN = {
    **dict.fromkeys(["custom_id", "status", "answer_text", "finish_reason", "error_code", "error_message"], "text"),
    **dict.fromkeys(["prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"], "int64"),
    **{"model": "text", "deployment": "text", "attempt": "int32", "batch_id": "text"},
}
"""The output's own columns and their types, as `docs/output.md` has them; `answer` is a struct beside them."""


def assert_documented_types(path: str, duckdb: Any, pandas: Any) -> None:
    """Each reader finds the documented columns, in the documented types, with the same values."""
    table = pq.read_table(path)
    arrow = {"text": pa.string(), "int64": pa.int64(), "int32": pa.int32()}
    own = [name for name in table.schema.names if name in OWN]
    assert own == list(OWN)
    assert {name: table.schema.field(name).type for name in own} == {name: arrow[kind] for name, kind in OWN.items()}
    words = pa.dictionary(pa.int32(), pa.string())
    fields = {"category": words, "difficulty": pa.int64(), "needs_calculation": pa.bool_()}
    answer = pa.struct({**fields, "keywords": pa.list_(pa.string()), "reason": pa.string()})
    assert table.schema.field("answer").type == answer

    frame = pl.read_parquet(path)
    assert {name: frame.schema[name] for name in own} == {
        name: {"text": pl.String, "int64": pl.Int64, "int32": pl.Int32}[kind] for name, kind in OWN.items()
    }
    assert isinstance(frame.schema["answer"], pl.Struct)

    told = dict(row[:2] for row in duckdb.sql(f"DESCRIBE SELECT * FROM '{path}'").fetchall())
    assert {name: told[name] for name in own} == {
        name: {"text": "VARCHAR", "int64": "BIGINT", "int32": "INTEGER"}[kind] for name, kind in OWN.items()
    }
    assert told["answer"].replace('"', "").startswith("STRUCT(category VARCHAR, difficulty BIGINT")

    answers = [None if row is None else row["difficulty"] for row in table["answer"].to_pylist()]
    assert frame["answer"].struct.field("difficulty").to_list() == answers
    assert [row[0] for row in duckdb.sql(f"SELECT answer.difficulty FROM '{path}'").fetchall()] == answers
    assert [None if row is None else row["difficulty"] for row in pandas.read_parquet(path)["answer"]] == answers


def test_the_output_opens_everywhere_and_can_be_asked_again(tmp_path: Path) -> None:
    """polars, DuckDB and pandas read it; over its own output the columns are `llm_`; over that, --prefix is needed."""
    duckdb, pandas = pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    from tests.acceptance.command import SAMPLE

    done = run_typed(tmp_path, str(SAMPLE), "one.parquet")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "one.parquet")
    path = str(tmp_path / "one.parquet")
    assert_documented_types(path, duckdb, pandas)
    assert pl.read_parquet(path)["answer"].dtype == pl.from_arrow(table)["answer"].dtype  # type: ignore[index]
    assert pandas.read_parquet(path)["custom_id"].tolist() == table["custom_id"].to_pylist()
    status = batchmill("status", "runs/" + next((tmp_path / "runs").iterdir()).name, cwd=tmp_path)
    assert "audit: 40 rows = " in status.stdout + status.stderr
    assert "1 of 1 finished batches agree with the service's counts" in status.stdout + status.stderr
    asked = duckdb.sql(f"SELECT count(*), count(answer) FROM '{path}' WHERE status = 'succeeded'").fetchall()
    answered = table["status"].to_pylist().count("succeeded")
    assert asked == [(answered, answered)]
    facts = pq.read_metadata(path).metadata
    assert facts[b"batchmill.rows_rows"] == b"40"
    assert facts[b"batchmill.rows_succeeded"] == str(answered).encode()
    schema_facts = pq.read_schema(path).metadata
    assert schema_facts[b"batchmill.synthetic"] == b"true" and len(schema_facts[b"batchmill.prompt_hash"]) == 64

    second = run_typed(tmp_path, "one.parquet", "two.parquet")
    assert second.returncode == 0, second.stderr
    assert "llm_answer" in pq.read_schema(tmp_path / "two.parquet").names
    assert_one_sentence(run_typed(tmp_path, "two.parquet", "three.parquet"), 2, "--prefix")
    third = run_typed(tmp_path, "two.parquet", "three.parquet", "--prefix", "third_", "--flatten", "--raw")
    assert third.returncode == 0, third.stderr
    names = pq.read_schema(tmp_path / "three.parquet").names
    assert "third_status" in names and "third_answer" not in names
    assert any(name.startswith("third_answer.") for name in names)
    raw = pq.read_table(tmp_path / "three.parquet")["third_raw"].drop_null().to_pylist()
    assert raw and all("choices" in json.loads(body) for body in raw)


def test_a_folder_of_parts_is_one_dataset(tmp_path: Path) -> None:
    """Read whole by polars, DuckDB and pandas, with `_SUCCESS` beside the parts."""
    duckdb, pandas = pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    from tests.acceptance.command import SAMPLE

    done = run_typed(tmp_path, str(SAMPLE), "parts/", "--max-lines", 10, "--json")
    assert done.returncode == 0, done.stderr
    assert pl.read_parquet(tmp_path / "parts").height == 40
    assert len(pandas.read_parquet(tmp_path / "parts")) == 40
    assert duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/parts/*.parquet'").fetchall() == [(40,)]
    status = last_json(done.stdout)
    assert status["audit"] == []
    assert status["agreement"] == {"batches": 4, "agree": 4}
    merged = status["merged"]
    assert (merged["rows"], merged["shards"]) == (40, 4)
    assert merged["rows"] == merged["succeeded"] + merged["failed"] + merged["skipped"]
    usage = status["usage"]
    output = pq.read_table(tmp_path / "parts")
    assert usage["run"]["prompt_tokens"] == sum(filter(None, output["prompt_tokens"].to_pylist()))
    assert sum(batch["completion_tokens"] for batch in usage["batches"]) == usage["run"]["completion_tokens"]


def test_choices_that_do_not_fit_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    """Typed choices want a typed answer, neutralised formulas a CSV."""
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "d.parquet")
    for flag in ("--flatten", "--keep-invalid", "--retry-invalid"):
        assert_one_sentence(batchmill("run", "d.parquet", "--service", "emulator", flag, cwd=tmp_path), 2, flag)
    refused = batchmill(
        "run", "d.parquet", "--service", "emulator", "--neutralise-formulas", "--out", "o.parquet", cwd=tmp_path
    )
    assert_one_sentence(refused, 2, "CSV")
    assert not (tmp_path / "runs").exists()


def test_a_damaged_run_folder_fails_the_audit(tmp_path: Path) -> None:
    """Exit code 1 and a sentence that names what is wrong; the output that stands there is left as it is."""
    pq.write_table(pa.table({"text": [f"t{i}" for i in range(8)]}), tmp_path / "d.parquet")
    done = batchmill(
        "run", "d.parquet", "--service", "emulator", "--run-dir", "r", "--max-lines", 4, "--out", "o.parquet",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole = (tmp_path / "o.parquet").read_bytes()
    outcomes, rows = tmp_path / "r" / "outcomes", tmp_path / "r" / "rows"
    one, other = outcomes / "b000001.parquet", outcomes / "b000002.parquet"
    shard, next_shard = rows / "000000-000000.parquet", rows / "000000-000001.parquet"
    renumbered = pq.read_table(other)
    renumbered = renumbered.set_column(0, "row", pq.read_table(one)["row"])
    for number, (path, content, word) in enumerate(
        (
            (one, None, "is missing"),
            (one, b"garbage", "cannot be read"),
            (one, other.read_bytes(), "4 rows have no outcome"),
            (one, renumbered, "not those that were asked"),
            (shard, None, "is missing"),
            (shard, pq.read_table(next_shard).slice(0, 3), "4 rows went in and 3 would come out"),
        )
    ):
        held = path.read_bytes()
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pq.write_table(content, path)
        assert_one_sentence(merge(tmp_path, "r", *(["--out", "new.parquet"] if number % 2 else [])), 1, word)
        path.write_bytes(held)
    assert (tmp_path / "o.parquet").read_bytes() == whole
    assert not (tmp_path / "new.parquet").exists()
    assert merge(tmp_path, "r").returncode == 0
