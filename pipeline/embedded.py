"""The emulator as a child process of a run: started on an ephemeral loopback port, gone when the run's pipe closes.

Only starts and stops it: the emulator is spoken to through the same service module as Azure, and is never imported.
Its state lies in the run folder, under a lock of its own, so that a killed run finds its batches again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from pipeline.errors import ServiceError

SPEED = "2000"
"""How much faster than the service: a batch takes a second, so that it is seen to go through its states."""

KEY = "emulator"
"""The key the run sends; the embedded emulator takes any."""


class EmbeddedEmulator:
    """A context manager; `url` is the endpoint while it is open.

    Args:
        state: the emulator's folder.
        profile: the service that it is like; None: Azure's.
    """

    def __init__(self, state: Path, profile: str | None = None) -> None:
        self._state = state
        self._options = ["--state", str(state), "--die-with-parent", "--speed", SPEED]
        if profile:
            self._options += ["--profile", profile]
        self._child: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> EmbeddedEmulator:
        self._state.mkdir(parents=True, exist_ok=True)
        log = self._state / "emulator.log"
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "pipeline.emulator", *self._options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the run, which then ends the emulator itself
            )
        assert self._child.stdout
        line = self._child.stdout.readline()
        try:
            self.url = str(json.loads(line)["url"])
        except (ValueError, KeyError) as error:
            self.__exit__(None, None, None)
            words = log.read_text(errors="replace").strip().splitlines()
            raise ServiceError(
                f"The emulator did not start ({words[-1] if words else 'it said nothing'}); its log is {log}. "
                "It needs the extra: pip install 'batchmill[emulator]'."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is None:
            return
        assert self._child.stdin and self._child.stdout
        self._child.stdin.close()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
