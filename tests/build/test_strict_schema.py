"""Strict mode: what is filled in, and each breach with the place of the node and what to write."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.build.strict_schema import check_strict, strict_form
from pipeline.errors import PromptError

TEXT = {"type": "string"}


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An object of these properties, with nothing said of what strict mode wants."""
    return {"type": "object", "properties": properties, **more}


def nested(levels: int) -> dict[str, Any]:
    """Objects in objects."""
    return closed({"a": TEXT if levels == 1 else nested(levels - 1)})


REFUSED: list[tuple[dict[str, Any], str]] = [
    (closed({"a": TEXT}, additionalProperties=True), "answer.additionalProperties: strict mode needs false here"),
    (closed({"a": TEXT}, additionalProperties=TEXT), "answer.additionalProperties: strict mode needs false here"),
    (
        closed({"a": TEXT, "b": TEXT}, required=["a"]),
        "answer.required: strict mode needs every property, and b is not in it; add it, and let its type be",
    ),
    (closed({"a": TEXT}, required=["a", "b"]), "answer.required: b is no property; add it to properties or take"),
    ({"type": "object"}, "answer: strict mode needs the properties of an object; add properties"),
    (closed({"a": closed({})}), "answer.properties.a: strict mode needs the properties of an object"),
    (closed({"a": {}}), "answer.properties.a: strict mode needs the type of every value; add type"),
    (closed({"a": True}), "answer.properties.a: strict mode wants to know what a value is"),
    (closed({"a b": {"enum": [{"x": 1}]}}), 'answer.properties["a b"]: strict mode needs the type of every value'),
    (closed({"a": {"type": "array"}}), "answer.properties.a: strict mode needs the items of an array; add items"),
    (
        closed({"a": {"type": "array", "items": {"type": "array", "items": closed({"b": {"oneOf": [TEXT]}})}}}),
        "answer.properties.a.items.items.properties.b.oneOf: strict mode does not know the keyword oneOf; write anyOf",
    ),
    (closed({"a": {"allOf": [TEXT]}}), "answer.properties.a.allOf: strict mode does not know the keyword allOf"),
    (closed({"a": {"type": "string", "not": TEXT}}), "answer.properties.a.not: strict mode does not know the keyword"),
    (closed({"a": TEXT}, **{"if": TEXT}), "answer.if: strict mode does not know the keyword if; write anyOf"),
    (closed({"a": TEXT}, patternProperties={}), "answer.patternProperties: strict mode does not know the keyword"),
    (closed({"a": TEXT}, minProperties=1), "answer.minProperties: strict mode does not know the keyword"),
    (closed({"a": {"type": "array", "items": TEXT, "uniqueItems": True}}), "ask for it in description"),
    (closed({"a": {"type": "string", "format": "uri"}}), "answer.properties.a.format: strict mode does not know the"),
    (closed({"a": TEXT}, anyOf=[closed({"a": TEXT})]), "answer.anyOf: strict mode takes none at the root"),
    (
        closed({"a": {"anyOf": [TEXT, closed({"b": TEXT}, additionalProperties=True)]}}),
        "answer.properties.a.anyOf[1].additionalProperties: strict mode needs false here",
    ),
    (closed({"a": {"$ref": "#/$defs/b"}}), "answer.properties.a.$ref: #/$defs/b leads nowhere in the schema"),
    (closed({"a": {"$ref": "https://x/y"}}), "answer.properties.a.$ref: strict mode follows references within"),
    (
        closed({"a": {"$ref": "#/$defs/b", "description": "d"}}, **{"$defs": {"b": TEXT}}),
        "answer.properties.a.description: strict mode takes nothing beside $ref; move it into the target",
    ),
    (
        closed({"a": {"$ref": "#/$defs/b"}}, **{"$defs": {"b": {"type": "object"}}}),
        "answer.$defs.b: strict mode needs the properties of an object",
    ),
    (nested(11), "strict mode takes at most 10 levels of objects; make the schema flatter"),
    (closed({f"p{number}": TEXT for number in range(5001)}), "answer has 5,001 properties, and strict mode takes"),
    (
        closed({"a": {"type": "string", "enum": [str(number) for number in range(1001)]}}),
        "answer has 1,001 enum values, and strict mode takes 1,000",
    ),
    (
        closed({"a": {"type": "string", "enum": [f"{number:061d}" for number in range(251)]}}),
        "answer.properties.a.enum: its 251 values have 15,311 characters, and strict mode takes 15,000",
    ),
    (
        closed({f"{number:01000d}": TEXT for number in range(121)}),
        "answer has 121,000 characters of names and enum values, and strict mode takes 120,000",
    ),
]


@pytest.mark.parametrize(("schema", "sentence"), REFUSED, ids=[sentence[:50] for _, sentence in REFUSED])
def test_each_breach_is_told_with_its_place(schema: dict[str, Any], sentence: str) -> None:
    """The path of the offending node, the rule, what to write, and the way out of strict mode."""
    with pytest.raises(PromptError) as caught:
        check_strict("p.yaml", strict_form(schema))
    message = str(caught.value)
    assert sentence in message
    assert message.startswith("Prompt file p.yaml: answer") and "\n" not in message
    assert "`strict: false`" in message


def test_what_is_not_said_is_filled_in_and_mere_notes_are_left_out() -> None:
    """Objects are closed, properties required, types spelled out; defaults and examples are not sent."""
    schema = closed(
        {
            "a": {"enum": ["x", "y"], "default": "x", "examples": ["y"]},
            "b": {"items": closed({"c": {"const": 5}}), "$comment": "n"},
            "d": {"enum": ["x", None]},
            "e": {"$ref": "#/$defs/f"},
        },
        **{"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": {"f": {"properties": {"g": TEXT}}}},
    )
    filled = strict_form(schema)
    check_strict("p.yaml", filled)
    shut: dict[str, Any] = {"additionalProperties": False}
    assert filled == {
        "type": "object",
        "properties": {
            "a": {"enum": ["x", "y"], "type": "string"},
            "b": {
                "type": "array",
                "items": {
                    "type": "object", "properties": {"c": {"const": 5, "type": "integer"}}, **shut, "required": ["c"],
                },
            },
            "d": {"enum": ["x", None], "type": ["string", "null"]},
            "e": {"$ref": "#/$defs/f"},
        },
        "$defs": {"f": {"type": "object", "properties": {"g": TEXT}, **shut, "required": ["g"]}},
        **shut,
        "required": ["a", "b", "d", "e"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "schema",
    [
        closed({"a": {"type": ["string", "null"], "pattern": "^a", "minLength": 1, "format": "email"}}),
        closed({"a": {"anyOf": [TEXT, {"type": "null"}]}, "b": {"type": "number", "minimum": 0, "multipleOf": 0.5}}),
        closed({"a": {"$ref": "#"}, "b": {"type": "array", "items": {"$ref": "#"}, "minItems": 1, "maxItems": 3}}),
        nested(10),
        closed({"a": {"type": "string", "enum": [str(number) for number in range(1000)]}}),
    ],
)
def test_what_the_service_takes_is_let_through(schema: dict[str, Any]) -> None:
    """Nullable types, recursion, bounds and patterns, ten levels, a thousand enum values."""
    check_strict("p.yaml", strict_form(schema))
