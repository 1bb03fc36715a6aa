"""Words of the messages about a prompt: what a value is called, and which known name is most like an unknown one.

Pure; knows nothing of files or of what a prompt holds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, whatever its case; None when none is alike."""
    by_folded = {candidate.casefold(): candidate for candidate in reversed(list(known))}
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.5)
    return by_folded[close[0]] if close else None


def hint(name: str, known: Iterable[str]) -> str:
    """`, did you mean X?` where a known name is alike; otherwise nothing."""
    found = nearest(name, known)
    return f", did you mean {found}?" if found else ""


def describe(value: object) -> str:
    """What a value is called in a message."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")


def has_template(text: str) -> bool:
    """Whether a string is a template; any other string is sent exactly as written."""
    return "{{" in text or "{%" in text or "{#" in text
