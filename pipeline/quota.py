"""What is known of a deployment's enqueued-token quota, and how each answer of the service changes it. Pure.

Our own estimate of a batch (bytes / 4) is not the service's: the ratio between the two is learnt from the first quota
header, whose meaning (this file's tokens, or the sum over the deployment's jobs; contract §8) is decided by evidence.
Until something is known the least favourable ratio is assumed. A refusal teaches the limit. Knows nothing of batches,
SQL or the service.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from pipeline.config import QUOTA_SHARE

RATIO_MIN, RATIO_MAX = 0.5, 4.0
"""Bounds of what the service's estimate may be of ours (issue of quotas: calibration is clamped)."""

VOTES_DECIDE = 2
VOTES_MAX = 4
OTHERS_S = 3_600.0
"""How long tokens that others had in the queue are believed to be there still, seconds."""

REFUSAL_WAIT_S = 5.0
REFUSAL_WAIT_S_MAX = 1_800.0
"""First and longest wait after a refusal for quota (contract §5, §8), seconds."""

ALONE_GROWTH = 1.4
"""How the ratio grows with a refusal that neither the limit told nor our own queue explains."""

GUESS_GROWTH = 1.25
"""How a limit that was only guessed grows with each create that it did not stop."""


class Meaning(StrEnum):
    """What the header `deployment-enqueued-tokens` says."""

    UNKNOWN = "unknown"
    FILE = "file"
    SUM = "sum"


@dataclass(frozen=True, slots=True)
class Quota:
    """One deployment's quota as far as it is known.

    Attributes:
        asked_tokens: the user's `--quota-tokens`, or None.
        told_tokens: the limit that the service told last, in a header or a refusal, or None.
        guessed_tokens: a limit inferred from a refusal that told none; grows again.
        ratio: the service's tokens for one of ours.
        calibrated: whether a create has been accepted since the ratio was a mere assumption.
        votes: evidence on the header's meaning: positive for the sum, negative for the file.
        header_tokens, header_ours, header_at: the last header, our own queued tokens (our estimate, the new batch
            included) when it came, and the time.
        header_batch: our estimate of the batch that it came with.
        blocked_until: no create before this time (Unix seconds); refusals: how many running.
    """

    asked_tokens: int | None = None
    told_tokens: int | None = None
    guessed_tokens: int | None = None
    ratio: float = 1.0
    calibrated: bool = False
    votes: int = 0
    header_tokens: int | None = None
    header_ours: int = 0
    header_batch: int = 0
    header_at: float = 0.0
    blocked_until: float = 0.0
    refusals: int = 0

    def to_json(self) -> str:
        """What has been learnt, as one line for the ledger; the user's own limit is not learnt."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "asked_tokens"})

    @classmethod
    def from_json(cls, text: str, asked_tokens: int | None) -> Quota:
        """Read back what `to_json` wrote."""
        return cls(**json.loads(text or "{}"), asked_tokens=asked_tokens)

    @property
    def meaning(self) -> Meaning:
        """What the evidence says of the header so far."""
        if self.votes >= VOTES_DECIDE:
            return Meaning.SUM
        return Meaning.FILE if self.votes <= -VOTES_DECIDE else Meaning.UNKNOWN

    @property
    def limit_tokens(self) -> int | None:
        """The smallest limit that holds; None where nothing is known of one."""
        known = [limit for limit in (self.asked_tokens, self.told_tokens, self.guessed_tokens) if limit]
        return min(known) if known else None

    @property
    def usable_tokens(self) -> float:
        """The share of the limit that is used, in the service's tokens; infinite without a limit."""
        limit = self.limit_tokens
        return float("inf") if limit is None else limit * QUOTA_SHARE

    @property
    def believed_ratio(self) -> float:
        """The ratio to plan with: the worst one until a create has told something."""
        return self.ratio if self.calibrated else RATIO_MAX

    def free_tokens(self, ours: int, now: float) -> float:
        """What may be enqueued now, in our tokens.

        Args:
            ours: our own queued tokens, by our estimate.
            now: Unix seconds.
        """
        taken = ours * self.believed_ratio
        if self.header_tokens is not None and now < self.header_at + OTHERS_S and ours:
            if self.meaning is Meaning.SUM:
                taken += max(0.0, self.header_tokens - self.header_ours * self.ratio)
            elif self.meaning is Meaning.UNKNOWN and ours >= self.header_ours:
                taken = max(taken, float(self.header_tokens))  # perhaps the sum: only ever more careful
        return (self.usable_tokens - taken) / self.believed_ratio

    def cap_tokens(self) -> float:
        """The largest batch that could ever fit, in our tokens, as far as the ratio is known."""
        return self.usable_tokens / self.ratio


