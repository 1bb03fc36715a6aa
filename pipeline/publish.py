"""From a run folder to its output: which outcomes belong to which shard, where the output goes, and what its
metadata says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa

from pipeline import __version__
from pipeline.config import Settings
from pipeline.errors import UsageError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.merge.collect import collect_raw
from pipeline.merge.output import MergeCounts, MergeShard, OutcomeFile, Shape, write_output
from pipeline.results import gives_several
from pipeline.shard import BatchState

RUN_CANCELLED = "run_cancelled"
"""Code of rows that a cancelled run never sent (design, *Outcomes*)."""


def default_out(folder: RunFolder, settings: Settings) -> Path:
    """Where the output goes unless `--out` says otherwise: in the run folder, so that no run overwrites another's."""
    return folder.path / f"{settings.data_name}.answers{'.synthetic' if settings.synthetic else ''}.parquet"


OUTPUT_CHOICES = ("flatten", "raw", "keep_invalid", "neutralise_formulas", "retry_invalid")
"""Options that say what the output looks like; the last one given stays with the run."""


def remember_choices(ledger: Ledger, **chosen: bool) -> None:
    """Keep the output choices that were given."""
    for name, value in chosen.items():
        assert name in OUTPUT_CHOICES
        if value:
            ledger.put(name, "1")


def _is_csv(path: Path, choices: Mapping[str, bool] | None) -> bool:
    """Whether formulas can be neutralised there; what was asked for this very time is refused where they cannot."""
    return path.suffix.lower() == ".csv" or bool((choices or {}).get("neutralise_formulas"))


def prompt_hash(settings: Settings) -> str:
    """Hex digest of what is asked: kind, body and answer schema, whatever the file is called."""
    asked = json.dumps([settings.kind, settings.body, settings.answer], ensure_ascii=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def merge_shards(folder: RunFolder, ledger: Ledger, *, partial: bool = False) -> Iterator[MergeShard]:
    """Every shard in row order with the outcome files that have rows of it; for a partial output also of batches that
    lack some of their results."""
    early = _early_outcomes(folder, ledger) if partial else {}
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
            outcomes=(*files, *early.get(shard.shard, ())),
        )


def _early_outcomes(folder: RunFolder, ledger: Ledger) -> dict[int, list[OutcomeFile]]:
    """Outcome files of batches whose results are not all there yet, by shard."""
    found: dict[int, list[OutcomeFile]] = {}
    for batch in ledger.open_batches():
        path = folder.outcomes(batch.name)
        if batch.state is BatchState.COLLECTED and path.exists():
            file = OutcomeFile(path, batch.batch, batch.remote_id or "", batch.deployment)
            for shard in ledger.shards_of(batch.batch):
                found.setdefault(shard.shard, []).append(file)
    return found


def _with_raw(folder: RunFolder, settings: Settings, shards: Iterator[MergeShard]) -> Iterator[MergeShard]:
    """Shards with the response bodies of their batches, which are read from the results where that was not done yet."""
    for shard in shards:
        files = []
        for file in shard.outcomes:
            name = file.path.stem
            raw = file.path.with_name(f"{name}.raw.parquet")
            if not raw.exists() or raw.stat().st_mtime_ns < file.path.stat().st_mtime_ns:
                collect_raw(
                    batch_rows=folder.batch_rows(name),
                    result_files=folder.results(name),
                    kind=settings.kind,
                    out=raw,
                    schema=settings.answer,
                    several=gives_several(settings.kind, settings.body),
                )
            files.append(replace(file, raw=raw))
        yield replace(shard, outcomes=tuple(files))


def publish(
    folder: RunFolder,
    ledger: Ledger,
    settings: Settings,
    schema: pa.Schema,
    *,
    out: Path | None,
    partial: bool,
    choices: Mapping[str, bool] | None = None,
) -> tuple[MergeCounts, Path]:
    """Write the output.

    Args:
        out: where to; None: where the run was told to, or in its folder.
        choices: output choices of this time, beside those that stay with the run.
        partial: take what is there, the rest `pending`; never at the run's own `--out`.

    Returns:
        The rows by status, and where the output is.
    """
    told = ledger.get("out")
    path = out or (Path(told) if told and not partial else default_out(folder, settings))
    if partial and out is None:
        path = path.with_name(path.stem + ".partial.parquet")
    chosen = {name for name in OUTPUT_CHOICES if ledger.get(name) or (choices or {}).get(name)}
    shape = Shape(
        kind=settings.kind,
        schema=settings.answer,
        several=gives_several(settings.kind, settings.body),
        flatten="flatten" in chosen,
        keep_invalid="keep_invalid" in chosen,
        raw="raw" in chosen,
    )
    if shape.flatten and not shape.flattened:
        raise UsageError(
            "--flatten spreads a typed answer, and this run has none: leave it out, or give an answer schema."
        )
    shards = merge_shards(folder, ledger, partial=partial)
    counts = write_output(
        _with_raw(folder, settings, shards) if shape.raw else shards,
        out=path,
        shape=shape,
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
            "prompt_hash": prompt_hash(settings),
            "synthetic": "true" if settings.synthetic else "false",
            "version": __version__,
        },
        partial=partial,
        never_sent=RUN_CANCELLED if ledger.get("cancelled") else None,
    )
    if not partial:
        ledger.put(
            "merged", json.dumps({**asdict(counts), "shards": ledger.totals().shards, "out": str(path.resolve())})
        )
    return counts, path
