"""A request body cut into fixed JSON text and the places that templates fill.

Owns the order of keys on the wire and the escaping of all that is the same in every line, done once with orjson. Both
ways of rendering, columns at once and row by row, fill the same skeleton, so that they give the same bytes. Pure;
does not know what a template means.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from pipeline.build.answer_schema import is_answer_format
from pipeline.build.prompt import has_template

TEXT_KEYS = frozenset(
    [
        "messages",
        "content",
        "text",
        "input",
        "role",
        "name",
        "description",
        "instructions",
        "user",
        "metadata",
        "stop",
        "prompt_cache_key",
        "safety_identifier",
    ]
)
"""Under these keys the service takes text only: a template there always gives a string."""

PROMPT_KEYS = frozenset({"messages", "input"})
"""Keys of a body that hold the prompt itself; a row whose templates there all give white space asks nothing."""

GROUP_LITERAL_BYTES_MAX = 256
"""Fixed text that may be encoded again with every row for the sake of encoding a whole message at once."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One templated string of a body.

    Attributes:
        source: The template.
        where: Its place, such as `body.messages[1].content`.
        native: Where the template is one expression, a number or boolean of it stays one.
        is_prompt: It belongs to the prompt itself and not to a parameter.
    """

    source: str
    where: str
    native: bool
    is_prompt: bool


@dataclass(frozen=True, slots=True)
class Single:
    """The JSON value of one slot."""

    slot: int


@dataclass(frozen=True, slots=True)
class Group:
    """A JSON object of strings only (a message), encoded at once; a value is fixed text or the index of a slot."""

    entries: tuple[tuple[str, str | int], ...]


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A body: its JSON text after the opening brace and the model, with the places to fill."""

    pieces: tuple[str | Single | Group, ...]
    slots: tuple[Slot, ...]


def measured_piece(piece: str | Single | Group) -> tuple[int, tuple[int, ...]]:
    """The bytes of a piece that are the same in every line, and the slots whose JSON stands between them."""
    if isinstance(piece, str):
        return len(piece.encode()), ()
    if isinstance(piece, Single):
        return 0, (piece.slot,)
    keys = len("{}") + sum(len(dumps(key).encode()) + len(":,") for key, _ in piece.entries) - len(",")
    fixed = sum(len(dumps(value).encode()) for _, value in piece.entries if isinstance(value, str))
    return keys + fixed, tuple(value for _, value in piece.entries if isinstance(value, int))


@dataclass(slots=True)
class _Cutter:
    """Collects pieces while a body is walked."""

    fixed_answer_format: bool
    pieces: list[str | Single | Group] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)

    def text(self, text: str) -> None:
        if self.pieces and isinstance(self.pieces[-1], str):
            self.pieces[-1] += text
        else:
            self.pieces.append(text)

    def slot(self, source: str, path: tuple[str | int, ...]) -> int:
        self.slots.append(
            Slot(
                source, place(path), native=TEXT_KEYS.isdisjoint(path), is_prompt=bool(path) and path[0] in PROMPT_KEYS
            )
        )
        return len(self.slots) - 1

    def value(self, value: Any, path: tuple[str | int, ...]) -> None:
        if isinstance(value, str) and has_template(value):
            self.pieces.append(Single(self.slot(value, path)))
        elif not isinstance(value, dict | list) or (self.fixed_answer_format and is_answer_format(path)):
            self.text(dumps(value))
        elif isinstance(value, list):
            self.text("[")
            for index, inner in enumerate(value):
                self.text("," if index else "")
                self.value(inner, (*path, index))
            self.text("]")
        elif _is_group(value) and not TEXT_KEYS.isdisjoint(path):
            entries = [
                (key, self.slot(text, (*path, key)) if has_template(text) else text) for key, text in value.items()
            ]
            self.pieces.append(Group(tuple(entries)))
        else:
            self.text("{")
            self.entries(value, path)

    def entries(self, value: dict[str, Any], path: tuple[str | int, ...]) -> None:
        for index, (key, inner) in enumerate(value.items()):
            self.text(("," if index else "") + dumps(key) + ":")
            self.value(inner, (*path, key))
        self.text("}")


def skeleton_of(body: dict[str, Any], *, fixed_answer_format: bool) -> Skeleton:
    """Cut a body.

    Args:
        body: The body without `model`.
        fixed_answer_format: The place of the answer's format was filled from a schema: no templates in it.
    """
    cutter = _Cutter(fixed_answer_format)
    cutter.entries(body, ())
    return Skeleton(tuple(cutter.pieces), tuple(cutter.slots))


def dumps(value: Any) -> str:
    """Compact JSON, raw UTF-8, escaped exactly as polars' `json_encode` does (a test compares every character)."""
    return orjson.dumps(value).decode()


def place(path: tuple[str | int, ...]) -> str:
    """A place in the body as people write it."""
    return "body" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def _is_group(value: dict[str, Any]) -> bool:
    if not value or not all(isinstance(inner, str) for inner in value.values()):
        return False
    fixed = [inner for inner in value.values() if not has_template(inner)]
    return len(fixed) < len(value) and sum(map(len, fixed)) <= GROUP_LITERAL_BYTES_MAX
