"""What a corpus of a billion rows takes: time under given quotas, disk, files and calls; simulated, nothing is sent.

The scheduler and the rules of the quota are the real ones; the service is modelled as in tests/simulation. Time is
virtual, so that days take seconds. Prints a line of JSON for each case.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass

from pipeline.config import QUOTA_SHARE, shard_tokens_max
from tests.simulation.model import POLL_S, Deployment, Simulation

LINE_BYTES = 850
LINES_MAX, BYTES_MAX = 100_000, 200_000_000
TURNAROUND_S = 4 * 3_600.0
PAGE_BATCHES = 100
"""Batches in one page of a listing."""

ROW_FILE_BYTES, RESULT_BYTES, OUTCOME_BYTES, OUTPUT_BYTES = 259, 49, 46, 148
"""Bytes a row on disk, as the end-to-end benchmark leaves them (100,000 rows of 600 bytes, short answers). Its texts
are made up and compress well."""


@dataclass(frozen=True, slots=True)
class Case:
    """A corpus and what it is sent through; tokens of the quota for each deployment."""

    words: str
    rows: int
    row_tokens: int
    quotas: tuple[int, ...]


MILLIARD = 1_000_000_000
CASES = (
    Case("10 million rows, 1 deployment of 5 billion tokens", 10_000_000, 200, (5_000_000_000,)),
    Case("100 million rows, 1 deployment of 5 billion tokens", 100_000_000, 200, (5_000_000_000,)),
    Case("1 billion rows, 1 deployment of 5 billion tokens", MILLIARD, 200, (5_000_000_000,)),
    Case("1 billion rows, 4 deployments of 5 billion tokens", MILLIARD, 200, (5_000_000_000,) * 4),
    Case("10 million rows, 1 deployment of 50 million tokens", 10_000_000, 200, (50_000_000,)),
)


def simulated(case: Case) -> dict[str, object]:
    """One case to its end."""
    cap = shard_tokens_max(min(case.quotas))
    lines = min(LINES_MAX, BYTES_MAX // LINE_BYTES, (cap or 10**18) // case.row_tokens)
    shards = math.ceil(case.rows / lines)
    deployments = [
        Deployment(f"d{number}", lambda now, limit=limit: limit, turnaround_s=TURNAROUND_S)  # type: ignore[misc]
        for number, limit in enumerate(case.quotas)
    ]
    known = {f"d{number}": limit for number, limit in enumerate(case.quotas)}
    run = Simulation(deployments, [lines * case.row_tokens] * shards, known)
    start = time.perf_counter()
    makespan_s = run.run(days=20_000)
    held = min(len(case.quotas) * max(1, int(min(case.quotas) * QUOTA_SHARE) // (lines * case.row_tokens)), shards)
    pages = math.ceil(held / len(case.quotas) / PAGE_BATCHES)
    return {
        "figure": case.words,
        "rows": case.rows,
        "days": round(makespan_s / 86_400, 1),
        "shards": shards,
        "batches": run.batches,
        "refusals": len(run.refusals),
        "active_batches": held,
        "list_calls": int(makespan_s / POLL_S) * len(case.quotas) * pages,
        "row_files_gb": round(case.rows * ROW_FILE_BYTES / 1e9),
        "results_gb": round(case.rows * RESULT_BYTES / 1e9),
        "outcomes_gb": round(case.rows * OUTCOME_BYTES / 1e9),
        "output_gb": round(case.rows * OUTPUT_BYTES / 1e9),
        "files": shards + 4 * run.batches,
        "simulated_in_s": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Simulate every case."""
    argparse.ArgumentParser("scale").parse_args()
    for case in CASES:
        print(json.dumps(simulated(case)), flush=True)


if __name__ == "__main__":
    main()
