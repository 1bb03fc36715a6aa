"""Values of a prompt file that JSON can hold, and the refusal of all others.

YAML says more than JSON: dates, infinities, keys that are no text, values that contain themselves. Knows nothing of
what the values mean.
"""

from __future__ import annotations

import math

from pipeline.build.prompt_words import describe
from pipeline.errors import PromptError

DEPTH_MAX = 64
"""Deepest nesting of a body; also what stops a YAML alias that contains itself."""

VALUES_MAX = 100_000
"""Most values in a body; stops YAML aliases that multiply."""


def check_json(name: str, value: object, where: str) -> None:
    """Refuse what YAML can say and JSON cannot.

    Args:
        name: of the prompt file, for messages.
        value: what was read.
        where: its place in the file.

    Raises:
        PromptError: names the place and what to write.
    """
    left = [VALUES_MAX]

    def visit(value: object, where: str, depth: int) -> None:
        left[0] -= 1
        if depth > DEPTH_MAX or left[0] < 0:
            raise PromptError(
                f"Prompt file {name}: {where[:80]} is nested too deep or too large; an alias may contain itself."
            )
        if isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise PromptError(
                        f"Prompt file {name}: {where} has the key {key!r}, which is no text; put it in quotes."
                    )
                check_text(key, where)
                visit(inner, f"{where}.{key}", depth + 1)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                visit(inner, f"{where}[{index}]", depth + 1)
        elif isinstance(value, str):
            check_text(value, where)
        elif isinstance(value, float) and not math.isfinite(value):
            raise PromptError(f"Prompt file {name}: {where} is {value}, which JSON cannot hold; use a finite number.")
        elif isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
            raise PromptError(f"Prompt file {name}: {where} is beyond 64 bits; use a smaller number.")
        elif not isinstance(value, int | float | bool | None):
            raise PromptError(
                f"Prompt file {name}: {where} is {describe(value)}, which JSON cannot hold; put it in quotes."
            )

    def check_text(text: str, where: str) -> None:
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise PromptError(
                f"Prompt file {name}: {where} has half a surrogate pair, which UTF-8 cannot hold; write the character."
            )

    visit(value, where, 0)
