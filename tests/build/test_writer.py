"""Request files: what the service demands, byte for byte the same, within the limits or not there at all."""

from __future__ import annotations

from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.build.fallback import WHITE_SPACE
from pipeline.build.packer import Limits
from pipeline.build.template import Template
from pipeline.build.writer import RequestFileOverflow, RequestPart, write_request_file
from tests.build.test_seal import sealed, source_of

WIDE = Limits(1_000, 1_000_000, None)
TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=30)), min_size=1, max_size=40)


def parts_of(folder: Path, texts: list[str | None], lines_max: int) -> tuple[list[RequestPart], Template]:
    """Seal the texts; a part for each shard."""
    source, template = source_of(folder, texts)
    spans = sealed(source, template, Limits(lines_max, 1_000_000, None), folder / "rows")
    parts = [
        RequestPart(folder / "rows" / f"{shard.name}.parquet", shard.first_row, None, "abcdef01", None)
        for span in spans
        for shard in span.shards
    ]
    return parts, template


@settings(max_examples=50, deadline=None)
@given(texts=TEXTS, lines_max=st.integers(1, 12))
def test_a_request_file_is_what_the_service_demands(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], lines_max: int
) -> None:
    """UTF-8 without BOM, no blank line, one object a line with the four keys, unique ids, one model and one url."""
    folder = tmp_path_factory.mktemp("writer")
    parts, template = parts_of(folder, texts, lines_max)
    written = write_request_file(folder / "r.jsonl", parts, template, model="dep", url="/u", limits=WIDE)
    content = (folder / "r.jsonl").read_bytes()
    content.decode("utf-8")
    assert not content.startswith(b"\xef\xbb\xbf")
    assert content == b"" or content.endswith(b"\n")
    lines = content.split(b"\n")[:-1]
    requests = [orjson.loads(line) for line in lines]
    assert all(list(request) == ["custom_id", "method", "url", "body"] for request in requests)
    assert {(request["method"], request["url"], request["body"]["model"]) for request in requests} <= {
        ("POST", "/u", "dep")
    }
    sendable = [number for number, text in enumerate(texts) if text is not None and text.strip(WHITE_SPACE)]
    assert [request["custom_id"] for request in requests] == [f"abcdef01-{number}" for number in sendable]
    assert [request["body"]["messages"][0]["content"] for request in requests] == [texts[n] for n in sendable]
    assert (written.lines, written.bytes) == (len(lines), len(content))
    write_request_file(folder / "again.jsonl", parts, template, model="dep", url="/u", limits=WIDE, threads=1)
    assert (folder / "again.jsonl").read_bytes() == content


@settings(max_examples=40, deadline=None)
@given(data=st.data(), count=st.integers(1, 40), lines_max=st.integers(1, 12))
def test_any_choice_of_rows_gives_those_lines_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int, lines_max: int
) -> None:
    """A retry's request lines are the same bytes as the first time, whatever shards they come from."""
    folder = tmp_path_factory.mktemp("writer")
    parts, template = parts_of(folder, [f"row {number}" for number in range(count)], lines_max)
    write_request_file(folder / "whole.jsonl", parts, template, model="dep", url="/u", limits=WIDE)
    lines = (folder / "whole.jsonl").read_bytes().splitlines(keepends=True)
    chosen = sorted(data.draw(st.sets(st.integers(0, count - 1), max_size=count)))
    some = [
        RequestPart(
            part.row_file,
            part.first_row,
            pa.array([row for row in chosen if part.first_row <= row < stop], pa.int64()),
            part.custom_id_prefix,
            None,
        )
        for part, stop in zip(parts, [*(part.first_row for part in parts[1:]), count], strict=True)
    ]
    write_request_file(folder / "some.jsonl", some, template, model="dep", url="/u", limits=WIDE)
    assert (folder / "some.jsonl").read_bytes() == b"".join(lines[row] for row in chosen)


@pytest.mark.parametrize("limits", [Limits(9, 1_000_000, None), Limits(100, 900, None)])
def test_a_file_that_would_break_a_limit_is_not_there(tmp_path: Path, limits: Limits) -> None:
    """Too many lines or bytes (a deployment's longer name is enough): an error, and no file of any name."""
    parts, template = parts_of(tmp_path, ["text"] * 10, 100)
    (tmp_path / "requests").mkdir()
    with pytest.raises(RequestFileOverflow):
        write_request_file(tmp_path / "requests" / "r.jsonl", parts, template, model="m", url="/u", limits=limits)
    assert list((tmp_path / "requests").iterdir()) == []
