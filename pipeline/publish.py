"""From a run folder to its output: which outcomes belong to which shard, where the output goes, and what its
metadata says.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline import __version__
from pipeline.config import Settings
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.merge.output import MergeCounts, MergeShard, OutcomeFile, write_output


def default_out(folder: RunFolder, settings: Settings) -> Path:
    """Where the output goes unless `--out` says otherwise: in the run folder, so that no run overwrites another's."""
    return folder.path / f"{settings.data_name}.answers{'.synthetic' if settings.synthetic else ''}.parquet"


def merge_shards(folder: RunFolder, ledger: Ledger) -> Iterator[MergeShard]:
    """Every shard in row order with the outcome files that have rows of it."""
    found = ledger.outcome_files()
    pending = next(found, None)
    for shard in ledger.shards():
        files = []
        while pending is not None and pending[0] == shard.shard:
            _, batch, deployment, remote_id = pending
            files.append(
                OutcomeFile(
                    path=folder.outcomes(f"b{batch:06d}"), order=batch, batch_id=remote_id, deployment=deployment
                )
            )
            pending = next(found, None)
        yield MergeShard(
            name=shard.name,
            row_file=folder.row_file(shard.name),
            first_row=shard.first_row,
            stop_row=shard.stop_row,
            outcomes=tuple(files),
        )


def publish(
    folder: RunFolder, ledger: Ledger, settings: Settings, schema: pa.Schema, *, out: Path | None, partial: bool
) -> tuple[MergeCounts, Path]:
    """Write the output.

    Args:
        out: where to; None: where the run was told to, or in its folder.
        partial: take what is there, the rest `pending`; never at the run's own `--out`.

    Returns:
        The rows by status, and where the output is.
    """
    told = ledger.get("out")
    path = out or (Path(told) if told and not partial else default_out(folder, settings))
    if partial and out is None:
        path = path.with_name(path.stem + ".partial.parquet")
    counts = write_output(
        merge_shards(folder, ledger),
        out=path,
        kind=settings.kind,
        schema=settings.answer,
        source_schema=schema,
        prefix=settings.columns_prefix,
        custom_id_prefix=settings.id_prefix,
        id_column=settings.id_column,
        metadata={
            "run": ledger.get("run_id") or "",
            "fingerprint": settings.fingerprint,
            "service": settings.service.value,
            "model": settings.model,
            "prompt": settings.prompt_name,
            "synthetic": "true" if settings.synthetic else "false",
            "version": __version__,
        },
        partial=partial,
    )
    return counts, path
