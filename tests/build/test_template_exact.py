"""Templates made at random, over rows of every type: columns at once, Jinja2 row by row and plain Jinja2 agree."""

from __future__ import annotations

import datetime
import json
import random
from decimal import Decimal
from typing import Any

import jinja2
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.build.prompt import Prompt
from pipeline.build.template import Template, compile_template
from pipeline.ids import custom_ids

ROWS = 40
AWKWARD = [
    "",
    " ",
    "\x1c\u3000\n",
    'a "quoted" \\ word',
    "nul \x00 \x1f\x7f",
    "line\u2028sep\u2029 é",
    "emoji 😀 👩‍👩‍👧",
    "Straße ΣΑΣ ΌΣΟΣ ﬁ ŉ İ ı ƛ ɥ Ꟛ",
    "שלום مرحبا \u202e",
    "{{ a }} {% raw %} {# x #}",
    '{"messages":["<&\'>"]}',
    "12",
    "-7",
    " 42 ",
    "3.5",
    "1e5",
    "0x10",
    "nan",
    "inf",
    "1_000",
    "٣",
    "a" * 30,
    "one two three four five six",
    "\t x \xa0",
    "None",
    "$1 ${x} \\1",
    "&lt;<b>",
]
texts = st.sampled_from(AWKWARD) | st.text(max_size=12)
wholes = st.sampled_from([0, 1, -1, 7, -7, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1)
floats = st.sampled_from([0.0, -0.0, 1.5, 2.5, -0.5, 1e16, 1e-5, 1e-4, 123456.789, 2.675, 1e308, 5e-324, 0.1]) | (
    st.floats(allow_nan=False, allow_infinity=False)
)
COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
    "a": (pa.string(), texts),
    "b": (pa.large_string(), texts),
    "cat": (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["red", "Blau", "été", ""])),
    "n": (pa.int64(), wholes),
    "u": (pa.uint64(), st.sampled_from([0, 1, 2**64 - 1]) | st.integers(0, 2**64 - 1)),
    "k": (pa.int8(), st.integers(-3, 5)),
    "f": (pa.float64(), floats),
    "g": (pa.float32(), st.floats(width=32, allow_nan=False, allow_infinity=False)),
    "yes": (pa.bool_(), st.booleans()),
    "dec": (pa.decimal128(20, 3), st.decimals(-(10**9), 10**9, places=3)),
    "tiny": (pa.decimal128(20, 9), st.sampled_from([Decimal("0E-9"), Decimal("1E-9"), Decimal("0.5"), Decimal(3)])),
    "day": (pa.date32(), st.dates()),
    "when": (pa.timestamp("us"), st.datetimes()),
    "utc": (pa.timestamp("ms", "UTC"), st.datetimes(datetime.datetime(1, 1, 3), datetime.datetime(9999, 12, 30))),
    "zoned": (
        pa.timestamp("us", "Europe/Berlin"),
        st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1)),
    ),
    "took": (pa.duration("us"), st.timedeltas(datetime.timedelta(-9), datetime.timedelta(999))),
    "clock": (pa.time64("us"), st.times()),
    "tags": (pa.list_(pa.string()), st.lists(st.none() | texts, max_size=3)),
    "nums": (pa.list_(pa.int32()), st.lists(st.integers(-9, 9), max_size=3)),
    "s": (
        pa.struct({"name": pa.string(), "age": pa.int64(), "w": pa.float32(), "in": pa.struct({"x": pa.string()})}),
        st.fixed_dictionaries(
            {
                "name": st.none() | texts,
                "age": st.none() | st.integers(-5, 5),
                "w": st.floats(0, 10, width=32),
                "in": st.none() | st.fixed_dictionaries({"x": texts}),
            }
        ),
    ),
    "maybe": (pa.string(), st.none() | texts),
    "some": (pa.int64(), st.none() | st.integers(-3, 3)),
}
ASKED = ("maybe", "some")
"""Columns with nulls; the templates ask before they use them."""


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table of every type."""
    columns = {}
    for name, (kind, _) in COLUMNS.items():
        values = [row[name] for row in rows]
        if name == "zoned":
            values = [value.replace(tzinfo=datetime.UTC) for value in values]
        array = pa.array(values, kind.value_type if pa.types.is_dictionary(kind) else kind)
        columns[name] = array.dictionary_encode() if pa.types.is_dictionary(kind) else array
    return pa.table(columns)


plain_columns = st.sampled_from([name for name in COLUMNS if name not in ASKED])
text_columns = st.sampled_from(["a", "b", "cat", "s.name", "s['name']", "tags[0]", "tags|first", "tags|last", "s.in.x"])
number_columns = st.sampled_from(
    ["n", "u", "k", "f", "g", "s.age", "s.w", "nums[0]", "nums[-1]", "a|length", "tags|length"]
)
literals = st.sampled_from(["'x'", "''", "'12'", "'é'", "'a b'", "0", "1", "-3", "2.5", "true", "none", "1e3"])
chains = st.sampled_from(
    ["trim", "upper", "lower", "string", "trim('x ')", "length", "int", "float", "round", "round(2)", "abs", "tojson"]
    + ["round(1, 'floor')", "round(0, 'ceil')", "first", "last", "join", "join(', ')", "default('d')", "title"]
    + ["default('d', true)", "default(7, true)", "d", "truncate(9)", "truncate(12, true)", "truncate(8, false, '…', 0)"]
    + ["replace('a', 'b')", "replace('é', '$0')", "replace(' ', '')", "b64encode", "capitalize", "count"]
)


@st.composite
def filtered(draw: Any, inner: Any) -> str:
    """An expression with filters."""
    return " | ".join([f"({draw(inner)})", *draw(st.lists(chains, min_size=1, max_size=2))])


def expressions() -> Any:
    """Expressions of the supported grammar, most of them of one type."""
    leaves = plain_columns | text_columns | number_columns | literals | st.sampled_from(ANSWERED)
    pairs = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])

    def grow(inner: Any) -> Any:
        numbers = number_columns | st.sampled_from(["1", "2", "-3", "0", "2.5", "0.1"])
        compared = st.one_of(
            st.tuples(number_columns, pairs, numbers).map(" ".join),
            st.tuples(text_columns, pairs, text_columns | st.sampled_from(["'x'", "'red'"])).map(" ".join),
            st.tuples(number_columns, pairs, numbers).map(" ".join),
            st.tuples(plain_columns, st.sampled_from(["==", "!="]), inner).map(" ".join),
            st.tuples(
                text_columns, st.sampled_from(["in", "not in"]), st.sampled_from(["b", "tags", "['red', 'x']"])
            ).map(" ".join),
            st.tuples(st.sampled_from(["'a'", "''", "'é'"]), st.sampled_from(["in", "not in"]), text_columns).map(
                " ".join
            ),
            st.tuples(
                st.sampled_from(["k", "n", "1"]), st.just("in"), st.sampled_from(["nums", "[1, 2]", "(0, -1)"])
            ).map(" ".join),
            st.tuples(inner, st.sampled_from(["is none", "is not none", "is string", "is number", "is boolean"])).map(
                lambda parts: f"({parts[0]}) {parts[1]}"
            ),
        )
        asked = compared | inner
        return st.one_of(
            filtered(inner),
            filtered(text_columns),
            filtered(number_columns),
            compared.map(lambda text: f"({text})"),
            st.tuples(asked, st.sampled_from([" and ", " or "]), asked).map(lambda parts: f"({''.join(parts)})"),
            asked.map(lambda text: f"(not ({text}))"),
            st.tuples(inner, asked, inner).map(lambda parts: f"({parts[0]} if {parts[1]} else {parts[2]})"),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: "(" + " ~ ".join(parts) + ")"),
            st.tuples(numbers, st.sampled_from(["+", "-", "*", "/", "//", "%"]), numbers).map(
                lambda parts: f"({' '.join(parts)})"
            ),
            text_columns.map(lambda text: f"({text})[:3]"),
            st.sampled_from(["a[0]", "a[1:]", "b[-1]", "-n", "-f", "+k"]),
        )

    return st.recursive(leaves, grow, max_leaves=4)


ANSWERED = [
    "(maybe | default('none given', true))",
    "(some | default(0, true))",
    "(maybe if maybe is not none else '-')",
    "(some if some is not none else '-')",
    "(maybe is none)",
    "(maybe if maybe else b)",
    "(some + 1 if some is not none)",
    "(maybe is not none and 'a' in maybe)",
    "(some == none)",
]

words = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="{}%#"), max_size=6)
outputs = expressions().map(lambda text: "{{ " + text + " }}")
blocks = st.one_of(
    st.tuples(expressions(), outputs, words).map(
        lambda parts: "{% if " + parts[0] + " %}" + parts[1] + parts[2] + "{% endif %}"
    ),
    st.tuples(expressions(), outputs, expressions(), words, outputs).map(
        lambda p: (
            "{% if " + p[0] + " -%} " + p[1] + "{% elif " + p[2] + " %}" + p[3] + "{% else %}" + p[4] + "{%- endif %}"
        )
    ),
    st.tuples(expressions(), outputs).map(lambda parts: "{% set x = " + parts[0] + " %}" + parts[1] + "{{ x }}"),
)
loops = st.just("{% for t in tags %}{{ t }};{% endfor %}")
parts = st.one_of(*[outputs] * 8, *[blocks] * 6, *[words] * 4, loops)
templates = st.lists(parts, min_size=1, max_size=3).map("".join)
rows = st.lists(st.fixed_dictionaries({name: values for name, (_, values) in COLUMNS.items()}), min_size=1, max_size=3)


def mixed(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The rows, and more of the same values in other company."""
    chance = random.Random(seed)
    more = [{name: chance.choice(rows)[name] for name in COLUMNS} for _ in range(ROWS - len(rows))]
    for row in more[: ROWS // 2]:
        row |= {"a": chance.choice(AWKWARD), "b": chance.choice(AWKWARD), "n": chance.randint(-20, 20)}
        row |= {"f": chance.choice([chance.uniform(-99, 99), round(chance.uniform(-99, 99), 2)])}
    return rows + more


def _plain_values(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as Python's own values, a 32-bit float as the shortest decimal."""
    columns = {name: table[name].to_pylist() for name in table.schema.names}
    columns["g"] = [
        None if value is None else float(text)
        for value, text in zip(columns["g"], table["g"].cast(pa.string()).to_pylist(), strict=True)
    ]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _base64(value: Any) -> str:
    import base64

    return base64.b64encode(value.encode()).decode() if isinstance(value, str) else _refuse(value)


def _refuse(value: Any) -> str:
    raise TypeError(type(value).__name__)


PLAIN = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
PLAIN.filters["b64encode"] = _base64


def check(source: str, table: pa.Table) -> Template:
    """Compare the three for every row."""
    body = {"messages": [{"role": "user", "content": "> " + source}], "seed": "{{ k }}", "n_of": "{{ f }}"}
    template = compile_template(Prompt("chat", body, None, None, "p.yaml"), table.schema)
    ids = custom_ids("t", pa.array(range(table.num_rows), pa.int64()))
    found = template.render(table, ids, model="m", url="/chat/completions")
    if not template.reason.startswith("body.messages"):
        slow = template.by_jinja().render(table, ids, model="m", url="/chat/completions")
        assert found.skip_message.to_pylist() == slow.skip_message.to_pylist(), source
        assert found.lines.to_pylist() == slow.lines.to_pylist(), source
        assert found == slow
    plain = PLAIN.from_string("> " + source)
    for index, values in enumerate(_plain_values(table)):
        try:
            content = plain.render(values)
        except Exception:  # noqa: BLE001 - whatever the template raises
            assert found.skip_code[index].as_py() == "unrenderable", (source, values)
            continue
        assert found.skip_code[index].as_py() is None, (source, values, found.skip_message[index].as_py())
        body = json.loads(found.lines[index].as_py())["body"]
        assert body["messages"][0]["content"] == json.loads(json.dumps(content)), (source, values)
        assert (body["seed"], body["n_of"]) == (values["k"], values["f"])
    return template


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(source=templates, rows=rows, seed=st.integers(0, 2**32))
def test_every_path_gives_what_plain_jinja_gives(source: str, rows: list[dict[str, Any]], seed: int) -> None:
    """Whatever the template and the rows, both paths give the same bytes and plain Jinja2's text after JSON."""
    check(source, table_of(mixed(rows, seed)))


@pytest.mark.slow
@settings(max_examples=6_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(source=templates, rows=rows, seed=st.integers(0, 2**32))
def test_many_more(source: str, rows: list[dict[str, Any]], seed: int) -> None:
    """The same, for longer."""
    check(source, table_of(mixed(rows, seed)))
