"""Templated strings that need Jinja2: filled row by row, slower, with the same result.

Owns the compiled templates and the filling of one string for the rows that need it, each charged to a budget of its
own. Knows nothing of Arrow or of request lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes

from pipeline.build.body import Slot, dumps
from pipeline.build.columns import Unreadable
from pipeline.build.references import single_expression
from pipeline.build.sandbox import TemplateEnvironment

WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""Unicode's White_Space, which polars strips; Python's own idea has four more characters."""

MESSAGE_CHARACTERS_MAX = 300
"""Longest reason kept with a skipped row."""

_RESULT = "value__"


@dataclass(frozen=True, slots=True)
class RowFault:
    """Why a row has no body."""

    message: str


@dataclass(frozen=True, slots=True)
class SlotRenderer:
    """One compiled templated string.

    Attributes:
        slot: Where it stands.
        text: The template.
        native: The template of its one expression, where that keeps the type of a number or boolean.
    """

    slot: Slot
    text: jinja2.Template
    native: jinja2.Template | None


def compile_slot(environment: TemplateEnvironment, slot: Slot) -> SlotRenderer:
    """Compile one templated string.

    Raises:
        jinja2.TemplateSyntaxError: the template is wrong, with its line.
    """
    native = None
    expression = single_expression(environment.parse(slot.source)) if slot.native else None
    if expression is not None:
        assign = nodes.Assign(nodes.Name(_RESULT, "store", lineno=1), expression, lineno=1)
        native = environment.from_string(nodes.Template([assign], lineno=1))
    return SlotRenderer(slot, environment.from_string(slot.source), native)


def fill_rows(renderer: SlotRenderer, rows: Iterable[Mapping[str, Any]]) -> Iterator[str | RowFault]:
    """Fill one string with rows.

    Args:
        renderer: The string.
        rows: The values of the used columns, a row each.

    Returns:
        The text of each row, or its fault. A native string gives JSON instead of text.
    """
    environment: TemplateEnvironment = renderer.text.environment  # type: ignore[assignment]
    fixed = dict(renderer.text.globals)
    text = _Filling(renderer.text)
    native = None if renderer.native is None else _Filling(renderer.native)
    budget, where = environment.budget, renderer.slot.where
    for values in rows:
        try:
            names = {**fixed, "row": values, **values}
            if any(type(value) is Unreadable for value in values.values()):
                yield _unreadable(values)
                continue
            budget.renew()
            number = None if native is None else _number(native, names)
            if number is not None:
                yield number
            else:
                filled = text.render(names)
                yield filled if native is None else dumps(filled)
        except Exception as error:  # noqa: BLE001 - a template can raise anything, and it costs this row only
            yield RowFault(_reason(where, error))


class _Filling:
    """A compiled template called directly, its one context used again for every row."""

    def __init__(self, template: jinja2.Template) -> None:
        self._root = template.root_render_func
        self._context = template.new_context({}, shared=True)

    def render(self, names: dict[str, Any]) -> str:
        """The text for a row's names."""
        context = self._context
        context.parent = names
        if context.vars or context.exported_vars:
            context.vars.clear()
            context.exported_vars.clear()
        return "".join(self._root(context))

    def result(self, names: dict[str, Any]) -> Any:
        """What the expression is worth."""
        self.render(names)
        return self._context.vars[_RESULT]


def _number(native: _Filling, names: dict[str, Any]) -> str | None:
    """The JSON of a number or boolean; None where the expression is no such thing."""
    value = native.result(names)
    if type(value) not in (int, float, bool):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the number is {value}, which JSON cannot hold")
    return dumps(value)


def _unreadable(values: Mapping[str, Any]) -> RowFault:
    name, value = next((name, value) for name, value in values.items() if isinstance(value, Unreadable))
    return RowFault(f"column {name} cannot be read: {value.reason}"[:MESSAGE_CHARACTERS_MAX])


def reason_of(slot: Slot, error: Exception) -> str:
    """Why a string could not be filled, in a line."""
    return _reason(slot.where, error)


def _reason(where: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.encode("utf-8", "replace").decode()
    return f"{where}: {text}"[:MESSAGE_CHARACTERS_MAX]
