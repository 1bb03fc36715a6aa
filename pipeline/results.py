"""Result files to columns: whatever shape the service gives the lines, block by block.

Cuts a file at newline bytes, has each block read at once where that is exact, and line by line where it is not. A line
that cannot be read costs that line, never the file. Judges nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.result_columns import block_columns, line_starts
from pipeline.result_line import Row, line_rows

RESULTS = pa.schema(
    [
        ("custom_id", pa.string()),
        ("usable", pa.bool_()),
        ("http_status", pa.int32()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("answer", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("reasoning_tokens", pa.int64()),
        ("model", pa.string()),
        ("raw", pa.string()),
    ]
)
PIECE_BYTES = 8 << 20
READERS = 2
"""Blocks that are read at a time; memory holds as many, one that is coming and one that is taken."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_NEWLINE = 10
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Block:
    """Results of some lines, in the file's order.

    Attributes:
        table: rows of `RESULTS`; a malformed line without a visible custom_id has a null one.
        content: the lines' bytes.
    """

    table: pa.Table
    content: memoryview

    def lines(self) -> list[bytes]:
        """The lines, blank ones left out; as many as rows, but where lines lost the newline between them."""
        return _lines(self.content)


def gives_several(kind: str, body: dict[str, Any]) -> bool:
    """Whether a request asks for several answers: `n` choices, or vectors of several texts."""
    if kind == "embeddings":
        asked = body.get("input")
        return isinstance(asked, list) and len(asked) > 1 and all(isinstance(text, str | list) for text in asked)
    n = body.get("n")
    return kind == "chat" and isinstance(n, int) and n > 1


def read_results(path: Path, kind: str, *, several: bool = False, raw: bool = False) -> Iterator[pa.Table]:
    """Read one result file.

    Args:
        path: JSON lines, plain or compressed by its ending (`.zst`, `.gz`); absent and empty files give nothing.
        kind: chat, responses or embeddings.
        several: requests ask for several answers (`gives_several`).
        raw: keep each response body as JSON text.

    Yields:
        Tables of `RESULTS`, in the file's order; a malformed line without a visible custom_id has a null one.
    """
    for block in read_blocks(path, kind, several=several, raw=raw):
        yield block.table


def read_blocks(path: Path, kind: str, *, several: bool = False, raw: bool = False) -> Iterator[Block]:
    """As `read_results`, with the lines' bytes beside the rows."""
    with ThreadPoolExecutor(READERS) as readers:
        coming: deque[Future[Block]] = deque()
        for content in pieces(path):
            coming.append(readers.submit(_block, content, kind, several, raw))
            if len(coming) > READERS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _block(content: memoryview, kind: str, several: bool, raw: bool) -> Block:
    table = _vectorised(content, kind) if not several and not raw else None
    return Block(_by_line(content, kind, several, raw) if table is None else table, content)


def pieces(path: Path) -> Iterator[memoryview]:
    """A file in pieces of whole lines, each of about `PIECE_BYTES` or one longer line; nothing for an absent file."""
    if not path.exists():
        return
    with pa.input_stream(str(path), compression="detect") as stream, ThreadPoolExecutor(1) as ahead:
        rest = np.empty(0, dtype=np.uint8)
        coming = ahead.submit(_filled, stream, rest)
        first = True
        while True:
            piece, ended = coming.result()
            if first and piece[:3].tobytes() == _BOM:
                piece = piece[3:]
            first = False
            cut = len(piece) if ended else _after_last_newline(piece)
            rest = piece[cut:]
            if not ended:
                coming = ahead.submit(_filled, stream, rest)
            if cut:
                yield piece[:cut].data
            if ended:
                return


def _filled(stream: Any, rest: Bytes) -> tuple[Bytes, bool]:
    """What was left over, with a piece of the stream after it, and whether that was the end."""
    buffer = np.empty(len(rest) + PIECE_BYTES, dtype=np.uint8)
    buffer[: len(rest)] = rest
    size = len(rest)
    while size < len(buffer):
        read = stream.readinto(buffer[size:].data)
        if not read:
            return buffer[:size], True
        size += read
    return buffer, False


def _after_last_newline(piece: Bytes) -> int:
    """Where the last whole line ends; 0: there is none."""
    stop = len(piece)
    while stop > 0:
        start = max(0, stop - (1 << 16))
        found = np.flatnonzero(piece[start:stop] == _NEWLINE)
        if len(found):
            return start + int(found[-1]) + 1
        stop = start
    return 0


def _vectorised(content: memoryview, kind: str) -> pa.Table | None:
    """A block's rows at once; the few that are not plain successes one by one. None: not exactly, this way."""
    starts = line_starts(content)
    found = None if starts is None else block_columns(content, len(starts), kind, RESULTS)
    if found is None or starts is None:
        return None
    table = pa.Table.from_batches([batch for batch, _ in found], RESULTS)
    good = np.concatenate([mask for _, mask in found]) if found else np.zeros(0, dtype=bool)
    if good.all():
        return table
    odd = np.flatnonzero(~good)
    stops = np.append(starts[1:], len(content))
    rows: list[Row] = []
    ids = table["custom_id"].take(pa.array(odd)).to_pylist()
    for index, custom_id in zip(odd.tolist(), ids, strict=True):
        read = line_rows(bytes(content[starts[index] : stops[index]]), kind)
        if len(read) != 1 or (custom_id is not None and read[0][0] != custom_id):
            return None  # rows and lines are not one to one
        rows += read
    order = np.cumsum(good) - 1
    order[odd] = good.sum() + np.arange(len(odd))
    return pa.concat_tables([table.filter(pa.array(good)), table_of(rows)]).take(pa.array(order))


def _by_line(content: memoryview, kind: str, several: bool, raw: bool) -> pa.Table:
    rows: list[Row] = []
    for line in _lines(content):
        rows += line_rows(line, kind, several=several, raw=raw)
    return table_of(rows)


def _lines(content: memoryview) -> list[bytes]:
    """The lines that are not blank; cut at newline bytes alone, never at U+2028."""
    return [line for line in bytes(content).split(b"\n") if line and not line.isspace()]


def table_of(rows: list[Row]) -> pa.Table:
    """Rows of single lines as a table of `RESULTS`."""
    if not rows:
        return RESULTS.empty_table()
    columns = list(zip(*rows, strict=True))
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, RESULTS, strict=True)], schema=RESULTS
    )
