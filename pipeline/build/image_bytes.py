"""What an image's first bytes say: its media type, and its size in pixels.

Knows PNG, JPEG, GIF and WEBP, the formats that the service takes, and nothing else. Decodes no picture. Pure.
"""

from __future__ import annotations

import base64
import struct

PNG, JPEG, GIF, WEBP = "image/png", "image/jpeg", "image/gif", "image/webp"
FORMATS = "PNG, JPEG, GIF or WEBP"

_SOF = frozenset({*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)})
"""JPEG markers that begin a frame, which holds the size."""

_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""JPEG markers without a length."""


def media_type(head: bytes | memoryview) -> str | None:
    """The media type of an image of which these are the first twelve bytes or more; None where it is none of ours."""
    start = bytes(head[:12])
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if start.startswith(b"\xff\xd8\xff"):
        return JPEG
    if start.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return WEBP
    return None


def pixels(image: bytes | memoryview) -> tuple[int, int] | None:
    """Width and height of an image as its header tells; None where it does not."""
    kind = media_type(image)
    try:
        if kind == PNG:
            width, height = struct.unpack(">II", image[16:24])
        elif kind == GIF:
            width, height = struct.unpack("<HH", image[6:10])
        elif kind == JPEG:
            return _jpeg(image)
        elif kind == WEBP:
            return _webp(image)
        else:
            return None
    except (struct.error, IndexError):
        return None
    return (width, height) if width and height else None


def data_url(image: bytes) -> str | None:
    """An image as a data URL; None where it is none of ours."""
    kind = media_type(image)
    return None if kind is None else f"data:{kind};base64,{base64.b64encode(image).decode()}"


def _jpeg(image: bytes | memoryview) -> tuple[int, int] | None:
    """The size in the first frame header; the segments before it are passed over by their lengths."""
    at = 2
    while at + 4 <= len(image):
        if image[at] != 0xFF:
            return None
        marker = image[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        if marker in _BARE:
            at += 2
            continue
        if marker in _SOF:
            height, width = struct.unpack(">HH", image[at + 5 : at + 9])
            return (width, height) if width and height else None
        at += 2 + int.from_bytes(image[at + 2 : at + 4], "big")
    return None


def _webp(image: bytes | memoryview) -> tuple[int, int] | None:
    form = bytes(image[12:16])
    if form == b"VP8X":
        return 1 + int.from_bytes(image[24:27], "little"), 1 + int.from_bytes(image[27:30], "little")
    if form == b"VP8L":
        bits = struct.unpack("<I", image[21:25])[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if form == b"VP8 ":
        width, height = struct.unpack("<HH", image[26:30])
        return (width & 0x3FFF, height & 0x3FFF) if width & 0x3FFF and height & 0x3FFF else None
    return None
