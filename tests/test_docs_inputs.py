"""The examples of docs/inputs.md are run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.cli import cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "inputs.md"
EXAMPLES = re.findall(r"^\$ batchmill (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
ROWS = {
    "plan lake --service": 40, "'lake/year=2024": 20, "lake/year=2023/a": 40, "people": 2, "--where": 3, "requests": 3,
}  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the examples speak of."""
    for year, name in ((2023, "a"), (2024, "b")):
        path = tmp_path / "lake" / f"year={year}" / f"{name}.parquet"
        path.parent.mkdir(parents=True)
        questions = [f"question {number} of {year}" for number in range(20)]
        score = [None if number % 5 == 0 else number for number in range(20)]
        pq.write_table(pa.table({"question": questions, "score": score}), path)
    (tmp_path / "lake" / "_SUCCESS").touch()
    (tmp_path / "people.csv").write_bytes("name;text\n'Zoë; Max';'a\nb'\n007;€\n".encode("cp1252"))
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/chat/completions", "body": body}
    lines = [orjson.dumps({**line, "custom_id": f"a-{number}"}) for number in range(3)]
    (tmp_path / "requests.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "broken.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.usefixtures("corpus")
def test_an_example_of_the_page_runs(example: str) -> None:
    """It ends well, and counts the rows that the page's words promise."""
    words = shlex.split(example)
    planned = words[0] == "plan"
    done = CliRunner().invoke(cli, [*words, "--json"], standalone_mode=False)
    assert done.exception is None, done.exception
    told = orjson.loads(done.stdout)
    if planned:
        assert told["rows"] == next(rows for start, rows in ROWS.items() if start in example)
    else:
        assert (told["faults"], done.return_value) == (0, 0)
