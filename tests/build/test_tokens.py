"""The token estimate: body bytes divided by 4, rounded up."""

from __future__ import annotations

import pyarrow as pa

from pipeline.build.tokens import estimate_tokens
from pipeline.ids import custom_ids


def test_rounds_up_and_never_gives_null() -> None:
    """Every begun four bytes cost one token, and rows without a request cost none."""
    lengths = pa.array([0, 1, 3, 4, 5, 8, 9, None, 200_000_001], pa.int64())
    assert estimate_tokens(lengths).to_pylist() == [0, 1, 1, 1, 2, 2, 3, 0, 50_000_001]


def test_empty_block() -> None:
    """No rows give no estimates, of the same type."""
    estimates = estimate_tokens(pa.array([], pa.int64()))
    assert estimates.type == pa.int64()
    assert len(estimates) == 0


def test_small_integers_are_widened() -> None:
    """Lengths of another integer type give int64 all the same, without overflow."""
    assert estimate_tokens(pa.array([2**31 - 1], pa.int32())).to_pylist() == [2**29]


def test_custom_ids_join_prefix_and_row() -> None:
    """A custom_id is the prefix, a hyphen and the row number, as a plain string array."""
    ids = custom_ids("1a2b3c4d", pa.array([0, 7, 12_345_678_901], pa.int64()))
    assert ids.type == pa.string()
    assert ids.to_pylist() == ["1a2b3c4d-0", "1a2b3c4d-7", "1a2b3c4d-12345678901"]
    assert custom_ids("x", pa.array([], pa.int64())).to_pylist() == []
