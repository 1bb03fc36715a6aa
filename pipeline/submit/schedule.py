"""What to do next under the enqueued-token quotas: `(state, now) -> actions`. Pure; the same for a loop, a pass and a
simulation.

First-time shards go in row order to the deployment with the most room; leftovers are pooled, when they fill a file or
when nothing else is left to do. What does not fit is cut so that it fills the room. No second batch goes to a
deployment until its first has left `validating`. A single row over the cap goes alone, and room is kept for it.
Performs nothing, knows nothing of files, SQL or the service.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.quota import Quota

WAITING_FILES_MAX = 2
"""Batches that may be between upload and create at once: bounds disk and keeps requests few."""

FILL_SHARE = 0.05
"""Room below this share of a deployment's usable quota is left empty: it is not worth a batch of its own."""

KEPT_FREE_AFTER_S = 1_800.0
"""A single row over the cap that waited this long keeps others out of the deployment that could take it."""


@dataclass(frozen=True, slots=True)
class Room:
    """A deployment's room.

    Attributes:
        name: the deployment.
        quota: what is known of its quota.
        queued_tokens: our own queued tokens, by our estimate.
        queued_batches: how many batches of ours are there, or on the way.
        waiting_files: how many of those are between upload and create.
        proven: whether a batch of ours has ever left `validating` there.
        open: whether it takes work (not set aside, and answering).
    """

    name: str
    quota: Quota
    queued_tokens: int = 0
    queued_batches: int = 0
    waiting_files: int = 0
    proven: bool = False
    open: bool = True

    def ready(self, now: float) -> bool:
        """Whether a create may be made now, whatever its size."""
        return (
            self.open
            and self.quota.blocked_until <= now
            and self.waiting_files < WAITING_FILES_MAX
            and (self.proven or not self.queued_batches)
        )

    def free_tokens(self, now: float) -> float:
        """What may be enqueued now, in our tokens."""
        return self.quota.free_tokens(self.queued_tokens, now)

    def taking(self, tokens: int) -> Room:
        """The room with one more batch in it."""
        return replace(
            self,
            queued_tokens=self.queued_tokens + tokens,
            queued_batches=self.queued_batches + 1,
            waiting_files=self.waiting_files + 1,
        )


@dataclass(frozen=True, slots=True)
class Planned:
    """A batch whose rows are frozen and that is nowhere yet; `since`: when it became so, Unix seconds."""

    batch: int
    rows: int
    tokens: int
    not_before: float = 0.0
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    """What the scheduler sees.

    Attributes:
        rooms: the deployments.
        planned: the batches that are nowhere yet, oldest first.
        shard: (shard, tokens) of the next shard without a batch, or None.
        leftover_rows: rows to be asked again.
        open_batches: batches under way, planned ones included.
        pool_rows: how many leftovers fill a file.
    """

    rooms: Sequence[Room]
    planned: Sequence[Planned] = ()
    shard: tuple[int, int] | None = None
    leftover_rows: int = 0
    open_batches: int = 0
    pool_rows: int = 100_000


@dataclass(frozen=True, slots=True)
class PlanShard:
    """Freeze a shard's rows as batches: the first of at most `first_tokens`, the others of at most `tokens_max`."""

    shard: int
    first_tokens: int | None
    tokens_max: int | None


@dataclass(frozen=True, slots=True)
class PoolLeftovers:
    """Freeze the rows to be asked again, of all finished batches, as few batches."""

    tokens_max: int | None


@dataclass(frozen=True, slots=True)
class Split:
    """Replace a batch by smaller ones, as of `PlanShard`."""

    batch: int
    first_tokens: int
    tokens_max: int


@dataclass(frozen=True, slots=True)
class Send:
    """Render, upload and create."""

    batch: int
    deployment: str


Action = PlanShard | PoolLeftovers | Split | Send


def schedule(state: State, now: float) -> list[Action]:
    """The actions of one pass, in order; after planning or splitting the state must be read again.

    Args:
        state: what the ledger says now.
        now: Unix seconds.
    """
    rooms = {room.name: room for room in state.rooms if room.open}
    if not rooms:
        return []
    cap = max(room.quota.cap_tokens() for room in rooms.values())
    actions: list[Action] = []
    kept = _kept_free(state, rooms, cap, now)
    for batch in state.planned:
        if batch.not_before > now:
            continue
        room = _room_for(batch.tokens, batch.rows, rooms, kept, now)
        if room is not None:
            actions.append(Send(batch.batch, room.name))
            rooms[room.name] = room.taking(batch.tokens)
            continue
        if batch.rows > 1:
            first = _filling(batch.tokens, rooms, kept, now)
            if first is not None or batch.tokens > cap:
                whole = _whole(cap, batch.tokens)
                actions.append(Split(batch.batch, min(first or whole, whole), whole))
                return actions
    if not any(batch.not_before <= now for batch in state.planned):
        actions.extend(_more_work(state, rooms, cap, kept, now))
    return actions


def _whole(cap: float, most: int) -> int:
    """A cap as a whole number of tokens, at least one."""
    return max(1, int(min(cap, most)))


def _kept_free(state: State, rooms: dict[str, Room], cap: float, now: float) -> str | None:
    """The deployment that is kept free for a row over the cap that has waited long; None: none."""
    for batch in state.planned:
        if batch.rows == 1 and batch.tokens > cap and batch.not_before <= now and now - batch.since > KEPT_FREE_AFTER_S:
            return max(rooms.values(), key=lambda room: (room.quota.cap_tokens(), room.name)).name
    return None


def _room_for(tokens: int, rows: int, rooms: dict[str, Room], kept: str | None, now: float) -> Room | None:
    """The room that takes a batch now: the one with the most left in it."""
    best: Room | None = None
    for room in rooms.values():
        if not room.ready(now):
            continue
        alone = rows == 1 and not room.queued_batches  # one row cannot be cut: the service decides
        if not alone and (tokens > room.free_tokens(now) or room.name == kept):
            continue
        if best is None or room.free_tokens(now) > best.free_tokens(now):
            best = room
    return best


def _filling(tokens: int, rooms: dict[str, Room], kept: str | None, now: float) -> int | None:
    """How many tokens of a batch that fits nowhere whole would fill a room; None where it is not worth it."""
    best = 0.0
    for room in rooms.values():
        if room.ready(now) and room.name != kept:
            free = room.free_tokens(now)
            if free >= FILL_SHARE * room.quota.cap_tokens():
                best = max(best, free)
    return int(best) if 1 <= best < tokens else None


def _more_work(state: State, rooms: dict[str, Room], cap: float, kept: str | None, now: float) -> list[Action]:
    """Batches to be planned: only as many as can be sent, since a frozen row list pins its rows to a batch."""
    ready = [room for room in rooms.values() if room.ready(now) and room.name != kept]
    if not ready:
        return []
    most = None if cap == float("inf") else max(1, int(cap))
    idle = state.shard is None and not state.open_batches
    if state.leftover_rows and (state.leftover_rows >= state.pool_rows or idle):
        return [PoolLeftovers(most)]
    if state.shard is None:
        return []
    shard, tokens = state.shard
    if any(tokens <= room.free_tokens(now) or not room.queued_batches for room in ready):
        free = max(room.free_tokens(now) for room in ready)
        return [PlanShard(shard, None if free >= tokens else max(1, int(free)), most)]
    first = _filling(tokens, rooms, kept, now)
    return [] if first is None else [PlanShard(shard, first, most)]
