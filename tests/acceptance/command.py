"""The real command as a process, in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "sample_data" / "questions.parquet"
SAMPLE_CSV = ROOT / "sample_data" / "questions.csv"
ANSWER = ROOT / "sample_data" / "answer.yaml"
CLASSIFY = ROOT / "sample_data" / "classify.yaml"


def environment(**more: str) -> dict[str, str]:
    """The environment of a stranger: no service configured."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AZURE_", "OPENAI_", "BATCHMILL_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "dumb", **more}


def batchmill(*arguments: object, cwd: Path, timeout_s: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        cwd=cwd,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def start(*arguments: object, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """Start the command as the leader of a process group."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        cwd=cwd,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and wait for it to be gone."""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)


def last_json(text: str) -> Any:
    """The JSON that a command printed on stdout."""
    return json.loads(text)


def assert_one_sentence(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The exit code, and one line for the user that holds the words; never a traceback."""
    text = done.stderr + done.stdout
    assert done.returncode == code, text
    assert "Traceback" not in text, text
    line = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in line, line
