"""Where an output goes: one file or a folder of parts, in the format of its ending; never half.

Owns formats and publishing. Knows columns and rows only as tables.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.durable import fsync_dir, fsync_file, replacing, telling_disk_full
from pipeline.errors import UsageError
from pipeline.memory import give_back
from pipeline.merge.arrow_sink import DELTAS, ArrowSink
from pipeline.merge.text_sink import TextSink

ENDINGS = (".parquet", ".pq", ".csv", ".jsonl", ".arrow")
PARQUET = (".parquet", ".pq")
GROUP_ROWS = 100_000
GROUP_BYTES = 32 << 20


class Sink(Protocol):
    """Takes an output's rows in order."""

    def begin(self, shard: str, inputs: str = "") -> dict[str, str] | None:
        """Rows of another shard follow, made of `inputs`.

        Returns:
            What was told of the shard earlier, where it stands there already, made of the same inputs: then nothing is
            to be written. Otherwise None.
        """

    def write(self, rows: pa.Table) -> None:
        """The next rows."""

    def tell(self, facts: dict[str, str]) -> None:
        """What is known only at the end, for the file's metadata where the format has one."""


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
def open_sink(
    out: Path, schema: pa.Schema, *, plain: Collection[str] = (), neutralise_formulas: bool = False
) -> Iterator[Sink]:
    """A sink that is published when the block ends well, and gone otherwise.

    Args:
        out: file or folder; see `check_out`.
        schema: of the rows to come.
        plain: columns whose values hardly repeat.
        neutralise_formulas: in CSV, write text that a spreadsheet would compute as text.

    Raises:
        UsageError: it cannot go there, or formulas are to be neutralised in something else than CSV.
    """
    check_out(out)
    if neutralise_formulas and out.suffix.lower() != ".csv":
        raise UsageError(f"--neutralise-formulas is for CSV, and {out} is none: leave it out, or name a .csv file.")
    ending = out.suffix.lower()
    if not ending:
        with _folder(out, schema, plain) as sink:
            yield sink
        return
    with replacing(out) as path:
        if ending in PARQUET:
            with _parquet(path, schema, plain) as writer, _Table(writer) as table:
                yield table
                table.flush()
        elif ending == ".arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema, options=DELTAS) as arrow:
                yield ArrowSink(arrow, schema)
        else:
            with path.open("w", encoding="utf-8", newline="") as text:
                yield TextSink(text, schema, as_csv=ending == ".csv", neutralise=neutralise_formulas)


def _parquet(path: Path, schema: pa.Schema, plain: Collection[str]) -> pq.ParquetWriter:
    """A writer; the columns in `plain` hardly repeat and are written without the detour of a dictionary."""
    leaves = [leaf for leaf in _leaves(schema) if leaf.split(".")[0] not in plain]
    return pq.ParquetWriter(
        path, schema, compression="zstd", compression_level=1, store_schema=True, use_dictionary=leaves
    )


def _leaves(schema: pa.Schema) -> list[str]:
    """The paths of a schema's Parquet columns."""
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema).close()
    found = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [found.column(index).path for index in range(len(found))]


class _Table:
    """Parquet in row groups of a good size, however small the slices come.

    A row group is written in a thread while the rows of the next are made: one is on its way, never more.
    """

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._held: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batchmill-output")
        self._written: Future[None] | None = None

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is being written any more, and the writer may be closed."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def begin(self, shard: str, inputs: str = "") -> dict[str, str] | None:
        return None

    def write(self, rows: pa.Table) -> None:
        self._held.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._hand_over()

    def flush(self) -> None:
        """Write what is held as a row group; returns when it is written.

        Raises:
            DiskFullError: no room, also for what was handed over earlier.
        """
        self._hand_over()
        self._wait()

    def tell(self, facts: dict[str, str]) -> None:
        self._wait()
        self._writer.add_key_value_metadata(facts)

    def _hand_over(self) -> None:
        self._wait()
        if self._rows:
            table, rows = pa.concat_tables(self._held), self._rows
            self._written = self._thread.submit(self._writer.write_table, table, row_group_size=rows)
        self._held, self._rows, self._bytes = [], 0, 0

    def _wait(self) -> None:
        written, self._written = self._written, None
        if written is not None:
            written.result()
            give_back()


class _Parts:
    """A part a shard, in a folder; parts of an earlier output whose inputs are the same are taken over as they are."""

    def __init__(self, folder: Path, earlier: Path, schema: pa.Schema, plain: Collection[str]) -> None:
        self._folder, self._earlier, self._schema, self._plain = folder, earlier, schema, plain
        self._writer: pq.ParquetWriter | None = None
        self._table: _Table | None = None
        self._path: Path | None = None

    def begin(self, shard: str, inputs: str = "") -> dict[str, str] | None:
        self.end()
        self._path = self._folder / f"part-{shard}.parquet"
        facts = told_of(self._earlier / self._path.name, inputs)
        if facts is not None:
            os.link(self._earlier / self._path.name, self._path)
            return facts
        self._writer = _parquet(self._path, self._schema, self._plain)
        self._table = _Table(self._writer)
        return None

    def write(self, rows: pa.Table) -> None:
        assert self._table is not None
        self._table.write(rows)

    def tell(self, facts: dict[str, str]) -> None:
        if self._table is not None:
            self._table.tell(facts)

    def end(self) -> None:
        """Finish the part begun."""
        if self._writer is not None and self._table is not None and self._path is not None:
            with self._table as table:
                table.flush()
            self._writer.close()
            fsync_file(self._path)
            self._writer = self._table = None

    def abandon(self) -> None:
        """Let go of the part begun."""
        if self._table is not None:
            self._table.__exit__()


def told_of(path: Path, inputs: str) -> dict[str, str] | None:
    """What stands in a Parquet file's footer, where it was made of the same inputs; otherwise None."""
    if not inputs or not path.is_file():
        return None
    try:
        facts = {
            key.decode(): value.decode()
            for key, value in (pq.read_metadata(path).metadata or {}).items()
            if key.startswith(b"batchmill.")
        }
    except (OSError, pa.ArrowInvalid):
        return None
    return facts if facts.get("batchmill.inputs") == inputs else None


@contextmanager
def _folder(out: Path, schema: pa.Schema, plain: Collection[str]) -> Iterator[Sink]:
    beside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    aside = out.with_name(f".{out.name}.{os.getpid()}.old.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with telling_disk_full(out.parent):
            beside.mkdir()
            parts = _Parts(beside, out, schema, plain)
            try:
                yield parts
                parts.end()
            finally:
                parts.abandon()
            if not any(beside.iterdir()):
                _parquet(beside / "part-000000-000000.parquet", schema, plain).close()
            (beside / "_SUCCESS").touch()
            fsync_dir(beside)
            if out.exists():
                os.replace(out, aside)
            os.replace(beside, out)
            fsync_dir(out.parent)
    finally:
        if aside.exists() and not out.exists():
            os.replace(aside, out)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(beside, ignore_errors=True)
