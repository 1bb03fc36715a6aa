"""What bad input gets: one sentence, the documented exit code, nothing sent."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.acceptance.command import SAMPLE, assert_one_sentence, batchmill

PROMPT = 'body:\n  model: m\n  messages:\n    - {role: user, content: "CONTENT"}\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small, sound source."""
    pq.write_table(pa.table({"question": ["a?", "b?"], "other": ["x", "y"]}), tmp_path / "data.parquet")
    return tmp_path / "data.parquet"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.parquet", None, ["missing.parquet"]),
        ("empty.parquet", b"", ["empty.parquet"]),
        ("empty.csv", b"", ["empty.csv"]),
        ("data.xlsx", b"PK", [".parquet", ".csv"]),
        ("text.parquet", b"id,question\n1,a\n", ["text.parquet"]),
        ("short.csv", b"a,question\n1,x\n2\n", ["short.csv", "3"]),
    ],
)
def test_a_bad_source_is_named(tmp_path: Path, name: str, content: bytes | None, words: list[str]) -> None:
    """Missing, empty, of another kind, or with a short row: exit code 2 and the file's name."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_one_sentence(batchmill("run", name, "--service", "emulator", cwd=tmp_path), 2, *words)


def test_a_truncated_parquet_file_and_an_empty_folder_are_named(tmp_path: Path, data: Path) -> None:
    """A file that was cut short is refused before anything is sent."""
    (tmp_path / "cut.parquet").write_bytes(data.read_bytes()[:-20])
    assert_one_sentence(batchmill("run", "cut.parquet", "--service", "emulator", cwd=tmp_path), 2, "cut.parquet")
    (tmp_path / "nothing").mkdir()
    assert_one_sentence(batchmill("run", "nothing", "--service", "emulator", cwd=tmp_path), 2, "without files")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (PROMPT.replace("CONTENT", "{{ qestion }}"), ["qestion", "question"]),
        (PROMPT.replace("CONTENT", "{{ question"), ["line 1"]),
        ("bodi:\n  model: m\n", ["bodi", "body"]),
        ("body:\n  model: m\n", ["messages"]),
        ("body: [\n", ["line"]),
        (PROMPT.replace("model: m", "model: m\n  stream: true"), ["stream"]),
    ],
)
def test_a_bad_prompt_is_explained(tmp_path: Path, data: Path, prompt: str, words: list[str]) -> None:
    """An unknown column names the nearest one; a syntax error its line; a key the nearest key."""
    (tmp_path / "p.yaml").write_text(prompt)
    done = batchmill("run", data, "--prompt", "p.yaml", "--service", "emulator", cwd=tmp_path)
    assert_one_sentence(done, 2, *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-lines", "100001"], ["--max-lines", "100,000"]),
        (["--max-bytes", "0"], ["--max-bytes"]),
        (["--id-column", "nope"], ["nope"]),
        (["--out", "x.docx"], [".parquet"]),
        (["--seed", "1"], ["--sample"]),
        (["--poll-seconds", "0"], ["--poll-seconds"]),
    ],
)
def test_a_flag_out_of_range_is_refused(tmp_path: Path, data: Path, arguments: list[str], words: list[str]) -> None:
    """A limit beyond the service's, a column that is not there, an unknown ending."""
    done = batchmill("run", data, "--service", "emulator", *arguments, cwd=tmp_path)
    assert_one_sentence(done, 2, *words)


def test_no_text_column_lists_the_columns(tmp_path: Path) -> None:
    """Without a prompt and without a clear text column nothing is guessed."""
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "d.parquet")
    assert_one_sentence(batchmill("run", "d.parquet", "--service", "emulator", cwd=tmp_path), 2, "a", "b", "--prompt")


def test_auto_refuses_to_invent_answers_where_nobody_watches(tmp_path: Path, data: Path) -> None:
    """No terminal and no service: exit code 2, naming --service."""
    assert_one_sentence(batchmill("run", data, cwd=tmp_path), 2, "--service")


def test_an_unreachable_endpoint_ends_the_run_before_anything_was_accepted(tmp_path: Path, data: Path) -> None:
    """A port that nobody listens on: exit code 1, one sentence, and the run folder is resumable."""
    done = batchmill(
        "run",
        data,
        "--model",
        "m",
        "--yes",
        "--poll-seconds",
        1,
        cwd=tmp_path,
        AZURE_OPENAI_ENDPOINT="http://127.0.0.1:9",
        AZURE_OPENAI_API_KEY="k",
    )
    assert_one_sentence(done, 1, "cannot be reached")


def test_money_is_never_spent_without_consent(tmp_path: Path, data: Path) -> None:
    """No terminal and no --yes: exit code 2 before anything is sent."""
    done = batchmill(
        "run",
        data,
        "--model",
        "m",
        cwd=tmp_path,
        AZURE_OPENAI_ENDPOINT="http://127.0.0.1:9",
        AZURE_OPENAI_API_KEY="k",
    )
    assert_one_sentence(done, 2, "--yes")


def test_rows_that_cannot_be_sent_are_skipped_with_their_reason(tmp_path: Path) -> None:
    """A null in a used column skips the row, and the run still succeeds."""
    pq.write_table(pa.table({"question": ["a?", None, "  ", "d?"]}), tmp_path / "d.parquet")
    done = batchmill("run", "d.parquet", "--service", "emulator", "--out", "o.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = pq.read_table(tmp_path / "o.parquet")
    assert output["status"].to_pylist() == ["succeeded", "skipped", "skipped", "succeeded"]
    assert output["error_code"].to_pylist() == [None, "null_value", "empty_prompt", None]
    assert all(output["error_message"].to_pylist()[1:3])


def test_another_prompt_source_or_limit_is_never_mixed_into_a_run(tmp_path: Path, data: Path) -> None:
    """A named run folder refuses what differs, and says what."""
    first = batchmill("run", data, "--service", "emulator", "--run-dir", "r", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (tmp_path / "p.yaml").write_text(PROMPT.replace("CONTENT", "{{ other }}"))
    again = batchmill("run", data, "--prompt", "p.yaml", "--service", "emulator", "--run-dir", "r", cwd=tmp_path)
    assert_one_sentence(again, 2, "prompt")
    assert_one_sentence(batchmill("run", SAMPLE, "--service", "emulator", "--run-dir", "r", cwd=tmp_path), 2, "source")
    limited = batchmill("run", data, "--service", "emulator", "--run-dir", "r", "--max-lines", 1, cwd=tmp_path)
    assert_one_sentence(limited, 2, "--max-lines")
    service = batchmill(
        "run",
        data,
        "--model",
        "m",
        "--run-dir",
        "r",
        "--yes",
        cwd=tmp_path,
        AZURE_OPENAI_ENDPOINT="http://127.0.0.1:9",
        AZURE_OPENAI_API_KEY="k",
    )
    assert_one_sentence(service, 2, "service")


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, data: Path) -> None:
    """Files of somebody else are not mixed with a run's."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    assert_one_sentence(batchmill("run", data, "--service", "emulator", "--run-dir", "mine", cwd=tmp_path), 2, "mine")
    assert_one_sentence(batchmill("status", "mine", cwd=tmp_path), 1, "no run")
