"""Which rows and columns of a source are wanted: `--columns`, `--where`, `--sample`.

Owns the order in which they act (first `--where`, then `--sample`; `--limit` is the sealing's and comes last), the
meaning of an expression (SQL, three-valued: a row is kept where it is true, not where it is null) and the draw of a
sample (exact, reproducible, in input order, in bounded memory). A row keeps its position in the source as its number.
Carried columns are filtered by pyarrow; polars sees only what the expression names.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.build.prompt import nearest
from pipeline.errors import UsageError
from pipeline.ids import CUSTOM_ID_COLUMN, ROW_COLUMN

Keys = NDArray[np.uint64]
_KEYS_AT_ONCE = 1 << 20


class Selectable(Protocol):
    """What a selection is made from."""

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def kept(self) -> pa.Schema: ...

    @property
    def rows(self) -> int | None: ...

    @property
    def digest(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> Path: ...

    def blocks(
        self, *, start_row: int = 0, columns: Sequence[str] | None = None, block_bytes: int = ...
    ) -> Iterator[pa.Table]: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """What is wanted.

    Attributes:
        columns: carried columns; None: all.
        where: SQL expression over the source's columns, or None.
        sample_rows: how many rows to draw, or None.
        seed: of the draw.
    """

    columns: tuple[str, ...] | None = None
    where: str | None = None
    sample_rows: int | None = None
    seed: int = 0

    @property
    def sparse(self) -> bool:
        """Whether rows may be missing between those that are left."""
        return self.where is not None or self.sample_rows is not None

    def identity(self) -> dict[str, Any]:
        """What of it makes a run another one; empty where nothing is selected."""
        told = {name: value for name, value in asdict(self).items() if value is not None}
        if self.sample_rows is None:
            told.pop("seed")
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}


def named_columns(given: Sequence[str], schema: pa.Schema) -> tuple[str, ...] | None:
    """The columns that `--columns` names, in the source's order; several in one value are parted by commas.

    Raises:
        UsageError: one is not there.
    """
    if not given:
        return None
    wanted: list[str] = []
    for value in given:
        wanted += [value] if value in schema.names else [part.strip() for part in value.split(",")]
    for name in wanted:
        if name not in schema.names:
            raise UsageError(f"--columns names {name!r}, which is no column{_hint(name, schema)}.")
    return tuple(name for name in schema.names if name in wanted)


def _hint(name: str, schema: pa.Schema) -> str:
    found = nearest(name, schema.names)
    return f"; did you mean {found}?" if found else f"; there are {', '.join(schema.names)}"


class Where:
    """A compiled `--where`.

    Args:
        text: the SQL expression.
        schema: the source's columns.

    Raises:
        UsageError: it cannot be read, names no column or one that is not there, looks beyond its row, or is neither
            true nor false.
    """

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.text = text
        try:
            self._expression = pl.sql_expr(text)
        except pl.exceptions.PolarsError as error:
            raise UsageError(f"--where {text!r} cannot be read: {_first(error)}.") from None
        names = set(self._expression.meta.root_names())
        for name in sorted(names - set(schema.names)):
            hint = _hint(name, schema)
            raise UsageError(
                f"--where {text!r} names {name!r}, which is no column{hint} (text goes in single quotes, odd names in "
                "double ones)."
            )
        self.columns = tuple(name for name in schema.names if name in names)
        self._types = ", ".join(f"{name} is {schema.field(name).type}" for name in self.columns)
        if not self.columns:
            raise UsageError(f"--where {text!r} names no column: leave it out, or compare a column with something.")
        if not _is_row_by_row(_tree(self._expression)):
            raise UsageError(f"--where {text!r} looks at other rows than its own: compare values of one row only.")
        empty = pa.table({name: pa.array([], schema.field(name).type) for name in self.columns})
        kind = self._asked(empty).dtype
        if kind != pl.Boolean:
            raise UsageError(f"--where {text!r} is {kind} and neither true nor false ({self._types}).")

    def _asked(self, rows: pa.Table) -> pl.Series:
        try:
            return pl.DataFrame(pl.from_arrow(rows)).select(self._expression.alias("kept")).to_series()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise UsageError(f"--where {self.text!r} cannot be answered ({self._types}): {_first(error)}.") from None

    def mask(self, block: pa.Table) -> NDArray[np.bool_]:
        """Which rows of a block it keeps."""
        kept = self._asked(block.select(list(self.columns)))
        if len(kept) != block.num_rows:
            raise UsageError(f"--where {self.text!r} looks at other rows than its own: compare values of one row only.")
        return kept.fill_null(False).to_numpy()


def _tree(expression: pl.Expr) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # polars calls the format unstable, and tests hold what is asked of it
        return json.loads(expression.meta.serialize(format="json"))


def _is_row_by_row(node: Any) -> bool:
    """Whether an expression is made of nothing but what looks at one row: blocks must not show in the outcome."""
    if not isinstance(node, dict):
        return False
    ((kind, inner),) = node.items()
    if kind in ("Column", "Literal"):
        return True
    if kind == "BinaryExpr":
        return _is_row_by_row(inner["left"]) and _is_row_by_row(inner["right"])
    if kind == "Ternary":
        return all(_is_row_by_row(inner[name]) for name in ("predicate", "truthy", "falsy"))
    if kind == "Cast":
        return _is_row_by_row(inner["expr"])
    if kind == "Function":
        name = inner["function"]
        family, member = next(iter(name.items())) if isinstance(name, dict) else (name, None)
        if isinstance(member, dict):
            member = next(iter(member), None)
        known = family in _ROW_BY_ROW and not (family == "Boolean" and member in ("Any", "All", "HasNulls"))
        return known and all(_is_row_by_row(part) for part in inner["input"])
    return False


_ROW_BY_ROW = frozenset(
    {
        "Abs", "ArrayExpr", "Atan2", "BinaryExpr", "Bitwise", "Boolean", "Ceil", "Coalesce", "Exp", "FillNull", "Floor",
        "ListExpr", "Log", "Log1p", "MaxHorizontal", "MinHorizontal", "Negate", "Pow", "Round", "Sign", "Sql",
        "StringExpr", "StructExpr", "TemporalExpr", "Trigonometry",
    }
)  # fmt: skip


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class Selected:
    """A source of which only some rows or columns are wanted.

    Args:
        source: the whole.
        selection: what is wanted of it.
        numbered: whether rows are named by their number, which then goes along with each.
    """

    def __init__(self, source: Selectable, selection: Selection, *, numbered: bool) -> None:
        self._source, self._selection = source, selection
        self._numbered = numbered and selection.sparse
        whole = source.schema
        names = set(whole.names if selection.columns is None else selection.columns)
        self.schema = pa.schema([field for field in whole if field.name in names], metadata=whole.metadata)
        self._where = None if selection.where is None else Where(selection.where, whole)
        self._most: np.uint64 | None = None
        self.digest, self.name, self.folder = source.digest, source.name, source.folder

    @property
    def kept(self) -> pa.Schema:
        """Reserved columns beside the carried ones."""
        own = [pa.field(CUSTOM_ID_COLUMN, pa.string())] if self._numbered else []
        return pa.schema([*self._source.kept, *own])

    @property
    def rows(self) -> int | None:
        """How many rows there are; None where only reading tells."""
        return None if self._selection.sparse else self._source.rows

    def blocks(self, *, start_row: int = 0, block_bytes: int = 12 << 20) -> Iterator[pa.Table]:
        """The rows that are left, from the `start_row`-th of them on.

        Raises:
            SourceError: as of the source.
            UsageError: there are fewer rows than the sample wants, or the expression cannot be answered.
        """
        wanted = [*self.schema.names, *self._source.kept.names]
        if not self._selection.sparse:
            for block in self._source.blocks(start_row=start_row, columns=self._needed(), block_bytes=block_bytes):
                yield block.select(wanted)
            return
        self._draw()
        position, skip = 0, start_row
        for block in self._source.blocks(columns=self._needed(), block_bytes=block_bytes):
            places = np.flatnonzero(self._kept(block, position))
            position += block.num_rows
            places, skip = places[skip:], max(0, skip - len(places))
            if not len(places):
                continue
            rows = block.select(wanted)
            if len(places) < block.num_rows:
                rows = rows.take(pa.array(places))
            if self._numbered:
                rows = rows.append_column(ROW_COLUMN, pa.array(places + (position - block.num_rows), pa.int64()))
            yield rows

    def _needed(self) -> list[str]:
        also = self._where.columns if self._where is not None else ()
        return [name for name in self._source.schema.names if name in self.schema.names or name in also]

    def _kept(self, block: pa.Table, position: int) -> NDArray[np.bool_]:
        mask = np.ones(block.num_rows, bool) if self._where is None else self._where.mask(block)
        if self._most is not None:
            mask = mask & (_keys(np.arange(position, position + block.num_rows), self._selection.seed) <= self._most)
        return mask

    def _draw(self) -> None:
        """Find the key up to which rows are drawn: each row has one, and the sample is those with the lowest."""
        size = self._selection.sample_rows
        if size is None or self._most is not None:
            return
        with tempfile.TemporaryFile(prefix="batchmill-sample.") as file:
            counts, total = np.zeros(1 << 16, np.int64), 0
            for keys in self._all_keys():
                counts += np.bincount((keys >> np.uint64(48)).astype(np.int64), minlength=1 << 16)
                total += len(keys)
                file.write(keys.tobytes())
            if total < size:
                left = "are left by --where" if self._where is not None else "are in the source"
                raise UsageError(f"--sample {size:,} is more than the {total:,} rows that {left}: choose less.")
            below = np.cumsum(counts)
            bucket = int(np.searchsorted(below, size))
            rank = size - (int(below[bucket - 1]) if bucket else 0)
            file.seek(0)
            among = []
            while raw := file.read(8 * _KEYS_AT_ONCE):
                keys = np.frombuffer(raw, np.uint64)
                among.append(keys[(keys >> np.uint64(48)) == np.uint64(bucket)])
        self._most = np.uint64(np.partition(np.concatenate(among), rank - 1)[rank - 1]) if size else np.uint64(0)

    def _all_keys(self) -> Iterator[Keys]:
        """The keys of every row that `--where` leaves."""
        seed, position = self._selection.seed, 0
        if self._where is None and self._source.rows is not None:
            for start in range(0, self._source.rows, _KEYS_AT_ONCE):
                yield _keys(np.arange(start, min(start + _KEYS_AT_ONCE, self._source.rows)), seed)
            return
        columns = list(self._where.columns) if self._where is not None else self._source.schema.names[:1]
        for block in self._source.blocks(columns=columns):
            keys = _keys(np.arange(position, position + block.num_rows), seed)
            yield keys if self._where is None else keys[self._where.mask(block)]
            position += block.num_rows


def _keys(positions: NDArray[np.int64], seed: int) -> Keys:
    """A number for each row that looks drawn at random, no two alike: splitmix64 of position and seed."""
    with np.errstate(over="ignore"):
        start = np.uint64((seed * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) % 2**64)
        mixed = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
