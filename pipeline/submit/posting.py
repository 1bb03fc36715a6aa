"""From a planned batch to an accepted one: upload, create, and what every other answer means.

Owns the order of effects around a create: a file of its own, the intent in the ledger, one call, the outcome right
after; what is unknown is settled, never posted again on hope. Knows nothing of polling or of results.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import DeploymentError
from pipeline.ledger import Ledger
from pipeline.shard import QUEUED_STATES, Batch, BatchState
from pipeline.submit import schedule, settle
from pipeline.submit.remote import CallFailed, Effect, RemoteBatch
from pipeline.submit.service import Service

RUN_KEY = "batchmill_run"
BATCH_KEY = "batchmill_batch"
"""Metadata keys of every batch of ours; they confirm, the input file decides."""

DEPLOYMENT_CODES = frozenset({"model_not_found", "deploymentnotfound", "operationnotsupported"})
QUOTA_CODE = "token_limit_exceeded"
NOT_PROCESSED = "Only files with status 'Processed'"
"""The service's words for a create whose input file is not ready (contract §2)."""

NOWHERE: dict[str, object] = {
    "remote_id": None,
    "remote_status": "",
    "unsettled_at": None,
    "input_deleted_at": None,
    "posted_at": None,
    "missing_since": None,
    "output_file_id": None,
    "error_file_id": None,
    "error_code": None,
    "error_message": None,
}
"""What a batch forgets when its rows wait for another create."""


