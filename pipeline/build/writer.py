"""Row files and request files, written whole or not at all.

A row file keeps a shard's source rows as pyarrow read them, with what sealing measured beside each (reserved
columns). A request file is rendered from row files: its bytes are the template's Arrow buffers. Knows nothing of the
ledger or the service.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.ahead import ahead
from pipeline.build.overlap import in_order
from pipeline.build.packer import Limits
from pipeline.build.template import Measured, Rendered
from pipeline.durable import replacing, telling_disk_full
from pipeline.ids import CUSTOM_ID_COLUMN, ROW_COLUMN, custom_ids
from pipeline.memory import give_back

BYTES_COLUMN = "__batchmill_bytes"
TOKENS_COLUMN = "__batchmill_tokens"
SKIP_CODE_COLUMN = "__batchmill_skip_code"
SKIP_MESSAGE_COLUMN = "__batchmill_skip_message"
RESERVED = pa.schema(
    [
        (BYTES_COLUMN, pa.int64()),
        (TOKENS_COLUMN, pa.int64()),
        (SKIP_CODE_COLUMN, pa.string()),
        (SKIP_MESSAGE_COLUMN, pa.string()),
    ]
)
GROUP_BYTES = 12 << 20
GROUP_ROWS_MAX = 50_000
COMPRESSION = "lz4"
"""Of row files, which are written once and read twice or more: they are read in a third to a half of the time of snappy
or zstd, for about half as much disk again as zstd at level 1."""

RENDER_BYTES = 4 << 20
"""Rows rendered at once: several times as much is in use in each thread, and should stay in the processor's caches."""


class Renders(Protocol):
    """What is asked of a template."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    def render(self, block: pa.Table, custom_ids: pa.Array, *, model: str | None, url: str) -> Rendered: ...


@runtime_checkable
class Measures(Protocol):
    """A template that can tell what rendering would give without making the lines."""

    def measure(self, block: pa.Table, custom_ids: pa.Array, *, model: str | None, url: str) -> Measured: ...


def measured(template: Renders, block: pa.Table, custom_ids: pa.Array, *, model: str | None, url: str) -> Measured:
    """What rendering a block gives, but for the lines."""
    if isinstance(template, Measures):
        return template.measure(block, custom_ids, model=model, url=url)
    found = template.render(block, custom_ids, model=model, url=url)
    return Measured(found.line_bytes, found.tokens, found.skip_code, found.skip_message)


class RequestFileOverflow(Exception):  # noqa: N818 - reads as what happened
    """A request file would exceed its limits; nothing is left of it."""

    def __init__(self, lines: int, bytes: int) -> None:
        super().__init__(f"{lines:,} lines, {bytes:,} bytes")
        self.lines = lines
        self.bytes = bytes


def row_file_schema(source: pa.Schema, kept: pa.Schema | None = None) -> pa.Schema:
    """The schema of a row file: the source's with its metadata, then the reserved columns.

    Args:
        source: the carried columns.
        kept: reserved columns that the source itself adds.
    """
    return pa.schema([*source, *(kept or ()), *RESERVED], metadata=source.metadata)


def _repeats(kind: pa.DataType) -> bool:
    """Whether a dictionary of a column's values is worth its making; of long texts it would hold another copy, as
    would statistics, which nobody asks of row files."""
    return pa.types.is_dictionary(kind) or (
        pa.types.is_primitive(kind) and not (pa.types.is_binary(kind) or pa.types.is_string(kind))
    )


class RowFileWriter:
    """Writes one row file in row groups of bounded bytes; published by `close`, gone after `discard`.

    Args:
        path: the file's final name.
        schema: as of `row_file_schema`.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._stack = ExitStack()
        temporary = self._stack.enter_context(replacing(path))
        self._writer = self._stack.enter_context(
            pq.ParquetWriter(
                temporary,
                schema,
                compression=COMPRESSION,
                store_schema=True,
                use_dictionary=[field.name for field in schema if _repeats(field.type)],
                write_statistics=False,
            )
        )
        self._schema = schema
        self._held: list[pa.Table] = []
        self._held_bytes = self._held_rows = 0

    def write(self, rows: pa.Table) -> None:
        """Add rows; a row group is written when enough are held."""
        self._held.append(rows)
        self._held_bytes += rows.get_total_buffer_size() if rows.num_rows > GROUP_ROWS_MAX else rows.nbytes
        self._held_rows += rows.num_rows
        if self._held_bytes >= GROUP_BYTES or self._held_rows >= GROUP_ROWS_MAX:
            self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        table = pa.concat_tables(self._held).cast(self._schema)
        self._writer.write_table(table, row_group_size=table.num_rows)
        give_back()
        self._held, self._held_bytes, self._held_rows = [], 0, 0

    def close(self) -> None:
        """Finish, fsync and publish the file."""
        try:
            self._flush()
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        self._stack.close()

    def discard(self, error: BaseException) -> None:
        """Leave nothing behind."""
        self._stack.__exit__(type(error), error, error.__traceback__)


