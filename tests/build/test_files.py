"""Which files a source is made of: every one that is meant, none that is not, in one order, frozen."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.build.files import list_files, partition_value, source_name
from pipeline.build.source import open_source
from pipeline.errors import SourceError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a cluster leaves it, seen from beside it."""
    for name in (
        "lake/y=2024/b.parquet", "lake/y=2024/a.parquet", "lake/y=2023/Z.parquet", "lake/y=2023/.part.parquet.crc",
        "lake/_SUCCESS", "lake/_temporary/0/x.parquet", "lake/.hidden/x.parquet", "lake/y=2024/c.parquet.tmp",
        "lake/y=2024/c.parquet~", "lake/run/run.db", "lake/run/rows/x.parquet",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*data: str) -> list[str]:
    """Paths as listed."""
    return [str(file.path) for file in list_files([Path(name) for name in data])]


ALL = ["lake/y=2023/Z.parquet", "lake/y=2024/a.parquet", "lake/y=2024/b.parquet"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (["lake"], ALL),
        (["lake/y=2024", "lake/y=2023"], ALL),
        (["lake/*"], ALL),
        (["lake/**"], ALL),
        (["lake/**/*.parquet"], ALL),
        (["lake/y=2024/[ab].parquet"], ALL[1:]),
        (["lake/y=2024/b.parquet", "lake/y=2023/Z.parquet"], [ALL[0], ALL[2]]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_source_is_the_files_that_are_meant(data: list[str], expected: list[str]) -> None:
    """Folders, globs and lists; hidden, temporary and marker files and run folders are left out; bytewise order."""
    assert names(*data) == expected


def test_a_name_that_exists_is_no_glob(folder: Path) -> None:
    """Brackets in the name of a file are only brackets."""
    (folder / "a[1].parquet").write_text("x")
    (folder / "a1.parquet").write_text("y")
    assert names("a[1].parquet") == ["a[1].parquet"]


def test_the_order_is_bytewise_and_not_the_locales(folder: Path) -> None:
    """Capitals before small letters, digits as text, letters beyond ASCII last."""
    for name in ("é", "b", "B", "a10", "a9"):
        (folder / f"{name}.csv").write_text("x")
    assert names("*.csv") == ["B.csv", "a10.csv", "a9.csv", "b.csv", "é.csv"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (["nothing"], "nothing does not exist"),
        (["no*.parquet"], "No file matches no*.parquet"),
        (["lake/.hidden"], "different|x.parquet"),
        (["lake", "lake/y=2024/a.parquet"], "lake/y=2024/a.parquet is named twice"),
        (["lake", "t.csv"], "different kinds"),
        (["empty"], "empty is a folder without files to read"),
        (["mixed"], "mixed/README.txt ends in .txt"),
        (["t.json"], "rename it to .jsonl"),
        (["t.parquet.gz"], "compressed as a whole"),
        (["zero.csv"], "zero.csv is empty (zero bytes)"),
        (["pipe.csv"], "pipe.csv is no file"),
    ],
)
def test_what_cannot_be_a_source_is_named(folder: Path, data: list[str], words: str) -> None:
    """One sentence with the file's name; a file of another kind in a folder is never passed over in silence."""
    for name in ("t.csv", "t.json", "t.parquet.gz", "mixed/README.txt", "mixed/a.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "empty").mkdir()
    (folder / "zero.csv").touch()
    os.mkfifo(folder / "pipe.csv")
    if "|" in words:
        assert names(*data) == ["lake/.hidden/x.parquet"], "a hidden folder that is named is meant"
        return
    with pytest.raises(SourceError) as told:
        list_files([Path(name) for name in data])
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_partition_columns_come_from_the_folders_names(tmp_path: Path) -> None:
    """Whole numbers where all are written so, otherwise text; nulls and percent signs as Hive writes them; a column
    that the files have themselves is theirs."""
    for year, month, town, value in ((2023, "01", "a%2Fb", 1), (2024, "12", "__HIVE_DEFAULT_PARTITION__", 2)):
        path = tmp_path / f"year={year}" / f"month={month}" / f"town={town}" / "mine=7" / "p.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"v": [value], "mine": ["own"]}), path)
    source = open_source(tmp_path)
    assert source.schema.names == ["v", "mine", "year", "month", "town"]
    assert pa.concat_tables(source.blocks()).to_pylist() == [
        {"v": 1, "mine": "own", "year": 2023, "month": "01", "town": "a/b"},
        {"v": 2, "mine": "own", "year": 2024, "month": "12", "town": None},
    ]
    moved = tmp_path / "year=2024" / "month=12" / "town=__HIVE_DEFAULT_PARTITION__"
    moved.rename(moved.with_name("town=c"))
    assert open_source(tmp_path).digest != source.digest, "the values are a part of the content"
    assert not partition_value(["1", "01"])
    assert partition_value(["0", "-5", None])


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"a": [1], "b": ["x"]}, {"a": [1]}, "has no column 'b'"),
        ({"a": [1]}, {"a": [1], "b": ["x"]}, "has a column 'b'"),
        ({"a": [1]}, {"a": ["x"]}, "column 'a' is string, and int64 in"),
        ({"a": [1]}, {"a": [1.5]}, "column 'a' is double, and int64 in"),
    ],
)
def test_schema_drift_is_named_by_file(tmp_path: Path, first: dict, second: dict, words: str) -> None:
    """Which file differs, in which column, and from what."""
    pq.write_table(pa.table(first), tmp_path / "1.parquet")
    pq.write_table(pa.table(second), tmp_path / "2.parquet")
    with pytest.raises(SourceError) as told:
        open_source(tmp_path)
    assert words in str(told.value)
    assert str(tmp_path / "2.parquet") in str(told.value)


