"""The table of outcomes, row by row as the design has it."""

from __future__ import annotations

import pytest

from pipeline.outcome import Judgement, Verdict, judge

OK, FAILED, RETRY = Verdict.SUCCEEDED, Verdict.FAILED, Verdict.RETRY


@pytest.mark.parametrize(
    ("http_status", "code", "attempts", "barren", "expected"),
    [
        (408, "408", 0, 0, Judgement(RETRY, 1, 0)),
        (409, "409", 0, 2, Judgement(RETRY, 1, 0)),
        (429, "429", 1, 0, Judgement(RETRY, 2, 0)),
        (429, "429", 2, 0, Judgement(FAILED, 3, 0)),
        (500, "500", 0, 0, Judgement(RETRY, 1, 0)),
        (503, "503", 2, 0, Judgement(FAILED, 3, 0)),
        (0, "0", 0, 0, Judgement(RETRY, 1, 0)),
        (None, "request_timeout", 0, 0, Judgement(RETRY, 1, 0)),
        (None, "malformed_result", 0, 0, Judgement(RETRY, 1, 0)),
        (None, "no_result", 2, 0, Judgement(FAILED, 3, 0)),
        (400, "content_filter", 0, 0, Judgement(FAILED, 1, 0)),
        (200, "content_filter", 0, 0, Judgement(FAILED, 1, 0)),
        (400, "invalid_value", 0, 0, Judgement(FAILED, 1, 0)),
        (404, "404", 0, 0, Judgement(FAILED, 1, 0)),
        (200, "invalid_answer", 0, 0, Judgement(FAILED, 1, 0)),
        (None, "batch_expired", 0, 0, Judgement(RETRY, 0, 1)),
        (None, "batch_expired", 2, 1, Judgement(RETRY, 2, 2)),
        (None, "batch_expired", 0, 2, Judgement(FAILED, 0, 3)),
        (None, "batch_cancelled", 0, 2, Judgement(FAILED, 0, 3)),
    ],
)
def test_a_result_without_a_usable_answer(
    http_status: int | None, code: str, attempts: int, barren: int, expected: Judgement
) -> None:
    """Executed attempts are bounded; expired and cancelled batches cost none, three times running."""
    found = judge(usable=False, http_status=http_status, code=code, attempts=attempts, barren=barren, max_attempts=3)
    assert found == expected


def test_a_usable_answer_ends_it() -> None:
    """A good answer succeeds whatever came before, and clears what was barren."""
    assert judge(usable=True, http_status=200, code=None, attempts=2, barren=2, max_attempts=3) == Judgement(OK, 3, 0)
