"""From a planned batch to an accepted one: upload, create, and what every other answer means.

Owns the order of effects around a create: a file of its own, the intent in the ledger, one call, the outcome right
after; what is unknown is settled, never posted again on hope. Knows nothing of polling or of results.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import quota
from pipeline.errors import DeploymentError
from pipeline.ledger import Ledger
from pipeline.shard import QUEUED_STATES, Batch, BatchState
from pipeline.submit import settle
from pipeline.submit.remote import INPUT_EXPIRY_S, CallFailed, Effect, QuotaHeaders, RemoteBatch, RemoteFile
from pipeline.submit.work import Work

if TYPE_CHECKING:
    from pipeline.submit.service import Service

RUN_KEY = "batchmill_run"
BATCH_KEY = "batchmill_batch"
"""Metadata keys of every batch of ours; they confirm, the input file decides."""

DEPLOYMENT_CODES = frozenset({"model_not_found", "deploymentnotfound", "operationnotsupported"})
QUOTA_CODE = "token_limit_exceeded"
FILES_FULL = "quotaexceeded"
"""The service's code when its cap on input files is reached (contract §2)."""

FILES_FULL_WAIT_S = 60.0
SHORT_UPLOADS_MAX = 3
"""How often running a file that arrived in part is sent again before it is taken as it is."""

TOO_LARGE = 413
INPUT_GONE = re.compile(r"does not exist|not found|no such file", re.IGNORECASE)
"""A refused create that says so of its own input file."""

NOT_PROCESSED = "Only files with status 'Processed'"
"""The service's words for a create whose input file is not ready (contract §2)."""

OVER_QUOTA = "over_quota"
"""Code of a single row that is larger than the deployment's whole quota: skipped (design, *Outcomes*)."""

