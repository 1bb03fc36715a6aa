"""What an operator does with a run: one pass, cancel, another round, clean; several deployments; many kill -9."""

from __future__ import annotations

import json
import random
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.acceptance.command import ANSWER, SAMPLE, assert_one_sentence, batchmill, kill, last_json, start
from tests.acceptance.test_interruption import emulator, state_reached

RUN = ("run", SAMPLE, "--prompt", ANSWER, "--max-lines", 100, "--run-dir", "r", "--out", "o.parquet")
PACE = ("--poll-seconds", 0.1, "--model", "m")
FAST = (*PACE, "--yes")


def azure(url: str) -> dict[str, str]:
    """The environment of somebody whose Azure is an emulator."""
    return {"AZURE_OPENAI_ENDPOINT": url, "AZURE_OPENAI_API_KEY": "k"}


def order(url: str, *faults: dict[str, Any]) -> None:
    """Order faults at an emulator."""
    asked = urllib.request.Request(
        f"{url}/_emulator/faults", json.dumps(faults).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(asked).read()


def books(url: str) -> Any:
    """An emulator's books."""
    with urllib.request.urlopen(f"{url}/_emulator/books") as answer:
        return json.load(answer)


def test_tick_by_tick_a_run_is_finished(tmp_path: Path) -> None:
    """Each pass ends by itself, with exit code 4 until the last, which writes the output."""
    with emulator(tmp_path / "state", "--instant") as url:
        with_azure = azure(url)
        process = start(*RUN, *FAST, "--max-lines", 300, cwd=tmp_path, **with_azure)
        while not state_reached(tmp_path / "r" / "run.db", "sealed"):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        codes = []
        for _ in range(60):
            done = batchmill("tick", "r", *FAST, cwd=tmp_path, **with_azure)
            codes.append(done.returncode)
            if done.returncode != 4:
                break
        assert codes[-1] == 0 and codes.count(4) > 1, done.stderr
        assert pq.read_metadata(tmp_path / "o.parquet").num_rows == pq.read_metadata(SAMPLE).num_rows
        assert books(url)["charged_more_than_once"] == 0


def test_a_cancelled_run_keeps_its_answers_and_goes_on_by_retry(tmp_path: Path) -> None:
    """The process that holds the run is asked; what was never sent is skipped; `retry` finishes it, paying once."""
    with emulator(tmp_path / "state", "--speed", "2000", "--quota-tokens", "20000") as url:
        with_azure = azure(url)
        process = start(*RUN, *FAST, "--quota-tokens", 18_000, cwd=tmp_path, **with_azure)
        until = time.monotonic() + 60
        while not state_reached(tmp_path / "r" / "run.db", "done") and time.monotonic() < until:
            time.sleep(0.01)
        order(url, {"on": "batch", "kind": "stall", "times": 100, "seconds": 36_000})
        done = batchmill("cancel", "r", *PACE, cwd=tmp_path, **with_azure)
        assert done.returncode in (0, 3), done.stderr
        process.communicate(timeout=60)
        output = pq.read_table(tmp_path / "o.parquet")
        assert "run_cancelled" in output["error_code"].to_pylist()
        assert "succeeded" in output["status"].to_pylist()
        cleared = urllib.request.Request(f"{url}/_emulator/faults", method="DELETE")
        urllib.request.urlopen(cleared).read()
        assert "pending" not in output["status"].to_pylist()
        assert_one_sentence(batchmill(*RUN, *FAST, cwd=tmp_path, **with_azure), 2, "batchmill retry r")
        assert last_json(batchmill("status", "r", "--json", cwd=tmp_path).stdout)["phase"] == "cancelled"
        done = batchmill("retry", "r", *PACE, cwd=tmp_path, timeout_s=300, **with_azure)
        assert done.returncode == 0, done.stderr
        output = pq.read_table(tmp_path / "o.parquet")
        assert set(output["status"].to_pylist()) == {"succeeded", "skipped"}
        assert books(url)["charged_more_than_once"] == 0


def test_retry_asks_the_failed_rows_again_and_only_those(tmp_path: Path) -> None:
    """Another round: the failed rows in one batch, chosen by code when asked for; the others keep their answers."""
    with emulator(tmp_path / "state", "--speed", "4000") as url:
        with_azure = azure(url)
        order(url, {"on": "line", "kind": "400", "match": "-[0-9]*3$", "times": 10})
        done = batchmill(*RUN, *FAST, cwd=tmp_path, **with_azure)
        assert done.returncode == 3, done.stderr
        before = pq.read_table(tmp_path / "o.parquet")
        assert before["status"].to_pylist().count("failed") == 10
        assert_one_sentence(batchmill("retry", "r", *PACE, "--code", "no", cwd=tmp_path, **with_azure), 2, "no failed")
        done = batchmill("retry", "r", *PACE, "--code", "400", cwd=tmp_path, **with_azure)
        assert done.returncode == 0, done.stderr
        after = pq.read_table(tmp_path / "o.parquet")
        failed = [status == "failed" for status in before["status"].to_pylist()]
        for name in ("answer", "batch_id", "attempt"):
            for was, old, new in zip(failed, before[name].to_pylist(), after[name].to_pylist(), strict=True):
                assert was or old == new
        assert [batch["lines"] for batch in books(url)["batches"]][-1] == 10
        assert_one_sentence(batchmill("retry", "r", *PACE, cwd=tmp_path, **with_azure), 2, "no failed rows")


def test_clean_leaves_what_the_output_is_made_of(tmp_path: Path) -> None:
    """No file stays at the service, and the output can still be written again."""
    with emulator(tmp_path / "state", "--speed", "4000") as url:
        with_azure = azure(url)
        assert batchmill(*RUN, *FAST, cwd=tmp_path, **with_azure).returncode == 0
        whole = pq.read_table(tmp_path / "o.parquet")
        done = batchmill("clean", "r", cwd=tmp_path, **with_azure)
        assert done.returncode == 0, done.stderr
        assert "deleted 16 files" in done.stderr
        asked = urllib.request.Request(f"{url}/openai/files?api-version=2024-10-21", headers={"api-key": "k"})
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer)["data"] == []
        assert not list((tmp_path / "r" / "results").iterdir())
        assert batchmill("merge", "r", cwd=tmp_path).returncode == 0
        assert pq.read_table(tmp_path / "o.parquet").equals(whole)


