"""Whether the values of `--id-column` can be custom_ids: unique, not null, at most 64 printable ASCII characters.

Uniqueness holds over any number of rows in bounded memory (`pipeline.doubles`). Knows nothing of shards.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.doubles import Buckets
from pipeline.errors import SourceError

ID_CHARACTERS_MAX = 64
_FIT = r"^[\x20-\x7e]{1,64}$"


class IdCheck:
    """Collects ids block by block.

    Args:
        rows_dir: the run's row files, beside which the buckets lie while sealing; None: a temporary folder.
        column: name of the id column.
    """

    def __init__(self, rows_dir: Path | None, column: str) -> None:
        self._column = column
        self._buckets = Buckets(rows_dir.parent if rows_dir else None)

    def add(self, rows: pa.Table, first_row: int) -> None:
        """Check a block's ids and remember their hashes.

        Raises:
            SourceError: an id is null or not fit; names the row.
        """
        try:
            ids = pc.cast(rows[self._column], pa.string())
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
            raise SourceError(
                f"--id-column {self._column!r} has type {rows.schema.field(self._column).type}, "
                "which cannot be an id: choose text or numbers."
            ) from error
        fit = pc.fill_null(pc.match_substring_regex(ids, _FIT), False)
        if not pc.all(fit).as_py():
            at = pc.index(fit, False).as_py()
            value = ids[at].as_py()
            what = "is null" if value is None else f"has {value[:80]!r}"
            raise SourceError(
                f"--id-column {self._column!r}: row {first_row + at} {what}; "
                f"an id is 1 to {ID_CHARACTERS_MAX} printable ASCII characters."
            )
        self._buckets.add(ids.to_pylist(), np.arange(first_row, first_row + len(ids)))

    def finish(self) -> None:
        """Look for an id that stands twice.

        Raises:
            SourceError: names both rows.
        """
        for row, first in self._buckets.doubles():
            raise SourceError(
                f"--id-column {self._column!r}: rows {first} and {row} have the same id; ids must be unique."
            )

    def close(self) -> None:
        """Remove the buckets."""
        self._buckets.close()
