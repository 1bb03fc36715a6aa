"""The ledger keeps its invariants whatever is asked of it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pipeline.errors import LedgerError
from pipeline.ledger import Ledger
from pipeline.shard import MOVES, BatchState


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger with one span of two shards and one planned batch."""
    made = Ledger(tmp_path / "run.db", create=True)
    made.seal_span(0, 0, 30, [("000000-000000", 0, 20, 18, 2, 1800, 450), ("000000-000001", 20, 30, 10, 0, 1000, 250)])
    made.add_deployment("d", "https://example.invalid", 1_000)
    made.add_batch(1, "d", bytes=1800, tokens=450, shards=[(1, 18)])
    made.mark_batched(1)
    return made


def test_a_span_is_sealed_whole_or_not_at_all(ledger: Ledger) -> None:
    """A shard that contradicts the schema takes its whole span back."""
    with pytest.raises(sqlite3.IntegrityError), ledger.transaction():
        ledger.seal_span(1, 30, 40, [("000001-000000", 30, 35, 5, 0, 1, 1), ("000001-000001", 35, 40, 9, 9, 1, 1)])
    assert ledger.next_span() == (1, 30)
    assert ledger.totals().shards == 2


def test_only_the_moves_of_the_table_are_made(ledger: Ledger) -> None:
    """An illegal move raises, changes nothing and leaves no transition."""
    batch = ledger.batch(1)
    for state in set(BatchState) - MOVES[BatchState.PLANNED]:
        with pytest.raises(LedgerError):
            ledger.move(batch, state, 1.0)
    assert ledger.batch(1).state is BatchState.PLANNED
    assert list(ledger.transitions()) == []


def test_a_stale_view_of_a_batch_moves_nothing(ledger: Ledger) -> None:
    """A batch that somebody else moved is not moved again from where it was."""
    stale = ledger.batch(1)
    ledger.begin_upload(stale, "run", 1.0)
    with pytest.raises(LedgerError, match="another process"):
        ledger.begin_upload(stale, "run", 2.0)


def test_every_upload_has_a_name_of_its_own(ledger: Ledger) -> None:
    """A repeated upload never reuses a file name, and the spent file is known for deletion."""
    first = ledger.end_upload(ledger.begin_upload(ledger.batch(1), "run", 1.0), "file-1", 2.0)
    again = ledger.begin_upload(ledger.move(first, BatchState.PLANNED, 3.0), "run", 4.0)
    assert first.upload_name != again.upload_name
    assert ledger.spent_uploads() == ["file-1"]
    ledger.upload_deleted("file-1", 5.0)
    assert ledger.spent_uploads() == []
    assert ledger.batch_of_file("file-1") == 1


def test_a_batch_is_done_only_when_every_row_is_accounted_for(ledger: Ledger) -> None:
    """succeeded + failed + leftover must be the batch's rows: conservation, in the schema."""
    batch = ledger.end_upload(ledger.begin_upload(ledger.batch(1), "run", 1.0), "file-1", 2.0)
    batch = ledger.move(batch, BatchState.POSTING, 3.0, posted_at=3.0)
    batch = ledger.move(batch, BatchState.SUBMITTED, 4.0, remote_id="batch_1")
    batch = ledger.move(ledger.move(batch, BatchState.ENDED, 5.0), BatchState.COLLECTED, 6.0)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.move(batch, BatchState.DONE, 7.0, succeeded=17)
    done = ledger.move(batch, BatchState.DONE, 7.0, succeeded=15, leftover=3)
    assert done.state is BatchState.DONE
    assert ledger.leftovers() == [(1, 3)]
    ledger.place_leftover(1)
    assert ledger.leftovers() == []


def test_no_shard_and_no_leftover_is_planned_twice(ledger: Ledger) -> None:
    """A second plan of the same rows is refused."""
    with pytest.raises(LedgerError):
        ledger.mark_batched(1)
    with pytest.raises(LedgerError):
        ledger.place_leftover(1) or ledger.place_leftover(1)


def test_transitions_cannot_be_deleted(ledger: Ledger) -> None:
    """The history is append-only, by the schema."""
    ledger.begin_upload(ledger.batch(1), "run", 1.0)
    with pytest.raises(sqlite3.IntegrityError, match="never deleted"):
        ledger._db.execute("DELETE FROM transition")


def test_another_version_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    """A ledger that is not ours is named in one sentence."""
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(LedgerError, match="version 99"):
        Ledger(other)
    (tmp_path / "text.db").write_text("this is no database, but long enough to be read as one by mistake" * 20)
    with pytest.raises(LedgerError, match="not a ledger"):
        Ledger(tmp_path / "text.db")
    with pytest.raises(LedgerError, match="holds no run"):
        Ledger(tmp_path / "absent" / "run.db")
