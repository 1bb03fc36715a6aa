"""One Arrow IPC file, of the file or the stream format: checked to be whole, identified by its bytes, read in blocks.

A stream without its end mark may have lost any number of batches and is refused. Batches are mapped, not copied; a
compressed batch is unpacked as a whole, since the format has nothing smaller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.build.files import InputFile
from pipeline.build.streams import PIECE_BYTES, first_line
from pipeline.errors import SourceError

_FILE_MAGIC = b"ARROW1"
_STREAM_MARK = b"\xff\xff\xff\xff"
_END_MARKS = (b"\xff\xff\xff\xff\x00\x00\x00\x00",)


def open_arrow(file: InputFile) -> tuple[pa.Schema, None, str]:
    """Check a file.

    Returns:
        Its schema, no row count (only reading tells), and the digest of its bytes.

    Raises:
        SourceError: it is no Arrow file, or is cut short.
    """
    path, size = file.path, file.stamp.size_bytes
    with path.open("rb") as raw:
        head = raw.read(8)
        raw.seek(max(0, size - 8))
        tail = raw.read(8)
    if head.startswith(b"FEA1"):
        raise SourceError(f"{path} is a Feather file of version 1: write it again as Arrow IPC or Parquet.")
    if head.startswith(_FILE_MAGIC):
        if not tail.endswith(_FILE_MAGIC):
            raise SourceError(f"{path} is cut short (its Arrow footer is missing): copy it again.")
    elif head.startswith(_STREAM_MARK):
        if tail not in _END_MARKS:
            raise SourceError(f"{path} is cut short (its Arrow stream has no end mark): copy or write it again.")
    else:
        raise SourceError(f"{path} is not an Arrow file, whatever its name says: convert or rename it.")
    try:
        with pa.memory_map(str(path)) as mapped, _reader(mapped, head) as reader:
            schema = reader.schema
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read as Arrow ({first_line(error)}): copy or write it again.") from error
    digest = hashlib.sha256(b"arrow\0")
    with path.open("rb") as raw:
        while piece := raw.read(PIECE_BYTES):
            digest.update(piece)
    return schema, None, digest.hexdigest()


def _reader(mapped: pa.MemoryMappedFile, head: bytes) -> pa.ipc.RecordBatchStreamReader | pa.ipc.RecordBatchFileReader:
    return pa.ipc.open_file(mapped) if head.startswith(_FILE_MAGIC) else pa.ipc.open_stream(mapped)


def _batches(mapped: pa.MemoryMappedFile) -> Iterator[pa.RecordBatch]:
    head = mapped.read(8)
    mapped.seek(0)
    with _reader(mapped, head) as reader:
        if isinstance(reader, pa.ipc.RecordBatchStreamReader):
            yield from reader
        else:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)


def arrow_blocks(file: InputFile, columns: Sequence[str] | None, block_bytes: int) -> Iterator[pa.Table]:
    """The rows.

    Raises:
        SourceError: the file is damaged.
    """
    try:
        with pa.memory_map(str(file.path)) as mapped:
            for batch in _batches(mapped):
                batch.validate(full=True)
                rows = batch if columns is None else batch.select(list(columns))
                step = max(1, int(block_bytes * rows.num_rows / max(1, rows.nbytes)))
                for start in range(0, rows.num_rows, step):
                    yield pa.Table.from_batches([rows.slice(start, step)])
    except (pa.ArrowException, OSError, KeyError) as error:
        raise SourceError(
            f"{file.path} cannot be read to its end ({first_line(error)}): copy or write it again."
        ) from error
