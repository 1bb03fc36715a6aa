"""Synthetic answers: a function of the body and a seed alone, of each url's shape, conforming to any schema given."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.emulator.answers import BadRequest, answer
from pipeline.emulator.values import Unanswerable, conforming
from tests.emulator.serving import serving
from tests.emulator.test_robustness import JSON

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
MESSAGES = [{"role": "user", "content": "hello"}]
RECURSIVE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 3},
        "tree": {"$ref": "#/$defs/node"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "day": {"type": "string", "format": "date"},
    },
    "required": ["score", "tags", "tree", "maybe", "day"],
    "additionalProperties": False,
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                "whole": {"$ref": "#/$defs/leaf~1odd%20name"},
            },
            "required": ["next", "children"],
        },
        "leaf/odd name": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    },
}

bounds = st.integers(-1_000, 1_000)
VALUES = JSON.map(lambda value: orjson.loads(orjson.dumps(value)))
"""What JSON can hold: no infinity."""


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of numbers: bounds, exclusive ones, multiples."""
    return st.builds(
        lambda kind, low, width, strict, step: {
            "type": kind,
            **({("exclusiveMinimum" if strict else "minimum"): low} if low is not None else {}),
            **({"maximum": (low or 0) + width} if width is not None else {}),
            **({"multipleOf": step} if step else {}),
        },
        st.sampled_from(["integer", "number"]), st.none() | bounds, st.none() | st.integers(60, 500), st.booleans(),
        st.none() | st.sampled_from([1, 2, 5, 0.5, 0.1, 7]),
    )  # fmt: skip


def texts() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of texts: lengths or formats."""
    formats = ["date", "date-time", "time", "email", "uuid", "uri", "ipv4", "ipv6", "hostname", "duration"]
    lengths = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(
        lambda two: {"type": "string", "minLength": min(two), "maxLength": max(two)}
    )
    return lengths | st.sampled_from(formats).map(lambda name: {"type": "string", "format": name})


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Schemas with schemas in them."""
    names = st.text("abcé ", min_size=1, max_size=5)
    objects = st.builds(
        lambda properties, needed, more: {
            "type": "object", "properties": properties, "additionalProperties": more,
            "required": [name for index, name in enumerate(properties) if needed >> index & 1],
        },
        st.dictionaries(names, inner, max_size=4), st.integers(0, 15), st.just(False) | inner,
    )  # fmt: skip
    arrays = st.builds(
        lambda items, low, more, first: {
            "type": "array", "items": items, "minItems": low, "maxItems": low + more,
            **({"prefixItems": first} if first else {}),
        },
        inner, st.integers(0, 3), st.integers(0, 3), st.lists(inner, max_size=2),
    )  # fmt: skip
    either = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    nullable = inner.filter(lambda one: isinstance(one.get("type"), str)).map(
        lambda one: {**one, "type": list(dict.fromkeys([one["type"], "null"]))}
    )
    return objects | arrays | either | nullable