def test_several_deployments_share_the_rows_and_are_remembered(tmp_path: Path) -> None:
    """Different endpoints, names and keys; a deployment that is not there is set aside, its work goes to the others."""
    swift = ("--speed", "4000")
    with (
        emulator(tmp_path / "one", "--deployments", "left", *swift) as one,
        emulator(tmp_path / "two", *swift) as two,
    ):
        entry = "  - {{name: {}, endpoint: '{}', deployment: {}, key_env: {}, quota_tokens: 30000}}\n"
        (tmp_path / "d.yaml").write_text(
            "deployments:\n"
            + entry.format("west", one, "left", "KEY_ONE")
            + entry.format("east", two, "right", "KEY_TWO")
            + entry.format("gone", one, "nobody", "KEY_ONE")
        )
        keys = {"KEY_ONE": "k1", "KEY_TWO": "k2"}
        done = batchmill(
            *RUN, "--deployments", "d.yaml", "--yes", "--poll-seconds", 0.1, cwd=tmp_path, timeout_s=240, **keys
        )
        assert done.returncode == 0, done.stderr
        assert "gone is set aside" in done.stderr
        output = pq.read_table(tmp_path / "o.parquet")
        assert set(output["deployment"].drop_null().to_pylist()) == {"west", "east"}
        assert books(one)["charged_more_than_once"] == books(two)["charged_more_than_once"] == 0
        sent = sum(status == "succeeded" for status in output["status"].to_pylist())
        assert books(one)["accepted_lines"] + books(two)["accepted_lines"] == sent


def test_a_wrong_deployments_file_is_explained(tmp_path: Path) -> None:
    """One sentence with the place; exit code 2; a key that stands where a name belongs is not repeated."""
    (tmp_path / "d.yaml").write_text("deployments:\n  - {endpoint: 'https://a', deployment: d, key_env: sk-1}")
    done = batchmill(*RUN, "--deployments", "d.yaml", "--yes", cwd=tmp_path)
    assert_one_sentence(done, 2, "d.yaml", "entry 1", "name of an environment")
    assert "sk-1" not in done.stderr


def test_killed_ten_times_at_random_among_faults_and_paid_once(tmp_path: Path, kill_seed: int) -> None:
    """Creates and uploads hang up after their effect or land late, lists lag, SIGKILL whenever: laws 1 to 3 hold."""
    chance = random.Random(kill_seed)
    with emulator(tmp_path / "state", "--speed", "4000") as url:
        with_azure = azure(url)
        order(
            url,
            *[{"on": on, "kind": "hang_up_after", "rate": 0.3} for on in ("create_batch", "upload")],
            # The grace time at this pace is half a second: within it, and long after it.
            *[{"on": "create_batch", "kind": "late", "seconds": seconds, "rate": 0.1} for seconds in (0.2, 3.0)],
            {"on": "list_batches", "kind": "lag", "seconds": 0.3, "rate": 0.3},
            {"on": "list_batches", "kind": "status:503", "rate": 0.1},
        )
        for _ in range(10):
            killed_at_random(tmp_path, chance, **with_azure)
        done = batchmill(*RUN, *FAST, cwd=tmp_path, timeout_s=240, **with_azure)
        assert done.returncode == 0, done.stderr
        output = pq.read_table(tmp_path / "o.parquet")
        source = pq.read_table(SAMPLE)
        assert output.select(source.column_names).equals(source)
        sent = sum(status == "succeeded" for status in output["status"].to_pylist())
        found = books(url)
        assert found["accepted_lines"] == sent >= 600
        assert found["charged_more_than_once"] == 0


def killed_at_random(cwd: Path, chance: random.Random, **env: str) -> None:
    """Start the command and kill it a random number of calls after it has begun to speak to the service."""
    log = cwd / "r" / "run.log"

    def calls() -> int:
        return log.read_bytes().count(b"\n") if log.exists() else 0

    process = start(*RUN, *FAST, cwd=cwd, **env)
    wanted, until = calls() + chance.randrange(1, 12), time.monotonic() + 30
    while calls() < wanted and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(chance.uniform(0.0, 0.02))
    kill(process)
