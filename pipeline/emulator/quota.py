"""The enqueued-token quota of each deployment: the service's own estimate, who holds what, and the two headers.

Tokens are held from the moment a batch is accepted until it is terminal, and never released in part (contract §8).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pipeline.emulator.faults import Fault
from pipeline.emulator.lines import Invalid
from pipeline.emulator.objects import quota_text
from pipeline.emulator.settings import EmulatorSettings
from pipeline.emulator.store import Doc, Store


class Queue:
    """What is enqueued.

    Args:
        store: knows the batches.
        settings: limit, estimate, and what the first header means.
        clock: Unix seconds now.
    """

    def __init__(self, store: Store, settings: EmulatorSettings, clock: Callable[[], float]) -> None:
        self._store, self._settings, self._clock = store, settings, clock
        self._others = (0.0, 0)
        self.guard = threading.RLock()
        """Held from the check until the batch that passed it is kept."""

    def estimate(self, file: Doc) -> int:
        """The service's estimate of a file: from its characters, never from tokens."""
        return int((file["_characters"] or file["bytes"]) * self._settings.tokens_per_character)

    def let_others_in(self, fault: Fault) -> None:
        """Others hold tokens of every deployment for a while; all of them where no number was ordered."""
        tokens = fault.tokens if fault.tokens is not None else self._settings.quota_tokens or 0
        self._others = (self._clock() + fault.seconds, tokens)

    def _held_by_others(self) -> int:
        until, tokens = self._others
        return self._settings.others_tokens + (tokens if self._clock() < until else 0)

    def _held(self, model: str | None, but: str) -> int:
        """Tokens of our accepted batches of a deployment, less one batch."""
        return sum(doc["_tokens"] for doc in self._store.open_batches() if doc["_model"] == model and doc["id"] != but)

    def check(self, model: str, tokens: int, but: str = "") -> None:
        """Whether there is room.

        Raises:
            Invalid: `token_limit_exceeded`.
        """
        limit = self._settings.quota_tokens
        if limit is not None and self._held(model, but) + tokens + self._held_by_others() > limit:
            raise Invalid("token_limit_exceeded", self.full_text(limit, model))

    def full_text(self, limit: int, model: str) -> str:
        """The service's words for a full queue."""
        return quota_text(limit, model, openai=not self._settings.habits.dashed)

    def headers(self, doc: Doc) -> dict[str, str]:
        """The headers of a create, in either meaning of the first (contract §8)."""
        told = doc["_estimate"]
        if self._settings.header_means == "sum":
            model = doc["_model"] or doc["_named"]
            told += self._held_by_others() + sum(
                other["_tokens"] or other["_estimate"]
                for other in self._store.open_batches()
                if other["id"] != doc["id"] and (other["_model"] or other["_named"]) == model
            )
        headers = {"deployment-enqueued-tokens": str(told)}
        if self._settings.quota_tokens:
            headers["deployment-maximum-enqueued-tokens"] = str(self._settings.quota_tokens)
        return headers
