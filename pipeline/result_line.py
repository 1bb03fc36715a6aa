"""One result line, in whatever shape a service gives it, to one row of the result columns (contract §6).

The judge of what a line says: slow and complete, where `result_columns` is quick and knows the common shape only. A
line that cannot be read is told as malformed, with its custom_id where that can still be seen. Judges no outcome.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from pipeline.outcome import CONTENT_FILTER, MALFORMED

Row = tuple[Any, ...]
"""custom_id, usable, http_status, error_code, error_message, answer, finish_reason, prompt_tokens, completion_tokens,
cached_tokens, reasoning_tokens, model, raw."""

_MESSAGE_CHARACTERS_MAX = 1_000
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*("(?:[^"\\]|\\.){1,400}")')
_SURROGATE = re.compile("[\ud800-\udfff]")
_MANY_DIGITS = re.compile(rb"\d{19}")
_OK = range(200, 300)
_INT64 = 1 << 63
_FILTER_CODES = frozenset({CONTENT_FILTER, "contentFilter", "ResponsibleAIPolicyViolation"})


def parsed(text: bytes, *, strict: bool = False) -> Any:
    """The JSON of a text; lone surrogates become U+FFFD, whole numbers keep every digit.

    Args:
        text: JSON.
        strict: take no `NaN` and no `Infinity`, which servers write and JSON does not have.

    Raises:
        ValueError: it is no JSON.
    """
    if not _MANY_DIGITS.search(text):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
    try:
        found = json.loads(text.decode("utf-8"), parse_constant=_refused if strict else None)
        clean = json.dumps(found, ensure_ascii=False)
        return json.loads(_SURROGATE.sub("\ufffd", clean)) if _SURROGATE.search(clean) else found
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def json_text(value: Any) -> str:
    """A value as JSON text, numbers beyond 64 bits included."""
    try:
        return orjson.dumps(value).decode()
    except (TypeError, orjson.JSONEncodeError):
        pass
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def line_rows(line: bytes, kind: str, *, several: bool = False, raw: bool = False) -> list[Row]:
    """What a line says: one row, or one each where whole lines lost the newline between them.

    Args:
        line: without its newline.
        kind: chat, responses or embeddings.
        several: a request asks for several answers; they come as a JSON list, however many there are.
        raw: keep the response body as JSON text in the last column.
    """
    try:
        return [_row(parsed(line), line, kind, several, raw)]
    except ValueError:
        glued = _glued(line)
    if glued:
        return [_row(found, line, kind, several, raw) for found in glued]
    return [_unreadable(line)]


def _glued(line: bytes) -> list[Any]:
    """Objects that stand whole on one line, where nothing else does; otherwise none."""
    found: list[Any] = []
    try:
        text = line.decode("utf-8").strip()
        at = 0
        while at < len(text):
            value, at = json.JSONDecoder().raw_decode(text, at)
            found.append(parsed(json.dumps(value).encode()))
            at = len(text) - len(text[at:].lstrip())
    except (ValueError, RecursionError):
        return []
    return found if all(isinstance(value, dict) for value in found) else []


def _unreadable(line: bytes) -> Row:
    seen = _CUSTOM_ID.search(line)
    try:
        custom_id = parsed(seen[1]) if seen else None
    except ValueError:
        custom_id = None
    return _failure(custom_id, None, MALFORMED, "the result line cannot be read")


def _row(found: Any, line: bytes, kind: str, several: bool, raw: bool) -> Row:
    if not isinstance(found, dict) or not isinstance(found.get("custom_id"), str):
        return _unreadable(line)
    custom_id = found["custom_id"]
    response = found.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    if isinstance(body, str):
        try:
            body = parsed(body.encode("utf-8"))
        except ValueError:
            body = None
    return (*_judged(custom_id, found, body, kind, several)[:-1], _body_text(body) if raw else None)


def _body_text(body: Any) -> str | None:
    """The body as JSON text; None where there is none, or one that is nested too deeply to be written."""
    try:
        return None if body is None else json_text(body)
    except ValueError:
        return None


def _judged(custom_id: str, found: dict[str, Any], body: Any, kind: str, several: bool) -> Row:
    error, response = found.get("error"), found.get("response")
    if isinstance(error, str) and error:
        return _failure(custom_id, None, "error", error)
    if isinstance(error, dict) and (error.get("code") or error.get("message")):
        return _failure(custom_id, None, _code(error) or "error", error.get("message"))
    if not isinstance(response, dict):
        return _failure(custom_id, None, MALFORMED, "the result line has neither a response nor an error")
    status = _status(response.get("status_code"))
    inner = body.get("error") if isinstance(body, dict) else None
    if status not in _OK or _says_something(inner):
        inner = {"message": inner} if isinstance(inner, str) else inner if isinstance(inner, dict) else {}
        told = _status(inner.get("code")) if inner.get("code") else 500
        failed_status = status if status not in _OK else told if 400 <= told < 600 else 500
        return _failure(custom_id, failed_status, _code(inner) or f"http_{status}", inner.get("message"))
    if not isinstance(body, dict):
        return _failure(custom_id, None, MALFORMED, "the response has no body")
    return _answered(custom_id, status, body, kind, several)


def _says_something(error: Any) -> bool:
    """Whether an error is one: some servers put an empty one beside a good answer."""
    if isinstance(error, dict):
        return any(error.get(name) for name in ("code", "type", "message"))
    return isinstance(error, str) and bool(error)


def _status(value: Any) -> int:
    """An HTTP status in any spelling; 200 where none is given, 0 where it is none."""
    if value is None:
        return 200
    try:
        return int(value) if not isinstance(value, bool) and abs(int(value)) < 1_000 else 0
    except (TypeError, ValueError, OverflowError):
        return 0


def _code(error: dict[str, Any]) -> str | None:
    code = str(error.get("code") or error.get("type") or "")
    return CONTENT_FILTER if code in _FILTER_CODES else code or None


def _failure(custom_id: str | None, status: int | None, code: str, message: Any) -> Row:
    text = None if message is None else str(message)[:_MESSAGE_CHARACTERS_MAX]
    return (custom_id, False, status, code[:_MESSAGE_CHARACTERS_MAX], text, *[None] * 8)


def _answered(custom_id: str, status: int, body: dict[str, Any], kind: str, several: bool) -> Row:
    try:
        answer, finish = _READ[kind](body, several)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError):
        return _failure(custom_id, None, MALFORMED, "the response body has no answer where one is expected")
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    model = body.get("model")
    numbers = (
        _count(usage, "prompt_tokens", "input_tokens"),
        _count(usage, "completion_tokens", "output_tokens"),
        _detail(usage, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens"),
        _detail(usage, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens"),
    )
    tail = (finish, *numbers, model if isinstance(model, str) else None, None)
    if finish == CONTENT_FILTER:
        return (custom_id, False, status, CONTENT_FILTER, "the answer was stopped by the content filter", answer, *tail)
    if answer is None:
        return (custom_id, False, None, MALFORMED, "the response has an empty answer", None, *tail)
    return (custom_id, True, status, None, None, answer, *tail)


def _chat(body: dict[str, Any], several: bool) -> tuple[str | None, str | None]:
    """Text and finish reason; several choices give a JSON list in their order, a filtered one null in it."""
    choices = sorted(body["choices"], key=lambda choice: choice.get("index") or 0)
    texts = [_message(choice.get("message") or {}) for choice in choices]
    finishes = [_finish(choice.get("finish_reason")) for choice in choices]
    if len(texts) == 1 and not several:
        return texts[0], finishes[0]
    kept = [finish for finish in finishes if finish != CONTENT_FILTER]
    if not kept:
        return None, finishes[0]
    texts = [None if finish == CONTENT_FILTER else text for text, finish in zip(texts, finishes, strict=True)]
    return (json_text(texts) if any(text is not None for text in texts) else None), kept[0]


def _finish(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _message(message: dict[str, Any]) -> str | None:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if isinstance(content, str) and content:
        return content
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        return str(message["refusal"])
    for calls in ("tool_calls", "function_call"):
        if message.get(calls):
            return json_text(message[calls])
    return content if isinstance(content, str) else None


def _responses(body: dict[str, Any], several: bool) -> tuple[str | None, str | None]:
    """Text of the output's messages; `incomplete` gives its reason as the finish reason."""
    texts: list[str] = []
    calls = []
    for entry in body["output"]:
        if entry.get("type") == "message":
            content = entry.get("content") or []
            parts = [{"text": content}] if isinstance(content, str) else content
            texts += [str(part.get("text") or part.get("refusal") or "") for part in parts]
        elif str(entry.get("type")).endswith("_call"):
            calls.append(entry)
    status = _finish(body.get("status")) or "completed"
    finish = "stop" if status == "completed" else status
    if finish == "incomplete":
        reason = (body.get("incomplete_details") or {}).get("reason")
        finish = {"max_output_tokens": "length", CONTENT_FILTER: CONTENT_FILTER}.get(str(reason), finish)
    if not texts:
        return (json_text(calls) if calls else None), finish
    return "".join(texts), finish


def _embeddings(body: dict[str, Any], several: bool) -> tuple[str | None, str | None]:
    """The vector as a JSON list, or a list of them in their order; base64 holds little-endian float32."""
    data = sorted(body["data"], key=lambda entry: entry.get("index") or 0)
    vectors = [_vector(entry["embedding"]) for entry in data]
    return (json_text(vectors) if several or len(vectors) > 1 else json_text(vectors[0])), None


def _vector(value: Any) -> list[float]:
    if isinstance(value, str):
        return [float(x) for x in np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")]
    return [float(x) for x in value]


_READ: dict[str, Callable[[dict[str, Any], bool], tuple[str | None, str | None]]] = {
    "chat": _chat,
    "responses": _responses,
    "embeddings": _embeddings,
}


def _count(usage: dict[str, Any], *names: str) -> int | None:
    """The first of the counts that there is; what is no 64-bit whole number is none."""
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64:
            return value
    return None


def _detail(usage: dict[str, Any], groups: tuple[str, ...], name: str) -> int | None:
    for group in groups:
        if isinstance(usage.get(group), dict) and (value := _count(usage[group], name)) is not None:
            return value
    return None
