"""Faults that were ordered: by rate, by the n-th occasion, by custom_id, or the next so many. Reproducible by seed.

Owns the list of kinds and when an order strikes; what a fault does is done where it strikes. Orders live in memory: a
plan begins anew when the emulator is started again.
"""

from __future__ import annotations

import math
import random
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.emulator.settings import QUIRKS

LINE_KINDS = frozenset(
    {
        "429", "500", "503", "400", "status_0", "content_filter", "filtered", "length", "refusal", "invalid_answer",
        "lost", "doubled", "malformed", "truncated", "request_timeout", "null_response",
    }
)  # fmt: skip
BATCH_KINDS = frozenset(
    {
        "token_limit", "others", "fail", "fail_running", "expire_half", "expire_half_silent", "cancel_half",
        "no_success", "stall", "forget_counts", "forgotten",
    }
)  # fmt: skip
OF_EVERY_CALL = frozenset({"hang", "hang_after", "hang_up_before", "hang_up_after", "garbled"})
OF_CALLS = {
    "upload": frozenset({"null_size", "truncated", "unprocessable"}),
    "list_files": frozenset({"lag", "small_pages"}),
    "get_file": frozenset({"null_size"}),
    "delete_file": frozenset[str](),
    "content": frozenset({"cut"}),
    "create_batch": frozenset({"late"}),
    "list_batches": frozenset({"lag", "small_pages"}),
    "get_batch": frozenset[str](),
    "cancel": frozenset[str](),
}
"""Kinds of single calls; beside them each takes those of every call and the refusals below."""
CALLS = frozenset(OF_CALLS)
LISTING_KINDS = frozenset({"lag", "small_pages"})
_REFUSALS = re.compile(r"(?:status|html|empty|plain):[3-5]\d\d")
_ODD_CALLS = frozenset({"create_batch", "get_batch", "list_batches", "cancel"})
_MATCHLESS = frozenset({"upload", "list_files", "list_batches"})
_KEYS = frozenset({"on", "kind", "times", "match", "retry_after", "rate", "nth", "seconds", "code", "tokens"})


@dataclass(slots=True)
class Fault:
    """One order.

    Attributes:
        on: `line`, `batch`, or a call.
        kind: what goes wrong.
        times: how often it strikes; None: without end.
        match: custom_ids that it may strike: of the line, or of any line of the batch or file.
        retry_after: seconds that a refusal asks to wait.
        rate: the share of occasions that it strikes.
        nth: the only occasion that it strikes, the first being 1.
        seconds: how long it lasts, where it lasts.
        code: of the error that a batch fails with.
        tokens: that others hold; None: all there are.
    """

    on: str
    kind: str
    times: int | None
    match: re.Pattern[str] | None
    retry_after: float | None
    rate: float | None
    nth: int | None
    seconds: float
    code: str | None
    tokens: int | None
    chance: random.Random
    seen: int = 0

    def strikes(self, holds: Callable[[re.Pattern[str]], bool]) -> bool:
        """Whether this occasion is struck; counts it."""
        if self.times == 0 or (self.match is not None and not holds(self.match)):
            return False
        self.seen += 1
        if self.nth is not None and self.seen != self.nth:
            return False
        if self.rate is not None and self.chance.random() >= self.rate:
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Faults:
    """The open orders; safe to use from several threads.

    Args:
        seed: of orders by rate.
    """

    def __init__(self, seed: int = 0) -> None:
        self._open: list[Fault] = []
        self._guard = threading.Lock()
        self._seed, self._ordered = seed, 0

    def order(self, wanted: Iterable[dict[str, Any]]) -> int:
        """Add orders; how many are open now.

        Raises:
            ValueError: an order cannot be read; says which word is wrong.
        """
        if not isinstance(wanted, list | tuple):
            raise ValueError("a plan of faults is a list of orders")
        with self._guard:
            # A generator of its own for each order, by its number: what one strikes does not depend on the others.
            fresh = [
                _fault(one, random.Random(f"{self._seed}:{number}")) for number, one in enumerate(wanted, self._ordered)
            ]
            self._ordered += len(fresh)
            self._open = [fault for fault in self._open if fault.times != 0] + fresh
            return len(self._open)

    def clear(self) -> None:
        """Take every order back; those that follow are numbered from the start again."""
        with self._guard:
            self._open, self._ordered = [], 0

    def take(
        self,
        on: str,
        *kinds: str,
        custom_id: str = "",
        but: frozenset[str] = frozenset(),
        holds: Callable[[re.Pattern[str]], bool] | None = None,
    ) -> Fault | None:
        """The order that strikes this occasion, or None.

        Args:
            on: what it is an occasion of.
            kinds: only these; none named: all.
            custom_id: of the line.
            but: kinds that are not meant.
            holds: whether a pattern finds a custom_id here, where there are many.
        """
        if not self._open:
            return None

        def found(pattern: re.Pattern[str]) -> bool:
            return holds(pattern) if holds is not None else pattern.search(custom_id) is not None

        with self._guard:
            for fault in self._open:
                meant = fault.on == on and (not kinds or fault.kind in kinds) and fault.kind not in but
                if meant and fault.strikes(found):
                    return fault
        return None


