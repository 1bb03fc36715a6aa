"""Sealing: whatever the blocks, spans and limits, every row lies in one shard within them, and twice the same."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.build.overlap import in_order
from pipeline.build.packer import Limits
from pipeline.build.prompt import Prompt, load_prompt
from pipeline.build.seal import SealedSpan, seal
from pipeline.build.source import Source, open_source
from pipeline.build.template import Template, compile_template
from pipeline.build.writer import RequestPart, iter_row_file, write_request_file
from pipeline.errors import DiskFullError, SourceError

PROMPT = 'body:\n  model: m\n  messages:\n    - {role: user, content: "{{ text }}"}\n'
BODY_BYTES = 60


def prompt_of(folder: Path) -> Prompt:
    """A prompt over the column `text`."""
    path = folder / "p.yaml"
    path.write_text(PROMPT)
    return load_prompt(path)


def source_of(folder: Path, texts: list[str | None], **columns: list[Any]) -> tuple[Source, Template]:
    """A Parquet source of these texts, in small row groups, and a template over them."""
    path = folder / "data.parquet"
    table = pa.table({"n": pa.array(range(len(texts)), pa.int64()), "text": pa.array(texts, pa.string()), **columns})
    pq.write_table(table, path, row_group_size=3)
    source = open_source(path)
    return source, compile_template(prompt_of(folder), source.schema)


def sealed(source: Source, template: Template, limits: Limits, rows_dir: Path | None, **more: Any) -> list[SealedSpan]:
    """Seal with everything that the tests do not vary."""
    if rows_dir is not None:
        rows_dir.mkdir(exist_ok=True)
    fixed = {"model": "m", "url": "/chat/completions", "custom_id_prefix": "abcdef01", "id_column": None}
    return list(seal(source, template, limits, rows_dir=rows_dir, **{**fixed, **more}))


class Sliced:
    """A source whose blocks are of `rows` rows."""

    def __init__(self, source: Source, rows: int) -> None:
        self.schema, self.kept = source.schema, source.kept
        self._source, self._rows = source, rows

    def blocks(self, *, start_row: int = 0) -> Iterator[pa.Table]:
        """As of a source."""
        for block in self._source.blocks(start_row=start_row):
            for start in range(0, block.num_rows, self._rows):
                yield block.slice(start, self._rows)


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=40), st.just("x" * 900)), max_size=40),
    lines_max=st.integers(1, 9),
    bytes_max=st.integers(250, 900),
    tokens_max=st.one_of(st.none(), st.integers(10, 300)),
    span_rows=st.integers(1, 15),
)
def test_every_row_lies_in_one_shard_within_the_limits(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    texts: list[str | None],
    lines_max: int,
    bytes_max: int,
    tokens_max: int | None,
    span_rows: int,
) -> None:
    """Shards follow each other without a gap, hold their own rows, keep every limit, and never cross a span."""
    folder = tmp_path_factory.mktemp("seal")
    source, template = source_of(folder, texts)
    limits = Limits(lines_max, bytes_max, tokens_max)
    spans = sealed(source, template, limits, folder / "rows", span_rows=span_rows)
    row = 0
    for span in spans:
        assert span.first_row == row == span.span * span_rows
        for position, shard in enumerate(span.shards):
            assert shard.name == f"{span.span:06d}-{position:06d}"
            assert shard.first_row == row
            table = pq.read_table(folder / "rows" / f"{shard.name}.parquet")
            assert table["n"].to_pylist() == list(range(row, shard.stop_row))
            assert table["text"].to_pylist() == texts[row : shard.stop_row]
            sizes = table["__batchmill_bytes"].to_pylist()
            assert sum(size > 0 for size in sizes) == shard.requests <= lines_max
            assert shard.skipped == shard.stop_row - shard.first_row - shard.requests
            assert sum(sizes) == shard.bytes <= bytes_max
            assert sum(table["__batchmill_tokens"].to_pylist()) == shard.tokens
            if tokens_max is not None and shard.requests > 1:
                assert shard.tokens <= tokens_max
            for text, size, code in zip(
                table["text"].to_pylist(), sizes, table["__batchmill_skip_code"].to_pylist(), strict=True
            ):
                assert (size == 0) == (code is not None)
                if text is None:
                    assert code == "null_value"
            row = shard.stop_row
        assert span.stop_row == row
    assert row == len(texts)
    assert not list((folder / "rows").glob(".*")), "nothing half-written is left"


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 60), rows=st.integers(1, 30), span_rows=st.integers(4, 40))
def test_how_the_source_comes_in_blocks_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, count: int, rows: int, span_rows: int
) -> None:
    """The cuts depend on the rows alone."""
    folder = tmp_path_factory.mktemp("seal")
    source, template = source_of(folder, [f"text {number}" * (number % 9) or None for number in range(count)])
    limits = Limits(5, 1_000, None)
    whole = sealed(source, template, limits, None, span_rows=span_rows)
    assert sealed(cast(Source, Sliced(source, rows)), template, limits, None, span_rows=span_rows) == whole


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 60), stop_after=st.integers(0, 6), span_rows=st.integers(4, 20))
def test_sealing_that_was_stopped_goes_on_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, count: int, stop_after: int, span_rows: int
) -> None:
    """A start from the first row of any span gives the files that one go gives."""
    folder = tmp_path_factory.mktemp("seal")
    source, template = source_of(folder, [f"text {number}" for number in range(count)])
    limits = Limits(5, 10_000, None)
    whole = sealed(source, template, limits, folder / "whole", span_rows=span_rows)
    rows = folder / "parted"
    begun = sealed(source, template, limits, rows, span_rows=span_rows)[:stop_after]
    row = begun[-1].stop_row if begun else 0
    rest = sealed(source, template, limits, rows, span_rows=span_rows, start_row=row, span=len(begun))
    assert [*begun, *rest] == whole
    assert content_of(rows) == content_of(folder / "whole")


@settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=30), st.just("x" * 900)), max_size=60),
    rows=st.integers(1, 9),
    threads=st.integers(2, 5),
)
def test_the_number_of_threads_changes_no_byte(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], rows: int, threads: int
) -> None:
    """Shards, row files and request files are those of one thread."""
    folder = tmp_path_factory.mktemp("threads")
    source, template = source_of(folder, texts)
    parts, limits = cast(Source, Sliced(source, rows)), Limits(7, 900, None)
    alone = sealed(parts, template, limits, folder / "1", span_rows=20, threads=1)
    assert sealed(parts, template, limits, folder / "n", span_rows=20, threads=threads) == alone
    assert content_of(folder / "n") == content_of(folder / "1")
    for number, names in ((1, "1"), (threads, "n")):
        shards = [
            RequestPart(folder / names / f"{shard.name}.parquet", shard.first_row, None, "abcdef01", None)
            for span in alone
            for shard in span.shards
        ]
        write_request_file(
            folder / f"{names}.jsonl", shards, template, model="m", url="/u", limits=Limits(99, 10**6, None),
            threads=number,
        )  # fmt: skip
    assert (folder / "n.jsonl").read_bytes() == (folder / "1.jsonl").read_bytes()


def test_measuring_ahead_is_bounded_and_a_failure_comes_in_its_place() -> None:
    """Results come in the order of the pieces; no more than a few pieces are drawn ahead; an error ends the work."""
    drawn: list[int] = []

    def pieces() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    seen = []
    with pytest.raises(ZeroDivisionError):
        for piece, inverse in in_order(lambda number: 1 / (50 - number), pieces(), threads=3):
            seen.append((piece, inverse))
            assert len(drawn) <= piece + 1 + 5
    assert seen == [(number, 1 / (50 - number)) for number in range(50)]


@pytest.mark.parametrize("step", ["_flush", "close"])
def test_a_full_disk_in_the_background_ends_sealing_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """What goes wrong in a writing thread is raised to whoever seals; nothing half-written stays."""

    def full(*given: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source, template = source_of(tmp_path, ["y" * 150] * 60)
    monkeypatch.setattr(f"pipeline.build.writer.RowFileWriter.{step}", full)
    monkeypatch.setattr("pipeline.build.writer.GROUP_BYTES", 500)
    with pytest.raises((DiskFullError, OSError), match="[Nn]o (room|space) left"):
        sealed(cast(Source, Sliced(source, 4)), template, Limits(10, 100_000, None), tmp_path / "rows")
    if step == "_flush":  # a close that fails takes its file away itself, which this one does not
        assert not list((tmp_path / "rows").glob(".*"))


def test_asked_to_stop_nothing_half_written_stays(tmp_path: Path) -> None:
    """A stop between blocks gives out no span that was begun, and leaves no temporary file."""
    source, template = source_of(tmp_path, ["a"] * 50)
    asked = iter([False, False, True])
    spans = sealed(
        cast(Source, Sliced(source, 7)), template, Limits(5, 10_000, None), tmp_path / "rows",
        should_stop=lambda: next(asked),
    )  # fmt: skip
    assert spans == []
    assert not list((tmp_path / "rows").glob(".*"))


def test_counting_alone_gives_the_same_shards_and_writes_nothing(tmp_path: Path) -> None:
    """What `plan` counts is what `run` seals."""
    source, template = source_of(tmp_path, ["a", None, "c" * 300] * 20)
    limits = Limits(7, 900, None)
    counted = sealed(source, template, limits, None)
    assert counted == sealed(source, template, limits, tmp_path / "rows")


def test_a_row_over_the_byte_cap_is_skipped_as_too_large_at_the_very_byte(tmp_path: Path) -> None:
    """One byte less room skips the row; exactly its size sends it."""
    source, template = source_of(tmp_path, ["short", "long " * 100])
    whole = sealed(source, template, Limits(10, 10_000, None), tmp_path / "whole")
    table = pq.read_table(tmp_path / "whole" / "000000-000000.parquet")
    size = table["__batchmill_bytes"].to_pylist()[1]
    assert whole[0].shards[0].requests == 2
    exact = sealed(source, template, Limits(10, size, None), None)
    assert sum(shard.requests for shard in exact[0].shards) == 2
    sealed(source, template, Limits(10, size - 1, None), tmp_path / "less")
    codes = [
        code
        for file in sorted((tmp_path / "less").iterdir())
        for code in pq.read_table(file)["__batchmill_skip_code"].to_pylist()
    ]
    assert codes == [None, "too_large"]


def test_a_row_over_the_token_cap_gets_a_shard_of_its_own(tmp_path: Path) -> None:
    """It is sent when nothing else is queued, so it may not drag neighbours along."""
    source, template = source_of(tmp_path, ["a", "b", "long " * 400, "c", "d"])
    spans = sealed(source, template, Limits(10, 10_000, 200), None)
    assert [shard.requests for shard in spans[0].shards] == [2, 1, 2]


def test_only_the_first_rows_with_a_limit(tmp_path: Path) -> None:
    """`--limit` counts rows of the source, skipped ones included."""
    source, template = source_of(tmp_path, ["a", None, "c", "d"])
    for limit, rows in ((0, 0), (2, 2), (4, 4), (9, 4)):
        spans = sealed(source, template, Limits(10, 10_000, None), None, limit_rows=limit)
        assert sum(span.stop_row - span.first_row for span in spans) == rows


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (["a", "b", "a"], ["rows 0 and 2", "same id"]),
        (["a", None, "c"], ["row 1", "is null"]),
        (["a", "b", "é"], ["row 2", "printable ASCII"]),
        (["a", "", "c"], ["row 1"]),
        (["x" * 65, "b", "c"], ["row 0", "64"]),
    ],
)
def test_ids_that_cannot_be_custom_ids_are_named_before_anything_is_sent(
    tmp_path: Path, ids: list[str | None], words: list[str]
) -> None:
    """Unique, not null, at most 64 printable ASCII characters; the sentence names the rows."""
    source, template = source_of(tmp_path, ["t"] * 3, key=ids)
    with pytest.raises(SourceError) as told:
        sealed(source, template, Limits(1, 10_000, None), tmp_path / "rows", id_column="key")
    for word in words:
        assert word in str(told.value)
    assert not list(tmp_path.glob("ids.*"))


def test_a_double_id_is_found_across_a_restart(tmp_path: Path) -> None:
    """Uniqueness is a matter of the whole source, also of the rows that were sealed before."""
    source, template = source_of(tmp_path, ["t"] * 6, key=["a", "b", "c", "d", "e", "a"])
    with pytest.raises(SourceError, match="rows 0 and 5"):
        sealed(
            source, template, Limits(9, 10_000, None), tmp_path / "rows",
            id_column="key", start_row=3, span=1, span_rows=3,
        )  # fmt: skip


def test_row_files_have_bounded_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge reads a row group at a time: none may hold more than the bound."""
    monkeypatch.setattr("pipeline.build.writer.GROUP_BYTES", 2_000)
    source, template = source_of(tmp_path, ["y" * 150] * 60)
    sealed(cast(Source, Sliced(source, 4)), template, Limits(60, 100_000, None), tmp_path / "rows")
    groups = [table.num_rows for _, table in iter_row_file(tmp_path / "rows" / "000000-000000.parquet")]
    assert sum(groups) == 60
    assert max(groups) <= 2_000 // 150 + 4
