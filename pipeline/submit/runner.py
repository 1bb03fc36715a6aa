"""Carries batches from planned to done: performs what the scheduler decides and records it before and after.

Owns the order of effects: an intent is in the ledger before its call, an outcome right after. Every step may be the
last one before kill -9; the next start goes on from the ledger alone. Knows nothing of templates, row files or the
output: rendering, freezing and collecting are functions given to it (`Work`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import DeploymentError, ErrorRateError
from pipeline.ledger import Ledger
from pipeline.shard import OPEN_STATES, QUEUED_STATES, Batch, BatchState
from pipeline.submit import schedule
from pipeline.submit.adopting import Adopter
from pipeline.submit.fetching import Fetcher
from pipeline.submit.lanes import Lane, Lanes
from pipeline.submit.posting import NOWHERE, Pace, Poster, refused_whole
from pipeline.submit.remote import CallFailed
from pipeline.submit.watching import Watcher
from pipeline.submit.work import Work

if TYPE_CHECKING:
    from pipeline.submit.service import Service

FILE_POLL_S = 1.0
ERROR_RATE_ROWS_MIN = 100
"""Fewer answered rows than this say nothing about the whole."""


def _jitter() -> float:
    return random.uniform(0.8, 1.2)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What is put up with: a share of failed rows, and how long a batch may stay unfinished without a warning."""

    error_rate_max: float = 1.0
    warn_after_s: float = 30 * 3_600.0


