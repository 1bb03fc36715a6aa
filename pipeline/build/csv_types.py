"""Types of text columns, for `--infer-types`: only where every value can be written back as it was, or nearly.

A column becomes whole numbers only without leading zeros or signs of plus, and within 64 bits; decimals where each
value is a finite number; true and false; ISO dates and times. Anything else stays text. Decided over every value of
every file, never over the first few.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_NUMBER = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?$"
_BOOLEAN = r"^(true|false|True|False|TRUE|FALSE)$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?$"
_CANDIDATES: list[tuple[str, pa.DataType, str]] = [
    ("integer", pa.int64(), _INTEGER),
    ("number", pa.float64(), _NUMBER),
    ("boolean", pa.bool_(), _BOOLEAN),
    ("date", pa.date32(), _DATE),
    ("time", pa.timestamp("us"), _TIME),
]


class TypeGuess:
    """What the columns can be, after the blocks so far."""

    def __init__(self, names: list[str]) -> None:
        self._open = {name: list(_CANDIDATES) for name in names}
        self._seen: set[str] = set()

    def add(self, block: pa.Table) -> None:
        """Strike out what a block's values do not allow."""
        for name, candidates in self._open.items():
            values = block[name].drop_null()
            if not candidates or not len(values):
                continue
            self._seen.add(name)
            self._open[name] = [known for known in candidates if _fits(values, known[1], known[2])]

    def schema(self) -> pa.Schema:
        """The types; a column without any value stays text."""
        return pa.schema(
            [
                (name, candidates[0][1] if candidates and name in self._seen else pa.string())
                for name, candidates in self._open.items()
            ]
        )


def _fits(values: pa.ChunkedArray, kind: pa.DataType, pattern: str) -> bool:
    if not pc.all(pc.match_substring_regex(values, pattern)).as_py():
        return False
    try:
        values.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True
