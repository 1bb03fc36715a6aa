"""What an ordered fault makes of one line: an error instead of an answer, or a good answer spoilt (contract §6)."""

from __future__ import annotations

from typing import Any

import orjson

_STATUSES = {"429": 429, "500": 500, "503": 503, "400": 400, "status_0": 0}
_FILTERED = (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify "
    "your prompt and retry."
)
_VERDICT = {
    "hate": {"filtered": False, "severity": "safe"},
    "jailbreak": {"filtered": False, "detected": False},
    "self_harm": {"filtered": False, "severity": "safe"},
    "sexual": {"filtered": False, "severity": "safe"},
    "violence": {"filtered": True, "severity": "medium"},
}


def refused_line(kind: str, *, filters: bool) -> dict[str, Any] | None:
    """`response` and `error` of a line that was refused, or None where the kind leaves it an answer.

    Args:
        kind: of the fault.
        filters: whether the service tells what its content filters found.
    """
    if kind in _STATUSES:
        return _response(_STATUSES[kind], {"code": kind, "message": f"ordered fault {kind}", "param": None})
    if kind == "content_filter":
        told: dict[str, Any] = {"code": "content_filter", "message": _FILTERED, "param": "prompt"}
        if filters:
            told["innererror"] = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": _VERDICT}
        return _response(400, told)
    if kind == "request_timeout":
        return {"response": None, "error": {"code": "request_timeout", "message": "The request timed out."}}
    return {"response": None, "error": None} if kind == "null_response" else None


def _response(status: int, error: dict[str, Any]) -> dict[str, Any]:
    return {"response": {"status_code": status, "body": {"error": {"type": "ordered_fault", **error}}}, "error": None}


def spoilt(body: bytes, kind: str) -> bytes:
    """A good answer as the fault leaves it; embeddings have nothing to spoil."""
    if kind not in ("length", "filtered", "refusal", "invalid_answer"):
        return body
    found = orjson.loads(body)
    try:
        for choice in found.get("choices") or []:
            _spoil_choice(choice, kind)
        if found.get("object") == "response":
            _spoil_response(found, kind)
        return orjson.dumps(found)
    except (AttributeError, KeyError, TypeError):  # a server behind may answer in any shape
        return body


def _spoil_choice(choice: dict[str, Any], kind: str) -> None:
    message = choice["message"]
    if kind == "length":
        choice["finish_reason"] = "length"
        message["content"] = _half(message.get("content"))
    elif kind == "filtered":
        choice["finish_reason"] = "content_filter"
        message["content"] = _half(message.get("content"))
    elif kind == "refusal":
        message.update(content=None, refusal="[synthetic] I cannot help with that.")
    else:
        message["content"] = "[synthetic] not what the schema asks"


def _spoil_response(found: dict[str, Any], kind: str) -> None:
    parts = [part for item in found.get("output") or [] for part in item.get("content") or []]
    if kind in ("length", "filtered"):
        reason = "max_output_tokens" if kind == "length" else "content_filter"
        found.update(status="incomplete", incomplete_details={"reason": reason})
    for part in parts:
        if kind == "refusal":
            part.pop("text", None)
            part.update(type="refusal", refusal="[synthetic] I cannot help with that.")
        elif kind == "invalid_answer":
            part["text"] = "[synthetic] not what the schema asks"
        else:
            part["text"] = _half(part.get("text"))


def _half(text: Any) -> Any:
    return text[: len(text) // 2] if isinstance(text, str) else text
