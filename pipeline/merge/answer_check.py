"""Whether an answer's text keeps to its JSON Schema; jsonschema is the judge.

Common schemas are compiled to plain tests that accept only what jsonschema accepts; whatever they do not accept, and
every schema with a keyword they do not know, goes to jsonschema itself. Knows nothing of rows or files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import orjson

from pipeline.result_line import parsed

MESSAGE_CHARACTERS_MAX = 300
Test = Callable[[Any], bool]

_SILENT = frozenset({"title", "description", "default", "examples", "$comment", "format", "deprecated", "$defs"})
_KNOWN = _SILENT | {
    *("type", "enum", "properties", "required", "additionalProperties", "items", "anyOf"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems"),
}
_TYPES: dict[str, Test] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
}
_BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, bound: not _TYPES["number"](value) or value >= bound,
    "maximum": lambda value, bound: not _TYPES["number"](value) or value <= bound,
    "exclusiveMinimum": lambda value, bound: not _TYPES["number"](value) or value > bound,
    "exclusiveMaximum": lambda value, bound: not _TYPES["number"](value) or value < bound,
    "minLength": lambda value, bound: not isinstance(value, str) or len(value) >= bound,
    "maxLength": lambda value, bound: not isinstance(value, str) or len(value) <= bound,
    "minItems": lambda value, bound: not isinstance(value, list) or len(value) >= bound,
    "maxItems": lambda value, bound: not isinstance(value, list) or len(value) <= bound,
}


def checker(schema: dict[str, Any], *, several: bool = False) -> Callable[[str], str | None]:
    """A function that says what is wrong with an answer's text under a schema, or None.

    Args:
        schema: JSON Schema of one answer.
        several: the text is a list of answers' texts; each of them is checked.
    """
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
    surely = quick_test(schema)

    def breaks(text: str) -> str | None:
        try:
            value = parsed(text.encode("utf-8", "replace"), strict=True)
        except ValueError as error:
            return f"the answer is no JSON ({error})"[:MESSAGE_CHARACTERS_MAX]
        if surely is not None and surely(value):
            return None
        fault = jsonschema.exceptions.best_match(validator.iter_errors(value))
        return None if fault is None else f"{fault.json_path}: {fault.message}"[:MESSAGE_CHARACTERS_MAX]

    def each_breaks(text: str) -> str | None:
        found = ("an answer is missing" if answer is None else breaks(answer) for answer in orjson.loads(text))
        return next((fault for fault in found if fault is not None), None)

    return each_breaks if several else breaks


def quick_test(schema: Any) -> Test | None:
    """A test that is true only for values that jsonschema finds valid; None for schemas with anything unusual."""
    if schema is True:
        return lambda value: True
    if not isinstance(schema, dict) or not schema.keys() <= _KNOWN:
        return None
    tests: list[Test] = []
    for build in (_type_test, _enum_test, _any_test, _object_test, _array_test):
        made = build(schema)
        if made is None:
            return None
        tests += made
    for name in _BOUNDS.keys() & schema.keys():
        within, bound = _BOUNDS[name], schema[name]
        tests.append(lambda value, within=within, bound=bound: within(value, bound))  # type: ignore[misc]
    if len(tests) == 1:
        return tests[0]
    return lambda value: all(test(value) for test in tests)


def _type_test(schema: dict[str, Any]) -> list[Test] | None:
    kinds = schema.get("type")
    if kinds is None:
        return []
    tests = [_TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    return tests if len(tests) == 1 else [lambda value: any(test(value) for test in tests)]


def _enum_test(schema: dict[str, Any]) -> list[Test] | None:
    if "enum" not in schema:
        return []
    values = schema["enum"]
    if not all(isinstance(value, str) or value is None for value in values):
        return None
    return [lambda value: (isinstance(value, str) or value is None) and value in values]


def _any_test(schema: dict[str, Any]) -> list[Test] | None:
    if "anyOf" not in schema:
        return []
    options = [quick_test(option) for option in schema["anyOf"]]
    known = [option for option in options if option is not None]
    return [lambda value: any(option(value) for option in known)] if len(known) == len(options) else None


def _object_test(schema: dict[str, Any]) -> list[Test] | None:
    tests = {name: quick_test(inner) for name, inner in schema.get("properties", {}).items()}
    more = schema.get("additionalProperties", True)
    if None in tests.values() or not isinstance(more, bool):
        return None
    required = frozenset(schema.get("required", ()))
    if not tests and not required and more:
        return []

    def fits(value: Any) -> bool:
        if not isinstance(value, dict):
            return True
        if not required <= value.keys() or not (more or value.keys() <= tests.keys()):
            return False
        return all(test is None or test(value[name]) for name, test in tests.items() if name in value)

    return [fits]


def _array_test(schema: dict[str, Any]) -> list[Test] | None:
    if "items" not in schema:
        return []
    test = quick_test(schema["items"])
    if test is None:
        return None
    return [lambda value: not isinstance(value, list) or all(test(entry) for entry in value)]
