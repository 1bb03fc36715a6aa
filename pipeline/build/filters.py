"""The filters that columns at once give exactly as Jinja2 does, each by the type of what it is given.

A filter that is exact for some data only adds a requirement on it: letters that this Python and polars turn to capitals
differently, numbers written in an unusual way, roundings too close to call. Every other filter, and every argument
that is no constant, is Jinja2's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import polars as pl
from jinja2 import nodes

from pipeline.build.inputs import Form, part_of
from pipeline.build.references import true_argument
from pipeline.build.values import (
    Kind,
    Slow,
    Value,
    constant,
    json_of,
    present,
    printed,
    text,
    whole,
    widened,
)

if TYPE_CHECKING:
    from pipeline.build.expressions import Expressions

PYTHON_WHITE_SPACE = "".join(chr(point) for point in range(0x3001) if chr(point).isspace())
"""What Python strips: four control characters more than Unicode's White_Space."""

ROUNDED_MAX = 2.0**40
"""Numbers are rounded at once up to this size, times ten to the digits asked for."""

ROUND_DOUBT = 2.0**-10
"""How far from a half the digits cut off must be: above the error of the multiplication at that size."""

DIGITS_MAX = 9
"""Most digits after the point that are rounded to at once."""


def asks_truth(node: nodes.Filter) -> bool:
    """Whether a `default` stands in for everything that is not true."""
    return true_argument(node) and node.node is not None


def default_parts(node: nodes.Filter) -> tuple[nodes.Node, nodes.Node]:
    """What a `default` filter is given, and what stands in for it."""
    assert node.node is not None
    given = [*node.args[:1], *(pair.value for pair in node.kwargs if pair.key == "default_value")]
    return node.node, given[0] if given else nodes.Const("")


def apply(within: Expressions, node: nodes.Filter) -> Value:
    """The value of a filter.

    Raises:
        Slow: columns at once cannot give it.
    """
    if node.node is None:
        raise Slow("has a block of filter")
    if node.name in ("default", "d"):
        if asks_truth(node):
            return within.choose(node)
        if len(node.args) > 1 or node.kwargs:
            raise Slow("uses the filter default with unusual arguments")
        return within.value(node.node)  # a column is never undefined
    make = FILTERS.get(node.name)
    if make is None:
        raise Slow(f"uses the filter {node.name}")
    if node.dyn_args or node.dyn_kwargs:
        raise Slow(f"uses the filter {node.name} with computed arguments")
    context = nodes.EvalContext(within.environment)
    try:
        args = [argument.as_const(context) for argument in node.args]
        named = {str(pair.key): pair.value.as_const(context) for pair in node.kwargs}
    except nodes.Impossible:
        raise Slow(f"uses the filter {node.name} with computed arguments") from None
    try:
        return make(within, within.value(node.node), *args, **named)
    except TypeError as error:
        raise Slow(f"uses the filter {node.name} with unusual arguments") from error


def _as_text(within: Expressions, value: Value) -> Value:
    return within.printed_value(value)


# ---- texts


def _trim(within: Expressions, value: Value, chars: str | None = None) -> Value:
    found = _as_text(within, value)
    if chars is not None and (type(chars) is not str or not chars):
        raise Slow("uses the filter trim with unusual arguments")
    return text(found.expr.str.strip_chars(chars or PYTHON_WHITE_SPACE), found.ascii_by)


def _upper(within: Expressions, value: Value) -> Value:
    found = _as_text(within, value)
    _require_none_of(within, found, odd_to_upper())
    return text(found.expr.str.to_uppercase(), found.ascii_by)


def _lower(within: Expressions, value: Value) -> Value:
    found = _as_text(within, value)
    _require_none_of(within, found, odd_to_lower())
    return text(found.expr.str.to_lowercase(), found.ascii_by)


def _require_none_of(within: Expressions, found: Value, heads: tuple[bytes, ...]) -> None:
    raw = found.expr.cast(pl.Binary)
    for head in heads:
        within.requirements.add(~raw.bin.contains(head), found.ascii_by)


def _replace(within: Expressions, value: Value, old: str, new: str) -> Value:
    found = _as_text(within, value)
    if type(old) is not str or type(new) is not str or not old:
        raise Slow("uses the filter replace with unusual arguments")
    plain = found.ascii_by if new.isascii() else None
    return text(found.expr.str.replace_all(constant(old).expr, constant(new).expr, literal=True), plain)


