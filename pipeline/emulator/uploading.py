"""An upload as it arrives: a multipart body, its file streamed into the state folder, never whole in memory.

Takes both spellings of an expiry (contract §2). Knows the form, not the rules of files.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from pipeline.emulator.refusals import refusal
from pipeline.emulator.settings import EmulatorSettings

_EXPIRY_NAMES = ("expires_after[seconds]", "expires_after.seconds")
_ANCHOR_NAMES = ("expires_after[anchor]", "expires_after.anchor")
_PIECE_BYTES = 1 << 20
_FIELDS_MAX, _FIELD_BYTES_MAX = 20, 1_000
_CONTINUATION = bytes(range(0x80, 0xC0))
"""Bytes of UTF-8 that begin no character."""


@dataclass(frozen=True, slots=True)
class Received:
    """An upload that has arrived.

    Attributes:
        content: where its file lies, durably; whoever takes it moves it away.
        name: of the file, as given.
        expires_s: seconds it is to be kept, where that was asked for.
        characters: how many it holds.
    """

    content: Path
    name: str
    expires_s: int | None
    characters: int


async def received(request: Request, settings: EmulatorSettings) -> Received:
    """Receive an upload.

    Args:
        request: its multipart body is read to the end.
        settings: state folder and the largest file.

    Raises:
        Refusal: it cannot be read, is no upload for a batch, or is too large.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise refusal(400, "invalidPayload", "The upload cannot be read: multipart/form-data is needed.")
    target = settings.state / f"upload.{secrets.token_hex(8)}"
    try:
        with target.open("wb") as file:
            form = _Form(file, boundary, settings.habits.file_bytes_max)
            held = bytearray()
            async for piece in request.stream():
                held += piece
                if len(held) >= _PIECE_BYTES:
                    await run_in_threadpool(form.feed, bytes(held))
                    held.clear()
            await run_in_threadpool(form.end, bytes(held))
        return form.received(target)
    except (FormParserError, ValueError) as error:
        target.unlink()
        raise refusal(400, "invalidPayload", f"The upload cannot be read: {error}"[:300]) from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise


class _Form:
    """The parts of a form: its file goes to disk, its fields are kept."""

    def __init__(self, file: IO[bytes], boundary: bytes, bytes_max: int) -> None:
        self._file, self._bytes_max = file, bytes_max
        self._size = self._characters = 0
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._name = ""
        self._field: bytearray | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._on_end,
            },
        )

    def feed(self, piece: bytes) -> None:
        """Take a piece of the body."""
        self._parser.write(piece)

    def end(self, piece: bytes) -> None:
        """Take the last piece; the file is then durable."""
        self._parser.write(piece)
        self._parser.finalize()
        self._file.flush()
        os.fsync(self._file.fileno())

    def received(self, target: Path) -> Received:
        """What has arrived.

        Raises:
            Refusal: it is no upload for a batch, or too large.
            ValueError: its expiry is no number.
        """
        if self._filename is None or self._fields.get("purpose") != "batch":
            raise refusal(400, "invalidPayload", "A file and purpose 'batch' are required.")
        if self._size > self._bytes_max:
            raise refusal(400, "invalidPayload", "File is too large.")
        seconds = next((int(self._fields[name]) for name in _EXPIRY_NAMES if name in self._fields), None)
        anchor = next((self._fields[name] for name in _ANCHOR_NAMES if name in self._fields), "created_at")
        if anchor != "created_at":
            raise refusal(400, "invalidPayload", "expires_after.anchor must be created_at.")
        return Received(target, self._filename[:500], seconds, self._characters)

    def _begin(self) -> None:
        self._disposition, self._name, self._field = b"", "", None

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name == "file" and b"filename" in options:
            if self._filename is not None:
                raise ValueError("more than one file")
            self._filename = options[b"filename"].decode(errors="replace")
            return
        if len(self._fields) >= _FIELDS_MAX:
            raise ValueError("too many fields")
        self._field = bytearray()

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        piece = data[start:end]
        if self._field is not None:
            self._field += piece
            if len(self._field) > _FIELD_BYTES_MAX:
                raise ValueError("a field is too large")
            return
        self._size += len(piece)
        if self._size <= self._bytes_max:  # the rest is read, and refused in the end
            self._characters += len(piece.translate(None, _CONTINUATION))
            self._file.write(piece)

    def _on_end(self) -> None:
        if self._field is not None:
            self._fields[self._name] = self._field.decode(errors="replace")