def accepted(
    quota: Quota, *, batch_tokens: int, queued_before: int, header: int | None, maximum: int | None, now: float
) -> Quota:
    """Learn from an accepted create.

    Args:
        quota: what was known.
        batch_tokens: our estimate of the batch.
        queued_before: our estimate of what we had in the queue before it.
        header, maximum: the two quota headers, None where absent.
        now: Unix seconds.
    """
    new = replace(quota, refusals=0, blocked_until=0.0, told_tokens=maximum or quota.told_tokens)
    if new.guessed_tokens is not None and queued_before + batch_tokens > 0.6 * new.guessed_tokens:
        new = replace(new, guessed_tokens=int(new.guessed_tokens * GUESS_GROWTH))
    if header is None or batch_tokens <= 0:
        # No evidence will come from headers: a ratio that refusals pushed up drifts back.
        ratio = max(1.0, quota.ratio * 0.95) if quota.calibrated else 1.0
        return replace(new, calibrated=True, ratio=ratio)
    if quota.header_tokens is not None and queued_before and quota.header_ours == queued_before:
        new = replace(new, votes=_voted(quota, batch_tokens, header))
    seen = _observed(new, quota, batch_tokens, queued_before, header)
    if seen is not None:
        seen = min(RATIO_MAX, max(RATIO_MIN, seen))
        # What was seen while the meaning was open may have had others' tokens in it.
        news = not quota.calibrated or new.meaning is not quota.meaning
        ratio = seen if news else max(seen, 0.7 * quota.ratio + 0.3 * seen)
        new = replace(new, ratio=ratio)
    return replace(
        new,
        calibrated=True,
        header_tokens=header,
        header_ours=queued_before + batch_tokens,
        header_batch=batch_tokens,
        header_at=now,
    )


def _voted(quota: Quota, batch_tokens: int, header: int) -> int:
    """The votes after a header that came while nothing of ours had ended since the one before."""
    assert quota.header_tokens is not None
    vote = 0
    if header - quota.header_tokens < RATIO_MIN / 2 * batch_tokens:
        vote = -1  # a sum would have grown by this batch
    elif quota.header_batch:
        in_proportion = quota.header_tokens / quota.header_batch * batch_tokens
        if abs(header - in_proportion) > max(RATIO_MIN / 2 * batch_tokens, 0.1 * in_proportion):
            vote = 1  # a file's own count would keep its proportion to ours
    return max(-VOTES_MAX, min(VOTES_MAX, quota.votes + vote))


def _observed(new: Quota, old: Quota, batch_tokens: int, queued_before: int, header: int) -> float | None:
    """The ratio that a header shows; None where it shows none."""
    if new.meaning is Meaning.FILE or not queued_before:
        return header / batch_tokens  # with an empty queue both meanings agree
    if new.meaning is Meaning.SUM and old.header_tokens is not None and old.header_ours == queued_before:
        return (header - old.header_tokens) / batch_tokens
    return None


def refused(
    quota: Quota, *, batch_tokens: int, queued: int, limit: int | None, retry_after_s: float | None, now: float
) -> Quota:
    """Learn from a refusal for quota, in either shape (contract §5).

    Args:
        quota: what was known.
        batch_tokens: our estimate of the refused batch.
        queued: our estimate of what else we have in the queue.
        limit: the limit that the refusal told, or None.
        retry_after_s: what the service asked to wait, or None.
        now: Unix seconds.
    """
    refusals = quota.refusals + 1
    wait = max(refusal_wait(refusals) if not queued else REFUSAL_WAIT_S_MAX, retry_after_s or 0.0)
    new = replace(quota, refusals=refusals, blocked_until=now + wait)
    asked = (queued + batch_tokens) * max(1.0, quota.ratio)
    if limit is None:
        guess = max(1, int(asked * (0.75 if queued else 0.5)))
        return replace(new, guessed_tokens=min(guess, quota.limit_tokens or guess))
    news = limit != quota.told_tokens
    new = replace(new, told_tokens=limit, guessed_tokens=None)
    if news or asked > limit or quota.header_tokens is not None:
        return new
    # The limit is no news, and what we have and asked for should fit. With our own batches in the queue, the service
    # counts more for them than we thought. With none it does, or others hold the quota: smaller batches help in either
    # case, and one that counts for more than the whole limit would be refused for ever.
    seen = 1.02 * limit / max(1, queued + batch_tokens) if queued else max(1.0, quota.ratio) * ALONE_GROWTH
    return replace(new, ratio=min(RATIO_MAX, max(quota.ratio, seen)))


def forgetting_limits(quota: Quota) -> Quota:
    """Without what refusals and headers said of the limit; how the service counts stays known."""
    return replace(quota, told_tokens=None, guessed_tokens=None, blocked_until=0.0, refusals=0)


def ended(quota: Quota) -> Quota:
    """One of our own batches has ended: its tokens are free, so a create may be tried again."""
    return replace(quota, blocked_until=0.0) if quota.blocked_until else quota


def refusal_wait(refusals: int) -> float:
    """Seconds to wait after so many refusals running while others hold the quota."""
    return float(min(REFUSAL_WAIT_S * 2 ** min(refusals - 1, 12), REFUSAL_WAIT_S_MAX))
