"""Where the output goes: every format holds the rows, and nothing is ever there by half."""

from __future__ import annotations

import csv
import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DiskFullError, UsageError
from pipeline.merge import sinks
from pipeline.merge.sinks import check_out, open_sink
from tests.test_carried_types import COLUMNS

WORDS = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("n", pa.int64()),
        ("x", pa.float64()),
        ("text", pa.string()),
        ("at", pa.timestamp("ns")),
        ("money", pa.decimal128(5, 2)),
        ("word", WORDS),
        ("answer", pa.struct([("word", WORDS), ("list", pa.list_(pa.int64()))])),
    ]
)


def rows(first: int, word: str) -> pa.Table:
    """Three rows of every type."""
    return pa.Table.from_pylist(
        [
            {
                "n": first + index,
                "x": float("nan") if index else 0.5,
                "text": ['=1+1 "x"\nnext', None, ""][index],
                "at": pa.scalar(1_700_000_000_123_456_789, pa.timestamp("ns")),
                "money": Decimal("1.50"),
                "word": word,
                "answer": {"word": word, "list": [1, 2]} if index else None,
            }
            for index in range(3)
        ],
        SCHEMA,
    )


def write(out: Path, **options: bool) -> pa.Table:
    """Two shards of a few slices each; returns what was written."""
    written = []
    with open_sink(out, SCHEMA, **options) as sink:
        for shard, word in (("000000-000000", "a"), ("000000-000001", "b")):
            sink.begin(shard)
            for first in (0, 3):
                table = rows(first, word + str(first))
                sink.write(table)
                written.append(table)
        sink.tell({"batchmill.rows": "12"})
    return pa.concat_tables(written).unify_dictionaries()


def plain(table: pa.Table) -> str:
    """Rows as text, so that NaN equals itself."""
    return str(table.to_pylist())


@pytest.mark.parametrize("name", ["o.parquet", "o.pq", "o.arrow", "parts"])
def test_a_typed_format_gives_the_same_rows_and_types_back(tmp_path: Path, name: str) -> None:
    """Also where dictionaries differ from slice to slice, at the top and inside structs."""
    out = tmp_path / name
    written = write(out)
    if name == "o.arrow":
        found = pa.ipc.open_file(out).read_all()
    else:
        files = sorted(out.glob("*.parquet")) if out.is_dir() else [out]
        found = pa.concat_tables([pq.read_table(file) for file in files])
    assert found.schema.equals(SCHEMA)
    assert plain(found) == plain(written)
    if name == "parts":
        assert len(files) == 2
        assert (out / "_SUCCESS").read_bytes() == b""


def test_parquet_has_few_row_groups_and_its_counts(tmp_path: Path) -> None:
    """Small slices share a row group, and what is known at the end stands in the metadata."""
    write(tmp_path / "o.parquet")
    metadata = pq.read_metadata(tmp_path / "o.parquet")
    assert metadata.num_row_groups == 1
    assert metadata.row_group(0).column(0).statistics.max == 5
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert metadata.metadata[b"batchmill.rows"] == b"12"


def test_json_lines_are_json(tmp_path: Path) -> None:
    """NaN is null, times and decimals are text, nested values stay nested."""
    write(tmp_path / "o.jsonl")
    found = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["n"] for row in found] == [0, 1, 2, 3, 4, 5] * 2
    assert found[0]["x"] == 0.5 and found[1]["x"] is None
    assert found[0]["at"].startswith("2023-11-14T22:13:20.123456789")
    assert found[1]["answer"] == {"word": "a0", "list": [1, 2]}
    assert found[0]["money"] == "1.50"