class Runner:
    """One run's way through the service.

    Args:
        ledger: the run's ledger, writable.
        services: the endpoints by deployment.
        work: rendering, freezing and collecting.
        run_id: random, in every batch's metadata and file name.
        endpoint_url: the create's `endpoint`.
        pace: seconds.
        pool_rows: how many leftovers fill a file.
        clock: Unix seconds now.
        say: one line for the person who watches.
        stopping: true once a signal asked to stop; looked at between steps.
        tolerance: when to stop or to warn.
        jitter: a factor around 1, drawn anew for each wait.
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
        pool_rows: int,
        clock: Callable[[], float],
        say: Callable[[str], None],
        stopping: Callable[[], bool],
        tolerance: Tolerance | None = None,
        jitter: Callable[[], float] = _jitter,
    ) -> None:
        self._ledger, self._work, self._pace, self._pool_rows = ledger, work, pace, pool_rows
        self._clock, self._say, self._stopping = clock, say, stopping
        self._tolerance = tolerance or Tolerance()
        self._told_waiting = False
        self._lanes = Lanes(ledger, services, poll_s=pace.poll_s, clock=clock, say=say, jitter=jitter)
        self._poster = Poster(
            ledger, services, work, run_id=run_id, endpoint_url=endpoint_url, pace=pace, clock=clock, say=say
        )
        self._fetcher = Fetcher(ledger, work, poll_s=pace.poll_s, clock=clock, say=say, stopping=stopping)
        self._adopter = Adopter(ledger, work, run_id=run_id, clock=clock, say=say)
        self._watcher = Watcher(
            ledger,
            self._lanes,
            poster=self._poster,
            fetcher=self._fetcher,
            adopter=self._adopter,
            work=work,
            pace=pace,
            warn_after_s=self._tolerance.warn_after_s,
            clock=clock,
            say=say,
            stopping=stopping,
        )

    def recover(self, *, fresh: bool = False) -> None:
        """First thing after a start: an intent without an outcome is an unknown outcome.

        Args:
            fresh: the run was made by this very start, so that nothing of it can be at the service.
        """
        now = self._clock()
        for lane in self._lanes.all():
            lane.surveyed = fresh
        for batch in self._ledger.open_batches():
            if batch.state is BatchState.POSTING:
                self._ledger.move(batch, BatchState.UNSETTLED, now, "found after a restart", unsettled_at=now)
            elif batch.state is BatchState.UPLOADING:
                self._ledger.move(batch, BatchState.PLANNED, now, "upload repeated after a restart", **NOWHERE)

    @property
    def draining(self) -> bool:
        """Whether the run is being cancelled or halted: nothing new is sent, what is queued is cancelled."""
        return bool(self._ledger.get("cancelling") or self._ledger.get("halted"))

    def finished(self) -> bool:
        """Whether nothing is left to ask, to wait for or to read; while draining, nothing to wait for or to read."""
        ledger = self._ledger
        if self.draining:
            return not any(state in OPEN_STATES - {BatchState.PLANNED} for state in ledger.state_counts())
        return not (
            ledger.any_open() or ledger.unbatched(1) or ledger.leftover_rows() or self._adopter.unknown_rows
        ) and not self._lanes.unsurveyed()

    def pass_once(self) -> float:
        """One pass over what is open, then over what the scheduler allows.

        Returns:
            Seconds until the next pass is of use.

        Raises:
            ServiceError, TwoLiveCopiesError: the run cannot go on.
            ErrorRateError: too many rows fail; what was queued is cancelled and its answers are kept.
        """
        for lane in self._lanes.all():
            if self._lanes.answering(lane):
                with self._guarded(lane):
                    self._watcher.look(lane)
        for batch in self._ledger.open_batches():
            if self._stopping():
                return 0.0
            failed = batch.state is BatchState.ENDED and refused_whole(batch)
            if failed or batch.state in (BatchState.UPLOADED, BatchState.COLLECTED):
                self._step(batch)
        self._fetch()
        self._check_error_rate()
        if self.draining:
            self._drain()
        else:
            self._actions()
        self._sweep()
        return self._wait_s()

    @contextmanager
    def _guarded(self, lane: Lane) -> Iterator[None]:
        """Calls to one lane; its trouble is its own."""
        try:
            yield
            self._lanes.well(lane)
        except CallFailed as failed:
            self._lanes.failed(lane, failed)
        except DeploymentError as error:
            self._lanes.no_deployment(lane, error)

    # ---- what is open

    def _step(self, batch: Batch) -> None:
        if batch.state is BatchState.COLLECTED:
            self._work.close(batch, _batch_error(batch))
            return
        lane = self._lanes.of(batch.deployment)
        if not self._lanes.answering(lane):
            return
        if batch.state is BatchState.ENDED:  # the process ended between the two
            with self._guarded(lane):
                self._watcher.conclude(lane, batch)
        elif not self.draining:
            with self._guarded(lane):
                self._poster.post_when_processed(batch)

    def _fetch(self) -> None:
        """Results of every ended batch whose service is answering."""
        ended = [
            (batch, lane.service)
            for batch in self._ledger.open_batches()
            if batch.state is BatchState.ENDED
            and not refused_whole(batch)
            and self._lanes.answering(lane := self._lanes.of(batch.deployment))
        ]
        for batch, failed in self._fetcher.fetch(ended):
            self._lanes.failed(self._lanes.of(batch.deployment), failed)

    def _sweep(self) -> None:
        """Delete input files that nobody needs any more."""
        for file_id, deployment in self._ledger.spent_uploads():
            if self._lanes.has(deployment) and self._lanes.answering(lane := self._lanes.of(deployment)):
                with self._guarded(lane):
                    lane.service.delete_file(file_id)
                    self._ledger.upload_deleted(file_id, self._clock())

    def sweep_lost_uploads(self) -> None:
        """At the end: delete the files of uploads whose outcome never became known."""
        lost = self._ledger.lost_uploads()
        for lane in self._lanes.all():
            names = {name for name, deployment in lost if deployment == lane.name}
            if not names:
                continue
            with self._guarded(lane):
                there = {file.name: file.id for file in lane.service.input_files() if file.name in names}
                for file_id in there.values():
                    lane.service.delete_file(file_id)
                for name in names:
                    self._ledger.upload_swept(name, there.get(name), self._clock())

    # ---- stopping

    def _check_error_rate(self) -> None:
        """Halt when something is systematically wrong: results as they are in, counts of what is still running."""
        if self._tolerance.error_rate_max >= 1 or self.draining:
            return
        good = bad = 0
        if done := self._ledger.state_counts().get(BatchState.DONE):
            good, bad = done.succeeded, done.failed
        for batch in self._ledger.open_batches():
            if batch.state is BatchState.SUBMITTED:
                good, bad = good + (batch.count_completed or 0), bad + (batch.count_failed or 0)
        requests = self._ledger.totals().requests
        if good + bad < min(ERROR_RATE_ROWS_MIN, requests) or bad <= self._tolerance.error_rate_max * (good + bad):
            return
        if good + bad >= requests:
            return  # everything is answered: nothing is left to be saved
        self._say(f"{bad:,} of {good + bad:,} rows failed: cancelling what is queued")
        self._ledger.put("halted", f"{bad:,} of {good + bad:,} answered rows failed")

    def _drain(self) -> None:
        """Cancel what is queued; say so when nothing is under way any more.

        Raises:
            ErrorRateError: the run was halted, and everything that was paid for is on disk.
        """
        for batch in self._ledger.open_batches():
            if batch.state is BatchState.UPLOADED:
                self._ledger.move(batch, BatchState.PLANNED, self._clock(), "not sent any more", **NOWHERE)
            elif batch.state is BatchState.SUBMITTED and not batch.cancel_asked:
                lane = self._lanes.of(batch.deployment)
                if self._lanes.answering(lane):
                    with self._guarded(lane):
                        assert batch.remote_id
                        lane.service.cancel(batch.remote_id)
                        self._ledger.note(batch, cancel_asked=1)
        why = self._ledger.get("halted")
        if why and self.finished():
            raise ErrorRateError(
                f"Stopped: {why}, more than --max-error-rate allows. Look at them with `batchmill merge RUN "
                "--partial`; go on with a higher --max-error-rate, or correct the prompt and start a new run."
            )

    # ---- what is new

    def _actions(self) -> None:
        # Rows that may be under way already must not be sent again.
        if unsurveyed := self._lanes.unsurveyed():
            self._tell_waiting(unsurveyed)
            return
        if self._adopter.unknown_rows:
            return
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

    def _tell_waiting(self, unsurveyed: list[str]) -> None:
        """Say once which deployments hold everything up, where that is not over in a moment."""
        away = [name for name in unsurveyed if self._lanes.of(name).troubles > 1]
        if away and not self._told_waiting:
            self._told_waiting = True
            self._say(
                f"Nothing new is sent until {', '.join(away)} could be looked at for batches of this run. Where it "
                "holds none, leave it out of the deployments file and run the same command again."
            )

    def _perform(self, action: schedule.Action) -> None:
        match action:
            case schedule.PlanShard(shard, first_tokens, tokens_max):
                self._work.plan_shard(shard, first_tokens, tokens_max)
            case schedule.PoolLeftovers(tokens_max):
                self._work.pool_leftovers(tokens_max)
            case schedule.Split(number, first_tokens, tokens_max):
                self._work.split(self._ledger.batch(number), first_tokens, tokens_max)
            case schedule.Send(number, deployment):
                lane = self._lanes.of(deployment)
                batch = self._ledger.batch(number)
                if self._lanes.answering(lane) and batch.state is BatchState.PLANNED:
                    with self._guarded(lane):
                        self._poster.send(batch, deployment)

    def _state(self) -> schedule.State:
        queued = self._ledger.queued()
        rooms = []
        for known in filter(lambda room: self._lanes.has(room.name), self._ledger.deployments()):
            ours = [(state, count, tokens) for name, state, count, tokens in queued if name == known.name]
            rooms.append(
                schedule.Room(
                    name=known.name,
                    quota=known.quota,
                    queued_tokens=sum(tokens for state, _, tokens in ours if state in QUEUED_STATES),
                    queued_batches=sum(count for state, count, _ in ours if state in QUEUED_STATES),
                    waiting_files=sum(
                        count for state, count, _ in ours if state in (BatchState.UPLOADING, BatchState.UPLOADED)
                    ),
                    proven=known.proven,
                    open=known.set_aside is None and self._lanes.answering(self._lanes.of(known.name)),
                )
            )
        shards = self._ledger.unbatched(1)
        return schedule.State(
            rooms=rooms,
            planned=[
                schedule.Planned(batch.batch, batch.rows, batch.tokens, batch.not_before, batch.since)
                for batch in self._ledger.planned_batches()
            ],
            shard=(shards[0].shard, shards[0].tokens) if shards else None,
            leftover_rows=self._ledger.leftover_rows(),
            open_batches=sum(count for _, state, count, _ in queued if state in OPEN_STATES),
            pool_rows=self._pool_rows,
        )

    def _wait_s(self) -> float:
        """Seconds until something is due."""
        if self.finished():
            return 0.0
        now, times = self._clock(), []
        for lane in self._lanes.all():
            times.append(max(lane.polled_at + self._pace.poll_s, lane.retry_at) if lane.surveyed else lane.retry_at)
        for known in self._ledger.deployments():
            if known.quota.blocked_until > now:
                times.append(known.quota.blocked_until)
        for batch in self._ledger.open_batches():
            if batch.state is BatchState.UPLOADED:
                times.append(max(now + min(FILE_POLL_S, self._pace.poll_s), self._lanes.of(batch.deployment).retry_at))
            elif batch.state in (BatchState.PLANNED, BatchState.ENDED) and batch.not_before > now:
                times.append(batch.not_before)
            elif batch.state is BatchState.COLLECTED:
                return 0.0
        soonest = min((time for time in times if time > now), default=now + self._pace.poll_s)
        return min(max(soonest - now, 0.0), self._pace.poll_s)


def _batch_error(batch: Batch) -> tuple[str, str] | None:
    """Code and message when the batch as a whole failed and has no results of its own."""
    if batch.error_code == "batch_lost":
        return batch.error_code, batch.error_message or ""
    if batch.remote_status != "failed":
        return None
    return batch.error_code or "batch_failed", batch.error_message or "The service gave no reason."
