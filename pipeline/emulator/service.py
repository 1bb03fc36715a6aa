"""The service without HTTP: what its calls do to files and batches, and what they show.

State lies in a folder and survives kill -9: a batch that was under way goes on where it was, with the same answers,
and is charged once. Every deliberate choice where the contract says "unknown" stands in docs/emulator.md. How a batch
moves on by itself is the machine's.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.emulator.books import books
from pipeline.emulator.faults import Faults
from pipeline.emulator.files import Files
from pipeline.emulator.lines import Invalid, first_model
from pipeline.emulator.machine import TERMINAL, Machine
from pipeline.emulator.objects import checked_metadata, odd, odd_page, output_expiry, shown_batch
from pipeline.emulator.quota import Queue
from pipeline.emulator.refusals import Refusal, refusal
from pipeline.emulator.settings import VALIDATING_S, WINDOW_S, EmulatorSettings
from pipeline.emulator.store import Doc, Store

__all__ = ["EmulatorSettings", "Refusal", "Service", "refusal", "shown_batch"]

TIMES = ("in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class Service:
    """Files and batches of one resource.

    Args:
        settings: how it behaves.
        clock: Unix seconds now.

    Raises:
        TimeoutError: another emulator holds its folder.
        ValueError: a setting or an order is wrong.
    """

    def __init__(self, settings: EmulatorSettings, clock: Callable[[], float] = time.time) -> None:
        self.settings, self._clock = settings, clock
        self.faults = Faults(settings.fault_seed)
        self.faults.order(settings.faults)
        self._store = Store(settings.state)
        self._files = Files(self._store, settings, clock)
        self._queue = Queue(self._store, settings, clock)
        self._machine = Machine(
            self._store, self._files, self._queue, settings=settings, faults=self.faults, clock=clock
        )
        self._worker = threading.Thread(target=self._machine.work, args=(self.step,), name="worker", daemon=True)

    def start(self) -> None:
        """Begin working off batches."""
        self._worker.start()

    def step(self) -> float:
        """Move every batch that is due, and let late creates take effect; seconds until something is due."""
        while late := self._store.take_late(self._clock()):
            with contextlib.suppress(Refusal):  # its input is gone: what Azure does then is unknown
                self.create(late)
        return self._machine.step()

    def join_upstream(self, seconds: float) -> None:
        """Wait until the upstream server has answered what it was sent, at most so long for each batch."""
        for thread in list(self._machine.asking.values()):
            thread.join(seconds)

    def close(self) -> None:
        """Stop after the current step."""
        self._machine.close()
        self._machine.wake.set()
        if self._worker.is_alive():
            self._worker.join(20)
        self._store.close()

    # ---- files

    def path_of(self, file_id: str) -> Path:
        """Where a file's content lies."""
        return self._files.path_of(file_id)

    def add_file(
        self, content: Path, name: str, purpose: str, expires_s: int | None, characters: int = 0
    ) -> dict[str, Any]:
        """Take a file over; see `Files.add`."""
        return self._files.add(content, name, purpose, expires_s, characters=characters)

    def file(self, file_id: str) -> dict[str, Any]:
        """A file object."""
        return self._files.shown(self._files.doc(file_id))

    def files(
        self, purpose: str | None, after: str | None = None, limit: int = 10_000, order: str = "desc"
    ) -> dict[str, Any]:
        """A page of files."""
        lag, limit = self._listing("list_files", limit)
        return self._files.page(purpose, after, limit, order, lag_s=lag)

    def spoil_file(self, file_id: str) -> None:
        """Let an uploaded file end in `error`."""
        self._files.spoil(file_id)

    def halve_file(self, file_id: str) -> dict[str, Any]:
        """Let half of an uploaded file be lost."""
        return self._files.halve(file_id)

    def content_of(self, file_id: object) -> Path | None:
        """Where the content of a file lies that is there, or None."""
        return self.path_of(file_id) if isinstance(file_id, str) and self._store.file(file_id) is not None else None

    def _listing(self, call: str, limit: int) -> tuple[float, int]:
        """Seconds that a listing lags, and entries of a page, as was ordered."""
        lag, small = self.faults.take(call, "lag"), self.faults.take(call, "small_pages")
        return lag.seconds if lag else 0.0, min(limit, 2) if small else limit

    def delete_file(self, file_id: str) -> dict[str, Any]:
        """Delete a file."""
        return self._files.delete(file_id)

    # ---- batches

    def create(self, asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """Create a batch; the quota headers beside it."""
        file_id, endpoint = asked.get("input_file_id"), asked.get("endpoint")
        if not isinstance(file_id, str) or not isinstance(endpoint, str) or asked.get("completion_window") != "24h":
            raise refusal(400, "invalidPayload", "input_file_id, endpoint and completion_window '24h' are required.")
        metadata, kept_s = checked_metadata(asked.get("metadata")), output_expiry(asked.get("output_expires_after"))
        try:
            file = self._files.doc(file_id)
        except Refusal:
            raise refusal(400, "invalidPayload", f"The input file '{file_id[:100]}' does not exist.") from None
        if self.settings.habits.gate and self._files.status(file) != "processed":
            text = (
                f"The input file '{file_id}' is in '{self._files.status(file)}' state. Only files with status "
                "'Processed' are accepted for batch inferencing. Please wait until the file is processed."
            )
            raise refusal(400, "invalidPayload", text)
        return self._created(file, endpoint, metadata, kept_s)

    def _created(
        self, file: Doc, endpoint: str, metadata: dict[str, str] | None, kept_s: int | None
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """A new batch of a good create."""
        now, file_id = self._clock(), file["id"]
        doc: Doc = {
            "id": f"batch_{uuid.uuid4()}",
            "object": "batch",
            "endpoint": endpoint,
            "errors": None,
            "input_file_id": file_id,
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": self.settings.habits.no_id,
            "error_file_id": self.settings.habits.no_id,
            "created_at": int(now),
            **{f"{name}_at": None for name in TIMES},
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": metadata,
            "_due": now + self.settings.delay_s(VALIDATING_S),
            "_tokens": 0,
            "_model": None,
            "_charged": 0,
            "_estimate": self._queue.estimate(file),
            "_named": first_model(self.path_of(file_id)),
            "_output_expires_s": kept_s,
        }
        doc["expires_at"] = int(now) + WINDOW_S
        if self.settings.fail_fast:
            try:
                self._machine.check(doc)
            except Invalid as fault:
                raise Refusal(400, {"errors": {"object": "list", "data": [fault.entry()]}}) from None
            except FileNotFoundError:
                raise refusal(400, "invalidPayload", f"The input file '{file_id}' does not exist.") from None
        else:
            self._store.add_batch(doc)
        self._machine.wake.set()
        return self._shown_batch(doc), self._queue.headers(doc)

    def create_later(self, asked: dict[str, Any], seconds: float) -> None:
        """A create that takes effect after the client has given up; it survives a restart."""
        self._store.add_late(self._clock() + seconds, asked)
        self._machine.wake.set()

    def _doc(self, batch_id: str) -> Doc:
        doc = self._store.batch(batch_id)
        if doc is None or self._clock() < doc.get("_hidden_until", 0):
            raise refusal(404, "notFound", f"No batch with id '{batch_id[:100]}' was found.")
        return doc

    def batch(self, batch_id: str) -> dict[str, Any]:
        """A batch object."""
        return self._shown_batch(self._doc(batch_id))

    def _shown_batch(self, doc: Doc) -> dict[str, Any]:
        """A batch as the service shows it now: counts that move, and the oddities that were switched on."""
        shown = shown_batch(doc)
        counts = shown.get("request_counts")
        if doc["status"] not in TERMINAL:
            shown.update(output_file_id=self.settings.habits.no_id, error_file_id=self.settings.habits.no_id)
        if doc["status"] == "in_progress" and isinstance(counts, dict):
            shown["request_counts"] = {**counts, "completed": int(counts["total"] * self._machine.share(doc))}
        if doc.get("_no_counts"):
            shown["request_counts"] = {"total": None, "completed": None, "failed": None}
        return odd(shown, self.settings.quirks)

    def batches(self, after: str | None, limit: int) -> dict[str, Any]:
        """A page of batches, newest first; empty after the last."""
        rows = self._store.page_of_batches(after)
        if rows is None:
            raise refusal(400, "invalidPayload", "after: there is no such batch.")
        lag, limit = self._listing("list_batches", limit)
        now = self._clock()
        found = []
        for doc in rows:
            if now < doc.get("_hidden_until", 0) or now < doc["created_at"] + lag:
                continue
            found.append(self._shown_batch(doc))
            if len(found) > limit:
                break
        data = found[:limit]
        page = {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(found) > limit,
        }
        return odd_page(page, self.settings.quirks)

    def cancel(self, batch_id: str) -> dict[str, Any]:
        """Ask a batch to stop; it drains, then is cancelled. One that has ended stays as it is."""
        with self._store.guard:
            doc = self._doc(batch_id)
            if doc["status"] not in TERMINAL and doc["status"] != "cancelling":
                self._machine.cancel(doc)
        return self._shown_batch(doc)

    def input_of(self, batch_id: str) -> Path | None:
        """Where the input of a batch lies; None: there is no such batch."""
        doc = self._store.batch(batch_id)
        return None if doc is None else self.path_of(doc["input_file_id"])

    def books(self) -> dict[str, Any]:
        """What was charged: by batch, and which custom_ids more than once; what was ever enqueued."""
        return books(self._store.batches(), self.settings.state / "charged", self.settings.state)
