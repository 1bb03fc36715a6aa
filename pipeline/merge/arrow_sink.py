"""An Arrow file, row by row group; its dictionaries only grow, as the format demands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DELTAS = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
"""How such a file is to be written."""


class ArrowSink:
    """Takes an output's rows in order."""

    def __init__(self, writer: Any, schema: pa.Schema) -> None:
        self._writer, self._schema = writer, schema
        self._known: dict[str, pa.Array] = {}

    def begin(self, shard: str, inputs: str = "") -> dict[str, str] | None:
        """As of `sinks.Sink`; nothing stands there already."""
        return None

    def write(self, rows: pa.Table) -> None:
        """The next rows."""
        for batch in rows.combine_chunks().to_batches():
            columns = [self._grown(name, batch.column(name)) for name in self._schema.names]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def tell(self, facts: dict[str, str]) -> None:
        """An Arrow file has no place for what is known only at the end."""

    def _grown(self, path: str, values: pa.Array) -> pa.Array:
        """The values over the dictionary of everything seen so far at that place, in whatever they are nested."""
        kind = values.type
        if not _holds_dictionary(kind):
            return values
        if pa.types.is_struct(kind):
            parts = [self._grown(f"{path}.{field.name}", values.field(index)) for index, field in enumerate(kind)]
            return pa.StructArray.from_arrays(parts, fields=list(kind), mask=pc.is_null(values))
        if pa.types.is_dictionary(kind):
            return self._grown_dictionary(path, values)
        return self._grown_list(path, values)

    def _grown_dictionary(self, path: str, values: pa.Array) -> pa.Array:
        kind = values.type
        known = self._known.get(path, values.dictionary[:0])
        fresh = values.dictionary.filter(pc.invert(pc.is_in(values.dictionary, known)))
        self._known[path] = pa.concat_arrays([known, fresh.unique()])
        index = pc.cast(pc.index_in(values.cast(kind.value_type), self._known[path]), kind.index_type)
        return pa.DictionaryArray.from_arrays(index, self._known[path], ordered=kind.ordered)

    def _grown_list(self, path: str, values: pa.Array) -> pa.Array:
        """Lists and maps: their entries grown, their bounds as they are."""
        kind, absent = values.type, pc.is_null(values)
        if pa.types.is_fixed_size_list(kind):
            present = pa.FixedSizeListArray.from_arrays(self._grown(f"{path}[]", values.flatten()), type=kind)
            number = np.cumsum(~absent.to_numpy(zero_copy_only=False)) - 1
            return present.take(pa.array(number, mask=absent.to_numpy(zero_copy_only=False)))
        fresh = values.take(pa.array(np.arange(len(values))))  # its entries are its own, from the first on
        if pa.types.is_map(kind):
            keys, items = self._grown(f"{path}.key", fresh.keys), self._grown(f"{path}.value", fresh.items)
            return pa.MapArray.from_arrays(fresh.offsets, keys, items, type=kind, mask=absent)
        made = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
        return made.from_arrays(fresh.offsets, self._grown(f"{path}[]", fresh.values), type=kind, mask=absent)


def _holds_dictionary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return True
    if pa.types.is_struct(kind):
        return any(_holds_dictionary(field.type) for field in kind)
    if pa.types.is_map(kind):
        return _holds_dictionary(kind.key_type) or _holds_dictionary(kind.item_type)
    if any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        return _holds_dictionary(kind.value_type)
    return False
