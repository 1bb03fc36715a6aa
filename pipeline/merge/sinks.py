"""Where an output goes: one file or a folder of parts, in the format of its ending; never half.

Owns formats and publishing. Knows columns and rows only as tables.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.durable import fsync_dir, fsync_file, replacing, telling_disk_full
from pipeline.errors import UsageError

ENDINGS = (".parquet", ".pq", ".csv", ".jsonl", ".arrow")
GROUP_ROWS = 100_000


class Sink(Protocol):
    """Takes an output's rows in order."""

    def begin(self, shard: str) -> None:
        """Rows of another shard follow."""

    def write(self, rows: pa.Table) -> None:
        """The next rows."""


def check_out(out: Path) -> None:
    """Check that an output can go there.

    Raises:
        UsageError: an unknown ending, a missing folder, or a folder that holds something else.
    """
    ending = out.suffix.lower()
    if ending and ending not in ENDINGS:
        raise UsageError(f"--out {out} ends in {ending}: choose one of {', '.join(ENDINGS)}, or a folder.")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}.")
    if ending and out.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file, or a folder without an ending.")
    if not ending and out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "_SUCCESS").exists())):
        raise UsageError(f"--out {out} holds something that is no earlier output: name another folder.")


@contextmanager
def open_sink(out: Path, schema: pa.Schema) -> Iterator[Sink]:
    """A sink that is published when the block ends well, and gone otherwise."""
    check_out(out)
    ending = out.suffix.lower()
    if not ending:
        with _folder(out, schema) as sink:
            yield sink
        return
    with replacing(out) as path:
        if ending in (".parquet", ".pq"):
            with _parquet(path, schema) as writer:
                yield _Table(writer)
        elif ending == ".arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as arrow:
                yield _Table(arrow)
        else:
            with path.open("w", encoding="utf-8", newline="") as text:
                yield _Text(text, schema, as_csv=ending == ".csv")


def _parquet(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd", store_schema=True)


class _Table:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def begin(self, shard: str) -> None:
        pass

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows)


class _Text:
    """CSV or JSON lines; what is nested becomes JSON."""

    def __init__(self, file: Any, schema: pa.Schema, *, as_csv: bool) -> None:
        self._file, self._names = file, schema.names
        self._csv = csv.writer(file, lineterminator="\n") if as_csv else None
        if self._csv is not None:
            self._csv.writerow(self._names)

    def begin(self, shard: str) -> None:
        pass

    def write(self, rows: pa.Table) -> None:
        for batch in rows.to_batches(4_096):
            columns = [column.to_pylist() for column in batch.columns]
            for values in zip(*columns, strict=True):
                if self._csv is not None:
                    self._csv.writerow([_cell(value) for value in values])
                else:
                    row = dict(zip(self._names, values, strict=True))
                    self._file.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """A value that JSON does not know, as text or as what it stands for."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, timedelta | Decimal):
        return str(value)
    return list(value) if isinstance(value, tuple | set) else str(value)


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    return _plain(value)


class _Parts:
    """A part a shard, in a folder."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self._writer: pq.ParquetWriter | None = None
        self._path: Path | None = None

    def begin(self, shard: str) -> None:
        self.end()
        self._path = self._folder / f"part-{shard}.parquet"
        self._writer = _parquet(self._path, self._schema)

    def write(self, rows: pa.Table) -> None:
        assert self._writer is not None
        self._writer.write_table(rows)

    def end(self) -> None:
        """Finish the part begun."""
        if self._writer is not None and self._path is not None:
            self._writer.close()
            fsync_file(self._path)
            self._writer = None


@contextmanager
def _folder(out: Path, schema: pa.Schema) -> Iterator[Sink]:
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with telling_disk_full(out.parent):
            beside.mkdir()
            parts = _Parts(beside, schema)
            yield parts
            parts.end()
            if not any(beside.iterdir()):
                _parquet(beside / "part-000000-000000.parquet", schema).close()
            (beside / "_SUCCESS").touch()
            fsync_dir(beside)
            if out.exists():
                shutil.rmtree(out)
            os.replace(beside, out)
            fsync_dir(out.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
