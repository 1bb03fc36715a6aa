"""The strict mode of structured outputs: which schemas the service takes, and a schema written out as it wants it.

Owns the rules (2026-09: at most 5,000 properties, 10 levels, 1,000 enum values; Azure's older page says 100 and 5) and
a sentence for each breach, with the place and what to write. What says nothing is filled in; what says something else
is refused, since the service would refuse every line. Reads no answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipeline.errors import PromptError

PROPERTIES_MAX = 5_000
LEVELS_MAX = 10
ENUM_VALUES_MAX = 1_000
NAMES_CHARACTERS_MAX = 120_000
"""All names of properties and definitions, enum and const values together."""
LARGE_ENUM_VALUES, LARGE_ENUM_CHARACTERS_MAX = 250, 15_000
"""An enum of texts with more values than the first may have that many characters in all."""

_NOTES = frozenset({"default", "examples", "$comment", "readOnly", "writeOnly", "deprecated", "$schema", "$id"})
"""Keywords that say nothing of the answer; some of them the service refuses. They are not sent."""

_TAKEN = frozenset(
    [
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref"),
        *("$defs", "definitions", "title", "description", "format", "pattern", "minLength", "maxLength"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems"),
    ]
)
_INSTEAD = {
    "oneOf": "write anyOf",
    "allOf": "write its parts into one schema",
    "not": "say what the value is, not what it is not",
    "if": "write anyOf",
    "then": "write anyOf",
    "else": "write anyOf",
    "dependentRequired": "write anyOf",
    "dependentSchemas": "write anyOf",
    "patternProperties": "write an array of objects with a name and a value",
    "propertyNames": "name the properties",
    "prefixItems": "write an object with a property for each",
    "contains": "describe it in description",
    "uniqueItems": "ask for it in description",
}
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_TYPE_OF = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_LOOSE = "or write `strict: false` beside answer, and answers are checked here alone"


def strict_form(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as it is sent: closed objects, all properties required, types spelled out where nothing is said."""
    return _filled(schema)  # type: ignore[no-any-return]


def check_strict(name: str, schema: dict[str, Any]) -> None:
    """Check a schema of `strict_form` against the rules of strict mode.

    Args:
        name: of the prompt file, for messages.
        schema: the schema; its root is an object.

    Raises:
        PromptError: the first breach, with its place in the schema and what to write.
    """
    if "anyOf" in schema:
        raise PromptError(
            f"Prompt file {name}: answer.anyOf: strict mode takes none at the root; wrap it in a property, {_LOOSE}."
        )
    for place, node, levels in _nodes(schema, "answer"):
        found = _fault(node, schema, levels)
        if found is not None:
            raise PromptError(f"Prompt file {name}: {place}{found[0]}: {found[1]}, {_LOOSE}.")
    _check_sizes(name, schema)


def _fault(node: Any, root: dict[str, Any], levels: int) -> tuple[str, str] | None:
    """What is wrong with one node: where below it, and a sentence."""
    if not isinstance(node, dict):
        return "", "strict mode wants to know what a value is; write a schema with a type in place of true or false"
    unknown = sorted(node.keys() - _TAKEN)
    if unknown:
        instead = _INSTEAD.get(unknown[0], "leave it out")
        return f".{unknown[0]}", f"strict mode does not know the keyword {unknown[0]}; {instead}"
    if "$ref" in node:
        return _reference_fault(node, root)
    if "anyOf" not in node and "type" not in node:
        return "", "strict mode needs the type of every value; add type"
    if levels > LEVELS_MAX:
        return "", f"strict mode takes at most {LEVELS_MAX} levels of objects; make the schema flatter"
    kinds = node.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "format" in node and node["format"] not in _FORMATS:
        return ".format", f"strict mode does not know the format {node['format']}; leave it out or describe it"
    if "array" in kinds and "items" not in node:
        return "", "strict mode needs the items of an array; add items"
    return _object_fault(node) if "object" in kinds else None


def _object_fault(node: dict[str, Any]) -> tuple[str, str] | None:
    if node.get("additionalProperties") is not False:
        return ".additionalProperties", "strict mode needs false here; name the properties and write false"
    properties, required = node.get("properties"), node.get("required", [])
    if not properties:
        return "", "strict mode needs the properties of an object; add properties"
    for key in properties:
        if key not in required:
            return ".required", (
                f"strict mode needs every property, and {key} is not in it; add it, and let its type be [X, 'null'] "
                "where it may be missing"
            )
    for key in required:
        if key not in properties:
            return ".required", f"{key} is no property; add it to properties or take it out"
    return None


