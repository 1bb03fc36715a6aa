"""Nulls in used columns: which count, and what each rule makes of them, on both paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.build.packer import Limits
from pipeline.build.prompt import Prompt
from pipeline.build.seal import seal
from pipeline.build.source import open_source
from pipeline.build.template import compile_template
from pipeline.errors import SourceError
from pipeline.ids import custom_ids

TABLE = pa.table(
    {
        "a": pa.array(["x", None], pa.string()),
        "n": pa.array([3, None], pa.int64()),
        "s": pa.array([{"p": "q"}, None], pa.struct({"p": pa.string()})),
        "day": pa.array([0, None], pa.date32()),
        "cat": pa.array(["c", None]).dictionary_encode(),
    }
)


def rendered(source: str, on_null: str, *, fast: bool) -> list[Any]:
    """The content of each row, or its skip code."""
    body = {"messages": [{"role": "user", "content": "> " + source}]}
    template = compile_template(Prompt("chat", body, None, None, "p.yaml"), TABLE.schema, on_null=on_null)
    template = template if fast else template.by_jinja()
    ids = custom_ids("t", pa.array([0, 1], pa.int64()))
    found = template.render(TABLE, ids, model="m", url="/chat/completions")
    return [
        code or json.loads(line)["body"]["messages"][0]["content"].removeprefix("> ")
        for line, code in zip(found.lines.to_pylist(), found.skip_code.to_pylist(), strict=True)
    ]


COUNTED = [
    "{{ a }}",
    "{{ a | upper }}",
    "{{ a | default('d') }}",
    "{{ a }}{% if a is none %}-{% endif %}",
    "{% if a == 'x' %}y{% endif %}",
    "{{ n + 1 }}",
    "{{ s.p }}",
    "{{ 'z' if n is none else a }}",
    "{% if a is none %}{{ a }}{% endif %}",
    "{% if not a %}{{ a }}{% endif %}",
    "{% if a or n %}{{ a }}{% endif %}",
    "{{ a and 'y' }}",
    "{{ a if n is not none else '' }}",
    "{{ cat }}",
    "{{ day }}",
]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("source", COUNTED)
def test_a_null_that_the_template_would_use_skips_its_row(source: str, fast: bool) -> None:
    """A null counts wherever it would be printed or computed with, asked about elsewhere or not."""
    assert rendered(source, "skip", fast=fast)[1] == "null_value"


HANDLED = [
    ("{{ a | default('d', true) }}", ["x", "d"]),
    ("{{ n | d(0, boolean=true) }}", ["3", "0"]),
    ("{% if a is none %}-{% else %}{{ a }}{% endif %}", ["x", "-"]),
    ("{% if a is not none and a != 'y' %}{{ a }}{% endif %}", ["x", ""]),
    ("{% if a %}{{ a | upper }}{% else %}none{% endif %}", ["X", "none"]),
    ("{% if not a %}-{% elif n %}{{ a }}{{ n }}{% endif %}", ["x3", "-"]),
    ("{{ s.p if s is not none else '-' }}", ["q", "-"]),
    ("{{ day if day != none else '-' }}", ["1970-01-01", "-"]),
    ("{{ a or 'd' }}", ["x", "d"]),
    ("{% if a is none or a == 'z' %}-{% else %}{{ a }}{% endif %}", ["x", "-"]),
    ("{{ a is none }}", ["False", "True"]),
    ("{{ cat | default(n | default('?', true), true) }}", ["c", "?"]),
]


@pytest.mark.parametrize("rule", ["skip", "empty", "error"])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("source", "expected"), HANDLED)
def test_a_null_that_the_template_asks_about_is_its_own(
    source: str, expected: list[str], fast: bool, rule: str
) -> None:
    """A column that is used only where the template knows that there is a value keeps its nulls, whatever the rule."""
    assert rendered(source, rule, fast=fast) == expected


EMPTIED = [
    ("{{ a }}", ["x", ""]),
    ("{{ n }}", ["3", ""]),
    ("{{ day }}|{{ cat }}", ["1970-01-01|c", "|"]),
    ("{{ a | default('d') }}", ["x", ""]),
    ("{% if n %}{{ n }}{% endif %}{{ n }}", ["33", ""]),
    ("{{ a ~ n }}", ["x3", ""]),
    ("{{ n + 1 }}", ["4", "unrenderable"]),
    ("{{ s }}", ["{'p': 'q'}", ""]),
    ("{{ s | tojson }}", ['{"p": "q"}', '""']),
    ("{{ a is none }}{{ a }}", ["Falsex", "False"]),
]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("source", "expected"), EMPTIED)
def test_an_empty_null_is_an_empty_text(source: str, expected: list[str], fast: bool) -> None:
    """Under `empty` any other null reads as an empty text, in columns of every type."""
    assert rendered(source, "empty", fast=fast) == expected


def test_an_error_null_refuses_the_run_and_names_its_row(tmp_path: Path) -> None:
    """Under `error` sealing stops at the first null that counts, with its row and column."""
    table = pa.concat_tables([TABLE.slice(0, 1)] * 4 + [TABLE.slice(1)])
    pq.write_table(table, tmp_path / "data.parquet")
    source = open_source(tmp_path / "data.parquet")
    body = {"messages": [{"role": "user", "content": "{{ n }}"}]}
    template = compile_template(Prompt("chat", body, None, None, "p.yaml"), source.schema, on_null="error")
    spans = seal(
        source,
        template,
        Limits(10, 10_000, None),
        rows_dir=None,
        model="m",
        url="/chat/completions",
        custom_id_prefix="t",
        id_column=None,
        refuse_nulls=True,
    )
    with pytest.raises(SourceError, match=r"Row 4: column n is null, which --on-null error refuses"):
        list(spans)
