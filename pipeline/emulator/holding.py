"""Whether a file of request or result lines holds a custom_id that a pattern finds: what `match` of an order means."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import orjson


def held_by(path: Path) -> Callable[[re.Pattern[str]], bool]:
    """A function that looks through the file when it is asked, and only then."""

    def holds(pattern: re.Pattern[str]) -> bool:
        try:
            with path.open("rb") as file:
                return any(pattern.search(_custom_id(line)) for line in file)
        except FileNotFoundError:
            return False

    return holds


def _custom_id(line: bytes) -> str:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return ""
    name = found.get("custom_id") if isinstance(found, dict) else None
    return name if isinstance(name, str) else ""
