"""What a template says, read from its syntax tree before any row is seen.

Owns the check of every templated string against the source's columns: unknown names, filters that do not exist, other
templates that cannot be loaded, loops without end, binary columns printed as they are. Renders nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jinja2
import pyarrow as pa
from jinja2 import meta, nodes

from pipeline.build.binaries import check_binary
from pipeline.build.body import Slot
from pipeline.build.nulls import exposed_columns
from pipeline.build.prompt import nearest
from pipeline.build.references import row_column
from pipeline.errors import PromptError

COLUMNS_SHOWN_MAX = 20
"""Most column names in one message."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one templated string needs.

    Attributes:
        columns: The columns it uses, in the schema's order.
        exposed: Those of them whose nulls it does not handle itself.
        tree: Its syntax tree.
    """

    columns: tuple[str, ...]
    exposed: frozenset[str]
    tree: nodes.Template


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
    check_binary(tree, schema, prompt_name, slot.where)
    exposed = exposed_columns(tree, has_row="row" in known)
    return Reading(tuple(name for name in known if name in used), exposed & used, tree)


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
    for loop in tree.find_all(nodes.For):
        if loop.recursive:
            raise PromptError(
                f"{where}, line {loop.lineno} of the template: a recursive loop could go on for ever; "
                "write the loops that are needed one inside the other."
            )
    known_filters = _spellable(environment.filters)
    filters = [(node.name, node.lineno, "filter", known_filters) for node in tree.find_all(nodes.Filter)]
    tests = [(node.name, node.lineno, "test", list(environment.tests)) for node in tree.find_all(nodes.Test)]
    for name, line_number, kind, known in filters + tests:
        if name not in known:
            found = nearest(name, known)
            hint = f", did you mean {found}?" if found else "; see the list in Jinja2's manual."
            raise PromptError(f"{where}, line {line_number} of the template: there is no {kind} {name}{hint}")


def _spellable(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(" ")]


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
    names = [name for name in (row_column(node) for node in tree.find_all(nodes.Getitem)) if name is not None]
    uses = sum(node.name == "row" for node in tree.find_all(nodes.Name))
    if uses != len(names):
        raise PromptError(
            f'{where}: row can only be used as row["column name"], so that its columns are known; name them.'
        )
    return set(names)