def test_csv_nests_json_and_neutralises_formulas_on_request(tmp_path: Path) -> None:
    """Text that a spreadsheet would compute gets a quote before it; numbers stay numbers."""
    for name, options in (("o.csv", {}), ("safe.csv", {"neutralise_formulas": True})):
        write(tmp_path / name, **options)
    with (tmp_path / "o.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert found[0]["text"] == '=1+1 "x"\nnext'
    assert json.loads(found[1]["answer"]) == {"word": "a0", "list": [1, 2]}
    with (tmp_path / "safe.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["text"] == '\'=1+1 "x"\nnext'
    with pytest.raises(UsageError, match="CSV"):
        write(tmp_path / "o.parquet", neutralise_formulas=True)


@pytest.mark.parametrize("name", ["o.parquet", "o.arrow", "o.csv", "o.jsonl", "parts"])
def test_what_fails_leaves_the_earlier_output_and_nothing_beside_it(tmp_path: Path, name: str) -> None:
    """An error or a full disk in the middle: the old output stays whole."""
    out = tmp_path / name
    for before in (False, True):
        if before:
            write(out)
        held = sorted(str(path) for path in tmp_path.rglob("*"))
        for error, expected in ((KeyError("x"), KeyError), (OSError(28, "No space left on device"), DiskFullError)):
            with pytest.raises(expected), open_sink(out, SCHEMA) as sink:
                sink.begin("000000-000000")
                sink.write(rows(0, "a"))
                raise error
            assert sorted(str(path) for path in tmp_path.rglob("*")) == held


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    """A smaller output leaves no part of a larger one, and other folders are left alone."""
    write(tmp_path / "parts")
    with open_sink(tmp_path / "parts", SCHEMA) as sink:
        sink.begin("000009-000000")
        sink.write(rows(0, "a"))
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["_SUCCESS", "part-000009-000000.parquet"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").touch()
    with pytest.raises(UsageError, match="another folder"):
        check_out(tmp_path / "mine")


def test_no_rows_give_a_file_with_the_schema(tmp_path: Path) -> None:
    """Also in a folder of parts."""
    for name in ("o.parquet", "parts"):
        with open_sink(tmp_path / name, SCHEMA):
            pass
    assert pq.read_table(tmp_path / "o.parquet").schema.equals(SCHEMA)
    (part,) = (tmp_path / "parts").glob("*.parquet")
    assert pq.read_table(part).schema.equals(SCHEMA)


def test_a_large_slice_is_a_row_group_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups end at a size in bytes or rows."""
    monkeypatch.setattr(sinks, "GROUP_ROWS", 4)
    write(tmp_path / "o.parquet")
    assert pq.read_metadata(tmp_path / "o.parquet").num_row_groups == 2


def test_parts_that_would_not_change_are_taken_over(tmp_path: Path) -> None:
    """Known by what they were made of; the others are written again."""
    out = tmp_path / "parts"

    def write_parts(second: str) -> list[bool]:
        taken = []
        with open_sink(out, SCHEMA) as sink:
            for shard, inputs in (("000000-000000", "same"), ("000000-000001", second)):
                facts = sink.begin(shard, inputs)
                taken.append(facts is not None)
                if facts is None:
                    sink.write(rows(0, "a"))
                    sink.tell({"batchmill.inputs": inputs})
        assert sum(pq.read_metadata(part).num_rows for part in out.glob("*.parquet")) == 6
        return taken

    assert [write_parts(second) for second in ("x", "x", "y")] == [[False, False], [True, True], [True, False]]


def test_an_arrow_file_holds_dictionaries_wherever_they_are_nested(tmp_path: Path) -> None:
    """In lists of every kind, maps and structs of them: each slice brings words of its own, nulls and empty ones."""
    schema = pa.schema(
        [
            ("list", pa.list_(WORDS)),
            ("large", pa.large_list(WORDS)),
            ("fixed", pa.list_(WORDS, 2)),
            ("map", pa.map_(pa.string(), WORDS)),
            ("deep", pa.struct([("lists", pa.list_(pa.list_(WORDS)))])),
        ]
    )
    written = []
    with open_sink(tmp_path / "o.arrow", schema) as sink:
        for word in ("a", "b", "a"):
            full = {
                "list": [word, None],
                "large": [word],
                "fixed": [word, "x"],
                "map": [("k", word)],
                "deep": {"lists": [[word], None]},
            }
            none: dict[str, object] = dict.fromkeys(schema.names)
            few = {**none, "list": [], "large": [], "map": []}
            table = pa.Table.from_pylist([full, none, few, full], schema)
            for slice_ in (table, table.slice(1, 2), table.slice(1)):
                sink.write(slice_)
                written += slice_.to_pylist()
    found = pa.ipc.open_file(tmp_path / "o.arrow").read_all()
    assert found.schema.equals(schema)
    assert found.to_pylist() == written


FAR: dict[str, pa.Array] = {
    "date": pa.array([5_000_000, None, -1_000_000], pa.int32()).cast(pa.date32()),
    "instant": pa.array([5 * 10**17, None, -(2**61)], pa.int64()).cast(pa.timestamp("us", "Europe/Madrid")),
    "edge": pa.array([2**63 - 1, None, -(2**63)], pa.int64()).cast(pa.timestamp("s")),
    "span": pa.array([2**63 - 1, None, 0], pa.int64()).cast(pa.duration("s")),
    "days": pa.array([[5_000_000], None, []], pa.list_(pa.int32())).cast(pa.list_(pa.date32())),
    "map of times": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.time64("ns"))),
    "fixed times": pa.array([[1, 2], None, [3, None]], pa.list_(pa.int64(), 2)).cast(pa.list_(pa.time64("ns"), 2)),
    "words": pa.array(["a", None, ""]).dictionary_encode(),
}


@pytest.mark.parametrize("name", [*COLUMNS, *FAR])
def test_every_type_that_a_source_may_carry_is_written_as_text(tmp_path: Path, name: str) -> None:
    """Whatever Python's own times could not hold included; null is an empty field, or null."""
    column = COLUMNS.get(name, FAR.get(name))
    table = pa.table({"c": column, "n": [0, 1, 2]})
    for out in (tmp_path / "o.jsonl", tmp_path / "o.csv"):
        with open_sink(out, table.schema) as sink:
            sink.write(table.slice(0, 1))
            sink.write(table.slice(1))
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "o.jsonl").open(encoding="utf-8")]
    assert [line["n"] for line in lines] == [0, 1, 2]
    assert [line["c"] is None for line in lines][:2] == [name == "null", True]
    with (tmp_path / "o.csv").open(newline="", encoding="utf-8") as file:
        fields = list(csv.DictReader(file))
    assert [row["n"] for row in fields] == ["0", "1", "2"]
    assert fields[1]["c"] == ""


def test_times_are_text_to_their_last_digit(tmp_path: Path) -> None:
    """Instants with a zone are in UTC, wherever they stand."""
    moment = pa.scalar(1_700_000_000_123_456_789, pa.int64())
    table = pa.table(
        {
            "naive": pa.array([moment.as_py()]).cast(pa.timestamp("ns")),
            "zoned": pa.array([moment.as_py()]).cast(pa.timestamp("ns", "Asia/Tokyo")),
            "inside": pa.array([[{"t": 1}]], pa.list_(pa.struct([("t", pa.timestamp("s"))]))),
            "took": pa.array([7], pa.duration("ms")),
        }
    )
    with open_sink(tmp_path / "o.jsonl", table.schema) as sink:
        sink.write(table)
    assert json.loads((tmp_path / "o.jsonl").read_text()) == {
        "naive": "2023-11-14T22:13:20.123456789",
        "zoned": "2023-11-14T22:13:20.123456789Z",
        "inside": [{"t": "1970-01-01T00:00:01"}],
        "took": "7 ms",
    }


def test_csv_tells_empty_text_from_nothing(tmp_path: Path) -> None:
    """As the CSV reader of sources does: a field with quotes is text, one without is null."""
    table = pa.table({"a": ["", None, 'say "x", y'], "b": ["1", "2", "line\nbreak"]})
    with open_sink(tmp_path / "o.csv", table.schema) as sink:
        sink.write(table)
    assert (tmp_path / "o.csv").read_text() == 'a,b\n"",1\n,2\n"say ""x"", y","line\nbreak"\n'
