"""What the service says, in any spelling, as values that can be computed with."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from pipeline.submit.remote import RETRY_AFTER_S_MAX, retry_after_s, whole_of


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, RETRY_AFTER_S_MAX),
        ({"retry-after": "1e12"}, RETRY_AFTER_S_MAX),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "soon"}, None),
        ({"retry-after": formatdate(0)}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, RETRY_AFTER_S_MAX),
    ],
)
def test_a_wait_is_read_and_bounded(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds or a date; nothing that a header can hold stops a run for ever."""
    assert retry_after_s(headers) == seconds


def test_a_date_to_come_is_waited_for() -> None:
    """A date in the future gives the seconds until then."""
    wait = retry_after_s({"retry-after": formatdate(time.time() + 100, usegmt=True)})
    assert wait is not None and 90 < wait <= 100


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3), ("4", 4), (5.0, 5), (None, None), ("", None), ("x", None), ([], None), (float("inf"), None)],
)
def test_a_count_in_any_spelling(value: object, number: int | None) -> None:
    """What is no number counts as absent."""
    assert whole_of(value) == number


def test_a_count_that_is_no_number_counts_as_absent() -> None:
    """NaN is a float and no count."""
    assert whole_of(float("nan")) is None
