"""Which images a prompt shows: the content parts, the columns behind them, and what stands in for them in a template.

`{{ photo | image }}` alone in the URL of an image part shows a column as an image. Owns finding these, the check of
their columns, and the prompt with a plain column in place of each. Reads no row.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import nodes

from pipeline.build.body import place
from pipeline.build.body_rules import image_parts
from pipeline.build.checked_prompt import Prompt
from pipeline.build.columns import is_text, unwrap, unwrapped
from pipeline.build.image_bytes import pixels
from pipeline.build.image_tokens import ImageTokens
from pipeline.build.prompt_words import has_template, hint
from pipeline.errors import PromptError

HIDDEN_PREFIX = "__batchmill_image_"
"""Row-file columns with the content of local image files; no column of a source can have such a name."""

FAULT_SUFFIX = "_fault"
IMAGE_BYTES_MAX = 20 << 20
"""Largest image that is sent, before base64: the services' documented limit of an image."""


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """A column shown as images.

    Attributes:
        column: Its name in the source.
        fields: Struct fields that lead to the images, outermost first.
        hidden: Row-file column with the content of the files that it names; None where it holds the images itself.
        stand_in: The column that stands in its place in the template of the text.
    """

    column: str
    fields: tuple[str, ...]
    hidden: str | None
    stand_in: str

    @property
    def told(self) -> str:
        """The column in a message."""
        return ".".join((self.column, *self.fields))

    def values(self, block: pa.Table) -> pa.LargeBinaryArray:
        """Its bytes, or its texts as bytes, in a block."""
        values = unwrap(block.column(self.column))
        for field in self.fields:
            values = unwrap(pa.chunked_array([pc.struct_field(values, field)]))
        return values.cast(pa.large_binary())


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a prompt.

    Attributes:
        columns: Columns shown, each once.
        slots: For each place that shows one, in the order of the body: index of its column, and whether in low detail.
        prompt: The prompt with stand-ins; nothing in it asks for an image any more.
        fixed_tokens: What the other images of a request cost, less what their text counts for.
    """

    columns: tuple[ImageColumn, ...]
    slots: tuple[tuple[int, bool], ...]
    prompt: Prompt
    fixed_tokens: int

    @property
    def hidden(self) -> pa.Schema:
        """The row-file columns that they need beside the source's."""
        names = [column.hidden for column in self.columns if column.hidden]
        return pa.schema(
            [
                field
                for name in names
                for field in (pa.field(name, pa.large_binary()), pa.field(name + FAULT_SUFFIX, pa.string()))
            ]
        )


def read_images(prompt: Prompt, schema: pa.Schema) -> Images:
    """Find what a prompt shows as images.

    Raises:
        PromptError: a column is not there or holds no images, or `image` stands where no image can.
    """
    columns: dict[tuple[str, ...], ImageColumn] = {}
    slots: list[tuple[int, bool]] = []
    body, fixed = prompt.body, 0
    for path, part in image_parts(prompt.kind, prompt.body):
        key = "url" if prompt.kind == "chat" else "image_url"
        steps = (*path, "image_url", key) if prompt.kind == "chat" else (*path, key)
        holder = part["image_url"] if prompt.kind == "chat" else part
        url, low = holder.get(key), holder.get("detail") == "low"
        asked = _asked(url) if isinstance(url, str) and has_template(url) else None
        if asked is None:
            fixed += _fixed_tokens(url, prompt.image_tokens, low)
            continue
        found = _column(asked, schema, f"Prompt file {prompt.name}, {place(steps)}", len(columns))
        column = columns.setdefault((found.column, *found.fields), found)
        slots.append((list(columns.values()).index(column), low))
        body = _with(body, steps, "{{ " + column.stand_in + " }}")
    for where, text in _strings(body, ()):
        if _asks_somewhere(text):
            raise PromptError(
                f"Prompt file {prompt.name}, {place(where)}: `image` stands alone in the URL of an image part; write "
                + _example(prompt.kind)
            )
    return Images(tuple(columns.values()), tuple(slots), replace(prompt, body=body), fixed)


def _example(kind: str) -> str:
    if kind == "responses":
        return 'it as {type: input_image, image_url: "{{ photo | image }}"}.'
    if kind == "chat":
        return 'it as {type: image_url, image_url: {url: "{{ photo | image }}"}}.'
    return "a prompt of url chat or responses, as embeddings takes no images."


