"""The run folder: where everything of a run lies, and the lock that lets one process at a time act on it.

Owns names and the lock, nothing else: what the files hold belongs to their writers. Layout as in the design.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DiskFullError, RunFolderError, RunHeldError


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def ledger(self) -> Path:
        return self.path / "run.db"

    @property
    def rows(self) -> Path:
        return self.path / "rows"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def emulator(self) -> Path:
        return self.path / "emulator"

    @property
    def cancel_request(self) -> Path:
        """There while somebody asks the process that holds the run to cancel it."""
        return self.path / "cancel.request"

    def row_file(self, shard: str) -> Path:
        """Rows of a sealed shard, by its name."""
        return self.rows / f"{shard}.parquet"

    def batch_rows(self, batch: str) -> Path:
        """A batch's frozen row list."""
        return self.path / "batches" / f"{batch}.rows.parquet"

    def request(self, batch: str) -> Path:
        """A batch's request file, there only until its results are."""
        return self.path / "requests" / f"{batch}.jsonl"

    def results(self, batch: str) -> tuple[Path, Path]:
        """A batch's output and error files."""
        folder = self.path / "results"
        return folder / f"{batch}.output.jsonl.zst", folder / f"{batch}.errors.jsonl.zst"

    def outcomes(self, batch: str) -> Path:
        """A batch's outcomes."""
        return self.path / "outcomes" / f"{batch}.parquet"

    def make(self) -> None:
        """Make the folder (mode 0700) and its parts.

        Raises:
            RunFolderError: it cannot be made.
            DiskFullError: no room.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in ("rows", "batches", "requests", "results", "outcomes"):
                (self.path / part).mkdir(exist_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    f"No room left on the disk of {self.path}: free some and run the same command again."
                ) from error
            raise RunFolderError(
                f"The run folder {self.path} cannot be made ({error.strerror}): choose another with --run-dir."
            ) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run's lock.

        Raises:
            RunHeldError: another process holds it; says which.
        """
        lock = self.path / "lock"
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600), "r+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _holder(file.read())
                raise RunHeldError(f"{self.path} is held by {holder}: wait for it, or stop it.") from error
            file.seek(0)
            file.truncate()
            json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
            file.flush()
            yield


def _holder(text: str) -> str:
    try:
        value = json.loads(text)
        return f"process {value['pid']} on {value['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
