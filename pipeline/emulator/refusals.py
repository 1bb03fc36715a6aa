"""Error answers: an HTTP status and a body, in the service's usual shape."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):  # noqa: N818 - an answer, not a mistake
    """An error answer: HTTP status and body."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(str(body))
        self.status = status
        self.body = body


def refusal(status: int, code: str, message: str) -> Refusal:
    """An error in the service's usual shape."""
    return Refusal(status, {"error": {"code": code, "message": message}})
