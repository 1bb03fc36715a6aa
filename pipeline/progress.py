"""Where a run stands, in numbers, from its ledger alone."""

from __future__ import annotations

from typing import Any

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
        open=totals.requests - answered - failed,
        batches={
            state.value: counts[state].batches for state in BatchState if state in counts and state in OPEN_STATES
        },
    )


def status_of(ledger: Ledger) -> dict[str, Any]:
    """Everything `status --json` says; counts of rows, batches and tokens."""
    totals, counts, progress = ledger.totals(), ledger.state_counts(), progress_of(ledger)
    phase = "sealing"
    if ledger.get("sealed"):
        phase = "finished" if ledger.get("finished") else "by hand" if ledger.get("by_hand") else "submitting"
    return {
        "phase": phase,
        "rows": totals.rows,
        "requests": totals.requests,
        "skipped": totals.skipped,
        "succeeded": progress.answered,
        "failed": progress.failed,
        "pending": progress.open,
        "shards": totals.shards,
        "estimated_tokens": totals.tokens,
        "prompt_tokens": sum(count.prompt_tokens for count in counts.values()),
        "completion_tokens": sum(count.completion_tokens for count in counts.values()),
        "batches": {state.value: counts[state].batches for state in BatchState if state in counts},
        "deployments": [
            {"name": known.name, "limit_tokens": known.limit_tokens, "set_aside": known.set_aside}
            for known in ledger.deployments()
        ],
        "out": ledger.get("out"),
    }
