"""Texts and numbers within bounds, chosen by a chance: the leaves of a value that conforms to a schema."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from pipeline.emulator.chance import Chance, Unanswerable

WORDS = [
    "amber", "basalt", "cedar", "delta", "ember", "fjord", "garnet", "harbor", "indigo",
    "juniper", "kelp", "lagoon", "marble", "nectar", "onyx", "prairie", "quartz", "river",
    "saffron", "tundra", "umber", "valley", "willow", "xenon", "yarrow", "zephyr",
]  # fmt: skip
_CHARACTERS_MAX = 100_000
_SPREAD = 100


def words(chance: Chance) -> str:
    """Three words."""
    return f"{WORDS[chance.below(26)]} {WORDS[chance.below(26)]} {WORDS[chance.below(26)]}"


def _formatted(name: str, chance: Chance) -> str:
    """A text of one of the formats that JSON Schema knows."""
    day = f"20{chance.below(90) + 10}-{chance.below(12) + 1:02d}-{chance.below(28) + 1:02d}"
    time = f"{chance.below(24):02d}:{chance.below(60):02d}:{chance.below(60):02d}Z"
    word = WORDS[chance.below(26)]
    number = chance.below(1 << 32)
    return {
        "date": day,
        "date-time": f"{day}T{time}",
        "time": time,
        "email": f"{word}@example.com",
        "uuid": f"{number:08x}-e89b-42d3-a456-426614174000",
        "uri": f"https://example.com/{word}",
        "ipv4": f"192.0.2.{number % 256}",
        "ipv6": f"2001:db8::{number % 65_536:x}",
        "hostname": f"{word}.example.com",
        "duration": f"P{number % 30 + 1}D",
    }[name]


_FORMATS = frozenset({"date", "date-time", "time", "email", "uuid", "uri", "ipv4", "ipv6", "hostname", "duration"})


def string_maker(schema: dict[str, Any]) -> Callable[[Chance], str]:
    """Makes texts within `minLength` and `maxLength`, or of a known `format`.

    Raises:
        Unanswerable: there is no such text, or every one is too long.
    """
    low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if isinstance(low, bool) or not isinstance(low, int | float) or not isinstance(high, int | float):
        raise Unanswerable("a length of the schema is no number")
    if low > high or high < 0:
        raise Unanswerable("minLength of the schema is above maxLength")
    if low > _CHARACTERS_MAX:
        raise Unanswerable("minLength of the schema is too large")
    name = schema.get("format")

    def made(chance: Chance) -> str:
        if isinstance(name, str) and name in _FORMATS:
            text = _formatted(name, chance)
            if low <= len(text) <= high:
                return text
        text = words(chance)
        if len(text) < low:
            text = text.ljust(math.ceil(low), ".")
        return text if len(text) <= high else text[: int(high)]

    return made


def number_maker(schema: dict[str, Any], *, whole: bool) -> Callable[[Chance], float]:
    """Makes numbers within the bounds of a schema, exclusive ones and `multipleOf` included.

    Raises:
        Unanswerable: there is none.
    """
    low, low_open = _bound(schema, "minimum", "exclusiveMinimum", max)
    high, high_open = _bound(schema, "maximum", "exclusiveMaximum", min)
    step = _number(schema, "multipleOf")
    if step is not None and step <= 0:
        raise Unanswerable("multipleOf of the schema is not above 0")
    if step is None and whole:
        step = Fraction(1)
    elif step is not None and whole:
        step = Fraction(step.numerator)  # the least whole number that is a multiple of it
    if step is None:
        return _real(low, high, low_open=low_open, high_open=high_open)
    first = None if low is None else math.floor(low / step) + 1 if low_open else math.ceil(low / step)
    last = None if high is None else math.ceil(high / step) - 1 if high_open else math.floor(high / step)
    if first is None:
        first = 0 if last is None or last >= 0 else last - _SPREAD
    if last is None or last - first > 10**6:
        last = first + _SPREAD
    if first > last:
        raise Unanswerable("the bounds of the schema hold no number")
    count = last - first + 1

    def made(chance: Chance) -> float:
        times = first + chance.below(count)
        if whole:
            return int(times * step)
        for more in range(min(count, _SPREAD)):  # as a float it may be no multiple any more
            found = float((first + (times - first + more) % count) * step)
            if (found / float(step)).is_integer():
                return found
        raise Unanswerable("no multiple that a float can hold")

    return made


def _real(low: Fraction | None, high: Fraction | None, *, low_open: bool, high_open: bool) -> Callable[[Chance], float]:
    least = low if low is not None else Fraction(0) if high is None or high > 0 else high - _SPREAD
    most = high if high is not None else least + _SPREAD
    if least > most or (least == most and (low_open or high_open)):
        raise Unanswerable("the bounds of the schema hold no number")
    start, width = float(least), float(most - least)
    if not math.isfinite(start) or not math.isfinite(width):
        raise Unanswerable("the bounds of the schema are too far apart")

    def made(chance: Chance) -> float:
        found = start + width * (0.25 + chance.below(1_000) / 2_000)
        rounded = round(found, 4)
        if width > 0.01 and least < rounded < most:
            return rounded
        if (least < found or (not low_open and least == found)) and (found < most or (not high_open and found == most)):
            return found
        raise Unanswerable("no float lies within the bounds of the schema")

    return made


def _bound(
    schema: dict[str, Any], name: str, exclusive: str, choose: Callable[..., Fraction]
) -> tuple[Fraction | None, bool]:
    """A bound and whether it is exclusive."""
    given, strict = _number(schema, name), None
    if schema.get(exclusive) is True:  # as drafts before 2019 spelt it
        return given, given is not None
    if schema.get(exclusive) is not False:
        strict = _number(schema, exclusive)
    if strict is None:
        return given, False
    if given is None:
        return strict, True
    return (strict, True) if choose(given, strict) == strict else (given, False)


def _number(schema: dict[str, Any], name: str) -> Fraction | None:
    found = schema.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise Unanswerable(f"{name} of the schema is no number")
    return Fraction(str(found))