def _truncate(  # noqa: PLR0917 - the filter's own parameters
    within: Expressions,
    value: Value,
    length: int = 255,
    killwords: bool = False,
    end: str = "...",
    leeway: int | None = None,
) -> Value:
    if leeway is None:
        leeway = within.environment.policies["truncate.leeway"]
    if value.kind is not Kind.TEXT:
        raise Slow(f"uses the filter truncate on {value.kind.value}")
    if type(length) is not int or type(leeway) is not int or type(end) is not str or type(killwords) is not bool:
        raise Slow("uses the filter truncate with unusual arguments")
    if length < len(end) or leeway < 0:
        raise Slow("uses the filter truncate with a length below that of its end")
    whole_text = present(value, within.requirements).expr
    kept = whole_text.str.slice(0, length - len(end))
    if not killwords:
        kept = kept.str.replace(r"(?s) [^ ]*\z", "")
    cut = pl.concat_str([kept, constant(end).expr])
    short = whole_text.str.len_chars() <= length + leeway
    return text(pl.when(short).then(whole_text).otherwise(cut), value.ascii_by if end.isascii() else None)


def _string(within: Expressions, value: Value) -> Value:
    return _as_text(within, value)


def _b64encode(within: Expressions, value: Value) -> Value:
    present(value, within.requirements)
    if value.kind is Kind.BINARY:
        return text(value.expr.bin.encode("base64"), frozenset())
    if value.kind is Kind.TEXT:
        return text(value.expr.cast(pl.Binary).bin.encode("base64"), frozenset())
    raise Slow(f"uses the filter b64encode on {value.kind.value}")


def _tojson(within: Expressions, value: Value) -> Value:
    if value.column is not None and value.kind in (Kind.LIST, Kind.STRUCT):
        return Value(Kind.MARKUP, within.input(value.column, Form.JSON), ascii_by=frozenset())
    if value.nullable:
        present(value, within.requirements)
    if value.kind is Kind.TEXT:
        within.requirements.add(~value.expr.str.contains(r"[^\x00-\x7e]"), None)
        encoded = json_of(value.expr)
        for character in "<>&'":
            encoded = encoded.str.replace_all(character, f"\\u{ord(character):04x}", literal=True)
        return Value(Kind.MARKUP, encoded, ascii_by=frozenset())
    if value.kind is Kind.BOOL:
        found = pl.when(value.expr).then(pl.lit("true")).otherwise(pl.lit("false"))
        return Value(Kind.MARKUP, found, ascii_by=frozenset())
    if value.kind in (Kind.INT, Kind.FLOAT):
        return Value(Kind.MARKUP, printed(value, within.requirements).expr, ascii_by=frozenset())
    raise Slow(f"uses the filter tojson on {value.kind.value}")


# ---- lists


def _length(within: Expressions, value: Value) -> Value:
    present(value, within.requirements)
    match value.kind:
        case Kind.TEXT:
            return whole(value.expr.str.len_chars().cast(pl.Int64), 40)
        case Kind.LIST:
            return whole(value.expr.list.len().cast(pl.Int64), 40)
        case Kind.BINARY:
            return whole(value.expr.bin.size().cast(pl.Int64), 40)
    raise Slow(f"uses the filter length on {value.kind.value}")


def _first(within: Expressions, value: Value) -> Value:
    return within.item(value, 0)


def _last(within: Expressions, value: Value) -> Value:
    return within.item(value, -1)


def _join(within: Expressions, value: Value, d: str = "") -> Value:
    if value.kind is not Kind.LIST or value.type is None or type(d) is not str:
        raise Slow(f"uses the filter join on {value.kind.value}")
    present(value, within.requirements)
    inner = part_of(pl.element(), value.type.value_type)
    if inner.kind not in (Kind.TEXT, Kind.INT):
        raise Slow(f"uses the filter join on a list of {inner.kind.value}")
    texts = value.expr.list.eval(printed(inner, within.requirements).expr)
    return text(texts.list.join(constant(d).expr, ignore_nulls=False), None)


# ---- numbers


