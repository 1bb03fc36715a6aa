"""A block of result lines to columns at once, where they have the common shape.

pyarrow's JSON reader with an explicit schema reads the fields that matter and raises on whatever it cannot hold
exactly (measured: it is never wrong in silence, but for bad UTF-8 and bare `null` lines, which are looked for first).
Rows that it reads but that are not the plain success are named, for `result_line` to judge. Owns no shape but that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from pipeline.outcome import CONTENT_FILTER

_BLOCK_BYTES = 4 << 20
_NEWLINE, _BRACE = b"\n{"
_ERROR = pa.struct([("code", pa.string()), ("message", pa.string())])
_USAGE = {
    "chat": ("prompt_tokens", "completion_tokens"),
    "responses": ("input_tokens", "output_tokens"),
}
"""What a kind calls the tokens of its requests and of its answers; a body that says otherwise is judged by line."""


def _lines(kind: str, error: pa.DataType, *answer: tuple[str, pa.DataType]) -> pj.ParseOptions:
    """How lines are read: the fields that matter, errors as a type."""
    asked, answered = _USAGE[kind]
    usage = [
        (asked, pa.int64()),
        (answered, pa.int64()),
        (f"{asked}_details", pa.struct([("cached_tokens", pa.int64())])),
        (f"{answered}_details", pa.struct([("reasoning_tokens", pa.int64())])),
    ]
    body = pa.struct([("model", pa.string()), ("error", error), ("usage", pa.struct(usage)), *answer])
    response = pa.struct([("status_code", pa.int64()), ("body", body)])
    explicit = pa.schema([("custom_id", pa.string()), ("response", response), ("error", error)])
    return pj.ParseOptions(explicit_schema=explicit, unexpected_field_behavior="ignore")


_MESSAGE = pa.struct([("content", pa.string())])
_CHOICE = pa.struct([("finish_reason", pa.string()), ("message", _MESSAGE)])
_PART = pa.struct([("text", pa.string()), ("refusal", pa.string())])
_ENTRY = pa.struct([("type", pa.string()), ("content", pa.list_(_PART))])
_ANSWERS = {
    "chat": [("choices", pa.list_(_CHOICE))],
    "responses": [("status", pa.string()), ("output", pa.list_(_ENTRY))],
}
_WAYS = {kind: [_lines(kind, error, *answer) for error in (pa.null(), _ERROR)] for kind, answer in _ANSWERS.items()}
"""Of each kind first as lines without any error, in a twentieth less time: the reader raises where there is one."""


def block_columns(
    content: memoryview, lines: int, kind: str, schema: pa.Schema
) -> list[tuple[pa.RecordBatch, Any]] | None:
    """Read a block of lines at once.

    Args:
        content: whole lines that `line_starts` has passed.
        lines: how many.
        kind: chat, responses or embeddings.
        schema: the columns wanted.

    Returns:
        Batches with a mask each, False where a row is not the plain success; None where the block has to be read line
        by line.
    """
    for parse in _WAYS.get(kind, ()):
        table = _read(content, parse)
        if table is not None:
            fits = table.num_rows == lines
            return [_extracted(batch, kind, schema) for batch in table.to_batches()] if fits else None
    return None


def line_starts(content: memoryview) -> Any:
    """Where the lines of a block start; None where it may not be shown to the reader: a line that is no object from its
    first byte (blank, or a bare `null`, which kills the process), or unsound UTF-8 (which it would pass on)."""
    data = np.frombuffer(content, dtype=np.uint8)
    starts = np.flatnonzero(data == _NEWLINE) + 1
    if len(starts) and starts[-1] == len(data):
        starts = starts[:-1]
    starts = np.insert(starts, 0, 0)
    return starts if (data[starts] == _BRACE).all() and is_utf8(content) else None


def is_utf8(content: memoryview) -> bool:
    """Whether bytes are sound UTF-8; copies nothing."""
    offsets = pa.py_buffer(np.array([0, len(content)], dtype=np.int64))
    try:
        pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(content)]).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _read(content: memoryview, parse: pj.ParseOptions) -> pa.Table | None:
    """The reader's table; a second try takes the block as one piece, for lines longer than its own blocks."""
    for size in {_BLOCK_BYTES, len(content) + 1}:
        try:
            return pj.read_json(pa.BufferReader(content), pj.ReadOptions(block_size=size, use_threads=False), parse)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                return None
    return None


