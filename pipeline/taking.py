"""Taking results that were downloaded by hand into a run: the ledger's side of `merge --results`.

Which batches they may belong to, when a batch counts as answered, and what is still missing. The reading of the files
is `merge.by_hand`'s.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import Settings
from pipeline.errors import UsageError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.merge.by_hand import KnownBatch, add_lines, sort_results, without_lines_of
from pipeline.merge.collect import OutcomeSummary, collect_outcomes
from pipeline.results import gives_several
from pipeline.shard import Batch, BatchState

MAX_ATTEMPTS = 3
_TAKES = (BatchState.PLANNED, BatchState.SUBMITTED, BatchState.ENDED, BatchState.COLLECTED)
"""States in which a batch may be answered from files; in the others its create is under way, or it is over."""

_WAY = {
    BatchState.PLANNED: (BatchState.COLLECTED,),
    BatchState.SUBMITTED: (BatchState.ENDED, BatchState.COLLECTED),
    BatchState.ENDED: (BatchState.COLLECTED,),
    BatchState.COLLECTED: (),
}


def take_results(
    folder: RunFolder, ledger: Ledger, settings: Settings, results: Path, say: Callable[[str], None]
) -> None:
    """Take every result in a folder that belongs to the run; batches with a result for every row are done.

    Args:
        folder: the run folder, held.
        ledger: its ledger, writable.
        settings: as frozen.
        results: the folder with the files.
        say: is told what was found and what is missing.

    Raises:
        UsageError: no such folder, no results in it, or another run's; nothing was taken.
    """
    if not results.is_dir():
        raise UsageError(f"--results {results} is no folder: name the folder with the downloaded files.")
    batches = [batch for batch in ledger.batches() if batch.state is not BatchState.SPLIT]
    known = [KnownBatch(one.name, folder.batch_rows(one.name), one.state is BatchState.DONE) for one in batches]
    earlier = [path for one in batches if one.state is BatchState.DONE for path in folder.results(one.name)]
    with tempfile.TemporaryDirectory(prefix="taking.", dir=folder.path) as scratch:
        prefix = None if settings.id_column else settings.id_prefix
        found = sort_results(results, known, Path(scratch), kind=settings.kind, id_prefix=prefix)
        if not found.files:
            raise UsageError(f"--results {results} holds no result lines: name the folder with the downloaded files.")
        for name in found.left:
            say(f"{name}: no results in it; left")
        if found.unknown:
            say(f"{found.unknown:,} result lines belong to no row that was asked; left")
        for batch in batches:
            lines = found.lines.get(batch.name)
            if lines is None or (batch.kind != "first" and not without_lines_of(lines, earlier)):
                continue
            _take(folder, ledger, settings, batch=batch, lines=lines, say=say)
    _say_missing(ledger, say)
    if not ledger.unbatched(1) and not ledger.open_batches() and not ledger.leftovers():
        ledger.put("finished", "1")


def _take(
    folder: RunFolder, ledger: Ledger, settings: Settings, *, batch: Batch, lines: Path, say: Callable[[str], None]
) -> None:
    """Take one batch's lines."""
    if batch.state not in _TAKES:
        over = batch.state is BatchState.DONE
        say(f"{batch.name}: its results are in already; left" if over else f"{batch.name} is being created; left")
        return
    ours = batch.state in (BatchState.PLANNED, BatchState.COLLECTED)
    result = folder.results(batch.name)[0] if ours else lines
    if ours:
        add_lines(result, lines)
    summary = _collected(folder, settings, batch, result, retry_invalid=bool(ledger.get("retry_invalid")))
    if summary.lost and not ours:
        folder.outcomes(batch.name).unlink(missing_ok=True)
        say(f"{batch.name}: {summary.lost:,} of {batch.rows:,} rows are in no file; the service will be asked instead")
        return
    if not ours:
        add_lines(folder.results(batch.name)[0], lines)
    now = time.time()
    for state in _WAY[batch.state]:
        batch = ledger.move(batch, state, now, "taken from files")
    if not summary.lost:
        ledger.move(batch, BatchState.DONE, now, "taken from files", **_counts(summary))
    else:
        say(f"{batch.name}: {summary.lost:,} of {batch.rows:,} rows have no result yet")


def _collected(
    folder: RunFolder, settings: Settings, batch: Batch, result: Path, *, retry_invalid: bool
) -> OutcomeSummary:
    return collect_outcomes(
        batch_rows=folder.batch_rows(batch.name),
        result_files=[result],
        kind=settings.kind,
        schema=settings.answer,
        end_status="completed",
        batch_error=None,
        max_attempts=MAX_ATTEMPTS,
        out=folder.outcomes(batch.name),
        several=gives_several(settings.kind, settings.body),
        retry_invalid=retry_invalid,
        aside=folder.path / "results" / f"{batch.name}.unknown.jsonl",
    )


def _counts(summary: OutcomeSummary) -> dict[str, Any]:
    return {
        "succeeded": summary.succeeded,
        "failed": summary.failed,
        "leftover": summary.retry,
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.completion_tokens,
        "cached_tokens": summary.cached_tokens,
        "reasoning_tokens": summary.reasoning_tokens,
        "unknown_lines": summary.unknown,
        "doubled_lines": summary.doubled,
        "malformed_lines": summary.malformed,
        "lost_rows": summary.lost,
        "answered_rows": summary.answered,
        "invalid_answers": summary.invalid,
    }


def _say_missing(ledger: Ledger, say: Callable[[str], None]) -> None:
    """Name the batches that have no result file at all."""
    for batch in ledger.open_batches():
        if batch.state is BatchState.PLANNED:
            say(f"{batch.name}: none of its {batch.rows:,} rows has a result")


def answered_by_hand(ledger: Ledger) -> bool:
    """Whether every batch of a run that was built for upload by hand has its results."""
    return bool(ledger.get("by_hand")) and not ledger.unbatched(1) and not ledger.open_batches()
