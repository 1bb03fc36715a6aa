"""How much one row's template may do: steps of loops, and characters and items made.

Whatever repeats or grows is charged before or as it happens, in numbers that depend on the template and the row alone
(never on a clock), so that a row is refused on every machine or on none. Knows nothing of Jinja2.
"""

from __future__ import annotations

import threading
from typing import Any

STEPS_MAX = 1_000_000
"""Most steps of all loops and macros of a templated string, for one row."""

CHARACTERS_MAX = 200_000_000
"""Most characters made for a templated string of one row: what a whole request file may hold."""

ITEMS_MAX = 2_000_000
"""Most items of the lists and mappings made for a templated string of one row, counted each time one is made."""

WIDTH_MAX = 1_000_000
"""Largest number given to something that pads, indents or repeats."""


class OverBudgetError(Exception):
    """A template does more for a row than it may."""


class Budget(threading.local):
    """What is left of a row's budget; every thread has its own."""

    def __init__(self) -> None:
        self.steps = STEPS_MAX
        self.characters = CHARACTERS_MAX
        self.items = ITEMS_MAX

    def renew(self) -> None:
        """Begin another row."""
        self.steps = STEPS_MAX
        self.characters = CHARACTERS_MAX
        self.items = ITEMS_MAX

    def step(self, count: int, characters: int = 0) -> None:
        """Charge steps of a loop or macro, and the fixed text that each prints.

        Raises:
            OverBudgetError: none are left.
        """
        self.steps -= count
        if self.steps < 0:
            raise OverBudgetError(f"the loops of the template take more than {STEPS_MAX:,} steps")
        if characters:
            self.write(count * characters)

    def write(self, characters: int) -> None:
        """Charge characters.

        Raises:
            OverBudgetError: none are left.
        """
        self.characters -= characters
        if self.characters < 0:
            raise OverBudgetError(f"the template makes more than {CHARACTERS_MAX:,} characters")

    def foresee(self, characters: int) -> None:
        """Refuse what could make more than is left, before it does.

        Raises:
            OverBudgetError: it could.
        """
        if characters > self.characters:
            raise OverBudgetError(f"the template makes more than {CHARACTERS_MAX:,} characters")

    def charge(self, made: Any) -> Any:
        """Charge something made, and give it back.

        Raises:
            OverBudgetError: it is too much.
        """
        if isinstance(made, str | bytes):
            self.write(len(made))
        elif isinstance(made, list | tuple | dict):
            self.write(self.extent(made))
        elif isinstance(made, int) and made.bit_length() > 1_000:
            self.write(made.bit_length())
        return made

    def extent(self, made: Any) -> int:
        """Characters of what may be a nested list, an item counted as one; the items are charged.

        Raises:
            OverBudgetError: there are too many items.
        """
        found, left = 0, [made]
        while left:
            value = left.pop()
            if isinstance(value, str | bytes):
                found += len(value)
            elif isinstance(value, list | tuple):
                left.extend(value)
            elif isinstance(value, dict):
                left.extend(value.keys())
                left.extend(value.values())
            found += 1
            self.items -= 1
            if self.items < 0 or len(left) > ITEMS_MAX:
                raise OverBudgetError(f"the template makes lists of more than {ITEMS_MAX:,} items")
        return found


def check_width(value: Any) -> None:
    """Refuse a number too large to pad, indent or repeat by.

    Raises:
        OverBudgetError: it is.
    """
    if isinstance(value, int) and abs(value) > WIDTH_MAX:
        raise OverBudgetError(f"a number above {WIDTH_MAX:,} is given to something that repeats or pads")
