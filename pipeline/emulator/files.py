"""The service's files: their rules, caps, expiry, and when they are processed (contract §2, §7)."""

from __future__ import annotations

import os
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.emulator.refusals import Refusal, refusal
from pipeline.emulator.settings import PROCESSING_S, EmulatorSettings
from pipeline.emulator.store import Doc, Store


class Files:
    """Uploaded files and result files.

    Args:
        store: keeps them.
        settings: how the service behaves.
        clock: Unix seconds now.
    """

    def __init__(self, store: Store, settings: EmulatorSettings, clock: Callable[[], float]) -> None:
        self._store, self._settings, self._clock = store, settings, clock

    def path_of(self, file_id: str) -> Path:
        """Where a file's content lies."""
        return self._store.path_of(file_id)

    def add(
        self,
        content: Path,
        name: str,
        purpose: str,
        expires_s: int | None,
        *,
        characters: int = 0,
        file_id: str | None = None,
    ) -> dict[str, Any]:
        """Take a file over.

        Args:
            content: it is moved away.
            name, purpose: as given.
            expires_s: seconds it is kept; None: as long as is usual.
            characters: how many it holds, for the token estimate.
            file_id: of a result file, so that one made again takes the place of the first; None: a new one.

        Raises:
            Refusal: it breaks a rule of uploads.
        """
        now, habits = self._clock(), self._settings.habits
        for expired in self._store.expired_files(now):
            self._store.delete_file(expired)
        if purpose == "batch":
            self._check_upload(content, name, expires_s)
        usual_s = habits.input_expiry_s if purpose == "batch" else habits.result_expiry_s
        expires_s = usual_s if expires_s is None else expires_s
        file_id = file_id or (f"file-{uuid.uuid4().hex}" if habits.dashed else f"file-{secrets.token_urlsafe(16)}")
        os.replace(content, self.path_of(file_id))
        doc = {
            "id": file_id,
            "object": "file",
            "bytes": self.path_of(file_id).stat().st_size,
            "created_at": int(now),
            "expires_at": int(now) + expires_s if expires_s else None,
            "filename": name,
            "purpose": purpose,
            "_characters": characters,
            "_ready_at": now + (self._settings.delay_s(PROCESSING_S) if purpose == "batch" else 0),
        }
        self._store.add_file(doc)
        return self.shown(doc)

    def _check_upload(self, content: Path, name: str, expires_s: int | None) -> None:
        """The rules of an upload (contract §2, §7)."""
        habits = self._settings.habits
        try:
            if not name.endswith(".jsonl") and not habits.dashed:
                raise refusal(400, "invalid_request_error", "Invalid file format for Batch API. Must be .jsonl")
            if content.stat().st_size > habits.file_bytes_max:
                raise refusal(400, "invalidPayload", "File is too large.")
            low = habits.expiry_s_min
            if expires_s is not None and not low <= expires_s <= 2_592_000:
                raise refusal(400, "invalidPayload", f"expires_after.seconds must be {low} to 2592000.")
            cap = habits.files_max if expires_s is None else habits.files_max_expiring
            if cap is not None and self._store.count_files("batch", expiring=expires_s is not None) >= cap:
                what = "without expiry" if expires_s is None else "with expiry"
                text = f"The quota for files {what} is reached. The maximum is {cap}."
                raise refusal(400, "quotaExceeded", text)
        except Refusal:
            content.unlink(missing_ok=True)
            raise

    def _expired(self, doc: Doc) -> bool:
        return doc["expires_at"] is not None and self._clock() >= doc["expires_at"]

    def shown(self, doc: Doc) -> dict[str, Any]:
        """A file as the service shows it now."""
        shown = {name: value for name, value in doc.items() if not name.startswith("_")}
        if "null_sizes" in self._settings.quirks:
            shown["bytes"] = None
        status = self.status(doc)
        details = "The file could not be processed." if status == "error" else None
        return {**shown, "status": status, "status_details": details}

    def status(self, doc: Doc) -> str:
        """Whether a file is processed yet."""
        if self._clock() < doc["_ready_at"]:
            return "pending"
        return "error" if doc.get("_spoilt") else "processed"

    def spoil(self, file_id: str) -> None:
        """Let a file end in `error` instead of `processed`."""
        self._store.add_file({**self.doc(file_id), "_spoilt": True})

    def halve(self, file_id: str) -> dict[str, Any]:
        """Lose the second half of a file, as when an upload dies and the service takes what it has."""
        doc, path = self.doc(file_id), self.path_of(file_id)
        os.truncate(path, doc["bytes"] // 2)
        doc.update(bytes=doc["bytes"] // 2, _characters=doc["_characters"] // 2)
        self._store.add_file(doc)
        return self.shown(doc)

    def doc(self, file_id: str) -> Doc:
        """A file's document.

        Raises:
            Refusal: 404, also once it has expired.
        """
        doc = self._store.file(file_id)
        if doc is None or self._expired(doc):
            raise refusal(404, "notFound", f"No file with id '{file_id[:100]}' was found.")
        return doc

    def page(
        self, purpose: str | None, after: str | None, limit: int, order: str, *, lag_s: float = 0.0
    ) -> dict[str, Any]:
        """A page of files; `lag_s`: those younger are not told yet."""
        until = self._clock() - lag_s
        found = [doc for doc in self._store.files() if purpose in (None, doc["purpose"]) and not self._expired(doc)]
        if order == "asc":
            found.reverse()
        if after is not None:
            ids = [doc["id"] for doc in found]
            if after not in ids:
                raise refusal(400, "invalidPayload", "after: there is no such file.")
            found = found[ids.index(after) + 1 :]
        if lag_s:
            found = [doc for doc in found if doc["created_at"] <= until]
        data = [self.shown(doc) for doc in found[:limit]]
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(found) > limit,
        }

    def delete(self, file_id: str) -> dict[str, Any]:
        """Delete a file."""
        self.doc(file_id)
        self._store.delete_file(file_id)
        return {"id": file_id, "object": "file", "deleted": True}
