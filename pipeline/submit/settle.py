"""Settling a create whose outcome is unknown: look, grace, delete the input, grace, look again, only then post anew.
Pure.

The rule and its reasons stand in the design under *Settling*. Absence from one listing proves nothing, since
listings lag; a create that lands after its input file was deleted finds no input. Decides only; the runner looks,
deletes and records.
"""

from __future__ import annotations

from enum import StrEnum


class Step(StrEnum):
    """What to do next about an unsettled create."""

    ADOPT = "adopt"  # it is there: ours
    WAIT = "wait"  # not there yet; the grace time still runs
    DELETE = "delete"  # not there after the grace: take its input away
    POST_ANEW = "post anew"  # not there after its input was gone for a grace time: it never will be


def next_step(*, found: bool, unsettled_at: float, input_deleted_at: float | None, now: float, grace_s: float) -> Step:
    """The next step.

    Args:
        found: a complete listing, made now, shows a batch with this create's input file.
        unsettled_at: when the outcome became unknown, Unix seconds.
        input_deleted_at: when the service confirmed that the input file is gone (200 or 404), or None.
        now: Unix seconds.
        grace_s: how long listings and late creates are waited for, seconds.
    """
    if found:
        return Step.ADOPT
    if now < (input_deleted_at if input_deleted_at is not None else unsettled_at) + grace_s:
        return Step.WAIT
    return Step.DELETE if input_deleted_at is None else Step.POST_ANEW
