"""A batch's way through the states of the contract's §4, and the worker that moves every batch when it is due.

A cancel may come at any moment, from another thread: what a batch becomes is settled under the store's guard.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pipeline.emulator.faults import Faults
from pipeline.emulator.files import Files
from pipeline.emulator.holding import held_by
from pipeline.emulator.lines import Invalid, validate
from pipeline.emulator.quota import Queue
from pipeline.emulator.refusals import Refusal
from pipeline.emulator.settings import EXECUTING_S, FINALIZING_S, EmulatorSettings
from pipeline.emulator.store import Doc, Store
from pipeline.emulator.upstream import Upstream
from pipeline.emulator.work import Ending, work_off

TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
ENDINGS = {
    "expire_half": Ending("batch_expired", 0.5),
    "expire_half_silent": Ending("batch_expired", 0.5, silent=True),
    "cancel_half": Ending("batch_cancelled", 0.5),
    "no_success": Ending(barren=True),
}
_OF_A_CANCEL = ("status", "cancelling_at", "_due", "_share", "_validated")
_GONE = Invalid("empty_file", "The input file is gone.")
IDLE_S, REST_S, CLOSING_S = 5.0, 5.0, 20.0
"""The longest that the worker sleeps; that it rests after something went wrong with its disk; that closing takes."""


class Machine:
    """Moves batches on.

    Args:
        store, files, queue: what it works on.
        settings: how the service behaves.
        faults: what was ordered.
        clock: Unix seconds now.
    """

    def __init__(
        self,
        store: Store,
        files: Files,
        queue: Queue,
        *,
        settings: EmulatorSettings,
        faults: Faults,
        clock: Callable[[], float],
    ) -> None:
        self._store, self._files, self._queue = store, files, queue
        self._settings, self._faults, self._clock = settings, faults, clock
        self._ended = threading.Event()
        self.asking: dict[str, threading.Thread] = {}
        """Batches whose lines are with the upstream server."""
        self.wake = threading.Event()
        self._upstream: Upstream | None = None
        if settings.upstream:
            self._upstream = Upstream(settings.upstream, settings.upstream_key, settings.concurrency)

    def close(self) -> None:
        """Stop; what the upstream server answers within a short while is still kept."""
        self._ended.set()
        if self._upstream is not None:
            self._upstream.stop()
            until = time.monotonic() + CLOSING_S
            for thread in list(self.asking.values()):
                thread.join(max(0.0, until - time.monotonic()))
            self._upstream.close()

    # ---- what a client's call does to a batch

    def check(self, doc: Doc) -> None:
        """Validate a batch's input and let it into the queue; the batch is kept with its model, tokens and lines.

        Raises:
            Invalid: it is refused.
            FileNotFoundError: its input is gone.
        """
        path = self._files.path_of(doc["input_file_id"])
        checked, holds = validate(path, doc["endpoint"], self._settings), held_by(path)
        with self._queue.guard:
            if others := self._faults.take("batch", "others", holds=holds):
                self._queue.let_others_in(others)
            tokens = doc["_estimate"]
            self._queue.check(checked.model, tokens, but=doc["id"])
            if self._faults.take("batch", "token_limit", holds=holds):
                limit = self._settings.quota_tokens or tokens
                raise Invalid("token_limit_exceeded", self._queue.full_text(limit, checked.model))
            if fault := self._faults.take("batch", "fail", holds=holds):
                raise Invalid(fault.code or "invalid_request", "The batch was refused, as was ordered.")
            doc.update(_model=checked.model, _tokens=tokens, _lines=checked.lines)
            if self._store.batch(doc["id"]) is None:
                self._store.add_batch(doc)
            else:
                self._put(doc)

    def cancel(self, doc: Doc) -> None:
        """Ask a batch to stop: it drains, then is cancelled."""
        going = doc["status"] == "in_progress"
        doc["_share"] = self.share(doc) if going else float(doc["status"] == "finalizing")
        doc["_validated"] = doc["status"] != "validating"
        doc["_due"] = self._clock() + self._settings.delay_s(FINALIZING_S)
        self._put(doc, "cancelling")
        self.wake.set()

    def share(self, doc: Doc) -> float:
        """The share of a batch's lines that were executed by now."""
        if self._upstream is not None:
            return self._store.count_answers(doc["id"]) / max(1, int(doc["request_counts"]["total"]))
        whole = self._settings.delay_s(EXECUTING_S)
        left: float = doc["_due"] - self._clock()
        return 1.0 if whole <= 0 else min(1.0, max(0.0, 1 - left / whole))

    # ---- the worker

    def work(self, step: Callable[[], float]) -> None:
        """Take steps until the end, each when something is due."""
        while not self._ended.is_set():
            try:
                rest = step()
            except Exception as error:  # noqa: BLE001 - a full disk must not end the service
                if self._ended.is_set():
                    return
                sys.stderr.write(f"batchmill emulator: {type(error).__name__}: {error}; tried again shortly\n")
                rest = REST_S
            self.wake.wait(rest)
            self.wake.clear()

    def step(self) -> float:
        """Move every batch that is due; seconds until one will be."""
        soonest = IDLE_S
        for listed in self._store.open_batches():
            doc: Doc | None = listed
            while doc is not None and doc["status"] not in TERMINAL and not self._ended.is_set():
                left = doc["_due"] - self._clock()
                if left > 0 or doc["id"] in self.asking:
                    soonest = min(soonest, left if left > 0 else soonest)
                    break
                self._advance(doc)
                doc = self._store.batch(doc["id"])
        return max(0.01, soonest)

    def _put(self, doc: Doc, status: str | None = None) -> None:
        """Keep a batch, in another state if one is named; a cancel that came between is not undone."""
        with self._store.guard:
            current = self._store.batch(doc["id"])
            assert current is not None
            if current["status"] == "cancelling" and status != "cancelled":
                doc.update({name: current[name] for name in _OF_A_CANCEL})
            elif status is not None:
                doc["status"] = status
                doc[f"{status}_at"] = int(self._clock())
            self._store.put_batch(doc, is_open=doc["status"] not in TERMINAL)

    def _advance(self, doc: Doc) -> None:
        """One step of one batch."""
        if doc["status"] == "validating":
            self._validate(doc)
        elif doc["status"] == "in_progress":
            self._run(doc)
        elif doc["status"] == "cancelling":
            is_there = self._files.path_of(doc["input_file_id"]).exists()
            if doc["_validated"] and is_there and not doc.get("_executed"):
                self._execute(doc, Ending("batch_cancelled", doc["_share"]))
            self._put(doc, "cancelled")
        else:
            self._put(doc, doc["_end"])

    def _fail(self, doc: Doc, told: Invalid) -> None:
        doc["errors"] = {"object": "list", "data": [told.entry()]}
        self._put(doc, "failed")

    def _validate(self, doc: Doc) -> None:
        now, path = self._clock(), self._files.path_of(doc["input_file_id"])
        try:
            self._files.doc(doc["input_file_id"])
            if doc["_model"] is None:
                self.check(doc)
        except Invalid as told:
            return self._fail(doc, told)
        except (FileNotFoundError, Refusal):
            return self._fail(doc, _GONE)
        holds = held_by(path)
        doc["request_counts"] = {"total": doc["_lines"], "completed": 0, "failed": 0}
        doc["_due"] = now + self._settings.delay_s(EXECUTING_S)
        if stall := self._faults.take("batch", "stall", holds=holds):
            doc["_due"] = now + stall.seconds
        if hidden := self._faults.take("batch", "forgotten", holds=holds):
            doc["_hidden_until"] = now + hidden.seconds
        doc["_no_counts"] = self._faults.take("batch", "forget_counts", holds=holds) is not None
        self._put(doc, "in_progress")
        return None

    def _run(self, doc: Doc) -> None:
        """What becomes of a batch that is in progress, once it is due."""
        if not doc.get("_executed") and not self._executed(doc):
            return
        doc["_due"] = self._clock() + self._settings.delay_s(FINALIZING_S)
        self._put(doc, "cancelling" if doc["_end"] == "cancelled" else "finalizing")

    def _executed(self, doc: Doc) -> bool:
        """Execute a batch; False: it has failed, or the upstream server is not done."""
        path = self._files.path_of(doc["input_file_id"])
        if not path.exists():
            self._fail(doc, _GONE)
            return False
        holds = held_by(path)
        is_over = self._settings.habits.expires and self._clock() >= doc["expires_at"]
        if self._upstream is not None and not is_over and not self._asked_upstream(doc):
            return False
        if fault := self._faults.take("batch", "fail_running", holds=holds):
            self._fail(doc, Invalid(fault.code or "input_modified", "The batch has failed, as was ordered."))
            return False
        fault = self._faults.take("batch", *ENDINGS, holds=holds)
        ending = ENDINGS[fault.kind] if fault else Ending("batch_expired", 0.5) if is_over else Ending()
        doc["_end"] = {"batch_expired": "expired", "batch_cancelled": "cancelled"}.get(ending.code or "", "completed")
        doc["_validated"], doc["_share"] = True, ending.share
        self._execute(doc, ending)
        return True

    def _asked_upstream(self, doc: Doc) -> bool:
        """Whether the upstream server has answered every line; begins to ask where it has not."""
        upstream, batch_id = self._upstream, doc["id"]
        assert upstream is not None
        if self._store.count_answers(batch_id) >= doc["request_counts"]["total"]:
            return True

        def stopping() -> bool:
            current = self._store.batch(batch_id)
            is_over = self._settings.habits.expires and self._clock() >= doc["expires_at"]
            return self._ended.is_set() or is_over or current is None or current["status"] != "in_progress"

        def ask() -> None:
            try:
                upstream.answer_all(self._store, batch_id, self._files.path_of(doc["input_file_id"]), stopping)
            except Exception as error:  # noqa: BLE001 - a full disk, a vanished file: the batch is tried again
                if not self._ended.is_set():
                    sys.stderr.write(f"batchmill emulator: {batch_id}: {type(error).__name__}: {error}\n")
                self._ended.wait(REST_S)
            finally:
                self.asking.pop(batch_id, None)
                self.wake.set()

        self.asking[batch_id] = threading.Thread(target=ask, name=batch_id, daemon=True)
        self.asking[batch_id].start()
        return False

    def _execute(self, doc: Doc, ending: Ending) -> None:
        """Answer every line; the books are written before the batch says so."""
        state, habits = self._settings.state, self._settings.habits
        scratch = [state / f"{doc['id']}.{name}" for name in ("output", "errors", "charged")]
        done = work_off(
            self._files.path_of(doc["input_file_id"]), scratch, settings=self._settings, faults=self._faults,
            ending=ending, batch_id=doc["id"],
            answers=self._store.answers(doc["id"]) if self._upstream is not None else None,
        )  # fmt: skip
        os.replace(scratch[2], state / "charged" / doc["id"])
        for name, path in zip(("output", "error"), scratch, strict=False):
            if path.stat().st_size or (habits.empty_files and (name == "error" or done.completed)):
                doc[f"{name}_file_id"] = self._published(doc, name, path)
            else:
                path.unlink()
        doc["request_counts"] = {"total": done.lines, "completed": done.completed, "failed": done.failed}
        if habits.usage:
            doc["model"] = doc["_model"]
            doc["usage"] = {
                "input_tokens": done.input_tokens, "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": done.output_tokens, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": done.input_tokens + done.output_tokens,
            }  # fmt: skip
        doc["_charged"] = done.charged
        doc.update(_executed=True, _end=doc.get("_end") or "cancelled")
        self._put(doc)
        self._store.drop_answers(doc["id"])

    def _published(self, doc: Doc, name: str, path: Path) -> str:
        """A result file's id, the same when a killed emulator makes it again."""
        digest = hashlib.sha256(f"{doc['id']}:{name}".encode()).digest()
        short = base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")
        file_id = f"file-{uuid.UUID(bytes=digest[:16])}" if self._settings.habits.dashed else f"file-{short}"
        filename = f"{doc['id']}_{'output' if name == 'output' else 'errors'}.jsonl"
        made = self._files.add(path, filename, "batch_output", doc["_output_expires_s"], file_id=file_id)
        return str(made["id"])
