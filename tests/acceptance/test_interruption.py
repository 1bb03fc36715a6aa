"""Killed, stopped, full, held: a run goes on where it was, and nobody pays twice."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.acceptance.command import ANSWER, SAMPLE, assert_one_sentence, batchmill, environment, kill, start

RUN = (
    "run",
    SAMPLE,
    "--prompt",
    ANSWER,
    "--service",
    "emulator",
    "--max-lines",
    100,
    "--run-dir",
    "r",
    "--out",
    "o.parquet",
)


@contextmanager
def emulator(state: Path, *more: str) -> Iterator[str]:
    """The emulator as a process of its own; yields its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.emulator", "--state", str(state), *more],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.communicate(timeout=30)


def books_of(state: Path) -> dict[str, object]:
    """What the emulator of a finished run has on its books."""
    with emulator(state) as url, urllib.request.urlopen(f"{url}/_emulator/books") as answer:
        found: dict[str, object] = json.load(answer)
        return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The output of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = batchmill(*RUN, cwd=folder)
    assert done.returncode == 0, done.stderr
    return pq.read_table(folder / "o.parquet")


def state_reached(ledger: Path, wanted: str) -> bool:
    """Whether a running process has got to a moment of its run."""
    if not ledger.exists():
        return False
    try:
        with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as db:
            if wanted == "sealed":
                return db.execute("SELECT 1 FROM meta WHERE key = 'sealed'").fetchone() is not None
            return db.execute("SELECT 1 FROM transition WHERE new = ?", (wanted,)).fetchone() is not None
    except sqlite3.OperationalError:
        return False


def stopped_at(cwd: Path, wanted: str, how: int) -> subprocess.Popen[str]:
    """Start a run and send it a signal as soon as it has reached a moment."""
    process = start(*RUN, cwd=cwd)
    until = time.monotonic() + 60
    while not state_reached(cwd / "r" / "run.db", wanted) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    if process.poll() is None:
        process.send_signal(how)
    return process


