"""Which rows of a block cannot be sent, and why: the first reason found of each counts."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc


class Skips:
    """Codes and messages of a block's rows, as they are found.

    Args:
        rows: How many rows the block has.

    Attributes:
        code, message: Of each row; null where nothing is wrong so far.
    """

    def __init__(self, rows: int) -> None:
        self.code: pa.StringArray = pa.nulls(rows, pa.string())
        self.message: pa.StringArray = pa.nulls(rows, pa.string())

    def add(self, mask: pa.Array, code: str, message: str | pa.Array) -> None:
        """Mark the rows of a mask that nothing was found wrong with so far."""
        if not pc.any(mask).as_py():
            return
        fresh = pc.and_(mask, self.code.is_null())
        texts = message if isinstance(message, pa.Array) else pa.scalar(message, pa.string())
        self.code = pc.if_else(fresh, pa.scalar(code, pa.string()), self.code)
        self.message = pc.if_else(fresh, texts, self.message)

    def none(self) -> pl.Series:
        """The rows that nothing was found wrong with."""
        return pl.Series(pl.from_arrow(self.code.is_null()))

    def any(self) -> bool:
        """Whether there is any."""
        return bool(self.code.null_count < len(self.code))
