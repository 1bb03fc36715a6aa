"""Everything a person sees: lines, the live display, tables, the question before money is spent.

A terminal gets one live line; a pipe gets plain lines. All of it goes to stderr, so that stdout holds only what was
asked for (`--json`). Knows the numbers it is given and nothing else.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.config import ServiceKind
from pipeline.errors import InterruptedBySignal

PLAIN_EVERY_S = 30.0
"""A pipe hears of progress at most this often, seconds; what happens to a batch is told at once."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: rows sealed to be asked, answered, failed, still open; batches by what they are doing."""

    requests: int
    answered: int
    failed: int
    open: int
    batches: Mapping[str, int]
    note: str = ""

    def line(self) -> str:
        """The one line of progress."""
        share = (self.answered + self.failed) / self.requests if self.requests else 1.0
        states = ", ".join(f"{count} {state}" for state, count in self.batches.items() if count)
        text = f"{share:4.0%}  {self.answered:,} of {self.requests:,} answered"
        if self.failed:
            text += f", {self.failed:,} failed"
        if states:
            text += f"  [{states}]"
        return text + (f"  {self.note}" if self.note else "")


class Screen:
    """What the command prints to.

    Args:
        quiet: print nothing but errors and questions (`--json`).
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet
        self._live: Live | None = None
        self._told_at = float("-inf")

    @property
    def interactive(self) -> bool:
        """Whether somebody can be asked."""
        return sys.stdin is not None and sys.stdin.isatty() and self._console.is_terminal

    def say(self, text: str) -> None:
        """One line."""
        if not self._quiet:
            self._console.print(Text(text))

    def error(self, text: str) -> None:
        """One sentence that ends the command."""
        self._console.print(Text(f"batchmill: {text}", style="bold red" if self._console.is_terminal else ""))

    def progress(self, progress: Progress) -> None:
        """Show where the run stands."""
        if self._quiet:
            return
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(Text(progress.line()))
        elif time.monotonic() - self._told_at >= PLAIN_EVERY_S:
            self._told_at = time.monotonic()
            self.say(progress.line())

    def end_progress(self) -> None:
        """Take the live line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def table(self, title: str, rows: Mapping[str, Any]) -> None:
        """Names and values."""
        if self._quiet:
            return
        table = Table(
            title=title, title_justify="left", show_header=False, box=None, pad_edge=False, title_style="bold"
        )
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(
                name, Text(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
            )
        self._console.print(table)

    def ask(self, question: str) -> bool:
        """A yes or no; no when nobody can be asked."""
        if not self.interactive:
            return False
        self._console.print(Text(f"{question} [y/N] "), end="")
        # A signal ends the waiting at once: nothing is under way that would have to be finished first.
        before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return sys.stdin.readline().strip().lower() in ("y", "yes")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise InterruptedBySignal("Stopped before anything was sent; run the same command again.", number)


def print_json(value: Any) -> None:
    """A value as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def service_words(kind: ServiceKind) -> str:
    """A service as people call it."""
    return {
        ServiceKind.AZURE: "Azure OpenAI",
        ServiceKind.OPENAI: "OpenAI",
        ServiceKind.EMULATOR: "the emulator (its answers are synthetic)",
    }[kind]
