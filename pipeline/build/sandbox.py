"""The Jinja2 environment of every template: nothing outside the row can be reached, and nothing goes on for ever.

On top of Jinja2's own sandbox (no internals, no change of values, bounded `range`) every loop, macro, operator, call
and filter is charged to the row's budget: trees are rewritten before they are compiled. Unknown names are errors, the
text is kept as it is, nothing is random. Knows nothing of rows.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import functools
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from pipeline.build.budget import Budget, OverBudgetError, check_width

_COUNTED, _BUILT, _JOINED, _STEP = " counted", " built", " joined", " step"
"""Filters of our own; no template can spell a name with a space."""

MACRO_STEPS = 20
"""A macro costs as much as so many steps of a loop."""

_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*(?:\d{7}|\*)|\{[^{}]*(?:\d{7}|\{)")
"""A width of millions, or one that is computed, in a format."""

_WIDENING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes"})
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


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Sandboxed, strict about names, and counting."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=self._printable
        )
        self.budget = Budget()
        del self.globals["lipsum"]
        del self.filters["random"]
        self.filters["b64encode"] = _b64encode
        for name, make in list(self.filters.items()):
            self.filters[name] = _charged(self.budget, name, make)
        budget = self.budget

        @jinja2.pass_context
        def counted(context: Context, values: Any, characters: int) -> Any:
            return _counted(budget, values, characters)

        @jinja2.pass_context
        def built(context: Context, value: Any) -> Any:
            return budget.charge(value)

        @jinja2.pass_context
        def joined(context: Context, parts: list[Any]) -> str:
            texts = [str(part) for part in parts]
            budget.write(sum(map(len, texts)))
            return "".join(texts)

        @jinja2.pass_context
        def step(context: Context, text: str, characters: int) -> str:
            budget.step(MACRO_STEPS, characters)
            return text

        self.filters |= {_COUNTED: counted, _BUILT: built, _JOINED: joined, _STEP: step}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Counting().visit(source), *args, **kwargs)

    def _printable(self, value: Any) -> Any:
        """Charge what is printed, and refuse what has no text: an address in memory differs with every build."""
        if type(value) is str:
            self.budget.write(len(value))
            return value
        if isinstance(value, list | tuple | dict):
            self.budget.charge(value)
        return has_text(value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator that can make something large."""
        sizes = [len(side) for side in (left, right) if isinstance(side, str | list | tuple | bytes)]
        if operator == "+" and len(sizes) == 2:
            self.budget.foresee(sum(sizes))
        elif operator == "*" and len(sizes) == 1:
            count = right if isinstance(left, str | list | tuple | bytes) else left
            if isinstance(count, int):
                self.budget.foresee(max(0, count) * sizes[0])
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, (right,))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.budget.foresee(left.bit_length() * max(0, right))
            if left.bit_length() * right > 100_000:
                raise OverBudgetError("a power is too large")
        return self.budget.charge(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as Jinja2
        """A call, its result charged."""
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja2 wraps the methods that format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes | int):
            __self._check_method(owner, name, args, kwargs)
        return __self.budget.charge(super().call(__context, __obj, *args, **kwargs))

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in _WIDENING:
            for value in (*args, *kwargs.values()):
                check_width(value)
            if name == "expandtabs":
                self.budget.foresee(len(owner) * max([8, *(value for value in args if isinstance(value, int))]))
        elif name == "replace" and len(args) >= 2:
            self.budget.foresee(_replaced_size(owner, args[0], args[1]))
        elif name == "join" and args:
            values = list(args[0])
            self.budget.foresee(self.budget.extent(values) + len(owner) * len(values))
        elif name in ("format", "format_map"):
            self._check_format(owner, (*args, *kwargs.values()))
        elif name == "translate":
            raise OverBudgetError("translate cannot be used in a prompt")

    def _check_format(self, form: str, values: tuple[Any, ...]) -> None:
        if _WIDE_FORMAT.search(form):
            raise OverBudgetError("a format has a width of millions, or a computed one")
        places = form.count("{") + form.count("%")
        self.budget.foresee(places * self.budget.extent(values) + places * 1_000)


def has_text(value: Any) -> Any:
    """Give back a value that has a text of its own.

    Raises:
        TypeError: it has none.
    """
    if isinstance(value, _PRINTABLE):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be printed (a list made by a filter needs | list or | join)")


