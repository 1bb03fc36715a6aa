"""The prompt file: one request body as the service takes it, with templates in its strings.

Owns reading and checking the YAML, the choice of a text column where there is no prompt file, and what an answer schema
adds to the body. Whatever parameter the service has passes through untouched. Does not know what is inside a template
(`template.py` compiles them), which service the requests go to, or any row.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.build.answer_schema import answer_format, checked_answer
from pipeline.build.prompt_yaml import read_yaml
from pipeline.errors import PromptError

KEYS = ("url", "body", "answer")
KINDS = ("chat", "responses", "embeddings")
TEXT_COLUMNS = ("prompt", "text", "content", "question", "input", "message")
"""Names by which the text column is found when there is no prompt file, the first that is there wins."""

DEPTH_MAX = 64
"""Deepest nesting of a body; also what stops a YAML alias that contains itself."""

VALUES_MAX = 100_000
"""Most values in a body; stops YAML aliases that multiply."""

_PATHS = {"chat/completions": "chat", "responses": "responses", "embeddings": "embeddings"}
_REQUIRED = {"chat": "messages", "responses": "input", "embeddings": "input"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A checked prompt file.

    Attributes:
        kind: "chat", "responses" or "embeddings".
        body: The request body, templates still in it, without `model`; what the answer schema asks of the service
            (`response_format`, `text.format`) is already in it. Its key order is the order on the wire.
        model: The deployment (Azure) or model of the file, None where it names none.
        answer: JSON Schema of the answer as written in the file, None for plain text.
        name: File name, for messages.
    """

    kind: str
    body: dict[str, Any]
    model: str | None
    answer: dict[str, Any] | None
    name: str

    def digest(self) -> str:
        """Identify what is asked: sha256 in hex over kind, body and answer; neither the model nor the file's name.

        Keys count in their order: it is the order on the wire, and in a schema the order in which the model answers.
        """
        identity = {"kind": self.kind, "body": self.body, "answer": self.answer}
        text = json.dumps(identity, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def load_prompt(path: Path) -> Prompt:
    """Read and check a prompt file.

    Args:
        path: The YAML file, UTF-8.

    Returns:
        The prompt; its templates are not looked at yet.

    Raises:
        PromptError: the file cannot be read, is not YAML, or says something that no request could hold.
    """
    name = path.name
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise PromptError(f"Prompt file {name}: expected a mapping with the key body, found {_describe(document)}.")
    for key in document:
        if key not in KEYS:
            raise PromptError(
                f"Prompt file {name}: unknown key {key!r}{_hint(str(key), KEYS)}; known keys: {', '.join(KEYS)}."
            )
    kind = _kind(name, document.get("url", "chat"))
    if "body" not in document:
        raise PromptError(
            f"Prompt file {name}: the key body is missing; put the request body (messages, temperature, …) there."
        )
    body = document["body"]
    if not isinstance(body, dict):
        raise PromptError(f"Prompt file {name}: body must be a mapping, found {_describe(body)}.")
    _check_json(name, body, "body")
    model, body = _split_model(name, body)
    _check_body(name, kind, body)
    answer = document.get("answer")
    if answer is not None:
        _check_json(name, answer, "answer")
        answer = checked_answer(name, kind, body, answer)
        body = answer_format(kind, body, answer)
    return Prompt(kind=kind, body=body, model=model, answer=answer, name=name)


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
    body = {"messages": [{"role": "user", "content": "{{ " + column_reference(column, schema.names) + " }}"}]}
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


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, whatever its case; None when none is alike."""
    by_folded = {candidate.casefold(): candidate for candidate in reversed(list(known))}
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.5)
    return by_folded[close[0]] if close else None


def has_template(text: str) -> bool:
    """Whether a string is a template; any other string is sent exactly as written."""
    return "{{" in text or "{%" in text or "{#" in text


def _hint(name: str, known: Iterable[str]) -> str:
    found = nearest(name, known)
    return f", did you mean {found}?" if found else ""


def _describe(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _kind(name: str, url: object) -> str:
    text = str(url).strip()
    path = text.strip("/").removeprefix("v1/")
    if text in KINDS:
        return text
    if isinstance(url, str) and path in _PATHS:
        return _PATHS[path]
    raise PromptError(
        f"Prompt file {name}: url {url!r} is not known{_hint(path, KINDS)}; use chat, responses, embeddings or a full "
        "path such as /v1/chat/completions."
    )


def _split_model(name: str, body: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    rest = {key: value for key, value in body.items() if key != "model"}
    model = body.get("model")
    if model is None:
        return None, rest
    if not isinstance(model, str) or not model.strip():
        raise PromptError(f"Prompt file {name}: body.model must be the name of a deployment, found {_describe(model)}.")
    if has_template(model):
        raise PromptError(
            f"Prompt file {name}: body.model must not be a template, as one batch has one model; use a run for each."
        )
    return model, rest


def _check_body(name: str, kind: str, body: dict[str, Any]) -> None:
    required = _REQUIRED[kind]
    if required not in body:
        raise PromptError(
            f"Prompt file {name}: body.{required} is missing, which url {kind} needs{_hint(required, body)}."
        )
    if kind == "chat":
        _check_messages(name, body["messages"])
    elif not isinstance(body["input"], str | list) or not body["input"]:
        raise PromptError(f"Prompt file {name}: body.input must be text or a list that is not empty.")
    if body.get("stream") not in (None, False):
        raise PromptError(f"Prompt file {name}: body.stream cannot be used, as a batch gives whole answers; remove it.")
    n = body.get("n")
    if isinstance(n, str) and has_template(n):
        raise PromptError(
            f"Prompt file {name}: body.n must not be a template, as it decides the type of the answer column."
        )
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise PromptError(f"Prompt file {name}: body.n must be a whole number from 1, found {n!r}.")


def _check_messages(name: str, messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"Prompt file {name}: body.messages must be a list with at least one message.")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise PromptError(
                f"Prompt file {name}: body.messages[{index}] must be a mapping with role and content, "
                f"found {_describe(message)}."
            )
        if "role" not in message:
            raise PromptError(f"Prompt file {name}: body.messages[{index}].role is missing{_hint('role', message)}.")


def _check_json(name: str, value: object, where: str) -> None:
    """Refuse what YAML can say and JSON cannot."""
    left = [VALUES_MAX]

    def visit(value: object, where: str, depth: int) -> None:
        left[0] -= 1
        if depth > DEPTH_MAX or left[0] < 0:
            raise PromptError(
                f"Prompt file {name}: {where[:80]} is nested too deep or too large; an alias may contain itself."
            )
        if isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise PromptError(
                        f"Prompt file {name}: {where} has the key {key!r}, which is no text; put it in quotes."
                    )
                check_text(key, where)
                visit(inner, f"{where}.{key}", depth + 1)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                visit(inner, f"{where}[{index}]", depth + 1)
        elif isinstance(value, str):
            check_text(value, where)
        elif isinstance(value, float) and not math.isfinite(value):
            raise PromptError(f"Prompt file {name}: {where} is {value}, which JSON cannot hold; use a finite number.")
        elif isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
            raise PromptError(f"Prompt file {name}: {where} is beyond 64 bits; use a smaller number.")
        elif not isinstance(value, int | float | bool | None):
            raise PromptError(
                f"Prompt file {name}: {where} is {_describe(value)}, which JSON cannot hold; put it in quotes."
            )

    def check_text(text: str, where: str) -> None:
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise PromptError(
                f"Prompt file {name}: {where} has half a surrogate pair, which UTF-8 cannot hold; write the character."
            )

    visit(value, where, 0)


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
