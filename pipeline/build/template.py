"""From a prompt and a block of rows to finished request lines.

Owns the compiled template: which columns it uses, the polars expressions that fill it without Python per row, and the
way through Jinja2 where those cannot give the same result. A bad row is a skip code, never an exception. Knows
nothing of files, shards, limits or the service beyond the `url` and `model` it is told.
"""

from __future__ import annotations

from dataclasses import dataclass

import jinja2
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.build.body import Group, Single, Skeleton, dumps, skeleton_of
from pipeline.build.columns import (
    UNRENDERABLE,
    faults,
    holds_binary,
    is_text,
    python_values,
    unwrap,
    unwrapped,
    valid_text,
)
from pipeline.build.fallback import WHITE_SPACE, RowFault, SlotRenderer, compile_slot, make_environment, render_body
from pipeline.build.prompt import Prompt
from pipeline.build.template_names import Column, Reading, read_slot
from pipeline.build.tokens import estimate_tokens
from pipeline.errors import PromptError

EMPTY_PROMPT = "empty_prompt"
_EMPTY_MESSAGE = "the prompt has nothing but white space"


@dataclass(frozen=True, slots=True)
class Rendered:
    """The request lines of a block, one entry a row.

    Attributes:
        lines: One request ending in a newline; null where the row is skipped. The value buffer holds nothing else.
        line_bytes: Length of the line in UTF-8 bytes, its newline included; 0 where skipped.
        tokens: Estimate of the enqueued tokens; 0 where skipped.
        skip_code: `null_value`, `unrenderable` or `empty_prompt`; null where the row can be sent.
        skip_message: One sentence for people; null where the row can be sent.
    """

    lines: pa.LargeStringArray
    line_bytes: pa.Int64Array
    tokens: pa.Int64Array
    skip_code: pa.StringArray
    skip_message: pa.StringArray


@dataclass(frozen=True, slots=True)
class _Envelope:
    """The fixed text of a line around its custom_id and its body."""

    before_id: str
    before_body: str
    body_start: str
    end: str

    def fixed_bytes(self) -> int:
        """Bytes of a line that belong neither to the id nor to the body."""
        return len(self.before_id.encode()) + len(self.before_body.encode()) + len(self.end)


