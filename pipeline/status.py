"""Looking at runs without holding them: status, the list of runs, and merging again."""

from __future__ import annotations

import base64
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Settings
from pipeline.console import Screen, print_json
from pipeline.errors import RunFolderError, StoppedError, UsageError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.progress import progress_of, status_of

if TYPE_CHECKING:
    from pipeline.merge.output import MergeCounts

WATCH_S = 2.0


def newest(runs: Path) -> Path:
    """The run in `runs` whose ledger was written last.

    Raises:
        UsageError: there is none.
    """
    found = sorted(runs.glob("*/run.db"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(f"There is no run in {runs}/: name a run folder.")
    return found[-1].parent


def show(run: Path, screen: Screen, *, as_json: bool, watch: bool) -> int:
    """Show where a run stands; exit code 0, 3 or 4 as for `run`."""
    ledger = Ledger(RunFolder(run).ledger, readonly=True)
    try:
        if not ledger.has_schema:
            raise StoppedError(f"{run} was stopped before it began: run it again with its data.")
        while True:
            found = status_of(ledger)
            if as_json:
                print_json({"run": str(run), **found})
            elif watch:
                screen.progress(progress_of(ledger))
            if not watch or found["phase"] == "finished":
                break
            time.sleep(WATCH_S)
        screen.end_progress()
        if not as_json:
            screen.table(f"run {run}", {name.replace("_", " "): _plain(value) for name, value in found.items()})
        if found["phase"] != "finished":
            return 4
        return 3 if found["failed"] else 0
    finally:
        ledger.close()


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(f"{entry['name']} ({entry['limit_tokens'] or 'no known limit'})" for entry in value) or "-"
    return "-" if value is None else value


def list_runs(runs: Path, screen: Screen, *, as_json: bool) -> None:
    """One line a run."""
    listed = []
    for path in sorted(runs.glob("*/run.db")):
        ledger = Ledger(path, readonly=True)
        if ledger.has_schema:
            listed.append({"run": str(path.parent), **status_of(ledger)})
        ledger.close()
    if as_json:
        print_json(listed)
        return
    for found in listed:
        screen.say(
            f"{found['run']}  {found['phase']}  {found['succeeded']:,} of {found['requests']:,} answered, "
            f"{found['failed']:,} failed"
        )
    if not listed:
        screen.say(f"no runs in {runs}/")


def merge_again(run: Path, *, out: Path | None, partial: bool) -> tuple[MergeCounts, Path, bool]:
    """Write a run's output: the counts, where it is, and whether it is synthetic.

    Raises:
        StoppedError: the run is not finished and `partial` was not asked for.
    """
    import pyarrow as pa

    from pipeline.merge.output import check_out
    from pipeline.publish import publish

    if out is not None:
        check_out(out)
    folder = RunFolder(run)
    with ExitStack() as stack:
        if not partial and folder.ledger.exists():
            stack.enter_context(folder.held())
        ledger = Ledger(folder.ledger, readonly=partial)
        stack.callback(ledger.close)
        text = ledger.get("settings") if ledger.has_schema else None
        if text is None:
            raise RunFolderError(f"{run} was stopped before it began: run it again with its data.")
        if not partial and not ledger.get("finished"):
            raise StoppedError(
                f"{run} is not finished: go on with it (batchmill run --run-dir {run}), "
                "or take what is there with --partial."
            )
        if partial and out is not None and ledger.get("out") == str(out.resolve()):
            raise UsageError(f"--partial never writes to the run's own output {out}: name another file.")
        settings = Settings.from_json(text)
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(ledger.get("schema") or "")))
        if not partial and out is not None:
            ledger.put("out", str(out.resolve()))
        counts, path = publish(folder, ledger, settings, schema, out=out, partial=partial)
        return counts, path, settings.synthetic
