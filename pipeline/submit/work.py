"""What submitting asks of others: rows frozen into batches, request files, results read. All of it durable on return,
but for request files: they are rendered again after a crash.

The seam between this package and the row files: `pipeline.rounds` does the work, nothing here knows how.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.shard import Batch


@dataclass(frozen=True, slots=True)
class Reading:
    """What a batch's results hold: lines read, and rows that stand in neither file."""

    lines: int
    lost: int


class Work(Protocol):
    """What the runner lets others do."""

    def plan_shard(self, shard: int, first_tokens: int | None, tokens_max: int | None) -> None:
        """Freeze a shard's rows as batches."""

    def pool_leftovers(self, tokens_max: int | None) -> None:
        """Freeze rows to be asked again as batches."""

    def split(self, batch: Batch, first_tokens: int | None, tokens_max: int | None) -> None:
        """Replace a planned batch by smaller ones."""

    def render(self, batch: Batch, model: str) -> Path | None:
        """Write the request file; None when smaller batches took its place."""

    def drop_request(self, batch: Batch) -> None:
        """Delete the request file, unless it is to be kept."""

    def results_of(self, batch: Batch) -> tuple[Path, Path]:
        """Where the output and the error file go."""

    def read(self, batch: Batch) -> Reading:
        """Read a batch's results without closing it."""

    def close(self, batch: Batch, error: tuple[str, str] | None) -> None:
        """Write a collected batch's outcomes and close it; `error`: every row fails with it."""

    def adopt(self, result_like: list[Path], deployment: str, file_id: str, remote_id: str) -> int:
        """Take over a batch whose rows are those named in request or result files; how many rows that are."""

    def adopt_copy(self, batch: Batch, deployment: str, file_id: str, remote_id: str) -> None:
        """Take over a second batch with the rows of one that is known."""
