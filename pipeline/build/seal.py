"""Seals a corpus: blocks are rendered to be measured, cut into shards, and kept as row files, span by span.

A span is at most 1,000,000 rows; a shard never crosses one. Reading, measuring and writing overlap in threads; the
cuts and the bytes are those of one thread. A span is given out when every file of it is durable, so that the caller's
one commit makes it sealed. Everything that can be wrong with the input is found here. Sends nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.build.columns import NULL_VALUE
from pipeline.build.identity import IdCheck
from pipeline.build.overlap import in_order
from pipeline.build.packer import Limits, Packer, Sizes
from pipeline.build.shelf import OnShelf, Shelf
from pipeline.build.source import Rows
from pipeline.build.template import Measured
from pipeline.build.writer import RESERVED, Renders, measured, named_rows, row_file_schema
from pipeline.errors import SourceError
from pipeline.ids import CUSTOM_ID_COLUMN, ROW_COLUMN

SPAN_ROWS = 1_000_000
SPANS_WAITING_MAX = 2
"""Spans whose last files are still being written while later ones are sealed."""
TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class SealedShard:
    """A shard whose row file is durable; sizes are sums over its sendable rows."""

    name: str
    span: int
    position: int
    first_row: int
    stop_row: int
    requests: int
    skipped: int
    bytes: int
    tokens: int


@dataclass(frozen=True, slots=True)
class SealedSpan:
    """A span whose shards' files are all durable."""

    span: int
    first_row: int
    stop_row: int
    shards: tuple[SealedShard, ...]


@dataclass(slots=True)
class _OpenShard:
    name: str
    position: int
    first_row: int
    file: OnShelf | None
    rows: int = 0
    requests: int = 0
    bytes: int = 0
    tokens: int = 0

    def add(self, rows: pa.Table, sizes: Sizes, tokens: Sizes) -> None:
        if self.file is not None:
            self.file.write(rows)
        self.rows += len(sizes)
        self.requests += int(np.count_nonzero(sizes))
        self.bytes += int(sizes.sum())
        self.tokens += int(tokens.sum())


