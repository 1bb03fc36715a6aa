"""Typed answers: which schema becomes which type, what is checked, and the quick ways never of another mind."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.merge.answer_check import checker, quick_test
from pipeline.merge.answers import answer_type, converted

TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
WORD = pa.dictionary(pa.int32(), pa.string())


def closed(**properties: Any) -> dict[str, Any]:
    """A closed object that requires all its properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        (TEXT, pa.string()),
        (WHOLE, pa.int64()),
        ({"type": "number"}, pa.float64()),
        ({"type": "boolean"}, pa.bool_()),
        ({"type": ["integer", "null"]}, pa.int64()),
        ({"anyOf": [TEXT, {"type": "null"}]}, pa.string()),
        ({"anyOf": [TEXT, WHOLE]}, pa.string()),
        ({"enum": ["a", "b"]}, WORD),
        ({"type": "string", "enum": ["a"]}, WORD),
        ({"enum": [1, 2]}, pa.string()),
        ({"type": "array", "items": WHOLE}, pa.list_(pa.int64())),
        (closed(a=WHOLE, b=TEXT), pa.struct([("a", pa.int64()), ("b", pa.string())])),
        (closed(a=closed(b=WHOLE)), pa.struct([("a", pa.struct([("b", pa.int64())]))])),
        ({**closed(a=WHOLE), "additionalProperties": True}, pa.string()),
        ({"type": "object"}, pa.string()),
        ({"type": "string", "format": "date"}, pa.date32()),
        ({"type": "string", "format": "date-time"}, pa.timestamp("us", tz="UTC")),
        ({"type": "string", "format": "email"}, pa.string()),
        ({"$defs": {"x": WHOLE}, "$ref": "#/$defs/x"}, pa.int64()),
        ({"$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}}}, "$ref": "#/$defs/x"}, pa.string()),
        ({"$ref": "#/nowhere"}, pa.string()),
        (True, pa.string()),
    ],
)
def test_a_schema_becomes_a_type(schema: Any, kind: pa.DataType) -> None:
    """The table of conversions; what has no exact type stays JSON text."""
    assert answer_type(schema) == kind


@pytest.mark.parametrize(
    ("text", "kind", "value", "lossy"),
    [
        ("5", pa.int64(), 5, False),
        ("5.0", pa.int64(), 5, False),
        (str(2**63), pa.int64(), None, True),
        (str(2**70), pa.int64(), None, True),
        ("2", pa.float64(), 2.0, False),
        ("true", pa.bool_(), True, False),
        ('"2024-02-30"', pa.date32(), None, True),
        ('"2024-02-29"', pa.date32(), date(2024, 2, 29), False),
        ('"2024-05-17T10:30:00+02:00"', pa.timestamp("us", tz="UTC"), datetime(2024, 5, 17, 8, 30, tzinfo=UTC), False),
        ('"2024-05-17T10:30:00.1234567Z"', pa.timestamp("us", tz="UTC"), None, True),
        ('{"a":1,"b":2}', pa.struct([("a", pa.int64())]), {"a": 1}, True),
        ('{"a":1}', pa.string(), '{"a":1}', False),
        (f'{{"a":{2**70}}}', pa.struct([("a", pa.string())]), {"a": str(2**70)}, False),
        ('{"a":1,"a":2}', pa.struct([("a", pa.int64())]), {"a": 2}, False),
        ('{\n "a": 1\r\n}', pa.struct([("a", pa.int64())]), {"a": 1}, False),
        ("not JSON", pa.int64(), None, True),
        ('{"a":1}} {"a":2}', pa.struct([("a", pa.int64())]), None, True),
    ],
)
def test_a_text_becomes_a_value(text: str, kind: pa.DataType, value: Any, lossy: bool) -> None:
    """Exactly, or null and told so; neighbours keep theirs."""
    column, mask = converted(pa.array([text, None, text], pa.string()), kind)
    assert column.type == kind
    assert column.to_pylist() == [value, None, value]
    assert mask.tolist() == [lossy, False, lossy]


