"""What is learnt of a quota from headers and refusals, against a service whose rules are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import quota
from pipeline.quota import Meaning, Quota


@dataclass
class Counter:
    """A service that counts `ratio` tokens for one of ours and tells the file's or the deployment's sum."""

    limit: int
    ratio: float
    tells_sum: bool
    queued: list[int] = field(default_factory=list)

    def create(self, tokens: int) -> int | None:
        """The header's value, or None for a refusal."""
        counted = int(tokens * self.ratio)
        if sum(self.queued) + counted > self.limit:
            return None
        self.queued.append(counted)
        return sum(self.queued) if self.tells_sum else counted


@settings(max_examples=300, deadline=None)
@given(
    ratio=st.floats(0.5, 4.0),
    tells_sum=st.booleans(),
    sizes=st.lists(st.integers(50, 2_000), min_size=1, max_size=60),
    ends=st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_with_a_known_limit_and_headers_no_create_is_refused(
    ratio: float, tells_sum: bool, sizes: list[int], ends: list[bool]
) -> None:
    """Whatever the service's estimator and whichever meaning its header has, as long as nobody else uses the quota."""
    service, known = Counter(20_000, ratio, tells_sum), Quota(asked_tokens=20_000)
    ours: list[int] = []
    for size, end in zip(sizes, ends, strict=False):
        if end and ours:
            ours.pop(0)
            service.queued.pop(0)
            known = quota.ended(known)
        if size > known.free_tokens(sum(ours), 0):
            continue
        header = service.create(size)
        assert header is not None, "refused"
        known = quota.accepted(known, batch_tokens=size, queued_before=sum(ours), header=header, maximum=None, now=0)
        ours.append(size)


@pytest.mark.parametrize("tells_sum", [True, False])
def test_the_headers_meaning_is_decided_by_evidence(tells_sum: bool) -> None:
    """It grows with our queue, or it does not; until then neither is believed."""
    service, known = Counter(10**9, 1.3, tells_sum), Quota()
    meanings = []
    for number in range(5):
        header = service.create(1_000)
        known = quota.accepted(
            known, batch_tokens=1_000, queued_before=1_000 * number, header=header, maximum=None, now=0
        )
        meanings.append(known.meaning)
    assert meanings[0] is meanings[1] is Meaning.UNKNOWN
    assert meanings[-1] is (Meaning.SUM if tells_sum else Meaning.FILE)
    assert known.ratio == pytest.approx(1.3, rel=0.01)


def test_what_others_hold_is_left_to_them() -> None:
    """Once the header is known to be the sum, what exceeds our own part of it is not free for us."""
    service, known = Counter(10_000, 1.0, tells_sum=True), Quota(asked_tokens=10_000)
    service.queued.append(4_000)
    for number in range(3):
        header = service.create(1_000)
        known = quota.accepted(
            known, batch_tokens=1_000, queued_before=1_000 * number, header=header, maximum=None, now=0
        )
    assert known.meaning is Meaning.SUM
    assert known.free_tokens(3_000, 0) <= 10_000 - 7_000


def test_a_refusal_teaches_the_limit_and_blocks_until_one_of_ours_has_ended() -> None:
    """The number in its words; with our own queued the wait ends when one of them does."""
    known = quota.refused(
        Quota(calibrated=True), batch_tokens=40_000, queued=10_000, limit=30_000, retry_after_s=None, now=100.0
    )
    assert known.limit_tokens == 30_000
    assert known.blocked_until > 100.0
    assert quota.ended(known).blocked_until == 0.0
    assert quota.ended(known).limit_tokens == 30_000


def test_a_new_limit_takes_the_place_of_the_old_one() -> None:
    """Up or down: the last word counts, but never more than the user allows."""
    known = Quota(asked_tokens=50_000, calibrated=True)
    for told, limit in ((30_000, 30_000), (20_000, 20_000), (90_000, 50_000)):
        known = quota.accepted(known, batch_tokens=10, queued_before=0, header=10, maximum=told, now=0)
        assert known.limit_tokens == limit


def test_a_refusal_without_a_number_is_a_guess_that_grows_again() -> None:
    """Nothing told: half of what was refused; each accepted create near the guess raises it."""
    known = quota.refused(Quota(), batch_tokens=1_000, queued=0, limit=None, retry_after_s=None, now=0)
    assert known.limit_tokens == 500
    for _ in range(10):
        known = quota.accepted(known, batch_tokens=450, queued_before=0, header=None, maximum=None, now=0)
    assert (known.limit_tokens or 0) > 700


@pytest.mark.parametrize(("refusals", "seconds"), [(1, 5.0), (2, 10.0), (5, 80.0), (30, quota.REFUSAL_WAIT_S_MAX)])
def test_while_others_hold_the_quota_the_wait_doubles_to_half_an_hour(refusals: int, seconds: float) -> None:
    """A refusal with nothing of ours queued backs off; Retry-After is obeyed where it is longer."""
    assert quota.refusal_wait(refusals) == seconds
    known = quota.refused(Quota(), batch_tokens=1, queued=0, limit=9, retry_after_s=7_000.0, now=0)
    assert known.blocked_until == 7_000.0


def test_what_was_learnt_survives_the_ledger() -> None:
    """Back from text everything is as it was; the user's own limit comes from the command line again."""
    known = quota.accepted(Quota(asked_tokens=5), batch_tokens=10, queued_before=0, header=13, maximum=700, now=3.5)
    assert Quota.from_json(known.to_json(), 5) == known


def test_a_batch_refused_alone_under_its_limit_is_not_asked_for_the_same_for_ever() -> None:
    """The limit is no news and nothing of ours is queued: the service counts more, or others are there: smaller."""
    known = quota.accepted(
        Quota(asked_tokens=1_000), batch_tokens=10, queued_before=0, header=None, maximum=None, now=0.0
    )
    caps = []
    for turn in range(6):
        known = quota.refused(
            known, batch_tokens=min(800, int(known.cap_tokens())), queued=0, limit=1_000, retry_after_s=None,
            now=float(turn),
        )  # fmt: skip
        caps.append(known.cap_tokens())
    assert caps[0] == 900, "the first one is news of the limit"
    assert caps[1:] == sorted(caps[1:], reverse=True) and caps[-1] < 0.3 * caps[0]
