"""One CSV or TSV file: header, identity, and blocks of text columns, where nothing is lost in silence.

A first pass counts the records, finds broken quotes and undecodable bytes, and takes the digest; pyarrow then reads the
values, and must come to the same number. Values stay text unless types are asked for (`csv_types`).
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from pipeline.build.csv_scan import BrokenQuote, CsvScan
from pipeline.build.files import InputFile
from pipeline.build.streams import check_head, first_line, pieces_of, unpacked
from pipeline.errors import SourceError, UsageError

_HEADER_BYTES_MAX = 1 << 20
_CSV_BLOCK_BYTES = 8 << 20
_RECORD_BYTES_MAX = 512 << 20
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a text file is written.

    Attributes:
        delimiter: one ASCII character.
        quote: one ASCII character; "": quotes are text like any other.
        encoding: as Python names it; a byte order mark is no part of the text.
    """

    delimiter: str = ","
    quote: str = '"'
    encoding: str = "utf-8"

    @property
    def plain(self) -> bool:
        """Whether the file's bytes are UTF-8 already."""
        return self.encoding == "utf-8"


def dialect_of(format: str, delimiter: str | None, quote: str | None, encoding: str | None) -> Dialect:
    """The dialect that options say, or that goes with `csv` or `tsv`.

    Raises:
        UsageError: an option cannot be used.
    """
    default = "\t" if format == "tsv" else ","
    given = {"\\t": "\t", "tab": "\t"}.get(delimiter or "", delimiter) or default
    mark = '"' if quote is None else {"none": ""}.get(quote, quote)
    for flag, value in (("--delimiter", given), ("--quote", mark)):
        if len(value) > 1 or not value.isascii() or value in ("\n", "\r", "\0"):
            raise UsageError(f"{flag} takes one ASCII character, not {value!r}.")
    if given == mark:
        raise UsageError(f"--delimiter and --quote are both {given!r}: choose two characters.")
    try:
        name = codecs.lookup(encoding or "utf-8").name
        "a".encode(name)
    except LookupError:
        raise UsageError(
            f"--encoding {encoding!r} is not known: name one such as utf-8, latin-1, cp1252 or utf-16."
        ) from None
    return Dialect(given, mark, "utf-8" if name == "utf-8-sig" else name)


@dataclass(frozen=True, slots=True)
class CsvShape:
    """What the first pass found: column names, records after the header, the longest one, the content's digest."""

    names: list[str]
    records: int
    longest_bytes: int
    digest: str


def open_csv(file: InputFile, dialect: Dialect) -> CsvShape:
    """Read a file once, for everything that must be known before its values.

    Raises:
        SourceError: it is of another kind, has no header, a broken quote or bytes that are not in its encoding; names
            the line.
    """
    check_head(file)
    names = _header_of(file, dialect)
    digest = hashlib.sha256(b"csv\0text\0")
    if dialect != Dialect():
        digest.update(f"{dialect.delimiter}\0{dialect.quote}\0{dialect.encoding}\0".encode())
    scan = CsvScan(dialect.delimiter, dialect.quote, blank_records=len(names) == 1)
    try:
        for piece in _as_utf8(file, dialect, scan, digest):
            scan.add(piece)
        records = scan.finish()
    except BrokenQuote as broken:
        raise SourceError(f"{file.path}, line {broken.line}: {broken.words}.") from None
    if scan.longest_bytes > _RECORD_BYTES_MAX:
        raise SourceError(f"{file.path} has a record of {scan.longest_bytes:,} bytes: is --delimiter or --quote wrong?")
    return CsvShape(names, records - 1, scan.longest_bytes, digest.hexdigest())


def _header_of(file: InputFile, dialect: Dialect) -> list[str]:
    """The column names in the first record."""
    with unpacked(file) as stream:
        head = stream.read(_HEADER_BYTES_MAX)
    if not head:
        raise SourceError(f"{file.path} is empty: write it again, or leave it out.")
    decoder = codecs.getincrementaldecoder(dialect.encoding)()
    try:
        text = decoder.decode(head, final=len(head) < _HEADER_BYTES_MAX).removeprefix(_BOM)
    except UnicodeDecodeError as error:
        text = head[: error.start].decode(dialect.encoding, "ignore").removeprefix(_BOM)
        if "\n" not in text:
            raise _undecodable(file, dialect, text.count("\n") + 1, head) from error
    _lift_field_limit()
    try:
        names = next(csv.reader(io.StringIO(text, newline=""), **_python_dialect(dialect)), [])
    except csv.Error as error:
        raise SourceError(f"{file.path}, line 1: the header cannot be read ({error}).") from error
    if not any(name.strip() for name in names):
        raise SourceError(f"{file.path}, line 1: there is no header; the first line must name the columns.")
    return names


