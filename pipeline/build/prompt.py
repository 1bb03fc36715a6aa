"""Where a prompt comes from: a file of any known kind, or, without one, the source's text column.

Owns which file is read how, the keys of our own YAML, and the choice of a text column. What every prompt must keep is
checked in `checked_prompt`; what is inside a template, in `template`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.build.checked_prompt import Prompt, checked_prompt
from pipeline.build.prompt_text import ENDINGS, read_text, user_message
from pipeline.build.prompt_words import describe, has_template, hint, nearest
from pipeline.build.prompt_yaml import read_yaml
from pipeline.build.prompty import read_prompty
from pipeline.errors import PromptError

__all__ = ["Prompt", "column_reference", "default_prompt", "has_template", "load_prompt", "nearest"]

KEYS = ("url", "body", "answer", "strict", "image_tokens")
TEXT_COLUMNS = ("prompt", "text", "content", "question", "input", "message")
"""Names by which the text column is found when there is no prompt file, the first that is there wins."""


def load_prompt(path: Path) -> Prompt:
    """Read and check a prompt file.

    Args:
        path: `.prompty`, a text (`.txt`, `.md`, `.j2`, `.jinja`, `.jinja2`) or, with any other ending, YAML; UTF-8.

    Returns:
        The prompt; its templates are not looked at yet.

    Raises:
        PromptError: the file cannot be read, or says something that no request could hold.
    """
    ending = path.suffix.lower()
    if ending == ".prompty":
        document, notes = read_prompty(path)
        return checked_prompt(path.name, document, folder=path.parent, notes=notes)
    if ending in ENDINGS:
        return checked_prompt(path.name, {"body": user_message(read_text(path, "--prompt"))}, folder=path.parent)
    return checked_prompt(path.name, _document(path), folder=path.parent)


def _document(path: Path) -> dict[str, Any]:
    """Our YAML, with known keys alone."""
    name, document = path.name, read_yaml(path)
    if not isinstance(document, dict):
        raise PromptError(f"Prompt file {name}: expected a mapping with the key body, found {describe(document)}.")
    for key in document:
        if key not in KEYS:
            raise PromptError(
                f"Prompt file {name}: unknown key {key!r}{hint(str(key), KEYS)}; known keys: {', '.join(KEYS)}."
            )
    if "body" not in document:
        raise PromptError(
            f"Prompt file {name}: the key body is missing; put the request body (messages, temperature, …) there."
        )
    return document


def default_prompt(schema: pa.Schema) -> tuple[Prompt, str]:
    """Make the prompt of a run without a prompt file: the text column as one user message.

    Args:
        schema: The source's columns.

    Returns:
        The prompt and the name of the column chosen.

    Raises:
        PromptError: it is not clear which column holds the text.
    """
    column = _text_column(schema)
    body = user_message("{{ " + column_reference(column, schema.names) + " }}")
    return Prompt(kind="chat", body=body, model=None, answer=None, name=f"column {column}"), column


def column_reference(column: str, names: Iterable[str]) -> str:
    """How a template names a column: bare where it can, `row["its name"]` otherwise.

    Raises:
        PromptError: the column can only be reached through `row`, and another column has that name.
    """
    reserved = {"true", "false", "none", "True", "False", "None", "not", "and", "or", "in", "is", "if", "else", "self"}
    if column.isidentifier() and column.isascii() and column not in reserved:
        return column
    if "row" in names:
        raise PromptError(
            f"Column {column!r} cannot be named in a template because a column named row exists; rename one of them."
        )
    return f"row[{json.dumps(column, ensure_ascii=False)}]"


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _text_column(schema: pa.Schema) -> str:
    texts: list[str] = [field.name for field in schema if _is_text(field.type)]
    for known in TEXT_COLUMNS:
        matches = [name for name in texts if name.casefold() == known]
        if known in matches:
            return known
        if len(matches) == 1:
            return matches[0]
    if len(texts) == 1:
        return texts[0]
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none at all"
    found = "no column holds text" if not texts else "it is not clear which column holds the text"
    raise PromptError(
        f"No prompt file was given and {found}: write one with --prompt that names it; columns: {columns}."
    )
