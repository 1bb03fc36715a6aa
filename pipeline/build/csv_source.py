"""CSV files: header, identity, and blocks of text columns, where nothing is lost in silence.

pyarrow reads the values; what it would pass over quietly (a quote that is never closed swallows the rest of the
file) is found here and named with its line. UTF-8 only; a byte order mark is accepted.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from pipeline.errors import SourceError

_PIECE_BYTES = 4 << 20
_HEADER_BYTES_MAX = 1 << 20
_CSV_BLOCK_BYTES = 8 << 20


def header_of(path: Path) -> list[str]:
    """The column names in the first record.

    Raises:
        SourceError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES_MAX)
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < _HEADER_BYTES_MAX else "ignore")
    except UnicodeDecodeError as error:
        line = head[: error.start].count(b"\n") + 1
        raise SourceError(f"{path}, line {line}: a byte that is not UTF-8; convert the file to UTF-8.") from error
    try:
        names = next(csv.reader(io.StringIO(text, newline=""), strict=True), [])
    except csv.Error as error:
        raise SourceError(f"{path}, line 1: the header cannot be read ({error}).") from error
    if not any(name.strip() for name in names):
        raise SourceError(f"{path}, line 1: there is no header; the first line must name the columns.")
    return names


def digest_of(path: Path) -> str:
    """Identity of the content, in one pass.

    Raises:
        SourceError: a quote is never closed; names the line where it opens.
    """
    digest = hashlib.sha256(b"csv\0text\0")
    quotes = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            quotes += piece.count(b'"')
    if quotes % 2:
        _check_quotes(path)
    return digest.hexdigest()


def _check_quotes(path: Path) -> None:
    """An odd number of quotes: find out whether a quoted field really stays open to the end of the file."""
    token = re.compile(rb'"|[,\n\r]|[^",\n\r]+')
    quoted, fresh, line, opened = False, True, 1, 0
    with path.open("rb") as file:
        for raw in file:
            for found in token.finditer(raw):
                mark = found[0]
                if mark == b'"':
                    if quoted:
                        quoted = False
                    elif fresh or raw[max(0, found.start() - 1) : found.start()] == b'"':
                        quoted, opened = True, line if fresh else opened
                    fresh = False
                elif not quoted:
                    fresh = mark in (b",", b"\n", b"\r")
            line += 1
    if quoted:
        raise SourceError(f"{path}, line {opened}: a quote opens there and is never closed; close it, or double it.")


def blocks_of(path: Path, schema: pa.Schema, block_bytes: int) -> Iterator[pa.Table]:
    """The records after the header, every column as text.

    Raises:
        SourceError: a record with too few or too many fields, or bytes that are not UTF-8; names the line.
    """
    try:
        reader = pacsv.open_csv(
            path,
            read_options=pacsv.ReadOptions(use_threads=False, block_size=min(block_bytes, _CSV_BLOCK_BYTES)),
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in schema.names},
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        for batch in reader:
            yield pa.Table.from_batches([batch]).cast(schema)
    except (pa.ArrowException, OSError) as error:
        if "Empty CSV file" in str(error) or "no data" in str(error).lower():
            return
        raise _explained(path, len(schema), error) from error


def _explained(path: Path, columns: int, error: BaseException) -> SourceError:
    """Find the line that pyarrow could not read, with the standard reader."""
    record = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            before = 0
            for fields in reader:
                record += 1
                if fields and len(fields) != columns:
                    return SourceError(
                        f"{path}, line {before + 1}: {len(fields)} fields where the header names {columns}; "
                        "correct the line."
                    )
                before = reader.line_num
    except UnicodeDecodeError:
        return _not_utf8(path)
    except csv.Error as told:
        return SourceError(f"{path}, record {record + 1}: {told}.")
    return SourceError(f"{path} cannot be read ({(str(error).splitlines() or [''])[0][:200]}).")


def _not_utf8(path: Path) -> SourceError:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError:
                return SourceError(f"{path}, line {number}: a byte that is not UTF-8; convert the file to UTF-8.")
    return SourceError(f"{path} is not UTF-8; convert it.")
