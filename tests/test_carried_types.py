"""Carried columns: from source to row file to output, every type and value comes out as it went in."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.build.packer import Limits
from pipeline.build.prompt import load_prompt
from pipeline.build.seal import seal
from pipeline.build.source import open_source
from pipeline.build.template import compile_template
from pipeline.merge.output import MergeShard, Shape, write_output

UTC = dt.UTC
MOMENT = dt.datetime(2024, 2, 29, 23, 59, 58, 123456)
PROMPT = 'body:\n  model: m\n  messages:\n    - {role: user, content: "{{ text }}"}\n'

COLUMNS: dict[str, pa.Array] = {
    **{
        f"{kind}": pa.array([1, None, low], kind)
        for kind, low in [
            (pa.int8(), -128), (pa.int16(), -(2**15)), (pa.int32(), -(2**31)), (pa.int64(), -(2**63)),
            (pa.uint8(), 255), (pa.uint16(), 2**16 - 1), (pa.uint32(), 2**32 - 1), (pa.uint64(), 2**64 - 1),
        ]
    },
    "half": pa.array([1.5, None, 2.0], pa.float16()),
    "float": pa.array([0.1, None, float("inf")], pa.float32()),
    "double": pa.array([0.1, None, float("nan")], pa.float64()),
    "bool": pa.array([True, None, False]),
    "null": pa.nulls(3),
    "decimal128": pa.array([Decimal("1.50"), None, Decimal("-99999.99")], pa.decimal128(12, 2)),
    "decimal256": pa.array([Decimal("1." + "0" * 9 + "1"), None, Decimal(0)], pa.decimal256(60, 10)),
    "date32": pa.array([MOMENT.date(), None, dt.date(1, 1, 1)], pa.date32()),
    "date64": pa.array([MOMENT.date(), None, dt.date(2000, 1, 1)], pa.date64()),
    "time32s": pa.array([dt.time(1, 2, 3), None, dt.time(0)], pa.time32("s")),
    "time32ms": pa.array([dt.time(1, 2, 3, 4000), None, dt.time(0)], pa.time32("ms")),
    "time64us": pa.array([dt.time(1, 2, 3, 4), None, dt.time(0)], pa.time64("us")),
    "time64ns": pa.array([dt.time(1, 2, 3, 4), None, dt.time(0)], pa.time64("ns")),
    **{
        f"timestamp-{unit}-{zone}": pa.array([MOMENT.replace(microsecond=0), None, dt.datetime(1970, 1, 1)],
                                             pa.timestamp(unit, tz=zone))
        for unit in ("s", "ms", "us", "ns")
        for zone in (None, "UTC", "Europe/Madrid", "+05:30")
    },
    **{f"duration-{unit}": pa.array([7, None, -7], pa.duration(unit)) for unit in ("s", "ms", "us", "ns")},
    "string": pa.array(["é\0\u2028😀", None, ""]),
    "large_string": pa.array(["x", None, ""], pa.large_string()),
    "string_view": pa.array(["a longer text than fits inline", None, ""], pa.string_view()),
    "binary": pa.array([b"\x00\xff", None, b""], pa.binary()),
    "large_binary": pa.array([b"\x00\xff", None, b""], pa.large_binary()),
    "binary_view": pa.array([b"\x00\xff", None, b""], pa.binary_view()),
    "fixed_binary": pa.array([b"abc", None, b"\x00\x01\x02"], pa.binary(3)),
    "dictionary": pa.array(["a", None, "b"]).dictionary_encode(),
    "list": pa.array([[1, None], None, []], pa.list_(pa.int32())),
    "large_list": pa.array([["x"], None, []], pa.large_list(pa.string())),
    "fixed_list": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}],
                       pa.struct([("a", pa.int16()), ("b", pa.list_(pa.string()))])),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
    "nested": pa.array([[{"t": MOMENT}], None, []], pa.list_(pa.struct([("t", pa.timestamp("ms", tz="UTC"))]))),
}  # fmt: skip


def through(folder: Path, table: pa.Table) -> pa.Table:
    """Write a source, seal it in two shards, merge it without any answers, and read the output."""
    pq.write_table(table, folder / "d.parquet", store_schema=True)
    return sealed_and_merged(folder, folder / "d.parquet")


def sealed_and_merged(folder: Path, data: Path) -> pa.Table:
    """From a source to an output."""
    (folder / "p.yaml").write_text(PROMPT)
    source = open_source(data)
    template = compile_template(load_prompt(folder / "p.yaml"), source.schema)
    (folder / "rows").mkdir()
    spans = seal(
        source, template, Limits(2, 1_000_000, None), rows_dir=folder / "rows", model="m", url="/u",
        custom_id_prefix="x", id_column=None,
    )  # fmt: skip
    shards = [
        MergeShard(shard.name, folder / "rows" / f"{shard.name}.parquet", shard.first_row, shard.stop_row, ())
        for span in spans
        for shard in span.shards
    ]
    assert len(shards) == 2
    fixed: dict[str, Any] = {"shape": Shape("chat"), "prefix": "", "custom_id_prefix": "x", "id_column": None}
    write_output(
        shards, out=folder / "o.parquet", source_schema=source.schema, metadata={}, never_sent="run_cancelled", **fixed
    )
    return pq.read_table(folder / "o.parquet").select(source.schema.names)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_this_type_comes_out_as_pyarrow_reads_it(tmp_path: Path, name: str) -> None:
    """Type and values, as pyarrow itself reads them from the source."""
    table = pa.table({"text": ["a", "b", "c"], "carried": COLUMNS[name]})
    output = through(tmp_path, table)
    expected = pq.read_table(tmp_path / "d.parquet")
    assert output.schema.field("carried").type == expected.schema.field("carried").type
    assert output.schema.field("carried").nullable == expected.schema.field("carried").nullable
    one, other = output["carried"].combine_chunks(), expected["carried"].combine_chunks()
    if pa.types.is_floating(one.type):
        assert str(one.to_pylist()) == str(other.to_pylist())
    else:
        assert one.cast(other.type).equals(other) or one.to_pylist() == other.to_pylist()


def test_metadata_of_fields_and_of_the_schema_is_carried(tmp_path: Path) -> None:
    """What other tools keep there (pandas does) is still there."""
    field = pa.field("text", pa.string(), nullable=False, metadata={"unit": "words"})
    schema = pa.schema([field], metadata={"owner": "somebody"})
    through(tmp_path, pa.table([["a", "b", "c"]], schema=schema))
    found = pq.read_schema(tmp_path / "o.parquet")
    assert found.field("text").metadata[b"unit"] == b"words"
    assert found.field("text").nullable is False
    assert found.metadata[b"owner"] == b"somebody"


def test_csv_columns_come_out_as_text(tmp_path: Path) -> None:
    """As they were read: text, with nulls where a field was empty."""
    (tmp_path / "d.csv").write_text('text,n\na,007\nb,\nc,""\n')
    output = sealed_and_merged(tmp_path, tmp_path / "d.csv")
    assert output.to_pydict() == {"text": ["a", "b", "c"], "n": ["007", None, ""]}
    assert output.schema.types == [pa.string(), pa.string()]


def test_a_type_that_parquet_cannot_keep_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything is sealed: the column and its type."""
    from pipeline.build import source
    from pipeline.errors import SourceError

    pq.write_table(pa.table({"text": ["a"], "odd": ["b"]}), tmp_path / "d.parquet")
    read = pq.ParquetFile.schema_arrow
    interval = pa.schema([("text", pa.string()), ("odd", pa.month_day_nano_interval())])
    monkeypatch.setattr(pq.ParquetFile, "schema_arrow", property(lambda self: interval))
    with pytest.raises(SourceError, match=r"'odd' has type month_day_nano_interval"):
        source.open_source(tmp_path / "d.parquet")
    monkeypatch.setattr(pq.ParquetFile, "schema_arrow", read)
    assert source.open_source(tmp_path / "d.parquet").rows == 1