def test_several_answers_are_a_list_of_values() -> None:
    """Each of the texts is converted; a missing one is null."""
    texts = pa.array([json.dumps(['{"a":1}', None])])
    column, _ = converted(texts, pa.list_(pa.struct([("a", pa.int64())])), several=True)
    assert column.to_pylist() == [[{"a": 1}, None]]


_LEAVES = [
    TEXT,
    WHOLE,
    {"type": "number"},
    {"type": "boolean"},
    {"type": ["integer", "null"]},
    {"enum": ["a", "b", None]},
    {"type": "string", "maxLength": 2},
    {"type": "number", "minimum": 0, "exclusiveMaximum": 5},
    {"anyOf": [TEXT, {"type": "null"}]},
    {"anyOf": [WHOLE, TEXT]},
]
_SCHEMAS = st.recursive(
    st.sampled_from(_LEAVES),
    lambda inner: st.one_of(
        st.builds(lambda a, b: closed(a=a, b=b), inner, inner),
        st.builds(lambda a: {"type": "object", "properties": {"a": a}}, inner),
        st.builds(lambda a: {"type": "array", "items": a, "maxItems": 2}, inner),
    ),
    max_leaves=4,
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 6)
    | st.integers(-(2**66), 2**66)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["a", "b", "abc", "", "é😀", "2024-01-01"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None)
@given(_SCHEMAS, _VALUES)
def test_the_check_is_that_of_jsonschema(schema: dict[str, Any], value: Any) -> None:
    """Valid where jsonschema says so, and nowhere else; the quick test never says so alone."""
    valid = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert (checker(schema)(json.dumps(value)) is None) == valid
    quick = quick_test(schema)
    assert quick is not None
    assert valid or not quick(value)


@settings(max_examples=200, deadline=None)
@given(_SCHEMAS, st.lists(_VALUES, max_size=5))
def test_converting_at_once_gives_what_converting_one_by_one_gives(schema: dict[str, Any], values: list[Any]) -> None:
    """A column holds what each text alone gives, whatever its neighbours are."""
    kind = answer_type(schema)
    texts = [json.dumps(value) for value in values]
    column, mask = converted(pa.array(texts, pa.string()), kind)
    for index, text in enumerate(texts):
        alone, lossy = converted(pa.array([text, "broken"], pa.string()), kind)
        assert column[index].as_py() == alone[0].as_py()
        assert bool(mask[index]) == bool(lossy[0])


@pytest.mark.parametrize("text", ["NaN", "[1", "", "Infinity", '{"a":1} x'])
def test_what_is_no_json_is_said_to_be_none(text: str) -> None:
    """NaN and Infinity, which Python would take, included."""
    assert "no JSON" in (checker({})(text) or "")


@pytest.mark.parametrize("keyword", [{"pattern": "^a"}, {"oneOf": [TEXT]}, {"$ref": "#/x"}, {"uniqueItems": True}])
def test_an_unusual_schema_goes_to_jsonschema(keyword: dict[str, Any]) -> None:
    """A keyword that the quick test does not know is never skipped."""
    assert quick_test({"type": "string", **keyword}) is None
    assert checker({"pattern": "^a"})('"b"') is not None


WORDS = ["a", "b", "long word", "é😀"]
DEFS = {
    "word": {"enum": WORDS},
    "point": closed(x={"type": "number"}, y=WHOLE),
    "tree": {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}},
}
INT64 = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
DAYS = st.dates().map(date.isoformat)
MOMENTS = st.datetimes(datetime(1000, 1, 2), datetime(9999, 12, 30)).map(
    lambda moment: moment.isoformat() + ("Z" if moment.microsecond % 2 else "+02:00")
)


