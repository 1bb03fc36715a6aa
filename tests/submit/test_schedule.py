"""The scheduler's decisions, as tables: it is a pure function."""

from __future__ import annotations

from dataclasses import replace

from pipeline.quota import Quota
from pipeline.submit.schedule import (
    KEPT_FREE_AFTER_S,
    Planned,
    PlanShard,
    PoolLeftovers,
    Room,
    Send,
    Split,
    State,
    schedule,
)

QUOTA = Quota(asked_tokens=1_000, calibrated=True)
ROOM = Room("d", QUOTA, proven=True)
EMPTY = State(rooms=[ROOM], pool_rows=100)
BATCH = Planned(1, rows=10, tokens=400)


def test_a_shard_is_planned_then_sent() -> None:
    """A shard without a batch gets one; a planned batch that fits is sent."""
    assert schedule(replace(EMPTY, shard=(7, 400)), 0) == [PlanShard(7, None, 900)]
    assert schedule(replace(EMPTY, planned=[BATCH]), 0) == [Send(1, "d")]


def test_room_is_filled_with_a_piece_of_what_does_not_fit() -> None:
    """Queued tokens and a new batch together stay within the usable share, and little of it stays empty."""
    busy = replace(ROOM, queued_tokens=600, queued_batches=1)
    assert schedule(replace(EMPTY, rooms=[busy], planned=[BATCH]), 0) == [Split(1, 300, 400)]
    assert schedule(replace(EMPTY, rooms=[busy], shard=(7, 400)), 0) == [PlanShard(7, 300, 900)]
    full = replace(busy, queued_tokens=880)
    assert schedule(replace(EMPTY, rooms=[full], planned=[BATCH]), 0) == []
    assert schedule(replace(EMPTY, rooms=[full], shard=(7, 400)), 0) == []
    exact = replace(busy, queued_tokens=500)
    assert schedule(replace(EMPTY, rooms=[exact], planned=[BATCH]), 0) == [Send(1, "d")]


def test_a_batch_goes_where_most_room_is() -> None:
    """Several deployments share the work; each takes what fits it."""
    near = replace(ROOM, name="near", queued_tokens=500, queued_batches=1)
    far = replace(ROOM, name="far")
    state = replace(EMPTY, rooms=[near, far], planned=[BATCH, replace(BATCH, batch=2), replace(BATCH, batch=3)])
    assert schedule(state, 0) == [Send(1, "far"), Send(2, "far"), Send(3, "near")]


def test_no_second_batch_before_the_first_has_left_validating() -> None:
    """An unproven deployment gets one batch, so that a mistake costs one."""
    unproven = replace(ROOM, proven=False)
    both = [BATCH, replace(BATCH, batch=2)]
    assert schedule(replace(EMPTY, rooms=[unproven], planned=both), 0) == [Send(1, "d")]
    waiting = replace(unproven, queued_batches=1, queued_tokens=400)
    assert schedule(replace(EMPTY, rooms=[waiting], shard=(7, 400)), 0) == []


def test_the_first_batch_under_a_quota_allows_for_the_worst_estimate() -> None:
    """Until the service has told how it counts, it may count four times what we do."""
    new = replace(ROOM, quota=Quota(asked_tokens=1_000), proven=False)
    assert schedule(replace(EMPTY, rooms=[new], shard=(7, 400)), 0) == [PlanShard(7, 225, 900)]


def test_a_single_row_over_the_cap_goes_alone_and_room_is_kept_for_it() -> None:
    """Rows can be parted, a row cannot; it goes when nothing of ours is queued, and others do not starve it."""
    row = Planned(1, rows=1, tokens=5_000)
    assert schedule(replace(EMPTY, planned=[row]), 0) == [Send(1, "d")]
    busy = replace(ROOM, queued_tokens=1, queued_batches=1)
    small = Planned(2, rows=9, tokens=100)
    assert schedule(replace(EMPTY, rooms=[busy], planned=[row, small]), 0) == [Send(2, "d")]
    late = KEPT_FREE_AFTER_S + 1
    assert schedule(replace(EMPTY, rooms=[busy], planned=[row, small]), late) == []


def test_a_batch_larger_than_any_quota_is_split() -> None:
    """A shard of ten times the limit goes as many batches."""
    assert schedule(replace(EMPTY, planned=[replace(BATCH, tokens=10_000)]), 0) == [Split(1, 900, 900)]


def test_what_is_blocked_or_away_or_set_aside_gets_nothing() -> None:
    """A refused deployment waits to the second; one that is not open takes no work."""
    blocked = replace(ROOM, quota=replace(QUOTA, blocked_until=60.0))
    assert schedule(replace(EMPTY, rooms=[blocked], planned=[BATCH]), 59.9) == []
    assert schedule(replace(EMPTY, rooms=[blocked], planned=[BATCH]), 60.0) == [Send(1, "d")]
    assert schedule(replace(EMPTY, rooms=[replace(ROOM, open=False)], planned=[BATCH]), 0) == []
    later = replace(BATCH, not_before=60.0)
    assert schedule(replace(EMPTY, planned=[later]), 59.9) == []


def test_leftovers_are_pooled_when_they_fill_a_file_or_nothing_else_is_left() -> None:
    """Few large files beat many small ones."""
    some = replace(EMPTY, leftover_rows=5, open_batches=1)
    assert schedule(some, 0) == []
    assert schedule(replace(some, open_batches=0), 0) == [PoolLeftovers(900)]
    assert schedule(replace(some, leftover_rows=100), 0) == [PoolLeftovers(900)]