def _as_utf8(file: InputFile, dialect: Dialect, scan: CsvScan | None = None, digest: Any = None) -> Iterator[bytes]:
    """The content as UTF-8 without a byte order mark, every byte of it checked."""
    decoder = codecs.getincrementaldecoder(dialect.encoding)()
    first, piece = True, b""
    try:
        for piece in pieces_of(file):
            if digest is not None:
                digest.update(piece)
            text = decoder.decode(piece)
            if dialect.plain:
                yield piece.removeprefix(_BOM.encode()) if first else piece
            else:
                yield (text.removeprefix(_BOM) if first else text).encode()
            first = first and not text
        piece = b""
        yield decoder.decode(b"", final=True).encode()
    except UnicodeDecodeError as error:
        lines = scan.lines if scan is not None else 0
        before = error.object[: error.start].decode(dialect.encoding, "ignore")
        raise _undecodable(file, dialect, lines + before.count("\n") + 1, error.object) from error


def _undecodable(file: InputFile, dialect: Dialect, line: int, seen: bytes) -> SourceError:
    if dialect.plain:
        sixteen = seen[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in seen[:64]
        hint = "utf-16" if sixteen and line == 1 else "cp1252"
        return SourceError(
            f"{file.path}, line {line}: a byte that is not UTF-8; say --encoding {hint}, or whatever it is."
        )
    return SourceError(f"{file.path}, line {line}: a byte that is not {dialect.encoding}; name another --encoding.")


class _Stream(io.RawIOBase):
    """Pieces of bytes as a file to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


@contextmanager
def _readable(file: InputFile, dialect: Dialect) -> Iterator[Any]:
    """The content as pyarrow can read it, in UTF-8."""
    if dialect.plain:
        with unpacked(file) as stream:
            yield stream
    else:
        with io.BufferedReader(_Stream(_as_utf8(file, dialect)), 1 << 20) as stream:
            yield stream


def csv_blocks(
    file: InputFile, names: Sequence[str], shape: CsvShape, dialect: Dialect, block_bytes: int
) -> Iterator[pa.Table]:
    """The records after the header, every column as text: an unquoted empty field is null, a quoted one is empty text.

    Raises:
        SourceError: a record with too few or too many fields; names the line.
    """
    schema = pa.schema([(name, pa.string()) for name in shape.names])
    block = max(min(block_bytes, _CSV_BLOCK_BYTES), 2 * shape.longest_bytes + 1024)
    try:
        with _readable(file, dialect) as stream:
            reader = pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(use_threads=False, block_size=block),
                parse_options=pacsv.ParseOptions(
                    delimiter=dialect.delimiter,
                    quote_char=dialect.quote or False,
                    newlines_in_values=True,
                    ignore_empty_lines=len(names) > 1,
                ),
                convert_options=pacsv.ConvertOptions(
                    column_types=schema,
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            )
            for batch in reader:
                if batch.schema.names != schema.names:
                    raise SourceError(f"{file.path}, line 1: the header cannot be read; quote the names in it.")
                yield pa.Table.from_batches([batch]).cast(schema).select(list(names))
    except (pa.ArrowException, OSError) as error:
        if shape.records == 0 and ("Empty CSV file" in str(error) or "no data" in str(error).lower()):
            return
        raise _explained(file, dialect, len(shape.names), error) from error


def _python_dialect(dialect: Dialect) -> dict[str, Any]:
    if not dialect.quote:
        return {"delimiter": dialect.delimiter, "quoting": csv.QUOTE_NONE, "quotechar": None}
    return {"delimiter": dialect.delimiter, "quotechar": dialect.quote}


def _lift_field_limit() -> None:
    csv.field_size_limit(sys.maxsize)


def _explained(file: InputFile, dialect: Dialect, columns: int, error: BaseException) -> SourceError:
    """Find the line that pyarrow could not read, with the standard reader."""
    _lift_field_limit()
    record = 0
    with io.BufferedReader(_Stream(_as_utf8(file, dialect)), 1 << 20) as raw:
        reader = csv.reader(io.TextIOWrapper(raw, encoding="utf-8", newline=""), **_python_dialect(dialect))
        before = 0
        try:
            for fields in reader:
                record += 1
                if fields and len(fields) != columns:
                    told = f"{len(fields)} field{'' if len(fields) == 1 else 's'} where the header names {columns}"
                    return SourceError(f"{file.path}, line {before + 1}: {told}; correct the line.")
                before = reader.line_num
        except csv.Error as told_error:
            return SourceError(f"{file.path}, record {record + 1}: {told_error}.")
    return SourceError(f"{file.path} cannot be read ({first_line(error)}).")
