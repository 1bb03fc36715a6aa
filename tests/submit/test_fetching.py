"""Downloads overlap with reading what has arrived."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

from benchmarks.ledger import ledger_of
from pipeline.shard import Batch, BatchState
from pipeline.submit.fetching import Fetcher
from pipeline.submit.service import Service
from pipeline.submit.work import Reading, Work


def test_a_batch_is_closed_while_a_later_one_is_still_downloaded(tmp_path: Path) -> None:
    """The second download ends only after the first batch was closed; both batches are closed, in order."""
    ledger = ledger_of(tmp_path / "run.db", finished=0, planned=0, submitted=2)
    closed: list[int] = []
    first_closed = threading.Event()

    class Slow:
        """A service whose second file waits for the first batch to be closed."""

        def download(self, file_id: str, path: Path) -> None:
            """Whole, or too late."""
            assert file_id == "o1" or first_closed.wait(30)
            path.write_bytes(b"")

    class Closing:
        """Reads nothing, closes, remembers."""

        def results_of(self, batch: Batch) -> tuple[Path, Path]:
            """Two files of its own."""
            return tmp_path / f"{batch.name}.output", tmp_path / f"{batch.name}.errors"

        def read(self, batch: Batch) -> Reading:
            """Every line is there."""
            return Reading(lines=batch.rows, lost=0)

        def close(self, batch: Batch, error: Any) -> None:
            """Remember it."""
            closed.append(batch.batch)
            first_closed.set()

    ended = [
        ledger.move(batch, BatchState.ENDED, 1.0, output_file_id=f"o{batch.batch}") for batch in ledger.open_batches()
    ]
    service = cast(Service, Slow())
    fetcher = Fetcher(
        ledger, cast(Work, Closing()), poll_s=1.0, clock=lambda: 2.0, say=lambda text: None, stopping=lambda: False
    )
    assert fetcher.fetch([(batch, service) for batch in ended]) == []
    assert closed == [1, 2]
