"""Templates that need Jinja2: filled row by row, slower, with the same bytes.

Owns the Jinja2 environment (sandboxed, strict about names, without what is random) and the rendering of one row's
values to the JSON text of a body. Bounded: Jinja2 has no endless loop, the sandbox caps `range`, and templates cannot
load others. Knows nothing of Arrow or of request lines.
"""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.nodes
from jinja2.sandbox import SandboxedEnvironment

from pipeline.build.body import Group, Single, Skeleton, Slot, dumps
from pipeline.build.columns import Unreadable

WHITE_SPACE = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""Unicode's White_Space, which polars strips; Python's own idea has four more characters."""

MESSAGE_CHARACTERS_MAX = 300
"""Longest reason kept with a skipped row."""

_PRINTABLE = (
    str,
    int,
    float,
    decimal.Decimal,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    uuid.UUID,
    list,
    tuple,
    dict,
    jinja2.Undefined,
    type(None),
)


@dataclass(frozen=True, slots=True)
class RowFault:
    """Why a row has no body."""

    message: str


@dataclass(frozen=True, slots=True)
class SlotRenderer:
    """One compiled templated string."""

    slot: Slot
    text: jinja2.Template
    native: Callable[..., Any] | None


def make_environment() -> SandboxedEnvironment:
    """The environment of every template: the text is kept as it is, unknown names are errors, nothing is random."""
    environment = SandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_printable
    )
    del environment.globals["lipsum"]
    del environment.filters["random"]
    return environment


def compile_slot(environment: SandboxedEnvironment, slot: Slot) -> SlotRenderer:
    """Compile one templated string.

    Raises:
        jinja2.TemplateSyntaxError: the template is wrong, with its line.
    """
    template = environment.from_string(slot.source)
    native = None
    if slot.native and _is_one_expression(environment, slot.source):
        expression = slot.source.strip()[2:-2]
        expression = expression[1:] if expression[:1] in {"-", "+"} else expression
        expression = expression[:-1] if expression[-1:] in {"-", "+"} else expression
        native = environment.compile_expression(expression, undefined_to_none=False)
    return SlotRenderer(slot, template, native)


def render_body(
    renderers: tuple[SlotRenderer, ...], skeleton: Skeleton, values: Mapping[str, Any]
) -> str | RowFault | None:
    """Fill the skeleton with one row.

    Args:
        renderers: One for each slot of the skeleton.
        skeleton: The body.
        values: The used columns of the row; no value is null.

    Returns:
        The JSON text, a fault where a template fails on this row, None where the prompt is only white space.
    """
    for name, value in values.items():
        if isinstance(value, Unreadable):
            return RowFault(f"column {name} cannot be read: {value.reason}"[:MESSAGE_CHARACTERS_MAX])
    names = {"row": values, **values}
    filled: list[str | int | float | bool] = []
    encoded: list[str] = []
    for renderer in renderers:
        try:
            value = _fill(renderer, names)
            filled.append(value)
            encoded.append(dumps(value))
        except Exception as error:  # noqa: BLE001 - a template can raise anything, and it costs this row only
            return RowFault(_reason(renderer.slot, error))
    prompts = [value for renderer, value in zip(renderers, filled, strict=True) if renderer.slot.is_prompt]
    if prompts and all(isinstance(value, str) and not value.strip(WHITE_SPACE) for value in prompts):
        return None
    return "".join(_piece(piece, encoded) for piece in skeleton.pieces)


def _fill(renderer: SlotRenderer, names: Mapping[str, Any]) -> str | int | float | bool:
    if renderer.native is not None:
        value = renderer.native(names)
        if type(value) in {int, float, bool}:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"the number is {value}, which JSON cannot hold")
            return value  # type: ignore[no-any-return]
    return str(renderer.text.render(names))


def _piece(piece: str | Single | Group, encoded: list[str]) -> str:
    if isinstance(piece, str):
        return piece
    if isinstance(piece, Single):
        return encoded[piece.slot]
    entries = (
        f"{dumps(key)}:{dumps(value) if isinstance(value, str) else encoded[value]}" for key, value in piece.entries
    )
    return "{" + ",".join(entries) + "}"


def _reason(slot: Slot, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.encode("utf-8", "replace").decode()
    return f"{slot.where}: {text}"[:MESSAGE_CHARACTERS_MAX]


def _printable(value: Any) -> Any:
    """Refuse to print what has no text of its own: its address in memory would make every build different."""
    if isinstance(value, _PRINTABLE):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be printed (a list made by a filter needs | list or | join)")


def _is_one_expression(environment: SandboxedEnvironment, source: str) -> bool:
    text = source.strip()
    if not (text.startswith("{{") and text.endswith("}}")):
        return False
    body = environment.parse(text).body
    return (
        len(body) == 1
        and isinstance(body[0], jinja2.nodes.Output)
        and len(body[0].nodes) == 1
        and not isinstance(body[0].nodes[0], jinja2.nodes.TemplateData)
    )
