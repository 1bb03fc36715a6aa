"""The corpus as blocks of rows in order, bounded in bytes, and the identity of its content.

A source is a frozen list of files of one kind with one schema; every row of every file is read or the run does not
start. Rows stay in pyarrow. What a format is lies in the modules of the formats, which files there are in `files`,
which rows and columns are wanted in `selection`. Knows nothing of templates, shards or limits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.build.arrow_source import arrow_blocks, open_arrow
from pipeline.build.csv_source import CsvShape, Dialect, csv_blocks, dialect_of, open_csv
from pipeline.build.csv_types import TypeGuess
from pipeline.build.files import InputFile, list_files, partition_value, source_name
from pipeline.build.jsonl_source import Conflict, jsonl_blocks, merge_schemas, open_jsonl
from pipeline.build.parquet_source import open_parquet, parquet_blocks
from pipeline.build.streams import first_line
from pipeline.errors import SourceError, UsageError

RESERVED_PREFIX = "__batchmill_"
BLOCK_BYTES = 12 << 20
_BLOCK_ROWS_MAX = 65_536


class Rows(Protocol):
    """What sealing asks of a source, whatever is behind it.

    Attributes:
        schema: the carried columns.
        kept: reserved columns that its blocks have beside them, for the row files alone.
    """

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def kept(self) -> pa.Schema: ...

    def blocks(self, *, start_row: int = 0) -> Iterator[pa.Table]: ...


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How text files are read; None: as the ending says.

    Attributes:
        delimiter, quote, encoding: of CSV and TSV files.
        infer_types: give CSV columns types where that loses nothing.
    """

    delimiter: str | None = None
    quote: str | None = None
    encoding: str | None = None
    infer_types: bool = False

    def given(self) -> str | None:
        """The first option that says something."""
        named = {"--delimiter": self.delimiter, "--quote": self.quote, "--encoding": self.encoding}
        return next((flag for flag, value in named.items() if value is not None), None) or (
            "--infer-types" if self.infer_types else None
        )


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A file and what opening it has told: rows (None where only reading tells), its own schema, for CSV its shape."""

    file: InputFile
    schema: pa.Schema
    rows: int | None
    csv: CsvShape | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source.

    Attributes:
        files: in order, frozen.
        format: `parquet`, `csv`, `tsv`, `jsonl` or `arrow`.
        schema: its columns, with metadata as pyarrow reads it; partition columns last.
        rows: how many rows it has; None where only reading tells.
        size_bytes: of all files.
        digest: identity of the content and of how it is read; never the time of change.
        name: what it is called without endings.
        folder: where relative paths in its rows start: the folder named, or the one of the first file.
        dialect: how text files are written.
        partitions: the columns that folders' names say.
        typed: whether CSV values are converted to the schema's types.
    """

    files: tuple[OpenedFile, ...]
    format: str
    schema: pa.Schema
    rows: int | None
    size_bytes: int
    digest: str
    name: str
    folder: Path
    dialect: Dialect
    partitions: tuple[str, ...] = ()
    typed: bool = False

    @property
    def kept(self) -> pa.Schema:
        """No reserved columns."""
        return pa.schema([])

    def blocks(
        self, *, start_row: int = 0, columns: Sequence[str] | None = None, block_bytes: int = BLOCK_BYTES
    ) -> Iterator[pa.Table]:
        """The rows from `start_row` on, in order; small files are put together into blocks.

        Args:
            start_row: rows before it are passed over.
            columns: only these, in the schema's order; None: all.
            block_bytes: about how large a block is in memory, at least one row.

        Raises:
            SourceError: a file cannot be read to its end, or is not what it was; names it and, for text, the line.
        """
        schema = self.schema
        if columns is not None:
            wanted = set(columns)
            schema = pa.schema([field for field in schema if field.name in wanted], metadata=schema.metadata)
        held: list[pa.Table] = []
        held_bytes = held_rows = 0
        for block in self._blocks(start_row, schema, block_bytes):
            if not held and (len(self.files) == 1 or block.nbytes >= block_bytes // 4):
                yield block
                continue
            held.append(block)
            held_bytes, held_rows = held_bytes + block.nbytes, held_rows + block.num_rows
            if held_bytes >= block_bytes // 2 or held_rows >= _BLOCK_ROWS_MAX:
                yield pa.concat_tables(held).combine_chunks()
                held, held_bytes, held_rows = [], 0, 0
        if held:
            yield pa.concat_tables(held).combine_chunks()

    def _blocks(self, start_row: int, schema: pa.Schema, block_bytes: int) -> Iterator[pa.Table]:
        skip = start_row
        for opened in self.files:
            if opened.rows is not None and opened.rows <= skip:
                skip -= opened.rows
                continue
            opened.file.check_unchanged()
            # A Parquet reader passes over rows by itself; the others read them.
            seen = skip if self.format == "parquet" else 0
            for block in self._file_blocks(opened, seen, schema, block_bytes):
                rest = block.slice(max(0, skip - seen))
                seen += block.num_rows
                if rest.num_rows:
                    yield self._whole(rest, opened.file, schema)
            if opened.rows is not None and seen != opened.rows:
                raise SourceError(
                    f"{opened.file.path} gave {seen:,} rows where it has {opened.rows:,}: write it again, as Parquet."
                )
            skip = max(0, skip - seen)
            opened.file.check_unchanged()

    def _file_blocks(
        self, opened: OpenedFile, skip: int, schema: pa.Schema, block_bytes: int
    ) -> Iterator[pa.Table]:
        file = opened.file
        names = [name for name in schema.names if name not in self.partitions]
        if self.format == "parquet":
            return parquet_blocks(file, skip, names, block_bytes)
        if self.format == "arrow":
            return arrow_blocks(file, names, block_bytes)
        if self.format == "jsonl":
            whole = pa.schema([field for field in self.schema if field.name not in self.partitions])
            return jsonl_blocks(file, whole, block_bytes)
        assert opened.csv is not None
        return csv_blocks(file, names, opened.csv, self.dialect, block_bytes)

    def _whole(self, block: pa.Table, file: InputFile, schema: pa.Schema) -> pa.Table:
        """A file's rows under the schema of all: columns in its order, partition columns added."""
        if block.schema.equals(schema):
            return pa.Table.from_arrays(block.columns, schema=schema) if block.num_columns else block
        said = dict(file.partitions)
        columns = []
        for field in schema:
            if field.name in self.partitions:
                value = said[field.name]
                known = int(value) if value is not None and pa.types.is_integer(field.type) else value
                columns.append(pa.repeat(pa.scalar(known, field.type), block.num_rows))
            else:
                column = block.column(field.name)
                columns.append(column if column.type == field.type else column.cast(field.type))
        if not columns:
            return block.select([])
        return pa.table(columns, schema=schema)


def open_source(data: Path | Sequence[Path], options: ReadOptions | None = None) -> Source:
    """Open and check a source.

    Args:
        data: files, folders and globs.
        options: how text files are read.

    Raises:
        SourceError: a file is missing, empty, truncated, of another kind than its name says, has other columns than the
            rest, or a column that cannot be carried; names it.
        UsageError: an option does not go with the files.
    """
    paths = [data] if isinstance(data, Path) else list(data)
    told = options or ReadOptions()
    files = list_files(paths)
    kind = files[0].format
    if kind not in ("csv", "tsv") and (flag := told.given()):
        raise UsageError(f"{flag} is for CSV and TSV files, and {files[0].path} is none: leave it out.")
    dialect = dialect_of(kind, told.delimiter, told.quote, told.encoding)
    digests: list[str] = []
    opened: list[OpenedFile] = []
    for file in files:
        one, digest = _opened(file, dialect, infer=told.infer_types)
        opened.append(one if not opened or one.schema != opened[0].schema else _sharing(one, opened[0].schema))
        digests.append(digest)
    schema = _common_schema(opened, loose=kind == "jsonl" or told.infer_types)
    partitions = _partition_fields(files, schema)
    whole = pa.schema([*schema, *partitions], metadata=schema.metadata)
    _check_columns(files[0].path, whole)
    counts = [file.rows for file in opened]
    return Source(
        files=tuple(opened),
        format=kind,
        schema=whole,
        rows=None if None in counts else sum(count for count in counts if count is not None),
        size_bytes=sum(file.stamp.size_bytes for file in files),
        digest=_digest(files, digests, partitions, infer=told.infer_types),
        name=source_name(paths),
        folder=paths[0] if paths[0].is_dir() else files[0].path.parent,
        dialect=dialect,
        partitions=tuple(field.name for field in partitions),
        typed=told.infer_types,
    )


def _opened(file: InputFile, dialect: Dialect, *, infer: bool) -> tuple[OpenedFile, str]:
    try:
        if file.format == "parquet":
            schema, rows, digest = open_parquet(file)
            return OpenedFile(file, schema, rows), digest
        if file.format == "arrow":
            schema, _, digest = open_arrow(file)
            return OpenedFile(file, schema, None), digest
        if file.format == "jsonl":
            schema, rows, digest = open_jsonl(file)
            return OpenedFile(file, schema, rows), digest
        shape = open_csv(file, dialect)
        schema = pa.schema([(name, pa.string()) for name in shape.names])
        if infer:
            _check_names(file.path, shape.names)
            guess = TypeGuess(shape.names)
            for block in csv_blocks(file, shape.names, shape, dialect, BLOCK_BYTES):
                guess.add(block)
            schema = guess.schema()
        return OpenedFile(file, schema, shape.records, shape), shape.digest
    except OSError as error:
        raise SourceError(f"{file.path} cannot be read ({first_line(error)}): check that it is there.") from error


def _sharing(one: OpenedFile, schema: pa.Schema) -> OpenedFile:
    """The same, without a copy of the schema: there may be many thousand files."""
    return OpenedFile(one.file, schema, one.rows, one.csv)


def _common_schema(opened: Sequence[OpenedFile], *, loose: bool) -> pa.Schema:
    """The one schema of all files.

    Args:
        loose: types were found by looking at values, so that they may be widened.

    Raises:
        SourceError: a file has other columns or types; names it.
    """
    first = opened[0]
    schema = first.schema
    for one in opened[1:]:
        if one.schema is first.schema:
            continue
        if loose and first.csv is None:
            try:
                schema = merge_schemas(schema, one.schema)
            except Conflict as clash:
                raise SourceError(
                    f"{one.file.path}: {clash.path} is {clash.other}, and {clash.one} in the files before it; "
                    "make it one type."
                ) from None
            continue
        schema = _agreed(schema, first.file.path, one, loose=loose)
    return schema


def _agreed(schema: pa.Schema, first: Path, one: OpenedFile, *, loose: bool) -> pa.Schema:
    _check_names(one.file.path, one.schema.names)
    theirs = {field.name: field.type for field in one.schema}
    for name in schema.names:
        if name not in theirs:
            raise SourceError(f"{one.file.path} has no column {name!r}, which {first} has: make the files alike.")
    for name in theirs:
        if name not in schema.names:
            raise SourceError(f"{one.file.path} has a column {name!r}, which {first} has not: make the files alike.")
    fields = []
    for field in schema:
        kind = theirs[field.name]
        if kind == field.type or (not loose and _alike(kind) == _alike(field.type)):
            fields.append(field.with_nullable(field.nullable or one.schema.field(field.name).nullable))
        elif loose:
            numbers = {kind, field.type} == {pa.int64(), pa.float64()}
            fields.append(pa.field(field.name, pa.float64() if numbers else pa.string()))
        else:
            raise SourceError(
                f"{one.file.path}: column {field.name!r} is {kind}, and {field.type} in {first}: make the files alike."
            )
    return pa.schema(fields, metadata=schema.metadata)


def _alike(kind: pa.DataType) -> pa.DataType:
    """Types that hold the same values, however wide their offsets are."""
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        return pa.large_binary()
    return kind


def _partition_fields(files: Sequence[InputFile], schema: pa.Schema) -> list[pa.Field]:
    """The columns that the folders' names say; a column that the files have themselves is theirs."""
    names = [name for name, _ in files[0].partitions]
    for file in files:
        if [name for name, _ in file.partitions] != names:
            raise SourceError(
                f"{file.path} lies in other partition folders than {files[0].path}: name files of one layout."
            )
    if len(set(names)) < len(names):
        raise SourceError(f"{files[0].path}: a partition column stands twice in its path; name files of one layout.")
    fields = []
    for index, name in enumerate(names):
        if name not in schema.names:
            whole = partition_value(file.partitions[index][1] for file in files)
            some = any(file.partitions[index][1] is not None for file in files)
            fields.append(pa.field(name, pa.int64() if whole and some else pa.string()))
    return fields


def _digest(files: Sequence[InputFile], digests: Sequence[str], partitions: Sequence[pa.Field], *, infer: bool) -> str:
    if len(files) == 1 and not partitions and not infer:
        return digests[0]
    named = [field.name for field in partitions]
    whole = hashlib.sha256(b"files\0types\0" if infer else b"files\0")
    for file, digest in zip(files, digests, strict=True):
        whole.update(digest.encode())
        whole.update(repr([pair for pair in file.partitions if pair[0] in named]).encode())
    return whole.hexdigest()


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        doubled = min(name for name in names if names.count(name) > 1)
        raise SourceError(f"{path} has more than one column called {doubled!r}: rename one.")
    for index, name in enumerate(names):
        if not name.strip():
            raise SourceError(f"{path} has a column without a name (column {index + 1}): name it.")
        if name.startswith(RESERVED_PREFIX):
            raise SourceError(f"{path}: column {name!r} has a reserved name ({RESERVED_PREFIX}…): rename it.")


def _check_columns(path: Path, schema: pa.Schema) -> None:
    _check_names(path, schema.names)
    kept: dict[str, bool] = {}
    for field in schema:
        known = str(field.type)
        if known not in kept:
            kept[known] = _as_parquet_keeps(field) == field.type
        if not kept[known]:
            raise SourceError(
                f"{path}: column {field.name!r} has type {field.type}, "
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
