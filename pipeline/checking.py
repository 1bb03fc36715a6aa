"""Whether a batch input file would be accepted: every rule of the service's contract (§5), every line, in one pass.

Blocks of lines are looked at as columns; only a block in which something is odd is looked at line by line. A fault has
the code that the service would give. Memory is bounded: blocks, and the custom_ids of one file until there are too
many, then hashes on disk. Shares no code with the emulator, whose validation is a second opinion.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import LIMITS, ServiceKind
from pipeline.doubles import Buckets
from pipeline.lines import COLUMNS, NO_STOPS, line_blocks, table_of

IDS_IN_MEMORY_MAX = 400_000
"""Custom_ids of a file held in memory; a legal file has at most a quarter of them."""

BOM = b"\xef\xbb\xbf"
NO_MODEL = "A valid model deployment name couldn't be extracted from the input file."
_AZURE_URLS = frozenset({"/chat/completions", "/v1/chat/completions", "/v1/responses"})
_EMBEDDINGS = "/v1/embeddings"
EMBEDDING_INPUTS_MAX = 50_000
"""Inputs of all embedding requests of a file, at most (OpenAI, contract §7)."""

_OPENAI_URLS = frozenset(
    "/v1/" + path
    for path in (
        "responses", "chat/completions", "embeddings", "completions", "moderations", "images/generations",
        "images/edits", "videos",
    )
)  # fmt: skip
_REQUIRED = {
    "custom_id": "it must be text that is not empty",
    "method": "it must be POST",
    "url": "it must be text, the same on every line",
    "body": "it must be an object that is not empty",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that the service would refuse.

    Attributes:
        line: from 1; None: the file as a whole.
        code: as the service gives it (contract §5).
        message: what is wrong.
        curable: whether cutting the file into several cures it.
    """

    line: int | None
    code: str
    message: str
    curable: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """What a service takes.

    Attributes:
        service: Azure or OpenAI.
        lines_max, bytes_max: of one file.
    """

    service: ServiceKind
    lines_max: int
    bytes_max: int

    @classmethod
    def of(cls, service: ServiceKind, *, lines_max: int | None = None, bytes_max: int | None = None) -> Rules:
        """The rules of a service, with lower limits where they are given."""
        limits = LIMITS[service]
        return cls(service, lines_max or limits.lines_max, bytes_max or limits.bytes_max)


@dataclass(frozen=True, slots=True)
class Looked:
    """A block of whole lines and what was found in it.

    Attributes:
        first_line: number of its first line.
        data: its bytes, each line ended by a newline; valid until the next block is asked for.
        stops: where each line ends in `data`, its newline included.
        faults: in the order of the lines.
        bad: lines that cannot go into any file.
        groups: url and model of each line; one entry: of all lines.
    """

    first_line: int
    data: memoryview
    stops: NDArray[np.int64]
    faults: list[Fault]
    bad: frozenset[int]
    groups: list[tuple[str, str]]


