"""One Parquet file: checked, identified by size and footer, and read in bounded blocks.

The reader never holds a row group as a whole: pages are streamed, one buffer a column. Knows nothing of other files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.build.files import InputFile
from pipeline.build.streams import first_line
from pipeline.errors import SourceError

MAGIC = b"PAR1"
_BUFFERS_BYTES = 32 << 20
_BUFFER_BYTES_MAX, _BUFFER_BYTES_MIN = 1 << 20, 8 << 10
_BLOCK_ROWS_MAX = 65_536
_WIDE_COLUMNS = 256
"""More columns than these are not read side by side."""


def open_parquet(file: InputFile) -> tuple[pa.Schema, int, str]:
    """Check a file.

    Returns:
        Its schema, how many rows it has, and the digest of its size and footer.

    Raises:
        SourceError: it is no Parquet file, is cut short, or its footer cannot be read.
    """
    path, size = file.path, file.stamp.size_bytes
    footer = _footer(path, size)
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES_MIN) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read as Parquet ({first_line(error)}): copy or write it again.") from error
    return schema, rows, hashlib.sha256(b"parquet\0%d\0" % size + footer).hexdigest()


def _footer(path: Path, size: int) -> bytes:
    with path.open("rb") as raw:
        if raw.read(4) != MAGIC:
            raise SourceError(
                f"{path} is not a Parquet file, whatever its name says: convert it, or rename a CSV file to .csv."
            )
        raw.seek(max(0, size - 8))
        tail = raw.read(8)
        if size < 12 or tail[4:] != MAGIC:
            raise SourceError(f"{path} is cut short (its Parquet footer is missing): copy it again.")
        footer_bytes = int.from_bytes(tail[:4], "little")
        raw.seek(max(0, size - 8 - footer_bytes))
        return raw.read(footer_bytes)


def parquet_blocks(
    file: InputFile, skip_rows: int, columns: Sequence[str] | None, block_bytes: int
) -> Iterator[pa.Table]:
    """The rows from `skip_rows` on.

    Raises:
        SourceError: the file cannot be read to its end.
    """
    try:
        with pq.ParquetFile(file.path, pre_buffer=False, buffer_size=_BUFFER_BYTES_MAX) as parquet:
            metadata = parquet.metadata
            groups, skip = list(range(metadata.num_row_groups)), skip_rows
            while groups and metadata.row_group(groups[0]).num_rows <= skip:
                skip -= metadata.row_group(groups.pop(0)).num_rows
            row_bytes = sum(metadata.row_group(index).total_byte_size for index in groups) / max(
                1, sum(metadata.row_group(index).num_rows for index in groups)
            )
            width = metadata.num_columns
        # Dictionary pages make a column small on disk and large in memory: hence the margin and the cap on rows.
        block_rows = int(max(1, min(_BLOCK_ROWS_MAX, block_bytes / max(1.0, row_bytes * 2))))
        # Each column has a buffer of its own: thousands of them must not add up.
        buffer = max(_BUFFER_BYTES_MIN, min(_BUFFER_BYTES_MAX, _BUFFERS_BYTES // max(1, width)))
        with pq.ParquetFile(file.path, pre_buffer=False, buffer_size=buffer) as parquet:
            for block in _blocks(parquet, groups, columns, block_rows):
                if skip >= block.num_rows:
                    skip -= block.num_rows
                    continue
                yield block.slice(skip)
                skip = 0
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{file.path} cannot be read to its end ({first_line(error)}): copy or write it again."
        ) from error


def _blocks(
    parquet: pq.ParquetFile, groups: list[int], columns: Sequence[str] | None, block_rows: int
) -> Iterator[pa.Table]:
    """Blocks read side by side from all columns, of which a page each is held; of very many columns otherwise."""
    names = list(parquet.schema_arrow.names if columns is None else columns)
    by_name = len(set(names)) == len(names) and not any("." in name for name in names)  # else names mean several
    if by_name and len(names) > _WIDE_COLUMNS:
        yield from _wide(parquet, groups, names, block_rows)
        return
    for batch in parquet.iter_batches(block_rows, row_groups=groups, columns=None if columns is None else names):
        yield pa.Table.from_batches([batch])


def _wide(parquet: pq.ParquetFile, groups: list[int], names: list[str], block_rows: int) -> Iterator[pa.Table]:
    """Blocks of a table with very many columns: a row group is read some columns at a time and handed on in copies.

    A page of each of thousands of columns is as large as the row group, and what the reader holds beside it larger.
    """
    for group in groups:
        parts = [
            parquet.read_row_group(group, columns=names[start : start + _WIDE_COLUMNS])
            for start in range(0, len(names), _WIDE_COLUMNS)
        ]
        schema = pa.schema([field for part in parts for field in part.schema], parts[0].schema.metadata)
        whole = pa.table([column for part in parts for column in part.columns], schema=schema)
        del parts
        for start in range(0, whole.num_rows, block_rows):
            block = whole.slice(start, block_rows)
            yield pa.table([pa.concat_arrays(column.chunks) for column in block.columns], schema=block.schema)
