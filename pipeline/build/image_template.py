"""Prompts with images: the template renders a mark in place of each image, and the image is set into the line after it.

So the text of a line is rendered as ever, whatever the size of its images: to measure a row no base64 is made at all,
and a request line exists once. Owns the data URLs, the rows whose images cannot be sent, and the tokens of images.
Reads no file: `image_rows` did.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.build.checked_prompt import Prompt
from pipeline.build.columns import NULL_VALUE, unwrap
from pipeline.build.image_bytes import FORMATS, GIF, JPEG, PNG, WEBP, pixels
from pipeline.build.image_tokens import ImageTokens
from pipeline.build.images import FAULT_SUFFIX, IMAGE_BYTES_MAX, ImageColumn, Images, read_images
from pipeline.build.template import Measured, Rendered, Template, compile_template
from pipeline.build.tokens import BYTES_PER_TOKEN

IMAGE_FORMAT = "image_format"
IMAGE_TOO_LARGE = "image_too_large"
ADDRESS = r"^(?i)(https?://|data:image/)"
"""Texts that are sent as they are; any other names a file."""

_FAULT = r"(?s)^(?P<code>\w+): (?P<why>.*)$"
"""A fault of a file, as `image_rows` writes it."""

_MARK_BYTES = 32
_PREFIXES = ["", *(f"data:{kind};base64," for kind in (PNG, JPEG, GIF, WEBP))]
"""What stands before the base64, by media type; nothing where a text is sent as it is."""

_Numbers = np.ndarray[Any, np.dtype[np.int64]]
_Mask = np.ndarray[Any, np.dtype[np.bool_]]


class ImageTemplate:
    """A prompt with images compiled against a schema; safe to use from several threads.

    Args:
        inner: The template with a stand-in for each column of images.
        images: What is shown.

    Attributes:
        columns: The row-file columns used.
        fast, reason: As of the template of the text.
    """

    def __init__(self, inner: Template, images: Images) -> None:
        self.images = images
        self.fast, self.reason = inner.fast, inner.reason
        stand_ins = {column.stand_in for column in images.columns}
        self._plain = [name for name in inner.columns if name not in stand_ins]
        shown = [name for column in images.columns for name in (column.column, column.hidden) if name]
        self.columns = tuple(dict.fromkeys([*self._plain, *shown]))
        self._inner = inner
        self._mark = secrets.token_hex(_MARK_BYTES // 2)  # stands in no line that is given out, and in no row's text

    def render(self, block: pa.Table, custom_ids: pa.Array, *, model: str | None, url: str) -> Rendered:
        """Render a block; as of `Template.render`, with the skip codes of images as well."""
        shown, text = self._marked(block)
        rendered = self._inner.render(text, custom_ids, model=model, url=url)
        found, sent = self._with_images(rendered, shown)
        lines = self._spliced(rendered.lines, shown, sent)
        return Rendered(lines, found.line_bytes, found.tokens, found.skip_code, found.skip_message)

    def measure(self, block: pa.Table, custom_ids: pa.Array, *, model: str | None, url: str) -> Measured:
        """What `render` would give, but for the lines: no image is encoded."""
        shown, text = self._marked(block)
        return self._with_images(self._inner.measure(text, custom_ids, model=model, url=url), shown)[0]

    def _marked(self, block: pa.Table) -> tuple[list[_Shown], pa.Table]:
        """The images of a block, and its rows with a mark in place of each."""
        shown = [_Shown(column, block) for column in self.images.columns]
        text = block.select(self._plain)
        for each in shown:
            text = text.append_column(each.column.stand_in, each.marked(self._mark))
        return shown, text

    def _with_images(self, rendered: Rendered | Measured, shown: list[_Shown]) -> tuple[Measured, _Mask]:
        """What is measured of the text, corrected by the images; and the rows that are sent."""
        code, message = rendered.skip_code, rendered.skip_message
        for each in shown:
            for mask, found, why in each.faults:
                fresh = pc.and_(pa.array(mask), code.is_null())
                code = pc.if_else(fresh, found, code)
                message = pc.if_else(fresh, why, message)
        sent = np.asarray(code.is_null())
        sizes, tokens = np.array(rendered.line_bytes), np.array(rendered.tokens)
        for index, low in self.images.slots:
            sizes += shown[index].url_bytes - _MARK_BYTES
            tokens += shown[index].tokens(self.images.prompt.image_tokens, sent, low=low)
            tokens -= _MARK_BYTES // BYTES_PER_TOKEN
        tokens = np.maximum(tokens + self.images.fixed_tokens, 1)
        measured = Measured(pa.array(np.where(sent, sizes, 0)), pa.array(np.where(sent, tokens, 0)), code, message)
        return measured, sent

    def _spliced(self, lines: pa.LargeStringArray, shown: list[_Shown], sent: _Mask) -> pa.LargeStringArray:
        """The lines with the images in place of their marks; null where a row is skipped."""
        rows = np.flatnonzero(sent)
        whole = len(rows) == len(lines)
        chosen = lines if whole else lines.take(pa.array(rows))
        if self.images.slots and len(rows):
            width = len(self.images.slots) + 1
            pieces = pc.split_pattern(chosen, self._mark).flatten()
            urls = {index: shown[index].urls(rows) for index, _ in self.images.slots}
            joined = [pieces.take(pa.array(np.arange(0, len(pieces), width)))]
            for number, (index, _) in enumerate(self.images.slots, 1):
                joined += [*urls[index], pieces.take(pa.array(np.arange(number, len(pieces), width)))]
            chosen = pc.binary_join_element_wise(*joined, pa.scalar("", pa.large_string()))
        if whole:
            return chosen
        place = np.full(len(lines), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        return chosen.take(pa.array(place, mask=place < 0))


class _Shown:
    """A column of images in one block: addresses, or content to be encoded, and the rows that have neither.

    Attributes:
        column: Which.
        faults: Masks over the rows, each with its skip code and message.
        url_bytes: Bytes of the data URL that takes the mark's place; 0 where an address does.
    """

    def __init__(self, column: ImageColumn, block: pa.Table) -> None:
        self.column = column
        values = column.values(block)
        rows = len(values)
        missing = np.asarray(values.is_null())
        self.faults: list[tuple[_Mask, Any, Any]] = [(missing, NULL_VALUE, f"column {column.told} is null")]
        address = np.zeros(rows, dtype=bool)
        if column.hidden is None:
            self._content = values
        else:
            self._content = unwrap(block.column(column.hidden)).cast(pa.large_binary())
            address = np.asarray(pc.fill_null(pc.match_substring_regex(values, ADDRESS), False))
            fault = column.hidden + FAULT_SUFFIX
            if fault in block.column_names:  # absent when requests are made: rows with one are skipped by then
                told = pc.extract_regex(unwrap(block.column(fault)), _FAULT)
                code, why = pc.struct_field(told, [0]), pc.struct_field(told, [1])
                self.faults.append((np.asarray(told.is_valid()), code, why))
        content = np.asarray(self._content.is_valid())
        self._kinds = _kinds(self._content)
        lengths = np.asarray(pc.fill_null(pc.binary_length(self._content), 0)).astype(np.int64)
        bad = content & (self._kinds == 0)
        large = lengths > IMAGE_BYTES_MAX
        self._addresses = pc.if_else(pa.array(address), values, pa.scalar(None, pa.large_binary()))
        self._address_bytes = np.asarray(pc.fill_null(pc.binary_length(self._addresses), 0)).astype(np.int64)
        large |= self._address_bytes > IMAGE_BYTES_MAX * 4 // 3 + 100
        self.faults += [
            (large, IMAGE_TOO_LARGE, f"column {column.told} has an image of more than {IMAGE_BYTES_MAX:,} bytes"),
            (bad, IMAGE_FORMAT, f"column {column.told} has content that is no {FORMATS} image"),
        ]
        prefixes = np.array([len(prefix) for prefix in _PREFIXES])
        self.url_bytes: _Numbers = np.where(content, prefixes[self._kinds] + (lengths + 2) // 3 * 4, 0)

    def marked(self, mark: str) -> pa.LargeStringArray:
        """The mark in each row, before its address where it has one."""
        texts = pc.fill_null(self._addresses, b"").cast(pa.large_string(), safe=False)
        return pc.binary_join_element_wise(
            pa.scalar(mark, pa.large_string()), texts, pa.scalar("", pa.large_string())
        )

    def tokens(self, costs: ImageTokens, sent: _Mask, *, low: bool) -> _Numbers:
        """What the image of each row costs, less what the text of a data URL in a column counts for."""
        if costs.characters:
            return (self.url_bytes + BYTES_PER_TOKEN - 1) // BYTES_PER_TOKEN
        found = np.full(len(sent), costs.of(None, low=low), dtype=np.int64)
        data = np.asarray(pc.fill_null(pc.match_substring_regex(self._addresses, r"^(?i)data:"), False))
        found -= np.where(data, self._address_bytes // BYTES_PER_TOKEN, 0)
        rows = np.flatnonzero(sent & (self._kinds > 0)).tolist()
        if rows and not low:
            offsets = np.frombuffer(self._content.buffers()[1], dtype=np.int64)[self._content.offset :]
            values = memoryview(self._content.buffers()[2] or b"").cast("B")  # Arrow's are signed
            for row in rows:
                found[row] = costs.of(pixels(values[offsets[row] : offsets[row + 1]]))
        return found

    def urls(self, rows: _Numbers) -> tuple[pa.LargeStringArray, pa.LargeStringArray]:
        """What takes the place of the mark in some rows: what stands before the base64, and the base64."""
        whole = len(rows) == len(self._kinds)
        content = self._content if whole else self._content.take(pa.array(rows))
        encoded = pl.Series(pl.from_arrow(content)).bin.encode("base64").fill_null("").to_arrow()
        prefixes = pa.array(_PREFIXES, pa.large_string()).take(pa.array(self._kinds[rows]))
        return prefixes, encoded.cast(pa.large_string())


def _kinds(content: pa.LargeBinaryArray) -> _Numbers:
    """The media type of each image as an index into `_PREFIXES`; 0 where it is none of ours, or null."""
    head = pc.binary_slice(content, 0, 12)
    webp = pc.and_(pc.starts_with(head, b"RIFF"), pc.equal(pc.binary_slice(head, 8, 12), pa.scalar(b"WEBP", head.type)))
    gif = pc.or_(pc.starts_with(head, b"GIF87a"), pc.starts_with(head, b"GIF89a"))
    masks = (pc.starts_with(head, b"\x89PNG\r\n\x1a\n"), pc.starts_with(head, b"\xff\xd8\xff"), gif, webp)
    found = np.zeros(len(content), dtype=np.int64)
    for number, mask in enumerate(masks, 1):
        found[np.asarray(pc.fill_null(mask, False))] = number
    return found


def compile_prompt(prompt: Prompt, schema: pa.Schema, **rules: Any) -> Template | ImageTemplate:
    """Compile a prompt, with or without images, against the source's columns.

    Args:
        prompt: The prompt.
        schema: The source's columns.
        rules: As of `compile_template`; a row whose image is null is skipped whatever they say.

    Raises:
        PromptError: as of `compile_template` and `read_images`.
    """
    images = read_images(prompt, schema)
    if not images.slots and not images.fixed_tokens:
        return compile_template(prompt, schema, **rules)
    stand_ins = [pa.field(column.stand_in, pa.large_string()) for column in images.columns]
    return ImageTemplate(compile_template(images.prompt, pa.schema([*schema, *stand_ins]), **rules), images)
