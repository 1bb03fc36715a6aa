"""Where a run stands, in numbers, from its ledger alone."""

from __future__ import annotations

import json
from typing import Any

from pipeline.books import agreement_of, audit_of, books_of, usage_of
from pipeline.console import Progress
from pipeline.ledger import Ledger
from pipeline.shard import OPEN_STATES, BatchState


def progress_of(ledger: Ledger) -> Progress:
    """The progress line's numbers."""
    totals, counts = ledger.totals(), ledger.state_counts()
    done = counts.get(BatchState.DONE)
    answered, failed = (done.succeeded, done.failed) if done else (0, 0)
    return Progress(
        requests=totals.requests,
        answered=answered,
        failed=failed,
        open=max(0, totals.requests - answered - failed),  # an adopted copy of a batch may answer rows twice
        batches={
            state.value: counts[state].batches for state in BatchState if state in counts and state in OPEN_STATES
        },
    )


def status_of(ledger: Ledger, *, usage: bool = True) -> dict[str, Any]:
    """Everything `status --json` says; counts of rows, batches and tokens.

    Args:
        ledger: the run's.
        usage: with what each batch used, which reads a row for every batch.
    """
    totals, counts, progress = ledger.totals(), ledger.state_counts(), progress_of(ledger)
    whole = usage or bool(ledger.get("keep_invalid"))
    books = books_of(ledger.books(doubtful=not whole))
    audit = audit_of(books)
    kept = sum(book.invalid for book in books) if ledger.get("keep_invalid") else 0
    phase = "sealing"
    if ledger.get("sealed"):
        phase = "by hand" if ledger.get("by_hand") else "submitting"
        for key, name in (("halted", "halted"), ("cancelling", "cancelling"), ("finished", "finished")):
            phase = name if ledger.get(key) else phase
        phase = "cancelled" if ledger.get("cancelled") else phase
    return {
        "phase": phase,
        "rows": totals.rows,
        "requests": totals.requests,
        "skipped": totals.skipped,
        "succeeded": progress.answered + kept,
        "failed": progress.failed - kept,
        "pending": progress.open,
        "shards": totals.shards,
        "estimated_tokens": totals.tokens,
        "prompt_tokens": sum(count.prompt_tokens for count in counts.values()),
        "completion_tokens": sum(count.completion_tokens for count in counts.values()),
        "batches": {state.value: counts[state].batches for state in BatchState if state in counts},
        "deployments": [
            {"name": known.name, "limit_tokens": known.quota.limit_tokens, "set_aside": known.set_aside}
            for known in ledger.deployments()
        ],
        "out": ledger.get("out"),
        "merged": json.loads(ledger.get("merged") or "null"),
        "agreement": agreement_of(audit, counts[BatchState.DONE].batches if BatchState.DONE in counts else 0),
        "audit": audit,
        **({"usage": usage_of(books)} if usage else {}),
    }
