"""What an operator does with a run that is there: one pass, cancel, another round, clean.

Each opens the run folder, holds it, and does one thing; a run that another process holds is asked, not disturbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.cleaning import Cleaned, clean_local, clean_remote
from pipeline.console import Screen
from pipeline.errors import RunHeldError, StoppedError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.merge.output import MergeCounts
from pipeline.opening import Options, frozen_settings
from pipeline.retrying import begin_round
from pipeline.run import Run
from pipeline.signals import Signals

CANCEL_LOOK_S = 0.5


@contextmanager
def opened(folder: RunFolder, options: Options, screen: Screen) -> Iterator[Run]:
    """A run that is there, held while the block runs.

    Raises:
        RunHeldError: another process acts on it.
        StoppedError: it was stopped before it had any settings.
    """
    if frozen_settings(folder) is None:
        raise StoppedError(f"{folder.path} was stopped before it began: run it again with its data.")
    signals = Signals()
    with signals.caught(), folder.held():
        run = Run(folder, None, options, screen, signals)
        try:
            yield run
        finally:
            run.close()


def tick(path: Path, options: Options, screen: Screen) -> tuple[MergeCounts, Path, bool] | None:
    """One pass over a run; its output when that was the last one (counts, where, synthetic), else None."""
    with opened(RunFolder(path), options, screen) as run:
        run.seal()
        run.consent()
        if not run.submit(once=True):
            return None
        counts, out = run.merge()
        return counts, out, run.settings.synthetic


def cancel(
    path: Path, options: Options, screen: Screen, sleep: Callable[[float], None] = time.sleep
) -> tuple[MergeCounts, Path, bool]:
    """Cancel a run and write what it has; the process that holds the run, if there is one, is asked to do it."""
    folder, asked = RunFolder(path), False
    while True:
        try:
            with opened(folder, options, screen) as run:
                run.cancel()
                counts, out = run.merge()
                return counts, out, run.settings.synthetic
        except RunHeldError as held:
            if not asked:
                screen.say(f"{held} Asking it to cancel the run.")
                folder.cancel_request.touch()
                asked = True
            sleep(CANCEL_LOOK_S)


def retry(
    path: Path, options: Options, screen: Screen, *, codes: Sequence[str], may_pay_again: bool
) -> tuple[MergeCounts, Path, bool]:
    """Ask a finished run's failed rows again, and those that a cancelled run never sent; then merge."""
    with opened(RunFolder(path), options, screen) as run:
        run.consent()  # a run that was cancelled before anybody agreed
        rows = begin_round(
            run.folder,
            run.ledger,
            run.rounds(),
            codes=codes,
            may_pay_again=may_pay_again,
            lines_max=run.settings.lines_max,
        )
        screen.say(f"{rows:,} failed rows are asked again")
        run.submit()
        counts, out = run.merge()
        return counts, out, run.settings.synthetic


def clean(path: Path, options: Options, screen: Screen, *, remote: bool, local: bool) -> Cleaned:
    """Delete a run's files at the service, and local ones that are no longer needed."""
    folder, cleaned = RunFolder(path), Cleaned()
    with opened(folder, options, screen) as run:
        ledger: Ledger = run.ledger
        if remote:
            cleaned.remote_files = clean_remote(folder, ledger, run.settings, options)
        if local:
            cleaned.local_bytes = clean_local(folder, ledger)
    return cleaned
