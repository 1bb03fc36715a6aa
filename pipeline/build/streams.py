"""The bytes of a text file: unpacked, and checked to be what the file's name says.

Owns compression and the recognition of foreign formats by their first bytes. A packed file that is cut short or damaged
raises, and is never taken for one that has ended. Knows nothing of records.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipeline.build.files import InputFile
from pipeline.errors import SourceError

PIECE_BYTES = 4 << 20
_MAGIC = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"FEA1": "a Feather file of version 1",
    b"\x1f\x8b": "packed with gzip",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"PK\x03\x04": "a ZIP archive, perhaps a workbook",
    b"\xd0\xcf\x11\xe0": "an old workbook",
    b"SQLite format 3": "a SQLite database",
    b"Obj\x01": "an Avro file",
    b"ORC": "an ORC file",
    b"%PDF": "a PDF",
}
_ENDINGS = {
    "a Parquet file": ".parquet", "an Arrow file": ".arrow", "packed with gzip": ".gz", "packed with zstd": ".zst",
}  # fmt: skip


def check_head(file: InputFile) -> None:
    """Make sure that a text file begins as its name says.

    Raises:
        SourceError: it is of another kind.
    """
    with file.path.open("rb") as raw:
        head = raw.read(16)
    really = next((words for magic, words in _MAGIC.items() if head.startswith(magic)), None)
    expected = {"gzip": "packed with gzip", "zstd": "packed with zstd"}.get(file.compression or "")
    if really == expected:
        return
    if really is None:
        raise SourceError(f"{file.path} is not {expected}, whatever its name says: rename it, or pack it again.")
    what = f"rename it to end in {_ENDINGS[really]}" if really in _ENDINGS else "convert it first"
    raise SourceError(f"{file.path} is {really}, whatever its name says: {what}.")


@contextmanager
def unpacked(file: InputFile) -> Iterator[Any]:
    """The file's content as a stream of bytes that pyarrow can read.

    Raises:
        SourceError: it cannot be read, or cannot be unpacked to its end.
    """
    try:
        with pa.input_stream(str(file.path), compression=file.compression, buffer_size=1 << 20) as stream:
            yield stream
    except OSError as error:
        if file.compression is None:
            raise SourceError(f"{file.path} cannot be read ({first_line(error)}): check that it is there.") from error
        raise SourceError(
            f"{file.path} cannot be unpacked to its end ({first_line(error)}): copy or pack it again."
        ) from error


def pieces_of(file: InputFile) -> Iterator[bytes]:
    """The unpacked content, piece by piece.

    Raises:
        SourceError: as of `unpacked`.
    """
    with unpacked(file) as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


def first_line(error: BaseException) -> str:
    """What a library says of an error, short enough for a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