NOWHERE: dict[str, object] = {
    "deployment": None,
    "upload": None,
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


def is_quota(code: str, message: str) -> bool:
    """Whether words of the service mean that a deployment's queue is full (contract §5)."""
    return QUOTA_CODE in f"{code} {message}" or "enqueued token" in message.lower()


def refused_whole(found: Batch | RemoteBatch) -> bool:
    """Whether the service has failed a batch without executing any of it: nothing was charged, nothing can be fetched.

    A failed batch may have file ids all the same (contract §4): then its code tells.
    """
    status = found.remote_status if isinstance(found, Batch) else found.status
    code, message = found.error_code or "", found.error_message or ""
    if status != "failed":
        return False
    return (
        not found.output_file_id
        or is_quota(code, message)
        or code.lower() in DEPLOYMENT_CODES
        or NOT_PROCESSED in message
    )


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between polls, and how long a lagging listing is waited for."""

    poll_s: float
    grace_s: float


class Poster:
    """Uploads, creates and settles.

    Args:
        ledger: the run's ledger, writable.
        services: the endpoints by deployment.
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
        services: Mapping[str, Service],
        work: Work,
        *,
        run_id: str,
        endpoint_url: str,
        pace: Pace,
        clock: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self._ledger, self._services, self._work = ledger, services, work
        self._run_id, self._endpoint_url, self._pace = run_id, endpoint_url, pace
        self._clock, self._say = clock, say
        self._told_expiry: set[str] = set()

    def send(self, batch: Batch, deployment: str) -> None:
        """Render and upload a planned batch; create it where the service has its file processed at once."""
        self._ledger.note(batch, deployment=deployment)
        batch = self._ledger.batch(batch.batch)
        path = self._work.render(batch, self._ledger.deployment(deployment).model)
        if path is None:  # it no longer fits one file: smaller batches took its place
            return
        batch = self._ledger.begin_upload(batch, self._run_id, self._clock())
        try:
            assert batch.upload_name
            file = self._services[deployment].upload(path, batch.upload_name)
        except CallFailed as failed:
            self._not_uploaded(batch, failed)
            return
        self._ledger.put("answered", "1")
        self._tell_expiry(deployment, file)
        batch = self._ledger.end_upload(batch, file.id, self._clock())
        # Bounded: a service that counts bytes in its own way must not keep a run uploading for ever.
        if file.bytes and file.bytes < path.stat().st_size and batch.refusals < SHORT_UPLOADS_MAX:
            self._back(batch, f"{file.bytes:,} bytes arrived: sent again", self._again_s(batch))
        elif file.status == "processed":
            self._post(batch)

    def _not_uploaded(self, batch: Batch, failed: CallFailed) -> None:
        """An upload without a file: one whose outcome is unknown is repeated under a new name, and swept at the end."""
        code, answered = failed.code.lower(), self._ledger.get("answered") is not None
        if code == FILES_FULL:
            self._say(
                f"{batch.deployment} holds no more input files ({failed.message}); going on when some are deleted"
            )
            self._back(batch, str(failed), FILES_FULL_WAIT_S)
        elif failed.effect is Effect.REFUSED and answered:  # it would be refused again, whenever it is sent
            planned = self._ledger.move(batch, BatchState.PLANNED, self._clock(), str(failed), **NOWHERE)
            if failed.status == TOO_LARGE and batch.rows > 1:
                self._work.split(planned, None, max(1, batch.tokens // 2))
            else:
                self._say(f"{batch.name}: its upload was refused ({failed})")
                self.give_up(planned, failed.code or "upload_refused", failed.message)
        else:
            self._back(batch, str(failed), failed.retry_after_s or self._again_s(batch))
            raise failed

    def _tell_expiry(self, deployment: str, file: RemoteFile) -> None:
        """What the service made of the expiry that was asked for, read back and told once."""
        if deployment in self._told_expiry:
            return
        self._told_expiry.add(deployment)
        days = INPUT_EXPIRY_S // 86_400
        if file.expires_at is None:
            self._say(
                f"{deployment} keeps input files without the expiry of {days} days that was asked for; "
                "they are deleted when their results are on disk"
            )
        elif (kept := (file.expires_at - self._clock()) / 86_400) < days - 1:
            self._say(f"{deployment} keeps input files for {kept:.0f} days, not for the {days} that were asked for")

    def _again_s(self, batch: Batch) -> float:
        """Seconds until a failed upload is repeated: doubling, and no slower than the run's own pace asks."""
        return min(quota.refusal_wait(batch.refusals + 1), self._pace.poll_s * 2.0 ** min(batch.refusals, 12))

    def _back(self, batch: Batch, note: str, wait_s: float) -> None:
        """Back to planned, where any deployment may take it; not before a time."""
        now = self._clock()
        values = NOWHERE | {"refusals": batch.refusals + 1, "not_before": now + wait_s}
        self._ledger.move(batch, BatchState.PLANNED, now, note, **values)

    def post_when_processed(self, batch: Batch) -> None:
        """Create an uploaded batch once the service has processed its file."""
        assert batch.file_id
        try:
            file = self._services[batch.deployment].file(batch.file_id)
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
        before = self._queued_tokens(batch)
        batch = self._ledger.move(batch, BatchState.POSTING, self._clock(), posted_at=self._clock())
        assert batch.file_id
        metadata = {RUN_KEY: self._run_id, BATCH_KEY: batch.name}
        try:
            remote, headers = self._services[batch.deployment].create(batch.file_id, self._endpoint_url, metadata)
        except CallFailed as failed:
            self._not_created(batch, failed)
            return
        with self._ledger.transaction():
            self._learn(batch, before, headers)
            self._accepted(batch, remote)

    def _learn(self, batch: Batch, queued_before: int, headers: QuotaHeaders) -> None:
        known = self._ledger.deployment(batch.deployment).quota
        learnt = quota.accepted(
            known,
            batch_tokens=batch.tokens,
            queued_before=queued_before,
            header=headers.enqueued_tokens,
            maximum=headers.maximum_tokens,
            now=self._clock(),
        )
        self._ledger.learn(batch.deployment, quota=learnt)

    def _queued_tokens(self, batch: Batch) -> int:
        """Our estimate of what else of ours the deployment has in its queue, or may have."""
        queued = sum(
            tokens
            for deployment, state, _, tokens in self._ledger.queued()
            if deployment == batch.deployment and state in QUEUED_STATES
        )
        now = self._ledger.batch(batch.batch)
        return queued - (now.tokens if now.state in QUEUED_STATES and now.deployment == batch.deployment else 0)

    def _accepted(self, batch: Batch, remote: RemoteBatch) -> None:
        self._ledger.move(
            batch,
            BatchState.SUBMITTED,
            self._clock(),
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
        if failed.effect is Effect.UNKNOWN:
            self._say(f"{batch.name}: the create got no clear answer ({failed}); looking for it before anything else")
            self._ledger.move(batch, BatchState.UNSETTLED, now, str(failed), unsettled_at=now)
        elif is_quota(failed.code, failed.message):
            self.refused_for_quota(batch, failed.message, failed.maximum_tokens, failed.retry_after_s)
        elif failed.effect in (Effect.THROTTLED, Effect.UNREACHABLE) or NOT_PROCESSED in failed.message:
            self._back(batch, str(failed), failed.retry_after_s or self._again_s(batch))
            if failed.effect is not Effect.REFUSED:
                raise failed  # the whole deployment is left alone for as long as it asked
        elif batch.file_id and batch.file_id in failed.message and INPUT_GONE.search(failed.message):
            self._back(batch, str(failed), quota.refusal_wait(batch.refusals + 1))
        elif failed.effect is Effect.CREDENTIALS:
            self._ledger.move(batch, BatchState.PLANNED, now, str(failed), **NOWHERE)
            raise failed
        elif failed.code.lower() in DEPLOYMENT_CODES or failed.effect is Effect.MISSING:
            self._ledger.move(batch, BatchState.PLANNED, now, str(failed), **NOWHERE)
            raise no_deployment(batch.deployment, failed.code or str(failed.status), failed.message)
        else:
            code = failed.code or "invalid_request"
            self._say(f"{batch.name} refused: {code}: {failed.message}")
            self.give_up(batch, code, failed.message)

    def give_up(self, batch: Batch, code: str, message: str) -> None:
        """Fail every row of a batch that the service will not take."""
        collected = self._ledger.move(
            batch,
            BatchState.COLLECTED,
            self._clock(),
            f"{code}: {message}",
            remote_status="failed",
            error_code=code,
            error_message=message,
        )
        self._work.close(collected, (code, message))

    def refused_for_quota(
        self, batch: Batch, message: str, limit: int | None = None, retry_after_s: float | None = None
    ) -> None:
        """The deployment's queue is full: learn its limit, wait for ours to end or back off. Costs no attempt."""
        now = self._clock()
        limit = limit_in(message) or limit
        known = self._ledger.deployment(batch.deployment)
        queued = self._queued_tokens(batch)
        learnt = quota.refused(
            known.quota,
            batch_tokens=batch.tokens,
            queued=queued,
            limit=limit,
            retry_after_s=retry_after_s,
            now=now,
        )
        others = [room for room in self._ledger.deployments() if room.name != known.name and room.set_aside is None]
        hopeless = limit is not None and batch.rows == 1 and limit < batch.tokens and not queued
        with self._ledger.transaction():
            self._ledger.learn(batch.deployment, quota=learnt)
            moved = self._ledger.move(
                batch, BatchState.PLANNED, now, f"quota: {message}", **(NOWHERE | {"refusals": batch.refusals + 1})
            )
        if hopeless and not any((room.quota.limit_tokens or batch.tokens) >= batch.tokens for room in others):
            self._say(f"{batch.name}: its one row is larger than the whole quota ({message})")
            self.give_up(moved, OVER_QUOTA, message)
            return
        self._say(f"{batch.name} waits for quota ({message})")

    def settle(self, batch: Batch, remote: RemoteBatch | None, *, looked_at: float) -> None:
        """Take an unsettled create one step further.

        Args:
            batch: unsettled.
            remote: what a complete listing shows for its input file, or None.
            looked_at: when that listing began, Unix seconds: what landed after it cannot be in it.
        """
        assert batch.file_id and batch.unsettled_at is not None
        now = self._clock()
        step = settle.next_step(
            found=remote is not None,
            unsettled_at=batch.unsettled_at,
            input_deleted_at=batch.input_deleted_at,
            now=looked_at,
            grace_s=self._pace.grace_s,
        )
        match step:
            case settle.Step.ADOPT:
                assert remote is not None
                self._accepted(batch, remote)
            case settle.Step.DELETE:
                self._services[batch.deployment].delete_file(batch.file_id)
                self._ledger.note(batch, input_deleted_at=self._clock())
                self._ledger.upload_deleted(batch.file_id, self._clock())
            case settle.Step.POST_ANEW:
                self._say(f"{batch.name}: the create never took effect; it is sent again with a new file")
                self._ledger.move(batch, BatchState.PLANNED, now, "never created", **NOWHERE)
            case settle.Step.WAIT:
                pass


def no_deployment(deployment: str, code: str, message: str) -> DeploymentError:
    """The error that a deployment which takes no batches ends the run with."""
    return DeploymentError(
        f"Deployment {deployment!r} cannot take batches ({code}: {message}). Its rows stay queued: "
        "correct the deployment or name another with --model, and run the same command again."
    )


def limit_in(message: str) -> int | None:
    """The enqueued-token limit told in a refusal's text, in tokens (contract §5), or None."""
    found = re.search(r"[Ll]imit(?: of|:) ([\d,]+)([KM]?)", message)
    if not found:
        return None
    return int(found[1].replace(",", "")) * {"": 1, "K": 1_000, "M": 1_000_000}[found[2]] or None
