"""Cuts a batch input file into files that the service takes, with the very bytes of each line.

Lines of one url and one model go together, cut at the limits; lines that no file may hold are kept aside, so that none
is lost. Files get their names when all are whole. Decides nothing about what is wrong: `pipeline.checking` does.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.checking import Looked, Rules
from pipeline.durable import fsync_dir, publish, telling_disk_full
from pipeline.errors import UsageError

GROUPS_MAX = 64
"""Urls and models of one file, at most: each has a file open."""


@dataclass(slots=True)
class _Open:
    """A file being written."""

    temporary: Path
    final: Path
    file: BinaryIO
    lines: int = 0
    size_bytes: int = 0


@dataclass(slots=True)
class Splitter:
    """Writes the parts of one file.

    Args:
        source: the file that is cut; its name begins those of the parts.
        folder: where parts go.
        rules: limits of a part.

    Attributes:
        parts: whole parts, in the order in which they were begun.
        aside: where lines are that no part may hold, if there are any.
    """

    source: Path
    folder: Path
    rules: Rules
    parts: list[Path] = field(default_factory=list)
    aside: Path | None = None
    _open: dict[tuple[str, str], _Open] = field(default_factory=dict)
    _aside: _Open | None = None
    _done: list[_Open] = field(default_factory=list)
    _begun: int = 0

    def add(self, looked: Looked) -> None:
        """Give the lines of a block to parts.

        Raises:
            UsageError: a part's name is taken, or there are too many models.
        """
        if not len(looked.stops):
            return
        with telling_disk_full(self.folder):
            if len(looked.groups) == 1 and not looked.bad:
                self._place(looked.groups[0], looked.data, looked.stops)
                return
            start = 0
            groups = looked.groups if len(looked.groups) > 1 else looked.groups * len(looked.stops)
            for number, (stop, group) in enumerate(zip(looked.stops.tolist(), groups, strict=True), looked.first_line):
                line = looked.data[start:stop]
                if number in looked.bad or len(line) > self.rules.bytes_max:
                    self._keep_aside(line)
                else:
                    self._place(group, line, np.array([len(line)]))
                start = stop

    def _place(self, group: tuple[str, str], data: memoryview, stops: np.ndarray) -> None:
        """Write lines of one group, cut at the limits."""
        at, start = 0, 0
        while at < len(stops):
            part = self._open.get(group) or self._begin(group)
            room = self.rules.bytes_max - part.size_bytes
            fit = int(np.searchsorted(stops, start + room, side="right"))
            fit = min(fit, at + self.rules.lines_max - part.lines)
            if fit <= at:
                if part.lines == 0:
                    self._keep_aside(data[start : int(stops[at])])
                    start, at = int(stops[at]), at + 1
                    continue
                self._done.append(self._open.pop(group))
                part.file.close()
                continue
            stop = int(stops[fit - 1])
            part.file.write(data[start:stop])
            part.lines, part.size_bytes = part.lines + fit - at, part.size_bytes + stop - start
            at, start = fit, stop

    def _begin(self, group: tuple[str, str]) -> _Open:
        if len(self._open) >= GROUPS_MAX:
            raise UsageError(f"{self.source} names more than {GROUPS_MAX} urls and models: it cannot be split.")
        self._begun += 1
        self._open[group] = part = self._new(f"{self.source.stem}-{self._begun:03d}.jsonl")
        return part

    def _new(self, name: str) -> _Open:
        final = self.folder / name
        if final.exists():
            raise UsageError(f"{final} is there already: name another folder with --split.")
        temporary = final.with_name(f".{name}.{os.getpid()}.tmp")
        return _Open(temporary, final, temporary.open("wb"))

    def _keep_aside(self, line: memoryview) -> None:
        if self._aside is None:
            self._aside = self._new(f"{self.source.stem}.faulty.jsonl")
        self._aside.file.write(line)

    def finish(self) -> None:
        """Give every part its name."""
        found = [*self._done, *self._open.values()]
        with telling_disk_full(self.folder):
            for part in sorted((part for part in found if part.lines), key=lambda part: part.final.name):
                part.file.close()
                publish(part.temporary, part.final)
                self.parts.append(part.final)
            if self._aside is not None:
                self._aside.file.close()
                publish(self._aside.temporary, self._aside.final)
                self.aside = self._aside.final
        fsync_dir(self.folder)
        self.close()

    def close(self) -> None:
        """Leave nothing half-written behind."""
        for part in [*self._done, *self._open.values(), *([self._aside] if self._aside else [])]:
            part.file.close()
            with suppress(FileNotFoundError):
                part.temporary.unlink()
