"""A modelled service in virtual time: quotas, turnaround, refusals, other users. Not a test.

The scheduler and the quota's rules are the real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline import quota
from pipeline.quota import Quota
from pipeline.submit import schedule
from pipeline.submit.schedule import Planned, PlanShard, Room, Send, Split, State

POLL_S = 60.0
ROW_TOKENS = 100


@dataclass
class Deployment:
    """The service's side: what it counts, what others hold, how long a batch takes."""

    name: str
    limit: Callable[[float], int]
    turnaround_s: float = 4 * 3_600.0
    validating_s: float = 300.0
    ratio: float = 1.0
    header: str | None = "file"
    others: Callable[[float], int] = lambda now: 0
    queued: dict[int, tuple[int, float]] = field(default_factory=dict)

    def counted(self) -> int:
        """Tokens of ours in the queue, as the service counts them."""
        return sum(tokens for tokens, _ in self.queued.values())


@dataclass
class Simulation:
    """One run over modelled deployments; `known`: limits that the user names."""

    deployments: list[Deployment]
    shards: list[int]
    known: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now = 0.0
        self.quotas = {d.name: Quota(asked_tokens=self.known.get(d.name)) for d in self.deployments}
        self.proven = dict.fromkeys(self.quotas, False)
        self.planned: list[Planned] = []
        self.sent: dict[int, tuple[str, int]] = {}
        self.refusals: list[tuple[float, str]] = []
        self.answered = self.next_shard = self.batches = 0

    def run(self, days: float = 400.0) -> float:
        """To the end: the makespan in seconds."""
        while self.planned or self.sent or self.next_shard < len(self.shards):
            self._poll()
            self._act()
            self.now = self._next_poll()
            assert self.now < days * 86_400, "never finished"
        return self.now

    def _next_poll(self) -> float:
        """The next poll that can change anything; the others are passed over."""
        times = [
            accepted_at + after
            for deployment in self.deployments
            for _, accepted_at in deployment.queued.values()
            for after in (deployment.validating_s, deployment.turnaround_s)
        ]
        for known in self.quotas.values():
            times += [known.blocked_until, known.header_at + quota.OTHERS_S]
        soonest = min((time for time in times if time > self.now), default=self.now + POLL_S)
        return self.now + POLL_S * max(1, math.ceil((soonest - self.now) / POLL_S))

    def _poll(self) -> None:
        for deployment in self.deployments:
            for batch, (_, accepted_at) in list(deployment.queued.items()):
                if self.now >= accepted_at + deployment.validating_s:
                    self.proven[deployment.name] = True
                if self.now >= accepted_at + deployment.turnaround_s:
                    del deployment.queued[batch]
                    self.answered += self.sent.pop(batch)[1]
                    self.quotas[deployment.name] = quota.ended(self.quotas[deployment.name])

    def _act(self) -> None:
        for _ in range(10_000):
            actions = schedule.schedule(self._state(), self.now)
            if not actions:
                return
            for action in actions:
                match action:
                    case PlanShard(shard, first, most):
                        self._pieces(self.shards[shard], first, most)
                        self.next_shard += 1
                    case Split(number, first, most):
                        (batch,) = [batch for batch in self.planned if batch.batch == number]
                        self.planned.remove(batch)
                        self._pieces(batch.tokens, first, most, batch.since)
                    case Send(number, name):
                        self._create(number, name)
        raise AssertionError("the scheduler never rests")

    def _pieces(self, tokens: int, first: int | None, most: int | None, since: float | None = None) -> None:
        """Cut whole rows, as the packer does."""
        cap = first if first is not None else most
        while tokens:
            rows = tokens // ROW_TOKENS
            taken = rows if cap is None else max(1, min(rows, cap // ROW_TOKENS))
            self.batches += 1
            size = taken * ROW_TOKENS
            self.planned.append(Planned(self.batches, taken, size, since=self.now if since is None else since))
            tokens -= size
            cap = most

    def _create(self, number: int, name: str) -> None:
        (deployment,) = [d for d in self.deployments if d.name == name]
        (batch,) = [batch for batch in self.planned if batch.batch == number]
        before = sum(tokens for where, tokens in self.sent.values() if where == name)
        counted, limit = int(batch.tokens * deployment.ratio), deployment.limit(self.now)
        told = limit if deployment.header else None
        if deployment.counted() + counted + deployment.others(self.now) > limit:
            self.refusals.append((self.now, name))
            self.quotas[name] = quota.refused(
                self.quotas[name], batch_tokens=batch.tokens, queued=before, limit=limit, retry_after_s=None,
                now=self.now,
            )  # fmt: skip
            return
        self.planned.remove(batch)
        deployment.queued[number] = (counted, self.now)
        self.sent[number] = (name, batch.tokens)
        header = {"file": counted, "sum": deployment.counted() + deployment.others(self.now), None: None}
        self.quotas[name] = quota.accepted(
            self.quotas[name], batch_tokens=batch.tokens, queued_before=before, header=header[deployment.header],
            maximum=told, now=self.now,
        )  # fmt: skip

    def _state(self) -> State:
        rooms = []
        for deployment in self.deployments:
            ours = [tokens for where, tokens in self.sent.values() if where == deployment.name]
            rooms.append(
                Room(
                    deployment.name,
                    self.quotas[deployment.name],
                    queued_tokens=sum(ours),
                    queued_batches=len(ours),
                    proven=self.proven[deployment.name],
                )  # fmt: skip
            )
        left = self.next_shard < len(self.shards)
        return State(
            rooms=rooms,
            planned=list(self.planned),
            shard=(self.next_shard, self.shards[self.next_shard]) if left else None,
            open_batches=len(self.planned) + len(self.sent),
        )
