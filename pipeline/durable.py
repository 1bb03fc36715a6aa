"""Files that are whole or absent: written beside, fsynced, renamed, and the folder fsynced.

The one place where a full disk becomes `DiskFullError`. Knows nothing of what the files hold.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DiskFullError


def fsync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_dir(path: Path) -> None:
    """Force a folder's names to the disk."""
    fsync_file(path)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file its name, durably."""
    fsync_file(temporary)
    os.replace(temporary, final)
    fsync_dir(final.parent)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that no room is left; libraries hide the number in their text."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left" in str(error) or "Disk quota exceeded" in str(error)


@contextmanager
def telling_disk_full(folder: Path) -> Iterator[None]:
    """Turn "no room left" inside the block, in any spelling, into one sentence.

    Raises:
        DiskFullError: naming the folder.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"No room left on the disk of {folder}: free some and run the same command again."
            ) from error
        raise


@contextmanager
def replacing(path: Path, *, synced: bool = True) -> Iterator[Path]:
    """Write a file whole or not at all.

    Args:
        path: the file's name.
        synced: force it to the disk; False only for what is made again after a crash and never trusted then.

    Yields:
        A temporary path in the same folder; it becomes `path` when the block ends well, and is removed otherwise.

    Raises:
        DiskFullError: no room left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with telling_disk_full(path.parent):
            yield temporary
            if synced:
                publish(temporary, path)
            else:
                os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