@dataclass(slots=True)
class FileCheck:
    """The check of one file; `blocks` does it.

    Attributes:
        path: the file.
        rules: of the service.
        lines, size_bytes: how many there are, once all blocks were taken.
    """

    path: Path
    rules: Rules
    lines: int = 0
    size_bytes: int = 0
    _url: str | None = None
    _model: str | None = None
    _ids: dict[str, int] = field(default_factory=dict)
    _buckets: Buckets | None = None
    _waiting: dict[int, str] = field(default_factory=dict)
    _requests: bool = False
    _inputs: int = 0

    def blocks(self) -> Iterator[Looked]:
        """Look at the whole file, block by block; what concerns it as a whole comes with the last.

        Raises:
            OSError: it cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                yield from self._blocks(file)
        finally:
            if self._buckets is not None:
                self._buckets.close()

    def _blocks(self, file: BinaryIO) -> Iterator[Looked]:
        first = 1
        for block in line_blocks(file, self.rules.bytes_max):
            faults: list[Fault] = []
            if block.too_long:
                self._requests = True
                faults.append(Fault(first, "file_too_large", f"The line alone has {block.too_long:,} bytes."))
                yield Looked(first, block.data, NO_STOPS, self._counted(1, block.too_long, faults), frozenset(), [])
                first += 1
                continue
            data, stops = block.data, block.stops
            if first == 1 and data[: len(BOM)] == BOM:
                data, stops = data[len(BOM) :], stops - len(BOM)
                faults.append(Fault(1, "invalid_request", f"{NO_MODEL} The file begins with a byte order mark.", True))
            bad: set[int] = set()
            group = self._columns(data, stops, first)
            groups = self._line_by_line(data, stops, first, faults, bad) if group is None else [group]
            faults = self._counted(len(stops), len(block.data) - block.added, faults)
            yield Looked(first, data, stops, faults, frozenset(bad), groups)
            first += len(stops)
        yield Looked(self.lines + 1, memoryview(b""), NO_STOPS, list(self._as_a_whole()), frozenset(), [])

    def _counted(self, lines: int, size: int, faults: list[Fault]) -> list[Fault]:
        """Count a block; the limits of the file are passed at most once."""
        before = self.lines
        self.lines, self.size_bytes = before + lines, self.size_bytes + size
        if before <= self.rules.lines_max < self.lines:
            over = Fault(None, "too_many_tasks", f"The file has more than {self.rules.lines_max:,} lines.", True)
            at = next((n for n, f in enumerate(faults) if f.line and f.line > self.rules.lines_max), len(faults))
            faults.insert(at, over)
        return faults

    def _as_a_whole(self) -> Iterator[Fault]:
        if self._buckets is not None:
            for line, first in sorted(self._buckets.doubles()):
                yield Fault(line, "duplicate_custom_id", f"The custom_id stands in line {first:,} too.")
        if self.size_bytes > self.rules.bytes_max:
            text = f"The file has {self.size_bytes:,} bytes; the limit is {self.rules.bytes_max:,}."
            yield Fault(None, "file_too_large", text, True)
        if not self._requests:
            yield Fault(None, "empty_file", "The file holds no requests.")

    # ---- a block at once

    def _columns(self, data: memoryview, stops: NDArray[np.int64], first: int) -> tuple[str, str] | None:
        """Url and model of all lines of a block in which nothing is odd; None: look closer."""
        table = table_of(data, stops)
        if table is None:
            return None
        ids, method, url, body = (table[name].combine_chunks() for name in COLUMNS.names)
        model, stream = pc.struct_field(body, "model"), pc.struct_field(body, "stream")
        if ids.null_count or url.null_count or model.null_count or pc.any(stream).as_py():
            return None
        if pc.unique(method).to_pylist() != ["POST"] or pc.any(pc.equal(pc.binary_length(ids), 0)).as_py():
            return None
        urls, models = pc.unique(url).to_pylist(), pc.unique(model).to_pylist()
        if len(urls) > 1 or len(models) > 1 or not models[0]:
            return None
        if self._url not in (None, urls[0]) or self._model not in (None, models[0]):
            return None
        if urls[0] == _EMBEDDINGS or (self._url is None and _url_fault(urls[0], self.rules.service)):
            return None
        if not self._remember(ids.to_pylist(), first):
            return None
        self._url, self._model, self._requests = urls[0], models[0], True
        return urls[0], models[0]

    def _remember(self, ids: list[str], first: int) -> bool:
        """Take a block's ids in; False, and nothing is taken, where one stands twice."""
        if self._buckets is None and len(self._ids) + len(ids) > IDS_IN_MEMORY_MAX:
            self._spill()
        if self._buckets is not None:
            self._buckets.add(ids, np.arange(first, first + len(ids)))
            return True
        here = dict(zip(ids, range(first, first + len(ids)), strict=True))
        if len(here) < len(ids) or not self._ids.keys().isdisjoint(here):
            return False
        self._ids.update(here)
        return True

    def _spill(self) -> None:
        """Too many ids for memory: from now on hashes of them go to disk."""
        self._buckets = Buckets()
        self._buckets.add(list(self._ids), np.fromiter(self._ids.values(), np.int64, len(self._ids)))
        self._ids = {}

    # ---- line by line

    def _line_by_line(
        self, data: memoryview, stops: NDArray[np.int64], first: int, faults: list[Fault], bad: set[int]
    ) -> list[tuple[str, str]]:
        start, groups = 0, []
        for number, stop in enumerate(stops.tolist(), first):
            found, group = self._line(bytes(data[start:stop]), number)
            faults += found
            if any(not fault.curable for fault in found):
                bad.add(number)
            groups.append(group)
            start = stop
        if self._buckets is not None and self._waiting:
            numbers = np.fromiter(self._waiting, np.int64, len(self._waiting))
            self._buckets.add(list(self._waiting.values()), numbers)
            self._waiting = {}
        return groups

    def _line(self, line: bytes, number: int) -> tuple[list[Fault], tuple[str, str]]:
        """A line's faults, and its url and model, in the order in which the service looks."""
        nowhere = ("", "")
        if not line.strip():
            return [Fault(number, "invalid_json_line", "This line is blank; it must be an object.")], nowhere
        self._requests = True
        try:
            request = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            text = f"This line is not parseable as valid JSON ({str(error).split(': line')[0]})."
            return [Fault(number, "invalid_json_line", text)], nowhere
        if not isinstance(request, dict):
            return [Fault(number, "invalid_request", "This line is no JSON object.")], nowhere
        faults = list(_shape_faults(request, number, self.rules.service))
        custom_id, url, body = request.get("custom_id"), request.get("url"), request.get("body")
        model = body.get("model") if isinstance(body, dict) else None
        if isinstance(custom_id, str) and custom_id and (words := self._double(custom_id, number)):
            faults.append(Fault(number, "duplicate_custom_id", words))
        group = (url if isinstance(url, str) else "", model if isinstance(model, str) else "")
        faults += self._group_faults(number, group)
        if isinstance(body, dict):
            if body.get("stream"):
                faults.append(Fault(number, "invalid_value", "body.stream cannot be used in a batch; remove it."))
            faults += self._input_faults(number, group[0], body)
        return faults, group

    def _group_faults(self, number: int, group: tuple[str, str]) -> Iterator[Fault]:
        """Whether a line's url and model are those of the lines before it; the first ones are those of the file."""
        url, model = group
        if url and self._url is None:
            self._url = url
            if words := _url_fault(url, self.rules.service):
                yield Fault(number, "invalid_request", words)
        elif url and url != self._url:
            text = f"url is {_shown(url)} where the file's first is {_shown(self._url)}."
            yield Fault(number, "url_mismatch", text, True)
        if model and self._model is None:
            self._model = model
        elif model and model != self._model:
            text = f"body.model is {_shown(model)} where the file's first is {_shown(self._model)}."
            yield Fault(number, "model_mismatch", text, True)

    def _input_faults(self, number: int, url: str, body: dict[str, Any]) -> Iterator[Fault]:
        """Embedding requests have a limit of their own; it is passed at most once."""
        if self.rules.service is not ServiceKind.OPENAI or url != _EMBEDDINGS:
            return
        given, before = body.get("input"), self._inputs
        # A list of numbers is one input, as tokens.
        several = isinstance(given, list) and not (given and isinstance(given[0], int))
        self._inputs += len(given) if several and isinstance(given, list) else 1
        if before <= EMBEDDING_INPUTS_MAX < self._inputs:
            text = f"The file has more than {EMBEDDING_INPUTS_MAX:,} embedding inputs."
            yield Fault(number, "too_many_tasks", text)

    def _double(self, custom_id: str, number: int) -> str | None:
        if self._buckets is None and len(self._ids) >= IDS_IN_MEMORY_MAX:
            self._spill()
        if self._buckets is not None:
            self._waiting[number] = custom_id
            return None
        first = self._ids.setdefault(custom_id, number)
        return None if first == number else f"The custom_id {_shown(custom_id)} stands in line {first:,} too."


