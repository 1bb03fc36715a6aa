"""Blocks are bounded in bytes, whatever the files look like; small files fill them, and shards are filled all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.build.packer import Limits
from pipeline.build.prompt import Prompt
from pipeline.build.seal import seal
from pipeline.build.selection import Selected, Selection
from pipeline.build.source import open_source
from pipeline.build.template import compile_template

BLOCK = 1 << 20
POOLS: list[pa.MemoryPool] = []
"""What was allocated in a pool may outlive its test: the pool must live as long."""


@contextmanager
def peak() -> Iterator[pa.MemoryPool]:
    """A pool of pyarrow's memory of its own, whose peak is that of the block."""
    whole = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(whole)
    POOLS.append(pool)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(whole)


def test_a_giant_row_group_is_streamed(tmp_path: Path) -> None:
    """Sixty megabytes in one row group are read in blocks of one, within a few."""
    rows = 120_000
    texts = pa.array([f"{number:09d}" * 55 for number in range(rows)])
    pq.write_table(pa.table({"t": texts}), tmp_path / "d.parquet", row_group_size=rows, use_dictionary=False)
    source = open_source(tmp_path / "d.parquet")
    with peak() as pool:
        seen, largest = 0, 0
        for block in source.blocks(block_bytes=BLOCK):
            seen, largest = seen + block.num_rows, max(largest, block.nbytes)
        assert pool.max_memory() < 24 << 20
    assert (seen, largest <= BLOCK) == (rows, True)


def test_small_files_fill_blocks_and_shards(tmp_path: Path) -> None:
    """Hundreds of files of a few rows give few blocks, and shards that hold as many lines as they may."""
    for number in range(400):
        pq.write_table(pa.table({"n": np.arange(5) + 5 * number}), tmp_path / f"{number:04d}.parquet")
    source = open_source(tmp_path)
    blocks = list(source.blocks())
    assert [block.num_rows for block in blocks] == [2_000]
    assert blocks[0]["n"].to_pylist() == list(range(2_000))
    assert blocks[0]["n"].num_chunks == 1
    prompt = Prompt("chat", {"messages": [{"role": "user", "content": "{{ n }}"}]}, "m", None, "p")
    spans = seal(
        Selected(source, Selection(), numbered=True), compile_template(prompt, source.schema),
        Limits(600, 10**6, None), rows_dir=None, model="m", url="/u", custom_id_prefix="p", id_column=None,
    )  # fmt: skip
    assert [shard.requests for span in spans for shard in span.shards] == [600, 600, 600, 200]


@pytest.mark.parametrize("columns", [None, ("c7", "c2999")])
def test_a_wide_table_is_read_within_bounds(tmp_path: Path, columns: tuple[str, ...] | None) -> None:
    """Thousands of columns: their buffers do not add up, and with --columns only those named are read."""
    fields = [pa.field(f"c{number}", pa.int64(), nullable=number % 2 == 0) for number in range(3_000)]
    numbers = [np.arange(400) + number for number in range(3_000)]
    table = pa.table(numbers, schema=pa.schema(fields, metadata={"kept": "yes"}))
    pq.write_table(table, tmp_path / "w.parquet", row_group_size=200)
    source = open_source(tmp_path / "w.parquet")
    with peak() as pool:
        wanted = Selected(source, Selection(columns=columns), numbered=True)
        found = pa.concat_tables(wanted.blocks(block_bytes=BLOCK))
        assert pool.max_memory() < (4 << 20 if columns else 96 << 20)
    expected = table.select(columns or table.column_names)
    assert found.equals(expected)
    assert [field.nullable for field in found.schema] == [field.nullable for field in expected.schema]
