"""Another round for a finished run: which of its rows are asked again, frozen as few batches.

Asked again are rows whose best outcome is a failure, a shard at a time. A row of a lost batch may have been paid for:
it is asked again only when that is agreed to. Sends nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoppedError, UsageError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.rounds import ROW_LIST, Rounds
from pipeline.shard import Shard

LOST = "batch_lost"


def begin_round(
    folder: RunFolder, ledger: Ledger, rounds: Rounds, *, codes: Sequence[str], may_pay_again: bool, lines_max: int
) -> int:
    """Open a finished run again and plan its failed rows.

    Args:
        folder, ledger: the run.
        rounds: freezes rows.
        codes: only failures with one of these codes; none: all.
        may_pay_again: also rows of lost batches, which may have been paid for.
        lines_max: rows of a batch, at most.

    Returns:
        How many rows are asked again; those that a cancelled run never sent are not counted.

    Raises:
        StoppedError: the run is not finished, so that it goes on by itself.
        UsageError: nothing is left to be asked.
    """
    if not ledger.get("finished"):
        raise StoppedError(f"{folder.path} is not finished: go on with batchmill run --run-dir {folder.path}")
    with ledger.transaction():
        taken = 0
        held: list[pa.Table] = []
        for table in _failed_rows(folder, ledger, codes, may_pay_again):
            held.append(table)
            taken += table.num_rows
            if sum(part.num_rows for part in held) >= lines_max:
                rounds.plan_rows(_listed(held))
                held = []
        if held:
            rounds.plan_rows(_listed(held))
        if not taken and not ledger.unbatched(1) and not ledger.leftovers() and not ledger.open_batches():
            raise UsageError(f"{folder.path} has no failed rows to ask again" + _only(codes))
        for key in ("finished", "cancelled", "cancelling", "halted"):
            ledger.put(key, "")
        ledger.put("rounds", str(int(ledger.get("rounds") or 1) + 1))
    return taken


def _only(codes: Sequence[str]) -> str:
    return f" with code {', '.join(codes)}." if codes else "."


def _listed(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).sort_by("row").cast(ROW_LIST)


def _failed_rows(folder: RunFolder, ledger: Ledger, codes: Sequence[str], may_pay_again: bool) -> Iterator[pa.Table]:
    """Row lists of failed rows, shard by shard; the batches they leave are told what was taken from them."""
    shards: dict[int, Shard] = {shard.shard: shard for shard in ledger.shards()}
    for number, files in groupby(list(ledger.outcome_files()), key=lambda found: found[0]):
        shard = shards[number]
        batches = [batch for _, batch, _, _ in files]
        table = _outcomes(folder, shard, batches)
        chosen = _still_failed(table)
        code = chosen["error_code"]
        wanted = pc.is_in(code, pa.array(list(codes), pa.string())) if codes else pc.is_valid(chosen["row"])
        if not may_pay_again:
            wanted = pc.and_(wanted, pc.invert(pc.fill_null(pc.equal(code, LOST), False)))
        chosen = chosen.filter(wanted)
        if not chosen.num_rows:
            continue
        for batch, count in Counter(chosen["batch"].to_pylist()).items():
            ledger.retake(batch, count)
        barren = pa.array(np.zeros(chosen.num_rows, dtype=np.int32))
        yield pa.table([chosen["row"], chosen["attempt"], barren, chosen["custom_id"]], names=ROW_LIST.names)


def _outcomes(folder: RunFolder, shard: Shard, batches: list[int]) -> pa.Table:
    """Every outcome of a shard's rows, with the batch it is from."""
    tables = []
    for batch in batches:
        table = pq.read_table(
            folder.outcomes(f"b{batch:06d}"),
            columns=["row", "custom_id", "status", "error_code", "attempt"],
            filters=[("row", ">=", shard.first_row), ("row", "<", shard.stop_row)],
        )
        tables.append(table.append_column("batch", pa.array(np.full(table.num_rows, batch))))
    return pa.concat_tables(tables)


def _still_failed(outcomes: pa.Table) -> pa.Table:
    """Of each row the latest outcome, where that is a failure and no outcome is a success."""
    good = outcomes.filter(pc.equal(outcomes["status"], "succeeded"))["row"]
    rest = outcomes.filter(pc.invert(pc.is_in(outcomes["row"], good))).sort_by(
        [("row", "ascending"), ("batch", "ascending")]
    )
    rows = rest["row"].to_numpy()
    last = np.append(rows[1:] != rows[:-1], True) if len(rows) else np.zeros(0, dtype=bool)
    latest = rest.filter(pa.array(last))
    return latest.filter(pc.equal(latest["status"], "failed"))