def _fault(one: Any, chance: random.Random) -> Fault:
    if not isinstance(one, dict) or not {"on", "kind"} <= one.keys() or not one.keys() <= _KEYS:
        others = ", ".join(sorted(_KEYS - {"on", "kind"}))
        raise ValueError(f"an order has on, kind and some of {others}: {one!r}"[:300])
    on, kind = str(one["on"]), str(one["kind"])
    if not _is_known(on, kind):
        raise ValueError(f"no fault {kind!r} on {on!r}"[:200])
    if one.get("match") and on in _MATCHLESS:
        raise ValueError(f"an order on {on} has no match: it has no custom_ids")
    rate, nth = one.get("rate"), one.get("nth")
    times = one.get("times", None if rate is not None or nth is not None else 1)
    try:
        made = Fault(
            on=on,
            kind=kind,
            times=None if times is None else int(times),
            match=re.compile(str(one["match"])) if one.get("match") else None,
            retry_after=None if one.get("retry_after") is None else float(one["retry_after"]),
            rate=None if rate is None else float(rate),
            nth=None if nth is None else int(nth),
            seconds=float(one.get("seconds", 60.0)),
            code=None if one.get("code") is None else str(one["code"])[:100],
            tokens=None if one.get("tokens") is None else int(one["tokens"]),
            chance=chance,
        )
    except (TypeError, ValueError, OverflowError, re.error) as error:
        raise ValueError(f"an order cannot be read ({error}): {one!r}"[:300]) from error
    waits = [made.seconds, made.retry_after or 0.0, float(made.times or 0), float(made.tokens or 0)]
    is_sound = all(0 <= wait < math.inf for wait in waits) and 0 <= (made.rate or 0) <= 1
    if not is_sound or (made.nth is not None and made.nth < 1):
        raise ValueError(f"an order has a number out of range: {one!r}"[:300])
    return made


def _is_known(on: str, kind: str) -> bool:
    if on in ("line", "batch"):
        return kind in (LINE_KINDS if on == "line" else BATCH_KINDS)
    if on not in CALLS:
        return False
    head, _, name = kind.partition(":")
    odd = head == "quirk" and name in QUIRKS and on in _ODD_CALLS
    return odd or kind in OF_CALLS[on] | OF_EVERY_CALL or _REFUSALS.fullmatch(kind) is not None


def load_plan(path: Path) -> tuple[tuple[dict[str, Any], ...], int]:
    """A plan of faults: its orders and its seed.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--faults {path} cannot be read: {error}") from error
    sound = isinstance(found, dict) and found.keys() <= {"seed", "faults"}
    if not sound or not isinstance(found.get("faults"), list):
        raise ValueError(f"--faults {path} must hold faults: a list of orders, and may hold seed.")
    seed = found.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"--faults {path}: seed must be a whole number.")
    # YAML 1.1 reads a bare `on` as true.
    listed = [
        {"on" if key is True else key: value for key, value in one.items()} if isinstance(one, dict) else one
        for one in found["faults"]
    ]
    orders = tuple(listed)
    try:
        Faults(seed).order(orders)
    except ValueError as error:
        raise ValueError(f"--faults {path}: {error}") from error
    return orders, seed