SCHEMAS = st.recursive(
    numbers() | texts() | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {}, {"type": "string"}])
    | st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values})
    | VALUES.map(lambda value: {"const": value}),
    nested, max_leaves=10,
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 2**64))
def test_a_value_conforms_to_whatever_schema_was_given(schema: dict[str, Any], seed: int) -> None:
    """Objects, arrays, enums, alternatives, nulls, bounds, lengths, formats, nested in any way; the same each time."""
    value = conforming(schema, seed)
    jsonschema.validate(value, schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    assert conforming(schema, seed) == value


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**64))
def test_references_and_recursion_end(seed: int) -> None:
    """A tree of nodes: some deep, all finite, and more than one."""
    jsonschema.validate(conforming(RECURSIVE, seed), RECURSIVE)
    assert len({json.dumps(conforming(RECURSIVE, seed + more)) for more in range(5)}) > 2


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 0.5}]},
        {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"$ref": "#/$defs/b"}],
         "$defs": {"b": {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]}}},
        {"$ref": "#/$defs/a", "description": "x", "$defs": {"a": {"type": "string", "minLength": 30}}},
        {"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
         "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "uniqueItems": True, "minItems": 3},
        {"type": "integer", "not": {"multipleOf": 2}},
        {"type": "array", "contains": {"type": "null"}, "items": {"type": ["null", "string"]}},
        {"type": "object", "minProperties": 3, "additionalProperties": {"type": "boolean"}},
        {"type": "string", "pattern": "^[a-m]"}, {"enum": ["a", 1, None], "type": ["string", "null"]}, True,
        {"properties": {"a": {"$ref": "#"}}, "type": "object"}, {"type": "object", "required": ["unnamed"]},
        {"type": "string", "maxLength": 0}, {"type": "number", "minimum": 0.1, "maximum": 0.11},
        {"type": "integer", "minimum": 4, "exclusiveMaximum": 5}, {"minimum": 3}, {"items": {"const": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_words_that_only_a_finished_value_can_be_judged_by_are_kept_too(schema: Any) -> None:
    """`oneOf`, `allOf`, `not`, `contains`, siblings of references and alternatives, distinct items, a pattern."""
    for seed in range(20):
        jsonschema.validate(conforming(schema, seed), schema)


@pytest.mark.parametrize(
    "schema",
    [
        False, 7, {"enum": []}, {"$ref": "#"}, {"$ref": "#/nowhere"}, {"$ref": "https://example.com"},
        {"type": "array", "minItems": 10**9}, {"type": "string", "minLength": 10**9}, {"type": "no"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, {"minimum": 2, "maximum": 1},
        {"allOf": [{"$ref": "#"}]}, {"type": "integer", "not": {"type": "integer"}}, {"anyOf": [False]},
        {"type": "object", "minProperties": 10**9}, {"properties": 3}, {"type": "array", "minItems": 2, "maxItems": 1},
        {"type": "array", "minItems": 5_000, "items": {"type": "array", "minItems": 5_000}},
        {"$defs": {str(n): {"type": "array", "minItems": 2, "items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(60)}
         | {"60": {"type": "null"}}, "$ref": "#/$defs/0"},
        {"$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)} | {"40": {"type": "null"}},
         "$ref": "#/$defs/0"},
    ],
    ids=lambda schema: str(schema)[:60],
)  # fmt: skip
def test_a_schema_without_a_value_is_told_and_costs_neither_time_nor_memory(schema: Any) -> None:
    """The line is answered 400 in a sentence; nothing explodes."""
    with pytest.raises(Unanswerable):
        conforming(schema, 1)
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    with pytest.raises(BadRequest, match="schema cannot be answered"):
        answer(CHAT, {"messages": MESSAGES, "response_format": wanted}, 0)


@settings(max_examples=40, deadline=None)
@given(body=st.dictionaries(st.text(min_size=1, max_size=8), JSON, max_size=4), seed=st.integers(0, 3))
def test_an_answer_depends_on_the_body_and_the_seed_alone(body: dict[str, Any], seed: int) -> None:
    """Not on the model's name, nor on the order of keys."""
    body = {key: value for key, value in body.items() if key not in ("model", "response_format", "n")}
    body["messages"] = MESSAGES

    def text(asked: dict[str, Any], seed: int) -> str:
        return str(json.loads(answer(CHAT, dict(asked), seed).body)["choices"][0]["message"]["content"])

    one = text({**body, "model": "a"}, seed)
    assert one == text({"model": "b", **dict(reversed(list(body.items())))}, seed)
    assert one != text({**body, "model": "a"}, seed + 1)
    assert one != text({**body, "messages": [*MESSAGES, 1]}, seed)
    assert one.startswith("[synthetic] ")


@settings(max_examples=100, deadline=None)
@given(body=st.dictionaries(st.sampled_from(
    ["messages", "input", "n", "dimensions", "encoding_format", "response_format", "text", "model", "stream", "tools"]
) | st.text(max_size=4), JSON, max_size=6), url=st.sampled_from([CHAT, RESPONSES, EMBEDDINGS]))  # fmt: skip
def test_every_body_is_answered_with_json_or_refused_with_a_code(body: dict[str, Any], url: str) -> None:
    """Whatever its members hold."""
    try:
        found = answer(url, body, 0)
    except BadRequest as error:
        assert error.code and error.message and error.param
    else:
        assert isinstance(json.loads(found.body), dict) and found.input_tokens > 0


@pytest.mark.parametrize("profile", ["azure", "openai"])
def test_each_url_has_the_services_own_shape(tmp_path: Path, profile: str) -> None:
    """Chat (with `n` choices), responses and embeddings, as in the result lines; each read by the SDK's own type."""
    from openai.types import CreateEmbeddingResponse
    from openai.types.chat import ChatCompletion
    from openai.types.responses import Response

    with serving(tmp_path / "state", profile, instant=True) as served:

        def body_of(url: str, **body: Any) -> tuple[int, dict[str, Any]]:
            batch = served.finished(served.request_lines(1, url=url, **body), endpoint=url)
            line = (served.lines_of(batch.output_file_id) + served.lines_of(batch.error_file_id))[0]
            return line["response"]["status_code"], line["response"]["body"]

        status, found = body_of(CHAT, n=3)
        chat = ChatCompletion.model_validate(found, strict=True)
        texts = [choice.message.content for choice in chat.choices]
        assert status == 200 and len(set(texts)) == 3 and chat.model == "synthetic-m"
        assert ("prompt_filter_results" in found) == (profile == "azure")
        assert ("content_filter_results" in found["choices"][0]) == (profile == "azure")
        status, found = body_of(RESPONSES, input="hi", text={"format": {"type": "json_schema", "schema": RECURSIVE}})
        response = Response.model_validate({"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], **found})
        jsonschema.validate(json.loads(response.output_text), RECURSIVE)
        assert status == 200 and isinstance(found["created_at"], float) and response.usage is not None
        if profile == "openai":
            status, found = body_of(EMBEDDINGS, input=["a", "b"], dimensions=256)
            vectors = CreateEmbeddingResponse.model_validate(found).data
            assert [len(one.embedding) for one in vectors] == [256, 256] and vectors[0] != vectors[1]
            assert sum(value * value for value in vectors[0].embedding) == pytest.approx(1, abs=1e-5)
            _, coded = body_of(EMBEDDINGS, input=["a", "b"], dimensions=256, encoding_format="base64")
            assert len(struct.unpack("<256f", base64.b64decode(coded["data"][0]["embedding"]))) == 256
        for url, body, code in (
            (CHAT, {"messages": []}, "missing_required_parameter"), (CHAT, {"n": 0}, "invalid_value"),
            (CHAT, {"stream": True}, "invalid_value"), (RESPONSES, {}, "missing_required_parameter"),
        ):  # fmt: skip
            status, found = body_of(url, **body)
            assert (status, found["error"]["code"]) == (400, code)
