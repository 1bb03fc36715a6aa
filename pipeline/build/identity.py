"""Whether the values of `--id-column` can be custom_ids: unique, not null, at most 64 printable ASCII characters.

Uniqueness over any number of rows in bounded memory: 128-bit hashes go to bucket files, each small enough to be
sorted by itself at the end. Knows nothing of shards.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError

BUCKETS = 256
ID_CHARACTERS_MAX = 64
_ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])
_FIT = r"^[\x20-\x7e]{1,64}$"


class IdCheck:
    """Collects ids block by block.

    Args:
        rows_dir: the run's row files, beside which the buckets lie while sealing; None: a temporary folder.
        column: name of the id column.
    """

    def __init__(self, rows_dir: Path | None, column: str) -> None:
        self._column = column
        self._folder = Path(tempfile.mkdtemp(prefix="ids.", suffix=".tmp", dir=rows_dir.parent if rows_dir else None))

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
        entries = np.empty(len(ids), dtype=_ENTRY)
        digests = b"".join(hashlib.blake2b(value.encode(), digest_size=16).digest() for value in ids.to_pylist())
        pairs = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
        entries["high"], entries["low"] = pairs[:, 0], pairs[:, 1]
        entries["row"] = np.arange(first_row, first_row + len(ids))
        buckets = (entries["high"] % BUCKETS).astype(np.int64)
        order = np.argsort(buckets, kind="stable")
        bounds = np.searchsorted(buckets[order], np.arange(BUCKETS + 1))
        for bucket in range(BUCKETS):
            part = entries[order[bounds[bucket] : bounds[bucket + 1]]]
            if len(part):
                with (self._folder / f"{bucket:03d}").open("ab") as file:
                    file.write(part.tobytes())

    def finish(self) -> None:
        """Look for an id that stands twice.

        Raises:
            SourceError: names both rows.
        """
        for path in sorted(self._folder.iterdir()):
            entries = np.fromfile(path, dtype=_ENTRY)
            entries.sort(order=["high", "low", "row"])
            same = (entries["high"][1:] == entries["high"][:-1]) & (entries["low"][1:] == entries["low"][:-1])
            if same.any():
                at = int(np.flatnonzero(same)[0])
                raise SourceError(
                    f"--id-column {self._column!r}: rows {entries['row'][at]} and {entries['row'][at + 1]} "
                    "have the same id; ids must be unique."
                )

    def close(self) -> None:
        """Remove the buckets."""
        shutil.rmtree(self._folder, ignore_errors=True)
