"""What a run leaves behind, taken away: its files at the service, and local files that are no longer needed.

Result files at the service go only when their content is on disk; row files, outcomes and the ledger always stay, so
that the output can be written again. Counts what it removed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Settings
from pipeline.connecting import no_answer, services_of
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.opening import Options
from pipeline.shard import Batch
from pipeline.submit.remote import CallFailed

if TYPE_CHECKING:
    from pipeline.submit.service import Service


@dataclass(slots=True)
class Cleaned:
    """How many files were deleted at the service, and how many bytes here."""

    remote_files: int = 0
    local_bytes: int = 0


def clean_remote(folder: RunFolder, ledger: Ledger, settings: Settings, options: Options) -> int:
    """Delete input files that nobody needs and result files whose content is on disk; how many."""
    done = [
        batch
        for batch in ledger.kept_results()
        if all(
            not file_id or path.exists()
            for file_id, path in zip(
                (batch.output_file_id, batch.error_file_id), folder.results(batch.name), strict=True
            )
        )
    ]
    spent = ledger.spent_uploads()
    if not done and not spent:
        return 0
    with ExitStack() as stack:
        services = services_of(stack, folder, ledger, settings, specs=options.specs)
        try:
            return _deleted(ledger, services, spent, done)
        except CallFailed as failed:
            raise no_answer(failed) from failed


def _deleted(
    ledger: Ledger, services: dict[str, Service], spent: Sequence[tuple[str, str]], done: Sequence[Batch]
) -> int:
    """Delete files at their services; how many. What is deleted is recorded one by one."""
    count = 0
    for file_id, deployment in spent:
        if deployment in services:
            services[deployment].delete_file(file_id)
            ledger.upload_deleted(file_id, time.time())
            count += 1
    for batch in done:
        if batch.deployment not in services:
            continue
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            services[batch.deployment].delete_file(file_id)
            count += 1
        ledger.note(batch, results_deleted=1)
    return count


def clean_local(folder: RunFolder, ledger: Ledger) -> int:
    """Delete what a finished run does not need to be merged again: bytes freed."""
    if not ledger.get("finished"):
        return 0
    freed = 0
    for part in (folder.path / "requests", folder.path / "results", folder.emulator):
        if part.is_dir():
            freed += _size_of(part)
            shutil.rmtree(part)
    folder.make()
    return freed


def _size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