def _extracted(batch: pa.RecordBatch, kind: str, schema: pa.Schema) -> tuple[pa.RecordBatch, Any]:
    ids = batch.column("custom_id")
    status = pc.struct_field(batch.column("response"), "status_code")
    body = pc.struct_field(batch.column("response"), "body")
    plain = [
        pc.is_valid(ids),
        pc.fill_null(pc.and_(pc.greater_equal(status, 200), pc.less(status, 300)), False),
        pc.is_valid(body),
    ]
    error = batch.column("error")
    if pa.types.is_struct(error.type):
        plain += [pc.is_null(pc.struct_field(error, name)) for name in ("code", "message")]
        plain.append(pc.is_null(pc.struct_field(body, "error")))
    good = np.logical_and.reduce([mask.to_numpy(zero_copy_only=False) for mask in plain])
    answer, finish, is_plain = (_chat if kind == "chat" else _responses)(body)
    good &= is_plain
    usage = pc.struct_field(body, "usage")
    asked, answered = _USAGE[kind]
    good &= pc.or_(pc.is_null(usage), pc.is_valid(pc.struct_field(usage, asked))).to_numpy(zero_copy_only=False)
    none = pa.nulls(len(batch), pa.string())
    columns = {
        "custom_id": ids,
        "usable": pa.array(np.ones(len(batch), dtype=bool)),
        "http_status": pc.cast(status, pa.int32(), safe=False),
        "error_code": none,
        "error_message": none,
        "answer": answer,
        "finish_reason": finish,
        "prompt_tokens": pc.struct_field(usage, asked),
        "completion_tokens": pc.struct_field(usage, answered),
        "cached_tokens": pc.struct_field(usage, [f"{asked}_details", "cached_tokens"]),
        "reasoning_tokens": pc.struct_field(usage, [f"{answered}_details", "reasoning_tokens"]),
        "model": pc.struct_field(body, "model"),
        "raw": none,
    }
    return pa.record_batch([columns[name] for name in schema.names], schema=schema), good


def _spread(values: pa.Array, rows: Any, count: int) -> pa.Array:
    """Values that belong to some rows (sorted) as a column over all of them."""
    if len(rows) == count:
        return values
    index = np.full(count, -1, dtype=np.int64)
    index[rows] = np.arange(len(rows))
    return values.take(pa.array(index, mask=index < 0))


def _single(lists: pa.Array) -> tuple[Any, pa.Array]:
    """The rows whose list has exactly one entry, and these entries."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    rows = np.flatnonzero(lengths == 1)
    kept = lists if len(rows) == len(lists) else lists.take(pa.array(rows))
    return rows, kept.flatten()


def _chat(body: pa.Array) -> tuple[pa.Array, pa.Array, Any]:
    """Answer, finish reason, and where both are plain: one choice with a text that no filter stopped."""
    count = len(body)
    rows, choices = _single(pc.struct_field(body, "choices"))
    content = _spread(pc.struct_field(choices, ["message", "content"]), rows, count)
    finish = _spread(pc.struct_field(choices, "finish_reason"), rows, count)
    good = pc.and_(
        pc.fill_null(pc.greater(pc.binary_length(content), 0), False),
        pc.fill_null(pc.not_equal(finish, CONTENT_FILTER), True),
    )
    return content, finish, good.to_numpy(zero_copy_only=False)


def _responses(body: pa.Array) -> tuple[pa.Array, pa.Array, Any]:
    """Answer, finish reason, and where both are plain: completed, with one message of one text, and no call."""
    count = len(body)
    output = pc.struct_field(body, "output")
    parents = pc.list_parent_indices(output).to_numpy()
    entries = output.flatten()
    kinds = pc.fill_null(pc.struct_field(entries, "type"), "")
    messages = pc.equal(kinds, "message").to_numpy(zero_copy_only=False)
    calls = pc.ends_with(kinds, "_call").to_numpy(zero_copy_only=False)
    fit = np.bincount(parents[messages], minlength=count) == 1
    odd = calls | pc.is_null(entries).to_numpy(zero_copy_only=False)
    fit &= np.bincount(parents[odd], minlength=count) == 0
    chosen = np.flatnonzero(messages & fit[parents])
    inner, parts = _single(pc.struct_field(entries, "content").take(pa.array(chosen)))
    rows = parents[chosen][inner]
    text = _spread(pc.struct_field(parts, "text"), rows, count)
    refused = _spread(pc.struct_field(parts, "refusal"), rows, count)
    done = pc.fill_null(pc.equal(pc.struct_field(body, "status"), "completed"), False)
    whole = pc.fill_null(pc.greater(pc.binary_length(text), 0), False)
    good = pc.and_(pc.and_(done, whole), pc.is_null(refused)).to_numpy(zero_copy_only=False)
    finish = pa.array(np.full(count, "stop", dtype=object), pa.string())
    return text, finish, good
