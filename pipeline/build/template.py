"""From a prompt and a block of rows to finished request lines.

Owns the compiled template: which columns it uses, the polars expressions that fill it without Python per row, and the
way through Jinja2 where those cannot give the same result. A bad row is a skip code, never an exception. Knows
nothing of files, shards, limits or the service beyond the `url` and `model` it is told.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import jinja2
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.build.block import NULL_RULES, Block, Nulls, with_company
from pipeline.build.body import Group, Single, Skeleton, Slot, dumps, measured_piece, skeleton_of
from pipeline.build.columns import UNRENDERABLE, unwrap
from pipeline.build.fallback import RowFault, SlotRenderer, compile_slot, fill_rows, reason_of
from pipeline.build.inputs import UnpreparedError
from pipeline.build.json_lengths import json_lengths
from pipeline.build.part_lengths import NO_LENGTHS, TextLengths, is_blank, part_lengths
from pipeline.build.prompt import Prompt
from pipeline.build.sandbox import TemplateEnvironment
from pipeline.build.skips import Skips
from pipeline.build.statements import Program, program_of
from pipeline.build.template_names import Reading, read_slot
from pipeline.build.tokens import estimate_tokens
from pipeline.build.values import Slow, json_of
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
class Measured:
    """What rendering a block gives, but for the lines; fields as of `Rendered`."""

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


@dataclass(frozen=True, slots=True)
class _Filler:
    """One templated string, both ways; the program is None where only Jinja2 can fill it."""

    renderer: SlotRenderer
    program: Program | None
    reason: str

    @property
    def slot(self) -> Slot:
        """Where the string stands."""
        return self.renderer.slot

    def fill(self, block: Block, skips: Skips) -> pl.Series:
        """The string of every row: text, or JSON where it keeps the type of a number."""
        found = None if self.program is None else _at_once(self.program, block)
        if found is None:
            return self._by_jinja(block, skips, None)
        series, fits = found
        if fits.all():
            return series
        rest = self._by_jinja(block, skips, fits)
        return pl.select(pl.when(fits).then(series).otherwise(rest)).to_series()

    def measure(self, block: Block, skips: Skips, *, blanks: bool) -> TextLengths:
        """How long the string of every row is in the line, without making it where that can be told.

        Args:
            block: The rows.
            skips: Where rows that cannot be filled are marked; their lengths mean nothing.
            blanks: Tell as well which are nothing but white space.
        """
        found = None if self.program is None else part_lengths(self.program, block, skips, blanks=blanks)
        if found is not None:
            return found
        filled = self.fill(block, skips)
        return TextLengths(
            filled.str.len_bytes().fill_null(0).to_numpy() if self.slot.native else json_lengths(filled.to_arrow()),
            is_blank(filled) if blanks else None,
        )

    def _by_jinja(self, block: Block, skips: Skips, fits: pl.Series | None) -> pl.Series:
        """The string of the rows that are neither skipped nor fit for columns at once."""
        wanted = skips.none()
        places = (wanted if fits is None else wanted & ~fits).arg_true().to_list()
        texts: list[str | None] = [None] * block.rows
        faults: list[str | None] = [None] * block.rows
        for place, text in zip(places, fill_rows(self.renderer, block.values(places)), strict=True):
            if isinstance(text, RowFault):
                faults[place] = text.message
            else:
                texts[place] = text
        try:
            array = pa.array(texts, pa.large_string())
        except UnicodeEncodeError:
            for place in places:
                try:
                    (texts[place] or "").encode()
                except UnicodeEncodeError as error:
                    texts[place], faults[place] = None, reason_of(self.slot, error)
            array = pa.array(texts, pa.large_string())
        messages = pa.array(faults, pa.string())
        skips.add(messages.is_valid(), UNRENDERABLE, messages)
        return pl.Series(pl.from_arrow(array))


def _at_once(program: Program, block: Block) -> tuple[pl.Series, pl.Series] | None:
    """The strings of all rows and whether each is right; None where the block cannot be read in columns."""
    try:
        frame = block.frame(program.inputs)
    except UnpreparedError:
        return None
    frame = frame.with_columns(program.expr.alias("filled"), program.fits(block).alias("fits"))
    filled, found = frame["filled"], frame["fits"]
    return filled, found & filled.is_not_null() if filled.null_count() else found


class Template:
    """A prompt compiled against a schema; safe to use from several threads.

    Attributes:
        columns: The source columns used, in the schema's order.
        fast: Whether columns are rendered at once, without Python per row.
        reason: Which strings are not, and why; "" where fast.
    """

    def __init__(
        self, skeleton: Skeleton, columns: tuple[str, ...], nulls: Nulls, fillers: tuple[_Filler, ...]
    ) -> None:
        self.columns = columns
        self.reason = "; ".join(filler.reason for filler in fillers if filler.reason)
        self.fast = not self.reason
        self._skeleton, self._nulls, self._fillers = skeleton, nulls, fillers

    def by_jinja(self) -> Template:
        """The same with every string filled by Jinja2: slower, the same bytes."""
        slow = tuple(_Filler(filler.renderer, None, "every string is asked of Jinja2") for filler in self._fillers)
        return Template(self._skeleton, self.columns, self._nulls, slow)

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
        if block.num_rows == 1 and self.columns:
            both = self.render(*self._in_company(block, custom_ids), model=model, url=url)
            return Rendered(*(getattr(both, field.name).slice(0, 1) for field in fields(Rendered)))
        skips = Skips(block.num_rows)
        used = Block(block, self.columns, self._nulls, skips)
        ids, envelope = _json_ids(custom_ids), _envelope(url, model)
        lines = self._lines(used, ids, envelope, skips) if used.rows else pa.array([], pa.large_string())
        found = _measured(pc.cast(pc.binary_length(lines), pa.int64()), ids, envelope, skips)
        return Rendered(lines, found.line_bytes, found.tokens, found.skip_code, found.skip_message)

    def measure(self, block: pa.Table, custom_ids: pa.Array, *, model: str | None, url: str) -> Measured:
        """What `render` would give, but for the lines: they are never put together, and most are not even encoded."""
        if block.num_rows == 1 and self.columns:
            both = self.measure(*self._in_company(block, custom_ids), model=model, url=url)
            return Measured(*(getattr(both, field.name).slice(0, 1) for field in fields(Measured)))
        skips = Skips(block.num_rows)
        used = Block(block, self.columns, self._nulls, skips)
        ids, envelope = _json_ids(custom_ids), _envelope(url, model)
        blanks = self._may_be_blank()
        found = [
            filler.measure(used, skips, blanks=blanks and filler.slot.is_prompt) if used.rows else NO_LENGTHS
            for filler in self._fillers
        ]
        if blanks and used.rows:
            asked = [lengths.blank for lengths in found if lengths.blank is not None]
            skips.add(pl.select(pl.all_horizontal(asked)).to_series().to_arrow(), EMPTY_PROMPT, _EMPTY_MESSAGE)
        sizes = pc.cast(pc.binary_length(ids), pa.int64()).to_numpy(zero_copy_only=False)
        sizes = sizes + envelope.fixed_bytes() + len(envelope.body_start.encode())
        for piece in self._skeleton.pieces:
            fixed, slots = measured_piece(piece)
            sizes = sum((found[slot].bytes for slot in slots), sizes + fixed)
        return _measured(pa.array(sizes, pa.int64(), mask=~skips.none().to_numpy()), ids, envelope, skips)

    def _in_company(self, block: pa.Table, custom_ids: pa.Array) -> tuple[pa.Table, pa.Array]:
        """A block of one row as one of two."""
        return with_company(block, self.columns), pa.concat_arrays([custom_ids, custom_ids])

    def _lines(self, used: Block, ids: pa.Array, envelope: _Envelope, skips: Skips) -> pa.LargeStringArray:
        """Fill the strings and put the lines together; a null id makes the whole line null."""
        texts = [filler.fill(used, skips).alias(f"t{index}") for index, filler in enumerate(self._fillers)]
        if self._may_be_blank():
            prompts = [texts[index] for index, filler in enumerate(self._fillers) if filler.slot.is_prompt]
            blank = [is_blank(filled) for filled in prompts]
            skips.add(pl.select(pl.all_horizontal(blank)).to_series().to_arrow(), EMPTY_PROMPT, _EMPTY_MESSAGE)
        frame = pl.DataFrame([pl.Series("id", pl.from_arrow(ids)), *texts])
        if skips.any():
            frame = frame.with_columns(id=pl.when(skips.none()).then("id"))
        pieces = [expr for piece in self._skeleton.pieces for expr in self._encoded(piece)]
        start = pl.lit(envelope.before_body + envelope.body_start)
        parts = [pl.lit(envelope.before_id), pl.col("id"), start, *pieces, pl.lit(envelope.end)]
        return _one_array(frame.select(pl.concat_str(parts).alias("line")).to_arrow().column("line"))

    def _may_be_blank(self) -> bool:
        """Whether a row's prompt can be only white space; fixed text in it makes that impossible."""
        prompts = [filler for filler in self._fillers if filler.slot.is_prompt]
        return bool(prompts) and not any(filler.program and filler.program.never_blank for filler in prompts)

    def _encoded(self, piece: str | Single | Group) -> list[pl.Expr]:
        if isinstance(piece, str):
            return [pl.lit(piece)]
        if isinstance(piece, Single):
            filled = pl.col(f"t{piece.slot}")
            return [filled if self._fillers[piece.slot].slot.native else json_of(filled)]
        fixed = [f"{dumps(key)}:{dumps(value)}" for key, value in piece.entries if isinstance(value, str)]
        key, last = piece.entries[-1]
        if isinstance(last, int) and len(fixed) == len(piece.entries) - 1:  # usual, and quicker: fixed text is copied
            encoded = pl.struct(pl.col(f"t{last}").alias(key)).struct.json_encode().str.strip_prefix("{")
            return [pl.lit("{" + "".join(text + "," for text in fixed)), encoded]
        fields = [
            (pl.lit(value) if isinstance(value, str) else pl.col(f"t{value}")).alias(key)
            for key, value in piece.entries
        ]
        return [pl.struct(fields).struct.json_encode()]


