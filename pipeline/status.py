"""Looking at runs without holding them: status, the list of runs, and merging again."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Settings
from pipeline.console import Screen, print_json
from pipeline.errors import RunFolderError, StoppedError, UsageError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.progress import progress_of, status_of

if TYPE_CHECKING:
    from pipeline.merge.output import MergeCounts

WATCH_S = 2.0
_SAID_IN_WORDS = ("audit", "usage", "merged", "agreement")


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
            found = status_of(ledger, usage=as_json)
            if as_json:
                print_json({"run": str(run), **found})
            elif watch:
                screen.progress(progress_of(ledger))
            if not watch or found["phase"] in ("finished", "cancelled", "halted"):
                break
            time.sleep(WATCH_S)
        screen.end_progress()
        if not as_json:
            told = {name: value for name, value in found.items() if name not in _SAID_IN_WORDS}
            screen.table(f"run {run}", {name.replace("_", " "): _plain(value) for name, value in told.items()})
            say_audit(screen, found["audit"])
            screen.say(audit_line(found))
        if found["phase"] not in ("finished", "cancelled"):
            return 4
        return 3 if found["failed"] else 0
    finally:
        ledger.close()


def say_audit(screen: Screen, audit: list[dict[str, Any]]) -> None:
    """The differences between the service's counts and its results, a line each."""
    for entry in audit:
        for difference in entry["differences"]:
            screen.say(f"b{entry['batch']:06d}: {difference}")


def audit_line(found: Mapping[str, Any]) -> str:
    """The audit in a sentence: what the last merge counted, and how many batches are what the service says of them."""
    agreement, merged = found["agreement"], found["merged"]
    batches = f"{agreement['agree']:,} of {agreement['batches']:,} finished batches agree with the service's counts"
    if merged is None:
        return f"audit: nothing is merged yet; {batches}"
    parts = " + ".join(f"{merged[name]:,} {name}" for name in ("succeeded", "failed", "skipped"))
    return f"audit: {merged['rows']:,} rows = {parts}, by shard ({merged['shards']:,}) and in total; {batches}"


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
            listed.append({"run": str(path.parent), **status_of(ledger, usage=as_json)})
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


def merge_again(
    run: Path,
    *,
    out: Path | None,
    partial: bool,
    choices: Mapping[str, bool] | None = None,
    results: Path | None = None,
    say: Callable[[str], None] = print,
) -> tuple[MergeCounts, Path, bool]:
    """Write a run's output: the counts, where it is, and whether it is synthetic.

    Args:
        run: the run folder.
        out: where to; None: where the run was told to.
        partial: take what is there, the rest `pending`.
        choices: what the output is to look like.
        results: a folder with result files that somebody downloaded by hand, to be taken first.
        say: is told what was found in them.

    Raises:
        UsageError: the files are another run's, or the output cannot go there.
        StoppedError: the run is not finished and `partial` was not asked for.
    """
    import pyarrow as pa

    from pipeline.merge.output import check_out
    from pipeline.publish import publish, remember_choices
    from pipeline.taking import answered_by_hand, take_results

    if out is not None:
        check_out(out)
    folder = RunFolder(run)
    with ExitStack() as stack:
        if (not partial or results) and folder.ledger.exists():
            stack.enter_context(folder.held())
        ledger = Ledger(folder.ledger, readonly=partial and results is None)
        stack.callback(ledger.close)
        text = ledger.get("settings") if ledger.has_schema else None
        if text is None:
            raise RunFolderError(f"{run} was stopped before it began: run it again with its data.")
        settings = Settings.from_json(text)
        if results is not None:
            take_results(folder, ledger, settings, results, say)
        if not partial and not ledger.get("finished") and not answered_by_hand(ledger):
            raise StoppedError(
                f"{run} still lacks results: add their files to the folder of --results and merge again, or take what "
                "is there with --partial."
                if ledger.get("by_hand")
                else f"{run} is not finished: go on with it (batchmill run --run-dir {run}), "
                "or take what is there with --partial."
            )
        if partial and out is not None and ledger.get("out") == str(out.resolve()):
            raise UsageError(f"--partial never writes to the run's own output {out}: name another file.")
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(ledger.get("schema") or "")))
        if not partial and out is not None:
            ledger.put("out", str(out.resolve()))
        if not partial:
            remember_choices(ledger, **choices or {})
        counts, path = publish(folder, ledger, settings, schema, out=out, partial=partial, choices=choices or {})
        return counts, path, settings.synthetic
