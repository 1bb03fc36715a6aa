"""Result lines to columns: whatever shape the service gives them, block by block.

Reads a result file in pieces cut at newline bytes and picks the few fields that matter. A line that cannot be read
costs that line, never the file: it is counted, and its row told where the custom_id can still be seen. Judges
nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from pipeline.outcome import CONTENT_FILTER, MALFORMED

RESULTS = pa.schema(
    [
        ("custom_id", pa.string()),
        ("usable", pa.bool_()),
        ("http_status", pa.int32()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("answer", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("reasoning_tokens", pa.int64()),
        ("model", pa.string()),
    ]
)
_PIECE_BYTES = 8 << 20
_MESSAGE_CHARACTERS_MAX = 1_000
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*("(?:[^"\\]|\\.){1,400}")')
_OK = range(200, 300)


def read_results(path: Path, kind: str) -> Iterator[pa.Table]:
    """Read one result file.

    Args:
        path: JSON lines, plain or `.zst`; absent and empty files give nothing.
        kind: chat, responses or embeddings.

    Yields:
        Tables of `RESULTS`, in the file's order; a malformed line without a visible custom_id has a null one.
    """
    if not path.exists():
        return
    with pa.input_stream(str(path), compression="detect", buffer_size=1 << 20) as stream:
        rest = b""
        while piece := stream.read(_PIECE_BYTES):
            head, newline, tail = piece.rpartition(b"\n")
            if not newline:
                rest += tail
                continue
            yield _table(rest + head, kind)
            rest = tail
        if rest.strip():
            yield _table(rest, kind)


def _table(content: bytes, kind: str) -> pa.Table:
    lines = [line for line in content.split(b"\n") if line and not line.isspace()]
    rows = [_row(line, kind) for line in lines]
    if not rows:
        return RESULTS.empty_table()
    columns = list(zip(*rows, strict=True))
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, RESULTS, strict=True)], schema=RESULTS
    )


def _parse(line: bytes) -> Any:
    """A line's JSON; lone surrogates become the replacement character. None where it is no JSON."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:
        found = json.loads(line.decode("utf-8"))
        text = json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _row(line: bytes, kind: str) -> tuple[Any, ...]:
    found = _parse(line)
    if not isinstance(found, dict) or not isinstance(found.get("custom_id"), str):
        seen = _CUSTOM_ID.search(line)
        custom_id = _parse(seen[1]) if seen else None
        return _failure(custom_id, None, MALFORMED, "the result line cannot be read")
    custom_id = found["custom_id"]
    error = found.get("error")
    if isinstance(error, dict) and (error.get("code") or error.get("message")):
        return _failure(custom_id, None, str(error.get("code") or "error"), error.get("message"))
    response = found.get("response")
    if not isinstance(response, dict):
        return _failure(custom_id, None, MALFORMED, "the result line has neither a response nor an error")
    status = response.get("status_code")
    status = status if isinstance(status, int) else 200 if "status_code" not in response else 0
    body = response.get("body")
    if isinstance(body, str):
        body = _parse(body.encode("utf-8", "replace"))
    inner = body.get("error") if isinstance(body, dict) else None
    if status not in _OK or isinstance(inner, dict):
        inner = inner if isinstance(inner, dict) else {}
        failed_status = status if status not in _OK else 500
        code = str(inner.get("code") or inner.get("type") or f"http_{status}")
        return _failure(custom_id, failed_status, code, inner.get("message"))
    if not isinstance(body, dict):
        return _failure(custom_id, None, MALFORMED, "the response has no body")
    return _answered(custom_id, status, body, kind)


def _failure(custom_id: str | None, status: int | None, code: str, message: Any) -> tuple[Any, ...]:
    text = None if message is None else str(message)[:_MESSAGE_CHARACTERS_MAX]
    return (custom_id, False, status, code, text, *[None] * 7)


def _answered(custom_id: str, status: int, body: dict[str, Any], kind: str) -> tuple[Any, ...]:
    read = {"chat": _chat, "responses": _responses, "embeddings": _embeddings}[kind]
    try:
        answer, finish = read(body)
    except (KeyError, TypeError, AttributeError, IndexError):
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
    tail = (finish, *numbers, model if isinstance(model, str) else None)
    if finish == CONTENT_FILTER:
        return (custom_id, False, status, CONTENT_FILTER, "the answer was stopped by the content filter", answer, *tail)
    if answer is None:
        return (custom_id, False, None, MALFORMED, "the response has an empty answer", None, *tail)
    return (custom_id, True, status, None, None, answer, *tail)


def _chat(body: dict[str, Any]) -> tuple[str | None, str | None]:
    """Text and finish reason; several choices give a JSON list, in their order."""
    choices = sorted(body["choices"], key=lambda choice: choice.get("index") or 0)
    texts = [_message(choice["message"]) for choice in choices]
    finish = choices[0].get("finish_reason")
    if len(texts) == 1:
        return texts[0], finish
    return orjson.dumps(texts).decode(), finish


def _message(message: dict[str, Any]) -> str | None:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if isinstance(content, str) and content:
        return content
    if isinstance(message.get("refusal"), str):
        return str(message["refusal"])
    if message.get("tool_calls"):
        return orjson.dumps(message["tool_calls"]).decode()
    return content if isinstance(content, str) else None


def _responses(body: dict[str, Any]) -> tuple[str | None, str | None]:
    """Text of the output's messages; `incomplete` gives its reason as the finish reason."""
    texts: list[str] = []
    calls = []
    for entry in body["output"]:
        if entry.get("type") == "message":
            texts += [str(part.get("text") or part.get("refusal") or "") for part in entry.get("content") or []]
        elif str(entry.get("type")).endswith("_call"):
            calls.append(entry)
    finish = "stop" if body.get("status") == "completed" else str(body.get("status") or "stop")
    if finish == "incomplete":
        reason = (body.get("incomplete_details") or {}).get("reason")
        finish = {"max_output_tokens": "length", CONTENT_FILTER: CONTENT_FILTER}.get(str(reason), finish)
    if not texts:
        return (orjson.dumps(calls).decode() if calls else None), finish
    return "".join(texts), finish


def _embeddings(body: dict[str, Any]) -> tuple[str | None, str | None]:
    return orjson.dumps(body["data"][0]["embedding"]).decode(), None


def _count(usage: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62:
            return value
    return None


def _detail(usage: dict[str, Any], groups: tuple[str, ...], name: str) -> int | None:
    for group in groups:
        if isinstance(usage.get(group), dict):
            return _count(usage[group], name)
    return None
