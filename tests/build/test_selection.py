"""Selection: the rows that an expression keeps, samples that are exact and reproducible, columns as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.build import selection as module
from pipeline.build.selection import Selected, Selection, Where, named_columns
from pipeline.build.source import Source, open_source
from pipeline.errors import UsageError
from pipeline.ids import ROW_COLUMN

TABLE = pa.table(
    {
        "n": pa.array([1, 2, None, 4, 5], pa.int64()),
        "t": pa.array(["a", None, "c", "d", "e"]),
        "when": pa.array([0, 86_400, None, 3, 4], pa.timestamp("ns", "Europe/Zurich")),
        "odd name": pa.array([b"x", b"", None, b"y", b"z"], pa.binary()),
    }
)


def source_of(folder: Path, table: pa.Table, group: int = 2, files: int = 1) -> Source:
    """The table as Parquet files in small row groups."""
    step = -(-table.num_rows // files) or 1
    for number in range(files):
        part = table.slice(number * step, step)
        pq.write_table(part, folder / f"{number}.parquet", row_group_size=group)
    return open_source(folder)


def selected(source: Source, *, start_row: int = 0, block_bytes: int = 12 << 20, **what: Any) -> pa.Table:
    """The rows that are left, with their numbers."""
    found = Selected(source, Selection(**what), numbered=True)
    blocks = list(found.blocks(start_row=start_row, block_bytes=block_bytes))
    empty = pa.schema([*found.schema, (ROW_COLUMN, pa.int64())]).empty_table()
    return pa.concat_tables([empty, *blocks])


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("n > 1", [1, 3, 4]),
        ("NOT (n > 1)", [0]),
        ("n > 1 OR t = 'c'", [1, 2, 3, 4]),
        ("n IS NULL", [2]),
        ("t IS NOT NULL AND n BETWEEN 1 AND 4", [0, 3]),
        ("t IN ('a', 'e')", [0, 4]),
        ("t LIKE 'a%' OR LENGTH(t) > 1", [0]),
        ("COALESCE(n, 9) > 4", [2, 4]),
        ("CASE WHEN n = 1 THEN TRUE ELSE NULL END", [0]),
        ("CAST(n AS VARCHAR) = '2'", [1]),
        ("n % 2 = 1", [0, 4]),
        ("EXTRACT(year FROM \"when\") = 1970", [0, 1, 3, 4]),
        ('"odd name" IS NULL', [2]),
    ],
)
def test_a_row_is_kept_where_the_expression_is_true(tmp_path: Path, where: str, rows: list[int]) -> None:
    """Not where it is false, and not where it is null; each row keeps its place in the source as its number."""
    found = selected(source_of(tmp_path, TABLE), where=where)
    assert found[ROW_COLUMN].to_pylist() == rows
    assert found.drop_columns([ROW_COLUMN]).equals(TABLE.take(rows)), "carried columns are untouched"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("yer = 1", "names 'yer', which is no column"),
        ('t = "a"', "names 'a', which is no column"),
        ("t > 3", "cannot be answered (t is string): cannot compare string with numeric type"),
        ("n", "is Int64 and neither true nor false (n is int64)"),
        ("n >", "cannot be read: "),
        ("", "cannot be read: "),
        ("n > 1; DROP TABLE x", "cannot be read: "),
        ("1 = 1", "names no column"),
        ("SUM(n) > 3", "looks at other rows than its own"),
        ("n = MAX(n)", "looks at other rows than its own"),
        ("FIRST_VALUE(n) = 1", "looks at other rows than its own"),
        ("SUM(n) OVER (PARTITION BY t) > 1", "looks at other rows than its own"),
        ("LAG(n, 1) OVER (ORDER BY n) > 1", "looks at other rows than its own"),
        ("RANK() OVER (ORDER BY n) = 1", "looks at other rows than its own"),
        ("n > 1 AND COUNT(*) > 1", "looks at other rows than its own"),
        ("n IN (SELECT 1)", ""),
        ("EXISTS (SELECT * FROM read_csv('/etc/passwd'))", ""),
        ("__import__('os').system('true')", ""),
    ],
)
def test_an_expression_that_cannot_be_meant_is_refused_in_a_sentence(where: str, words: str) -> None:
    """A name that is not there, another type, something else than a condition, and whatever blocks would show in."""
    with pytest.raises(UsageError) as told:
        Where(where, TABLE.schema)
    assert words in str(told.value)
    assert "--where" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_value_that_cannot_be_converted_is_told(tmp_path: Path) -> None:
    """Found while rows are read, with the expression and the column's type."""
    with pytest.raises(UsageError, match=r"t is string.*conversion"):
        selected(source_of(tmp_path, TABLE), where="CAST(t AS INT) > 3")


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 120), size=st.integers(0, 130), seed=st.integers(-5, 5), start=st.integers(0, 60),
    where=st.sampled_from([None, "n % 3 = 1"]), files=st.integers(1, 4), block=st.sampled_from([32, 12 << 20]),
)  # fmt: skip
def test_a_sample_is_exact_reproducible_and_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    count: int,
    size: int,
    seed: int,
    start: int,
    where: str | None,
    files: int,
    block: int,
) -> None:
    """So many different rows of those that are left, in their order; the same whatever the files and blocks are."""
    folder = tmp_path_factory.mktemp("sample")
    table = pa.table({"n": pa.array(range(count), pa.int64())})
    source = source_of(folder, table, files=files)
    left = [n for n in range(count) if where is None or n % 3 == 1]
    if size > len(left):
        with pytest.raises(UsageError, match="--sample"):
            selected(source, where=where, sample_rows=size, seed=seed)
        return
    found = selected(source, where=where, sample_rows=size, seed=seed, block_bytes=block)["n"].to_pylist()
    assert len(found) == size
    assert found == sorted(set(found))
    assert set(found) <= set(left)
    whole = source_of(tmp_path_factory.mktemp("whole"), table, group=1_000)
    again = selected(whole, where=where, sample_rows=size, seed=seed, start_row=start)
    assert again["n"].to_pylist() == again[ROW_COLUMN].to_pylist() == found[start:]


