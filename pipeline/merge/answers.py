"""Typed answers: JSON Schema to Arrow types, and answers checked and converted, exactly or not at all.

Owns which schema becomes which type; what has no exact counterpart stays JSON text. Knows nothing of rows or files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import orjson
import pyarrow as pa

MESSAGE_CHARACTERS_MAX = 300
_DEPTH_MAX = 30
_PLAIN = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(), "string": pa.string()}


def answer_type(schema: dict[str, Any]) -> pa.DataType:
    """The Arrow type of answers under a JSON Schema; text (holding JSON) where there is no exact one."""
    return _type(schema, schema, 0)


def _type(schema: Any, root: dict[str, Any], depth: int) -> pa.DataType:
    if not isinstance(schema, dict) or depth > _DEPTH_MAX:
        return pa.string()
    if "$ref" in schema:
        target = _resolved(str(schema["$ref"]), root)
        # A schema that contains itself has no finite type; its depth tells.
        return _type(target, root, depth + 1) if target is not None and not _recursive(target, root) else pa.string()
    if "anyOf" in schema:
        options = [
            option for option in schema["anyOf"] if not (isinstance(option, dict) and option.get("type") == "null")
        ]
        return _type(options[0], root, depth + 1) if len(options) == 1 else pa.string()
    kind = schema.get("type")
    if isinstance(kind, list):
        kinds = [name for name in kind if name != "null"]
        kind = kinds[0] if len(kinds) == 1 else None
    if "enum" in schema and all(isinstance(value, str) or value is None for value in schema["enum"]):
        return pa.dictionary(pa.int32(), pa.string())
    if kind == "object" and schema.get("properties") and schema.get("additionalProperties", False) is False:
        return pa.struct([(name, _type(inner, root, depth + 1)) for name, inner in schema["properties"].items()])
    if kind == "array" and "items" in schema:
        return pa.list_(_type(schema["items"], root, depth + 1))
    return _PLAIN.get(str(kind), pa.string())


def _resolved(reference: str, root: dict[str, Any]) -> Any:
    if not reference.startswith("#"):
        return None
    found: Any = root
    for step in filter(None, reference[1:].split("/")):
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _recursive(schema: Any, root: dict[str, Any]) -> bool:
    """Whether a schema reaches itself through references."""
    seen: list[Any] = []

    def walk(node: Any, path: tuple[int, ...]) -> bool:
        if isinstance(node, list):
            return any(walk(entry, path) for entry in node)
        if not isinstance(node, dict):
            return False
        if id(node) in path:
            return True
        if "$ref" in node:
            target = _resolved(str(node["$ref"]), root)
            return walk(target, (*path, id(node)))
        return any(walk(value, (*path, id(node))) for value in node.values() if isinstance(value, dict | list))

    seen.append(schema)
    return walk(schema, ())


def checker(schema: dict[str, Any]) -> Callable[[str], str | None]:
    """A function that says what is wrong with an answer's text under a schema, or None."""
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)

    def breaks(text: str) -> str | None:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return f"the answer is no JSON ({error})"[:MESSAGE_CHARACTERS_MAX]
        fault = jsonschema.exceptions.best_match(validator.iter_errors(value))
        return None if fault is None else f"{fault.json_path}: {fault.message}"[:MESSAGE_CHARACTERS_MAX]

    return breaks


def converted(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column of JSON texts as a column of their type; null stays null.

    A value that the type cannot hold exactly (an integer beyond 64 bits) becomes null without touching its neighbours.
    """
    values = [None if text is None else _fit(orjson.loads(text), kind) for text in texts.to_pylist()]
    return pa.array(values, kind)


def _fit(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return (
            {field.name: _fit(value.get(field.name), field.type) for field in kind} if isinstance(value, dict) else None
        )
    if pa.types.is_list(kind):
        return [_fit(entry, kind.value_type) for entry in value] if isinstance(value, list) else None
    if pa.types.is_int64(kind):
        whole = int(value) if isinstance(value, int | float) and float(value).is_integer() else None
        return whole if whole is not None and -(1 << 63) <= whole < 1 << 63 else None
    if pa.types.is_float64(kind):
        return float(value) if isinstance(value, int | float) else None
    if pa.types.is_boolean(kind):
        return value if isinstance(value, bool) else None
    return value if isinstance(value, str) else orjson.dumps(value).decode()
