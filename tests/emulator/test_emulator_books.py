"""The books: what each batch was charged for, what twice, and what was ever enqueued; flat in the number of lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from pipeline.emulator import books
from tests.acceptance.command import environment
from tests.emulator.serving import serving


@pytest.mark.parametrize("at_once", [books.IDS_AT_ONCE, 7])
def test_the_books_tell_what_was_charged_and_what_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Failures are not charged; a custom_id in two batches is told; counted whole or in parts, it is the same."""
    monkeypatch.setattr(books, "IDS_AT_ONCE", at_once)
    with serving(tmp_path / "state", instant=True) as served:
        served.order({"on": "line", "kind": "500", "match": "^r-2$"}, {"on": "line", "kind": "lost", "match": "^r-3$"})
        first = served.finished(served.request_lines(40))
        second = served.finished(served.request_lines(5))
        failed = served.finished(b"{\n")
        found = served.service.books()
        assert httpx2.get(f"{served.url}/_emulator/books").json() == found
        estimate = served.service._files.doc(second.input_file_id)["_characters"] // 4
    told = {batch["id"]: batch for batch in found["batches"]}
    assert (told[first.id]["lines"], told[first.id]["charged"]) == (40, 39), "an answer that is lost was paid for"
    assert (told[second.id]["charged"], told[second.id]["tokens"]) == (5, estimate)
    assert (told[failed.id]["charged"], told[failed.id]["tokens"], told[failed.id]["status"]) == (0, 0, "failed")
    assert found["accepted_lines"] == 44
    assert found["enqueued_tokens"] == told[first.id]["tokens"] + estimate
    assert (found["charged_more_than_once"], found["examples"]) == (4, ["r-0", "r-1", "r-3", "r-4"])


def test_custom_ids_of_any_characters_are_counted_as_they_are(tmp_path: Path) -> None:
    """Line ends and quotes in them break no book."""
    with serving(tmp_path / "state", instant=True) as served:
        names = ["a\nb", "a", "b", '"', "\u2028", "ä"]
        line = json.loads(served.request_lines(1))
        content = "".join(json.dumps({**line, "custom_id": name}) + "\n" for name in names).encode()
        assert served.finished(content).request_counts.completed == 6
        assert served.service.books()["charged_more_than_once"] == 0
        served.finished(content)
        assert served.service.books()["charged_more_than_once"] == 6


def test_the_command_reads_the_books_of_a_running_and_of_a_stopped_one(tmp_path: Path) -> None:
    """The same; and a folder that holds none is a sentence and exit code 1."""

    def told(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", "emulator", "books", *words], env=environment(), capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    with serving(tmp_path / "state", instant=True) as served:
        served.finished(served.request_lines(3))
        running = told("--url", served.url)
    stopped = told("--state", str(tmp_path / "state"))
    assert running.returncode == stopped.returncode == 0 and running.stdout == stopped.stdout
    assert json.loads(stopped.stdout)["accepted_lines"] == 3
    none = told("--state", str(tmp_path / "none"))
    assert none.returncode == 1 and none.stderr.count("\n") == 1 and "holds no emulator's state" in none.stderr
