"""The lines of a request file, block by block, and as columns where each is one strict JSON object.

One buffer is used again and again: a block is valid until the next is asked for. Knows what a line must be to be read
at once; what else may be wrong with it is the business of `pipeline.checking`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.json as pj
from numpy.typing import NDArray

BLOCK_BYTES = 4 << 20
COLUMNS = pa.schema(
    [
        ("custom_id", pa.string()),
        ("method", pa.string()),
        ("url", pa.string()),
        ("body", pa.struct([("model", pa.string()), ("stream", pa.bool_())])),
    ]
)
NO_STOPS: NDArray[np.int64] = np.empty(0, np.int64)
_NEWLINE, _RETURN, _OPEN, _CLOSE = 10, 13, 123, 125


def table_of(data: memoryview, stops: NDArray[np.int64]) -> pa.Table | None:
    """The lines as columns, or None where a line may be anything but one strict JSON object."""
    if not len(stops):
        return None
    seen = np.frombuffer(data, np.uint8)
    before = seen[np.maximum(stops - 2, 0)]
    before = np.where(before == _RETURN, seen[np.maximum(stops - 3, 0)], before)
    starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
    # A line that begins with { and ends with } after as many objects as there are lines holds exactly one.
    if not (seen[starts] == _OPEN).all() or not (before == _CLOSE).all():
        return None
    if _may_be_no_number(seen) or not _is_utf8(data):
        return None
    try:
        table = pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 16),
            parse_options=pj.ParseOptions(explicit_schema=COLUMNS, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    return table if table.num_rows == len(stops) else None


def _may_be_no_number(seen: NDArray[np.uint8]) -> bool:
    """Whether NaN or Inf stands anywhere, also in text: the reader takes them for numbers, and JSON has none such."""
    for word in (b"NaN", b"Inf"):
        at = np.flatnonzero(seen[:-2] == word[0])
        if ((seen[at + 1] == word[1]) & (seen[at + 2] == word[2])).any():
            return True
    return False


def _is_utf8(data: memoryview) -> bool:
    """Whether all of it is UTF-8: the reader looks only at what is asked for."""
    if not (np.frombuffer(data, np.uint8).view(np.int8) < 0).any():
        return True
    bounds = pa.py_buffer(np.array([0, len(data)], np.int64))
    whole = pa.Array.from_buffers(pa.large_binary(), 1, [None, bounds, pa.py_buffer(data)])
    try:
        pl.Series(pl.from_arrow(whole)).cast(pl.String)
    except pl.exceptions.PolarsError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines in a buffer that is used again; `added`: the last one's missing newline; `too_long`: a line's length
    that is held nowhere."""

    data: memoryview
    stops: NDArray[np.int64]
    added: int = 0
    too_long: int = 0


def line_blocks(file: BinaryIO, bytes_max: int) -> Iterator[Block]:
    """A file's lines, block by block; each is valid until the next is asked for."""
    buffer, filled, skipped = bytearray(BLOCK_BYTES + 1), 0, 0
    while got := file.readinto(memoryview(buffer)[filled:-1]):  # type: ignore[attr-defined]
        fresh = np.frombuffer(buffer, np.uint8, count=got, offset=filled)
        stops = np.flatnonzero(fresh == _NEWLINE) + (filled + 1)
        filled += got
        if skipped:
            if not len(stops):
                skipped, filled = skipped + filled, 0
                continue
            end = int(stops[0])
            yield Block(memoryview(b""), NO_STOPS, too_long=skipped + end)
            skipped, stops = 0, stops[1:] - end
            filled = _keep(buffer, end, filled)
        if len(stops):
            yield Block(memoryview(buffer)[: int(stops[-1])], stops)
            filled = _keep(buffer, int(stops[-1]), filled)
        if filled > bytes_max:
            skipped, filled = filled, 0
        elif filled >= len(buffer) - 1:
            buffer = buffer + bytearray(len(buffer))
    if skipped:
        yield Block(memoryview(b""), NO_STOPS, too_long=skipped)
    elif filled:
        buffer[filled] = _NEWLINE
        yield Block(memoryview(buffer)[: filled + 1], np.array([filled + 1]), added=1)


def _keep(buffer: bytearray, start: int, stop: int) -> int:
    """Move what is left to the front; how much it is."""
    left = stop - start
    view = memoryview(buffer)
    view[:left] = bytes(view[start:stop])
    return left
