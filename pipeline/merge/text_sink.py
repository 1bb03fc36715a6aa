"""CSV and JSON lines: rows as text, what is nested as JSON."""

from __future__ import annotations

import json
import math
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell that a spreadsheet computes begins with."""

_ROWS = 4_096


class TextSink:
    """Takes an output's rows in order."""

    def __init__(self, file: IO[str], schema: pa.Schema, *, as_csv: bool, neutralise: bool) -> None:
        self._file, self._names = file, schema.names
        self._as_csv, self._neutralise = as_csv, neutralise
        if as_csv:
            file.write(",".join(map(self._cell, self._names)) + "\n")

    def begin(self, shard: str, inputs: str = "") -> dict[str, str] | None:
        """As of `sinks.Sink`; nothing stands there already."""
        return None

    def write(self, rows: pa.Table) -> None:
        """The next rows."""
        for batch in rows.to_batches(_ROWS):
            columns = [readable(column).to_pylist() for column in batch.columns]
            for values in zip(*columns, strict=True):
                if self._as_csv:
                    self._file.write(",".join(map(self._cell, values)) + "\n")
                else:
                    self._file.write(_json(dict(zip(self._names, values, strict=True))) + "\n")

    def tell(self, facts: dict[str, str]) -> None:
        """Text has no place for what is known only at the end."""

    def _cell(self, value: Any) -> str:
        """A field: nothing for null, `""` for empty text, so that the two can be told apart."""
        if value is None:
            return ""
        if not isinstance(value, str):
            text = _json(value) if isinstance(value, list | dict | tuple) else str(_plain(value))
        else:
            text = f"'{value}" if self._neutralise and value.startswith(FORMULA) else value
        if text and not any(mark in text for mark in ',"\n\r'):
            return text
        return '"' + text.replace('"', '""') + '"'


def readable(column: pa.Array) -> pa.Array:
    """A column whose dates, times and durations are text, wherever they are nested: Python's own do not hold them all.

    Instants are in UTC where they have a zone; a duration is its number with its unit.
    """
    kind = column.type
    if pa.types.is_timestamp(kind):
        text = pc.replace_substring(pc.cast(pc.cast(column, pa.timestamp(kind.unit)), pa.string()), " ", "T")
        return pc.binary_join_element_wise(text, "Z", "") if kind.tz else text
    if pa.types.is_date(kind) or pa.types.is_time(kind):
        return pc.cast(column, pa.string())
    if pa.types.is_duration(kind):
        return pc.binary_join_element_wise(pc.cast(pc.cast(column, pa.int64()), pa.string()), kind.unit, " ")
    if pa.types.is_struct(kind) and kind.num_fields:
        parts = [readable(column.field(index)) for index in range(kind.num_fields)]
        return pa.StructArray.from_arrays(parts, [field.name for field in kind], mask=pc.is_null(column))
    if pa.types.is_dictionary(kind):
        return readable(pc.cast(column, kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return readable(pc.cast(column, pa.list_(kind.value_type)))
    if any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_map)):
        fresh, absent = column.take(pa.array(np.arange(len(column)))), pc.is_null(column)
        if pa.types.is_map(kind):
            return pa.MapArray.from_arrays(fresh.offsets, readable(fresh.keys), readable(fresh.items), mask=absent)
        made = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
        return made.from_arrays(fresh.offsets, readable(fresh.values), mask=absent)
    return column


def _json(value: Any) -> str:
    """JSON of a value; what JSON has no number for (NaN, infinity) is null."""
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=_plain)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """A value that JSON does not know, as text or as what it stands for."""
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, int | float) else str(value)
