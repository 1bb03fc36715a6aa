"""The corpus as blocks of rows in order, bounded in bytes, and the identity of its content.

Owns opening and checking one Parquet or CSV file; every row of it is read or the run does not start. Rows stay in
pyarrow. CSV values stay text (007 stays 007): an unquoted empty field is null, a quoted one is the empty text. Knows
nothing of templates, shards or limits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.build import csv_source
from pipeline.errors import SourceError

RESERVED_PREFIX = "__batchmill_"
BLOCK_BYTES = 32 << 20
_READ_BUFFER_BYTES = 1 << 20
_BLOCK_ROWS_MAX = 65_536
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source.

    Attributes:
        path: the file.
        format: `parquet` or `csv`.
        schema: its columns, with metadata as pyarrow reads it.
        rows: how many rows it has; None where only reading tells (CSV).
        size_bytes: the file's size.
        digest: identity of the content and of how it is read; never the time of change.
        name: the file's name without its ending.
    """

    path: Path
    format: str
    schema: pa.Schema
    rows: int | None
    size_bytes: int
    digest: str
    name: str

    def blocks(
        self, *, start_row: int = 0, columns: Sequence[str] | None = None, block_bytes: int = BLOCK_BYTES
    ) -> Iterator[pa.Table]:
        """The rows from `start_row` on, in order.

        Args:
            start_row: rows before it are passed over.
            columns: only these; None: all.
            block_bytes: about how large a block is in memory, at least one row.

        Raises:
            SourceError: the source cannot be read to its end; names the file and, for CSV, the line.
        """
        read = _parquet_blocks if self.format == "parquet" else _csv_blocks
        for block in read(self, start_row, columns, block_bytes):
            if block.num_rows:
                yield block


def open_source(path: Path) -> Source:
    """Open and check a source.

    Raises:
        SourceError: missing, empty, truncated, of another kind than its name says, or with a column that cannot be
            carried.
    """
    if not path.exists():
        raise SourceError(f"{path} does not exist: name a .parquet or .csv file.")
    if path.is_dir():
        raise SourceError(f"{path} is a folder: name a single .parquet or .csv file.")
    size = path.stat().st_size
    if size == 0:
        raise SourceError(f"{path} is empty (zero bytes): name a file with a header at least.")
    ending = path.suffix.lower()
    if ending in (".parquet", ".pq"):
        source = _open_parquet(path, size)
    elif ending == ".csv":
        source = _open_csv(path, size)
    else:
        raise SourceError(f"{path} ends in {ending or 'nothing'}: only .parquet, .pq and .csv files are read.")
    _check_columns(source)
    return source


def _open_parquet(path: Path, size: int) -> Source:
    with path.open("rb") as file:
        head = file.read(4)
        if head != _PARQUET_MAGIC:
            raise SourceError(
                f"{path} is not a Parquet file, whatever its name says: convert it, or rename a CSV file to .csv."
            )
        file.seek(max(0, size - 8))
        tail = file.read(8)
        if size < 12 or tail[4:] != _PARQUET_MAGIC:
            raise SourceError(f"{path} is cut short (its Parquet footer is missing): copy it again.")
        footer_bytes = int.from_bytes(tail[:4], "little")
        file.seek(max(0, size - 8 - footer_bytes))
        footer = file.read(footer_bytes)
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BUFFER_BYTES) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{path} cannot be read as Parquet ({_first_line(error)}): copy or write it again."
        ) from error
    digest = hashlib.sha256(b"parquet\0%d\0" % size + footer).hexdigest()
    return Source(path, "parquet", schema, rows, size, digest, path.stem)


def _open_csv(path: Path, size: int) -> Source:
    with path.open("rb") as file:
        head = file.read(4)
    if head == _PARQUET_MAGIC:
        raise SourceError(f"{path} is a Parquet file, whatever its name says: rename it to .parquet.")
    names = csv_source.header_of(path)
    schema = pa.schema([(name, pa.string()) for name in names])
    return Source(path, "csv", schema, None, size, csv_source.digest_of(path), path.stem)


def _check_columns(source: Source) -> None:
    names = source.schema.names
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise SourceError(f"{source.path} has more than one column called {doubled[0]!r}: rename one.")
    for name in names:
        if not name.strip():
            raise SourceError(f"{source.path} has a column without a name (column {names.index(name) + 1}): name it.")
        if name.startswith(RESERVED_PREFIX):
            raise SourceError(f"{source.path}: column {name!r} has a reserved name ({RESERVED_PREFIX}…): rename it.")
    for field in source.schema:
        kept = _as_parquet_keeps(field)
        if kept != field.type:
            raise SourceError(
                f"{source.path}: column {field.name!r} has type {field.type}, "
                "which Parquet cannot keep: convert it, or leave it out."
            )


def _as_parquet_keeps(field: pa.Field) -> pa.DataType | None:
    """The type that comes back from a Parquet file; None where it cannot be written."""
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(pa.schema([field]).empty_table(), sink, store_schema=True)
        return pq.read_schema(pa.BufferReader(sink.getvalue())).field(0).type
    except (pa.ArrowException, NotImplementedError):
        return None


def _parquet_blocks(
    source: Source, start_row: int, columns: Sequence[str] | None, block_bytes: int
) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(source.path, pre_buffer=False, buffer_size=_READ_BUFFER_BYTES) as parquet:
            metadata = parquet.metadata
            groups, skip = list(range(metadata.num_row_groups)), start_row
            while groups and metadata.row_group(groups[0]).num_rows <= skip:
                skip -= metadata.row_group(groups.pop(0)).num_rows
            row_bytes = sum(metadata.row_group(index).total_byte_size for index in groups) / max(
                1, sum(metadata.row_group(index).num_rows for index in groups)
            )
            # Dictionary pages make a column small on disk and large in memory: hence the margin and the cap on rows.
            block_rows = int(max(1, min(_BLOCK_ROWS_MAX, block_bytes / max(1.0, row_bytes * 2))))
            for batch in parquet.iter_batches(block_rows, row_groups=groups, columns=columns):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                yield pa.Table.from_batches([batch.slice(skip)])
                skip = 0
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{source.path} cannot be read to its end ({_first_line(error)}): copy or write it again."
        ) from error


def _csv_blocks(source: Source, start_row: int, columns: Sequence[str] | None, block_bytes: int) -> Iterator[pa.Table]:
    skip = start_row
    for block in csv_source.blocks_of(source.path, source.schema, block_bytes):
        if skip >= block.num_rows:
            skip -= block.num_rows
            continue
        rest = block.slice(skip)
        skip = 0
        yield rest.select(list(columns)) if columns is not None else rest


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
