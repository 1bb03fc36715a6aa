"""Faults that were ordered: the next so many calls, batches or lines go wrong in a named way."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Fault:
    """One order: what it strikes, how, how often, and which custom_ids."""

    on: str
    kind: str
    times: int
    match: re.Pattern[str] | None
    retry_after: float | None


class Faults:
    """The open orders; safe to use from several threads."""

    def __init__(self) -> None:
        self._open: list[Fault] = []
        self._guard = threading.Lock()

    def order(self, wanted: list[dict[str, Any]]) -> int:
        """Add orders; how many are open now.

        Raises:
            ValueError, KeyError, TypeError: an order cannot be read.
        """
        fresh = [
            Fault(
                str(one["on"]),
                str(one["kind"]),
                int(one.get("times", 1)),
                re.compile(one["match"]) if one.get("match") else None,
                one.get("retry_after"),
            )
            for one in wanted
        ]
        with self._guard:
            self._open += fresh
            return len(self._open)

    def take(self, on: str, kind: str | None = None, custom_id: str = "") -> Fault | None:
        """The next order for this place, used up by one; None when there is none."""
        if not self._open:
            return None
        with self._guard:
            for fault in self._open:
                if fault.on != on or kind not in (None, fault.kind):
                    continue
                if fault.match is not None and not fault.match.search(custom_id):
                    continue
                fault.times -= 1
                if fault.times <= 0:
                    self._open.remove(fault)
                return fault
        return None
