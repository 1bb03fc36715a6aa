"""The count that every merge ends with: rows in are rows out, each exactly once, by shard and in total. Law 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.errors import AuditError


@contextmanager
def telling_damage(path: Path) -> Iterator[None]:
    """Turn a file of the run folder that cannot be read as what it should be into one sentence.

    Raises:
        AuditError: naming it.
    """
    try:
        yield
    except (pa.ArrowException, FileNotFoundError) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({str(error).splitlines()[0]})"
        raise AuditError(f"{path} {why}: the run folder is damaged.") from error


@dataclass(frozen=True, slots=True)
class MergeCounts:
    """Rows of an output by status."""

    rows: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    pending: int = 0

    def plus(self, other: MergeCounts) -> MergeCounts:
        """The sum of two."""
        return MergeCounts(
            self.rows + other.rows,
            self.succeeded + other.succeeded,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.pending + other.pending,
        )


def check_rows(name: str, expected: int, counts: MergeCounts) -> None:
    """Check one shard, or all of them.

    Raises:
        AuditError: rows out differ from rows in.
    """
    told = counts.succeeded + counts.failed + counts.skipped + counts.pending
    if not expected == counts.rows == told:
        raise AuditError(
            f"{name}: {expected:,} rows went in and {counts.rows:,} would come out ({told:,} with a status): "
            "the run folder is damaged."
        )