def test_columns_in_another_order_and_wider_text_are_no_drift(tmp_path: Path) -> None:
    """What holds the same values is read as the first file has it."""
    pq.write_table(pa.table({"a": [1], "t": ["x"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"t": pa.array(["y"], pa.large_string()), "a": [2]}), tmp_path / "2.parquet")
    source = open_source(tmp_path)
    table = pa.concat_tables(source.blocks())
    assert table.to_pylist() == [{"a": 1, "t": "x"}, {"a": 2, "t": "y"}]
    assert table.schema == source.schema


@pytest.mark.parametrize("change", ["vanish", "grow", "replace"])
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path, change: str, ending: str) -> None:
    """Also the second of several, after the first was read whole; a new file changes nothing."""
    for number in range(2):
        path = tmp_path / f"{number}.{ending}"
        if ending == "parquet":
            pq.write_table(pa.table({"a": ["x"] * 60}), path, row_group_size=10)
        else:
            path.write_text("a\n" + "x\n" * 60)
    source = open_source(tmp_path)
    (tmp_path / f"2.{ending}").write_bytes(path.read_bytes())
    assert sum(block.num_rows for block in source.blocks()) == 120
    if change == "vanish":
        path.unlink()
    elif change == "grow":
        path.write_bytes(path.read_bytes() + b"\n")
    else:
        other = path.with_suffix(".other")
        other.write_bytes(path.read_bytes())
        other.rename(path)
    with pytest.raises(SourceError, match=f"1.{ending} has (vanished|changed) since the run began"):
        list(source.blocks())


def test_a_source_is_called_after_what_was_named(tmp_path: Path) -> None:
    """Endings and wildcards are no part of its name."""
    (tmp_path / "lake").mkdir()
    for data, name in (
        ("a/corpus.csv.gz", "corpus"), ("a/v1.2.parquet", "v1.2"), (str(tmp_path / "lake"), "lake"),
        ("lake/y=*/*.parquet", "lake"), ("*.csv", "data"), ("part-*.csv", "data"),
    ):  # fmt: skip
        assert source_name([Path(data)]) == name
