"""SIGINT and SIGTERM: the first asks to stop after the current step, the second leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.errors import InterruptedBySignal
from pipeline.folder import RunFolder

SHOW_CURSOR = b"\x1b[?25h\n"


class Signals:
    """SIGINT and SIGTERM: the first asks to stop after the current step, the second leaves at once."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.number = 0

    @contextmanager
    def caught(self) -> Iterator[Signals]:
        """Catch both while the block runs (in the main thread)."""
        before = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set():
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(2, SHOW_CURSOR)  # the live display hides it
            os._exit(128 + number)
        self.number = number
        self._asked.set()

    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep, or until a signal comes."""
        self._asked.wait(seconds)

    def stop_if_asked(self, folder: RunFolder) -> None:
        """Raise when a signal came."""
        if self.asked():
            raise InterruptedBySignal(
                f"Stopped; nothing is lost. Go on with: batchmill run --run-dir {folder.path}", self.number
            )
