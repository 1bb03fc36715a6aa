"""Row files written in the background while sealing goes on.

Owns the threads that compress, write, fsync and publish row files, and the bound on what waits for them. A file's
blocks are written in their order by one thread, so that its bytes do not depend on how many there are. Knows nothing
of spans, cuts or the ledger.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from pipeline.build.overlap import cores
from pipeline.build.writer import RowFileWriter

LANES_MAX = 4
WAITING_BLOCKS_MAX = 4
"""Blocks handed over and not written yet, over all files; the giver waits for room."""


class Shelf:
    """Takes the rows of one file after another.

    Args:
        schema: the schema of every file, as of `row_file_schema`.
        lanes: how many files may be written at once; None: as many as there are cores, at most `LANES_MAX`.
    """

    def __init__(self, schema: pa.Schema, lanes: int | None = None) -> None:
        self._schema = schema
        count = lanes or min(LANES_MAX, cores())
        self._lanes = [ThreadPoolExecutor(1, thread_name_prefix="batchmill-rows") for _ in range(count)]
        self._room = threading.BoundedSemaphore(WAITING_BLOCKS_MAX)
        self._begun = 0
        self.failure: BaseException | None = None

    def begin(self, path: Path) -> OnShelf:
        """A new file; nothing of it is on disk yet."""
        lane = self._lanes[self._begun % len(self._lanes)]
        self._begun += 1
        return OnShelf(self, lane, path, self._schema, self._room)

    def close(self) -> None:
        """Wait for everything handed over; the files not finished are gone by then."""
        for lane in self._lanes:
            lane.shutdown(wait=True)


class OnShelf:
    """One file under way."""

    def __init__(
        self,
        shelf: Shelf,
        lane: ThreadPoolExecutor,
        path: Path,
        schema: pa.Schema,
        room: threading.BoundedSemaphore,
    ) -> None:
        self._shelf, self._lane, self._path, self._schema, self._room = shelf, lane, path, schema, room
        self._writer: RowFileWriter | None = None
        self._discarded = False

    def write(self, rows: pa.Table) -> None:
        """Hand rows over; waits while too many are waiting.

        Raises:
            BaseException: what went wrong with rows handed over earlier, of this or another file.
        """
        self._room.acquire()
        try:
            if self._shelf.failure is not None:
                raise self._shelf.failure
            self._lane.submit(self._write, rows)
        except BaseException:
            self._room.release()
            raise

    def _write(self, rows: pa.Table) -> None:
        try:
            if self._discarded or self._shelf.failure is not None:
                return
            if self._writer is None:
                self._writer = RowFileWriter(self._path, self._schema)
            self._writer.write(rows)
        except BaseException as error:  # noqa: BLE001 - told to the giver, who raises it
            self._fail(error)
        finally:
            self._room.release()

    def finish(self) -> Future[None]:
        """Nothing more comes: done when the file has its name and is durable, or with what went wrong."""
        return self._lane.submit(self._finish)

    def _finish(self) -> None:
        if self._shelf.failure is not None:
            self._drop(self._shelf.failure)
            raise self._shelf.failure
        writer, self._writer = self._writer, None
        assert writer is not None
        try:
            writer.close()
        except BaseException as error:
            self._shelf.failure = error
            raise

    def discard(self, error: BaseException) -> None:
        """Leave nothing of the file behind; returns when nothing is left."""
        self._discarded = True
        self._lane.submit(self._drop, error).result()

    def _fail(self, error: BaseException) -> None:
        try:
            self._drop(error)
        except BaseException as told:  # noqa: BLE001 - the same, in words for people
            error = told
        self._shelf.failure = error

    def _drop(self, error: BaseException) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.discard(error)
