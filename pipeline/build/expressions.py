"""Expressions of a template as polars expressions, where those give exactly what Jinja2 gives.

Owns the translation of names, constants, access, comparisons, logic, arithmetic and concatenation by static type;
filters are in `filters.py`, whole templates in `statements.py`. Whatever is not exact raises `Slow` with the reason,
or adds a requirement on the data. Reads no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import jinja2
import polars as pl
import pyarrow as pa
from jinja2 import nodes

from pipeline.build import filters
from pipeline.build.inputs import Form, Input, part_of, value_of
from pipeline.build.references import column_of
from pipeline.build.values import (
    NUMBERS,
    ORDERED,
    Kind,
    Requirements,
    Slow,
    Value,
    as_float,
    constant,
    present,
    printed,
    text,
    truth,
    whole,
    widened,
)

_MIRRORED = {"eq", "ne"}
_TYPES_OF_TESTS = {
    "string": {Kind.TEXT},
    "number": {Kind.INT, Kind.FLOAT, Kind.BOOL, Kind.DECIMAL},
    "boolean": {Kind.BOOL},
    "integer": {Kind.INT},
    "float": {Kind.FLOAT},
    "mapping": {Kind.STRUCT},
}

class Expressions:
    """Translates the expressions of one templated string.

    Args:
        environment: The environment of the templates.
        schema: The source's columns.
        handled: Columns whose nulls the prompt itself handles.
        empty_nulls: Whether any other null reads as an empty text.

    Attributes:
        inputs: What is read of a block, and the name under which polars gets it.
        requirements: What the data must meet.
        names: Values that the template has set.
    """

    def __init__(
        self, environment: jinja2.Environment, schema: pa.Schema, handled: frozenset[str], *, empty_nulls: bool
    ) -> None:
        self.environment = environment
        self.inputs: dict[Input, str] = {}
        self.requirements = Requirements()
        self.names: dict[str, Value] = {}
        self._schema, self._handled, self._empty_nulls = schema, handled, empty_nulls
        self._has_row = "row" in schema.names

    def input(self, column: str, form: Form) -> pl.Expr:
        """A column in a form."""
        name = self.inputs.setdefault(Input(column, form), f"{form.value}:{column}")
        return pl.col(name)

    def is_column(self, name: str) -> bool:
        """Whether the source has such a column."""
        return name in self._schema.names

    # ---- three ways to read an expression

    def value(self, node: nodes.Node) -> Value:
        """Its value.

        Raises:
            Slow: columns at once cannot give it.
        """
        known = self._column(node)
        if known is not None:
            return known
        try:
            return constant(node.as_const(nodes.EvalContext(self.environment)))  # type: ignore[attr-defined]
        except (nodes.Impossible, AttributeError):
            pass
        match node:
            case nodes.Filter():
                return filters.apply(self, node)
            case nodes.Getattr(node=inner, attr=name):
                return self._field(self.value(inner), name, dotted=True)
            case nodes.Getitem():
                return self._item(node)
            case nodes.Concat(nodes=parts):
                return self.joined([printed(self.value(part), self.requirements) for part in parts])
            case nodes.CondExpr() | nodes.Or() | nodes.And():
                return self._chosen(node)
            case nodes.Compare() | nodes.Not() | nodes.Test():
                return Value(Kind.BOOL, self.truth(node))
            case nodes.BinExpr():
                return self._computed(node)
            case nodes.Neg(node=inner):
                return self._negated(present(self.value(inner), self.requirements))
            case nodes.Pos(node=inner):
                number = present(self.value(inner), self.requirements)
                if number.kind in NUMBERS:
                    return number
        raise Slow(_what(node))

    def truth(self, node: nodes.Node) -> pl.Expr:
        """Whether it is true; never null.

        Raises:
            Slow: columns at once cannot tell.
        """
        match node:
            case nodes.Not(node=inner):
                return ~self.truth(inner)
            case nodes.And(left=left, right=right):
                first = self.truth(left)
                return first & self.requirements.under(first, lambda: self.truth(right))
            case nodes.Or(left=left, right=right):
                first = self.truth(left)
                return first | self.requirements.under(~first, lambda: self.truth(right))
            case nodes.Test():
                return self._test(node)
            case nodes.Compare():
                return self._compared(node)
        return truth(self.value(node))

    def printed(self, node: nodes.Node) -> Value:
        """The text that it prints.

        Raises:
            Slow: columns at once cannot print it.
        """
        branches = self._branches(node)
        if branches is None:
            return self.printed_value(self.value(node))
        condition, yes, no = branches
        first = self.requirements.under(condition, lambda: self.printed(yes))
        second = self.requirements.under(~condition, lambda: self.printed(no))
        return self._either(condition, first, second)

    def printed_value(self, value: Value) -> Value:
        """The text that a value prints; of a column that only Python prints, made by Python."""
        if value.kind in (Kind.LIST, Kind.STRUCT) and value.column is not None:
            return self.printed_value(
                Value(Kind.PRINTED, self.input(value.column, Form.TEXT), nullable=value.nullable)
            )
        if value.kind is Kind.BINARY:
            raise Slow("prints binary")
        return printed(value, self.requirements)

    def joined(self, parts: list[Value]) -> Value:
        """Texts one after the other."""
        expr = parts[0].expr if len(parts) == 1 else pl.concat_str([part.expr for part in parts])
        return text(expr, _together(part.ascii_by for part in parts))

    # ---- names and access

    def _column(self, node: nodes.Node) -> Value | None:
        if isinstance(node, nodes.Name) and node.name in self.names:
            return self.names[node.name]
        name = column_of(node, has_row=self._has_row)
        if name is None or name not in self._schema.names:
            return None
        kind = self._schema.field(name).type
        nullable = name in self._handled
        expr = self.input(name, Form.VALUE)
        found = value_of(name, expr, kind, nullable=nullable)
        if found.kind is Kind.PRINTED:
            del self.inputs[Input(name, Form.VALUE)]
            found = Value(Kind.PRINTED, self.input(name, Form.TEXT), nullable=nullable, column=name)
        if found.kind in (Kind.DATE, Kind.DATETIME):  # Python has no others
            fits = found.expr.dt.year().is_between(1, 9999)
            self.requirements.add(fits | found.expr.is_null() if nullable else fits)
        if self._empty_nulls and not nullable and found.kind is not Kind.TEXT:
            self.requirements.add(found.expr.is_not_null())  # there the value is an empty text
        return found

    def _field(self, parent: Value, name: str, *, dotted: bool) -> Value:
        if parent.kind is not Kind.STRUCT or parent.type is None:
            raise Slow(f"reads {name} of {parent.kind.value}")
        if dotted and hasattr(dict, name):
            raise Slow(f"reads {name}, which Python's own mappings have")
        if parent.type.get_field_index(name) < 0:
            raise Slow(f"reads {name}, a field that is not there")
        present(parent, self.requirements)
        return part_of(parent.expr.struct.field(name), parent.type.field(name).type)

    def _item(self, node: nodes.Getitem) -> Value:
        if isinstance(node.arg, nodes.Slice):
            return self._slice(self.value(node.node), node.arg)
        try:
            key = node.arg.as_const(nodes.EvalContext(self.environment))
        except nodes.Impossible:
            raise Slow("reads an item by a computed key") from None
        parent = self.value(node.node)
        if type(key) is int:
            return self.item(parent, key)
        if type(key) is str:
            return self._field(parent, key, dotted=False)
        raise Slow("reads an item by a key that is neither a number nor a text")

    def item(self, parent: Value, index: int) -> Value:
        """An item of a list or text by its place, from the end where negative; Jinja2's where there is none."""
        present(parent, self.requirements)
        needed = index + 1 if index >= 0 else -index
        if parent.kind is Kind.LIST and parent.type is not None:
            self.requirements.add(parent.expr.list.len() >= needed)
            return part_of(parent.expr.list.get(index, null_on_oob=True), parent.type.value_type)
        if parent.kind is Kind.TEXT:
            self.requirements.add(parent.expr.str.len_chars() >= needed)
            return text(parent.expr.str.slice(index, 1), parent.ascii_by)
        raise Slow(f"reads an item of {parent.kind.value}")

    def _slice(self, parent: Value, bounds: nodes.Slice) -> Value:
        if parent.kind is not Kind.TEXT:
            raise Slow(f"cuts {parent.kind.value}")
        present(parent, self.requirements)
        context = nodes.EvalContext(self.environment)
        try:
            start, stop, step = (
                None if bound is None else bound.as_const(context) for bound in (bounds.start, bounds.stop, bounds.step)
            )
        except nodes.Impossible:
            raise Slow("cuts a text at computed places") from None
        start = 0 if start is None else start
        if step not in (None, 1) or type(start) is not int or start < 0:
            raise Slow("cuts a text from its end")
        if stop is None:
            return text(parent.expr.str.slice(start), parent.ascii_by)
        if type(stop) is not int or stop < 0:
            raise Slow("cuts a text from its end")
        return text(parent.expr.str.slice(start, max(0, stop - start)), parent.ascii_by)

    # ---- choices

    def _branches(self, node: nodes.Node) -> tuple[pl.Expr, nodes.Node, nodes.Node] | None:
        """Condition, what is taken under it, and what otherwise, of everything that chooses."""
        match node:
            case nodes.CondExpr(test=test, expr1=yes, expr2=no):
                condition = self.truth(test)
                if no is None:
                    self.requirements.add(condition)  # otherwise it is undefined
                    return condition, yes, yes
                return condition, yes, no
            case nodes.Or(left=left, right=right):
                return self.truth(left), left, right
            case nodes.And(left=left, right=right):
                return self.truth(left), right, left
            case nodes.Filter(name="default" | "d") if filters.asks_truth(node):
                inner, fallback = filters.default_parts(node)
                return self.truth(inner), inner, fallback
        return None

    def _chosen(self, node: nodes.Node) -> Value:
        branches = self._branches(node)
        assert branches is not None
        condition, yes, no = branches
        first = self.requirements.under(condition, lambda: self.value(yes))
        second = self.requirements.under(~condition, lambda: self.value(no))
        return self._either(condition, first, second)

    def choose(self, node: nodes.Node) -> Value:
        """The value of a filter that chooses."""
        return self._chosen(node)

    def _either(self, condition: pl.Expr, first: Value, second: Value) -> Value:
        if first.kind is not second.kind or first.kind in (Kind.LIST, Kind.STRUCT, Kind.NONE):
            raise Slow("chooses between values of different types")
        return Value(
            first.kind,
            pl.when(condition).then(first.expr).otherwise(second.expr),
            nullable=first.nullable or second.nullable,
            bits=max(first.bits, second.bits),
            scale=first.scale if first.scale == second.scale else _unlike(first.kind),
            ascii_by=_together([first.ascii_by, second.ascii_by]),
        )

    # ---- tests and comparisons

    def _test(self, node: nodes.Test) -> pl.Expr:
        if node.args or node.kwargs or node.dyn_args or node.dyn_kwargs:
            raise Slow(f"uses the test {node.name} with arguments")
        if node.name in ("defined", "undefined"):
            if self._column(node.node) is None:
                raise Slow(f"asks whether a part of a value is {node.name}")
            return pl.lit(node.name == "defined")
        value = self.value(node.node)
        if node.name == "none":
            return value.expr.is_null() if value.nullable else pl.lit(False)
        if node.name not in _TYPES_OF_TESTS or value.kind in (Kind.PRINTED, Kind.MARKUP):
            raise Slow(f"uses the test {node.name}")
        fits = pl.lit(value.kind in _TYPES_OF_TESTS[node.name])
        return fits & value.expr.is_not_null() if value.nullable else fits

    def _compared(self, node: nodes.Compare) -> pl.Expr:
        found = []
        left = self.value(node.expr)
        for operand in node.ops:
            if operand.op in ("in", "notin"):
                inside = self._inside(left, operand.expr)
                found.append(inside if operand.op == "in" else ~inside)
                if len(node.ops) > 1:
                    raise Slow("chains in with another comparison")
                break
            right = self.value(operand.expr)
            found.append(self._comparison(operand.op, left, right))
            left = right
        return reduce(lambda a, b: a & b, found)

    def _comparison(self, operator: str, left: Value, right: Value) -> pl.Expr:
        if operator in _MIRRORED and Kind.NONE in (left.kind, right.kind):
            other = left if right.kind is Kind.NONE else right
            same = other.expr.is_null() if other.nullable else pl.lit(False)
            return same if operator == "eq" else ~same
        present(left, self.requirements)
        present(right, self.requirements)
        kinds = {left.kind, right.kind}
        if kinds <= NUMBERS | {Kind.BOOL}:
            first, second = self._numbers(left, right)
        elif kinds == {Kind.DATETIME} and left.scale == right.scale or len(kinds) == 1 and kinds <= ORDERED:
            first, second = left.expr, right.expr
        elif operator in _MIRRORED and Kind.TEXT in kinds and kinds & (NUMBERS | {Kind.BOOL}):
            return pl.lit(operator == "ne")
        else:
            raise Slow(f"compares {left.kind.value} with {right.kind.value}")
        compared = {
            "eq": first.eq, "ne": first.ne, "lt": first.lt, "lteq": first.le, "gt": first.gt, "gteq": first.ge
        }  # fmt: skip
        return compared[operator](second)

    def _numbers(self, left: Value, right: Value) -> tuple[pl.Expr, pl.Expr]:
        """Two numbers in one type that holds both exactly."""
        if Kind.FLOAT in (left.kind, right.kind):
            for value in (left, right):
                if value.kind is Kind.FLOAT:
                    self.requirements.add(value.expr.is_finite())
            return as_float(left, self.requirements), as_float(right, self.requirements)
        bits = max(left.bits, right.bits, 1)
        return widened(left, bits), widened(right, bits)

    def _inside(self, left: Value, node: nodes.Node) -> pl.Expr:
        if isinstance(node, nodes.List | nodes.Tuple):
            options = [self.value(item) for item in node.items]
            if not options:
                return pl.lit(False)
            return reduce(lambda a, b: a | b, [self._comparison("eq", left, option) for option in options])
        right = present(self.value(node), self.requirements)
        present(left, self.requirements)
        if left.kind is Kind.TEXT and right.kind is Kind.TEXT:
            return right.expr.str.contains(left.expr, literal=True)
        if right.kind is Kind.LIST and right.type is not None:
            inner = part_of(right.expr, right.type.value_type)
            narrow = left.kind is Kind.INT and left.bits <= 62 and inner.bits <= 62
            if left.kind is inner.kind and (left.kind is Kind.TEXT or narrow):
                return right.expr.list.contains(left.expr).fill_null(False)
        raise Slow(f"asks for {left.kind.value} in {right.kind.value}")

    # ---- arithmetic

    def _negated(self, number: Value) -> Value:
        if number.kind is Kind.INT:
            return whole(pl.lit(0, dtype=pl.Int64) - widened(number, number.bits + 1), number.bits)
        if number.kind is Kind.FLOAT:
            return Value(Kind.FLOAT, -number.expr)
        raise Slow(f"computes with {number.kind.value}")

    def _computed(self, node: nodes.BinExpr) -> Value:
        operator = node.operator
        left = present(self.value(node.left), self.requirements)
        right = present(self.value(node.right), self.requirements)
        if operator == "+" and left.kind is right.kind is Kind.TEXT:
            return self.joined([left, right])
        if not {left.kind, right.kind} <= NUMBERS or operator == "**":
            raise Slow(f"computes {left.kind.value} {operator} {right.kind.value}")
        if operator in ("/", "//", "%"):
            self.requirements.add(right.expr != 0)
        if left.kind is right.kind is Kind.INT and operator != "/":
            return _whole_result(operator, left, right)
        if operator in ("//", "%"):
            raise Slow(f"computes {operator} of floats")
        a, b = as_float(left, self.requirements), as_float(right, self.requirements)
        return Value(Kind.FLOAT, {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator])

def _whole_result(operator: str, left: Value, right: Value) -> Value:
    bits = left.bits + right.bits if operator == "*" else max(left.bits, right.bits) + 1
    a, b = widened(left, bits), widened(right, bits)
    if operator in ("//", "%"):
        divisor = pl.when(b == 0).then(None).otherwise(b)
        return whole(a // divisor if operator == "//" else a % divisor, bits)
    return whole({"+": a + b, "-": a - b, "*": a * b}[operator], bits)

def _together(sets: Any) -> frozenset[str] | None:
    found: frozenset[str] = frozenset()
    for each in sets:
        if each is None:
            return None
        found |= each
    return found

def _unlike(kind: Kind) -> int:
    raise Slow(f"chooses between {kind.value} of different types")

_WORDS: Mapping[type[nodes.Node], str] = {
    nodes.Call: "calls a function",
    nodes.List: "makes a list",
    nodes.Tuple: "makes a list",
    nodes.Dict: "makes a mapping",
    nodes.Name: "uses a name that is no column",
}

def _what(node: nodes.Node) -> str:
    return _WORDS.get(type(node), f"has an expression of kind {type(node).__name__.lower()}")