@pytest.mark.parametrize("moment", [pytest.param("sealed", marks=pytest.mark.slow), "posting", "submitted", "done"])
def test_a_killed_run_goes_on_and_pays_once(tmp_path: Path, undisturbed: pa.Table, moment: str) -> None:
    """SIGKILL, then the same command: the same output but for batch ids, and every sent row charged exactly once."""
    stopped_at(tmp_path, moment, signal.SIGKILL).communicate(timeout=30)
    done = batchmill(*RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = pq.read_table(tmp_path / "o.parquet")
    assert output.drop_columns(["batch_id"]).equals(undisturbed.drop_columns(["batch_id"]))
    books = books_of(tmp_path / "r" / "emulator")
    sent = sum(status != "skipped" for status in output["status"].to_pylist())
    assert books["accepted_lines"] == sent
    assert books["charged_more_than_once"] == 0


def test_a_run_stopped_by_sigterm_says_how_to_go_on(tmp_path: Path, undisturbed: pa.Table) -> None:
    """Exit code 143, a sentence with the command, and that command finishes the run without looking at the source."""
    process = stopped_at(tmp_path, "submitted", signal.SIGTERM)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 143, words
    assert "batchmill run --run-dir r" in words.strip().splitlines()[-1]
    assert "Traceback" not in words
    assert batchmill("status", "r", cwd=tmp_path).returncode == 4
    done = batchmill("run", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        pq.read_table(tmp_path / "o.parquet").drop_columns(["batch_id"]).equals(undisturbed.drop_columns(["batch_id"]))
    )


def test_once_sealed_the_source_may_vanish(tmp_path: Path) -> None:
    """The run goes on from its own row files."""
    shutil.copy(SAMPLE, tmp_path / "data.parquet")
    command = [
        "run",
        "data.parquet",
        "--prompt",
        ANSWER,
        "--service",
        "emulator",
        "--run-dir",
        "r",
        "--out",
        "o.parquet",
    ]
    process = start(*command, cwd=tmp_path)
    while not state_reached(tmp_path / "r" / "run.db", "sealed"):
        time.sleep(0.005)
        assert process.poll() is None
    kill(process)
    source = pq.read_table(tmp_path / "data.parquet")
    (tmp_path / "data.parquet").unlink()
    done = batchmill("run", "--run-dir", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = pq.read_table(tmp_path / "o.parquet")
    assert output.select(source.column_names).equals(source)


def test_a_partial_merge_does_not_disturb_the_run(tmp_path: Path) -> None:
    """What is there is given, the rest is pending, and the exit code says so."""
    stopped_at(tmp_path, "done", signal.SIGKILL).communicate(timeout=30)
    done = batchmill("merge", "r", "--partial", "--out", "part.parquet", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    output = pq.read_table(tmp_path / "part.parquet")
    assert output.num_rows == pq.read_metadata(SAMPLE).num_rows
    assert {"succeeded", "pending"} <= set(output["status"].to_pylist())
    assert_one_sentence(batchmill("merge", "r", cwd=tmp_path), 4, "--partial")


def test_a_held_run_folder_names_its_holder(tmp_path: Path) -> None:
    """One process at a time acts on a run; the other is told which one does."""
    (tmp_path / "r").mkdir()
    with (tmp_path / "r" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        json.dump({"pid": 4711, "host": "here"}, lock)
        lock.flush()
        assert_one_sentence(batchmill(*RUN, cwd=tmp_path), 1, "process 4711 on here")


def test_an_emulator_of_its_own_is_taken_as_azure(tmp_path: Path) -> None:
    """The Azure path over loopback: the same rows, and results remember the deployment."""
    with emulator(tmp_path / "state", "--key", "secret-key", "--speed", "4000") as url:
        azure = {"AZURE_OPENAI_ENDPOINT": url, "AZURE_OPENAI_API_KEY": "secret-key"}
        command = ["run", SAMPLE, "--prompt", ANSWER, "--model", "gpt-4o-batch", "--yes", "--poll-seconds", 0.2]
        done = batchmill(*command, "--out", "o.parquet", cwd=tmp_path, **azure)
        assert done.returncode == 0, done.stderr
        output = pq.read_table(tmp_path / "o.parquet")
        assert output.num_rows == pq.read_metadata(SAMPLE).num_rows
        assert set(output["deployment"].drop_null().to_pylist()) == {"gpt-4o-batch"}
        wrong = {**azure, "AZURE_OPENAI_API_KEY": "another"}
        refused = batchmill(*command, "--run-dir", "w", cwd=tmp_path, **wrong)
        assert_one_sentence(refused, 1, "credentials")
        for path in [*(tmp_path / "w").rglob("*"), *(tmp_path / "runs").rglob("*")]:
            assert path.is_dir() or b"secret-key" not in path.read_bytes(), f"a key is written in {path}"


def test_a_deployment_that_does_not_exist_keeps_the_rows_queued(tmp_path: Path) -> None:
    """Exit code 1 and the deployment's name; the right name then finishes the same run."""
    with emulator(tmp_path / "state", "--deployments", "right", "--speed", "4000") as url:
        azure = {"AZURE_OPENAI_ENDPOINT": url, "AZURE_OPENAI_API_KEY": "k"}
        command = [
            "run",
            SAMPLE,
            "--prompt",
            ANSWER,
            "--yes",
            "--poll-seconds",
            0.2,
            "--run-dir",
            "r",
            "--out",
            "o.parquet",
        ]
        assert_one_sentence(batchmill(*command, "--model", "wrong", cwd=tmp_path, **azure), 1, "wrong")
        done = batchmill(*command, "--model", "right", cwd=tmp_path, **azure)
        assert done.returncode == 0, done.stderr
        assert set(pq.read_table(tmp_path / "o.parquet")["deployment"].drop_null().to_pylist()) == {"right"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_one_sentence_and_resumable(tmp_path: Path, undisturbed: pa.Table) -> None:
    """No room: exit code 1; with room again the same command finishes, and nothing is paid twice."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(mount)], check=False).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        command = [*RUN[:-4], "--run-dir", mount / "r", "--out", tmp_path / "o.parquet"]
        full = batchmill(*command, cwd=tmp_path)
        assert_one_sentence(full, 1, "No room left")
        subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True)
        done = batchmill(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        output = pq.read_table(tmp_path / "o.parquet")
        assert output.drop_columns(["batch_id"]).equals(undisturbed.drop_columns(["batch_id"]))
        assert books_of(mount / "r" / "emulator")["charged_more_than_once"] == 0
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=False)
