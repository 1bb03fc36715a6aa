"""The emulator's state on disk: files and batches as documents in SQLite, contents as files. Survives kill -9.

One emulator a folder, by a lock. Knows nothing of what the documents mean.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Doc = dict[str, Any]
HOLD_S = 30.0
ANSWERS_AT_ONCE = 100


class Store:
    """An open state folder.

    Args:
        state: the folder; made when it is not there.

    Raises:
        TimeoutError: another emulator holds it.
        OSError: it cannot be made or written.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        for part in ("files", "charged"):
            (state / part).mkdir(parents=True, exist_ok=True)
        self.guard = threading.RLock()
        self._hold()
        for pattern in ("upload.*", "batch_*.*"):  # half-written by an emulator that was killed
            for path in state.glob(pattern):
                path.unlink()
        self._db = sqlite3.connect(state / "service.db", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS file (n INTEGER PRIMARY KEY, id TEXT UNIQUE, doc TEXT)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS batch (n INTEGER PRIMARY KEY, id TEXT UNIQUE, doc TEXT, open INTEGER NOT NULL)"
        )
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS answer (batch TEXT, line INTEGER, status INTEGER, body TEXT, "
            "PRIMARY KEY (batch, line)) WITHOUT ROWID"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS late (n INTEGER PRIMARY KEY, due REAL NOT NULL, doc TEXT)")

    def _hold(self) -> None:
        self._lock = (self.state / "lock").open("w")
        until = time.monotonic() + HOLD_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() > until:
                    raise TimeoutError(f"{self.state} is held by another emulator: stop it.") from None
                time.sleep(0.05)

    def close(self) -> None:
        """Close the files and let the folder go."""
        self._db.close()
        self._lock.close()

    def path_of(self, file_id: str) -> Path:
        """Where a file's content lies."""
        return self.state / "files" / file_id

    # ---- files

    def add_file(self, doc: Doc) -> None:
        """Keep a file's document; one of the same id is replaced."""
        with self.guard:
            self._db.execute(
                "INSERT INTO file (id, doc) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc",
                (doc["id"], json.dumps(doc)),
            )

    def file(self, file_id: str) -> Doc | None:
        """A file's document, or None."""
        with self.guard:
            found = self._db.execute("SELECT doc FROM file WHERE id = ?", (file_id,)).fetchone()
        return None if found is None else json.loads(found[0])

    def files(self) -> list[Doc]:
        """Every file, newest first."""
        with self.guard:
            rows = self._db.execute("SELECT doc FROM file ORDER BY n DESC").fetchall()
        return [json.loads(row[0]) for row in rows]

    def count_files(self, purpose: str, *, expiring: bool) -> int:
        """How many files of a purpose there are, with or without an expiry."""
        with self.guard:
            found = self._db.execute(
                "SELECT count(*) FROM file WHERE json_extract(doc, '$.purpose') = ? "
                "AND (json_extract(doc, '$.expires_at') IS NOT NULL) = ?",
                (purpose, expiring),
            ).fetchone()
        return int(found[0])

    def expired_files(self, now: float) -> list[str]:
        """Ids of the files whose time is over."""
        with self.guard:
            rows = self._db.execute(
                "SELECT id FROM file WHERE json_extract(doc, '$.expires_at') <= ?", (now,)
            ).fetchall()
        return [row[0] for row in rows]

    def delete_file(self, file_id: str) -> None:
        """Forget a file and its content."""
        with self.guard:
            self._db.execute("DELETE FROM file WHERE id = ?", (file_id,))
        self.path_of(file_id).unlink(missing_ok=True)

    # ---- batches

    def add_batch(self, doc: Doc) -> None:
        """Keep a batch's document."""
        with self.guard:
            self._db.execute("INSERT INTO batch (id, doc, open) VALUES (?, ?, 1)", (doc["id"], json.dumps(doc)))

    def put_batch(self, doc: Doc, *, is_open: bool) -> None:
        """Replace a batch's document."""
        with self.guard:
            self._db.execute(
                "UPDATE batch SET doc = ?, open = ? WHERE id = ?", (json.dumps(doc), int(is_open), doc["id"])
            )

    def batch(self, batch_id: str) -> Doc | None:
        """A batch's document, or None."""
        with self.guard:
            found = self._db.execute("SELECT doc FROM batch WHERE id = ?", (batch_id,)).fetchone()
        return None if found is None else json.loads(found[0])

    def open_batches(self) -> list[Doc]:
        """The batches that are not terminal, oldest first."""
        with self.guard:
            rows = self._db.execute("SELECT doc FROM batch WHERE open = 1 ORDER BY n").fetchall()
        return [json.loads(row[0]) for row in rows]

    def batches(self) -> list[Doc]:
        """Every batch, oldest first."""
        with self.guard:
            rows = self._db.execute("SELECT doc FROM batch ORDER BY n").fetchall()
        return [json.loads(row[0]) for row in rows]

    def page_of_batches(self, after: str | None) -> Iterator[Doc] | None:
        """The batches older than `after`, newest first; None when there is no such batch."""
        with self.guard:
            top = 1 << 62
            if after is not None:
                found = self._db.execute("SELECT n FROM batch WHERE id = ?", (after,)).fetchone()
                if found is None:
                    return None
                top = found[0]
            rows = self._db.execute("SELECT doc FROM batch WHERE n < ? ORDER BY n DESC LIMIT 2000", (top,)).fetchall()
        return (json.loads(row[0]) for row in rows)

    # ---- creates that take effect later

    def add_late(self, due: float, asked: Doc) -> None:
        """Keep a create that takes effect at `due`."""
        with self.guard:
            self._db.execute("INSERT INTO late (due, doc) VALUES (?, ?)", (due, json.dumps(asked)))

    def take_late(self, now: float) -> Doc | None:
        """A create that is due, which is forgotten by that; None: there is none."""
        with self.guard:
            found = self._db.execute("SELECT n, doc FROM late WHERE due <= ? ORDER BY n LIMIT 1", (now,)).fetchone()
            if found is None:
                return None
            self._db.execute("DELETE FROM late WHERE n = ?", (found[0],))
        doc: Doc = json.loads(found[1])
        return doc

    # ---- answers of an upstream server

    def keep_answer(self, batch_id: str, line: int, status: int, body: bytes) -> None:
        """Keep an answer as soon as it is here: it is never asked for again."""
        with self.guard:
            self._db.execute("INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?)", (batch_id, line, status, body))

    def count_answers(self, batch_id: str) -> int:
        """How many lines of a batch that is under way have their answer."""
        with self.guard:
            found = self._db.execute("SELECT count(*) FROM answer WHERE batch = ?", (batch_id,)).fetchone()
        return int(found[0])

    def answers(self, batch_id: str) -> Iterator[tuple[int, int, bytes]]:
        """Line, status and body of the answers of a batch that is under way, in order, a few at a time."""
        last = -1
        while True:
            with self.guard:
                rows = self._db.execute(
                    "SELECT line, status, body FROM answer WHERE batch = ? AND line > ? ORDER BY line LIMIT ?",
                    (batch_id, last, ANSWERS_AT_ONCE),
                ).fetchall()
            if not rows:
                return
            yield from rows
            last = rows[-1][0]

    def answered_lines(self, batch_id: str) -> Iterator[int]:
        """The lines that have their answer, in order."""
        last = -1
        while True:
            with self.guard:
                rows = self._db.execute(
                    "SELECT line FROM answer WHERE batch = ? AND line > ? ORDER BY line LIMIT 10000", (batch_id, last)
                ).fetchall()
            if not rows:
                return
            yield from (row[0] for row in rows)
            last = rows[-1][0]

    def drop_answers(self, batch_id: str) -> None:
        """Forget the answers of a batch whose result files are whole."""
        with self.guard:
            self._db.execute("DELETE FROM answer WHERE batch = ?", (batch_id,))
