"""Settling an unknown create: the table of decisions."""

from __future__ import annotations

import pytest

from pipeline.submit.settle import Step, next_step


@pytest.mark.parametrize(
    ("found", "unsettled_at", "deleted_at", "now", "step"),
    [
        (True, 100.0, None, 100.0, Step.ADOPT),
        (True, 100.0, 160.0, 500.0, Step.ADOPT),
        (False, 100.0, None, 159.9, Step.WAIT),
        (False, 100.0, None, 160.0, Step.DELETE),
        (False, 100.0, 161.0, 220.9, Step.WAIT),
        (False, 100.0, 161.0, 221.0, Step.POST_ANEW),
    ],
)
def test_an_unknown_create_is_posted_anew_only_after_two_graces_and_a_deleted_input(
    found: bool, unsettled_at: float, deleted_at: float | None, now: float, step: Step
) -> None:
    """Look, grace, delete, grace, look: nothing else leads to another create."""
    assert next_step(found=found, unsettled_at=unsettled_at, input_deleted_at=deleted_at, now=now, grace_s=60.0) is step
