"""Commands that do little load little: what is not imported cannot be slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ledger import ledger_of

HEAVY = (
    "polars",
    "pyarrow",
    "numpy",
    "openai",
    "httpx2",
    "azure",
    "jinja2",
    "jsonschema",
    "orjson",
    "zstandard",
    "starlette",
)


@pytest.mark.parametrize(
    ("words", "also"),
    [
        (["--help"], ("rich", "sqlite3", "yaml")),
        (["run", "--help"], ("rich", "sqlite3", "yaml")),
        (["status", "r"], ()),
    ],
)
def test_a_command_that_only_tells_loads_no_library_of_the_work(
    tmp_path: Path, words: list[str], also: tuple[str, ...]
) -> None:
    """`--help` loads click alone, `status` the ledger and the screen; neither polars, pyarrow nor the SDK."""
    (tmp_path / "r").mkdir()
    ledger_of(tmp_path / "r" / "run.db", finished=2, planned=1).close()
    seen = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline", *words],
        cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).resolve().parents[1])}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in seen.stderr.splitlines() if "|" in line}
    assert "click" in loaded
    assert sorted(loaded & {*HEAVY, *also}) == []
