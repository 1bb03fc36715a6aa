"""The name of a row on the wire: `<prefix>-<row>`.

Owns how a run's prefix and a row number become a `custom_id`. The prefix is the first characters of the run's
fingerprint, so that result files of another run cannot be merged by mistake. Knows nothing of sources, batches or
the service.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

ROW_COLUMN = "__batchmill_row"
"""Reserved column of blocks whose rows are not all of the source's: the row's position in it."""

CUSTOM_ID_COLUMN = "__batchmill_custom_id"
"""Reserved column of row files whose custom_ids do not follow from the rows' places in them."""


def custom_ids(prefix: str, rows: pa.Array) -> pa.StringArray:
    """Name every row.

    Args:
        prefix: The run's prefix, printable ASCII.
        rows: Row numbers, int64, 0-based position in the source, without nulls.

    Returns:
        `"<prefix>-<row>"` for each of `rows`, in their order.
    """
    texts = pc.cast(rows, pa.string())
    return pc.binary_join_element_wise(pa.scalar(prefix, pa.string()), texts, pa.scalar("-", pa.string()))
