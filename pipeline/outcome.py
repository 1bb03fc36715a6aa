"""What a result means for its row: the table of outcomes as decisions. Pure.

A row is asked again only when nothing usable came, and never without end: executed attempts are bounded, and so are the
batches that expire or are cancelled under it. Knows nothing of files or of how results are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

BARREN_MAX = 3
"""Times running that an expired or cancelled batch may give a row nothing before it fails."""

LOST = "no_result"
"""Code of a row that stands in neither result file."""

MALFORMED = "malformed_result"
"""Code of a row whose result line cannot be read."""

INVALID_ANSWER = "invalid_answer"
CONTENT_FILTER = "content_filter"
BARREN_CODES = frozenset({"batch_expired", "batch_cancelled"})
RETRIED_CODES = frozenset({"request_timeout", LOST, MALFORMED})
RETRIED_STATUSES = frozenset({0, 408, 409, 429})
SERVER_ERROR = 500


class Verdict(StrEnum):
    """What becomes of a row after a batch."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and the row's counts after it: executed attempts, and barren batches running."""

    verdict: Verdict
    attempt: int
    barren: int


def judge(
    *,
    usable: bool,
    http_status: int | None,
    code: str | None,
    attempts: int,
    barren: int,
    max_attempts: int,
    retry_invalid: bool = False,
) -> Judgement:
    """Judge one row's result.

    Args:
        usable: a good answer came.
        http_status: the line's HTTP status, None where it has none.
        code: error code, None where the answer is usable.
        attempts: executed attempts before this batch.
        barren: times running before that a batch expired or was cancelled with nothing for the row.
        max_attempts: executed attempts, at most.
        retry_invalid: an answer that breaks its schema is asked for again, and costs an attempt.
    """
    if usable:
        return Judgement(Verdict.SUCCEEDED, attempts + 1, 0)
    if code in BARREN_CODES:
        verdict = Verdict.FAILED if barren + 1 >= BARREN_MAX else Verdict.RETRY
        return Judgement(verdict, attempts, barren + 1)
    again = (
        code in RETRIED_CODES
        or http_status in RETRIED_STATUSES
        or (http_status is not None and http_status >= SERVER_ERROR)
    )
    if code == INVALID_ANSWER:
        again = retry_invalid
    if again and code != CONTENT_FILTER and attempts + 1 < max_attempts:
        return Judgement(Verdict.RETRY, attempts + 1, 0)
    return Judgement(Verdict.FAILED, attempts + 1, 0)
