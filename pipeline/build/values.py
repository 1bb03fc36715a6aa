"""What an expression of a template is worth, as a polars expression with its static type.

Owns the kinds of values that columns at once can hold exactly as Python would, how each is printed, and what is true.
A kind or a print that is not exact for every row comes with a requirement on the data; rows that do not meet it are
filled by Jinja2. Knows nothing of syntax trees or of Arrow data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from typing import Any, TypeVar

import polars as pl
import pyarrow as pa

EXACT_BITS = 53
"""Whole numbers below 2 to this power are exact as a float."""

INT128_BITS_MAX = 126
"""Largest magnitude of whole numbers computed at once, as a power of two; beyond, Python's own numbers go on."""


_Made = TypeVar("_Made")


class Slow(Exception):  # noqa: N818 - reads as what happened
    """Columns at once cannot give what Jinja2 gives; the text says what of the template is the reason."""


class Kind(StrEnum):
    """The static types; the values are their names in messages."""

    TEXT = "text"
    INT = "whole numbers"
    FLOAT = "floats"
    BOOL = "booleans"
    DECIMAL = "decimals"
    DATE = "dates"
    DATETIME = "datetimes"
    BINARY = "binary"
    LIST = "a list"
    STRUCT = "a struct"
    PRINTED = "values that only Python prints"
    MARKUP = "the text that tojson gives"
    NONE = "none"


NUMBERS = frozenset({Kind.INT, Kind.FLOAT})
ORDERED = frozenset({Kind.TEXT, Kind.DATE})


@dataclass(frozen=True, slots=True)
class Value:
    """A value of every row of a block.

    Attributes:
        kind: Its type.
        expr: The polars expression.
        nullable: Whether it can be None where all requirements are met.
        type: Arrow type, of lists and structs.
        bits: Whole numbers: the magnitude is below 2 to this power (or equal, for the least).
        scale: Decimals: digits after the point. Datetimes: 1 where they print `+00:00`.
        ascii_by: Text: the columns that, all ASCII, make it ASCII; None where that cannot be told.
        column: The column that it is, untouched; None where it was computed.
        constant: Its value, where it is the same in all rows and `is_constant`.
        unescaped: Text: JSON holds it as it is, whatever the row.
    """

    kind: Kind
    expr: pl.Expr
    nullable: bool = False
    type: pa.DataType | None = None
    bits: int = 0
    scale: int = 0
    ascii_by: frozenset[str] | None = None
    column: str | None = None
    constant: Any = None
    is_constant: bool = False
    unescaped: bool = False


@dataclass(frozen=True, slots=True)
class Requirement:
    """A condition on the data under which columns at once are exact.

    Attributes:
        expr: True for the rows that meet it.
        unless_ascii: Columns that, all ASCII, meet it for every row; None: it has to be computed.
    """

    expr: pl.Expr
    unless_ascii: frozenset[str] | None = None


@dataclass(slots=True)
class Requirements:
    """Requirements as they are collected, each under the conditions of the branch it stands in."""

    found: list[Requirement] = field(default_factory=list)
    _under: list[pl.Expr] = field(default_factory=list)

    def add(self, expr: pl.Expr, unless_ascii: frozenset[str] | None = None) -> None:
        """Require something of the rows that come here."""
        if self._under:
            here = reduce(lambda a, b: a & b, self._under)
            expr = ~here | expr.fill_null(False)
        self.found.append(Requirement(expr, unless_ascii))

    def under(self, condition: pl.Expr, make: Callable[[], _Made]) -> _Made:
        """What `make` gives, its requirements only for the rows of a condition."""
        self._under.append(condition)
        try:
            return make()
        finally:
            self._under.pop()


def constant(value: Any) -> Value:
    """The value of a constant.

    Raises:
        Slow: no kind holds it.
    """
    if value is None:
        return Value(Kind.NONE, pl.lit(None, dtype=pl.String), nullable=True, constant=None, is_constant=True)
    if isinstance(value, bool):
        return Value(Kind.BOOL, pl.lit(value), constant=value, is_constant=True)
    if type(value) is int and value.bit_length() <= INT128_BITS_MAX:
        bits = value.bit_length()
        return Value(Kind.INT, pl.lit(value, dtype=_whole(bits)), bits=bits, constant=value, is_constant=True)
    if isinstance(value, float):
        return Value(Kind.FLOAT, pl.lit(value, dtype=pl.Float64), constant=value, is_constant=True)
    if type(value) is str and not any("\ud800" <= character <= "\udfff" for character in value):
        plain = frozenset[str]() if value.isascii() else None
        return Value(Kind.TEXT, pl.lit(value, dtype=pl.String), ascii_by=plain, constant=value, is_constant=True)
    raise Slow("has a constant that only Python holds")


def whole(expr: pl.Expr, bits: int) -> Value:
    """A whole number, in a type wide enough for it.

    Raises:
        Slow: no type is.
    """
    if bits > INT128_BITS_MAX:
        raise Slow("computes whole numbers that may become very large")
    return Value(Kind.INT, expr, bits=bits)