def test_a_sample_is_drawn_evenly_and_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tenth of the source gives about a tenth of the sample, seeds differ, and keys are never held all at once."""
    source = source_of(tmp_path, pa.table({"n": range(100_000)}), group=50_000)
    monkeypatch.setattr(module, "_KEYS_AT_ONCE", 1_000)
    found = selected(source, sample_rows=10_000, seed=1)[ROW_COLUMN].to_numpy()
    tenths = np.bincount(found // 10_000)
    assert len(found) == 10_000
    assert tenths.min() > 850
    assert tenths.max() < 1_150
    other = selected(source, sample_rows=10_000, seed=2)[ROW_COLUMN].to_numpy()
    assert 700 < len(np.intersect1d(found, other)) < 1_300


def test_columns_narrow_what_is_carried_and_not_what_where_sees(tmp_path: Path) -> None:
    """The source's order and types stay; names may hold commas; an unknown one is told with its nearest."""
    table = TABLE.append_column("a,b", pa.array(range(5)))
    source = source_of(tmp_path, table)
    columns = named_columns(["when, t", "a,b"], source.schema)
    assert columns == ("t", "when", "a,b")
    found = Selected(source, Selection(columns=columns, where="n > 1"), numbered=False)
    assert found.schema == pa.schema([source.schema.field(name) for name in columns])
    assert pa.concat_tables(found.blocks()).equals(table.take([1, 3, 4]).select(columns))
    with pytest.raises(UsageError, match="--columns names 'whem', which is no column; did you mean when"):
        named_columns(["whem"], source.schema)


def test_what_is_selected_is_identity() -> None:
    """Each part makes another run; a seed without a sample does not."""
    assert Selection().identity() == {} == Selection(seed=4).identity()
    parts = [
        Selection(columns=("a",)), Selection(where="a"), Selection(sample_rows=1), Selection(sample_rows=1, seed=1),
    ]  # fmt: skip
    assert len({str(part.identity()) for part in parts}) == 4
