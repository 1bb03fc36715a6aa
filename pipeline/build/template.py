"""From a prompt and a block of rows to finished request lines.

Owns the compiled template: which columns it uses, the polars expressions that fill it without Python per row, and the
way through Jinja2 where those cannot give the same result. A bad row is a skip code, never an exception. Knows
nothing of files, shards, limits or the service beyond the `url` and `model` it is told.
"""

from __future__ import annotations

from dataclasses import dataclass

import jinja2
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.build.block import NULL_RULES, Block, Nulls
from pipeline.build.body import Group, Single, Skeleton, Slot, dumps, skeleton_of
from pipeline.build.columns import UNRENDERABLE, unwrap
from pipeline.build.fallback import WHITE_SPACE, RowFault, SlotRenderer, compile_slot, fill_rows, reason_of
from pipeline.build.inputs import UnpreparedError
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

    def _by_jinja(self, block: Block, skips: Skips, fits: pl.Series | None) -> pl.Series:
        """The string of the rows that are neither skipped nor fit for columns at once."""
        wanted = pl.Series(pl.from_arrow(skips.code.is_null()))
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
    needed = [
        requirement.expr
        for requirement in program.requirements
        if requirement.unless_ascii is None or not block.all_ascii(requirement.unless_ascii)
    ]
    fits = pl.all_horizontal(needed).fill_null(False) if needed else pl.lit(True)
    frame = frame.with_columns(program.expr.alias("filled"), fits.alias("fits"))
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
        lines, found = self._rendered(block, custom_ids, model, url, sizes_only=False)
        return Rendered(lines, found.line_bytes, found.tokens, found.skip_code, found.skip_message)

    def measure(self, block: pa.Table, custom_ids: pa.Array, *, model: str | None, url: str) -> Measured:
        """What `render` would give, but for the lines: they are never put together."""
        return self._rendered(block, custom_ids, model, url, sizes_only=True)[1]

    def _rendered(
        self, block: pa.Table, custom_ids: pa.Array, model: str | None, url: str, *, sizes_only: bool
    ) -> tuple[pa.Array, Measured]:
        """The lines, or their lengths where these are enough, and what is measured of them."""
        skips = Skips(block.num_rows)
        used = Block(block, self.columns, self._nulls, skips)
        ids = _json_ids(custom_ids)
        envelope = _envelope(url, model)
        lines: pa.Array = pa.array([], pa.large_string())
        if used.rows:
            lines = self._lines(used, ids, envelope, skips, sizes_only=sizes_only)
        line_bytes = pc.cast(lines if pa.types.is_integer(lines.type) else pc.binary_length(lines), pa.int64())
        outside = pc.add(pc.cast(pc.binary_length(ids), pa.int64()), pa.scalar(envelope.fixed_bytes(), pa.int64()))
        tokens = estimate_tokens(pc.subtract(line_bytes, outside))
        return lines, Measured(pc.fill_null(line_bytes, 0), tokens, skips.code, skips.message)

    def _lines(self, used: Block, ids: pa.Array, envelope: _Envelope, skips: Skips, *, sizes_only: bool) -> pa.Array:
        """Fill the strings and put the lines together, or tell their lengths; a null id makes the whole line null."""
        texts = [filler.fill(used, skips).alias(f"t{index}") for index, filler in enumerate(self._fillers)]
        frame = pl.DataFrame([pl.Series("id", pl.from_arrow(ids)), *texts])
        blank = self._blank()
        if blank is not None:
            skips.add(frame.select(blank.fill_null(False)).to_series().to_arrow(), EMPTY_PROMPT, _EMPTY_MESSAGE)
        if skips.any():
            frame = frame.with_columns(id=pl.when(pl.Series(pl.from_arrow(skips.code.is_null()))).then("id"))
        pieces = [expr for piece in self._skeleton.pieces for expr in self._encoded(piece)]
        start = pl.lit(envelope.before_body + envelope.body_start)
        parts = [pl.lit(envelope.before_id), pl.col("id"), start, *pieces, pl.lit(envelope.end)]
        if sizes_only:
            sizes = [part.str.len_bytes().cast(pl.Int64) for part in parts]
            return frame.select(pl.sum_horizontal(sizes, ignore_nulls=False).alias("size"))["size"].to_arrow()
        return _one_array(frame.select(pl.concat_str(parts).alias("line")).to_arrow().column("line"))

    def _blank(self) -> pl.Expr | None:
        """Whether a row's prompt is only white space; None where fixed text or no template makes it impossible."""
        checks = []
        for index, filler in enumerate(self._fillers):
            if filler.slot.is_prompt:
                if filler.program is not None and filler.program.never_blank:
                    return None
                checks.append(pl.col(f"t{index}").str.strip_chars(WHITE_SPACE).str.len_bytes() == 0)
        return pl.all_horizontal(checks) if checks else None

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


def _filler(
    environment: TemplateEnvironment, slot: Slot, reading: Reading, schema: pa.Schema, nulls: Nulls
) -> _Filler:
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
        before_id='{"custom_id":',
        before_body=',"method":"POST","url":' + dumps(url) + ',"body":',
        body_start="{" + (f'"model":{dumps(model)},' if model is not None else ""),
        end="}\n",
    )


def _json_ids(custom_ids: pa.Array) -> pa.Array:
    """The ids as JSON text; quoting alone is enough for all but rare ones."""
    ids = pc.cast(unwrap(pa.chunked_array([custom_ids])), pa.large_string())
    values = np.frombuffer(ids.buffers()[2] or b"", np.uint8)  # may hold more than these ids: then quoted with care
    if ((values < 0x20) | (values == ord('"')) | (values == ord("\\"))).any():
        return pa.array([dumps(custom_id) for custom_id in ids.to_pylist()], pa.large_string())
    quote = pa.scalar('"', pa.large_string())
    return pc.binary_join_element_wise(quote, ids, quote, pa.scalar("", pa.large_string()))


def _one_array(column: pa.ChunkedArray) -> pa.LargeStringArray:
    array = column.combine_chunks()
    return array if isinstance(array, pa.LargeStringArray) else pa.concat_arrays(array.chunks)
