"""What an answer schema adds to a request body.

Owns the check of the prompt file's `answer` and the `response_format` (chat) or `text.format` (responses) made of it.
Does not read answers: `merge` checks them against the schema as written.
"""

from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped,unused-ignore]

from pipeline.errors import PromptError

_SUBSCHEMAS = ("items", "not", "if", "then", "else", "contains", "additionalProperties")
_SUBSCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SUBSCHEMA_MAPS = ("properties", "$defs", "definitions", "patternProperties")


def checked_answer(name: str, kind: str, body: dict[str, Any], answer: object) -> dict[str, Any]:
    """Check the `answer` of a prompt file against its body.

    Returns:
        The schema, unchanged.

    Raises:
        PromptError: it is no JSON Schema of an object, the kind has no typed answers, or the body sets a format itself.
    """
    if kind == "embeddings":
        raise PromptError(
            f"Prompt file {name}: answer cannot be used with url embeddings, which give vectors; remove it."
        )
    if not isinstance(answer, dict):
        raise PromptError(f"Prompt file {name}: answer must be a JSON Schema (a mapping).")
    try:
        jsonschema.Draft202012Validator.check_schema(answer)
    except jsonschema.SchemaError as error:
        where = "".join(f".{part}" for part in error.absolute_path)
        raise PromptError(f"Prompt file {name}: answer{where} is no valid JSON Schema: {error.message}.") from None
    if answer.get("type") != "object":
        raise PromptError(
            f"Prompt file {name}: answer.type must be object, as the service types only whole objects; wrap it in one."
        )
    text = body.get("text")
    own = (
        "response_format"
        if "response_format" in body
        else "text.format"
        if isinstance(text, dict) and "format" in text
        else None
    )
    if own:
        raise PromptError(
            f"Prompt file {name}: answer and body.{own} both say the form of the answer; keep one of them."
        )
    if kind == "responses" and text is not None and not isinstance(text, dict):
        raise PromptError(f"Prompt file {name}: body.text must be a mapping where answer is given.")
    return answer


def answer_format(kind: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The body with the format that makes the service keep to the schema.

    `strict` is on wherever the service can take it: it demands that every object is closed and requires all of its
    properties, and refuses each line otherwise. Where the schema says something else on purpose (optional properties,
    open objects) `strict` is off, and the check of the answers alone decides.
    """
    schema = _closed(answer)
    strict = _can_be_strict(schema)
    if kind == "chat":
        named = {"name": "answer", "strict": strict, "schema": schema}
        return {**body, "response_format": {"type": "json_schema", "json_schema": named}}
    form = {"type": "json_schema", "name": "answer", "strict": strict, "schema": schema}
    return {**body, "text": {**body.get("text", {}), "format": form}}


def is_answer_format(path: tuple[str | int, ...]) -> bool:
    """Whether a place in a body was filled by `answer_format`; nothing in it is a template."""
    return path in {("response_format",), ("text", "format")}


def _is_object(schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


def _closed(schema: Any) -> Any:
    """The schema with what strict mode demands of objects filled in where nothing is said."""
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for key in _SUBSCHEMAS:
        if key in closed:
            closed[key] = _closed(closed[key])
    for key in _SUBSCHEMA_LISTS:
        if isinstance(closed.get(key), list):
            closed[key] = [_closed(inner) for inner in closed[key]]
    for key in _SUBSCHEMA_MAPS:
        if isinstance(closed.get(key), dict):
            closed[key] = {inner_key: _closed(inner) for inner_key, inner in closed[key].items()}
    if _is_object(closed):
        closed.setdefault("additionalProperties", False)
        if "properties" in closed:
            closed.setdefault("required", list(closed["properties"]))
    return closed


def _can_be_strict(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return True
    if _is_object(schema):
        if schema.get("additionalProperties") is not False:
            return False
        if set(schema.get("properties", {})) - set(schema.get("required", [])):
            return False
    inner = [schema[key] for key in _SUBSCHEMAS if key in schema]
    inner += [each for key in _SUBSCHEMA_LISTS for each in schema.get(key, [])]
    inner += [each for key in _SUBSCHEMA_MAPS for each in schema.get(key, {}).values()]
    return all(_can_be_strict(each) for each in inner)
