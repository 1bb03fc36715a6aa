"""The scheduler's decisions, as tables: it is a pure function."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.submit.schedule import (
    REFUSAL_WAIT_S_MAX,
    Planned,
    PlanShard,
    PoolLeftovers,
    Room,
    Send,
    Split,
    State,
    schedule,
    wait_after_refusal,
)

ROOM = Room("d", limit_tokens=1_000, queued_tokens=0, queued_batches=0, waiting_files=0, proven=True, set_aside=False)
EMPTY = State(rooms=[ROOM], planned=[], shards=[], shards_left=0, leftover_rows=0, open_batches=0, pool_rows=100)
BATCH = Planned(1, "d", rows=10, tokens=400, not_before=0)


def test_a_shard_is_planned_then_sent() -> None:
    """A shard without a batch gets one; a planned batch that fits is sent."""
    assert schedule(replace(EMPTY, shards=[(7, 400)], shards_left=1), 0) == [PlanShard(7, 900)]
    assert schedule(replace(EMPTY, planned=[BATCH]), 0) == [Send(1, "d")]


def test_what_does_not_fit_the_quota_waits() -> None:
    """Queued tokens and a new batch together stay within the usable share of the quota."""
    busy = replace(ROOM, queued_tokens=501, queued_batches=1)
    assert schedule(replace(EMPTY, rooms=[busy], planned=[BATCH]), 0) == []
    assert schedule(replace(EMPTY, rooms=[replace(busy, queued_tokens=500)], planned=[BATCH]), 0) == [Send(1, "d")]


def test_a_small_batch_may_pass_a_large_one_that_does_not_fit() -> None:
    """The order is the plan's, but room is not left empty for it."""
    busy = replace(ROOM, queued_tokens=700, queued_batches=1)
    small = replace(BATCH, batch=2, tokens=100)
    assert schedule(replace(EMPTY, rooms=[busy], planned=[BATCH, small]), 0) == [Send(2, "d")]


def test_no_second_batch_before_the_first_has_left_validating() -> None:
    """An unproven deployment gets one batch, so that a mistake costs one."""
    unproven = replace(ROOM, proven=False)
    both = [BATCH, replace(BATCH, batch=2)]
    assert schedule(replace(EMPTY, rooms=[unproven], planned=both), 0) == [Send(1, "d")]
    waiting = replace(unproven, queued_batches=1, queued_tokens=400)
    assert schedule(replace(EMPTY, rooms=[waiting], shards=[(7, 400)], shards_left=1), 0) == []


def test_a_batch_larger_than_the_quota_is_split_and_a_single_row_goes_alone() -> None:
    """Rows can be parted, a row cannot; it goes only when nothing of ours is queued."""
    large = replace(BATCH, tokens=5_000)
    assert schedule(replace(EMPTY, planned=[large]), 0) == [Split(1, 900)]
    row = replace(large, rows=1)
    assert schedule(replace(EMPTY, planned=[row]), 0) == [Send(1, "d")]
    busy = replace(ROOM, queued_tokens=1, queued_batches=1)
    assert schedule(replace(EMPTY, rooms=[busy], planned=[row]), 0) == []


def test_a_refused_batch_waits_for_its_time() -> None:
    """`not_before` holds a batch back, to the second."""
    later = replace(BATCH, not_before=60.0)
    assert schedule(replace(EMPTY, planned=[later]), 59.9) == []
    assert schedule(replace(EMPTY, planned=[later]), 60.0) == [Send(1, "d")]


def test_leftovers_are_pooled_when_they_fill_a_file_or_nothing_else_is_left() -> None:
    """Few large files beat many small ones."""
    some = replace(EMPTY, leftover_rows=5, open_batches=1)
    assert schedule(some, 0) == []
    assert schedule(replace(some, open_batches=0), 0) == [PoolLeftovers(900)]
    assert schedule(replace(some, leftover_rows=100), 0) == [PoolLeftovers(900)]


def test_a_deployment_set_aside_gets_nothing() -> None:
    """Work stays queued when no deployment is left."""
    assert schedule(replace(EMPTY, rooms=[replace(ROOM, set_aside=True)], planned=[BATCH]), 0) == []


@pytest.mark.parametrize(("refusals", "seconds"), [(1, 5.0), (2, 10.0), (5, 80.0), (30, REFUSAL_WAIT_S_MAX)])
def test_refusals_back_off_to_half_an_hour(refusals: int, seconds: float) -> None:
    """While others hold the quota the wait doubles up to its bound; with our own queued, one poll is enough."""
    assert wait_after_refusal(refusals, others_queued=False, poll_s=60) == seconds
    assert wait_after_refusal(refusals, others_queued=True, poll_s=60) == 60