@st.composite
def answered(draw: st.DrawFn, depth: int = 0) -> tuple[dict[str, Any], Any, Any]:
    """A schema, a value that keeps to it, and what a column should give for that value."""
    kinds = ["text", "whole", "number", "flag", "words", "day", "moment", "either", "point", "tree"]
    kind = draw(st.sampled_from(kinds + (["object", "list", "nullable", "optional"] * 2 if depth < 3 else [])))
    if kind == "object":
        parts = draw(st.dictionaries(st.sampled_from(["a", "b", "c d", "é.f"]), answered(depth + 1), min_size=1))
        schema = closed(**{name: part[0] for name, part in parts.items()})
        return schema, *({name: part[at] for name, part in parts.items()} for at in (1, 2))
    if kind == "list":
        inner, value, expected = draw(answered(depth + 1))
        times = draw(st.integers(0, 2))
        return {"type": "array", "items": inner}, [value] * times, [expected] * times
    if kind in ("nullable", "optional"):
        inner, value, expected = draw(answered(depth + 1))
        absent = draw(st.booleans())
        return {"anyOf": [inner, {"type": "null"}]}, *((None, None) if absent else (value, expected))
    if kind == "either":
        value = draw(st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=2))
        return {"anyOf": [WHOLE, {"type": "array"}]}, value, json.dumps(value, separators=(",", ":"))
    if kind == "point":
        value = {"x": draw(NUMBERS), "y": draw(INT64)}
        return {"$ref": "#/$defs/point"}, value, value
    if kind == "tree":
        value = {"kids": [{"kids": []}, {}]}
        return {"$ref": "#/$defs/tree"}, value, json.dumps(value, separators=(",", ":"))
    if kind == "day":
        text = draw(DAYS)
        return {"type": "string", "format": "date"}, text, date.fromisoformat(text)
    if kind == "moment":
        text = draw(MOMENTS)
        return {"type": "string", "format": "date-time"}, text, datetime.fromisoformat(text)
    simple: dict[str, tuple[dict[str, Any], st.SearchStrategy[Any]]] = {
        "text": (TEXT, st.text(max_size=6)),
        "whole": ({"type": ["integer", "null"]}, INT64 | st.none()),
        "number": ({"type": "number"}, NUMBERS),
        "flag": ({"type": "boolean"}, st.booleans()),
        "words": ({"$ref": "#/$defs/word"}, st.sampled_from(WORDS)),
    }
    schema, values = simple[kind]
    value = draw(values)
    return schema, value, value


@settings(max_examples=150, deadline=None)
@given(answered(), st.sampled_from([None, 1]), st.booleans())
def test_what_keeps_to_its_schema_is_kept_whole(
    case: tuple[dict[str, Any], Any, Any], indent: int | None, escaped: bool
) -> None:
    """Valid for jsonschema, valid here, and in its column as the value that it is, however it is written."""
    schema, value, expected = {**case[0], "$defs": DEFS}, case[1], case[2]
    assert jsonschema.Draft202012Validator(schema).is_valid(value)
    text = json.dumps(value, indent=indent, ensure_ascii=escaped)
    assert checker(schema)(text) is None
    for texts in ([text], [text, None, text]):
        column, lossy = converted(pa.array(texts, pa.string()), answer_type(schema))
        assert not lossy.any()
        assert column[0].as_py() == expected
        assert column[len(column) - 1].as_py() == expected


@pytest.mark.parametrize("text", ["1e400", "-1e400", "1.7976931348623159e308"])
def test_a_number_beyond_all_doubles_is_kept_as_text_alone(text: str) -> None:
    """Never as infinity, alone or among others."""
    for texts in ([text], ["1", text, "broken"]):
        column, lossy = converted(pa.array(texts, pa.string()), pa.float64())
        assert column[texts.index(text)].as_py() is None
        assert lossy[texts.index(text)]


def test_vectors_are_read_at_once_as_they_are_read_alone() -> None:
    """Embeddings are lists of 32-bit floats."""
    texts = pa.array(["[0.1,-2,3e-50]", None, "[]", "[1,null]"])
    kind = pa.list_(pa.float32())
    found, lossy = converted(texts, kind)
    assert not lossy.any()
    assert found.equals(pa.array([None if t is None else json.loads(t) for t in texts.to_pylist()], kind))
