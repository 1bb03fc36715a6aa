"""A process, watched: wall time, CPU seconds and the peak of its anonymous memory."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

SAMPLE_S = 0.005
AS_THE_COMMAND = {"MALLOC_ARENA_MAX": "3", "_RJEM_MALLOC_CONF": "dirty_decay_ms:50,muzzy_decay_ms:0"}
"""What `pipeline.memory.settle_allocators` does for the command, for a process that calls a part of it."""


@dataclass
class Watched:
    """What a process took; `marks`: seconds at which a named moment was first seen, with the memory peak until then."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    exit_code: int = 0
    marks: dict[str, tuple[float, int]] = field(default_factory=dict)


def warm_up() -> None:
    """Have pyarrow load what it loads with the first array (pandas, where it is there): that is start-up, whatever the
    way."""
    pa.array(np.zeros(1))


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process now (`RssAnon`); 0 once it is gone."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def watched(
    command: Sequence[object],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    mark: Callable[[], str | None] | None = None,
    may_exit: Sequence[int] = (0,),
) -> Watched:
    """Run a command to its end; `mark` names the moment that the run has reached.

    Raises:
        RuntimeError: it ended with another exit code than `may_exit`.
    """
    seen, peak_since = Watched(), 0
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command], cwd=cwd, env={**os.environ, **(env or {})},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        now = anonymous_bytes(process.pid)
        seen.peak_bytes, peak_since = max(seen.peak_bytes, now), max(peak_since, now)
        name = mark() if mark else None
        if name and name not in seen.marks:
            seen.marks[name] = (time.perf_counter() - began, peak_since)
            peak_since = 0
        time.sleep(SAMPLE_S)
    process.returncode = os.waitstatus_to_exitcode(status)
    seen.wall_s, seen.exit_code = time.perf_counter() - began, process.returncode
    seen.cpu_s = usage.ru_utime + usage.ru_stime
    if seen.exit_code not in may_exit:
        assert process.stderr
        raise RuntimeError(f"exit {seen.exit_code}: {process.stderr.read().decode(errors='replace')[-2_000:]}")
    return seen
