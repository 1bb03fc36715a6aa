"""The ledger keeps its invariants whatever is asked of it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.ledger import ledger_of
from pipeline import ledger as ledger_module
from pipeline.books import audit_of, books_of
from pipeline.errors import LedgerError
from pipeline.ledger import Ledger
from pipeline.shard import MOVES, BatchState, Totals, Upload


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger with one span of two shards and one planned batch."""
    made = Ledger(tmp_path / "run.db", create=True)
    made.seal_span(0, 0, 30, [("000000-000000", 0, 20, 18, 2, 1800, 450), ("000000-000001", 20, 30, 10, 0, 1000, 250)])
    made.add_deployment("d", "m", "https://example.invalid", 1_000)
    made.add_batch(1, bytes=1800, tokens=450, shards=[(1, 18)])
    made.mark_batched(1)
    made.note(made.batch(1), deployment="d")
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
    assert ledger.spent_uploads() == [("file-1", "d")]
    ledger.upload_deleted("file-1", 5.0)
    assert ledger.spent_uploads() == []
    assert ledger.upload_of_file("file-1") == Upload(1, 1, "d", None)


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


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9)), max_size=30))
def test_the_sums_are_those_of_the_rows(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]) -> None:
    """Whatever moves are made, what the triggers keep is what counting every row would give."""
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "run.db", create=True)
    for span in range(2):
        shards = [
            (f"00000{span}-00000{at}", span * 20 + at * 10, span * 20 + at * 10 + 10, 9, 1, 900, 90) for at in (0, 1)
        ]
        ledger.seal_span(span, span * 20, span * 20 + 20, shards)
    for name in ("a", "b"):
        ledger.add_deployment(name, "m", "https://example.invalid", None)
    for number in range(1, 5):
        ledger.add_batch(number, bytes=900, tokens=10 * number, shards=[(number, 9)])
    for step, (number, choice) in enumerate(steps):
        batch = ledger.batch(number)
        moves = sorted(MOVES[batch.state])
        if choice < 3 or not moves:
            ledger.note(batch, count_completed=choice, count_failed=None)
        elif choice == 3 and batch.state is BatchState.DONE:
            ledger.retake(number, 1)
        else:
            new = moves[choice % len(moves)]
            values = {"deployment": "ab"[choice % 2], "posted_at": 1.0, "unsettled_at": 1.0, "remote_id": f"r{step}"}
            if new is BatchState.UPLOADING:
                ledger.note(batch, deployment=values["deployment"])
                ledger.begin_upload(ledger.batch(number), "run", 1.0)
            elif new is BatchState.DONE:
                ledger.move(batch, new, 1.0, succeeded=5, failed=2, leftover=2, prompt_tokens=7)
                ledger.place_leftover(number)
            elif batch.upload_name or new is not BatchState.POSTING:
                ledger.move(batch, new, 1.0, **values)
    db = sqlite3.connect(ledger.path)
    counted = db.execute(
        "SELECT coalesce(deployment, ''), state, count(*), sum(rows), sum(tokens), sum(succeeded),"
        " sum(failed - retaken), sum(leftover), sum(prompt_tokens), sum(completion_tokens),"
        " sum(coalesce(count_completed, 0) + coalesce(count_failed, 0)), sum(leftover * leftover_placed)"
        " FROM batch GROUP BY 1, 2 ORDER BY 1, 2"
    ).fetchall()
    assert db.execute("SELECT * FROM tally WHERE batches > 0 ORDER BY deployment, state").fetchall() == counted
    assert ledger.totals() == Totals(shards=4, rows=40, requests=36, skipped=4, bytes=3600, tokens=360)


AT_EVERY_PASS = (
    "get_meta", "shards_unbatched", "totals", "deployments", "next_batch", "leftovers", "leftover_rows",
    "uploads_spent", "state_counts", "queued", "any_open", "uploads_of_batch", "upload_of_file", "shards_of_batch",
    "adopted_batches", "shards_covering", "uploads_lost",
)  # fmt: skip
SMALL = {"meta", "deployment", "tally", "sealed"}
"""Tables whose size does not depend on the corpus."""


@pytest.mark.parametrize("name", [*AT_EVERY_PASS, "open", "planned", "one"])
def test_what_is_asked_at_every_pass_goes_through_an_index(ledger: Ledger, name: str) -> None:
    """No statement of a scheduling pass walks over all shards, batches or uploads."""
    where = {"open": "b.state NOT IN ('done', 'split')", "planned": "b.state = 'planned'", "one": "b.batch = ?"}
    statements = ledger_module._statements()
    sql = f"{statements['batches']} WHERE {where[name]} ORDER BY b.batch" if name in where else statements[name]
    db = sqlite3.connect(ledger.path)
    plan = db.execute(f"EXPLAIN QUERY PLAN {sql}", [1] * sql.count("?")).fetchall()
    whole = [step for *_, step in plan if step.startswith("SCAN") and "USING" not in step and "CONSTANT" not in step]
    assert [step for step in whole if step.split()[1] not in SMALL] == []


def test_a_pass_over_a_ledger_of_many_finished_batches_reads_the_open_ones_only(tmp_path: Path) -> None:
    """SQLite does as much work for a pass over 1,000 finished batches as for one over 40."""
    work = {}
    for count in (40, 1_000):
        ledger = ledger_of(tmp_path / f"{count}.db", finished=count, planned=3)
        steps = 0

        def tick() -> None:
            nonlocal steps
            steps += 1

        ledger._db.set_progress_handler(tick, 100)
        for ask in (
            ledger.open_batches, ledger.planned_batches, ledger.spent_uploads, ledger.state_counts, ledger.queued,
            ledger.any_open, ledger.totals, ledger.leftover_rows, lambda ledger=ledger: ledger.unbatched(1),
        ):  # fmt: skip
            ask()
        work[count] = steps
        ledger.close()
    assert work[1_000] <= work[40] + 2, "in hundreds of SQLite's instructions"


@settings(max_examples=60, deadline=None)
@given(
    counts=st.tuples(*[st.none() | st.integers(0, 10)] * 3),
    lines=st.tuples(*[st.integers(0, 1)] * 4),
    answered=st.integers(0, 10),
    used=st.tuples(*[st.none() | st.integers(0, 2)] * 2),
)
def test_a_batch_that_differs_is_among_the_doubtful_ones(
    tmp_path_factory: pytest.TempPathFactory,
    counts: tuple[Any, ...],
    lines: tuple[int, ...],
    answered: int,
    used: tuple[Any, ...],
) -> None:
    """`status` reads only batches that may differ; none that does is left out."""
    ledger = ledger_of(tmp_path_factory.mktemp("ledger") / "run.db", finished=1, planned=0)
    names = ("count_total", "count_completed", "count_failed", "unknown_lines", "doubled_lines", "malformed_lines")
    values = dict(zip((*names, "lost_rows"), (*counts, *lines), strict=True))
    for name in names[:3]:
        values[name] = None if values[name] is None else 9_990 + values[name]
    values |= dict(zip(("used_prompt_tokens", "used_completion_tokens"), used, strict=True))
    ledger.note(ledger.batch(1), answered_rows=9_990 + answered, prompt_tokens=1, completion_tokens=1, **values)
    assert audit_of(books_of(ledger.books(doubtful=True))) == audit_of(books_of(ledger.books()))
