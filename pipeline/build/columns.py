"""The columns a template uses, made ready to be read, with the rows that cannot be.

Owns what is wrong with a value before any template sees it: null, not UTF-8, not a finite number. Unwraps
dictionaries and run-end encodings. The carried columns never come through here. Knows nothing of templates or JSON.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

NULL_VALUE = "null_value"
UNRENDERABLE = "unrenderable"


class Unreadable:
    """Stands for a value that exists in Arrow and not in Python (a date after the year 9999)."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def is_text(kind: pa.DataType) -> bool:
    """Whether values of an unwrapped type are text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def unwrapped(kind: pa.DataType) -> pa.DataType:
    """The type behind dictionary and run-end encodings."""
    while pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    return kind


def is_binary(kind: pa.DataType) -> bool:
    """Whether values of an unwrapped type are raw bytes."""
    types = pa.types
    return not isinstance(kind, pa.BaseExtensionType) and bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def holds_binary(kind: pa.DataType) -> bool:
    """Whether values of a type are, or contain, raw bytes, which have no text."""
    kind = unwrapped(kind)
    if isinstance(kind, pa.BaseExtensionType):
        return False
    if is_binary(kind):
        return True
    return any(holds_binary(kind.field(index).type) for index in range(kind.num_fields))


def unwrap(column: pa.ChunkedArray) -> pa.Array:
    """One array of plain values."""
    array: pa.Array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # pyarrow gives chunks back where one array would overflow its offsets
        array = pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in array.chunks])
    while pa.types.is_dictionary(array.type) or pa.types.is_run_end_encoded(array.type):
        array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else pc.run_end_decode(array)
    if pa.types.is_string_view(array.type):  # few of Arrow's functions take views
        return array.cast(pa.large_string())
    return array.cast(pa.large_binary()) if pa.types.is_binary_view(array.type) else array


def all_ascii(array: pa.Array) -> bool:
    """Whether an array of texts holds nothing but ASCII; of a slice, only its own bytes are looked at."""
    found = _own_bytes(array)
    return found is not None and (not len(found) or bool(found.view(np.int8).min() >= 0))


def valid_text(array: pa.Array) -> tuple[pa.Array, pa.BooleanArray | None]:
    """Null the strings that are not UTF-8.

    Returns:
        The array and a mask of the rows nulled; None for the mask where all are valid.
    """
    if _all_utf8(array):
        return array, None
    raws = array.cast(pa.large_binary()).to_pylist()
    texts = [None if raw is None else raw.decode(errors="replace") for raw in raws]
    bad = [text is not None and text.encode() != raw for raw, text in zip(raws, texts, strict=True)]
    kept = [None if wrong else text for text, wrong in zip(texts, bad, strict=True)]
    return pa.array(kept, pa.large_string()), pa.array(bad, pa.bool_())


def _all_utf8(array: pa.Array) -> bool:
    """Whether all strings are UTF-8; polars finds out in less than half the time of pyarrow."""
    if _own_bytes(array) is None:
        return False
    binary = pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary()
    try:
        texts = pl.Series(pl.from_arrow(array.cast(binary))).cast(pl.String)
    except pl.exceptions.PolarsError:
        return False
    return bool(texts.null_count() == array.null_count)


def _own_bytes(array: pa.Array) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """The bytes of an array of texts; None where its offsets are unsound."""
    width = np.dtype(np.int64 if pa.types.is_large_string(array.type) else np.int32)
    _, offsets, values = array.buffers()
    if not len(array) or offsets is None:
        return np.empty(0, np.uint8)
    content = np.frombuffer(values or b"", np.uint8)
    bounds = np.frombuffer(offsets, width)[array.offset : array.offset + len(array) + 1]
    sound = bounds[0] >= 0 and bounds[-1] <= len(content) and not (bounds[1:] < bounds[:-1]).any()
    return content[bounds[0] : bounds[-1]] if sound else None


def faults(
    name: str, array: pa.Array, not_utf8: pa.BooleanArray | None, *, nulls_count: bool
) -> list[tuple[pa.BooleanArray, str, str]]:
    """What is wrong with the values of a column.

    Args:
        name: The column.
        array: Its unwrapped values.
        not_utf8: The rows whose text was none.
        nulls_count: Whether a null costs the row.

    Returns:
        Masks over the rows, each with its skip code and message; the first that applies to a row counts.
    """
    found = []
    if not_utf8 is not None:
        found.append((not_utf8, UNRENDERABLE, f"column {name} is not valid UTF-8"))
    if array.null_count and nulls_count:
        found.append((array.is_null(), NULL_VALUE, f"column {name} is null"))
    infinite = _not_finite(array)
    if infinite is not None and pc.any(infinite).as_py():
        words = "is not a finite number" if pa.types.is_floating(array.type) else "holds a number that is not finite"
        found.append((infinite, UNRENDERABLE, f"column {name} {words}"))
    return found


def _not_finite(array: pa.Array) -> pa.BooleanArray | None:
    """The rows with NaN or an infinity anywhere in their value; None where the type has no such numbers."""
    kind = array.type
    if pa.types.is_floating(kind):
        return pc.fill_null(pc.invert(pc.is_finite(array)), False)
    if isinstance(kind, pa.BaseExtensionType):
        return None
    if pa.types.is_struct(kind):
        parts = [_not_finite(pc.struct_field(array, index)) for index in range(kind.num_fields)]
        found = [part for part in parts if part is not None]
        return functools.reduce(pc.or_, found) if found else None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inside = _not_finite(pc.list_flatten(array))
        if inside is None:
            return None
        rows = pc.unique(pc.filter(pc.list_parent_indices(array), inside))
        return pc.is_in(pa.array(range(len(array)), rows.type), value_set=rows)
    return None


def python_values(array: pa.Array) -> list[Any]:
    """The values as a template sees them.

    Nanoseconds are cut to microseconds, so that a text does not depend on which libraries are installed, and a 32-bit
    float is the shortest decimal that stands for it (0.1 and not 0.10000000149011612).
    """
    kind = array.type
    if pa.types.is_float32(kind):
        array = array.cast(pa.string()).cast(pa.float64())
    elif (pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_duration(kind)) and kind.unit == "ns":
        array = array.cast(_microseconds(kind), safe=False)
    try:
        return list(array.to_pylist())
    except (ValueError, OverflowError, ArithmeticError, TypeError):
        return [_python_value(scalar) for scalar in array]


def _python_value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, ArithmeticError, TypeError) as error:
        return Unreadable(str(error))


def _microseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return pa.time64("us") if pa.types.is_time(kind) else pa.duration("us")
