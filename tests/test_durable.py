"""Files are whole or absent, and a full disk has one name."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pipeline.durable import replacing, telling_disk_full
from pipeline.errors import DiskFullError


def test_a_file_appears_whole_at_the_end(tmp_path: Path) -> None:
    """Until the block ends the old content stands."""
    final = tmp_path / "f"
    final.write_text("old")
    with replacing(final) as temporary:
        temporary.write_text("new")
        assert final.read_text() == "old"
    assert final.read_text() == "new"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_a_block_that_fails_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    """Whatever ends the block: the old file, and nothing beside it."""
    final = tmp_path / "f"
    final.write_text("old")
    with pytest.raises(type(error)), replacing(final) as temporary:
        temporary.write_text("half")
        raise error
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("IOError: [Errno 28] No space left on device"),
    ],
)
def test_a_full_disk_is_told_in_one_sentence_whoever_noticed_it(tmp_path: Path, error: Exception) -> None:
    """The number, or the words of a library that hides it."""
    with pytest.raises(DiskFullError, match="free some"), telling_disk_full(tmp_path):
        raise error


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    """Only a full disk is renamed."""
    with pytest.raises(PermissionError), telling_disk_full(tmp_path):
        raise PermissionError(errno.EACCES, "no")