def _int(within: Expressions, value: Value, default: int = 0, base: int = 10) -> Value:
    present(value, within.requirements)
    if base != 10:
        raise Slow("uses the filter int with another base")
    match value.kind:
        case Kind.INT:
            return Value(Kind.INT, value.expr, bits=value.bits)
        case Kind.BOOL:
            return whole(value.expr.cast(pl.Int64), 1)
        case Kind.FLOAT:
            within.requirements.add(value.expr.abs() < 2.0**62)
            return whole(value.expr.cast(pl.Int64, strict=False), 62)
        case Kind.TEXT:
            within.requirements.add(value.expr.str.contains(r"\A-?[0-9]{1,18}\z"))
            return whole(value.expr.cast(pl.Int64, strict=False), 62)
    raise Slow(f"uses the filter int on {value.kind.value}")


def _float(within: Expressions, value: Value, default: float = 0.0) -> Value:
    present(value, within.requirements)
    match value.kind:
        case Kind.FLOAT:
            return Value(Kind.FLOAT, value.expr)
        case Kind.INT | Kind.BOOL:
            return Value(Kind.FLOAT, value.expr.cast(pl.Float64))
        case Kind.TEXT:
            within.requirements.add(value.expr.str.contains(r"\A-?[0-9]{1,15}(\.[0-9]{1,15})?\z"))
            return Value(Kind.FLOAT, value.expr.cast(pl.Float64, strict=False))
    raise Slow(f"uses the filter float on {value.kind.value}")


def _round(within: Expressions, value: Value, precision: int = 0, method: str = "common") -> Value:
    present(value, within.requirements)
    if type(precision) is not int or not 0 <= precision <= DIGITS_MAX or method not in ("common", "ceil", "floor"):
        raise Slow("uses the filter round with unusual arguments")
    if value.kind is Kind.INT and method == "common":
        return Value(Kind.INT, value.expr, bits=value.bits)
    if value.kind is not Kind.FLOAT:
        raise Slow(f"uses the filter round on {value.kind.value}")
    power = 10.0**precision
    scaled = value.expr * power
    within.requirements.add(scaled.abs() < ROUNDED_MAX)
    if method != "common":
        found = (scaled.ceil() if method == "ceil" else scaled.floor()) + 0.0
        return Value(Kind.FLOAT, found / power)
    if precision:  # a half in binary is seldom a half in decimal: only Python tells
        within.requirements.add(((scaled - scaled.floor()) - 0.5).abs() > ROUND_DOUBT)
    return Value(Kind.FLOAT, scaled.round(0, mode="half_to_even") / power)


def _abs(within: Expressions, value: Value) -> Value:
    present(value, within.requirements)
    if value.kind is Kind.INT:
        return whole(widened(value, value.bits).abs(), value.bits)
    if value.kind is Kind.FLOAT:
        return Value(Kind.FLOAT, value.expr.abs())
    raise Slow(f"uses the filter abs on {value.kind.value}")


FILTERS: dict[str, Callable[..., Value]] = {
    "abs": _abs,
    "b64encode": _b64encode,
    "count": _length,
    "first": _first,
    "float": _float,
    "int": _int,
    "join": _join,
    "last": _last,
    "length": _length,
    "lower": _lower,
    "replace": _replace,
    "round": _round,
    "string": _string,
    "tojson": _tojson,
    "trim": _trim,
    "truncate": _truncate,
    "upper": _upper,
}


# ---- letters


@functools.cache
def odd_to_upper() -> tuple[bytes, ...]:
    """How the letters begin that this Python and polars do not turn to the same capitals, in UTF-8."""
    return _heads(_odd(str.upper, pl.col("").str.to_uppercase()))


@functools.cache
def odd_to_lower() -> tuple[bytes, ...]:
    """How the letters begin that this Python and polars do not turn to the same small ones, in UTF-8.

    The Greek sigma is among them, since its small form depends on what stands around it.
    """
    return _heads([*_odd(str.lower, pl.col("").str.to_lowercase()), "Σ"])


def _odd(python: Callable[[str], str], expr: pl.Expr) -> list[str]:
    characters = [chr(point) for point in range(1, 0x110000) if not 0xD800 <= point <= 0xDFFF]
    together = "\0".join(characters)
    ours, theirs = python(together), pl.DataFrame({"": [together]}).select(expr).item()
    if ours == theirs:
        return []
    pairs: Any = zip(characters, ours.split("\0"), theirs.split("\0"), strict=True)
    return [character for character, mine, other in pairs if mine != other]


def _heads(characters: list[str]) -> tuple[bytes, ...]:
    """The first bytes of characters, few enough to look for each; none is the beginning of a common letter."""
    encoded = [character.encode() for character in characters]
    return tuple(sorted({raw if len(raw) <= 2 else raw[: len(raw) - 1] for raw in encoded}))