class Work(Protocol):
    """What the runner lets others do, all durable on return."""

    def plan_shard(self, shard: int, tokens_max: int | None) -> None: ...
    def pool_leftovers(self, tokens_max: int | None) -> None: ...
    def split(self, batch: Batch, tokens_max: int) -> None: ...
    def render(self, batch: Batch) -> Path | None: ...
    def collect(self, batch: Batch, error: tuple[str, str] | None) -> None: ...
    def results_of(self, batch: Batch) -> tuple[Path, Path]: ...
    def drop_request(self, batch: Batch) -> None: ...


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between polls, and how long a lagging listing is waited for."""

    poll_s: float
    grace_s: float


class Poster:
    """Uploads, creates and settles.

    Args:
        ledger: the run's ledger, writable.
        service: the endpoint.
        work: rendering and collecting.
        run_id: random, in every batch's metadata and file name.
        endpoint_url: the create's `endpoint`.
        pace: seconds.
        clock: Unix seconds now.
        say: one line for the person who watches.
    """

    def __init__(
        self,
        ledger: Ledger,
        service: Service,
        work: Work,
        *,
        run_id: str,
        endpoint_url: str,
        pace: Pace,
        clock: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self._ledger, self._service, self._work = ledger, service, work
        self._run_id, self._endpoint_url, self._pace = run_id, endpoint_url, pace
        self._clock, self._say = clock, say

    def send(self, batch: Batch) -> None:
        """Render and upload a planned batch; create it where the service has its file processed at once."""
        path = self._work.render(batch)
        if path is None:  # it no longer fits one file: smaller batches took its place
            return
        batch = self._ledger.begin_upload(batch, self._run_id, self._clock())
        try:
            assert batch.upload_name
            file = self._service.upload(path, batch.upload_name)
        except CallFailed as failed:
            # An upload whose outcome is unknown is repeated under a new name; it costs nothing and expires by itself.
            wait = failed.retry_after_s or schedule.wait_after_refusal(
                batch.refusals + 1, others_queued=False, poll_s=0
            )
            self._ledger.move(
                batch,
                BatchState.PLANNED,
                self._clock(),
                str(failed),
                not_before=self._clock() + wait,
                refusals=batch.refusals + 1,
            )
            raise
        self._ledger.put("answered", "1")
        batch = self._ledger.end_upload(batch, file.id, self._clock())
        if file.status == "processed":
            self._post(batch)

    def post_when_processed(self, batch: Batch) -> None:
        """Create an uploaded batch once the service has processed its file."""
        assert batch.file_id
        try:
            file = self._service.file(batch.file_id)
        except CallFailed as failed:
            if failed.effect is not Effect.MISSING:
                raise
            self._ledger.move(batch, BatchState.PLANNED, self._clock(), "input file is gone", **NOWHERE)
            return
        if file.status in ("processed", "uploaded"):
            self._post(batch)
        elif file.status in ("error", "deleted", "deleting"):
            self._ledger.move(batch, BatchState.PLANNED, self._clock(), f"input file is {file.status}", **NOWHERE)

    def _post(self, batch: Batch) -> None:
        """Create the batch: the intent first, then one call, then its outcome."""
        assert batch.file_id
        batch = self._ledger.move(batch, BatchState.POSTING, self._clock(), posted_at=self._clock())
        assert batch.file_id
        metadata = {RUN_KEY: self._run_id, BATCH_KEY: batch.name}
        try:
            remote, quota = self._service.create(batch.file_id, self._endpoint_url, metadata)
        except CallFailed as failed:
            self._not_created(batch, failed)
            return
        now = self._clock()
        learnt: dict[str, int | str | None] = {"enqueued_header": quota.enqueued_tokens}
        if quota.maximum_tokens:
            learnt["maximum_header"] = quota.maximum_tokens
        self._ledger.learn(batch.deployment, **learnt)
        self._accepted(batch, remote, now)

    def _accepted(self, batch: Batch, remote: RemoteBatch, now: float) -> None:
        self._ledger.move(
            batch,
            BatchState.SUBMITTED,
            now,
            remote.id,
            remote_id=remote.id,
            remote_status=remote.status,
            refusals=0,
            unsettled_at=None,
        )
        self._ledger.put("accepted", "1")
        self._say(f"{batch.name} submitted: {batch.rows:,} rows as {remote.id}")

    def _not_created(self, batch: Batch, failed: CallFailed) -> None:
        """A create without a good answer: settle what is unknown, and act on what is a clear no."""
        now = self._clock()
        text = f"{failed.code} {failed.message}"
        if failed.effect is Effect.UNKNOWN:
            self._say(f"{batch.name}: the create got no clear answer ({failed}); looking for it before anything else")
            self._ledger.move(batch, BatchState.UNSETTLED, now, str(failed), unsettled_at=now)
        elif QUOTA_CODE in text or "enqueued token" in text.lower():
            self.refused_for_quota(batch, failed.message)
        elif failed.effect in (Effect.THROTTLED, Effect.UNREACHABLE) or NOT_PROCESSED in failed.message:
            wait = failed.retry_after_s or schedule.wait_after_refusal(
                batch.refusals + 1, others_queued=False, poll_s=0
            )
            self._ledger.move(
                batch, BatchState.PLANNED, now, str(failed), not_before=now + wait, refusals=batch.refusals + 1
            )
        elif failed.effect is Effect.CREDENTIALS:
            self._ledger.move(batch, BatchState.PLANNED, now, str(failed))
            raise failed
        elif failed.code.lower() in DEPLOYMENT_CODES or failed.effect is Effect.MISSING:
            self._ledger.move(batch, BatchState.PLANNED, now, str(failed))
            raise no_deployment(batch, failed.code or str(failed.status), failed.message)
        else:
            code = failed.code or "invalid_request"
            self._say(f"{batch.name} refused: {code}: {failed.message}")
            collected = self._ledger.move(
                batch,
                BatchState.COLLECTED,
                now,
                str(failed),
                remote_status="failed",
                error_code=code,
                error_message=failed.message,
            )
            self._work.collect(collected, (code, failed.message))

    def refused_for_quota(self, batch: Batch, message: str) -> None:
        """The deployment's queue is full: learn its limit, wait for ours to end or back off. Costs no attempt."""
        now = self._clock()
        refusals = batch.refusals + 1
        others = [
            other
            for other in self._ledger.open_batches()
            if other.batch != batch.batch and other.deployment == batch.deployment and other.state in QUEUED_STATES
        ]
        wait = schedule.wait_after_refusal(refusals, others_queued=bool(others), poll_s=self._pace.poll_s)
        with self._ledger.transaction():
            if limit := limit_in(message):
                self._ledger.learn(batch.deployment, learned_tokens=limit)
            self._ledger.move(
                batch,
                BatchState.PLANNED,
                now,
                f"quota: {message}",
                **(NOWHERE | {"refusals": refusals, "not_before": now + wait}),
            )
        self._say(f"{batch.name} waits for quota ({message})")

    def settle(self, batch: Batch, listed: dict[str, RemoteBatch]) -> None:
        """Take an unsettled create one step further; `listed` is a complete listing by input file."""
        assert batch.file_id and batch.unsettled_at is not None
        now = self._clock()
        remote = listed.get(batch.file_id)
        step = settle.next_step(
            found=remote is not None,
            unsettled_at=batch.unsettled_at,
            input_deleted_at=batch.input_deleted_at,
            now=now,
            grace_s=self._pace.grace_s,
        )
        match step:
            case settle.Step.ADOPT:
                assert remote is not None
                self._accepted(batch, remote, now)
            case settle.Step.DELETE:
                self._service.delete_file(batch.file_id)
                self._ledger.note(batch, input_deleted_at=self._clock())
                self._ledger.upload_deleted(batch.file_id, self._clock())
            case settle.Step.POST_ANEW:
                self._say(f"{batch.name}: the create never took effect; it is sent again with a new file")
                self._ledger.move(batch, BatchState.PLANNED, now, "never created", **NOWHERE)
            case settle.Step.WAIT:
                pass


def no_deployment(batch: Batch, code: str, message: str) -> DeploymentError:
    """The error that a deployment which takes no batches ends the run with."""
    return DeploymentError(
        f"Deployment {batch.deployment!r} cannot take batches ({code}: {message}). Its rows stay queued: "
        "correct the deployment or "
        "name another with --model, and run the same command again."
    )


def limit_in(message: str) -> int | None:
    """The enqueued-token limit told in a refusal's text, in tokens (contract §5), or None."""
    found = re.search(r"[Ll]imit(?: of|:) ([\d,]+)([KM]?)", message)
    if not found:
        return None
    return int(found[1].replace(",", "")) * {"": 1, "K": 1_000, "M": 1_000_000}[found[2]] or None
