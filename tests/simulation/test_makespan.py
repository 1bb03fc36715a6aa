"""The scheduler over days of virtual time: quotas are used to the full, and refusals are rare."""

from __future__ import annotations

import pytest

from pipeline.config import QUOTA_SHARE
from tests.simulation.model import Deployment, Simulation

SHARD = 1_000_000
TURNAROUND = 4 * 3_600.0
SHARDS = 1_000


def bound(tokens: int, usable: float) -> float:
    """1.05 × (tokens × turnaround ÷ usable limit) + one turnaround, seconds."""
    return 1.05 * tokens * TURNAROUND / usable + TURNAROUND


@pytest.mark.parametrize("header", ["file", "sum", None])
@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.0])
def test_one_deployment_of_two_and_a_half_shards(header: str | None, ratio: float) -> None:
    """No create is refused under a known limit, and what does not fit whole fills the room in pieces."""
    limit = int(2.5 * SHARD)
    run = Simulation([Deployment("d", lambda now: limit, ratio=ratio, header=header)], [SHARD] * SHARDS, {"d": limit})
    makespan = run.run()
    assert run.refusals == []
    assert run.answered == SHARDS * SHARD
    # Where no header tells how the service counts, our own estimate is what the quota is shared by.
    used = ratio if header else 1.0
    assert makespan <= bound(int(SHARDS * SHARD * used), limit * QUOTA_SHARE)


@pytest.mark.parametrize("header", ["file", "sum"])
def test_a_service_that_counts_more_than_we_do_refuses_nothing_once_it_has_told(header: str) -> None:
    """Its estimator is twice ours: the first header says so before the second batch."""
    limit = int(2.5 * SHARD)
    run = Simulation([Deployment("d", lambda now: limit, ratio=2.0, header=header)], [SHARD] * 200, {"d": limit})
    makespan = run.run()
    assert run.refusals == []
    assert makespan <= bound(200 * SHARD * 2, limit * QUOTA_SHARE)


MEANINGS = pytest.mark.parametrize("header", ["file", "sum"])


@MEANINGS
def test_three_deployments_with_different_limits_share_the_work(header: str) -> None:
    """Work goes wherever quota is free; together they take what all of them allow."""
    limits = {"a": int(1.3 * SHARD), "b": int(2.5 * SHARD), "c": 6 * SHARD}
    deployments = [Deployment(name, lambda now, limit=limit: limit, header=header) for name, limit in limits.items()]
    run = Simulation(deployments, [SHARD] * SHARDS, dict(limits))
    makespan = run.run()
    assert run.refusals == []
    assert makespan <= bound(SHARDS * SHARD, sum(limits.values()) * QUOTA_SHARE)


@MEANINGS
@pytest.mark.parametrize(("before", "after"), [(5.0, 2.5), (2.5, 5.0)])
def test_a_limit_that_changes_in_the_middle(before: float, after: float, header: str) -> None:
    """Nobody names it: at most one refusal for its change, and the new limit is then used to the full."""
    change = 20 * 86_400.0

    def limit(now: float) -> int:
        return int((before if now < change else after) * SHARD)

    run = Simulation([Deployment("d", limit, header=header)], [SHARD] * SHARDS)
    makespan = run.run()
    assert len(run.refusals) <= 1
    done_before = change / TURNAROUND * before * SHARD * QUOTA_SHARE
    rest = SHARDS * SHARD - done_before
    assert rest > 0, "the change comes in the middle"
    assert makespan <= 1.05 * (change + rest * TURNAROUND / (after * SHARD * QUOTA_SHARE)) + TURNAROUND


@MEANINGS
def test_others_hold_half_of_the_quota(header: str) -> None:
    """Their half is left to them; ours is used."""
    limit = 6 * SHARD
    deployment = Deployment("d", lambda now: limit, header=header, others=lambda now: 3 * SHARD)
    run = Simulation([deployment], [SHARD] * 300, {"d": limit})
    assert run.run() <= bound(300 * SHARD, 3 * SHARD * QUOTA_SHARE)


@MEANINGS
@pytest.mark.parametrize("known", [True, False])
def test_a_shard_of_ten_times_the_limit_completes(header: str, known: bool) -> None:
    """In pieces, one after the other; a limit that nobody names is learnt by one refusal."""
    run = Simulation([Deployment("d", lambda now: SHARD, header=header)], [10 * SHARD], {"d": SHARD} if known else {})
    assert run.run() <= bound(10 * SHARD, SHARD * QUOTA_SHARE)
    assert run.answered == 10 * SHARD
    assert len(run.refusals) <= (0 if known else 1)


def test_without_any_quota_everything_goes_at_once() -> None:
    """No limit known and none there: all shards are under way as fast as they are accepted."""
    run = Simulation([Deployment("d", lambda now: 10**15, header=None)], [SHARD] * 100)
    assert run.run() <= 2 * TURNAROUND
    assert run.refusals == []


def test_a_service_that_counts_a_batch_above_its_limit_and_tells_nothing_is_fed_smaller_ones() -> None:
    """Without headers only refusals say that it counts three times what we do; none is asked for the same for ever."""
    run = Simulation([Deployment("d", lambda now: SHARD, ratio=3.0, header=None)], [SHARD] * 20, {"d": SHARD})
    makespan = run.run()
    assert run.answered == 20 * SHARD
    assert makespan <= 2 * bound(20 * SHARD * 3, SHARD * QUOTA_SHARE)
    assert len(run.refusals) <= run.batches
