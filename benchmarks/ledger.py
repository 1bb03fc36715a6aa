"""The ledger of a run of many shards: status, a scheduling pass, and the start of a resumed run.

All batches but a few are finished, as in the middle of a long run. Prints a line of JSON for each figure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.watch import watched
from pipeline.ledger import Ledger
from pipeline.progress import progress_of, status_of
from pipeline.shard import Batch, BatchState
from pipeline.submit.posting import Pace
from pipeline.submit.runner import Runner

ROOT = Path(__file__).resolve().parents[1]
LINES = 10_000
SPAN_SHARDS = 100
RUNS = 5


def ledger_of(path: Path, *, finished: int, planned: int, waiting: int = 0, submitted: int = 0) -> Ledger:
    """A ledger with so many finished batches, a shard each, so many planned and submitted ones, and shards without."""
    ledger = Ledger(path, create=True)
    total = finished + planned + submitted + waiting
    ledger.put("run_id", "r")
    ledger.put("sealed", "1")
    ledger.put("answered", "1")
    with ledger.transaction():
        ledger.add_deployment("d", "m", "https://example.invalid", 10**9)
        for span, first in enumerate(range(0, total, SPAN_SHARDS)):
            last = min(total, first + SPAN_SHARDS)
            shards = [
                (f"{span:06d}-{at - first:06d}", at * LINES, (at + 1) * LINES, LINES, 0, LINES * 900, LINES * 200)
                for at in range(first, last)
            ]
            ledger.seal_span(span, first * LINES, last * LINES, shards)
        for number in range(1, finished + planned + submitted + 1):
            ledger.add_batch(number, bytes=LINES * 900, tokens=LINES * 200, shards=[(number, LINES)])
            ledger.mark_batched(number)
            if number > finished + submitted:
                continue
            batch = ledger.batch(number)
            ledger.note(batch, deployment="d")
            batch = ledger.end_upload(ledger.begin_upload(ledger.batch(number), "r", 1.0), f"file-{number}", 1.0)
            batch = ledger.move(batch, BatchState.POSTING, 1.0, posted_at=1.0)
            batch = ledger.move(batch, BatchState.SUBMITTED, 1.0, remote_id=f"batch_{number}")
            if number <= finished:
                finish(ledger, batch)
    return ledger


def finish(ledger: Ledger, batch: Batch) -> None:
    """Take a submitted batch to its end, with every row answered."""
    batch = ledger.move(batch, BatchState.ENDED, 1.0)
    batch = ledger.move(batch, BatchState.COLLECTED, 1.0)
    ledger.move(
        batch, BatchState.DONE, 1.0, succeeded=LINES, answered_rows=LINES, prompt_tokens=LINES * 200,
        completion_tokens=LINES * 50, count_total=LINES, count_completed=LINES, count_failed=0,
    )  # fmt: skip
    ledger.upload_deleted(batch.file_id or "", 2.0)


def _best(ask: Callable[[], object]) -> float:
    """The median of several calls, milliseconds."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        ask()
        times.append(time.perf_counter() - start)
    return round(sorted(times)[RUNS // 2] * 1_000, 1)


class _Quiet:
    """A service at which nothing happens: what is measured is our own work."""

    def batches(self) -> list[object]:
        return []


def measure(run: Path) -> dict[str, object]:
    """Status, a pass and the first thing after a start, in milliseconds; the commands in seconds."""
    ledger = Ledger(run / "run.db")
    found: dict[str, object] = {}
    now = time.time()
    runner = Runner(
        ledger,
        {"d": _Quiet()},  # type: ignore[dict-item]
        None,  # type: ignore[arg-type]
        run_id="r",
        endpoint_url="/chat/completions",
        pace=Pace(60.0, 300.0),
        pool_rows=LINES,
        clock=lambda: now,
        say=lambda text: None,
        stopping=lambda: False,
    )
    found["recover_ms"] = _best(lambda: runner.recover(fresh=True))
    for lane in runner._lanes.all():
        lane.polled_at = now
    ledger.learn("d", set_aside="so that nothing is sent")
    found["pass_ms"] = _best(runner.pass_once)
    found["progress_ms"] = _best(lambda: progress_of(ledger))
    found["status_ms"] = _best(lambda: status_of(ledger, usage=False))
    found["status_json_ms"] = _best(lambda: status_of(ledger))
    found["ledger_mb"] = round((run / "run.db").stat().st_size / 1e6)
    ledger.close()
    command = [sys.executable, "-m", "pipeline", "status", run]
    for name, more in (("status_command_s", []), ("status_json_command_s", ["--json"])):
        seen = watched([*command, *more], cwd=run, env={"PYTHONPATH": str(ROOT)}, may_exit=(0, 4))
        found[name] = round(seen.wall_s, 2)
        found["status_peak_mb"] = round(seen.peak_bytes / 1e6)
    return found


def main() -> None:
    """Measure a small and a large ledger, and one with many active batches."""
    parser = argparse.ArgumentParser("ledger")
    parser.add_argument("--shards", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchmill-ledger-") as scratch:
        for shards in (1_000, given.shards):
            run = Path(scratch) / str(shards)
            run.mkdir()
            finished = shards // 2
            start = time.perf_counter()
            ledger_of(run / "run.db", finished=finished, planned=0, submitted=400, waiting=finished - 400).close()
            made_s = round(time.perf_counter() - start, 1)
            found = {"figure": f"{shards:,} shards, 400 active", "made_s": made_s, **measure(run)}
            print(json.dumps(found), flush=True)
            ledger = Ledger(run / "run.db")
            with ledger.transaction():
                for batch in ledger.open_batches()[20:]:
                    finish(ledger, batch)
            ledger.close()
            print(json.dumps({"figure": f"{shards:,} shards, 20 active", **measure(run)}), flush=True)


if __name__ == "__main__":
    main()
