"""The main job, end to end, as a stranger runs it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.acceptance.command import ANSWER, CLASSIFY, SAMPLE, SAMPLE_CSV, assert_one_sentence, batchmill, last_json

OWN_COLUMNS = [
    "custom_id",
    "status",
    "answer",
    "finish_reason",
    "error_code",
    "error_message",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "model",
    "deployment",
    "attempt",
    "batch_id",
]


def run_sample(cwd: Path, *more: object, data: Path = SAMPLE, prompt: Path = ANSWER) -> pa.Table:
    """Run the sample over the embedded emulator and read the output."""
    out = cwd / "out.parquet"
    done = batchmill("run", data, "--prompt", prompt, "--service", "emulator", "--out", out, *more, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return pq.read_table(out)


def test_the_sample_comes_back_whole_in_order_with_every_column(tmp_path: Path) -> None:
    """One output row for every input row, the source's columns untouched, the design's columns after them."""
    source = pq.read_table(SAMPLE)
    output = run_sample(tmp_path)
    assert output.column_names == [*source.column_names, *OWN_COLUMNS]
    assert output.select(source.column_names).equals(source)
    assert [field.type for field in output.schema][: source.num_columns] == source.schema.types
    statuses = output["status"].to_pylist()
    assert statuses.count("succeeded") >= 600
    assert set(statuses) == {"succeeded", "skipped"}
    for row in output.select(["status", "answer", "model", "error_code", "batch_id", "attempt"]).to_pylist():
        answered = row["status"] == "succeeded"
        assert (row["answer"] is not None) == answered
        assert (row["error_code"] is None) == answered
        assert (row["attempt"] == 1) == answered
        if answered:
            assert row["model"].startswith("synthetic"), "synthetic answers are labelled in the model column"
    assert pq.read_schema(tmp_path / "out.parquet").metadata[b"batchmill.synthetic"] == b"true"


def test_many_batches_give_the_same_output(tmp_path: Path) -> None:
    """How a corpus is cut changes the batch ids and nothing else."""
    whole = run_sample(tmp_path)
    cut = run_sample(tmp_path, "--max-lines", 100, "--run-dir", tmp_path / "cut")
    with sqlite3.connect(tmp_path / "cut" / "run.db") as db:
        assert db.execute("SELECT count(*) FROM batch WHERE state = 'done'").fetchone()[0] >= 6
    assert cut.drop_columns(["batch_id"]).equals(whole.drop_columns(["batch_id"]))


@pytest.mark.slow
def test_a_quota_smaller_than_the_corpus_gives_the_same_output(tmp_path: Path) -> None:
    """Work waits for quota; the rows come out the same."""
    whole = run_sample(tmp_path)
    small = run_sample(tmp_path, "--quota-tokens", 15_000, "--run-dir", tmp_path / "small", "--poll-seconds", 0.05)
    assert small.drop_columns(["batch_id"]).equals(whole.drop_columns(["batch_id"]))


def test_a_typed_answer_is_a_struct(tmp_path: Path) -> None:
    """A JSON Schema in the prompt types the answer column."""
    output = run_sample(tmp_path, prompt=CLASSIFY)
    assert pa.types.is_struct(output.schema.field("answer").type)
    assert "answer_text" in output.column_names
    answered = output.filter(pa.compute.equal(output["status"], "succeeded"))
    assert answered.num_rows >= 600
    assert answered["answer"].null_count == 0


@pytest.mark.slow
def test_the_same_rows_as_csv_ask_the_same(tmp_path: Path) -> None:
    """CSV columns stay text, and the answers follow the request alone."""
    parquet, csv = run_sample(tmp_path), run_sample(tmp_path, data=SAMPLE_CSV)
    assert csv.num_rows == parquet.num_rows
    assert all(csv.schema.field(name).type in (pa.string(), pa.large_string()) for name in ["id", "question", "year"])
    answered = [row["answer"] for row in parquet.to_pylist() if row["status"] == "succeeded"]
    assert len(set(answered) & set(csv["answer"].to_pylist())) > len(set(answered)) * 0.9


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_file_never_seen_before_runs_without_a_prompt(tmp_path: Path, ending: str) -> None:
    """The text column is found and told, and each row is asked it."""
    frame = pl.DataFrame({"n": [1, 2, 3], "text": ["one", 'tw"o\nlines', "שלוש"]})
    data = tmp_path / f"other.{ending}"
    frame.write_parquet(data) if ending == "parquet" else frame.write_csv(data)
    done = batchmill("run", data, "--service", "emulator", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = pl.read_parquet(tmp_path / last_json(done.stdout)["out"])
    assert output["text"].to_list() == frame["text"].to_list()
    assert output["status"].to_list() == ["succeeded"] * 3
    assert "synthetic" in last_json(done.stdout)["out"]


def test_the_same_command_again_asks_nothing_again(tmp_path: Path) -> None:
    """A finished run is merged again from what is on disk: no new batch, the same output."""
    first = run_sample(tmp_path)
    ledger = next((tmp_path / "runs").glob("*/run.db"))
    with sqlite3.connect(ledger) as db:
        before = db.execute("SELECT count(*) FROM batch").fetchone()
    assert run_sample(tmp_path).equals(first)
    with sqlite3.connect(ledger) as db:
        assert db.execute("SELECT count(*) FROM batch").fetchone() == before


def test_a_source_without_rows_gives_an_empty_output_with_the_full_schema(tmp_path: Path) -> None:
    """Nothing in, nothing out, and exit code 0."""
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    done = batchmill("run", "none.parquet", "--service", "emulator", "--out", "none.out.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = pq.read_table(tmp_path / "none.out.parquet")
    assert output.num_rows == 0
    assert output.column_names == ["text", *OWN_COLUMNS]


def test_plan_counts_and_writes_nothing(tmp_path: Path) -> None:
    """The dry run tells rows, requests and tokens, and leaves the folder as it was."""
    done = batchmill("plan", SAMPLE, "--prompt", ANSWER, "--service", "emulator", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = last_json(done.stdout)
    assert plan["rows"] == pq.read_metadata(SAMPLE).num_rows
    assert plan["requests"] + plan["skipped"] == plan["rows"]
    assert plan["estimated_tokens"] > 0
    assert len(plan["first_requests"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_build_writes_the_files_that_the_service_demands_and_twice_the_same(tmp_path: Path) -> None:
    """UTF-8, no BOM, no blank line, unique ids, one model and url a file; byte-identical when built twice."""
    import orjson

    for name in ("one", "two"):
        done = batchmill(
            "build",
            SAMPLE,
            "--prompt",
            ANSWER,
            "--service",
            "emulator",
            "--run-dir",
            name,
            "--max-lines",
            100,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "one" / "requests").glob("*.jsonl"))
    assert len(files) >= 6
    ids: set[str] = set()
    for file in files:
        content = file.read_bytes()
        assert content == (tmp_path / "two" / "requests" / file.name).read_bytes()
        assert not content.startswith(b"\xef\xbb\xbf")
        assert content.endswith(b"\n")
        lines = content[:-1].split(b"\n")
        assert len(lines) <= 100
        requests = [orjson.loads(line) for line in lines]
        assert {tuple(request) for request in requests} == {("custom_id", "method", "url", "body")}
        assert {(request["method"], request["url"], request["body"]["model"]) for request in requests} == {
            ("POST", "/chat/completions", "gpt-4o-batch")
        }
        fresh = {request["custom_id"] for request in requests}
        assert len(fresh) == len(requests) and not fresh & ids
        ids |= fresh
    refused = batchmill("run", "--run-dir", "one", cwd=tmp_path)
    assert_one_sentence(refused, 2, "--submit")
    done = batchmill("run", "--run-dir", "one", "--submit", "--out", "one.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert pq.read_metadata(tmp_path / "one.parquet").num_rows == pq.read_metadata(SAMPLE).num_rows


def test_status_and_ls_tell_where_runs_stand(tmp_path: Path) -> None:
    """A finished run says so, in words and as JSON."""
    run_sample(tmp_path)
    done = batchmill("status", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = last_json(done.stdout)
    assert found["phase"] == "finished"
    assert found["pending"] == 0
    assert found["succeeded"] + found["skipped"] == found["rows"]
    assert "finished" in batchmill("ls", cwd=tmp_path).stderr


def test_merge_writes_every_format(tmp_path: Path) -> None:
    """The output again, as CSV, JSON lines, Arrow and a folder of parts."""
    whole = run_sample(tmp_path)
    run = next((tmp_path / "runs").iterdir())
    for out in ("o.csv", "o.jsonl", "o.arrow", "parts/"):
        done = batchmill("merge", run, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert pa.ipc.open_file(tmp_path / "o.arrow").read_all().num_rows == whole.num_rows
    assert pl.read_csv(tmp_path / "o.csv", infer_schema=False).height == whole.num_rows
    assert pl.read_ndjson(tmp_path / "o.jsonl", infer_schema_length=None).height == whole.num_rows
    assert (tmp_path / "parts" / "_SUCCESS").exists()
    assert sum(pq.read_metadata(part).num_rows for part in (tmp_path / "parts").glob("*.parquet")) == whole.num_rows
