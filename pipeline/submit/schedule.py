"""What to do next under the enqueued-token quota: `(state, now) -> actions`. Pure; the same for a loop, a pass and a
simulation.

First-time shards go in row order; leftovers are pooled, when they fill a shard or when nothing else is left to do.
No second batch goes to a deployment until its first has left `validating`. A batch that alone exceeds the quota is
split; one row that does goes alone, when nothing of ours is queued. Performs nothing, knows nothing of files, SQL or
the service.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import QUOTA_SHARE

WAITING_FILES_MAX = 2
"""Batches that may be between upload and create at once: bounds disk and keeps requests few."""

REFUSAL_WAIT_S = 5.0
REFUSAL_WAIT_S_MAX = 1_800.0
"""First and longest wait after a refusal for quota while nothing of ours is queued (contract §5, §8)."""


@dataclass(frozen=True, slots=True)
class Room:
    """A deployment's room: `limit_tokens` None when nobody told a limit; `queued_*` is ours."""

    name: str
    limit_tokens: int | None
    queued_tokens: int
    queued_batches: int
    waiting_files: int
    proven: bool
    set_aside: bool

    @property
    def usable_tokens(self) -> float:
        """What may be enqueued at all."""
        return float("inf") if self.limit_tokens is None else self.limit_tokens * QUOTA_SHARE


@dataclass(frozen=True, slots=True)
class Planned:
    """A batch whose rows are frozen and that is nowhere yet."""

    batch: int
    deployment: str
    rows: int
    tokens: int
    not_before: float


@dataclass(frozen=True, slots=True)
class State:
    """What the scheduler sees. `shards`: (shard, tokens) of the next shards without a batch, in row order."""

    rooms: Sequence[Room]
    planned: Sequence[Planned]
    shards: Sequence[tuple[int, int]]
    shards_left: int
    leftover_rows: int
    open_batches: int
    pool_rows: int


@dataclass(frozen=True, slots=True)
class PlanShard:
    """Freeze the rows of a shard as one batch, or as several of at most `tokens_max` tokens."""

    shard: int
    tokens_max: int | None


@dataclass(frozen=True, slots=True)
class PoolLeftovers:
    """Freeze the rows to be asked again, of all finished batches, as few batches."""

    tokens_max: int | None


@dataclass(frozen=True, slots=True)
class Split:
    """Replace a batch by smaller ones of at most `tokens_max` tokens."""

    batch: int
    tokens_max: int


@dataclass(frozen=True, slots=True)
class Send:
    """Render, upload and create."""

    batch: int
    deployment: str


Action = PlanShard | PoolLeftovers | Split | Send


def schedule(state: State, now: float) -> list[Action]:
    """The actions of one pass, in order.

    Args:
        state: what the ledger says now.
        now: Unix seconds.
    """
    usable = [room for room in state.rooms if not room.set_aside]
    if not usable:
        return []
    # One deployment a run for now: the first usable one takes everything; several share through the same rooms.
    room = usable[0]
    cap = None if room.limit_tokens is None else max(1, int(room.usable_tokens))
    actions: list[Action] = []
    queued_tokens, queued_batches, waiting = room.queued_tokens, room.queued_batches, room.waiting_files
    for batch in state.planned:
        if cap is not None and batch.tokens > cap and batch.rows > 1:
            actions.append(Split(batch.batch, cap))
            continue
        fits = queued_tokens + batch.tokens <= room.usable_tokens or queued_batches == 0
        unproven = not room.proven and queued_batches > 0
        if batch.not_before > now or unproven or waiting >= WAITING_FILES_MAX or not fits:
            continue
        actions.append(Send(batch.batch, room.name))
        queued_tokens += batch.tokens
        queued_batches += 1
        waiting += 1
    if not state.planned:
        actions.extend(_more_work(state, room, cap, queued_tokens, waiting))
    return actions


def _more_work(state: State, room: Room, cap: int | None, queued_tokens: int, waiting: int) -> list[Action]:
    """Batches to be planned: only as many as could be sent, since a frozen row list pins its rows to a batch."""
    if waiting >= WAITING_FILES_MAX or (not room.proven and room.queued_batches):
        return []
    if state.leftover_rows and (
        state.leftover_rows >= state.pool_rows or (state.shards_left == 0 and state.open_batches == 0)
    ):
        return [PoolLeftovers(cap)]
    if state.shards:
        shard, tokens = state.shards[0]
        if queued_tokens + tokens <= room.usable_tokens or not room.queued_batches or (cap and tokens > cap):
            return [PlanShard(shard, cap)]
    return []


def wait_after_refusal(refusals: int, *, others_queued: bool, poll_s: float) -> float:
    """Seconds until a create that was refused for quota is tried again.

    Args:
        refusals: how often this batch was refused, this time included.
        others_queued: batches of ours are queued there; the wait then is only for one of them to end.
        poll_s: the run's poll interval, seconds.
    """
    if others_queued:
        return poll_s
    return float(min(REFUSAL_WAIT_S * 2 ** min(refusals - 1, 12), REFUSAL_WAIT_S_MAX))
