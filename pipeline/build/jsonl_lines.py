"""The lines of a JSONL file in blocks of whole lines, and the one that is wrong.

Owns line numbers and what makes a line an object that nothing is lost of: strict JSON, one object, no key twice, no
number that a 64-bit one cannot hold. Knows nothing of columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import orjson

from pipeline.build.files import InputFile
from pipeline.build.streams import unpacked
from pipeline.errors import SourceError

BLOCK_BYTES = 8 << 20
LINE_BYTES_MAX = 512 << 20
_BOM = b"\xef\xbb\xbf"
SUSPECT = re.compile(rb"(?<![.\d])\d{16,}|NaN|Inf")
"""What a fast reader may take otherwise than it is written: long whole numbers, and numbers that JSON does not have."""


def line_blocks(file: InputFile, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines with the number of their first line, from 1.

    Raises:
        SourceError: the file cannot be unpacked to its end, or a line is too long for memory.
    """
    first, held = 1, []
    size, begun = 0, False
    with unpacked(file) as stream:
        while piece := stream.read(block_bytes):
            if not begun:
                piece, begun = piece.removeprefix(_BOM), True
            cut = piece.rfind(b"\n") + 1
            size += len(piece)
            if not cut:
                held.append(piece)
                if size > LINE_BYTES_MAX:
                    raise SourceError(f"{file.path}, line {first}: longer than {LINE_BYTES_MAX:,} bytes; is it JSONL?")
                continue
            block = b"".join([*held, piece[:cut]])
            yield first, block
            first += block.count(b"\n")
            held = [piece[cut:]]
            size = len(held[0])
    if rest := b"".join(held):
        yield first, rest


def count_lines(block: bytes) -> int:
    """Lines that are not blank."""
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    if b"\n\n" in block or b"\r" in block or b"\n " in block or b"\n\t" in block or block[:1] in b"\n \t":
        return sum(1 for line in block.split(b"\n") if line.strip())
    return lines


def checked_line(line: bytes) -> dict[str, Any]:
    """A line's object.

    Raises:
        ValueError: says in a few words why it cannot be read without losing something.
    """
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(_why(line, error)) from None
    if not isinstance(found, dict):
        raise ValueError(f"{_KINDS.get(type(found), 'a value')} where an object belongs")
    try:
        exact = json.loads(line, object_pairs_hook=_no_key_twice)
    except RecursionError:
        raise ValueError("nested too deep") from None
    _check_numbers(exact)
    return exact if isinstance(exact, dict) else found


_KINDS: dict[type, str] = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}


def _why(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError:
        return "a byte that is not UTF-8"
    return f"not JSON ({str(error).split(': line')[0]})"


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {double!r} stands twice in one object")
    return found


def _check_numbers(value: Any) -> None:
    if isinstance(value, dict):
        for inner in value.values():
            _check_numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner)
    elif type(value) is int and not -(2**63) <= value < 2**63:
        raise ValueError(f"the number {value} is beyond 64 bits; put it in quotes")


def refuse_line(file: InputFile, line: int, words: str) -> NoReturn:
    """Raise for a line.

    Raises:
        SourceError: always.
    """
    raise SourceError(f"{file.path}, line {line}: {words}.")
