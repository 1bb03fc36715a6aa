"""Seals a corpus: blocks are rendered to be measured, cut into shards, and kept as row files, span by span.

A span is at most 1,000,000 rows; a shard never crosses one. A span is given out when every file of it is durable, so
that the caller's one commit makes it sealed. Everything that can be wrong with the input is found here. Sends
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.build.identity import IdCheck
from pipeline.build.packer import Limits, Packer, Sizes
from pipeline.build.source import Source
from pipeline.build.writer import RESERVED, Renders, RowFileWriter, ids_of, row_file_schema

SPAN_ROWS = 1_000_000
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
    writer: RowFileWriter | None
    rows: int = 0
    requests: int = 0
    bytes: int = 0
    tokens: int = 0

    def add(self, rows: pa.Table, sizes: Sizes, tokens: Sizes) -> None:
        if self.writer is not None:
            self.writer.write(rows)
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
    open: _OpenShard | None = None


def seal(
    source: Source,
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
    should_stop: Callable[[], bool] | None = None,
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
        should_stop: asked between blocks; when true the generator ends, and the span begun is not given out.

    Raises:
        SourceError: the source cannot be read to its end, or a custom_id is not fit.
        DiskFullError: no room.
    """
    sealing = _Sealing(source, template, limits, rows_dir, model, url, custom_id_prefix, id_column, span_rows)
    ids = IdCheck(rows_dir, id_column) if id_column else None
    current = _Span(span, start_row, start_row)
    try:
        # With an id column earlier rows are read again: whether an id is unique is a matter of the whole source.
        first = 0 if ids else start_row
        row = first
        for block in source.blocks(start_row=first):
            if should_stop is not None and should_stop():
                sealing.abandon(current)
                return
            rows = block if limit_rows is None else block.slice(0, max(0, limit_rows - row))
            if ids and rows.num_rows:
                ids.add(rows, row)
            fresh = rows.slice(max(0, start_row - row))
            row += rows.num_rows
            if fresh.num_rows:
                yield from sealing.add(current, fresh)
            if limit_rows is not None and row >= limit_rows:
                break
        if ids:
            ids.finish()
        if current.open is not None:
            yield sealing.end_span(current)
    except GeneratorExit:
        sealing.abandon(current)
        raise
    except BaseException as error:
        sealing.abandon(current, error)
        raise
    finally:
        if ids:
            ids.close()


@dataclass(frozen=True, slots=True)
class _Sealing:
    """What stays the same while a source is sealed."""

    source: Source
    template: Renders
    limits: Limits
    rows_dir: Path | None
    model: str | None
    url: str
    custom_id_prefix: str
    id_column: str | None
    span_rows: int

    def add(self, span: _Span, block: pa.Table) -> Iterator[SealedSpan]:
        """Render a block and give its rows to shards; gives out the spans that it fills."""
        numbers = pa.array(np.arange(span.row, span.row + block.num_rows), pa.int64())
        ids = ids_of(block, numbers, self.custom_id_prefix, self.id_column)
        rendered = self.template.render(block, ids, model=self.model, url=self.url)
        large = pc.greater(rendered.line_bytes, self.limits.bytes_max)
        sizes = pc.if_else(large, 0, rendered.line_bytes).to_numpy(zero_copy_only=False)
        tokens = pc.if_else(large, 0, rendered.tokens).to_numpy(zero_copy_only=False)
        message = f"the request is larger than {self.limits.bytes_max:,} bytes"
        codes = pc.if_else(large, TOO_LARGE, rendered.skip_code)
        messages = pc.if_else(large, message, rendered.skip_message)
        for column, values in zip(RESERVED, (sizes, tokens, codes, messages), strict=True):
            block = block.append_column(column, pa.array(values, column.type))
        yield from self._place(span, block, sizes, tokens)

    def _place(self, span: _Span, block: pa.Table, sizes: Sizes, tokens: Sizes) -> Iterator[SealedSpan]:
        """Give measured rows to shards, span by span."""
        start = 0
        while start < block.num_rows:
            stop = min(block.num_rows, start + span.first_row + self.span_rows - span.row)
            self._cut(span, block.slice(start, stop - start), sizes[start:stop], tokens[start:stop])
            start = stop
            if span.row == span.first_row + self.span_rows:
                yield self.end_span(span)

    def _cut(self, span: _Span, block: pa.Table, sizes: Sizes, tokens: Sizes) -> None:
        """Give rows of one span to its shards."""
        packer = Packer(self.limits)
        if span.open is not None:
            packer.resume(span.open.requests, span.open.bytes, span.open.tokens)
        start = 0
        for stop in [*packer.cut(sizes, tokens), block.num_rows]:
            if stop > start:
                if span.open is None:
                    span.open = self._open(span)
                span.open.add(block.slice(start, stop - start), sizes[start:stop], tokens[start:stop])
                span.row += stop - start
            if stop < block.num_rows and span.open is not None:
                self._end_shard(span)
            start = stop

    def _open(self, span: _Span) -> _OpenShard:
        position = len(span.shards)
        name = f"{span.number:06d}-{position:06d}"
        writer = None
        if self.rows_dir is not None:
            writer = RowFileWriter(self.rows_dir / f"{name}.parquet", row_file_schema(self.source.schema))
        return _OpenShard(name, position, span.row, writer)

    def _end_shard(self, span: _Span) -> None:
        shard = span.open
        assert shard is not None
        if shard.writer is not None:
            shard.writer.close()
        span.open = None
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

    def end_span(self, span: _Span) -> SealedSpan:
        """Close the span's last shard and begin the next span."""
        if span.open is not None:
            self._end_shard(span)
        sealed = SealedSpan(span.number, span.first_row, span.row, tuple(span.shards))
        span.number += 1
        span.first_row = span.row
        span.shards = []
        return sealed

    def abandon(self, span: _Span, error: BaseException | None = None) -> None:
        """Leave no half-written file; the files of a span begun are written again next time."""
        if span.open is not None and span.open.writer is not None:
            span.open.writer.discard(error or InterruptedError("sealing was stopped"))
        span.open = None
