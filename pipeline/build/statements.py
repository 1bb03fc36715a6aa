"""A whole templated string as one polars expression, or the reason why it is Jinja2's.

Owns the statements (text, `{{ … }}`, `if`, `set`) and what is kept of a string that columns at once can fill: its
expression, what is read of a block for it, and what the data must meet. Renders nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
import polars as pl
import pyarrow as pa
from jinja2 import nodes

from pipeline.build.block import Block
from pipeline.build.expressions import Expressions
from pipeline.build.inputs import Input
from pipeline.build.references import single_expression
from pipeline.build.values import Kind, Requirement, Slow, Value, constant, json_of, plain_float, present, text, widened


@dataclass(frozen=True, slots=True)
class Program:
    """A templated string that columns at once can fill.

    Attributes:
        expr: Its text; its JSON where one expression alone keeps the type of a number or boolean.
        inputs: What is read of a block, and under which name.
        requirements: Rows that do not meet them all are Jinja2's.
        never_blank: Whether every text has more than white space.
        parts: The texts of which `expr` is one after the other; empty where it is JSON.
    """

    expr: pl.Expr
    inputs: dict[Input, str]
    requirements: tuple[Requirement, ...]
    never_blank: bool
    parts: tuple[Value, ...]

    def fits(self, block: Block) -> pl.Expr:
        """Whether a row of a block meets the requirements."""
        needed = [
            requirement.expr
            for requirement in self.requirements
            if requirement.unless_ascii is None or not block.all_ascii(requirement.unless_ascii)
        ]
        return pl.all_horizontal(needed).fill_null(False) if needed else pl.lit(True)


def program_of(
    environment: jinja2.Environment,
    tree: nodes.Template,
    schema: pa.Schema,
    handled: frozenset[str],
    *,
    native: bool,
    empty_nulls: bool,
) -> Program:
    """Translate a templated string.

    Args:
        environment: The environment of the templates.
        tree: The string's syntax tree, which is not changed.
        schema: The source's columns.
        handled: Columns whose nulls the prompt itself handles.
        native: Whether one expression alone keeps the type of a number or boolean.
        empty_nulls: Whether any other null reads as an empty text.

    Raises:
        Slow: columns at once cannot fill it; says why.
    """
    expressions = Expressions(environment, schema, handled, empty_nulls=empty_nulls)
    statements = _Statements(expressions)
    single = single_expression(tree) if native else None
    try:
        number = None if single is None else _number(expressions, expressions.value(single))
        parts = statements.parts_of(tree.body, top=True) if number is None else []
        expr = expressions.joined(parts).expr if number is None else number
    except RecursionError:
        raise Slow("is nested very deep") from None
    if native and number is None:
        parts, expr = [], json_of(expr)
    requirements = tuple(expressions.requirements.found)
    return Program(expr, expressions.inputs, requirements, _never_blank(tree), tuple(parts))


def _never_blank(tree: nodes.Template) -> bool:
    """Whether fixed text that every row prints has more than white space."""
    outputs = [statement for statement in tree.body if isinstance(statement, nodes.Output)]
    texts = [node.data for output in outputs for node in output.nodes if isinstance(node, nodes.TemplateData)]
    return any(not text.isspace() for text in texts if text)


def _number(expressions: Expressions, value: Value) -> pl.Expr | None:
    """The JSON of a number or boolean; None where the value is no such thing."""
    if value.kind not in (Kind.INT, Kind.FLOAT, Kind.BOOL):
        return None
    present(value, expressions.requirements)
    if value.kind is Kind.BOOL:
        return pl.when(value.expr).then(pl.lit("true")).otherwise(pl.lit("false"))
    if value.kind is Kind.FLOAT:
        expressions.requirements.add(plain_float(value.expr))
    elif value.bits > 63:
        least, most = (pl.lit(bound, dtype=pl.Int128) for bound in (-(2**63), 2**64 - 1))
        expressions.requirements.add(widened(value, 64).is_between(least, most))
    return value.expr.cast(pl.String)


class _Statements:
    """Translates the statements of one templated string."""

    def __init__(self, expressions: Expressions) -> None:
        self._expressions = expressions

    def text_of(self, body: Sequence[nodes.Node]) -> Value:
        """The text of statements inside another."""
        return self._expressions.joined(self.parts_of(body))

    def parts_of(self, body: Sequence[nodes.Node], *, top: bool = False) -> list[Value]:
        """The texts of statements, one after the other; at least one."""
        parts: list[Value] = []
        for statement in body:
            match statement:
                case nodes.Output(nodes=outputs):
                    parts += [self._output(node) for node in outputs]
                case nodes.If():
                    parts.append(self._if(statement))
                case nodes.Assign(target=nodes.Name(name=name), node=node) if top:
                    self._set(name, node)
                case _:
                    raise Slow(f"has {_statement(statement)}")
        return parts or [constant("")]

    def _output(self, node: nodes.Node) -> Value:
        return constant(node.data) if isinstance(node, nodes.TemplateData) else self._expressions.printed(node)

    def _set(self, name: str, node: nodes.Node) -> None:
        if name == "row" or self._expressions.is_column(name):
            raise Slow(f"sets {name}, the name of a column")
        self._expressions.names[name] = self._expressions.value(node)

    def _if(self, statement: nodes.If) -> Value:
        expressions, requirements = self._expressions, self._expressions.requirements
        condition = expressions.truth(statement.test)
        first = requirements.under(condition, lambda: self.text_of(statement.body))

        def otherwise() -> Value:
            if not statement.elif_:
                return self.text_of(statement.else_)
            head, *others = statement.elif_
            return self._if(nodes.If(head.test, head.body, others, statement.else_))

        second = requirements.under(~condition, otherwise)
        plain = None if first.ascii_by is None or second.ascii_by is None else first.ascii_by | second.ascii_by
        return text(pl.when(condition).then(first.expr).otherwise(second.expr), plain)


def _statement(node: nodes.Node) -> str:
    words: dict[type[nodes.Node], str] = {
        nodes.For: "a for loop",
        nodes.Assign: "a set inside a block",
        nodes.AssignBlock: "a block of set",
    }
    return words.get(type(node), f"a block of {type(node).__name__.lower()}")
