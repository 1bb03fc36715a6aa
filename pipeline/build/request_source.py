"""Finished request lines as a source: checked, neutral, and rendered again under the run's own `url` and `model`.

A line's custom_id is kept; its body is kept as the very text that was written, without `model`. Every line of every
file is checked when the source is opened. There is no prompt and no carried column: the output has the custom_id and
the answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.build.files import InputFile, list_files, source_name
from pipeline.build.jsonl_lines import line_blocks, refuse_line
from pipeline.build.streams import check_head
from pipeline.build.template import Rendered
from pipeline.build.tokens import estimate_tokens
from pipeline.doubles import Buckets
from pipeline.errors import SourceError
from pipeline.ids import CUSTOM_ID_COLUMN

BODY_COLUMN = "__batchmill_body"
"""Reserved column of row files: the request's body without its braces and its model."""

KEYS = frozenset({"custom_id", "method", "url", "body"})
KEPT = pa.schema([(CUSTOM_ID_COLUMN, pa.string()), (BODY_COLUMN, pa.large_string())])
_KINDS = {"chat/completions": "chat", "responses": "responses", "embeddings": "embeddings"}
_SCAN = json.JSONDecoder(strict=True).raw_decode
_SPACE = " \t\r"


@dataclass(frozen=True, slots=True)
class Line:
    """What is kept of a request line.

    Attributes:
        custom_id: as written.
        url: as written.
        model: as written, None where there is none.
        body: the text between the body's braces, without `model`.
        several: whether it asks for more than one answer.
    """

    custom_id: str
    url: str
    model: str | None
    body: str
    several: bool


@dataclass(frozen=True, slots=True)
class RequestSource:
    """Opened request lines.

    Attributes:
        files: in order, frozen, each with its number of lines.
        rows: how many requests there are.
        digest: identity of the content.
        name: what the source is called.
        folder: the one of the first file.
        kind: chat, responses or embeddings.
        model: the one that all lines name, None where they name none or several.
        models: two different ones that lines name, with where they do, for a sentence; empty: there is one at most.
        several: whether a line asks for more than one answer.
    """

    files: tuple[tuple[InputFile, int], ...]
    rows: int
    digest: str
    name: str
    folder: Path
    kind: str
    model: str | None
    models: str
    several: bool

    @property
    def schema(self) -> pa.Schema:
        """No carried columns."""
        return pa.schema([])

    @property
    def kept(self) -> pa.Schema:
        """Custom_id and body, for the row files alone."""
        return KEPT

    def blocks(
        self, *, start_row: int = 0, columns: Sequence[str] | None = None, block_bytes: int = 12 << 20
    ) -> Iterator[pa.Table]:
        """The requests from `start_row` on, in order.

        Raises:
            SourceError: a file has changed or vanished.
        """
        skip = start_row
        for file, rows in self.files:
            if rows <= skip:
                skip -= rows
                continue
            file.check_unchanged()
            seen = 0
            for first, block in line_blocks(file, min(block_bytes, 4 << 20)):
                lines = [line for _, line in _lines(file, first, block)]
                seen += len(lines)
                lines, skip = lines[skip:], max(0, skip - len(lines))
                if lines:
                    ids = pa.array([line.custom_id for line in lines], pa.string())
                    yield pa.table([ids, pa.array([line.body for line in lines], pa.large_string())], schema=KEPT)
            file.check_unchanged()
            if seen != rows:
                raise SourceError(f"{file.path} gave {seen:,} requests where it has {rows:,}: start again.")


def holds_requests(files: Sequence[InputFile]) -> bool:
    """Whether the first line of the first file is a finished request."""
    if files[0].format != "jsonl":
        return False
    check_head(files[0])
    for _, block in line_blocks(files[0], 1 << 20):
        for line in block.split(b"\n"):
            if line.strip():
                try:
                    found = orjson.loads(line)
                except orjson.JSONDecodeError:
                    return False
                return isinstance(found, dict) and found.keys() >= KEYS
    return False


def open_requests(data: Sequence[Path]) -> RequestSource:
    """Check every line of every file.

    Raises:
        SourceError: a line is no request, asks for streaming, is of another kind than the rest, or has the custom_id of
            another; names file and line.
    """
    files = list_files(data)
    if files[0].format != "jsonl":
        raise SourceError(f"{files[0].path} cannot be request lines: name .jsonl files.")
    digest, buckets = hashlib.sha256(b"requests\0"), Buckets()
    counts: list[tuple[InputFile, int]] = []
    starts: list[int] = []
    seen = _Seen()
    try:
        rows = 0
        for file in files:
            check_head(file)
            starts.append(rows)
            for first, block in line_blocks(file):
                digest.update(block)
                ids = []
                for number, line in _lines(file, first, block):
                    seen.add(file, number, line)
                    ids.append(line.custom_id)
                buckets.add(ids, np.arange(rows, rows + len(ids)))
                rows += len(ids)
            digest.update(b"\0file\0")
            counts.append((file, rows - starts[-1]))
        for row, other in buckets.doubles():
            raise SourceError(f"{_place(files, starts, row)} has the custom_id of {_place(files, starts, other)}: "
                              "custom_ids must be unique.")  # fmt: skip
    finally:
        buckets.close()
    if not rows:
        raise SourceError(f"{files[0].path} holds no requests: write one a line.")
    return RequestSource(
        files=tuple(counts),
        rows=rows,
        digest=digest.hexdigest(),
        name=source_name(data),
        folder=files[0].path.parent,
        kind=seen.kind,
        model=None if seen.clash else seen.model,
        models=seen.clash,
        several=seen.several,
    )


