"""Sources: every row is read or there is one sentence that says what is wrong, and where."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.build import parquet_source, streams
from pipeline.build.source import ReadOptions, open_source
from pipeline.errors import SourceError, UsageError


def read(path: Path) -> pa.Table:
    """Every row of a source."""
    source = open_source(path)
    return pa.concat_tables([source.schema.empty_table(), *source.blocks(block_bytes=1 << 12)])


CSV = b"a,b\n" + b"1,2\n" * 50_000
IPC = pa.table({"a": [1, 2, 3], "s": ["x", None, "z"]})


def ipc(new: Any, table: pa.Table = IPC, **options: Any) -> bytes:
    """A table as Arrow IPC."""
    sink = io.BytesIO()
    with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


TRAPS: list[tuple[str, bytes, str]] = [
    ("zero.csv", b"", "is empty (zero bytes): write it again, or leave it out."),
    ("blank-header.csv", b"a,,c\n1,2,3\n", "has a column without a name (column 2): name it."),
    ("no-header.csv", b"\n1,2\n", ", line 1: there is no header; the first line must name the columns."),
    ("doubled.csv", b"a,b,a\n1,2,3\n", "has more than one column called 'a': rename one."),
    ("short.csv", b"a,b\n1,2\n3\n4,5\n", ", line 3: 1 field where the header names 2; correct the line."),
    ("long.csv", b"a,b\n1,2\n3,4,5\n", ", line 3: 3 fields where the header names 2; correct the line."),
    ("blanks.csv", b"a,b\n1,2\n  \n", ", line 3: 1 field where the header names 2; correct the line."),
    ("multiline.csv", b'a,b\n"x\ny",2\n3\n', ", line 4: 1 field where the header names 2; correct the line."),
    ("unclosed.csv", b'a,b\n1,"open\n2,x\n3,y\n',
     ", line 2: a quote opens there and is never closed; close it, or double it."),
    ("unclosed-header.csv", b'a,"b\n1,2\n',
     ", line 1: a quote opens there and is never closed; close it, or double it."),
    ("two-unclosed.csv", b'a,b\n1,"open\n2,x\n3,"y\n',
     ", line 4: text follows a closing quote; double the quotes inside a quoted field."),
    ("after-quote.csv", b'a,b\n1,"x"y\n',
     ", line 2: text follows a closing quote; double the quotes inside a quoted field."),
    ("latin.csv", "a,b\n1,é\n".encode("latin-1"),
     ", line 2: a byte that is not UTF-8; say --encoding cp1252, or whatever it is."),
    ("latin-header.csv", "é,b\n1,2\n".encode("latin-1"),
     ", line 1: a byte that is not UTF-8; say --encoding cp1252, or whatever it is."),
    ("wide.csv", "a,b\n1,é\n".encode("utf-16"),
     ", line 1: a byte that is not UTF-8; say --encoding utf-16, or whatever it is."),
    ("reserved.csv", b"__batchmill_bytes,b\n1,2\n",
     ": column '__batchmill_bytes' has a reserved name (__batchmill_…): rename it."),
    ("really.csv", b"PAR1rest", "is a Parquet file, whatever its name says: rename it to end in .parquet."),
    ("really-gz.csv", gzip.compress(CSV), "is packed with gzip, whatever its name says: rename it to end in .gz."),
    ("really-zst.jsonl", zstandard.compress(CSV),
     "is packed with zstd, whatever its name says: rename it to end in .zst."),
    ("workbook.csv", b"PK\x03\x04rest",
     "is a ZIP archive, perhaps a workbook, whatever its name says: convert it first."),
    ("plain.csv.gz", CSV, "is not packed with gzip, whatever its name says: rename it, or pack it again."),
    ("plain.csv.zst", CSV, "is not packed with zstd, whatever its name says: rename it, or pack it again."),
    ("cut.csv.gz", gzip.compress(CSV)[:-30],
     "cannot be unpacked to its end (Truncated compressed stream): copy or pack it again."),
    ("cut.csv.zst", zstandard.compress(CSV)[:-3],
     "cannot be unpacked to its end (Truncated compressed stream): copy or pack it again."),
    ("data.xlsx", b"PK\x03\x04", "ends in .xlsx: what is read is .parquet, .csv, .tsv, .jsonl and .arrow "),
    ("really.parquet", b"a,b\n1,2\n",
     "is not a Parquet file, whatever its name says: convert it, or rename a CSV file to .csv."),
    ("cut.parquet", b"PAR1" + bytes(100), "is cut short (its Parquet footer is missing): copy it again."),
    ("cut.arrow", ipc(pa.ipc.new_file)[:-4], "is cut short (its Arrow footer is missing): copy it again."),
    ("cut-stream.arrow", ipc(pa.ipc.new_stream)[:-8],
     "is cut short (its Arrow stream has no end mark): copy or write it again."),
    ("text.arrow", b"hello world", "is not an Arrow file, whatever its name says: convert or rename it."),
    ("old.feather", b"FEA1" + bytes(20), "is a Feather file of version 1: write it again as Arrow IPC or Parquet."),
    ("bad.jsonl", b'{"a":1}\n\n{"a":\n', ", line 3: not JSON (unexpected end of data)."),
    ("two.jsonl", b'{"a":1}{"a":2}\n', ", line 1: not JSON (unexpected content after document)."),
    ("array.jsonl", b'{"a":1}\n[1]\n', ", line 2: a list where an object belongs."),
    ("kinds.jsonl", b'{"a":1}\n{"a":"x"}\n', ", line 2: 'a' is text and was a number before; make it one type."),
    ("deep-kinds.jsonl", b'{"a":[{"x":1}]}\n{"a":[{"x":[]}]}\n',
     ", line 2: 'a[].x' is a list and was a number before; make it one type."),
    ("large.jsonl", b'{"a":123456789012345678901}\n',
     ", line 1: the number 123456789012345678901 is beyond 64 bits; put it in quotes."),
    ("inexact.jsonl", b'{"a":9007199254740993}\n{"a":0.5}\n',
     ", line 2: 'a' has decimals and whole numbers that they cannot hold; put them in quotes."),
    ("double-key.jsonl", b'{"a":{"x":1,"x":2}}\n', ", line 1: the key 'x' stands twice in one object."),
    ("latin.jsonl", b'{"a":"\xe9"}\n', ", line 1: a byte that is not UTF-8."),
    ("surrogate.jsonl", b'{"a":"\\ud800"}\n', ", line 1: not JSON (no low surrogate in string)."),
    ("nan.jsonl", b'{"a":1}\n{"a":NaN}\n', ", line 2: not JSON (unexpected character, expected a JSON value)."),
    ("empty-object.jsonl", b'{"a":{}}\n',
     ": column 'a' has type struct<>, which Parquet cannot keep: convert it, or leave it out."),
    ("blank.jsonl", b"\n \n", "has no line with an object: leave it out, or write one object a line."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "sentence"), TRAPS, ids=[trap[0] for trap in TRAPS])
def test_a_trap_gets_its_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    """What is wrong, where, and what to do; never a silent loss."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError) as told:
        read(path)
    text = str(told.value).removeprefix(str(path))
    assert text.lstrip().startswith(sentence) if sentence.endswith(" ") else text in (sentence, " " + sentence)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"a,b\n", []),
        (b"a,b", []),
        (b"a,b\n1,2\n\n3,4\n\n", [("1", "2"), ("3", "4")]),
        (b"a,b\r\n1,2\r\n\r\n3,4\r\n", [("1", "2"), ("3", "4")]),
        (b"a,b\r1,2\r3,4\r", [("1", "2"), ("3", "4")]),
        (b"a,b\n1,2\n\r", [("1", "2")]),
        (b"a\nx\n\ny\n", [("x",), (None,), ("y",)]),
        (b'a,b\n1,5" pipe\n2,"a ""b"""\n3,x"\n', [("1", '5" pipe'), ("2", 'a "b"'), ("3", 'x"')]),
        (b'a,b\n1,"' + b"x" * 9_000_000 + b'\n"\n3,4\n', [("1", "x" * 9_000_000 + "\n"), ("3", "4")]),
        (b"a,b\n1,\0\n", [("1", "\0")]),
    ],
)
def test_odd_and_sound_csv_is_read_whole(tmp_path: Path, content: bytes, rows: list[tuple[str | None, ...]]) -> None:
    """Blank lines are nothing, but a null in a file of one column; quotes inside plain text are text; returns alone end
    lines; a record may be larger than a block."""
    (tmp_path / "d.csv").write_bytes(content)
    table = read(tmp_path / "d.csv")
    assert [tuple(row.values()) for row in table.to_pylist()] == rows
    assert open_source(tmp_path / "d.csv").rows == len(rows)


