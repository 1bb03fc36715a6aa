"""Batches at the service that this ledger should know: which are ours, and how they are taken over.

A batch is ours when its input file is one of ours. One that carries our run id with a file that the ledger does not
know was made by another life of this run: found at the start, the ledger is an older copy and takes it over; appearing
later, two copies of the run are alive. Its rows are read from its input file, or from its results where that is gone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import TwoLiveCopiesError
from pipeline.ledger import Ledger
from pipeline.shard import TERMINAL_STATUSES, BatchState
from pipeline.submit.lanes import Lane
from pipeline.submit.posting import RUN_KEY
from pipeline.submit.remote import CallFailed, Effect, RemoteBatch
from pipeline.submit.work import Work

_UNACCEPTED = (BatchState.PLANNED, BatchState.UPLOADING, BatchState.UPLOADED, BatchState.UNSETTLED)


class Adopter:
    """Takes over what belongs to the run.

    Args:
        ledger: the run's ledger, writable.
        work: freezing rows.
        run_id: the run's own id.
        clock: Unix seconds now.
        say: one line for the person who watches.
    """

    def __init__(
        self, ledger: Ledger, work: Work, *, run_id: str, clock: Callable[[], float], say: Callable[[str], None]
    ) -> None:
        self._ledger, self._work, self._run_id = ledger, work, run_id
        self._clock, self._say = clock, say
        self.unknown_rows: dict[str, str] = {}
        """Batches whose rows nobody can tell yet (their id, and why): nothing new is sent while there are any."""

    def is_ours(self, lane: Lane, remote: RemoteBatch) -> bool:
        """Whether a batch with an unknown input file was made by this run."""
        if remote.metadata:
            return remote.metadata.get(RUN_KEY) == self._run_id
        if lane.surveyed or remote.input_file_id is None:
            return False
        try:  # services that return no metadata: the file's name tells
            return lane.service.file(remote.input_file_id).name.startswith(f"batchmill-{self._run_id}-")
        except CallFailed as failed:
            if failed.effect is not Effect.MISSING:
                raise
            return False

    def stranger(self, lane: Lane, remote: RemoteBatch) -> None:
        """A batch of this run that the ledger does not know.

        Raises:
            TwoLiveCopiesError: it appeared while we run.
        """
        if lane.surveyed and remote.id not in self.unknown_rows:
            raise TwoLiveCopiesError(
                f"Batch {remote.id} belongs to this run, but this run folder does not know it: another copy of the "
                "folder is at work. Stop one of them."
            )
        assert remote.input_file_id
        with tempfile.TemporaryDirectory(prefix="batchmill-") as folder:
            named = self._files_naming_rows(lane, remote, Path(folder))
            if named is None:
                self.unknown_rows[remote.id] = f"its input file is gone and it is {remote.status}"
                return
            rows = self._work.adopt(named, lane.name, remote.input_file_id, remote.id)
        self.unknown_rows.pop(remote.id, None)
        self._say(f"{remote.id} was sent by this run after this ledger was saved: its {rows:,} rows are taken over")
        if rows < (remote.total or 0):
            self._ledger.put("rows_unknown", remote.id)

    def _files_naming_rows(self, lane: Lane, remote: RemoteBatch, folder: Path) -> list[Path] | None:
        """Files whose lines carry the custom_ids of a batch; None while it may still get some."""
        assert remote.input_file_id
        if _had(lane, remote.input_file_id, folder / "input.zst"):
            return [folder / "input.zst"]
        if remote.status not in TERMINAL_STATUSES:
            return None
        results = [
            (file_id, folder / f"{index}.zst")
            for index, file_id in enumerate((remote.output_file_id, remote.error_file_id))
            if file_id
        ]
        return [path for file_id, path in results if _had(lane, file_id, path)]

    def late(self, lane: Lane, number: int, remote: RemoteBatch) -> None:
        """A batch made from an input file of ours that is not the one we are waiting for."""
        batch = self._ledger.batch(number)
        assert remote.input_file_id
        if batch.state in _UNACCEPTED:
            self._ledger.adopt(batch, lane.name, remote.input_file_id, remote.id, self._clock())
            self._say(f"{batch.name}: an earlier create has taken effect after all, as {remote.id}")
        else:
            lane.service.cancel(remote.id)  # first: were this the last thing that happens, it would be asked again
            self._work.adopt_copy(batch, lane.name, remote.input_file_id, remote.id)
            self._say(
                f"{batch.name}: the service accepted an earlier create as well, as {remote.id}; it is cancelled, "
                "and what it answered is kept"
            )


def _had(lane: Lane, file_id: str, path: Path) -> bool:
    """Download a file; False where the service no longer has it."""
    try:
        lane.service.download(file_id, path)
    except CallFailed as failed:
        if failed.effect is not Effect.MISSING:
            raise
        return False
    return True
