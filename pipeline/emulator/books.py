"""The books: how many lines each batch was charged for, which custom_ids more than once, and what was ever enqueued.

Memory does not grow with the number of lines: where there are many, custom_ids are counted by parts of their space.
"""

from __future__ import annotations

import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.emulator.store import Doc

IDS_AT_ONCE = 250_000
_PARTS_MAX = 256
_EXAMPLES = 20


def books(docs: Iterable[Doc], charged: Path, scratch: Path) -> dict[str, Any]:
    """What was charged and enqueued.

    Args:
        docs: every batch.
        charged: folder of the charged custom_ids, a file a batch, an id a line.
        scratch: folder for what is needed in passing.
    """
    batches = [
        {
            "id": doc["id"],
            "status": doc["status"],
            "lines": doc["request_counts"]["total"],
            "charged": doc["_charged"],
            "tokens": doc["_tokens"],
            "input_file_id": doc["input_file_id"],
        }
        for doc in docs
    ]
    count, examples = 0, []
    for again in _repeated(charged, sum(batch["charged"] for batch in batches), scratch):
        count += 1
        examples.append(again)
        if len(examples) > 10 * _EXAMPLES:
            examples = sorted(examples)[:_EXAMPLES]
    return {
        "accepted_lines": sum(batch["charged"] for batch in batches),
        "enqueued_tokens": sum(batch["tokens"] for batch in batches),
        "batches": batches,
        "charged_more_than_once": count,
        "examples": sorted(examples)[:_EXAMPLES],
    }


def _repeated(charged: Path, lines: int, scratch: Path) -> Iterator[str]:
    """The custom_ids that were charged more than once."""
    if lines <= IDS_AT_ONCE:
        yield from _repeated_in(sorted(charged.iterdir()))
        return
    parts = min(_PARTS_MAX, lines // IDS_AT_ONCE + 1)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="books.") as folder:
        paths = [Path(folder) / str(part) for part in range(parts)]
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in paths]
            for path in sorted(charged.iterdir()):
                with path.open("rb") as ids:
                    for line in ids:
                        files[zlib.crc32(line) % parts].write(line)
        for path in paths:
            yield from _repeated_in([path])


def _repeated_in(paths: Iterable[Path]) -> Iterator[str]:
    times: Counter[bytes] = Counter()
    for path in paths:
        with path.open("rb") as ids:
            times.update(line.rstrip(b"\n") for line in ids)
    yield from (name.decode() for name, count in times.items() if count > 1)