def _shape_faults(request: dict[str, Any], number: int, service: ServiceKind) -> Iterator[Fault]:
    """What a line lacks, in the order in which the service looks."""
    missing = "missing_required_parameter" if service is ServiceKind.OPENAI else "invalid_request"
    body = request.get("body")
    for name, words in _REQUIRED.items():
        value = request.get(name)
        if name not in request:
            yield Fault(number, missing, f"{name} is missing; {words}.")
        elif not isinstance(value, dict if name == "body" else str) or not value:
            yield Fault(number, "invalid_request", f"{name} is not what it must be; {words}.")
        elif name == "method" and value != "POST":
            yield Fault(number, "invalid_request", f"method is {_shown(value)}; {words}.")
    if isinstance(body, dict) and (not isinstance(body.get("model"), str) or not body["model"]):
        code = missing if "model" not in body else "invalid_request"
        yield Fault(number, code, f"{NO_MODEL} body.model is missing or no text.")


def _url_fault(url: str, service: ServiceKind) -> str | None:
    known = _OPENAI_URLS if service is ServiceKind.OPENAI else _AZURE_URLS
    return None if url in known else f"url {_shown(url)} cannot be batched; use one of {', '.join(sorted(known))}."


def _shown(text: object) -> str:
    return json.dumps(str(text)[:100], ensure_ascii=True)
