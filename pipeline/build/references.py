"""What a template's syntax tree says: which nodes stand for columns, and whether it is one expression.

Pure; knows no schema and no row.
"""

from __future__ import annotations

from jinja2 import nodes


def column_of(node: nodes.Node | None, *, has_row: bool) -> str | None:
    """The name that a node takes from outside: `name`, or `row["name"]` where no column is called row."""
    if isinstance(node, nodes.Name):
        return node.name
    return None if has_row else row_column(node)


def row_column(node: nodes.Node | None) -> str | None:
    """The column that `row["its name"]` means; None where the node is something else."""
    if isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Name) and node.node.name == "row":
        key = node.arg
        if isinstance(key, nodes.Const) and isinstance(key.value, str):
            return key.value
    return None


def true_argument(node: nodes.Filter) -> bool:
    """Whether a `default` filter also stands in for what is empty: its second argument is a plain true."""
    given = [*node.args[1:2], *(pair.value for pair in node.kwargs if pair.key == "boolean")]
    return len(given) == 1 and isinstance(given[0], nodes.Const) and given[0].value is True


def single_expression(tree: nodes.Template) -> nodes.Expr | None:
    """The expression that is a whole template, white space around it aside; None where there is more."""
    found: list[nodes.Expr] = []
    for statement in tree.body:
        if not isinstance(statement, nodes.Output):
            return None
        for node in statement.nodes:
            if not isinstance(node, nodes.TemplateData):
                found.append(node)
            elif node.data.strip():
                return None
    return found[0] if len(found) == 1 else None