def compile_template(prompt: Prompt, schema: pa.Schema, *, on_null: str = "skip") -> Template:
    """Compile a prompt against the source's columns.

    Args:
        prompt: The prompt.
        schema: The source's columns.
        on_null: What a null in a used column does, one of `NULL_RULES`.

    Raises:
        PromptError: a template has wrong syntax (with its line and its place in the body), names a column that is not
            there, or prints one that has no text.
    """
    assert on_null in NULL_RULES
    skeleton = skeleton_of(prompt.body, fixed_answer_format=prompt.answer is not None)
    environment = TemplateEnvironment()
    readings = tuple(read_slot(environment, slot, schema, prompt.name) for slot in skeleton.slots)
    used = {name for reading in readings for name in reading.columns}
    handled = used - {name for reading in readings for name in reading.exposed}
    nulls = Nulls(on_null, frozenset(handled))
    try:
        fillers = tuple(
            _filler(environment, slot, reading, schema, nulls)
            for slot, reading in zip(skeleton.slots, readings, strict=True)
        )
    except (jinja2.TemplateError, SyntaxError) as error:
        raise PromptError(f"Prompt file {prompt.name}: a template cannot be compiled: {error}.") from None
    return Template(skeleton, tuple(name for name in schema.names if name in used), nulls, fillers)


