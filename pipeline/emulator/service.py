"""The service without HTTP: files, batches, their states, the enqueued-token quota, the books.

State lies in a folder (SQLite and files) and survives kill -9: a batch that was under way is run again from its
input, with the same answers, and charged once. Every deliberate choice where the contract says "unknown" stands in
docs/emulator.md.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.emulator.faults import Faults
from pipeline.emulator.work import Invalid, validate, work_off

TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
TIMES = ("in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
WINDOW_S = 86_400


class Refusal(Exception):  # noqa: N818 - an answer, not a mistake
    """An error answer: HTTP status and body."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(str(body))
        self.status = status
        self.body = body


def refusal(status: int, code: str, message: str) -> Refusal:
    """An error in the service's usual shape."""
    return Refusal(status, {"error": {"code": code, "message": message}})


@dataclass(frozen=True, slots=True)
class EmulatorSettings:
    """How the emulator behaves; times in seconds.

    Attributes:
        state: folder of its state.
        host, port: where it listens; port 0: any free one.
        key: the only key it takes; None: any.
        seed: of the answers.
        speed: divides every delay; `instant` makes them zero.
        fail_fast: validation errors refuse the create, instead of failing the batch later.
        quota_tokens: enqueued-token limit of each deployment; None: none.
        tokens_per_character: the service's own estimate of a file's tokens.
        lines_max: lines a file, at most.
        deployments: the only ones it knows; empty: any.
        die_with_parent: end when standard input ends.
    """

    state: Path
    host: str = "127.0.0.1"
    port: int = 0
    key: str | None = None
    seed: int = 0
    speed: float = 1.0
    instant: bool = False
    fail_fast: bool = False
    quota_tokens: int | None = None
    tokens_per_character: float = 0.25
    lines_max: int = 100_000
    deployments: tuple[str, ...] = ()
    die_with_parent: bool = False

    def delay_s(self, seconds: float) -> float:
        """A delay at this speed."""
        return 0.0 if self.instant else seconds / self.speed