class _Counting(NodeTransformer):
    """Puts a charge on everything in a tree that repeats or grows."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - as Jinja2 names it
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _COUNTED, _text_length(node.body))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._counted_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._counted_body(node)

    def _counted_body(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        step = _filtered(nodes.Const("", lineno=node.lineno), _STEP, _text_length(node.body))
        node.body.insert(0, nodes.Output([step], lineno=node.lineno))
        return node  # type: ignore[no-any-return]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return self._charged(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self._charged(node, node.items) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return self._charged(node, [pair.value for pair in node.items])

    def _charged(self, node: nodes.Expr, values: Iterable[nodes.Node]) -> nodes.Node:
        constant = all(isinstance(value, nodes.Const) for value in values)
        self.generic_visit(node)
        return node if constant else _filtered(node, _BUILT)


def _filtered(node: Any, name: str, *given: int) -> nodes.Filter:
    line = node.lineno or 1
    arguments = [nodes.Const(value, lineno=line) for value in given]
    return nodes.Filter(node, name, arguments, [], None, None, lineno=line)


def _text_length(body: list[nodes.Node]) -> int:
    texts = (found for node in body for found in (node, *node.find_all((nodes.TemplateData, nodes.Const))))
    return sum(
        len(str(found.data if isinstance(found, nodes.TemplateData) else found.value))
        for found in texts
        if isinstance(found, nodes.TemplateData | nodes.Const)
    )


def _counted(budget: Budget, values: Any, characters: int) -> Any:
    """What a loop goes over, its steps charged."""
    if isinstance(values, jinja2.Undefined):
        return values
    try:
        count = len(values)
    except TypeError:
        return _steps(budget, values, characters)
    budget.step(count, characters)
    return values


def _steps(budget: Budget, values: Iterable[Any], characters: int) -> Iterator[Any]:
    for value in values:
        budget.step(1, characters)
        yield value


def _b64encode(value: Any) -> str:
    """Bytes, or the UTF-8 of a text, as base64."""
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes):
        raise TypeError(f"b64encode takes binary or text, not {type(value).__name__}")
    return base64.b64encode(value).decode()


def _charged(budget: Budget, name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is charged, and refused beforehand where it could be very large."""
    passed = int(getattr(make, "jinja_pass_arg", None) is not None)
    foresee = _FORESIGHT.get(name)

    @functools.wraps(make)
    def charged(*args: Any, **kwargs: Any) -> Any:
        if foresee is not None:
            args = foresee(budget, args, kwargs, passed)
        return budget.charge(make(*args, **kwargs))

    return charged


_Arguments = tuple[Any, ...]


def _foresee_width(budget: Budget, args: _Arguments, kwargs: dict[str, Any], passed: int) -> _Arguments:
    for value in (*args[passed + 1 :], *kwargs.values()):
        check_width(value)
    return args


def _foresee_lines(budget: Budget, args: _Arguments, kwargs: dict[str, Any], passed: int) -> _Arguments:
    """Something is put into every line or word."""
    _foresee_width(budget, args, kwargs, passed)
    given = (*args[passed + 1 :], *kwargs.values())
    each = sum(len(value) if isinstance(value, str) else value for value in given if isinstance(value, str | int))
    value = args[passed] if len(args) > passed else ""
    pieces = sum(map(str(value).count, "\n .")) + 1
    budget.foresee(pieces * each)
    return args


def _foresee_wrapping(budget: Budget, args: _Arguments, kwargs: dict[str, Any], passed: int) -> _Arguments:
    given = (*args[passed + 1 :], *kwargs.values())
    each = sum(len(value) for value in given if isinstance(value, str)) + 1
    budget.foresee(len(str(args[passed])) * each)
    return args


def _foresee_replacing(budget: Budget, args: _Arguments, kwargs: dict[str, Any], passed: int) -> _Arguments:
    given = dict(zip(("s", "old", "new"), args[passed:], strict=False)) | kwargs
    budget.foresee(_replaced_size(given.get("s", ""), given.get("old", ""), given.get("new", "")))
    return args


def _foresee_joining(budget: Budget, args: _Arguments, kwargs: dict[str, Any], passed: int) -> _Arguments:
    if len(args) <= passed or isinstance(args[passed], jinja2.Undefined):
        return args
    values = list(args[passed])
    given = dict(zip(("d",), args[passed + 1 :], strict=False)) | kwargs
    budget.foresee(budget.extent(values) + len(str(given.get("d", ""))) * len(values))
    return (*args[:passed], values, *args[passed + 1 :])


def _foresee_format(budget: Budget, args: _Arguments, kwargs: dict[str, Any], passed: int) -> _Arguments:
    form = str(args[passed])
    if _WIDE_FORMAT.search(form):
        raise OverBudgetError("a format has a width of millions, or a computed one")
    budget.foresee(form.count("%") * (budget.extent((*args[passed + 1 :], *kwargs.values())) + 1_000))
    return args


def _foresee_sum(budget: Budget, args: _Arguments, kwargs: dict[str, Any], passed: int) -> _Arguments:
    start = (*args[passed + 2 :], *(value for key, value in kwargs.items() if key == "start"))
    if any(not isinstance(value, int | float | decimal.Decimal) for value in start):
        raise TypeError("sum starts from a number")
    return args


_FORESIGHT: dict[str, Callable[[Budget, _Arguments, dict[str, Any], int], _Arguments]] = {
    "batch": _foresee_width,
    "center": _foresee_width,
    "format": _foresee_format,
    "indent": _foresee_lines,
    "join": _foresee_joining,
    "replace": _foresee_replacing,
    "slice": _foresee_width,
    "sum": _foresee_sum,
    "tojson": _foresee_width,
    "truncate": _foresee_width,
    "urlize": _foresee_lines,
    "wordwrap": _foresee_wrapping,
}


def _replaced_size(whole: Any, old: Any, new: Any) -> int:
    text, before, after = str(whole), str(old), str(new)
    count = text.count(before) if before else len(text) + 1
    return len(text) + count * len(after)