def test_types_are_inferred_only_where_nothing_is_lost(tmp_path: Path) -> None:
    """007, 1e400, mixed and quoted empty values stay text; every value of every file decides."""
    (tmp_path / "1.csv").write_text("i,z,f,b,d,t,m,q,n\n1,007,1.5,true,2024-01-31,2024-01-31 10:00:00,1,1,\n")
    (tmp_path / "2.csv").write_text("i,z,f,b,d,t,m,q,n\n-2,8,2,False,2024-02-29,2024-01-31T10:00:00.5,x,\"\",\n")
    source = open_source(tmp_path, ReadOptions(infer_types=True))
    assert [str(kind) for kind in source.schema.types] == [
        "int64", "string", "double", "bool", "date32[day]", "timestamp[us]", "string", "string", "string",
    ]  # fmt: skip
    assert source.digest != open_source(tmp_path).digest
    table = pa.concat_tables(source.blocks())
    assert table["f"].to_pylist() == [1.5, 2.0]
    assert table["q"].to_pylist() == ["1", ""]
    assert table["n"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delimiter": ";;"}, "--delimiter takes one ASCII character"),
        ({"quote": "§"}, "--quote takes one ASCII character"),
        ({"delimiter": "x", "quote": "x"}, "--delimiter and --quote are both 'x'"),
        ({"encoding": "nope"}, "--encoding 'nope' is not known"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(tmp_path: Path, options: dict[str, str], words: str) -> None:
    """Before anything is read; and an option of CSV files is refused for others, never ignored."""
    (tmp_path / "d.csv").write_bytes(b"a\n1\n")
    (tmp_path / "d.jsonl").write_bytes(b'{"a":1}\n')
    with pytest.raises(UsageError) as told:
        open_source(tmp_path / "d.csv", ReadOptions(**options))
    assert words in str(told.value)
    with pytest.raises(UsageError, match="is for CSV and TSV files"):
        open_source(tmp_path / "d.jsonl", ReadOptions(**options))


def test_jsonl_is_read_as_it_is_written(tmp_path: Path) -> None:
    """Text that looks like a date stays text, long whole numbers stay whole, missing keys are null, nesting stays."""
    lines = [
        {"d": "2024-01-01", "n": 2**53 + 1, "l": [1, 2.5], "o": {"x": "y"}},
        {"d": None, "l": [], "o": {"z": True}, "x\u2028": "NaN"},
    ]
    content = "\ufeff" + "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    for name, pack in (("a.jsonl", bytes), ("b.jsonl.gz", gzip.compress), ("c.ndjson.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(pack(content.encode()))
        assert read(tmp_path / name).to_pylist() == [
            {"d": "2024-01-01", "n": 2**53 + 1, "l": [1.0, 2.5], "o": {"x": "y", "z": None}, "x\u2028": None},
            {"d": None, "n": None, "l": [], "o": {"x": None, "z": True}, "x\u2028": "NaN"},
        ]


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_arrow_files_and_streams_are_read(tmp_path: Path, new: Any, compression: str | None) -> None:
    """Both kinds of IPC, compressed or not, many batches."""
    table = pa.concat_tables([IPC] * 50)
    (tmp_path / "d.arrow").write_bytes(ipc(new, table, compression=compression))
    assert read(tmp_path / "d.arrow") == table.combine_chunks()


@pytest.mark.parametrize("cut", [1, 8, 30, 200])
def test_a_truncated_parquet_file_is_named(tmp_path: Path, cut: int) -> None:
    """Wherever it was cut."""
    path = tmp_path / "cut.parquet"
    pq.write_table(pa.table({"a": list(range(100))}), path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(SourceError, match=r"cut\.parquet"):
        read(path)


def test_a_parquet_file_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    """A whole footer over broken pages: found when the pages are read, before anything is sent."""
    path = tmp_path / "holes.parquet"
    pq.write_table(
        pa.table({"a": [f"text {n}" for n in range(50_000)]}), path, compression="zstd", use_dictionary=False
    )
    content = bytearray(path.read_bytes())
    content[2_000:6_000] = bytes(4_000)
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"holes\.parquet"):
        read(path)


def test_csv_values_stay_as_they_are_written(tmp_path: Path) -> None:
    """007 stays 007; an empty field is null, a quoted empty one is text; a byte order mark is no part of a name."""
    (tmp_path / "d.csv").write_bytes(b'\xef\xbb\xbfid,x,y\n007,1e5,\n 8 ,"",NaN\n"a\r\nb","""q""",null\n')
    table = read(tmp_path / "d.csv")
    assert table.to_pydict() == {
        "id": ["007", " 8 ", "a\r\nb"], "x": ["1e5", "", '"q"'], "y": [None, "NaN", "null"],
    }  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    width=st.integers(1, 5),
    ending=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    delimiter=st.sampled_from([",", ";", "\t", "|", " "]),
    quote=st.sampled_from(['"', "'", "`"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-le", "cp1252"]),
    packing=st.sampled_from(["", ".gz", ".zst"]),
    piece=st.sampled_from([3, 17, 4 << 20]),
)
def test_a_table_written_as_csv_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    data: st.DataObject,
    width: int,
    ending: str,
    quoting: Any,
    delimiter: str,
    quote: str,
    encoding: str,
    packing: str,
    piece: int,
) -> None:
    """Any text in any dialect, encoding and packing, however the bytes come; as many rows as the writer wrote."""
    # A bare carriage return outside quotes ends a record for some readers: a writer that means it quotes it.
    minimal = quoting == csv.QUOTE_MINIMAL
    letters = st.sampled_from("ab0 ,;|'\"`\tüß€\n") if encoding == "cp1252" else st.characters(
        exclude_categories=["Cs"], exclude_characters="\0\ufeff" + ("\r" if minimal else "")
    )
    rows = data.draw(st.lists(st.lists(st.text(letters, max_size=12), min_size=width, max_size=width), max_size=20))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quotechar=quote, lineterminator=ending, quoting=quoting)
    writer.writerow([f"c{n}" for n in range(width)])
    writer.writerows(rows)
    path = tmp_path_factory.mktemp("csv") / f"d.csv{packing}"
    content = text.getvalue().encode(encoding)
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packing](content))
    # An empty field alone on a line is quoted by the writer, so that the line is not blank.
    expected = [[cell if not minimal or cell or width == 1 else None for cell in row] for row in rows]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(streams, "PIECE_BYTES", piece)
        source = open_source(path, ReadOptions(delimiter=delimiter, quote=quote, encoding=encoding))
        table = pa.concat_tables([source.schema.empty_table(), *source.blocks(block_bytes=1 << 12)])
    assert source.rows == len(rows)
    assert [list(row.values()) for row in table.to_pylist()] == expected


