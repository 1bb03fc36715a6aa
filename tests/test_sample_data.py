"""The sample data: made by its script, of the promised size, and the same in both formats."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from jsonschema import Draft202012Validator

SAMPLE = Path(__file__).resolve().parents[1] / "sample_data"


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """The committed Parquet file."""
    return pq.read_table(SAMPLE / "questions.parquet")


@pytest.fixture(scope="module")
def csv_rows() -> list[dict[str, str]]:
    """The committed CSV file, by a reader that knows nothing of ours."""
    with (SAMPLE / "questions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _make(folder: Path) -> Path:
    folder.mkdir()
    subprocess.run([sys.executable, SAMPLE / "make_samples.py", folder], check=True, cwd=folder)
    return folder


def test_the_script_makes_the_committed_files(tmp_path: Path, table: pa.Table) -> None:
    """Running the script again gives the committed rows, and the same bytes where the same pyarrow writes them."""
    made = _make(tmp_path / "made")
    assert (made / "questions.csv").read_bytes() == (SAMPLE / "questions.csv").read_bytes()
    assert pq.read_table(made / "questions.parquet").equals(table, check_metadata=True)
    writers = {pq.read_metadata(folder / "questions.parquet").created_by for folder in (made, SAMPLE)}
    if len(writers) == 1:
        assert (made / "questions.parquet").read_bytes() == (SAMPLE / "questions.parquet").read_bytes()


def test_the_script_is_deterministic(tmp_path: Path) -> None:
    """Two runs of the script write the same bytes."""
    first, second = _make(tmp_path / "first"), _make(tmp_path / "second")
    for name in ("questions.parquet", "questions.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_sample_is_large_enough(table: pa.Table) -> None:
    """There are at least 720 rows, 620 of them with a question and 30 without, in less than 200 KB."""
    questions = table["question"]
    assert table.num_rows >= 720
    assert table.num_rows - questions.null_count >= 620
    assert questions.null_count >= 30
    assert (SAMPLE / "questions.parquet").stat().st_size < 200_000
    assert len(set(table["id"].to_pylist())) == table.num_rows


def test_the_sample_has_many_types(table: pa.Table) -> None:
    """The columns have the types that the project promises to carry untouched."""
    assert table.schema.equals(
        pa.schema(
            [
                ("id", pa.string()),
                ("topic", pa.dictionary(pa.int32(), pa.string())),
                ("question", pa.string()),
                ("year", pa.int32()),
                ("difficulty", pa.int8()),
                ("asked_on", pa.date32()),
                ("asked_at", pa.timestamp("us", tz="UTC")),
                ("weight", pa.float64()),
                ("verified", pa.bool_()),
                ("tags", pa.list_(pa.string())),
                ("price", pa.decimal128(9, 2)),
            ]
        )
    )
    assert 0 < table["year"].null_count < table.num_rows


@pytest.mark.parametrize(
    "mark",
    ['"', "'", "\n", "\r\n", "\t", "\\", "\u200d", "\u05e9", "\u0645", "\u0301", "\u2028", "{{ ", "{%", '{"role', "日"],
)
def test_the_sample_is_awkward(table: pa.Table, mark: str) -> None:
    """Each kind of awkward text is in at least one question."""
    assert any(mark in question for question in table["question"].to_pylist() if question)


def test_the_sample_has_empty_and_long_questions(table: pa.Table) -> None:
    """One question is the empty text, and one has about 6 KB."""
    sizes = [len(question.encode()) for question in table["question"].to_pylist() if question is not None]
    assert min(sizes) == 0
    assert 5_500 < max(sizes) < 7_000


def test_parquet_and_csv_have_the_same_rows(table: pa.Table, csv_rows: list[dict[str, str]]) -> None:
    """Every value of the CSV is the Parquet value in its flat text form, in the same order."""

    def flat(row: dict[str, object]) -> dict[str, str]:
        moment, tags = row["asked_at"], row["tags"]
        assert isinstance(tags, list)
        return {name: "" if value is None else str(value) for name, value in row.items()} | {
            "asked_at": f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}",
            "verified": "true" if row["verified"] else "false",
            "tags": "|".join(tags),
        }

    assert csv_rows == [flat(row) for row in table.to_pylist()]


def test_the_csv_tells_null_from_empty_text() -> None:
    """The empty question is quoted in the CSV; a missing one is bare."""
    lines = (SAMPLE / "questions.csv").read_text(encoding="utf-8").split("\n")
    assert any(',awkward,"",' in line for line in lines)
    assert any(",,," in line and '""' not in line for line in lines)


@pytest.mark.parametrize("name", ["answer.yaml", "classify.yaml"])
def test_the_prompts_use_columns_of_the_sample(table: pa.Table, name: str) -> None:
    """Both prompt files name a chat model and use only columns that the sample has."""
    prompt = yaml.safe_load((SAMPLE / name).read_text(encoding="utf-8"))
    text = "".join(message["content"] for message in prompt["body"]["messages"])
    assert prompt["url"] == "chat"
    assert prompt["body"]["model"] == "gpt-4o-batch"
    assert "{{ question }}" in text
    assert {part.split("}}")[0].strip() for part in text.split("{{")[1:]} <= set(table.column_names)


def test_the_typed_prompt_has_a_sound_schema() -> None:
    """The answer's schema of classify.yaml is a valid JSON Schema that accepts a good answer and refuses a bad one."""
    schema = yaml.safe_load((SAMPLE / "classify.yaml").read_text(encoding="utf-8"))["answer"]
    Draft202012Validator.check_schema(schema)
    good = {"category": "history", "difficulty": 2, "needs_calculation": False, "keywords": ["sea"], "reason": "Known."}
    assert Draft202012Validator(schema).is_valid(good)
    assert not Draft202012Validator(schema).is_valid(good | {"difficulty": 9})
