"""docs/templates.md says what happens: its examples are rendered, and its limits are the code's."""

from __future__ import annotations

import datetime
import json
import re
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from jinja2 import sandbox

from pipeline.build import budget
from pipeline.build.filters import FILTERS
from pipeline.build.prompt import Prompt, load_prompt
from pipeline.build.sandbox import MACRO_STEPS
from pipeline.build.template import compile_template
from pipeline.ids import custom_ids

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "templates.md").read_text(encoding="utf-8")
TABLE = pa.table(
    {
        "text": ["  Hello World "],
        "n": [7],
        "price": [2.5],
        "ok": [True],
        "cost": pa.array([Decimal("1.50")], pa.decimal128(9, 2)),
        "day": [datetime.date(2024, 2, 29)],
        "at": pa.array([datetime.datetime(2024, 7, 1, 10, tzinfo=datetime.UTC)], pa.timestamp("us", "Europe/Berlin")),
        "took": [datetime.timedelta(minutes=90)],
        "tags": [["red", "blue"]],
        "who": [{"name": "Ada", "age": 36}],
        "photo": pa.array([b"\x89PNG"], pa.binary()),
        "note": pa.array([None], pa.string()),
    }
)


def section(name: str) -> str:
    """A section of the page."""
    return PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]


def cells(line: str) -> list[str]:
    """The cells of a table's line."""
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def rendered(source: str) -> tuple[str | None, str | None]:
    """The text of the example row, and its skip code."""
    body = {"messages": [{"role": "user", "content": source}]}
    template = compile_template(Prompt("chat", body, None, None, "p.yaml"), TABLE.schema)
    found = template.render(TABLE, custom_ids("t", pa.array([0], pa.int64())), model="m", url="/chat/completions")
    line = found.lines[0].as_py()
    return line and json.loads(line)["body"]["messages"][0]["content"], found.skip_code[0].as_py()


EXAMPLES = [cells(line)[:2] for line in section("What prints how").splitlines() if line.startswith("| `{")]
NULLS = [cells(line)[:2] for line in section("Nulls").splitlines() if line.startswith("| `{")]


@pytest.mark.parametrize(("template", "gives"), EXAMPLES)
def test_the_examples_print_what_the_page_says(template: str, gives: str) -> None:
    """Every template of the table gives the text beside it."""
    assert rendered(template.strip("`")) == (gives[1:-1], None)


@pytest.mark.parametrize(("template", "says"), NULLS)
def test_nulls_count_where_the_page_says(template: str, says: str) -> None:
    """Every template of the table skips the row of a null, or does not, as it says."""
    counts = says.startswith("counts")
    assert (rendered("> " + template.strip("`"))[1] == "null_value") == counts


def test_there_are_examples() -> None:
    """The tables are found."""
    assert len(EXAMPLES) >= 16
    assert len(NULLS) >= 7


def test_the_prompt_file_is_one(tmp_path: Path) -> None:
    """The page's prompt file is read, and its number is a number."""
    path = tmp_path / "p.yaml"
    path.write_text(PAGE.split("```yaml\n")[1].split("```")[0])
    prompt = load_prompt(path)
    table = pa.table({"budget": ["100"], "question": [" q "], "topic": pa.array([None], pa.string()), "answer": ["a"]})
    template = compile_template(prompt, table.schema)
    found = template.render(table, custom_ids("t", pa.array([0], pa.int64())), model="m", url="/chat/completions")
    body = json.loads(found.lines[0].as_py())["body"]
    assert (body["max_tokens"], body["messages"][1]["content"]) == (100, "Question: q\n\nAnswer: a\n")
    assert template.fast


def test_the_page_names_every_fast_filter() -> None:
    """The list of filters is the code's."""
    fast = section("Fast, and row by row")
    assert set(FILTERS) - {"count"} <= set(re.findall(r"\w+", fast))


def test_the_page_names_the_bounds() -> None:
    """The limits are the code's."""
    for limit in (budget.STEPS_MAX, budget.CHARACTERS_MAX, budget.ITEMS_MAX, budget.WIDTH_MAX, sandbox.MAX_RANGE):
        assert f"{limit:,}" in section("Bounds")
    assert f"a macro counts as {MACRO_STEPS}" in section("Bounds")
