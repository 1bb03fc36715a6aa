"""What the service says, as small values: batches, files, quota headers, and what a failed call means for its
effect.

Irons out the oddities that the service's contract lists (§3, §5): capitals, empty strings for absent ids, null
counts, error lists of several shapes. Knows nothing of HTTP or of the SDK.
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipeline.shard import normal_status


class Effect(StrEnum):
    """What a failed call says about its effect."""

    REFUSED = "refused"  # clearly not done: the service said no
    THROTTLED = "throttled"  # clearly not done now: later
    UNKNOWN = "unknown"  # perhaps done: a timeout, a hang-up, 408, 409, 5xx, an answer that cannot be read
    UNREACHABLE = "unreachable"  # no connection could be made: not done
    CREDENTIALS = "credentials"  # 401 or 403: not done
    MISSING = "missing"  # 404


INPUT_EXPIRY_S = 30 * 86_400
"""Expiry of input files: the longest that the service takes (contract §2), far beyond any batch's life."""

RETRY_AFTER_S_MAX = 86_400.0
"""Longest wait that is believed: a header may hold anything."""

NO_TOKEN = "no_token"
"""Our own code where no token could be had, so that nothing was sent."""


class CallFailed(Exception):  # noqa: N818 - reads as what happened
    """A call that gave no good answer.

    Attributes:
        effect: what is known of the call's effect.
        status: HTTP status, or None without an answer.
        code: the service's code, or "".
        message: the service's words, cut to 500 characters.
        retry_after_s: seconds to wait as the service asked, or None.
        maximum_tokens: the enqueued-token limit that a header of the answer told, or None.
    """

    def __init__(
        self,
        effect: Effect,
        status: int | None,
        code: str,
        message: str,
        *,
        retry_after_s: float | None = None,
        maximum_tokens: int | None = None,
    ) -> None:
        super().__init__(f"{status or ''} {code} {message}".strip())
        self.effect = effect
        self.status = status
        self.code = code
        self.message = message[:500]
        self.retry_after_s = retry_after_s
        self.maximum_tokens = maximum_tokens


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at the service; `status` in lower case, `expires_at` in Unix seconds (None: never, or not told)."""

    id: str
    status: str
    bytes: int | None
    name: str = ""
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """A batch at the service, its oddities ironed out; ids are None where there are none (also for `""`)."""

    id: str
    status: str
    input_file_id: str | None
    output_file_id: str | None
    error_file_id: str | None
    total: int | None
    completed: int | None
    failed: int | None
    metadata: Mapping[str, str]
    error_code: str | None
    error_message: str | None
    used_prompt_tokens: int | None = None
    used_completion_tokens: int | None = None

    @property
    def counted(self) -> dict[str, int | None]:
        """What the service counted, under the names that the ledger has for it; None where it told nothing."""
        return {
            "count_total": self.total,
            "count_completed": self.completed,
            "count_failed": self.failed,
            "used_prompt_tokens": self.used_prompt_tokens,
            "used_completion_tokens": self.used_completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class QuotaHeaders:
    """`deployment-enqueued-tokens` and `deployment-maximum-enqueued-tokens` of a create, where given (contract §8)."""

    enqueued_tokens: int | None
    maximum_tokens: int | None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds asked for by `retry-after-ms` or `retry-after` (seconds or a date), a day at most; None: none are."""
    try:
        if value := headers.get("retry-after-ms"):
            return _wait_s(float(value) / 1000)
        if value := headers.get("retry-after"):
            return _wait_s(float(value))
    except ValueError:
        pass
    else:
        return None
    try:
        return _wait_s(email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def _wait_s(asked_s: float) -> float | None:
    return None if math.isnan(asked_s) else min(max(asked_s, 0.0), RETRY_AFTER_S_MAX)


def text_of(value: Any) -> str | None:
    """A text that says something, or None."""
    return value if isinstance(value, str) and value else None


def whole_of(value: Any) -> int | None:
    """A whole number in any spelling, or None."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):  # an infinite number is none either
        return None


def first_error(data: Any) -> tuple[str | None, str | None]:
    """Code and message of a batch-level error list in any of its shapes (contract §3, §5)."""
    if isinstance(data, dict) and "data" in data:
        data = data["data"]
    if isinstance(data, list):
        data = data[0] if data else None
    if not isinstance(data, dict):
        return None, None
    message = str(data.get("message") or "")
    if (line := whole_of(data.get("line"))) is not None:
        message += f" (line {line})"
    return text_of(data.get("code")) or "invalid_request", message[:500]


def remote_batch(answer: Any) -> RemoteBatch:
    """A batch object of the SDK as a value of ours.

    Raises:
        CallFailed: (unknown) the answer is no batch.
    """
    raw = answer.model_dump(warnings=False) if hasattr(answer, "model_dump") else answer
    if not isinstance(raw, dict) or not text_of(raw.get("id")):
        raise CallFailed(Effect.UNKNOWN, None, "unreadable", "The service's answer is no batch.")
    counts = raw.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    usage = raw.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    code, message = first_error(raw.get("errors"))
    metadata = raw.get("metadata")
    return RemoteBatch(
        id=raw["id"],
        status=normal_status(text_of(raw.get("status"))),
        input_file_id=text_of(raw.get("input_file_id")),
        output_file_id=text_of(raw.get("output_file_id")),
        error_file_id=text_of(raw.get("error_file_id")),
        total=whole_of(counts.get("total")),
        completed=whole_of(counts.get("completed")),
        failed=whole_of(counts.get("failed")),
        metadata={str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {},
        error_code=code,
        error_message=message,
        used_prompt_tokens=whole_of(usage.get("input_tokens")),
        used_completion_tokens=whole_of(usage.get("output_tokens")),
    )
