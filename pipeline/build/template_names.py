"""What a template says, read from its syntax tree before any row is seen.

Owns the check of every templated string against the source's columns (unknown names, filters that do not exist, other
templates that cannot be loaded) and the decision whether columns alone can fill it. Renders nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jinja2
import pyarrow as pa
from jinja2 import meta, nodes

from pipeline.build.body import Slot
from pipeline.build.columns import is_text, unwrapped
from pipeline.build.prompt import nearest
from pipeline.errors import PromptError

COLUMNS_SHOWN_MAX = 20
"""Most column names in one message."""


@dataclass(frozen=True, slots=True)
class Column:
    """A used column inside a fast template."""

    name: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What one templated string needs.

    Attributes:
        columns: The columns it uses, in the schema's order.
        parts: Fixed text and columns, in order; None where it needs Jinja2.
        reason: Why it needs Jinja2, "" where it does not.
    """

    columns: tuple[str, ...]
    parts: tuple[str | Column, ...] | None
    reason: str


def read_slot(environment: jinja2.Environment, slot: Slot, schema: pa.Schema, prompt_name: str) -> Reading:
    """Check one templated string.

    Raises:
        PromptError: its syntax is wrong, or it names something that does not exist.
    """
    tree = _parsed(environment, slot, prompt_name)
    where = f"Prompt file {prompt_name}, {slot.where}"
    undeclared = _undeclared(environment, slot)
    if any(node.name == "self" for node in tree.find_all(nodes.Name)):
        raise PromptError(
            f'{where}: self has a meaning of its own in Jinja2; write row["self"] for a column of that name.'
        )
    known = list(schema.names)
    used = {name for name in undeclared if name in known}
    if "row" in undeclared and "row" not in known:
        named = _row_names(tree, where)
        used |= named & set(known)
        undeclared = (undeclared - {"row"}) | named
    for name in sorted(undeclared - used):
        if name not in environment.globals:
            raise PromptError(f"{where}: there is no column {name}{_columns_hint(name, known)}.")
    for name in sorted(used):
        if known.count(name) > 1:
            raise PromptError(f"{where}: the source has more than one column {name}; rename one of them.")
    columns = tuple(name for name in known if name in used)
    parts, reason = _fast_parts(tree, slot, schema)
    return Reading(columns, parts, reason)


def _parsed(environment: jinja2.Environment, slot: Slot, prompt_name: str) -> nodes.Template:
    where = f"Prompt file {prompt_name}, {slot.where}"
    try:
        tree = environment.parse(slot.source)
        _check_parts_known(environment, tree, where)
        environment.compile(tree)
        return environment.parse(slot.source)  # compiling may change the tree
    except jinja2.TemplateSyntaxError as error:
        fault = (error.message or "syntax error").rstrip(".")
        raise PromptError(f"{where}, line {error.lineno} of the template: {fault}.") from None
    except RecursionError:
        raise PromptError(f"{where}: the template is nested too deep; make it simpler.") from None


def _check_parts_known(environment: jinja2.Environment, tree: nodes.Template, where: str) -> None:
    for loader in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        line = f"{where}, line {loader.lineno} of the template"
        raise PromptError(f"{line}: a prompt cannot load other templates; write the text here.")
    filters = [(node.name, node.lineno, "filter", list(environment.filters)) for node in tree.find_all(nodes.Filter)]
    tests = [(node.name, node.lineno, "test", list(environment.tests)) for node in tree.find_all(nodes.Test)]
    for name, line_number, kind, known in filters + tests:
        if name not in known:
            found = nearest(name, known)
            hint = f", did you mean {found}?" if found else "; see the list in Jinja2's manual."
            raise PromptError(f"{where}, line {line_number} of the template: there is no {kind} {name}{hint}")


def _undeclared(environment: jinja2.Environment, slot: Slot) -> set[str]:
    """The names a template takes from outside, also those that Jinja2 itself has (a column may be called range)."""
    bare = environment.overlay()
    bare.globals = {}
    return meta.find_undeclared_variables(bare.parse(slot.source))


def _columns_hint(name: str, known: Iterable[str]) -> str:
    columns = list(known)
    found = nearest(name, columns)
    shown = ", ".join(columns[:COLUMNS_SHOWN_MAX]) + (", …" if len(columns) > COLUMNS_SHOWN_MAX else "")
    listed = f"the columns are: {shown or 'none at all'}"
    return f", did you mean {found}? ({listed})" if found else f"; {listed}"


def _row_names(tree: nodes.Template, where: str) -> set[str]:
    names = [name for name in (_row_column(node) for node in tree.find_all(nodes.Getitem)) if name is not None]
    uses = sum(node.name == "row" for node in tree.find_all(nodes.Name))
    if uses != len(names):
        raise PromptError(
            f'{where}: row can only be used as row["column name"], so that its columns are known; name them.'
        )
    return set(names)


def _row_column(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Name) and node.node.name == "row":
        key = node.arg
        if isinstance(key, nodes.Const) and isinstance(key.value, str):
            return key.value
    return None


def _fast_parts(tree: nodes.Template, slot: Slot, schema: pa.Schema) -> tuple[tuple[str | Column, ...] | None, str]:
    parts: list[str | Column] = []
    for statement in tree.body:
        if not isinstance(statement, nodes.Output):
            return None, f"{slot.where} has a block of {type(statement).__name__.lower()}"
        for node in statement.nodes:
            if isinstance(node, nodes.TemplateData):
                parts.append(node.data)
                continue
            name = node.name if isinstance(node, nodes.Name) else None
            if "row" not in schema.names:
                name = _row_column(node) or name
            if name is None or name not in schema.names:
                return None, f"{slot.where} has an expression that is more than a column"
            if not _is_fast_type(schema.field(name).type):
                return None, f"{slot.where} uses column {name} of type {schema.field(name).type}"
            parts.append(Column(name))
    if slot.native and len(parts) == 1:
        return None, f"{slot.where} keeps the type of a number or boolean"
    return tuple(parts), ""


def _is_fast_type(kind: pa.DataType) -> bool:
    kind = unwrapped(kind)
    return bool(is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))
