"""Result files that somebody downloaded by hand, in any names and mixture: which lines belong to which batch.

Finds out by custom_id alone. Reads everything and refuses what is another run's before anything is kept. Knows nothing
of the ledger.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from pipeline.durable import replacing, telling_disk_full
from pipeline.errors import UsageError
from pipeline.result_line import line_rows, parsed
from pipeline.results import Block, pieces, read_blocks, table_of

_LISTS_MAX = 8
_LOOKED_AT = 20
"""First lines of a file that are looked at to tell whether it holds results."""

_FOREIGN = re.compile(r"[0-9a-f]{8}-\d+")


@dataclass(frozen=True, slots=True)
class KnownBatch:
    """A batch that results may belong to; `over`: only where none does that still waits for some."""

    name: str
    row_list: Path
    over: bool = False


@dataclass(slots=True)
class Sorted:
    """What was found: new lines by batch (a file of plain lines each), files read, files left, lines of no row."""

    lines: dict[str, Path] = field(default_factory=dict)
    files: int = 0
    left: list[str] = field(default_factory=list)
    unknown: int = 0


class _Owners:
    """Finds the batches of custom_ids; keeps the lists of the last few batches.

    A row that was asked again stands in several batches: a line is one of those that still wait for theirs.
    """

    def __init__(self, batches: Sequence[KnownBatch]) -> None:
        self._waiting = [batch for batch in batches if not batch.over]
        self._over = [batch for batch in batches if batch.over]
        self._lists: dict[str, pa.Array] = {}

    def of(self, ids: pa.Array) -> Any:
        """The name of each id's batch; None for an id of no batch."""
        found = np.full(len(ids), None, dtype=object)
        open_ones = pc.is_valid(ids).to_numpy(zero_copy_only=False)
        for batches in (self._waiting, self._over):
            for batch in list(batches):
                if not open_ones.any():
                    return found
                mine = pc.is_in(ids, self._ids(batch), skip_nulls=True).to_numpy(zero_copy_only=False) & open_ones
                if mine.any():
                    found[mine] = batch.name
                    open_ones &= ~mine
                    batches.remove(batch)
                    batches.insert(0, batch)  # the next block is probably of the same batch
        return found

    def _ids(self, batch: KnownBatch) -> pa.Array:
        if batch.name not in self._lists:
            if len(self._lists) >= _LISTS_MAX:
                del self._lists[next(iter(self._lists))]
            ids = pq.read_table(batch.row_list, columns=["custom_id"])["custom_id"]
            self._lists[batch.name] = ids.combine_chunks()
        return self._lists[batch.name]


def sort_results(
    folder: Path, batches: Sequence[KnownBatch], scratch: Path, *, kind: str, id_prefix: str | None
) -> Sorted:
    """Sort the lines of every file in a folder by batch.

    Args:
        folder: looked through to any depth; files without a result line are left.
        batches: what lines may belong to.
        scratch: an empty folder for the sorted lines.
        kind: chat, responses or embeddings.
        id_prefix: head of this run's custom_ids; None where a column gives them.

    Raises:
        UsageError: a file holds another run's results; nothing was kept.
    """
    owners, found = _Owners(batches), Sorted()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    with telling_disk_full(scratch), ExitStack() as stack:
        open_files: dict[str, IO[bytes]] = {}
        for path in files:
            known = unknown = 0
            for block in _result_blocks(path, kind):
                names = owners.of(_ids(block))
                lines = block.lines()
                _refuse_foreign(path, block, names, id_prefix)
                unknown += int((names == None).sum())  # noqa: E711 - elementwise
                for name in {name for name in names if name is not None}:
                    if name not in open_files:
                        found.lines[name] = scratch / f"{name}.jsonl"
                        open_files[name] = stack.enter_context(found.lines[name].open("wb"))
                    mine = [lines[index] for index in np.flatnonzero(names == name)]
                    known += len(mine)
                    open_files[name].write(b"\n".join(mine) + b"\n")
            if not known and unknown and id_prefix is None:
                raise UsageError(f"{path} holds results of another run: none of its custom_ids is known. Take it out.")
            found.unknown += unknown
            found.files += bool(known or unknown)
            if not known and not unknown:
                found.left.append(path.name)
    return found


def _ids(block: Block) -> pa.Array:
    ids = block.table["custom_id"]
    return ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids


def _refuse_foreign(path: Path, block: Block, names: Any, id_prefix: str | None) -> None:
    """Stop at an id that another run has made."""
    if id_prefix is None:
        return
    for index in np.flatnonzero(names == None):  # noqa: E711 - elementwise
        custom_id = block.table["custom_id"][int(index)].as_py()
        if custom_id and _FOREIGN.fullmatch(custom_id) and not custom_id.startswith(f"{id_prefix}-"):
            raise UsageError(f"{path} holds results of another run (custom_id {custom_id!r}): take it out.")


def _result_blocks(path: Path, kind: str) -> Iterator[Block]:
    """A file's blocks with one row a line; nothing for a file that holds no result lines."""
    try:
        if not _is_result_file(path):
            return
        for block in read_blocks(path, kind):
            if len(block.lines()) == block.table.num_rows:
                yield block
            else:  # lines lost the newline between them: one at a time
                yield from _single_lines(block, kind)
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"{path} cannot be read to its end ({error}): download it again.") from error


def _single_lines(block: Block, kind: str) -> Iterator[Block]:
    for line in block.lines():
        for row in line_rows(line, kind):
            yield Block(table_of([row]), memoryview(line))


def _is_result_file(path: Path) -> bool:
    """Whether one of the first lines looks like a result; a request has a method, other files have no custom_id."""
    for piece in pieces(path):
        return any(map(_is_result_line, bytes(piece[: 1 << 20]).split(b"\n")[:_LOOKED_AT]))
    return False


def _is_result_line(line: bytes) -> bool:
    try:
        found = parsed(line)
    except ValueError:
        return b'"custom_id"' in line and b'"method"' not in line[:1_000]
    return isinstance(found, dict) and "custom_id" in found and "method" not in found


def without_lines_of(lines: Path, earlier: Sequence[Path]) -> int:
    """Take out of sorted lines those that stand in earlier results: what came of a row before it was asked again.

    Args:
        lines: plain lines; changed.
        earlier: result files of batches that are over.

    Returns:
        How many lines are left.
    """
    kept = {_mark(line): line for line in _lines_of(lines)}
    for path in earlier:
        for line in _lines_of(path):
            kept.pop(_mark(line), None)
    lines.write_bytes(b"".join(line + b"\n" for line in kept.values()))
    return len(kept)


def _lines_of(path: Path) -> Iterator[bytes]:
    for piece in pieces(path):
        yield from (line for line in bytes(piece).split(b"\n") if line)


def _mark(line: bytes) -> bytes:
    return blake2b(line, digest_size=16).digest()


def add_lines(result: Path, lines: Path) -> None:
    """Put sorted lines into a batch's compressed result file, each once, beside what it has; whole or not at all."""
    seen: set[bytes] = set()
    with replacing(result) as temporary, temporary.open("wb") as raw:
        with zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False) as packed:
            for source in (result, lines):
                for line in _lines_of(source):
                    if (mark := _mark(line)) not in seen:
                        seen.add(mark)
                        packed.write(line + b"\n")
        raw.flush()
        os.fsync(raw.fileno())
