"""How long a command takes that does next to nothing, and what it imports."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.ledger import ledger_of
from benchmarks.watch import watched

ROOT = Path(__file__).resolve().parents[1]
TURNS = 7


def main() -> None:
    """Print a line of JSON for each turn of each command."""
    with tempfile.TemporaryDirectory(prefix="batchmill-start-") as scratch:
        (Path(scratch) / "run").mkdir()
        ledger_of(Path(scratch) / "run" / "run.db", finished=10, planned=2).close()
        for _ in range(TURNS):
            for words in (("--help",), ("status", "run")):
                command = [sys.executable, "-m", "pipeline", *words]
                seen = watched(command, cwd=Path(scratch), env={"PYTHONPATH": str(ROOT)}, may_exit=(0, 4))
                found = {"figure": words[0], "wall_s": round(seen.wall_s, 3), "cpu_s": round(seen.cpu_s, 3)}
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
