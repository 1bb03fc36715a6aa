"""Cuts a stream of request sizes into shards by lines, bytes and tokens; vectorised, no Python per row. Pure.

Greedy in row order: a shard takes rows until the next sendable one would break a limit, so the cuts depend on the rows
alone and not on how the stream came in blocks. Skipped rows (0 bytes) go with the shard they follow. A row whose tokens
alone exceed the cap gets a shard of its own. Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Sizes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps of one request file; `tokens_max` None: no cap."""

    lines_max: int
    bytes_max: int
    tokens_max: int | None


class Packer:
    """What the open shard holds, between blocks.

    Args:
        limits: the caps; every row's own bytes must be within `bytes_max`.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lines = self._bytes = self._tokens = 0

    def restart(self) -> None:
        """The next row begins a new shard (a span has ended)."""
        self._lines = self._bytes = self._tokens = 0

    def resume(self, lines: int, bytes: int, tokens: int) -> None:
        """The open shard already holds this much."""
        self._lines, self._bytes, self._tokens = lines, bytes, tokens

    def cut(self, line_bytes: Sizes, tokens: Sizes) -> list[int]:
        """Where new shards begin in the next block.

        Args:
            line_bytes: bytes of each row's line; 0 for a skipped row.
            tokens: tokens of each row; 0 for a skipped row.

        Returns:
            Row positions in the block, ascending; a shard that is begun by `restart` or at the start is not among them.
        """
        sendable = np.flatnonzero(line_bytes)
        bytes_sum, tokens_sum = np.cumsum(line_bytes[sendable]), np.cumsum(tokens[sendable])
        begins: list[int] = []
        at, count = 0, len(sendable)
        while at < count:
            bytes_before = int(bytes_sum[at - 1]) if at else 0
            tokens_before = int(tokens_sum[at - 1]) if at else 0
            stop = min(count, at + self._limits.lines_max - self._lines)
            stop = min(stop, _reach(bytes_sum, bytes_before + self._limits.bytes_max - self._bytes))
            if self._limits.tokens_max is not None:
                stop = min(stop, _reach(tokens_sum, tokens_before + self._limits.tokens_max - self._tokens))
            if stop <= at and self._lines == 0:
                stop = at + 1  # a row over the token cap goes alone
            if stop > at:
                self._lines += stop - at
                self._bytes += int(bytes_sum[stop - 1]) - bytes_before
                self._tokens += int(tokens_sum[stop - 1]) - tokens_before
                at = stop
            if at < count:
                begins.append(int(sendable[at]))
                self.restart()
        return begins


def _reach(running: Sizes, most: int) -> int:
    """How many leading rows a running sum allows."""
    return int(np.searchsorted(running, most, side="right"))
