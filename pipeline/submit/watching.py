"""What the service says of batches that it may have: listed, matched with the ledger, each taken a step further.

A batch is matched by its input file alone. Absence from one listing proves nothing; one that the service does not know
is lost after an hour of asking. Sends nothing new.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline import quota
from pipeline.ledger import Ledger
from pipeline.shard import TERMINAL_STATUSES, Batch, BatchState, Upload
from pipeline.submit.adopting import Adopter
from pipeline.submit.fetching import LOST_AFTER_S, Fetcher
from pipeline.submit.lanes import Lane, Lanes
from pipeline.submit.posting import (
    DEPLOYMENT_CODES,
    NOT_PROCESSED,
    NOWHERE,
    Pace,
    Poster,
    is_quota,
    no_deployment,
    refused_whole,
)
from pipeline.submit.remote import CallFailed, Effect, RemoteBatch
from pipeline.submit.work import Work


class Watcher:
    """Polls, adopts and settles.

    Args:
        ledger: the run's ledger, writable.
        lanes: the deployments.
        poster, fetcher, adopter, work: what is done about what is seen.
        pace: seconds.
        warn_after_s: how long a batch may stay unfinished without a warning, seconds.
        clock: Unix seconds now.
        say: one line for the person who watches.
        stopping: true once a signal asked to stop.
    """

    def __init__(
        self,
        ledger: Ledger,
        lanes: Lanes,
        *,
        poster: Poster,
        fetcher: Fetcher,
        adopter: Adopter,
        work: Work,
        pace: Pace,
        warn_after_s: float,
        clock: Callable[[], float],
        say: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._ledger, self._lanes, self._work, self._pace = ledger, lanes, work, pace
        self._poster, self._fetcher, self._adopter = poster, fetcher, adopter
        self._warn_after_s, self._clock, self._say, self._stopping = warn_after_s, clock, say, stopping
        self._warned: set[int] = set()

    def look(self, lane: Lane) -> None:
        """List a lane's batches when it is time, and take each of ours a step further."""
        now = self._clock()
        waiting = [
            batch
            for batch in self._ledger.open_batches()
            if batch.deployment == lane.name and batch.state in (BatchState.SUBMITTED, BatchState.UNSETTLED)
        ]
        due = now - lane.polled_at >= self._pace.poll_s and (waiting or not lane.surveyed)
        if not due:
            return
        lane.polled_at = now
        listed = self._listed(lane, waiting)
        self._ledger.put("answered", "1")
        for batch in waiting:
            if self._stopping():
                return
            self._poll(lane, self._ledger.batch(batch.batch), listed.get(batch.file_id or ""))

    def _listed(self, lane: Lane, waiting: list[Batch]) -> dict[str, RemoteBatch]:
        """The listed batches of ours by input file, from listings until all that we wait for are seen."""
        # An unsettled create is only settled by a complete listing: absence from half of it says nothing at all.
        whole = not lane.surveyed or any(batch.state is BatchState.UNSETTLED for batch in waiting)
        wanted = {batch.file_id for batch in waiting}
        found: dict[str, RemoteBatch] = {}
        for remote in lane.service.batches():
            if remote.input_file_id is None or refused_whole(remote):
                if remote.input_file_id is not None and remote.input_file_id in wanted:
                    found[remote.input_file_id] = remote
                continue  # one that failed as a whole holds nothing that was paid for
            ours = self._ledger.upload_of_file(remote.input_file_id)
            if ours is None:
                if self._adopter.is_ours(lane, remote):
                    self._adopter.stranger(lane, remote)
            elif remote.input_file_id in wanted:
                found[remote.input_file_id] = remote
            elif remote.id != ours.remote_id and not self._awaited(ours):
                self._adopter.late(self._lanes.of(ours.deployment, lane), ours.batch, remote)
            if not whole and wanted <= found.keys():
                break
        if not lane.surveyed:
            lane.surveyed = True
            self._lose_what_nobody_knows()
        return found

    def _awaited(self, upload: Upload) -> bool:
        """Whether the create that an input file was uploaded for is one that its own lane settles or posts."""
        batch = self._ledger.batch(upload.batch)
        return batch.state is BatchState.UNSETTLED and batch.upload == upload.upload

    def _poll(self, lane: Lane, batch: Batch, remote: RemoteBatch | None) -> None:
        if batch.state is BatchState.UNSETTLED:
            self._poster.settle(batch, remote, looked_at=lane.polled_at)
            return
        if batch.state is not BatchState.SUBMITTED:
            return
        if remote is None:
            assert batch.remote_id
            try:
                remote = lane.service.batch(batch.remote_id)
            except CallFailed as failed:
                if failed.effect is not Effect.MISSING:
                    raise
                self._missing(batch)
                return
        self._seen(lane, batch, remote)

    def _seen(self, lane: Lane, batch: Batch, remote: RemoteBatch) -> None:
        """Record how a submitted batch stands."""
        now = self._clock()
        facts = {
            "remote_status": remote.status,
            "missing_since": None,
            **remote.counted,
        }
        known = self._ledger.deployment(lane.name)
        if not known.proven and remote.status not in ("validating", "failed", ""):
            self._ledger.learn(lane.name, proven=1)
        if remote.status not in TERMINAL_STATUSES:
            self._ledger.note(batch, **facts)
            self._warn_if_stuck(batch, remote.status)
            return
        self._say(f"{batch.name} {remote.status}")
        with self._ledger.transaction():
            self._ledger.learn(lane.name, quota=quota.ended(known.quota))
            batch = self._ledger.move(
                batch,
                BatchState.ENDED,
                now,
                remote.status,
                **facts,
                not_before=0.0,
                output_file_id=remote.output_file_id,
                error_file_id=remote.error_file_id,
                error_code=remote.error_code,
                error_message=remote.error_message,
            )
        if refused_whole(batch):
            self.conclude(lane, batch)

    def _warn_if_stuck(self, batch: Batch, status: str) -> None:
        since = self._clock() - (batch.posted_at or self._clock())
        if since > self._warn_after_s and batch.batch not in self._warned:
            self._warned.add(batch.batch)
            self._say(
                f"warning: {batch.name} ({batch.remote_id}) has been {status or 'without a status'} for "
                f"{since / 3_600:.0f} hours; it is waited for. To stop waiting, cancel it at the service."
            )

    def _missing(self, batch: Batch) -> None:
        """The service does not know a batch that it accepted: lost after an hour of asking, not before."""
        now = self._clock()
        since = batch.missing_since or now
        if now - since < LOST_AFTER_S:
            self._ledger.note(batch, missing_since=since)
            return
        message = f"The service has not known {batch.remote_id} for an hour."
        facts = {"remote_status": "failed", "error_code": "batch_lost", "error_message": message}
        self._fetcher.lose(self._ledger.move(batch, BatchState.ENDED, now, "lost", **facts), message)

    def conclude(self, lane: Lane, batch: Batch) -> None:
        """What becomes of a batch that failed as a whole, in validation or later (contract §5)."""
        code, message = batch.error_code or "", batch.error_message or ""
        if batch.kind == "copy":  # its rows are with the batch that it is a copy of
            self._poster.give_up(batch, code or "batch_failed", message or "The service gave no reason.")
            return
        if is_quota(code, message):
            self._poster.refused_for_quota(batch, message)
        elif NOT_PROCESSED in message:
            self._ledger.move(batch, BatchState.PLANNED, self._clock(), "input file was not ready", **NOWHERE)
        elif code.lower() in DEPLOYMENT_CODES:
            self._ledger.move(batch, BatchState.PLANNED, self._clock(), f"{code}: {message}", **NOWHERE)
            self._lanes.no_deployment(lane, no_deployment(lane.name, code, message))
        else:
            self._poster.give_up(batch, code or "batch_failed", message or "The service gave no reason.")

    def _lose_what_nobody_knows(self) -> None:
        """Rows that some batch of this run may have had, nobody knows which: never asked again by themselves."""
        which = self._ledger.get("rows_unknown")
        if not which:
            return
        message = f"Batch {which} of this run had rows that nobody can tell any more; this may be one of them."
        while shards := self._ledger.unbatched(1):
            self._work.plan_shard(shards[0].shard, None, None)
        while self._ledger.leftovers():
            self._work.pool_leftovers(None)
        for batch in self._ledger.open_batches():
            if batch.state is BatchState.PLANNED:
                self._poster.give_up(batch, "batch_lost", message)
        self._ledger.put("rows_unknown", "")