def _asked(text: str) -> nodes.Expr | None:
    """What is shown, where a string is `{{ … | image }}` and nothing else."""
    try:
        body = jinja2.Environment().parse(text.strip()).body
    except jinja2.TemplateSyntaxError:
        return None
    if len(body) != 1 or not isinstance(body[0], nodes.Output) or len(body[0].nodes) != 1:
        return None
    found = body[0].nodes[0]
    plain = isinstance(found, nodes.Filter) and found.name == "image" and not found.args and not found.kwargs
    return found.node if plain else None  # type: ignore[attr-defined,no-any-return,unused-ignore]


def _asks_somewhere(text: str) -> bool:
    if "image" not in text or not has_template(text):
        return False
    try:
        tree = jinja2.Environment().parse(text)
    except jinja2.TemplateSyntaxError:
        return False
    return any(node.name == "image" for node in tree.find_all(nodes.Filter))


def _steps(node: nodes.Expr | None) -> list[str] | None:
    """`photo.bytes` or `row["photo"]["bytes"]` as names; None where it is more than that."""
    if isinstance(node, nodes.Name):
        return [node.name]
    if isinstance(node, nodes.Getattr):
        found = _steps(node.node)
        return None if found is None else [*found, node.attr]
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        found = _steps(node.node)
        return None if found is None else [*found, node.arg.value]
    return None


def _column(asked: nodes.Expr, schema: pa.Schema, where: str, number: int) -> ImageColumn:
    steps = _steps(asked)
    if steps and steps[0] == "row" and "row" not in schema.names:
        steps = steps[1:]
    if not steps:
        raise PromptError(f"{where}: `image` takes a column, or a field of one; write {{{{ photo | image }}}}.")
    name, fields = steps[0], tuple(steps[1:])
    if name not in schema.names:
        columns = ", ".join(schema.names[:20]) or "none at all"
        raise PromptError(f"{where}: there is no column {name}{hint(name, schema.names)} (the columns are: {columns}).")
    kind = unwrapped(schema.field(name).type)
    for field in fields:
        if not pa.types.is_struct(kind) or kind.get_field_index(field) < 0:
            raise PromptError(f"{where}: column {name} has no field {'.'.join(fields)}; its type is {kind}.")
        kind = unwrapped(kind.field(field).type)
    if pa.types.is_struct(kind):
        binary = next((field.name for field in kind if is_binary(field.type)), None)
        more = f"; write {{{{ {'.'.join(steps)}.{binary} | image }}}}" if binary else ""
        raise PromptError(f"{where}: column {name} is a struct, which is no image{more}.")
    if not is_binary(kind) and not is_text(kind):
        raise PromptError(
            f"{where}: column {name} is of type {kind}, which holds no image; name one of URLs, paths or bytes."
        )
    stand_in = f"image_{number}"
    while stand_in in schema.names:
        stand_in += "_"
    return ImageColumn(name, fields, f"{HIDDEN_PREFIX}{number}" if is_text(kind) else None, stand_in)


def is_binary(kind: pa.DataType) -> bool:
    """Whether values of a type are raw bytes."""
    kind = unwrapped(kind)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _fixed_tokens(url: Any, tokens: ImageTokens, low: bool) -> int:
    """What an image of the prompt itself costs, or one whose size nobody can know, less what its text counts for."""
    if tokens.characters:
        return 0
    if isinstance(url, str) and url.startswith("data:") and not has_template(url):
        content = url.partition(",")[2]
        try:
            size = pixels(base64.b64decode(content, validate=True))
        except binascii.Error:
            size = None
        return tokens.of(size, low=low) - len(content) // 4
    return tokens.of(None, low=low)


def _strings(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _strings(inner, (*path, index))


def _with(value: Any, path: tuple[str | int, ...], new: str) -> Any:
    """A value with another text at a place in it."""
    if not path:
        return new
    if isinstance(value, dict):
        return {key: _with(inner, path[1:], new) if key == path[0] else inner for key, inner in value.items()}
    return [_with(inner, path[1:], new) if index == path[0] else inner for index, inner in enumerate(value)]