def iter_row_file(path: Path, columns: Sequence[str] | None = None) -> Generator[tuple[int, pa.Table], None, None]:
    """A row file by row group: (position of the first row, rows)."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        start = 0
        for index in range(file.num_row_groups):
            table = file.read_row_group(index, columns=None if columns is None else list(columns))
            yield start, table
            start += table.num_rows


@dataclass(frozen=True, slots=True)
class RequestPart:
    """Rows of one row file that go into a request file.

    Attributes:
        row_file: where they are.
        first_row: row number of the file's first row.
        rows: sorted row numbers; None: every sendable row.
        custom_id_prefix: head of the custom_ids, where the row number makes them.
        id_column: column whose values are the custom_ids, otherwise.
    """

    row_file: Path
    first_row: int
    rows: pa.Int64Array | None
    custom_id_prefix: str | None
    id_column: str | None


@dataclass(frozen=True, slots=True)
class RequestFile:
    """A written request file."""

    path: Path
    lines: int
    bytes: int
    tokens: int


def write_request_file(
    path: Path,
    parts: Iterable[RequestPart],
    template: Renders,
    *,
    model: str | None,
    url: str,
    limits: Limits,
    threads: int | None = None,
    synced: bool = True,
) -> RequestFile:
    """Render the parts' rows to request lines, in order.

    Reading, rendering and writing overlap; `threads` (None: one a core) changes no byte. `synced`: force the file to
    the disk; one that is uploaded at once need not be, since it is rendered again after a crash.

    Raises:
        RequestFileOverflow: limits are exceeded.
        DiskFullError: no room.
    """
    lines = size = tokens = 0
    slices = (piece for part in parts for piece in _slices(part, template.columns))
    with telling_disk_full(path.parent), replacing(path, synced=synced) as temporary, temporary.open("wb") as file:
        for _, rendered in in_order(
            lambda piece: template.render(piece.rows, piece.ids, model=model, url=url), slices, threads=threads
        ):
            sent = rendered.lines.drop_null() if rendered.lines.null_count else rendered.lines
            content = _content(sent)
            lines += len(sent)
            size += len(content)
            tokens += pc.sum(rendered.tokens).as_py() or 0
            if lines > limits.lines_max or size > limits.bytes_max:
                raise RequestFileOverflow(lines, size)
            file.write(content)
    give_back()
    return RequestFile(path, lines, size, tokens)


@dataclass(frozen=True, slots=True)
class _Slice:
    """Rows to be rendered at once, with their custom_ids."""

    rows: pa.Table
    ids: pa.Array


def _slices(part: RequestPart, used: Sequence[str]) -> Iterator[_Slice]:
    """The part's rows that can be sent, few enough at a time."""
    columns = dict.fromkeys([*used, SKIP_CODE_COLUMN, *([part.id_column] if part.id_column else [])])
    wanted = None if part.rows is None else part.rows.to_numpy() - part.first_row
    for start, block in ahead(iter_row_file(part.row_file, list(columns))):
        chosen = np.flatnonzero(pc.is_null(block[SKIP_CODE_COLUMN]).to_numpy())
        if wanted is not None:
            here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + block.num_rows)] - start
            chosen = np.intersect1d(chosen, here, assume_unique=True)
        if not len(chosen):
            continue
        rows = block if len(chosen) == block.num_rows else block.take(pa.array(chosen))
        numbers = pa.array(chosen + (part.first_row + start), pa.int64())
        ids = ids_of(rows, numbers, part.custom_id_prefix, part.id_column)
        step = max(1, RENDER_BYTES * rows.num_rows // max(1, rows.nbytes))
        for first in range(0, rows.num_rows, step):
            yield _Slice(rows.slice(first, step), ids.slice(first, step))


def named_rows(block: pa.Table, first_row: int, prefix: str, id_column: str | None) -> tuple[pa.Table, pa.Array]:
    """A source's block as it goes into a row file, and its custom_ids.

    Args:
        block: rows as the source gives them; where it leaves some out, each says its number.
        first_row: number of the first row, where none is left out.
        prefix, id_column: what the custom_ids are made of.
    """
    if ROW_COLUMN not in block.column_names:
        numbers = pa.array(np.arange(first_row, first_row + block.num_rows), pa.int64())
        return block, ids_of(block, numbers, prefix, id_column)
    ids = custom_ids(prefix, pa.concat_arrays(block[ROW_COLUMN].chunks))
    return block.drop_columns([ROW_COLUMN]).append_column(CUSTOM_ID_COLUMN, ids), ids


def ids_of(rows: pa.Table, numbers: pa.Int64Array, prefix: str | None, id_column: str | None) -> pa.Array:
    """The custom_ids of rows: the id column's values, or prefix and row number."""
    if id_column is None:
        return custom_ids(prefix or "", numbers)
    ids = pc.cast(rows[id_column], pa.string())
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


def _content(lines: pa.LargeStringArray) -> memoryview:
    """The bytes of the lines one after the other, without a copy."""
    if not len(lines):
        return memoryview(b"")
    _, offsets, values = lines.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int64)[lines.offset : lines.offset + len(lines) + 1]
    return memoryview(values)[int(bounds[0]) : int(bounds[-1])]
