"""Typed answers: JSON Schema to Arrow types, and answers checked and converted, exactly or not at all.

Owns which schema becomes which type; what has no exact counterpart stays JSON text. Knows nothing of rows or files.
"""

from __future__ import annotations

import re
import secrets
import sys
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from pipeline.result_line import json_text, parsed

_DOUBLE_MAX = sys.float_info.max
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.IGNORECASE)
_BROKEN = object()
_DEPTH_MAX = 30
_READABLE = (pa.int64(), pa.float64(), pa.float32(), pa.bool_(), pa.string())
_PLAIN = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(), "string": pa.string()}
_FORMATS = {"date": pa.date32(), "date-time": pa.timestamp("us", tz="UTC")}


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
    if kind == "string" and schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
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


def converted(texts: pa.Array, kind: pa.DataType, *, several: bool = False) -> tuple[pa.Array, Any]:
    """A column of JSON texts as a column of their type; null stays null.

    Args:
        texts: JSON texts.
        kind: the type, of `answer_type`; a list of it where there are several answers.
        several: each text is a list of answers' texts.

    Returns:
        The column, and a mask: True where the type could not hold all of the value (an integer beyond 64 bits, a
        property that the schema does not name, a date that is none); that part is null, its neighbours are whole.
    """
    if not several and _is_readable(kind) and (read := _read_at_once(texts, kind)) is not None:
        return read, np.zeros(len(texts), dtype=bool)
    fit = _Fit()
    values, masks = [], np.zeros(len(texts), dtype=bool)
    for index, text in enumerate(texts.to_pylist()):
        fit.lossy = False
        values.append(None if text is None else fit.value(_parsed(text, several), kind))
        masks[index] = fit.lossy
    return pa.array(values, kind), masks


def _parsed(text: str, several: bool) -> Any:
    try:
        found = parsed(text.encode("utf-8", "replace"), strict=True)
        if not several:
            return found
        return [None if inner is None else parsed(inner.encode("utf-8", "replace"), strict=True) for inner in found]
    except ValueError:
        return _BROKEN


def _is_readable(kind: pa.DataType) -> bool:
    """Whether pyarrow's JSON reader gives this type exactly, or raises."""
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_is_readable(field.type) for field in kind)
    if pa.types.is_list(kind):
        return _is_readable(kind.value_type)
    return kind in _READABLE or pa.types.is_dictionary(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type with text in place of dictionaries and doubles in place of floats, as the reader reads it."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_floating(kind):
        return pa.float64()
    return pa.string() if pa.types.is_dictionary(kind) else kind


def _encoded(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values of `_plain(kind)` as values of the type itself."""
    if values.type == kind:
        return values
    if pa.types.is_struct(kind):
        parts = [_encoded(values.field(index), field.type) for index, field in enumerate(kind)]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=pc.is_null(values))
    if pa.types.is_list(kind):
        inner = _encoded(values.values, kind.value_type)
        return pa.ListArray.from_arrays(values.offsets, inner, type=kind, mask=pc.is_null(values))
    return pc.cast(values, kind) if pa.types.is_floating(kind) else values.dictionary_encode()


def _is_finite(values: pa.Array) -> bool:
    """Whether every number is one: the reader makes infinity of what is beyond all doubles."""
    if pa.types.is_struct(values.type):
        return all(_is_finite(values.field(index)) for index in range(values.type.num_fields))
    if pa.types.is_list(values.type):
        return _is_finite(values.values)
    return not pa.types.is_floating(values.type) or pc.all(pc.is_finite(values)).as_py() is not False


def _read_at_once(texts: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """The column by pyarrow's JSON reader; None where that may differ from one text at a time.

    Each text is wrapped with its number under a name that no text can know, so that none can pass for two, or swallow
    the next.
    """
    valid = texts.drop_null()
    if not len(valid):
        return pa.nulls(len(texts), kind)
    name = f"n{secrets.token_hex(8)}"
    numbers = pc.cast(pa.array(np.arange(len(valid))), pa.large_string())
    clean = pc.replace_substring(pc.replace_substring(pc.cast(valid, pa.large_string()), "\n", " "), "\r", " ")
    head, middle, tail, none = (pa.scalar(text, pa.large_string()) for text in (f'{{"{name}":', ',"a":', "}\n", ""))
    lines = pc.binary_join_element_wise(head, numbers, middle, clean, tail, none)
    content = lines.buffers()[2]
    parse = pj.ParseOptions(
        explicit_schema=pa.schema([(name, pa.int64()), ("a", _plain(kind))]), unexpected_field_behavior="error"
    )
    try:
        table = pj.read_json(pa.BufferReader(content), pj.ReadOptions(block_size=content.size + 1), parse)
    except pa.ArrowInvalid:
        return None
    if not np.array_equal(table[name].to_numpy(), np.arange(len(valid))):
        return None
    read = table["a"].combine_chunks()
    if not _is_finite(read):
        return None
    values = _encoded(read, kind)
    if len(valid) == len(texts):
        return values
    places = np.cumsum(pc.is_valid(texts).to_numpy(zero_copy_only=False)) - 1
    return values.take(pa.array(places, mask=pc.is_null(texts).to_numpy(zero_copy_only=False)))


class _Fit:
    """Values as their type holds them; `lossy` once one did not fit whole."""

    def __init__(self) -> None:
        self.lossy = False

    def value(self, value: Any, kind: pa.DataType) -> Any:
        if value is None:
            return None
        if pa.types.is_struct(kind) and isinstance(value, dict):
            self.lossy |= not value.keys() <= {field.name for field in kind}
            return {field.name: self.value(value.get(field.name), field.type) for field in kind}
        if pa.types.is_list(kind) and isinstance(value, list):
            return [self.value(entry, kind.value_type) for entry in value]
        found = self._leaf(value, kind)
        self.lossy |= found is None
        return found

    def _leaf(self, value: Any, kind: pa.DataType) -> Any:
        if value is _BROKEN or pa.types.is_nested(kind):
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if pa.types.is_int64(kind):
            whole = int(value) if number and (isinstance(value, int) or value.is_integer()) else None
            return whole if whole is not None and -(1 << 63) <= whole < 1 << 63 else None
        if pa.types.is_floating(kind):
            return float(value) if number and abs(value) <= _DOUBLE_MAX else None
        if pa.types.is_boolean(kind):
            return value if isinstance(value, bool) else None
        if pa.types.is_temporal(kind):
            return _moment(value, kind)
        if pa.types.is_dictionary(kind):
            return value if isinstance(value, str) else None
        return value if isinstance(value, str) else json_text(value)


def _moment(value: Any, kind: pa.DataType) -> Any:
    """A date or an instant as RFC 3339 writes it, to the microsecond; None where it is none."""
    try:
        if pa.types.is_date(kind):
            return date.fromisoformat(value) if _DATE.fullmatch(value) else None
        return datetime.fromisoformat(value.upper()).astimezone(UTC) if _INSTANT.fullmatch(value) else None
    except (TypeError, ValueError, OverflowError):
        return None