class Template:
    """A prompt compiled against a schema; safe to use from several threads.

    Attributes:
        columns: The source columns used, in the schema's order.
        fast: Whether columns are rendered at once, without Python per row.
        reason: Why not; "" where fast.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        readings: tuple[Reading, ...],
        columns: tuple[str, ...],
        renderers: tuple[SlotRenderer, ...],
    ) -> None:
        self.columns = columns
        self.reason = next((reading.reason for reading in readings if reading.reason), "")
        self.fast = not self.reason
        self._skeleton = skeleton
        self._readings = readings
        self._renderers = renderers

    def render(self, block: pa.Table, custom_ids: pa.Array, *, model: str | None, url: str) -> Rendered:
        """Render a block.

        Args:
            block: Rows with at least the used columns.
            custom_ids: The id of each row, text without nulls.
            model: The deployment or model of every line; None leaves it out.
            url: The `url` of every line.

        Returns:
            As many entries as the block has rows, in its order.
        """
        rows = block.num_rows
        arrays, skip_code, skip_message = self._read(block)
        ids = _json_ids(custom_ids)
        envelope = _envelope(url, model)
        fill = self._fill_columns if self.fast else self._fill_rows
        lines, late = fill(arrays, ids, skip_code, envelope) if rows else (pa.array([], pa.large_string()), [])
        for mask, code, message in late:
            skip_code, skip_message = _with_skips(skip_code, skip_message, mask, code, message)
        line_bytes = pc.cast(pc.binary_length(lines), pa.int64())
        outside = pc.add(pc.cast(pc.binary_length(ids), pa.int64()), pa.scalar(envelope.fixed_bytes(), pa.int64()))
        tokens = estimate_tokens(pc.subtract(line_bytes, outside))
        return Rendered(lines, pc.fill_null(line_bytes, 0), tokens, skip_code, skip_message)

    def _read(self, block: pa.Table) -> tuple[dict[str, pa.Array], pa.StringArray, pa.StringArray]:
        arrays: dict[str, pa.Array] = {}
        skip_code = skip_message = pa.nulls(block.num_rows, pa.string())
        for name in self.columns:
            array = unwrap(block.column(name))
            not_utf8 = None
            if is_text(array.type):
                array, not_utf8 = valid_text(array)
            for mask, code, message in faults(name, array, not_utf8):
                skip_code, skip_message = _with_skips(skip_code, skip_message, mask, code, message)
            arrays[name] = array
        return arrays, skip_code, skip_message

    def _fill_columns(
        self, arrays: dict[str, pa.Array], ids: pa.Array, skip_code: pa.StringArray, envelope: _Envelope
    ) -> tuple[pa.LargeStringArray, list[tuple[pa.Array, str, object]]]:
        """Render all rows at once; a null id makes the whole line null."""
        position = {name: f"c{index}" for index, name in enumerate(arrays)}
        table = pa.table(
            {"id": ids, "skip": skip_code.is_valid(), **{position[name]: array for name, array in arrays.items()}}
        )
        frame = pl.DataFrame(pl.from_arrow(table))
        texts = [_text(reading, arrays, position).alias(f"t{index}") for index, reading in enumerate(self._readings)]
        frame = frame.select("id", "skip", *texts)
        late: list[tuple[pa.Array, str, object]] = []
        blank = self._blank()
        if blank is not None:
            frame = frame.with_columns(blank=blank.fill_null(False) & ~pl.col("skip"))
            if frame["blank"].any():
                late.append((frame["blank"].to_arrow(), EMPTY_PROMPT, _EMPTY_MESSAGE))
            frame = frame.with_columns(skip=pl.col("skip") | pl.col("blank"))
        if frame["skip"].any():
            frame = frame.with_columns(id=pl.when(~pl.col("skip")).then("id"))
        pieces = [_encoded(piece) for piece in self._skeleton.pieces]
        start = pl.lit(envelope.before_body + envelope.body_start)
        line = pl.concat_str([pl.lit(envelope.before_id), pl.col("id"), start, *pieces, pl.lit(envelope.end)])
        return _one_array(frame.select(line.alias("line")).to_arrow().column("line")), late

    def _blank(self) -> pl.Expr | None:
        """Whether a row's prompt is only white space; None where fixed text or no template makes it impossible."""
        checks = []
        for index, (slot, reading) in enumerate(zip(self._skeleton.slots, self._readings, strict=True)):
            if slot.is_prompt:
                if any(isinstance(part, str) and part.strip(WHITE_SPACE) for part in reading.parts or ()):
                    return None
                checks.append(pl.col(f"t{index}").str.strip_chars().str.len_bytes() == 0)
        return pl.all_horizontal(checks) if checks else None

    def _fill_rows(
        self, arrays: dict[str, pa.Array], ids: pa.Array, skip_code: pa.StringArray, envelope: _Envelope
    ) -> tuple[pa.LargeStringArray, list[tuple[pa.Array, str, object]]]:
        """Render row by row through Jinja2."""
        values = {name: python_values(array) for name, array in arrays.items()}
        lines: list[str | None] = []
        messages: list[str | None] = []
        blank: list[bool] = []
        for index, (custom_id, skipped) in enumerate(
            zip(ids.to_pylist(), skip_code.is_valid().to_pylist(), strict=True)
        ):
            row = {name: column[index] for name, column in values.items()}
            body = None if skipped else render_body(self._renderers, self._skeleton, row)
            messages.append(body.message if isinstance(body, RowFault) else None)
            blank.append(body is None and not skipped)
            lines.append(
                envelope.before_id + custom_id + envelope.before_body + envelope.body_start + body + envelope.end
                if isinstance(body, str)
                else None
            )
        message_array = pa.array(messages, pa.string())
        late: list[tuple[pa.Array, str, object]] = [
            (message_array.is_valid(), UNRENDERABLE, message_array),
            (pa.array(blank, pa.bool_()), EMPTY_PROMPT, _EMPTY_MESSAGE),
        ]
        return pa.array(lines, pa.large_string()), late