def _place(files: Sequence[InputFile], starts: Sequence[int], row: int) -> str:
    """A request's place in words."""
    index = int(np.searchsorted(starts, row, side="right")) - 1
    return f"{files[index].path}, request {row - starts[index] + 1}"


@dataclass(slots=True)
class _Seen:
    """What the lines so far agree on."""

    kind: str = ""
    model: str | None = None
    model_at: str = ""
    clash: str = ""
    several: bool = False

    def add(self, file: InputFile, number: int, line: Line) -> None:
        kind = _KINDS.get(line.url.strip("/").removeprefix("v1/"), "")
        if not kind:
            refuse_line(file, number, f"url {line.url[:80]!r} is none of {', '.join(_KINDS)}")
        if self.kind not in ("", kind):
            refuse_line(file, number, f"url {line.url[:80]!r} is of another kind than before ({self.kind})")
        self.kind = kind
        self.several = self.several or line.several
        if line.model is None or self.clash:
            return
        if self.model is None:
            self.model, self.model_at = line.model, f"{file.path}, line {number}"
        elif line.model != self.model:
            self.clash = f"{self.model!r} in {self.model_at} and {line.model!r} in {file.path}, line {number}"


def _lines(file: InputFile, first: int, block: bytes) -> Iterator[tuple[int, Line]]:
    for number, raw in enumerate(block.split(b"\n"), first):
        if raw.strip():
            try:
                yield number, _read(raw)
            except ValueError as error:
                refuse_line(file, number, str(error))
            except RecursionError:
                refuse_line(file, number, "nested too deep")


def _read(raw: bytes) -> Line:
    """A request line.

    Raises:
        ValueError: says in a few words why it is none.
    """
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON ({str(error).split(': line')[0]})") from None
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    for name, kind, words in (("custom_id", str, "text"), ("url", str, "text"), ("body", dict, "an object")):
        if not isinstance(found.get(name), kind) or not found[name]:
            raise ValueError(f"{name} is missing, or is not {words} with something in it")
    if found.get("method") != "POST":
        raise ValueError("method is not POST")
    body = found["body"]
    model = body.get("model")
    if model is not None and (not isinstance(model, str) or not model.strip()):
        raise ValueError("body.model is no text")
    if body.get("stream"):
        raise ValueError("body.stream cannot be used, as a batch gives whole answers; remove it")
    n = body.get("n")
    text = raw.decode()
    members = _members(text, _skip(text, 0))
    start, stop = members["body"]
    return Line(found["custom_id"], found["url"], model, _without_model(text[start:stop]), isinstance(n, int) and n > 1)


def _members(text: str, at: int) -> dict[str, tuple[int, int]]:
    """Where the values of an object's members begin and end in its text, which is known to be JSON.

    Raises:
        ValueError: a key stands twice.
    """
    found: dict[str, tuple[int, int]] = {}
    at = _skip(text, at + 1)
    while text[at] != "}":
        name, at = _SCAN(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, at = _SCAN(text, start)
        if name in found:
            raise ValueError(f"the key {name!r} stands twice in one object")
        found[name] = (start, at)
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _without_model(body: str) -> str:
    """The text between a body's braces, its model taken out."""
    members = _members(body, 0)
    if "model" not in members:
        return body[1:-1].strip(_SPACE)
    parts = [
        f"{json.dumps(name, ensure_ascii=False)}:{body[start:stop]}"
        for name, (start, stop) in members.items()
        if name != "model"
    ]
    return ",".join(parts)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


class RequestTemplate:
    """Renders kept bodies to lines: the counterpart of a prompt's template; safe to use from several threads."""

    columns = (BODY_COLUMN,)
    fast = True
    reason = ""

    def render(self, block: pa.Table, custom_ids: pa.Array, *, model: str | None, url: str) -> Rendered:
        """As of `Template.render`; nothing is skipped."""
        rows = block.num_rows
        ids = pa.array([orjson.dumps(custom_id).decode() for custom_id in custom_ids.to_pylist()], pa.large_string())
        bodies = pa.concat_arrays([pa.array([], pa.large_string()), *block[BODY_COLUMN].chunks])
        named = "" if model is None else f'"model":{_dumps(model)}'
        comma = pc.if_else(pc.equal(pc.binary_length(bodies), 0), "", "," if named else "").cast(pa.large_string())
        before, middle = '{"custom_id":', f',"method":"POST","url":{_dumps(url)},"body":'
        pieces = [_large(before), ids, _large(middle + "{" + named), comma, bodies, _large("}}\n"), _large("")]
        lines = pc.binary_join_element_wise(*pieces) if rows else pa.array([], pa.large_string())
        line_bytes = pc.cast(pc.binary_length(lines), pa.int64())
        fixed = len(before) + len(middle.encode()) + len("}\n")
        outside = pc.add(pc.cast(pc.binary_length(ids), pa.int64()), pa.scalar(fixed, pa.int64()))
        nothing = pa.nulls(rows, pa.string())
        return Rendered(lines, line_bytes, estimate_tokens(pc.subtract(line_bytes, outside)), nothing, nothing)


def _large(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())


def _dumps(text: str) -> str:
    return orjson.dumps(text).decode()
