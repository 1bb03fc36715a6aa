"""Results to disk, and the doubts to be settled before a row counts as lost.

Several downloads at a time, each whole or not there. A row in neither file is only believed to be lost after both
files were fetched afresh and agree; where the service's own counts promise more lines than were read, they are waited
for. Knows nothing of what the lines mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.ledger import Ledger
from pipeline.shard import Batch, BatchState
from pipeline.submit.remote import CallFailed, Effect
from pipeline.submit.work import Work

if TYPE_CHECKING:
    from pipeline.submit.service import Service

DOWNLOADS_AT_ONCE = 4
FETCHES_MAX = 6
"""How often results that the service's counts contradict are fetched afresh before they are believed."""

FETCH_WAIT_S_MAX = 600.0
LOST_AFTER_S = 3_600.0
"""How long the service may not know a batch or a result file (404) before it is lost (design, *Outcomes*)."""


class Fetcher:
    """Brings batches from `ended` to `done`.

    Args:
        ledger: the run's ledger, writable.
        work: reading and closing.
        poll_s: seconds between polls.
        clock: Unix seconds now.
        say: one line for the person who watches.
        stopping: true once a signal asked to stop; looked at between downloads.
    """

    def __init__(
        self,
        ledger: Ledger,
        work: Work,
        *,
        poll_s: float,
        clock: Callable[[], float],
        say: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._ledger, self._work, self._poll_s, self._clock, self._say = ledger, work, poll_s, clock, say
        self._stopping = stopping

    def fetch(self, ended: Sequence[tuple[Batch, Service]]) -> list[tuple[Batch, CallFailed]]:
        """Download what batches have, several at a time, then close each that is beyond doubt.

        Returns:
            The batches whose service failed, with the failure.
        """
        due = [(batch, service) for batch, service in ended if batch.not_before <= self._clock()]
        troubles: list[tuple[Batch, CallFailed]] = []
        for start in range(0, len(due), DOWNLOADS_AT_ONCE):
            if self._stopping():
                break
            self._fetch_some(due[start : start + DOWNLOADS_AT_ONCE], troubles)
        return troubles

    def _fetch_some(self, due: Sequence[tuple[Batch, Service]], troubles: list[tuple[Batch, CallFailed]]) -> None:
        for (batch, service), failed in zip(due, self._downloads(due), strict=True):
            if failed is None:
                if batch.missing_since is not None:
                    self._ledger.note(batch, missing_since=None)
                self._close(batch, service, troubles)
            elif failed.effect is Effect.MISSING:
                self._missing_results(batch)
            else:
                troubles.append((batch, failed))

    def _downloads(self, due: Sequence[tuple[Batch, Service]]) -> Iterator[CallFailed | None]:
        """How each download went, in order: what has arrived is read while later ones are still on their way."""
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            yield from pool.map(lambda pair: self._downloaded(*pair), due)

    def _downloaded(self, batch: Batch, service: Service) -> CallFailed | None:
        """Both files of a batch to disk; runs in a thread and touches nothing but files."""
        trouble: CallFailed | None = None
        file_ids = (batch.output_file_id, batch.error_file_id)
        for file_id, path in zip(file_ids, self._work.results_of(batch), strict=True):
            try:
                if file_id and not path.exists():
                    service.download(file_id, path)
            except CallFailed as failed:  # the other file may be had all the same
                trouble = failed
                if failed.effect is not Effect.MISSING:
                    break
        return trouble

    def _close(self, batch: Batch, service: Service, troubles: list[tuple[Batch, CallFailed]]) -> None:
        reading = self._work.read(batch)
        if batch.remote_status == "failed":  # late, with answers: they are kept, its other rows fail with its code
            batch = self._ledger.move(batch, BatchState.COLLECTED, self._clock())
            self._work.close(batch, (batch.error_code or "batch_failed", batch.error_message or ""))
            return
        if reading.lost or batch.claimed_lines > reading.lines:
            try:
                if not self._beyond_doubt(batch, service, reading.lines):
                    return
            except CallFailed as failed:
                if failed.effect is Effect.MISSING:
                    self._missing_results(batch)
                else:
                    troubles.append((batch, failed))
                return
            batch = self._ledger.batch(batch.batch)
        self._finish(batch)

    def _finish(self, batch: Batch) -> None:
        batch = self._ledger.move(batch, BatchState.COLLECTED, self._clock())
        self._work.close(batch, None)

    def _beyond_doubt(self, batch: Batch, service: Service, lines: int) -> bool:
        """Whether rows may count as lost: both files fetched afresh agree, and no lines are promised any more."""
        now = self._clock()
        if batch.fetches == 0 and batch.claimed_lines > lines:
            self._wait(batch, f"its counts promise {batch.claimed_lines:,} lines, {lines:,} were read")
            return False
        same = self._fetched_afresh(batch, service)
        batch = self._ledger.batch(batch.batch)
        lines = self._work.read(batch).lines
        promised = batch.claimed_lines > lines and batch.fetches < FETCHES_MAX
        if same and not promised:
            return True
        if batch.fetches >= 2 * FETCHES_MAX:
            self._say(f"{batch.name}: its result files keep changing; the last ones are taken")
            return True
        self._ledger.note(batch, fetches=batch.fetches + 1, not_before=now + self._wait_s(batch))
        return False

    def _wait(self, batch: Batch, why: str) -> None:
        self._say(f"{batch.name}: {why}; they are fetched again")
        self._ledger.note(batch, fetches=batch.fetches + 1, not_before=self._clock() + self._wait_s(batch))

    def _wait_s(self, batch: Batch) -> float:
        return min(self._poll_s * 2.0**batch.fetches, FETCH_WAIT_S_MAX)

    def _fetched_afresh(self, batch: Batch, service: Service) -> bool:
        """Fetch the batch and both its files again and put them in place; whether they say what the others said."""
        assert batch.remote_id
        remote = service.batch(batch.remote_id)
        facts = remote.counted
        files = {
            "output_file_id": remote.output_file_id or batch.output_file_id,
            "error_file_id": remote.error_file_id or batch.error_file_id,
        }
        same = True
        for file_id, path in zip(files.values(), self._work.results_of(batch), strict=True):
            if not file_id:
                continue
            again = path.with_name(path.name + ".again")
            service.download(file_id, again)
            same = same and path.exists() and _same_content(path, again)
            again.replace(path)
        self._ledger.note(batch, **facts, **files, fetches=batch.fetches + 1)
        return same

    def _missing_results(self, batch: Batch) -> None:
        """A result file that the service does not know: lost after an hour of asking, not before."""
        now = self._clock()
        since = batch.missing_since or now
        if now - since < LOST_AFTER_S:
            self._ledger.note(batch, missing_since=since, not_before=now + self._poll_s)
            return
        self.lose(batch, f"The result file of {batch.remote_id} has not been there for an hour.")

    def lose(self, batch: Batch, message: str) -> None:
        """Give an ended batch up: what is on disk of its answers counts; only `retry` asks its other rows again."""
        self._say(f"{batch.name} is lost: {message}")
        batch = self._ledger.move(
            batch, BatchState.COLLECTED, self._clock(), "lost", error_code="batch_lost", error_message=message
        )
        self._work.close(batch, ("batch_lost", message))


def _same_content(one: Path, other: Path) -> bool:
    """Whether two compressed files hold the same bytes."""
    with (
        pa.input_stream(str(one), compression="zstd") as left,
        pa.input_stream(str(other), compression="zstd") as right,
    ):
        while True:
            a, b = left.read(1 << 20), right.read(1 << 20)
            if a != b:
                return False
            if not a:
                return True