LAYOUT = pa.schema(
    [
        ("n", pa.int64()), ("t", pa.string()), ("b", pa.large_binary()), ("f", pa.float32()),
        ("l", pa.list_(pa.int16())), ("d", pa.dictionary(pa.int8(), pa.string())),
        ("s", pa.struct([("x", pa.date32())])),
    ]
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 25), min_size=1, max_size=6),
    group=st.integers(1, 30),
    parted=st.booleans(),
    compression=st.sampled_from(["none", "zstd", "snappy"]),
    start=st.integers(0, 80),
    block=st.sampled_from([64, 1_000, 12 << 20]),
    wide=st.booleans(),
)
def test_a_table_in_any_parquet_layout_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    counts: list[int],
    group: int,
    parted: bool,
    compression: str,
    start: int,
    block: int,
    wide: bool,
) -> None:
    """Files of any size, in folders or not, row groups of any size, from any row on, columns side by side or not."""
    folder = tmp_path_factory.mktemp("layout")
    total = sum(counts)
    table = pa.table(
        {
            "n": range(total), "t": [None if n % 7 == 3 else "é" * (n % 5) for n in range(total)],
            "b": [b"\xff" * (n % 3) for n in range(total)], "f": [n / 3 for n in range(total)],
            "l": [list(range(n % 4)) for n in range(total)], "d": pa.array([f"w{n % 3}" for n in range(total)]),
            "s": [{"x": None} for n in range(total)],
        }
    ).cast(LAYOUT)  # fmt: skip
    first = 0
    for number, count in enumerate(counts):
        path = folder / (f"part={number:02d}" if parted else ".") / f"{number:02d}.parquet"
        path.parent.mkdir(exist_ok=True)
        part = table.slice(first, count)
        pq.write_table(part, path, row_group_size=group, compression=compression)
        first += count
    source = open_source(folder)
    with pytest.MonkeyPatch.context() as patch:
        if wide:
            patch.setattr(parquet_source, "_WIDE_COLUMNS", 3)
        found = pa.concat_tables([source.schema.empty_table(), *source.blocks(start_row=start, block_bytes=block)])
    expected = table.slice(start)
    assert found.drop_columns(["part"] if parted else []).to_pylist() == expected.to_pylist()
    if parted:
        parts = [f"{number:02d}" for number, count in enumerate(counts) for _ in range(count)]
        assert found["part"].to_pylist() == parts[start:]
    assert source.rows == total


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.one_of(st.none(), st.text(max_size=50)), max_size=60),
    group=st.integers(1, 20),
    start=st.integers(0, 70),
)
def test_a_parquet_file_is_read_from_any_row_on(
    tmp_path_factory: pytest.TempPathFactory, values: list[str | None], group: int, start: int
) -> None:
    """Row groups of any size; what comes before the first wanted row is passed over, nothing else."""
    path = tmp_path_factory.mktemp("pq") / "d.parquet"
    pq.write_table(pa.table({"t": pa.array(values, pa.string())}), path, row_group_size=group)
    source = open_source(path)
    found = [value for block in source.blocks(start_row=start, block_bytes=64) for value in block["t"].to_pylist()]
    assert found == values[start:]
    assert source.rows == len(values)


def test_identity_is_the_content_and_not_the_time(tmp_path: Path) -> None:
    """A copy is the same source; one changed byte is another one."""
    for ending in ("parquet", "csv"):
        one, two, other = (tmp_path / f"{name}.{ending}" for name in ("one", "two", "other"))
        if ending == "parquet":
            pq.write_table(pa.table({"a": ["x"]}), one)
            pq.write_table(pa.table({"a": ["y"]}), other)
        else:
            one.write_text("a\nx\n")
            other.write_text("a\ny\n")
        two.write_bytes(one.read_bytes())
        assert open_source(one).digest == open_source(two).digest != open_source(other).digest