def widened(value: Value, bits: int) -> pl.Expr:
    """A whole number in a type that holds so many bits."""
    return value.expr.cast(_whole(bits))


def _whole(bits: int) -> Any:
    return pl.Int64 if bits <= 62 else pl.Int128


def text(expr: pl.Expr, ascii_by: frozenset[str] | None, *, nullable: bool = False, unescaped: bool = False) -> Value:
    """A text."""
    return Value(Kind.TEXT, expr, nullable=nullable, ascii_by=ascii_by, unescaped=unescaped)


def present(value: Value, requirements: Requirements) -> Value:
    """The value of the rows in which it is not None; the others are Jinja2's."""
    if value.kind is Kind.NONE:
        raise Slow("computes with none")
    if value.nullable:
        requirements.add(value.expr.is_not_null())
    return value


def as_float(value: Value, requirements: Requirements) -> pl.Expr:
    """A number as a float, where that is exact."""
    if value.kind is Kind.INT and value.bits > EXACT_BITS:
        requirements.add(value.expr.cast(pl.Int128).abs() <= pl.lit(2**EXACT_BITS, dtype=pl.Int128))
    return value.expr.cast(pl.Float64)


def truth(value: Value) -> pl.Expr:
    """Whether the value is true, as Python sees it; never null.

    Raises:
        Slow: that depends on what only Python knows.
    """
    match value.kind:
        case Kind.NONE:
            return pl.lit(False)
        case Kind.BOOL:
            found = value.expr
        case Kind.TEXT | Kind.MARKUP:
            found = value.expr.str.len_bytes() > 0
        case Kind.BINARY:
            found = value.expr.bin.size() > 0
        case Kind.INT | Kind.FLOAT:
            found = value.expr != 0
        case Kind.LIST:
            found = value.expr.list.len() > 0
        case Kind.DATE | Kind.DATETIME:
            found = value.expr.is_not_null()
        case Kind.STRUCT:
            found = value.expr.is_not_null() & pl.lit(bool(value.type is not None and value.type.num_fields))
        case _:
            raise Slow(f"asks whether {value.kind.value} are true")
    return found.fill_null(False) if value.nullable else found


def printed(value: Value, requirements: Requirements) -> Value:
    """The value as the text that Python prints.

    Raises:
        Slow: only Python can print it.
    """
    if value.is_constant and value.kind is not Kind.TEXT:
        return constant(str(value.constant))
    if value.kind is Kind.TEXT and not value.nullable:
        return value
    unescaped = True
    match value.kind:
        case Kind.TEXT | Kind.MARKUP | Kind.PRINTED:
            found, ascii_by, unescaped = value.expr, value.ascii_by, False
        case Kind.INT:
            found, ascii_by = value.expr.cast(pl.String), frozenset[str]()
        case Kind.BOOL:
            found = pl.when(value.expr).then(pl.lit("True")).otherwise(pl.lit("False"))
            found = pl.when(value.expr.is_not_null()).then(found) if value.nullable else found
            ascii_by = frozenset()
        case Kind.FLOAT:
            _require(value, plain_float(value.expr), requirements)
            found, ascii_by = value.expr.cast(pl.String), frozenset()
        case Kind.DECIMAL:
            if value.scale > 6:  # Python turns to an exponent below a millionth, and for a zero of so many places
                _require(value, value.expr.abs().cast(pl.Float64) >= 1.5e-6, requirements)
            found, ascii_by = value.expr.cast(pl.String), frozenset()
        case Kind.DATE:
            found, ascii_by = value.expr.dt.to_string("%Y-%m-%d"), frozenset()
        case Kind.DATETIME:
            found, ascii_by = _datetime(value.expr, "+00:00" if value.scale else ""), frozenset()
        case _:
            raise Slow(f"prints a part of {value.kind.value}" if value.type else f"prints {value.kind.value}")
    return text(found.fill_null("None") if value.nullable else found, ascii_by, unescaped=unescaped)


def plain_float(number: pl.Expr) -> pl.Expr:
    """Whether Python prints a float without an exponent, where the digits are the same as polars'."""
    size = number.abs()
    return (size == 0) | ((size >= 1e-4) & (size < 1e16))


def json_of(text_expr: pl.Expr) -> pl.Expr:
    """A text as a JSON string."""
    return pl.struct(text_expr.alias("x")).struct.json_encode().str.strip_prefix('{"x":').str.strip_suffix("}")


def _require(value: Value, condition: pl.Expr, requirements: Requirements) -> None:
    requirements.add(condition | value.expr.is_null() if value.nullable else condition)


def _datetime(moment: pl.Expr, zone: str) -> pl.Expr:
    whole_seconds = moment.dt.to_string("%Y-%m-%d %H:%M:%S")
    parts = moment.dt.to_string("%Y-%m-%d %H:%M:%S%.6f")
    found = pl.when(moment.dt.microsecond() == 0).then(whole_seconds).otherwise(parts)
    return pl.concat_str([found, pl.lit(zone)]) if zone else found
