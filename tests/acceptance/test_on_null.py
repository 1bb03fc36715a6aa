"""The null rule on the command line: refused with row and column, remembered, part of what a run is."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.acceptance.command import assert_one_sentence, batchmill, last_json

PROMPT = 'body:\n  model: m\n  messages:\n    - {role: user, content: "> {{ text }}"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a source that has one null, and a prompt."""
    pq.write_table(pa.table({"text": ["a", None, "c"]}), tmp_path / "d.parquet")
    (tmp_path / "p.yaml").write_text(PROMPT)
    return tmp_path


@pytest.mark.parametrize("command", ["plan", "run", "build"])
def test_error_refuses_the_run_before_anything_is_sent(folder: Path, command: str) -> None:
    """A null under `error` ends every command with exit 2 and one sentence that names row and column."""
    done = batchmill(
        command, "d.parquet", "--prompt", "p.yaml", "--service", "emulator", "--on-null", "error", cwd=folder
    )
    assert_one_sentence(done, 2, "Row 1: column text is null, which --on-null error refuses")


def test_the_rule_decides_the_requests_and_names_the_run(folder: Path) -> None:
    """`skip` asks for two rows and `empty` for three, and the two are different runs."""
    plans = {
        rule: last_json(
            batchmill(
                "plan",
                "d.parquet",
                "--prompt",
                "p.yaml",
                "--service",
                "emulator",
                "--on-null",
                rule,
                "--json",
                cwd=folder,
            ).stdout
        )
        for rule in ("skip", "empty")
    }
    assert {rule: (found["requests"], found["skipped"]) for rule, found in plans.items()} == {
        "skip": (2, 1),
        "empty": (3, 0),
    }
    assert plans["skip"]["fingerprint"] != plans["empty"]["fingerprint"]


def test_the_rule_is_kept_with_the_run(folder: Path) -> None:
    """The request files of an `empty` run hold the row with the null, rendered from the row files alone."""
    done = batchmill(
        "run", "d.parquet", "--prompt", "p.yaml", "--service", "emulator", "--on-null", "empty",
        "--run-dir", "r", "--keep-requests", "--out", "o.parquet", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert pq.read_table(folder / "o.parquet")["status"].to_pylist() == ["succeeded"] * 3
    lines = "".join(path.read_text() for path in (folder / "r" / "requests").glob("*.jsonl"))
    assert '"content":"> "' in lines
