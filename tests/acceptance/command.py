"""The real command as a process, in a folder of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "sample_data" / "questions.parquet"
SAMPLE_CSV = ROOT / "sample_data" / "questions.csv"
ANSWER = ROOT / "sample_data" / "answer.yaml"
CLASSIFY = ROOT / "sample_data" / "classify.yaml"


_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    ["openai", "jinja2", "jsonschema", "rich.console", "yaml", "pipeline.cli.commands", "tests.acceptance.command"]
)


def _main(words: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> None:
    """What `python -m pipeline` does, in a process that was just forked."""
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = words
    from pipeline.cli import main

    main()


def environment(**more: str) -> dict[str, str]:
    """The environment of a stranger: no service configured."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AZURE_", "OPENAI_", "BATCHMILL_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "dumb", **more}


def batchmill(*arguments: object, cwd: Path, timeout_s: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end: a process of its own, forked from one that has the libraries loaded already."""
    words = ["batchmill", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "stdout", Path(folder) / "stderr"
        process = _FORKED.Process(target=_main, args=(words, str(cwd), environment(**env), *map(str, told)))
        process.start()
        process.join(timeout_s)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout_s, *(path.read_bytes() for path in told))
        assert process.exitcode is not None
        stdout, stderr = (path.read_text(encoding="utf-8") if path.exists() else "" for path in told)
    return subprocess.CompletedProcess(words, process.exitcode, stdout, stderr)


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
