"""The whole run over the embedded emulator: seal, submit, collect, merge; times by phase, and the client's memory.

python -m benchmarks.end_to_end [--rows 1000000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.corpus import PROMPT, write_corpus
from benchmarks.watch import watched

ROOT = Path(__file__).resolve().parents[1]


def phase_of(ledger: Path) -> str | None:
    """The last phase that a run has finished."""
    try:
        with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=0.1) as db:
            keys = {row[0] for row in db.execute("SELECT key FROM meta")}
    except sqlite3.Error:
        return None
    return "answered" if "finished" in keys else "sealed" if "sealed" in keys else None


def measure(folder: Path, rows: int) -> dict[str, object]:
    """Run `rows` rows end to end in `folder`."""
    data, prompt, out = folder / f"corpus-{rows}.parquet", folder / "prompt.yaml", folder / f"out-{rows}.parquet"
    if not data.exists():
        write_corpus(data, rows)
    prompt.write_text(PROMPT)
    run = folder / f"run-{rows}"
    seen = watched(
        [sys.executable, "-m", "pipeline", "run", data, "--prompt", prompt, "--service", "emulator",
         "--run-dir", run, "--out", out],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        mark=lambda: phase_of(run / "run.db"),
    )  # fmt: skip
    output = pq.ParquetFile(out)
    assert output.metadata.num_rows == rows
    (sealed_s, sealing_peak), (answered_s, submitting_peak) = seen.marks["sealed"], seen.marks["answered"]
    return {
        "rows": rows,
        "seal_s": round(sealed_s, 1),
        "submit_and_collect_s": round(answered_s - sealed_s, 1),
        "merge_s": round(seen.wall_s - answered_s, 1),
        "wall_s": round(seen.wall_s, 1),
        "cpu_s": round(seen.cpu_s, 1),
        "peak_mb": round(seen.peak_bytes / 1e6),
        "peak_mb_sealing": round(sealing_peak / 1e6),
        "peak_mb_submitting": round(submitting_peak / 1e6),
        "input_mb": round(os.path.getsize(data) / 1e6),
    }


def main() -> None:
    """Measure 100,000 rows and the number asked for; print a line of JSON each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        for rows in sorted({min(100_000, given.rows), given.rows}):
            sys.stdout.write(json.dumps(measure(Path(scratch), rows)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
