"""What fast templates read of a block: columns in a form that polars holds exactly as a template would see them.

A column comes as its values, as the text that Python prints of each, or as the JSON of each; the last two for types
whose text only Python knows (zoned times, durations, lists). Owns the static kind of every Arrow type. Knows nothing
of templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import polars as pl
import pyarrow as pa
from jinja2.utils import htmlsafe_json_dumps

from pipeline.build.columns import Unreadable, is_binary, is_text, python_values, unwrapped
from pipeline.build.sandbox import has_text
from pipeline.build.values import INT128_BITS_MAX, Kind, Slow, Value

_UTC = ("UTC", "Etc/UTC", "+00:00")


class Form(StrEnum):
    """How a column is handed over."""

    VALUE = "value"
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Input:
    """A column in one form."""

    column: str
    form: Form


class UnpreparedError(Exception):
    """A block's column has a value that its form cannot hold: the block is Jinja2's."""


def kind_of(kind: pa.DataType) -> Kind:
    """The static kind of a column's values.

    Raises:
        Slow: no form of the column is exact.
    """
    kind = unwrapped(kind)
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return Kind.PRINTED
    if types.is_null(kind):
        raise Slow("uses a column that is null everywhere")
    if is_text(kind):
        return Kind.TEXT
    if types.is_integer(kind):
        return Kind.INT
    if types.is_floating(kind):
        return Kind.FLOAT
    if types.is_boolean(kind):
        return Kind.BOOL
    if types.is_decimal(kind):
        return Kind.PRINTED if types.is_decimal256(kind) or kind.scale < 0 else Kind.DECIMAL
    if types.is_date(kind):
        return Kind.DATE
    if types.is_timestamp(kind) and (kind.tz is None or kind.tz in _UTC):
        return Kind.DATETIME
    if is_binary(kind):
        return Kind.BINARY
    if types.is_struct(kind) or _is_list(kind):
        if not _always_readable(kind):
            return Kind.PRINTED
        return Kind.STRUCT if types.is_struct(kind) else Kind.LIST
    return Kind.PRINTED


def value_of(name: str, expr: pl.Expr, kind: pa.DataType, *, nullable: bool) -> Value:
    """A column's value, read from its input."""
    kind = unwrapped(kind)
    static = kind_of(kind)
    plain = frozenset([name]) if static is Kind.TEXT else None
    scale = kind.scale if static is Kind.DECIMAL else int(static is Kind.DATETIME and kind.tz is not None)
    return Value(
        static,
        expr,
        nullable=nullable,
        type=kind if static in (Kind.LIST, Kind.STRUCT) else None,
        bits=_bits(kind) if static is Kind.INT else 0,
        scale=scale,
        ascii_by=plain,
        column=name,
    )


def part_of(expr: pl.Expr, kind: pa.DataType) -> Value:
    """A value inside a list or struct, any of which may be null.

    Args:
        expr: The part.
        kind: Its type, of those that can always be read.
    """
    static = kind_of(kind)
    return Value(
        static,
        expr.cast(pl.Float64) if static is Kind.FLOAT else expr,
        nullable=True,
        type=kind if static in (Kind.LIST, Kind.STRUCT) else None,
        bits=_bits(kind) if static is Kind.INT else 0,
    )


def prepare(array: pa.Array, form: Form) -> pa.Array:
    """A block's column in a form.

    Args:
        array: The unwrapped values, texts known to be valid UTF-8.
        form: What is asked for.

    Raises:
        UnpreparedError: a value cannot be held.
    """
    if form is Form.VALUE:
        return _values(array)
    if len(array) and pa.types.is_temporal(array.type):  # few different ones, usually
        encoded = array.dictionary_encode()
        return _printed(encoded.dictionary, form).take(encoded.indices)
    return _printed(array, form)


def _printed(array: pa.Array, form: Form) -> pa.Array:
    texts: list[str | None] = []
    for value in python_values(array):
        if isinstance(value, Unreadable):
            raise UnpreparedError
        if form is Form.JSON:
            texts.append(_json(value))
        else:
            texts.append(None if value is None else _text(value))
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        raise UnpreparedError from None


def _text(value: Any) -> str:
    try:
        return str(has_text(value))
    except TypeError:
        raise UnpreparedError from None


def _json(value: Any) -> str:
    try:
        return str(htmlsafe_json_dumps(value, sort_keys=True))
    except (TypeError, ValueError, RecursionError):
        raise UnpreparedError from None


def _values(array: pa.Array) -> pa.Array:
    kind = array.type
    types = pa.types
    try:
        if types.is_float32(kind):
            return array.cast(pa.string()).cast(pa.float64())
        if types.is_float16(kind):
            return array.cast(pa.float64())
        if types.is_decimal(kind):
            return array.cast(pa.decimal128(38, kind.scale))
        if types.is_date64(kind):
            return array.cast(pa.date32())
        if types.is_timestamp(kind):
            return array.cast(pa.timestamp("us", kind.tz), safe=kind.unit != "ns").cast(pa.timestamp("us"))
        if types.is_fixed_size_list(kind):
            array = array.cast(pa.list_(kind.value_field))
        if types.is_nested(kind):
            array.validate(full=True)
    except pa.ArrowInvalid:
        raise UnpreparedError from None
    return array


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _always_readable(kind: pa.DataType) -> bool:
    """Whether every value of a nested type is one in Python too, and polars holds its parts as they are.

    A value with one part that Python cannot hold (a date after the year 9999) counts as unreadable as a whole.
    """
    names = [kind.field(index).name for index in range(kind.num_fields)]
    if len(set(names)) < len(names):
        return False
    for index in range(kind.num_fields):
        inner = kind.field(index).type
        plain = inner.num_fields == 0 and (is_text(inner) or is_binary(inner) or _is_plain_number(inner))
        nested = (pa.types.is_struct(inner) or _is_list(inner)) and not pa.types.is_fixed_size_list(inner)
        if not (plain or (nested and _always_readable(inner))):
            return False
    return True


def _is_plain_number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_boolean(kind) or types.is_float32(kind) or types.is_float64(kind))


def _bits(kind: pa.DataType) -> int:
    bits = int(kind.bit_width) - (0 if pa.types.is_unsigned_integer(kind) else 1)
    assert bits <= INT128_BITS_MAX
    return bits
