"""One JSONL file as a table: its schema over every line, and blocks of rows under that schema.

A first pass reads every line, so that the schema is that of the whole file and a bad line is named before anything is
sent. pyarrow reads blocks at once; a block that it would read otherwise than it is written (large integers, two objects
on a line) is looked at line by line. Text stays text, also where it looks like a date.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.json as pj

from pipeline.build.files import InputFile
from pipeline.build.jsonl_lines import SUSPECT, checked_line, count_lines, line_blocks, refuse_line
from pipeline.build.streams import check_head, first_line
from pipeline.errors import SourceError

_EXACT_MAX = 2**53


class Conflict(Exception):  # noqa: N818 - a finding
    """Two types that no type holds both of."""

    def __init__(self, path: str, one: pa.DataType, other: pa.DataType) -> None:
        super().__init__(path)
        self.path, self.one, self.other = path, one, other


def open_jsonl(file: InputFile) -> tuple[pa.Schema, int, str]:
    """Read a file once.

    Returns:
        The schema over all of its lines, how many rows it has, the digest of its content.

    Raises:
        SourceError: a line is no JSON object, or a key holds values of different kinds; names the line.
    """
    check_head(file)
    digest = hashlib.sha256(b"jsonl\0")
    schema, rows = pa.schema([]), 0
    for first, block in line_blocks(file):
        digest.update(block)
        lines = count_lines(block)
        rows += lines
        if not lines:
            continue
        found = _inferred(block)
        if found is None or found[1] != lines or SUSPECT.search(block) or not _is_utf8(block):
            _check_lines(file, first, block, schema)
        try:
            if found is None:
                raise SourceError(f"{file.path}, lines {first} and on: this cannot be read as a table.")
            schema = merge_schemas(schema, found[0])
        except Conflict as clash:
            _check_lines(file, first, block, schema)
            raise SourceError(
                f"{file.path}: {clash.path} is {clash.one} in one place and {clash.other} from line {first} on; "
                "make it one type."
            ) from None
    if not rows:
        raise SourceError(f"{file.path} has no line with an object: leave it out, or write one object a line.")
    return schema, rows, digest.hexdigest()


def _is_utf8(block: bytes) -> bool:
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read(block: bytes, schema: pa.Schema | None) -> pa.Table:
    return pj.read_json(
        pa.BufferReader(block),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(block) + 16),
        parse_options=pj.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "error"
        ),
    )


def _inferred(block: bytes) -> tuple[pa.Schema, int] | None:
    """Types and rows of a block; None where it is not all of one shape."""
    try:
        table = _read(block, None)
    except pa.ArrowInvalid:
        return None
    return pa.schema([pa.field(field.name, _as_written(field.type)) for field in table.schema]), table.num_rows


def _as_written(kind: pa.DataType) -> pa.DataType:
    """A type as the JSON has it: text that looks like a time is text."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_as_written(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_written(field.type)) for field in kind])
    return kind


def merge_schemas(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    """A schema that holds the rows of both; a key that is missing is null.

    Raises:
        Conflict: a column has values of different kinds.
    """
    return pa.schema(list(_merged(pa.struct(list(one)), pa.struct(list(other)), "")))


def _merged(one: pa.DataType, other: pa.DataType, path: str) -> pa.DataType:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_merged(one.value_type, other.value_type, f"{path}[]"))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            inner = f"{path}.{field.name}" if path else f"column {field.name!r}"
            known = fields.get(field.name)
            fields[field.name] = field.type if known is None else _merged(known, field.type, inner)
        return pa.struct(list(fields.items()))
    raise Conflict(path, one, other)


def _check_lines(file: InputFile, first: int, block: bytes, schema: pa.Schema) -> None:
    """Find the line that cannot be read, or that has another type than the lines before it.

    Raises:
        SourceError: names it.
    """
    kinds: dict[str, str] = {}
    for field in schema:
        _kinds_of_type(field.type, field.name, kinds)
    for number, line in enumerate(block.split(b"\n"), first):
        if not line.strip():
            continue
        try:
            _note_kinds(checked_line(line), "", kinds)
        except ValueError as error:
            refuse_line(file, number, str(error))


def _kinds_of_type(kind: pa.DataType, path: str, kinds: dict[str, str]) -> None:
    if pa.types.is_struct(kind):
        kinds[path] = "an object"
        for field in kind:
            _kinds_of_type(field.type, f"{path}.{field.name}", kinds)
    elif pa.types.is_list(kind):
        kinds[path] = "a list"
        _kinds_of_type(kind.value_type, f"{path}[]", kinds)
    elif not pa.types.is_null(kind):
        words = "text" if pa.types.is_string(kind) else "true or false" if pa.types.is_boolean(kind) else "a number"
        kinds[path] = words
        if pa.types.is_floating(kind):
            kinds[f"{path}\0float"] = ""


def _note_kinds(value: Any, path: str, kinds: dict[str, str]) -> None:
    """Remember what kind of value each place holds.

    Raises:
        ValueError: another kind than before, or a whole number that a column of decimals cannot hold.
    """
    if value is None:
        return
    kind = {bool: "true or false", str: "text", dict: "an object", list: "a list"}.get(type(value), "a number")
    if path:
        known = kinds.setdefault(path, kind)
        if known != kind:
            raise ValueError(f"{path!r} is {kind} and was {known} before; make it one type")
    if isinstance(value, dict):
        for name, inner in value.items():
            _note_kinds(inner, f"{path}.{name}" if path else name, kinds)
    elif isinstance(value, list):
        for inner in value:
            _note_kinds(inner, f"{path}[]", kinds)
    elif kind == "a number":
        if isinstance(value, float):
            kinds[f"{path}\0float"] = ""
        elif abs(value) > _EXACT_MAX:
            kinds[f"{path}\0large"] = ""
        if f"{path}\0float" in kinds and f"{path}\0large" in kinds:
            raise ValueError(f"{path!r} has decimals and whole numbers that they cannot hold; put them in quotes")


def jsonl_blocks(file: InputFile, schema: pa.Schema, block_bytes: int) -> Iterator[pa.Table]:
    """The rows under the schema of the whole source.

    Raises:
        SourceError: a block cannot be read.
    """
    for first, block in line_blocks(file, min(block_bytes, 4 << 20)):
        if not count_lines(block):
            continue
        if SUSPECT.search(block):
            _check_lines(file, first, block, schema)
        try:
            table = _read(block, schema)
        except pa.ArrowInvalid as error:
            _check_lines(file, first, block, schema)
            raise SourceError(f"{file.path}, lines {first} and on: cannot be read ({first_line(error)}).") from error
        yield table.select(schema.names).cast(schema)