def _filler(environment: TemplateEnvironment, slot: Slot, reading: Reading, schema: pa.Schema, nulls: Nulls) -> _Filler:
    renderer = compile_slot(environment, slot)
    try:
        program = program_of(
            environment, reading.tree, schema, nulls.handled, native=slot.native, empty_nulls=nulls.rule == "empty"
        )
        _at_once(program, Block(schema.empty_table(), reading.columns, nulls, Skips(0)))
    except Slow as reason:
        return _Filler(renderer, None, f"{slot.where} {reason}")
    except (pl.exceptions.PolarsError, pa.ArrowException):  # an operation that the installed versions lack
        return _Filler(renderer, None, f"{slot.where} has an expression that polars cannot compute")
    return _Filler(renderer, program, "")


def _envelope(url: str, model: str | None) -> _Envelope:
    return _Envelope(
        before_id='{"custom_id":"',
        before_body='","method":"POST","url":' + dumps(url) + ',"body":',
        body_start="{" + (f'"model":{dumps(model)},' if model is not None else ""),
        end="}\n",
    )


def _measured(line_bytes: pa.Int64Array, ids: pa.Array, envelope: _Envelope, skips: Skips) -> Measured:
    """What is told of lines of some lengths, null where there is none."""
    outside = pc.add(pc.cast(pc.binary_length(ids), pa.int64()), pa.scalar(envelope.fixed_bytes(), pa.int64()))
    tokens = estimate_tokens(pc.subtract(line_bytes, outside))
    return Measured(pc.fill_null(line_bytes, 0), tokens, skips.code, skips.message)


def _json_ids(custom_ids: pa.Array) -> pa.Array:
    """The ids as they stand between the quotes of JSON: all but rare ones as they are."""
    ids = pc.cast(unwrap(pa.chunked_array([custom_ids])), pa.large_string())
    values = np.frombuffer(ids.buffers()[2] or b"", np.uint8)  # may hold more than these ids: then written with care
    if ((values < 0x20) | (values == ord('"')) | (values == ord("\\"))).any():
        return pa.array([dumps(custom_id)[1:-1] for custom_id in ids.to_pylist()], pa.large_string())
    return ids


def _one_array(column: pa.ChunkedArray) -> pa.LargeStringArray:
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return array if isinstance(array, pa.LargeStringArray) else pa.concat_arrays(array.chunks)