@dataclass(slots=True)
class _Span:
    """The span being sealed."""

    number: int
    first_row: int
    row: int
    shards: list[SealedShard] = field(default_factory=list)
    files: list[Future[None]] = field(default_factory=list)
    open: _OpenShard | None = None


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of the source, and the number of the first."""

    first_row: int
    rows: pa.Table


@dataclass(frozen=True, slots=True)
class _Measured:
    """A piece with the reserved columns; sizes and tokens are 0 where a row is skipped."""

    rows: pa.Table
    sizes: Sizes
    tokens: Sizes


def seal(
    source: Rows,
    template: Renders,
    limits: Limits,
    *,
    rows_dir: Path | None,
    model: str | None,
    url: str,
    custom_id_prefix: str,
    id_column: str | None,
    start_row: int = 0,
    span: int = 0,
    limit_rows: int | None = None,
    span_rows: int = SPAN_ROWS,
    refuse_nulls: bool = False,
    should_stop: Callable[[], bool] | None = None,
    threads: int | None = None,
) -> Iterator[SealedSpan]:
    """Seal a source from a span's first row on.

    Args:
        source: the corpus.
        template: renders blocks; a block is rendered once.
        limits: caps of a shard; a row over `bytes_max` is skipped as `too_large`.
        rows_dir: where row files go; None: count only, write nothing.
        model, url: what lines are measured with.
        custom_id_prefix, id_column: what the custom_ids are made of.
        start_row, span: where sealing goes on after an earlier start.
        limit_rows: only the first so many rows of the source; None: all.
        span_rows: rows of a span.
        refuse_nulls: a row skipped for a null ends the sealing.
        should_stop: asked between blocks; when true the generator ends, and the span begun is not given out.
        threads: how many measure, and how many write; None: as the machine has cores. They change no byte.

    Raises:
        SourceError: the source cannot be read to its end, a custom_id is not fit, or a null is refused.
        DiskFullError: no room.
    """
    shelf = Shelf(row_file_schema(source.schema, source.kept), lanes=threads) if rows_dir is not None else None
    sealing = _Sealing(
        template,
        limits,
        rows_dir,
        shelf,
        model,
        url,
        custom_id_prefix,
        id_column,
        span_rows,
        refuse_nulls,
        _Span(span, start_row, start_row),
    )
    ids = IdCheck(rows_dir, id_column) if id_column and id_column != CUSTOM_ID_COLUMN else None
    reading = _Reading(source, ids, start_row, limit_rows, should_stop)
    try:
        for _, found in in_order(sealing.measure, reading.pieces(), threads=threads):
            sealing.place(found)
            yield from sealing.durable()
        if not reading.stopped:
            if ids:
                ids.finish()
            sealing.end_span()
        yield from sealing.durable(wait=True)
        sealing.abandon()
    except GeneratorExit:
        sealing.abandon()
        raise
    except BaseException as error:
        sealing.abandon(error)
        raise
    finally:
        if shelf is not None:
            shelf.close()
        if ids:
            ids.close()


@dataclass(slots=True)
class _Reading:
    """The rows of the source that are to be sealed."""

    source: Rows
    ids: IdCheck | None
    start_row: int
    limit_rows: int | None
    should_stop: Callable[[], bool] | None
    stopped: bool = False

    def pieces(self) -> Iterator[_Piece]:
        """The rows in order, until the end, the limit, or a stop that is asked for."""
        # With an id column earlier rows are read again: whether an id is unique is a matter of the whole source.
        row = 0 if self.ids else self.start_row
        for block in self.source.blocks(start_row=row):
            if self.should_stop is not None and self.should_stop():
                self.stopped = True
                return
            rows = block if self.limit_rows is None else block.slice(0, max(0, self.limit_rows - row))
            if self.ids and rows.num_rows:
                self.ids.add(rows, row)
            fresh = rows.slice(max(0, self.start_row - row))
            row += rows.num_rows
            if fresh.num_rows:
                yield _Piece(row - fresh.num_rows, fresh)
            if self.limit_rows is not None and row >= self.limit_rows:
                return


@dataclass(slots=True)
class _Sealing:
    """Gives measured rows to shards, span by span."""

    template: Renders
    limits: Limits
    rows_dir: Path | None
    shelf: Shelf | None
    model: str | None
    url: str
    custom_id_prefix: str
    id_column: str | None
    span_rows: int
    refuse_nulls: bool
    span: _Span
    ended: deque[tuple[SealedSpan, list[Future[None]]]] = field(default_factory=deque)

    def measure(self, piece: _Piece) -> _Measured:
        """Measure rows; called in threads."""
        block, ids = named_rows(piece.rows, piece.first_row, self.custom_id_prefix, self.id_column)
        found = measured(self.template, block, ids, model=self.model, url=self.url)
        if self.refuse_nulls:
            _refuse_null(found, piece)
        large = pc.greater(found.line_bytes, self.limits.bytes_max)
        sizes = pc.if_else(large, 0, found.line_bytes).to_numpy(zero_copy_only=False)
        tokens = pc.if_else(large, 0, found.tokens).to_numpy(zero_copy_only=False)
        message = f"the request is larger than {self.limits.bytes_max:,} bytes"
        codes = pc.if_else(large, TOO_LARGE, found.skip_code)
        messages = pc.if_else(large, message, found.skip_message)
        for column, values in zip(RESERVED, (sizes, tokens, codes, messages), strict=True):
            block = block.append_column(column, pa.array(values, column.type))
        return _Measured(block, sizes, tokens)

    def place(self, found: _Measured) -> None:
        """Give rows to shards, span by span."""
        start, count = 0, len(found.sizes)
        while start < count:
            span = self.span
            stop = min(count, start + span.first_row + self.span_rows - span.row)
            self._cut(found.rows.slice(start, stop - start), found.sizes[start:stop], found.tokens[start:stop])
            start = stop
            if span.row == span.first_row + self.span_rows:
                self.end_span()

    def _cut(self, block: pa.Table, sizes: Sizes, tokens: Sizes) -> None:
        """Give rows of one span to its shards."""
        span = self.span
        packer = Packer(self.limits)
        if span.open is not None:
            packer.resume(span.open.requests, span.open.bytes, span.open.tokens)
        start = 0
        for stop in [*packer.cut(sizes, tokens), block.num_rows]:
            if stop > start:
                if span.open is None:
                    span.open = self._open()
                span.open.add(block.slice(start, stop - start), sizes[start:stop], tokens[start:stop])
                span.row += stop - start
            if stop < block.num_rows and span.open is not None:
                self._end_shard()
            start = stop

    def _open(self) -> _OpenShard:
        position = len(self.span.shards)
        name = f"{self.span.number:06d}-{position:06d}"
        file = None
        if self.shelf is not None and self.rows_dir is not None:
            file = self.shelf.begin(self.rows_dir / f"{name}.parquet")
        return _OpenShard(name, position, self.span.row, file)

    def _end_shard(self) -> None:
        span, shard = self.span, self.span.open
        assert shard is not None
        span.open = None
        if shard.file is not None:
            span.files.append(shard.file.finish())
        span.shards.append(
            SealedShard(
                name=shard.name,
                span=span.number,
                position=shard.position,
                first_row=shard.first_row,
                stop_row=shard.first_row + shard.rows,
                requests=shard.requests,
                skipped=shard.rows - shard.requests,
                bytes=shard.bytes,
                tokens=shard.tokens,
            )
        )

    def end_span(self) -> None:
        """Close the span's last shard and begin the next span; a span without rows is none."""
        span = self.span
        if span.open is not None:
            self._end_shard()
        if span.shards:
            self.ended.append((SealedSpan(span.number, span.first_row, span.row, tuple(span.shards)), span.files))
            self.span = _Span(span.number + 1, span.row, span.row)

    def durable(self, *, wait: bool = False) -> Iterator[SealedSpan]:
        """The ended spans whose files are all durable, in order; `wait`: every ended span.

        Raises:
            DiskFullError: no room for a file of one.
        """
        while self.ended:
            span, files = self.ended[0]
            if not wait and len(self.ended) <= SPANS_WAITING_MAX and not all(file.done() for file in files):
                return
            for file in files:
                file.result()
            self.ended.popleft()
            yield span

    def abandon(self, error: BaseException | None = None) -> None:
        """Leave no half-written file; the files of a span begun are written again next time."""
        if self.span.open is not None and self.span.open.file is not None:
            self.span.open.file.discard(error or InterruptedError("sealing was stopped"))
        self.span.open = None


def _refuse_null(found: Measured, piece: _Piece) -> None:
    place = pc.index(found.skip_code, NULL_VALUE).as_py()
    if place >= 0:
        numbered = ROW_COLUMN in piece.rows.column_names  # rows are missing between those that are left
        row = piece.rows[ROW_COLUMN][place].as_py() if numbered else piece.first_row + place
        raise SourceError(
            f"Row {row:,}: {found.skip_message[place].as_py()}, which --on-null error refuses: "
            "fill it, let the template ask for it (is none, default), or say --on-null skip or empty."
        )
