"""Inputs through the real command: rows that a selection leaves, and request lines of others, from data to output."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tests.acceptance.command import assert_one_sentence, batchmill


def test_selected_rows_keep_their_place_in_the_source_as_their_number(tmp_path: Path) -> None:
    """A folder with partitions, a condition, a sample and columns: the rows left come out once, in order, with the
    numbers that they have in the source; and the run goes on without the source."""
    for year in (2023, 2024):
        path = tmp_path / "lake" / f"year={year}" / "p.parquet"
        path.parent.mkdir(parents=True)
        table = pa.table({"question": [f"{n} of {year}?" for n in range(30)], "n": range(30), "wide": ["x"] * 30})
        pq.write_table(table, path, row_group_size=7)
    command = [
        "run", "lake", "--service", "emulator", "--where", "n > 20", "--sample", 11, "--limit", 9, "--seed", 5,
        "--columns", "question,year", "--run-dir", "r", "--max-lines", 4,
    ]  # fmt: skip
    (tmp_path / "p.yaml").write_text('body: {messages: [{role: user, content: "{{ question }}"}]}')
    done = batchmill(*command, "--prompt", "p.yaml", "--out", "o.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = pq.read_table(tmp_path / "o.parquet")
    assert output.schema.names[:3] == ["question", "year", "custom_id"]
    assert output["status"].to_pylist() == ["succeeded"] * 9
    numbers = [int(name.rpartition("-")[2]) for name in output["custom_id"].to_pylist()]
    assert numbers == sorted(numbers)
    asked = [(f"{number % 30} of {2023 + number // 30}?", 2023 + number // 30) for number in numbers]
    assert list(zip(output["question"].to_pylist(), output["year"].to_pylist(), strict=True)) == asked
    assert all(number % 30 > 20 for number in numbers)
    other = batchmill(*command, "--prompt", "p.yaml", "--where", "n > 19", cwd=tmp_path)
    assert_one_sentence(other, 2, "another selection of rows")
    shutil.rmtree(tmp_path / "lake")
    again = batchmill("merge", "r", "--out", "again.parquet", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert pq.read_table(tmp_path / "again.parquet").equals(output)


def test_request_lines_of_others_are_cut_anew_and_keep_their_ids(tmp_path: Path) -> None:
    """Two files, more lines than a file may have, two models: checked, bound to the run's model, answered under their
    own custom_ids, in order."""
    for name, count in (("a", 5), ("b", 3)):
        with (tmp_path / f"{name}.jsonl").open("wb") as file:
            for number in range(count):
                body = {"model": f"old-{name}", "messages": [{"role": "user", "content": f"é {number}"}], "top_p": 0.5}
                line = {"custom_id": f"{name} {number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
                file.write(orjson.dumps(line) + b"\n")
    command = ["run", "a.jsonl", "b.jsonl", "--service", "emulator", "--run-dir", "r", "--max-lines", 3]
    assert_one_sentence(batchmill(*command, cwd=tmp_path), 2, "'old-a' in a.jsonl, line 1", "--model")
    done = batchmill(*command, "--model", "new", "--keep-requests", "--out", "o.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = pq.read_table(tmp_path / "o.parquet")
    assert output.schema.names[:3] == ["custom_id", "status", "answer"]
    assert output["custom_id"].to_pylist() == [*(f"a {n}" for n in range(5)), *(f"b {n}" for n in range(3))]
    assert set(output["status"].to_pylist()) == {"succeeded"}
    sent = [path.read_bytes().splitlines() for path in sorted((tmp_path / "r" / "requests").glob("*.jsonl"))]
    assert [len(lines) for lines in sent] == [3, 3, 2]
    line = orjson.loads(sent[0][1])
    assert (line["custom_id"], line["url"]) == ("a 1", "/chat/completions")
    messages = [{"role": "user", "content": "é 1"}]
    assert line["body"] == {"model": "new", "messages": messages, "top_p": 0.5}
    resumed = batchmill("run", "--run-dir", "r", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
