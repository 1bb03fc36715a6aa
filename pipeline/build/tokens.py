"""How many enqueued tokens a request is taken to cost.

Owns the estimate frozen at sealing: UTF-8 bytes of the body divided by 4, rounded up, as the service itself estimates
its quota from the length of the text and not with a tokenizer (`reference/batch-api.md` §8). Pure; knows nothing of
templates.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

BYTES_PER_TOKEN = 4
"""The service's own approximation: about body characters / 4 (contract §8)."""


def estimate_tokens(body_bytes: pa.Array) -> pa.Int64Array:
    """Estimate every row's tokens.

    Args:
        body_bytes: Length of each request body in UTF-8 bytes, int64; null or 0 where there is no request.

    Returns:
        Tokens, int64, without nulls: 0 where there is no request, at least 1 elsewhere.
    """
    lengths = pc.fill_null(pc.cast(body_bytes, pa.int64()), 0)
    rounded_up = pc.add(lengths, pa.scalar(BYTES_PER_TOKEN - 1, pa.int64()))
    return pc.divide(rounded_up, pa.scalar(BYTES_PER_TOKEN, pa.int64()))