def _reference_fault(node: dict[str, Any], root: dict[str, Any]) -> tuple[str, str] | None:
    reference = node["$ref"]
    if not isinstance(reference, str) or not reference.startswith("#"):
        return ".$ref", "strict mode follows references within the schema alone; put the target under $defs"
    found: Any = root
    for step in filter(None, reference[1:].split("/")):
        key = step.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return ".$ref", f"{reference} leads nowhere in the schema; put the target under $defs"
    if more := sorted(node.keys() - {"$ref"}):
        return f".{more[0]}", "strict mode takes nothing beside $ref; move it into the target"
    return None


def _check_sizes(name: str, schema: dict[str, Any]) -> None:
    properties = enum_values = characters = 0
    for place, node, _ in _nodes(schema, "answer"):
        if not isinstance(node, dict):
            continue
        properties += len(node.get("properties", {}))
        values = list(node.get("enum", []))
        enum_values += len(values)
        texts = sum(len(value) for value in values if isinstance(value, str))
        if len(values) > LARGE_ENUM_VALUES and texts > LARGE_ENUM_CHARACTERS_MAX:
            raise PromptError(
                f"Prompt file {name}: {place}.enum: its {len(values):,} values have {texts:,} characters, and strict "
                f"mode takes {LARGE_ENUM_CHARACTERS_MAX:,}; use fewer or shorter ones, {_LOOSE}."
            )
        named = [*node.get("properties", {}), *node.get("$defs", {}), *node.get("definitions", {})]
        characters += texts + sum(map(len, named)) + len(str(node.get("const", "")))
    for count, most, what in (
        (properties, PROPERTIES_MAX, "properties"),
        (enum_values, ENUM_VALUES_MAX, "enum values"),
        (characters, NAMES_CHARACTERS_MAX, "characters of names and enum values"),
    ):
        if count > most:
            raise PromptError(
                f"Prompt file {name}: answer has {count:,} {what}, and strict mode takes {most:,}; make it smaller, "
                f"{_LOOSE}."
            )


def _nodes(schema: Any, place: str, above: int = 0) -> Iterator[tuple[str, Any, int]]:
    """Every subschema with its place, outermost first, and how many objects it lies in, itself included."""
    levels = above + (isinstance(schema, dict) and _is_object(schema))
    yield place, schema, levels
    if not isinstance(schema, dict):
        return
    for key in ("properties", "$defs", "definitions"):
        for name, inner in (schema.get(key) or {}).items():
            yield from _nodes(inner, f"{place}.{key}{_step(name)}", levels if key == "properties" else 0)
    if "items" in schema:
        yield from _nodes(schema["items"], f"{place}.items", levels)
    for index, inner in enumerate(schema.get("anyOf", [])):
        yield from _nodes(inner, f"{place}.anyOf[{index}]", levels)


def _is_object(schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


def _step(name: str) -> str:
    return f".{name}" if name.isidentifier() else f"[{json.dumps(name, ensure_ascii=False)}]"


def _filled(schema: Any) -> Any:
    """The schema with what strict mode demands filled in where nothing is said, and without mere notes."""
    if not isinstance(schema, dict):
        return schema
    filled = {key: value for key, value in schema.items() if key not in _NOTES}
    if "items" in filled:
        filled["items"] = _filled(filled["items"])
    if "anyOf" in filled:
        filled["anyOf"] = [_filled(inner) for inner in filled["anyOf"]]
    for key in ("properties", "$defs", "definitions"):
        if key in filled:
            filled[key] = {name: _filled(inner) for name, inner in filled[key].items()}
    if "type" not in filled and (kind := _kind_of(filled)) is not None:
        filled["type"] = kind
    if _is_object(filled):
        filled.setdefault("additionalProperties", False)
        if "properties" in filled:
            filled.setdefault("required", list(filled["properties"]))
    return filled


def _kind_of(schema: dict[str, Any]) -> str | list[str] | None:
    """The type that a schema without one can only mean."""
    if "properties" in schema:
        return "object"
    if "items" in schema:
        return "array"
    values = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else []
    kinds = list(dict.fromkeys(_TYPE_OF.get(type(value), "") for value in values))
    if not kinds or "" in kinds:
        return None
    return kinds[0] if len(kinds) == 1 else kinds
