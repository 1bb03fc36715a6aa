"""Carries batches from planned to done: performs what the scheduler decides and records it before and after.

Owns the order of effects: an intent is in the ledger before its call, an outcome right after. Every step may be the
last one before kill -9; the next start goes on from the ledger alone. Knows nothing of templates, row files or the
output: rendering, freezing and collecting are functions given to it (`Work`).
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import CredentialsError, DeploymentError, TwoLiveCopiesError, UnreachableError
from pipeline.ledger import Ledger
from pipeline.shard import QUEUED_STATES, TERMINAL_STATUSES, Batch, BatchState
from pipeline.submit import schedule
from pipeline.submit.posting import (
    DEPLOYMENT_CODES,
    NOT_PROCESSED,
    NOWHERE,
    QUOTA_CODE,
    RUN_KEY,
    Pace,
    Poster,
    Work,
    no_deployment,
)
from pipeline.submit.remote import CallFailed, Effect, RemoteBatch
from pipeline.submit.service import Service

LOST_AFTER_S = 3_600.0
"""How long the service may not know a batch (404) before it is lost (design, *Outcomes*)."""

FILE_POLL_S = 1.0
BACKOFF_S_MAX = 300.0


class Runner:
    """One run's way through the service.

    Args:
        ledger: the run's ledger, writable.
        service: the endpoint.
        work: rendering, freezing and collecting.
        run_id: random, in every batch's metadata and file name.
        endpoint_url: the create's `endpoint`.
        pace: seconds.
        clock: Unix seconds now.
        say: one line for the person who watches.
        stopping: true once a signal asked to stop; looked at between steps.
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
        pool_rows: int,
        clock: Callable[[], float],
        say: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._ledger, self._service, self._work = ledger, service, work
        self._run_id, self._pace, self._pool_rows = run_id, pace, pool_rows
        self._poster = Poster(
            ledger, service, work, run_id=run_id, endpoint_url=endpoint_url, pace=pace, clock=clock, say=say
        )
        self._clock, self._say, self._stopping = clock, say, stopping
        self._polled_at = float("-inf")
        self._hurry = False
        self._troubles = 0

    def recover(self) -> None:
        """First thing after a start: an intent without an outcome is an unknown outcome."""
        now = self._clock()
        for batch in self._ledger.open_batches():
            if batch.state is BatchState.POSTING:
                self._ledger.move(batch, BatchState.UNSETTLED, now, "found after a restart", unsettled_at=now)
            elif batch.state is BatchState.UPLOADING:
                self._ledger.move(batch, BatchState.PLANNED, now, "upload repeated after a restart")

    def finished(self) -> bool:
        """Whether nothing is left to ask, to wait for or to read."""
        ledger = self._ledger
        return not ledger.open_batches() and not ledger.unbatched(1) and not ledger.leftovers()

    def pass_once(self) -> float:
        """One pass over what is open, then over what the scheduler allows.

        Returns:
            Seconds until the next pass is of use.

        Raises:
            UnreachableError, CredentialsError, DeploymentError, TwoLiveCopiesError: the run cannot go on.
        """
        self._hurry = False
        try:
            self._steps()
            self._actions()
        except CallFailed as failed:
            return self._trouble(failed)
        self._troubles = 0
        if self._hurry or self.finished():
            return 0.0
        open_batches = self._ledger.open_batches()
        if any(batch.state in (BatchState.UPLOADED, BatchState.UNSETTLED) for batch in open_batches):
            return min(FILE_POLL_S, self._pace.poll_s)
        return self._pace.poll_s

    def _trouble(self, failed: CallFailed) -> float:
        """A call failed in a way that says nothing about one batch: stop, or wait and go on."""
        if failed.effect is Effect.CREDENTIALS:
            raise CredentialsError(
                f"The service refuses the credentials ({failed.status} {failed.message}): check the key or the role "
                "assignment and run the same command again."
            )
        if failed.effect is Effect.UNREACHABLE and self._ledger.get("answered") is None:
            raise UnreachableError(
                f"The service cannot be reached: {failed.message} Check the endpoint and run the same command again."
            )
        if failed.effect in (Effect.MISSING, Effect.REFUSED) and self._ledger.get("answered") is None:
            raise DeploymentError(
                f"The service refuses the call ({failed.status} {failed.code}: {failed.message}): "
                "check the endpoint, the api-version "
                "and the deployment, and run the same command again."
            )
        self._troubles += 1
        wait = failed.retry_after_s or min(max(self._pace.poll_s, 1.0) * 2 ** min(self._troubles - 1, 6), BACKOFF_S_MAX)
        self._say(f"the service is not answering well ({failed}); going on in {wait:.0f} s")
        return wait

    # ---- what is open

    def _steps(self) -> None:
        now = self._clock()
        due = now - self._polled_at >= self._pace.poll_s
        remote = self._look(now) if due else {}
        for batch in self._ledger.open_batches():
            if self._stopping():
                return
            self._step(batch, remote, due)
        for file_id in self._ledger.spent_uploads():
            self._service.delete_file(file_id)
            self._ledger.upload_deleted(file_id, self._clock())

    def _look(self, now: float) -> dict[str, RemoteBatch]:
        """Every listed batch of ours by its input file, from listings until all that we wait for are seen."""
        wanted = {
            batch.file_id
            for batch in self._ledger.open_batches()
            if batch.file_id and batch.state in (BatchState.SUBMITTED, BatchState.UNSETTLED)
        }
        unsettled = any(batch.state is BatchState.UNSETTLED for batch in self._ledger.open_batches())
        found: dict[str, RemoteBatch] = {}
        self._polled_at = now
        if not wanted:
            return found
        for remote in self._service.batches():
            if remote.input_file_id is None:
                continue
            ours = self._ledger.batch_of_file(remote.input_file_id)
            if ours is None:
                if remote.metadata.get(RUN_KEY) == self._run_id:
                    raise TwoLiveCopiesError(
                        f"Batch {remote.id} belongs to this run, but this run folder does not know it: "
                        "another copy of the folder "
                        "is at work. Stop one of them."
                    )
                continue
            found[remote.input_file_id] = remote
            # An unsettled create is only settled by a complete listing: absence from half of it says nothing at all.
            if not unsettled and wanted <= found.keys():
                break
        self._ledger.put("answered", "1")
        return found

    def _step(self, batch: Batch, remote: dict[str, RemoteBatch], due: bool) -> None:
        match batch.state:
            case BatchState.UPLOADED:
                self._poster.post_when_processed(batch)
            case BatchState.UNSETTLED if due:
                self._poster.settle(batch, remote)
            case BatchState.SUBMITTED if due:
                self._poll(batch, remote)
            case BatchState.ENDED:
                self._fetch(batch)
            case BatchState.COLLECTED:
                self._work.collect(batch, _batch_error(batch))
                self._hurry = True

    def _poll(self, batch: Batch, listed: dict[str, RemoteBatch]) -> None:
        remote = listed.get(batch.file_id or "")
        if remote is None:
            assert batch.remote_id
            try:
                remote = self._service.batch(batch.remote_id)
            except CallFailed as failed:
                if failed.effect is not Effect.MISSING:
                    raise
                self._missing(batch)
                return
        self._seen(batch, remote)

    def _seen(self, batch: Batch, remote: RemoteBatch) -> None:
        """Record how a submitted batch stands."""
        now = self._clock()
        facts = {
            "remote_status": remote.status,
            "missing_since": None,
            "count_total": remote.total,
            "count_completed": remote.completed,
            "count_failed": remote.failed,
        }
        if remote.status not in ("validating", "failed", ""):
            self._ledger.learn(batch.deployment, proven=1)
        if remote.status not in TERMINAL_STATUSES:
            self._ledger.note(batch, **facts)
            return
        self._say(f"{batch.name} {remote.status}")
        self._ledger.move(
            batch,
            BatchState.ENDED,
            now,
            remote.status,
            **facts,
            output_file_id=remote.output_file_id,
            error_file_id=remote.error_file_id,
            error_code=remote.error_code,
            error_message=remote.error_message,
        )
        self._fetch(self._ledger.batch(batch.batch))

    def _missing(self, batch: Batch) -> None:
        """The service does not know a batch that it accepted: lost after an hour of asking, not before."""
        now = self._clock()
        since = batch.missing_since or now
        if now - since < LOST_AFTER_S:
            self._ledger.note(batch, missing_since=since)
            return
        message = f"The service has not known {batch.remote_id} for an hour; what it answered cannot be had."
        self._ledger.move(
            batch, BatchState.ENDED, now, "lost", remote_status="failed", error_code="batch_lost", error_message=message
        )

    def _fetch(self, batch: Batch) -> None:
        """Result files to disk, both, whole; or, for a batch that failed, what its failure means."""
        now = self._clock()
        if batch.remote_status == "failed" and self._failed(batch):
            return
        for file_id, path in zip(
            (batch.output_file_id, batch.error_file_id), self._work.results_of(batch), strict=True
        ):
            if file_id and not path.exists():
                self._service.download(file_id, path)
        batch = self._ledger.move(batch, BatchState.COLLECTED, now)
        self._work.collect(batch, _batch_error(batch))
        self._work.drop_request(batch)
        self._hurry = True

    def _failed(self, batch: Batch) -> bool:
        """A batch that failed in validation. True when its rows go back to wait for another create."""
        code, message = batch.error_code or "", batch.error_message or ""
        if code == QUOTA_CODE or QUOTA_CODE in message or "enqueued token" in message.lower():
            self._poster.refused_for_quota(batch, message)
            return True
        if NOT_PROCESSED in message:
            self._ledger.move(batch, BatchState.PLANNED, self._clock(), "input file was not ready", **NOWHERE)
            return True
        if code.lower() in DEPLOYMENT_CODES:
            self._ledger.move(batch, BatchState.PLANNED, self._clock(), f"{code}: {message}", **NOWHERE)
            raise no_deployment(batch, code, message)
        return False

    # ---- what is new

    def _actions(self) -> None:
        for _ in range(1_000):  # each round plans or sends something; the state is read afresh
            if self._stopping():
                return
            actions = schedule.schedule(self._state(), self._clock())
            if not actions:
                return
            for action in actions:
                if self._stopping():
                    return
                self._perform(action)

    def _perform(self, action: schedule.Action) -> None:
        match action:
            case schedule.PlanShard(shard, tokens_max):
                self._work.plan_shard(shard, tokens_max)
            case schedule.PoolLeftovers(tokens_max):
                self._work.pool_leftovers(tokens_max)
            case schedule.Split(number, tokens_max):
                self._work.split(self._ledger.batch(number), tokens_max)
            case schedule.Send(number, _):
                self._poster.send(self._ledger.batch(number))

    def _state(self) -> schedule.State:
        batches = self._ledger.open_batches()
        rooms = []
        for known in self._ledger.deployments():
            ours = [batch for batch in batches if batch.deployment == known.name and batch.state in QUEUED_STATES]
            rooms.append(
                schedule.Room(
                    name=known.name,
                    limit_tokens=known.limit_tokens,
                    queued_tokens=sum(batch.tokens for batch in ours),
                    queued_batches=len(ours),
                    waiting_files=sum(batch.state in (BatchState.UPLOADING, BatchState.UPLOADED) for batch in ours),
                    proven=known.proven,
                    set_aside=known.set_aside is not None,
                )
            )
        return schedule.State(
            rooms=rooms,
            planned=[
                schedule.Planned(batch.batch, batch.deployment, batch.rows, batch.tokens, batch.not_before)
                for batch in batches
                if batch.state is BatchState.PLANNED
            ],
            shards=[(shard.shard, shard.tokens) for shard in self._ledger.unbatched(1)],
            shards_left=self._ledger.unbatched_count(),
            leftover_rows=sum(rows for _, rows in self._ledger.leftovers()),
            open_batches=len(batches),
            pool_rows=self._pool_rows,
        )


def _batch_error(batch: Batch) -> tuple[str, str] | None:
    """Code and message when the batch as a whole failed and has no results of its own."""
    if batch.remote_status != "failed" or batch.output_file_id:
        return None
    return batch.error_code or "batch_failed", batch.error_message or "The service gave no reason."
