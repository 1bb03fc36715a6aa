"""Lines of files in any names and mixture: which batch each belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UsageError
from pipeline.merge.by_hand import KnownBatch, add_lines, sort_results, without_lines_of
from pipeline.results import pieces


def line(row: int, text: str = "a", run: str = "12345678") -> bytes:
    """A row's result."""
    body = {"choices": [{"finish_reason": "stop", "message": {"content": text}}]}
    return json.dumps({"custom_id": f"{run}-{row}", "response": {"status_code": 200, "body": body}}).encode()


def batch(folder: Path, name: str, rows: list[int], *, over: bool = False) -> KnownBatch:
    """A batch of these rows."""
    path = folder / f"{name}.rows.parquet"
    pq.write_table(pa.table({"custom_id": [f"12345678-{row}" for row in rows]}), path)
    return KnownBatch(name, path, over)


def sort(
    tmp_path: Path, content: bytes, batches: list[KnownBatch], prefix: str | None = "12345678"
) -> dict[str, list[bytes]]:
    """What each batch gets of one file."""
    for name in ("in", "scratch"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "in" / "some name").write_bytes(content)
    found = sort_results(tmp_path / "in", batches, tmp_path / "scratch", kind="chat", id_prefix=prefix)
    return {name: path.read_bytes().split(b"\n")[:-1] for name, path in found.lines.items()}


def test_a_row_that_was_asked_again_is_of_the_batch_that_waits(tmp_path: Path) -> None:
    """Whatever the order of the batches; rows of a batch that is over stay with it."""
    for batches in (
        [batch(tmp_path, "b1", [1, 2, 3], over=True), batch(tmp_path, "b2", [2])],
        [batch(tmp_path, "b2", [2]), batch(tmp_path, "b1", [1, 2, 3], over=True)],
    ):
        content = b"\n".join([line(3), line(2), line(1)])
        assert sort(tmp_path, content, batches) == {"b1": [line(3), line(1)], "b2": [line(2)]}


def test_what_came_before_a_row_was_asked_again_is_taken_out(tmp_path: Path) -> None:
    """A line that stands in the results of a batch that is over is not another's; others are kept."""
    (tmp_path / "new").write_bytes(line(1, "first") + b"\n" + line(1, "second") + b"\n")
    add_lines(tmp_path / "old.zst", _file(tmp_path, line(1, "first")))
    assert without_lines_of(tmp_path / "new", [tmp_path / "old.zst", tmp_path / "absent"]) == 1
    assert (tmp_path / "new").read_bytes() == line(1, "second") + b"\n"


def test_a_file_that_begins_with_garbage_is_still_a_file_of_results(tmp_path: Path) -> None:
    """A torn first line hides nothing."""
    known = [batch(tmp_path, "b1", [1, 2])]
    assert sort(tmp_path, b'nt":"x"}}}\n' + line(1) + b"\n" + line(2)[:60], known) == {"b1": [line(1), line(2)[:60]]}


def test_lines_without_a_newline_between_them_are_each_taken(tmp_path: Path) -> None:
    """Each batch gets a line that names its row."""
    known = [batch(tmp_path, "b1", [1]), batch(tmp_path, "b2", [2])]
    found = sort(tmp_path, line(1) + line(2) + b"\n", known)
    assert sorted(found) == ["b1", "b2"]


@pytest.mark.parametrize("prefix", ["12345678", None])
def test_another_runs_lines_are_refused(tmp_path: Path, prefix: str | None) -> None:
    """By their prefix, even one among many; where ids come from a column, only when none is known."""
    known = [batch(tmp_path, "b1", [1])]
    mixed, foreign = line(1) + b"\n" + line(5, run="aaaaaaaa"), line(5, run="aaaaaaaa")
    with pytest.raises(UsageError, match="another run"):
        sort(tmp_path, foreign, known, prefix)
    if prefix is None:
        assert sort(tmp_path, mixed, known, prefix) == {"b1": [line(1)]}
    else:
        with pytest.raises(UsageError, match="aaaaaaaa-5"):
            sort(tmp_path, mixed, known, prefix)


def test_lines_that_are_there_already_are_added_once(tmp_path: Path) -> None:
    """Adding again changes nothing."""
    for _ in range(2):
        add_lines(tmp_path / "r.zst", _file(tmp_path, line(1) + b"\n" + line(1) + b"\n" + line(2)))
    assert b"".join(map(bytes, pieces(tmp_path / "r.zst"))) == line(1) + b"\n" + line(2) + b"\n"


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "lines"
    path.write_bytes(content)
    return path
