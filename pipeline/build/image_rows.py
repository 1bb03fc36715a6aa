"""A source's rows with the image files that they name: read at sealing, kept in the row files.

Owns the reading of local files, and what is wrong with those that cannot be read; blocks stay bounded in bytes,
whatever the size of the files. Does not know what an image is: `image_template` looks at the bytes.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.build.image_template import ADDRESS, ImageTemplate
from pipeline.build.images import FAULT_SUFFIX, IMAGE_BYTES_MAX, ImageColumn
from pipeline.build.source import Rows

PIECE_BYTES = 8 << 20
"""Images of a block, at most; one row at least."""

_ADDRESS = re.compile(ADDRESS.replace("(?i)", "").encode(), re.IGNORECASE)
_MESSAGE_CHARACTERS_MAX = 300


class RowsInFolder(Rows, Protocol):
    """Rows whose paths start from a folder."""

    @property
    def folder(self) -> Path: ...


class ImageRows:
    """A source with the content of the files that its rows name, in smaller blocks.

    Args:
        source: The source; paths start from its folder.
        template: The prompt.
    """

    def __init__(self, source: RowsInFolder, template: ImageTemplate) -> None:
        hidden = template.images.hidden
        self.schema = pa.schema([*source.schema, *hidden], metadata=source.schema.metadata)
        self.kept = source.kept
        self._source, self._columns = source, template.images.columns

    def blocks(self, *, start_row: int = 0) -> Iterator[pa.Table]:
        """As of `Source.blocks`, with the columns of the files' content."""
        for block in self._source.blocks(start_row=start_row):
            named = [(column, column.values(block)) for column in self._columns]
            sizes = np.zeros(block.num_rows, dtype=np.int64)
            paths: list[tuple[ImageColumn, list[Path | str | None]]] = []
            for column, values in named:
                if column.hidden is None:
                    sizes += np.asarray(pc.fill_null(pc.binary_length(values), 0)).astype(np.int64)
                else:
                    found, file_bytes = self._looked_at(column, values)
                    sizes += file_bytes
                    paths.append((column, found))
            for start, stop in _pieces(sizes):
                piece = block.slice(start, stop - start)
                for column, found in paths:
                    piece = _with_files(piece, column, found[start:stop])
                yield piece

    def _looked_at(self, column: ImageColumn, values: pa.Array) -> tuple[list[Path | str | None], Any]:
        """For each row its file, or what is wrong with it, or None where it names none; and the files' sizes."""
        found: list[Path | str | None] = []
        sizes = np.zeros(len(values), dtype=np.int64)
        for row, raw in enumerate(values.to_pylist()):
            if raw is None or _ADDRESS.match(raw):
                found.append(None)
                continue
            try:
                written = raw.decode()
                path = self._source.folder / written
                status = path.stat()
            except UnicodeDecodeError:
                found.append(f"unrenderable: column {column.told} is not valid UTF-8")
            except (OSError, ValueError) as error:
                found.append(_unreadable(column, written, error))
            else:
                found.append(_checked(column, written, path, status))
                sizes[row] = min(status.st_size, IMAGE_BYTES_MAX)
        return found, sizes


def image_rows(source: RowsInFolder, template: object) -> Rows:
    """The rows that sealing reads: the source's own, or, for a prompt with images, those with their files."""
    return ImageRows(source, template) if isinstance(template, ImageTemplate) else source


def _checked(column: ImageColumn, written: str, path: Path, status: Any) -> Path | str:
    if not stat.S_ISREG(status.st_mode):
        return f"image_unreadable: column {column.told}: {written[:200]!r} is no file"
    if status.st_size > IMAGE_BYTES_MAX:
        return f"image_too_large: column {column.told}: {written[:200]!r} has more than {IMAGE_BYTES_MAX:,} bytes"
    return path


def _unreadable(column: ImageColumn, written: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        return f"image_missing: column {column.told}: there is no file {written[:200]!r}"
    reason = getattr(error, "strerror", None) or error
    return f"image_unreadable: column {column.told}: {written[:200]!r} cannot be read ({reason})"[
        :_MESSAGE_CHARACTERS_MAX
    ]


def _pieces(sizes: Any) -> Iterator[tuple[int, int]]:
    """Runs of rows with at most `PIECE_BYTES` in all; one row at least."""
    running = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = int(running[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(running, before + PIECE_BYTES, side="right")))
        yield start, stop
        start = stop


def _with_files(piece: pa.Table, column: ImageColumn, found: list[Path | str | None]) -> pa.Table:
    """The rows with the content of their files, and with what was wrong with those that have none."""
    contents: list[bytes | None] = []
    faults: list[str | None] = []
    for each in found:
        content, fault = None, each if isinstance(each, str) else None
        if isinstance(each, Path):
            try:
                with each.open("rb") as file:
                    content = file.read(IMAGE_BYTES_MAX + 1)
            except OSError as error:
                fault = _unreadable(column, str(each), error)
        contents.append(content)
        faults.append(fault)
    assert column.hidden
    piece = piece.append_column(pa.field(column.hidden, pa.large_binary()), pa.array(contents, pa.large_binary()))
    return piece.append_column(pa.field(column.hidden + FAULT_SUFFIX, pa.string()), pa.array(faults, pa.string()))