def compile_template(prompt: Prompt, schema: pa.Schema) -> Template:
    """Compile a prompt against the source's columns.

    Raises:
        PromptError: a template has wrong syntax (with its line and its place in the body), names a column that is not
            there, or uses one that has no text.
    """
    skeleton = skeleton_of(prompt.body, fixed_answer_format=prompt.answer is not None)
    environment = make_environment()
    readings = tuple(read_slot(environment, slot, schema, prompt.name) for slot in skeleton.slots)
    used = {name for reading in readings for name in reading.columns}
    columns = tuple(name for name in schema.names if name in used)
    for name in columns:
        if holds_binary(schema.field(name).type):
            kind = unwrapped(schema.field(name).type)
            raise PromptError(
                f"Prompt file {prompt.name}: column {name} is of type {kind}, which has no text; "
                "convert it to a string column first."
            )
    try:
        renderers = tuple(compile_slot(environment, slot) for slot in skeleton.slots)
    except (jinja2.TemplateError, SyntaxError) as error:
        raise PromptError(f"Prompt file {prompt.name}: a template cannot be compiled: {error}.") from None
    return Template(skeleton, readings, columns, renderers)


def _envelope(url: str, model: str | None) -> _Envelope:
    return _Envelope(
        before_id='{"custom_id":',
        before_body=',"method":"POST","url":' + dumps(url) + ',"body":',
        body_start="{" + (f'"model":{dumps(model)},' if model is not None else ""),
        end="}\n",
    )


def _json_ids(custom_ids: pa.Array) -> pa.Array:
    """The ids as JSON text; quoting alone is enough for all but rare ones."""
    ids = pc.cast(unwrap(pa.chunked_array([custom_ids])), pa.large_string())
    if pc.any(pc.match_substring_regex(ids, r'["\\\x00-\x1f]')).as_py():
        return pa.array([dumps(custom_id) for custom_id in ids.to_pylist()], pa.large_string())
    quote = pa.scalar('"', pa.large_string())
    return pc.binary_join_element_wise(quote, ids, quote, pa.scalar("", pa.large_string()))


def _text(reading: Reading, arrays: dict[str, pa.Array], position: dict[str, str]) -> pl.Expr:
    exprs = [
        _column_text(pl.col(position[part.name]), arrays[part.name].type) if isinstance(part, Column) else pl.lit(part)
        for part in reading.parts or ("",)
    ]
    return exprs[0] if len(exprs) == 1 else pl.concat_str(exprs)


def _column_text(column: pl.Expr, kind: pa.DataType) -> pl.Expr:
    if pa.types.is_boolean(kind):
        return pl.when(column.is_null()).then(None).when(column).then(pl.lit("True")).otherwise(pl.lit("False"))
    return column if is_text(kind) else column.cast(pl.String)


def _encoded(piece: str | Single | Group) -> pl.Expr:
    if isinstance(piece, str):
        return pl.lit(piece)
    if isinstance(piece, Single):
        encoded = pl.struct(pl.col(f"t{piece.slot}").alias("x")).struct.json_encode()
        return encoded.str.strip_prefix('{"x":').str.strip_suffix("}")
    fields = [
        (pl.lit(value) if isinstance(value, str) else pl.col(f"t{value}")).alias(key) for key, value in piece.entries
    ]
    return pl.struct(fields).struct.json_encode()


def _one_array(column: pa.ChunkedArray) -> pa.LargeStringArray:
    array = column.combine_chunks()
    return array if isinstance(array, pa.LargeStringArray) else pa.concat_arrays(array.chunks)


def _with_skips(
    skip_code: pa.StringArray, skip_message: pa.StringArray, mask: pa.Array, code: str, message: object
) -> tuple[pa.StringArray, pa.StringArray]:
    """Mark the rows of a mask that nothing was found wrong with so far."""
    fresh = pc.and_(mask, skip_code.is_null())
    texts = message if isinstance(message, pa.Array) else pa.scalar(message, pa.string())
    return pc.if_else(fresh, pa.scalar(code, pa.string()), skip_code), pc.if_else(fresh, texts, skip_message)
