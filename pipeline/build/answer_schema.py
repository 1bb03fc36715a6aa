"""The prompt file's `answer`: text, any JSON, or a JSON Schema, and what it adds to a request body.

Owns reading it (written in the file, or in a file of its own), its check, and the `response_format` (chat) or
`text.format` (responses) made of it. Does not read answers: `merge` checks them against the schema as written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped,unused-ignore]

from pipeline.build.json_values import check_json
from pipeline.build.prompt_words import has_template
from pipeline.build.prompt_yaml import read_yaml
from pipeline.build.strict_schema import check_strict, strict_form
from pipeline.errors import PromptError

ANY_JSON: dict[str, Any] = {"title": "any JSON"}
"""The schema of `answer: json`: every JSON text keeps to it, and no other text does. It has no type of its own, so that
the answer stays text."""

_FILES = (".json", ".yaml", ".yml")


def read_answer(name: str, answer: object, folder: Path) -> dict[str, Any] | None:
    """What the `answer` of a prompt file means.

    Args:
        name: of the prompt file, for messages.
        answer: as written: `text`, `json`, a schema, or the path of one.
        folder: where a path starts from.

    Returns:
        The schema; None for plain text.

    Raises:
        PromptError: it is none of these, or its file cannot be read.
    """
    if answer is None or answer == "text":
        return None
    if answer == "json":
        return dict(ANY_JSON)
    where = "answer"
    if isinstance(answer, str):
        answer, where = _from_file(name, answer, folder), f"answer ({answer})"
    if not isinstance(answer, dict):
        raise PromptError(
            f"Prompt file {name}: {where} must be text, json, a JSON Schema (a mapping) or the path of one."
        )
    check_json(name, answer, where)
    return answer


def _from_file(name: str, written: str, folder: Path) -> Any:
    path = folder / written
    if path.suffix.lower() not in _FILES:
        raise PromptError(
            f"Prompt file {name}: answer {written!r} is not known; write text, json, a JSON Schema, or the path of one "
            "that ends in .json or .yaml."
        )
    if not path.exists():
        raise PromptError(
            f"Prompt file {name}: answer names {written}, and there is no {path}; paths start from the prompt file."
        )
    if path.suffix.lower() != ".json":
        return read_yaml(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise PromptError(f"Prompt file {name}: {path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise PromptError(f"Prompt file {name}: {path} is no JSON ({error}).") from None


def with_answer(
    name: str, kind: str, body: dict[str, Any], schema: dict[str, Any], *, strict: bool
) -> dict[str, Any]:
    """The body with the format that makes the service keep to the schema.

    Args:
        name: of the prompt file, for messages.
        kind: chat, responses or embeddings.
        body: the request body.
        schema: of `read_answer`.
        strict: have the service hold to the schema to the letter; otherwise it is a hint, and the check of the answers
            alone decides.

    Raises:
        PromptError: it is no JSON Schema of an object, strict mode does not take it, the kind has no typed answers, or
            the body sets a format itself.
    """
    if kind == "embeddings":
        raise PromptError(
            f"Prompt file {name}: answer cannot be used with url embeddings, which give vectors; remove it."
        )
    _check_place(name, kind, body)
    if schema == ANY_JSON:
        if not _says_json(body["messages" if kind == "chat" else "input"]):
            raise PromptError(
                f"Prompt file {name}: answer: json needs the word JSON in a message, or the service refuses each "
                "request; ask for JSON in the prompt."
            )
        return _with_format(kind, body, {"type": "json_object"}, {"type": "json_object"})
    _check_schema(name, schema)
    sent = strict_form(schema) if strict else schema
    if strict:
        check_strict(name, sent)
    named = {"name": "answer", "strict": strict, "schema": sent}
    return _with_format(kind, body, {"type": "json_schema", "json_schema": named}, {"type": "json_schema", **named})


def is_answer_format(path: tuple[str | int, ...]) -> bool:
    """Whether a place in a body was filled by `with_answer`; nothing in it is a template."""
    return path in {("response_format",), ("text", "format")}


def _with_format(kind: str, body: dict[str, Any], chat: dict[str, Any], responses: dict[str, Any]) -> dict[str, Any]:
    if kind == "chat":
        return {**body, "response_format": chat}
    return {**body, "text": {**(body.get("text") or {}), "format": responses}}


def _check_place(name: str, kind: str, body: dict[str, Any]) -> None:
    """Refuse a body that says the form of the answer itself."""
    text = body.get("text")
    own = None
    if "response_format" in body:
        own = "response_format"
    elif isinstance(text, dict) and "format" in text:
        own = "text.format"
    if own:
        raise PromptError(
            f"Prompt file {name}: answer and body.{own} both say the form of the answer; keep one of them."
        )
    if kind == "responses" and text is not None and not isinstance(text, dict):
        raise PromptError(f"Prompt file {name}: body.text must be a mapping where answer is given.")


def _check_schema(name: str, schema: dict[str, Any]) -> None:
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        where = "".join(f".{part}" for part in error.absolute_path)
        raise PromptError(f"Prompt file {name}: answer{where} is no valid JSON Schema: {error.message}.") from None
    if schema.get("type") != "object":
        raise PromptError(
            f"Prompt file {name}: answer.type must be object, as the service types only whole objects; wrap it in one."
        )


def _says_json(value: Any) -> bool:
    """Whether the word JSON stands in the fixed text of a prompt; a template's own words do not count as text."""
    if isinstance(value, dict):
        return any(_says_json(inner) for inner in value.values())
    if isinstance(value, list):
        return any(_says_json(inner) for inner in value)
    return isinstance(value, str) and "json" in value.casefold() and (not has_template(value) or _outside(value))


def _outside(template: str) -> bool:
    """Whether the word stands outside of what a template computes."""
    fixed = ""
    rest = template
    while "{" in rest:
        before, _, rest = rest.partition("{")
        fixed += before
        if rest[:1] in ("{", "%", "#"):
            _, _, rest = rest.partition({"{": "}}", "%": "%}", "#": "#}"}[rest[0]])
    return "json" in (fixed + rest).casefold()
