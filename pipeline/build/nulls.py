"""Which columns' nulls a template handles itself.

A null counts where the template would print it or compute with it. It does not where the template only asks about it
(`is none`, `default(…, true)`, `if x`) or stands in the branch where the answer says that there is a value. Decided
from the syntax tree alone, so that it is the same on every path and for every row. Pure.
"""

from __future__ import annotations

from jinja2 import nodes

from pipeline.build.references import column_of, true_argument

Names = frozenset[str]


def exposed_columns(tree: nodes.Node, *, has_row: bool) -> Names:
    """Names that are used somewhere without the template having asked whether they are null.

    Args:
        tree: A template.
        has_row: Whether a column is called row.
    """
    walk = _Walk(has_row)
    walk.visit(tree, frozenset())
    return frozenset(walk.exposed)


class _Walk:
    """Goes through a tree with the names that are known not to be null."""

    def __init__(self, has_row: bool) -> None:
        self.exposed: set[str] = set()
        self._has_row = has_row

    def visit(self, node: nodes.Node | None, known: Names) -> None:
        """Look at a node whose value is used."""
        if node is None:
            return
        name = column_of(node, has_row=self._has_row)
        if name is not None:
            if name not in known:
                self.exposed.add(name)
            return
        match node:
            case nodes.Test() | nodes.Compare() | nodes.Not():
                self.ask(node, known)
            case nodes.CondExpr(test=test, expr1=yes, expr2=no):
                there, missing = self.ask(test, known)
                self.visit(yes, there)
                self.visit(no, missing)
            case nodes.If(test=test, body=body, elif_=others, else_=rest):
                self._branches(test, body, others, rest, known)
            case nodes.Or(left=left, right=right):
                _, missing = self.ask(left, known)
                self.visit(right, missing)
            case nodes.And(left=left, right=right):
                there, _ = self.ask(left, known)
                self.visit(left, known)
                self.visit(right, there)
            case nodes.Filter(node=inner, name="default" | "d") if true_argument(node):
                _, missing = self.ask(inner, known) if inner is not None else (known, known)
                for argument in node.args:
                    self.visit(argument, missing)
            case _:
                for child in node.iter_child_nodes():
                    self.visit(child, known)

    def _branches(
        self,
        test: nodes.Node,
        body: list[nodes.Node],
        others: list[nodes.If],
        rest: list[nodes.Node],
        known: Names,
    ) -> None:
        there, missing = self.ask(test, known)
        for statement in body:
            self.visit(statement, there)
        for other in others:
            there, missing_there = self.ask(other.test, missing)
            for statement in other.body:
                self.visit(statement, there)
            missing = missing_there
        for statement in rest:
            self.visit(statement, missing)

    def ask(self, node: nodes.Node, known: Names) -> tuple[Names, Names]:
        """Look at a question; what is known where the answer is yes, and where it is no."""
        name = column_of(node, has_row=self._has_row)
        if name is not None:
            return known | {name}, known
        match node:
            case nodes.Not(node=inner):
                yes, no = self.ask(inner, known)
                return no, yes
            case nodes.And(left=left, right=right):
                first, _ = self.ask(left, known)
                return self.ask(right, first)[0], known
            case nodes.Or(left=left, right=right):
                _, neither = self.ask(left, known)
                return known, self.ask(right, neither)[1]
            case nodes.Test(node=inner, name="none" | "defined" | "undefined" as test):
                asked = column_of(inner, has_row=self._has_row)
                if asked is None:
                    self.visit(inner, known)
                elif test == "none":
                    return known, known | {asked}
                return known, known
            case nodes.Compare(expr=left, ops=[nodes.Operand(op="eq" | "ne" as op, expr=nodes.Const(value=None))]):
                asked = column_of(left, has_row=self._has_row)
                if asked is None:
                    self.visit(left, known)
                    return known, known
                return (known, known | {asked}) if op == "eq" else (known | {asked}, known)
            case nodes.Test() | nodes.Compare():
                for child in node.iter_child_nodes():
                    self.visit(child, known)
                return known, known
        self.visit(node, known)
        return known, known
