"""The used columns of one block of rows, read once for all the strings of a prompt.

Owns what the null rule makes of a null, the rows that cannot be read, and the two ways in which rows are handed on:
columns in the forms that polars takes, and Python values row by row. Knows nothing of templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.build.columns import all_ascii, faults, is_text, python_values, unwrap, valid_text
from pipeline.build.inputs import Input, prepare
from pipeline.build.skips import Skips

NULL_RULES = ("skip", "empty", "error")
"""What a null in a used column does: its row is skipped; it reads as an empty text; the run is refused."""


@dataclass(frozen=True, slots=True)
class Nulls:
    """What nulls do.

    Attributes:
        rule: One of `NULL_RULES`.
        handled: Columns whose nulls the prompt itself handles: the template sees None, whatever the rule.
    """

    rule: str
    handled: frozenset[str]


class Block:
    """The used columns of a block.

    Args:
        table: Rows with at least the used columns.
        columns: The used columns.
        nulls: What nulls do.
        skips: Where rows that cannot be read are marked.
    """

    def __init__(self, table: pa.Table, columns: tuple[str, ...], nulls: Nulls, skips: Skips) -> None:
        self.rows = table.num_rows
        self._emptied = frozenset(columns) - nulls.handled if nulls.rule == "empty" else frozenset[str]()
        self._arrays: dict[str, pa.Array] = {}
        self._series: dict[Input, pl.Series] = {}
        self._ascii: dict[str, bool] = {}
        self._values: dict[str, list[Any]] | None = None
        for name in columns:
            array = unwrap(table.column(name))
            not_utf8 = None
            if is_text(array.type):
                self._ascii[name] = all_ascii(array)
                if not self._ascii[name]:
                    array, not_utf8 = valid_text(array)
            counts = nulls.rule != "empty" and name not in nulls.handled
            for mask, code, message in faults(name, array, not_utf8, nulls_count=counts):
                skips.add(mask, code, message)
            if name in self._emptied and is_text(array.type) and array.null_count:
                array = pc.fill_null(array.cast(pa.large_string()), "")
            self._arrays[name] = array

    def frame(self, inputs: Mapping[Input, str]) -> pl.DataFrame:
        """Columns in the forms asked for, under the names given; one more column gives the number of rows.

        Raises:
            UnpreparedError: a value cannot be held in its form.
        """
        columns = [pl.Series("", [0], dtype=pl.Int8).new_from_index(0, self.rows)]
        for wanted, name in inputs.items():
            if wanted not in self._series:
                prepared = prepare(self._arrays[wanted.column], wanted.form)
                self._series[wanted] = pl.Series(pl.from_arrow(prepared))
            columns.append(self._series[wanted].alias(name))
        return pl.DataFrame(columns)

    def array(self, column: str) -> pa.Array:
        """A used column: unwrapped, texts that are not UTF-8 null, nulls that read as an empty text filled."""
        return self._arrays[column]

    def all_ascii(self, columns: frozenset[str]) -> bool:
        """Whether the texts of columns are all ASCII."""
        return all(self._ascii[name] for name in columns)

    def values(self, rows: list[int]) -> list[dict[str, Any]]:
        """Rows as a template sees them, by their places in the block."""
        places: Sequence[int] = rows
        found = self._values
        if found is None and len(rows) * 2 < self.rows:
            pieces = {name: [array.slice(row, 1) for row in rows] for name, array in self._arrays.items()}
            found = {
                name: self._python(name, pa.concat_arrays(each) if each else self._arrays[name].slice(0, 0))
                for name, each in pieces.items()
            }
            places = range(len(rows))
        elif found is None:
            found = self._values = {name: self._python(name, array) for name, array in self._arrays.items()}
        return [{name: column[place] for name, column in found.items()} for place in places]

    def _python(self, name: str, array: pa.Array) -> list[Any]:
        values = python_values(array)
        return ["" if value is None else value for value in values] if name in self._emptied else values


def with_company(block: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The used columns of a block of one row, with a second row after it that means nothing.

    polars keeps a column of a single row as a value of its own, and copies its text with every step: of a text of
    100 MB it would hold half a dozen at once. Texts are not copied for it.
    """
    return pa.table({name: _with_company(unwrap(block.column(name))) for name in columns})


def _with_company(array: pa.Array) -> pa.Array:
    if not is_text(array.type) or array.null_count:
        return pa.concat_arrays([array, array])
    width = np.dtype(np.int64 if pa.types.is_large_string(array.type) else np.int32)
    _, offsets, values = array.buffers()
    start, stop = np.frombuffer(offsets, width)[array.offset : array.offset + 2]
    return pa.Array.from_buffers(array.type, 2, [None, pa.py_buffer(np.array([start, stop, stop], width)), values])