class Service:
    """Files and batches of one resource.

    Args:
        settings: how it behaves.
        clock: Unix seconds now.
    """

    def __init__(self, settings: EmulatorSettings, clock: Callable[[], float] = time.time) -> None:
        self.settings, self._clock = settings, clock
        self.faults = Faults()
        settings.state.mkdir(parents=True, exist_ok=True)
        for part in ("files", "charged"):
            (settings.state / part).mkdir(exist_ok=True)
        self._guard = threading.RLock()
        self._hold()
        self._db = sqlite3.connect(settings.state / "service.db", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS file (n INTEGER PRIMARY KEY, id TEXT UNIQUE, doc TEXT)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS batch (n INTEGER PRIMARY KEY, id TEXT UNIQUE, doc TEXT, open INTEGER NOT NULL)"
        )
        self._wake, self._ended = threading.Event(), False
        self._worker = threading.Thread(target=self._work, name="worker", daemon=True)

    def _hold(self) -> None:
        """One emulator a folder: wait for another to end.

        Raises:
            TimeoutError: it did not within 30 s.
        """
        self._lock = (self.settings.state / "lock").open("w")
        until = time.monotonic() + 30
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() > until:
                    raise TimeoutError(f"{self.settings.state} is held by another emulator: stop it.") from None
                time.sleep(0.05)

    def start(self) -> None:
        """Begin working off batches."""
        self._worker.start()

    def close(self) -> None:
        """Stop after the current step."""
        self._ended = True
        self._wake.set()
        if self._worker.is_alive():
            self._worker.join(20)
        self._db.close()
        self._lock.close()

    # ---- files

    def path_of(self, file_id: str) -> Path:
        """Where a file's content lies."""
        return self.settings.state / "files" / file_id

    def add_file(self, content: Path, name: str, purpose: str, expires_s: int | None) -> dict[str, Any]:
        """Take an uploaded file over."""
        file_id = f"file-{uuid.uuid4().hex}" if purpose == "batch" else f"file-{uuid.uuid4()}"
        os.replace(content, self.path_of(file_id))
        now = self._clock()
        doc = {
            "id": file_id,
            "object": "file",
            "bytes": self.path_of(file_id).stat().st_size,
            "created_at": int(now),
            "expires_at": int(now) + expires_s if expires_s else None,
            "filename": name,
            "purpose": purpose,
            "ready_at": now + (self.settings.delay_s(0.2) if purpose == "batch" else 0),
        }
        with self._guard:
            self._db.execute("INSERT INTO file (id, doc) VALUES (?, ?)", (file_id, json.dumps(doc)))
        return self._shown(doc)

    def _shown(self, doc: dict[str, Any]) -> dict[str, Any]:
        shown = {name: value for name, value in doc.items() if name != "ready_at"}
        status = "processed" if self._clock() >= doc["ready_at"] else "pending"
        return {**shown, "status": status, "status_details": None}

    def file(self, file_id: str) -> dict[str, Any]:
        """A file object."""
        with self._guard:
            found = self._db.execute("SELECT doc FROM file WHERE id = ?", (file_id,)).fetchone()
        if found is None:
            raise refusal(404, "notFound", f"No file with id '{file_id}' was found.")
        return self._shown(json.loads(found[0]))

    def files(self, purpose: str | None) -> dict[str, Any]:
        """Every file."""
        with self._guard:
            rows = self._db.execute("SELECT doc FROM file ORDER BY n DESC").fetchall()
        found = [self._shown(json.loads(row[0])) for row in rows]
        return {
            "object": "list",
            "data": [doc for doc in found if purpose in (None, doc["purpose"])],
            "has_more": False,
        }

    def delete_file(self, file_id: str) -> dict[str, Any]:
        """Delete a file."""
        self.file(file_id)
        with self._guard:
            self._db.execute("DELETE FROM file WHERE id = ?", (file_id,))
        self.path_of(file_id).unlink(missing_ok=True)
        return {"id": file_id, "object": "file", "deleted": True}

    # ---- batches

    def create(self, asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Create a batch; the quota headers beside it."""
        file_id = asked.get("input_file_id")
        if not isinstance(file_id, str) or asked.get("completion_window") != "24h":
            raise refusal(400, "invalidPayload", "input_file_id and completion_window '24h' are required.")
        try:
            file = self.file(file_id)
        except Refusal:
            raise refusal(400, "invalidPayload", f"The input file '{file_id}' does not exist.") from None
        if file["status"] != "processed":
            text = (
                f"The input file '{file_id}' is in '{file['status']}' state. "
                "Only files with status 'Processed' are accepted "
                "for batch inferencing. Please wait until the file is processed."
            )
            raise refusal(400, "invalidPayload", text)
        if self.settings.fail_fast:
            self._check_fast(file_id, str(asked.get("endpoint")))
        now = self._clock()
        doc: dict[str, Any] = {
            "id": f"batch_{uuid.uuid4()}",
            "object": "batch",
            "endpoint": asked.get("endpoint"),
            "errors": None,
            "input_file_id": file_id,
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": "",
            "error_file_id": "",
            "created_at": int(now),
            **{f"{name}_at": None for name in TIMES},
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": asked.get("metadata"),
            "_due": now + self.settings.delay_s(0.3),
            "_tokens": 0,
            "_model": None,
            "_charged": 0,
        }
        doc["expires_at"] = int(now) + WINDOW_S
        with self._guard:
            self._db.execute("INSERT INTO batch (id, doc, open) VALUES (?, ?, 1)", (doc["id"], json.dumps(doc)))
        self._wake.set()
        headers = {"deployment-enqueued-tokens": str(self._estimate(file_id))}
        if self.settings.quota_tokens:
            headers["deployment-maximum-enqueued-tokens"] = str(self.settings.quota_tokens)
        return shown_batch(doc), headers

    def _check_fast(self, file_id: str, endpoint: str) -> None:
        try:
            model, _ = validate(self.path_of(file_id), endpoint, self.settings.lines_max, self.settings.deployments)
            self._check_quota(model, self._estimate(file_id))
        except Invalid as fault:
            raise Refusal(400, {"errors": {"object": "list", "data": [fault.entry()]}}) from None

    def _estimate(self, file_id: str) -> int:
        return int(self.path_of(file_id).stat().st_size * self.settings.tokens_per_character)

    def _check_quota(self, model: str, tokens: int) -> None:
        limit = self.settings.quota_tokens
        if limit is None:
            return
        with self._guard:
            rows = self._db.execute("SELECT doc FROM batch WHERE open = 1").fetchall()
        queued = sum(doc["_tokens"] for (text,) in rows if (doc := json.loads(text))["_model"] == model)
        if queued + tokens > limit:
            raise Invalid("token_limit_exceeded", quota_text(limit, model))

    def batch(self, batch_id: str) -> dict[str, Any]:
        """A batch object."""
        return shown_batch(self._doc(batch_id))

    def _doc(self, batch_id: str) -> dict[str, Any]:
        with self._guard:
            found = self._db.execute("SELECT doc FROM batch WHERE id = ?", (batch_id,)).fetchone()
        if found is None:
            raise refusal(404, "notFound", f"No batch with id '{batch_id}' was found.")
        doc: dict[str, Any] = json.loads(found[0])
        return doc

    def batches(self, after: str | None, limit: int) -> dict[str, Any]:
        """A page of batches, newest first; empty after the last."""
        with self._guard:
            top = 1 << 62
            if after:
                found = self._db.execute("SELECT n FROM batch WHERE id = ?", (after,)).fetchone()
                if found is None:
                    raise refusal(400, "invalidPayload", f"after: no batch with id '{after}'.")
                top = found[0]
            rows = self._db.execute(
                "SELECT doc FROM batch WHERE n < ? ORDER BY n DESC LIMIT ?", (top, limit + 1)
            ).fetchall()
        data = [shown_batch(json.loads(row[0])) for row in rows[:limit]]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(rows) > limit,
        }

    def cancel(self, batch_id: str) -> dict[str, Any]:
        """Ask a batch to stop; it drains, then is cancelled."""
        with self._guard:
            doc = self._doc(batch_id)
            if doc["status"] not in TERMINAL:
                self._put(doc, "cancelling")
        self._wake.set()
        return shown_batch(doc)

    def _put(self, doc: dict[str, Any], status: str | None = None) -> None:
        if status is not None:
            doc["status"] = status
            if f"{status}_at" in doc:
                doc[f"{status}_at"] = int(self._clock())
        with self._guard:
            self._db.execute(
                "UPDATE batch SET doc = ?, open = ? WHERE id = ?",
                (json.dumps(doc), int(doc["status"] not in TERMINAL), doc["id"]),
            )

    # ---- the worker

    def _work(self) -> None:
        while not self._ended:
            wait = self.step()
            self._wake.wait(wait)
            self._wake.clear()

    def step(self) -> float:
        """Move every batch that is due; seconds until one will be."""
        with self._guard:
            rows = self._db.execute("SELECT doc FROM batch WHERE open = 1 ORDER BY n").fetchall()
        soonest = 5.0
        for (text,) in rows:
            doc = json.loads(text)
            while doc["status"] not in TERMINAL and not self._ended:
                left = doc["_due"] - self._clock()
                if left > 0:
                    soonest = min(soonest, left)
                    break
                self._advance(doc)
        return max(0.01, soonest)

    def _advance(self, doc: dict[str, Any]) -> None:
        """One step of one batch."""
        now = self._clock()
        current = self._doc(doc["id"])
        if current["status"] == "cancelling":
            doc.update(current)
            doc["request_counts"] = doc["request_counts"] if doc["request_counts"]["total"] else doc["request_counts"]
            self._put(doc, "cancelled")
        elif doc["status"] == "validating":
            try:
                model, lines = validate(
                    self.path_of(doc["input_file_id"]),
                    str(doc["endpoint"]),
                    self.settings.lines_max,
                    self.settings.deployments,
                )
                tokens = self._estimate(doc["input_file_id"])
                self._check_quota(model, tokens)
                if self.faults.take("batch", "token_limit"):
                    raise Invalid("token_limit_exceeded", quota_text(tokens, model))
                if self.faults.take("batch", "fail"):
                    raise Invalid("invalid_request", "The batch was refused.")
            except Invalid as fault:
                doc["errors"] = {"object": "list", "data": [fault.entry()]}
                self._put(doc, "failed")
                return
            except FileNotFoundError:
                doc["errors"] = {"object": "list", "data": [Invalid("empty_file", "The file is gone.").entry()]}
                self._put(doc, "failed")
                return
            doc.update(_tokens=tokens, _model=model, _due=now + self.settings.delay_s(0.2))
            doc["request_counts"] = {"total": lines, "completed": 0, "failed": 0}
            self._put(doc, "in_progress")
        elif doc["status"] == "in_progress":
            self._execute(doc)
        else:
            self._put(doc, doc.get("_end") or "completed")

    def _execute(self, doc: dict[str, Any]) -> None:
        """Answer every line; the books are written before the batch says so."""
        state = self.settings.state
        scratch = [state / f"{doc['id']}.{name}" for name in ("output", "errors", "charged")]
        half = next((kind for kind in ("expire_half", "cancel_half") if self.faults.take("batch", kind)), None)
        done = work_off(
            self.path_of(doc["input_file_id"]), scratch, seed=self.settings.seed, faults=self.faults, half=half
        )
        os.replace(scratch[2], state / "charged" / doc["id"])
        doc["output_file_id"] = self.add_file(scratch[0], f"{doc['id']}_output.jsonl", "batch_output", None)["id"]
        doc["error_file_id"] = self.add_file(scratch[1], f"{doc['id']}_errors.jsonl", "batch_output", None)["id"]
        doc["request_counts"] = {"total": done.lines, "completed": done.completed, "failed": done.failed}
        doc["_charged"] = done.charged
        doc["_end"] = {"expire_half": "expired", "cancel_half": "cancelled"}.get(half or "")
        doc["_due"] = self._clock() + self.settings.delay_s(0.1)
        self._put(doc, "finalizing")

    def books(self) -> dict[str, Any]:
        """What was charged: by batch, and which custom_ids more than once."""
        with self._guard:
            docs = [json.loads(row[0]) for row in self._db.execute("SELECT doc FROM batch ORDER BY n").fetchall()]
        times: Counter[str] = Counter()
        for path in (self.settings.state / "charged").iterdir():
            times.update(path.read_text(encoding="utf-8").splitlines())
        again = [name for name, count in times.items() if count > 1]
        return {
            "accepted_lines": sum(doc["_charged"] for doc in docs),
            "batches": [
                {
                    "id": doc["id"],
                    "status": doc["status"],
                    "lines": doc["request_counts"]["total"],
                    "charged": doc["_charged"],
                    "input_file_id": doc["input_file_id"],
                }
                for doc in docs
            ],
            "charged_more_than_once": len(again),
            "examples": sorted(again)[:20],
        }


def quota_text(limit: int, model: str) -> str:
    """The service's words for a full queue; the limit in thousands."""
    return (
        f"The number of enqueued tokens has surpassed the configured limit of "
        f"{max(1, limit // 1000)}K for the deployment "
        f"'{model}'. Please either increase the limit or try again once the current jobs have finished."
    )


def shown_batch(doc: dict[str, Any]) -> dict[str, Any]:
    """A batch as the service shows it."""
    return {name: value for name, value in doc.items() if not name.startswith("_")}
