"""How long the strings of a block will be, told from their parts where none has to be put together for it.

Owns the sum over a program's parts and what counts as a blank text. Gives what filling the strings and measuring them
would give, or nothing. Knows nothing of lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline.build.block import Block
from pipeline.build.body import dumps
from pipeline.build.fallback import WHITE_SPACE
from pipeline.build.inputs import UnpreparedError
from pipeline.build.json_lengths import QUOTES, Lengths, json_lengths
from pipeline.build.skips import Skips
from pipeline.build.statements import Program
from pipeline.build.values import Kind, Value


@dataclass(frozen=True, slots=True)
class TextLengths:
    """One string of every row.

    Attributes:
        bytes: UTF-8 bytes of its JSON.
        blank: Whether it is only white space; None where nobody asked.
    """

    bytes: Lengths
    blank: pl.Series | None


NO_LENGTHS = TextLengths(np.zeros(0, np.int64), None)


def is_blank(texts: pl.Series) -> pl.Series:
    """Whether each text is nothing but white space; a null is not."""
    return (texts.str.strip_chars(WHITE_SPACE).str.len_bytes() == 0).fill_null(False)


def part_lengths(program: Program, block: Block, skips: Skips, *, blanks: bool) -> TextLengths | None:
    """Measure the strings that a program would fill.

    Args:
        program: The program.
        block: Its rows.
        skips: The rows of no interest; none is added.
        blanks: Tell as well which strings are blank.

    Returns:
        None where a row is Jinja2's, or the program gives JSON and not a text.
    """
    if not program.parts:
        return None
    try:
        frame = block.frame(program.inputs)
    except UnpreparedError:
        return None
    made = {f"p{index}": part for index, part in enumerate(program.parts) if not (part.is_constant or _is_column(part))}
    wanted = [(part.expr.str.len_bytes() if part.unescaped else part.expr).alias(name) for name, part in made.items()]
    frame = frame.select(program.fits(block).alias("fits"), *wanted)
    asked = skips.none()
    if any((frame[name].is_null() & asked).any() for name in ("fits", *made)) or (~frame["fits"] & asked).any():
        return None
    total: Lengths = np.full(block.rows, QUOTES, np.int64)
    blank = asked if blanks else None
    for index, part in enumerate(program.parts):
        nothing: bool | pl.Series = False  # whether the part adds nothing but white space
        if part.is_constant:
            total += len(dumps(part.constant).encode()) - QUOTES
            nothing = not part.constant.strip(WHITE_SPACE)
        elif part.unescaped:
            total += frame[f"p{index}"].fill_null(0).cast(pl.Int64).to_numpy()
        else:
            array = block.array(part.column) if part.column and _is_column(part) else frame[f"p{index}"].to_arrow()
            total += json_lengths(array) - QUOTES
            nothing = blanks and is_blank(pl.Series(pl.from_arrow(array)))
        if blank is not None:
            blank = blank & nothing
    return TextLengths(total, blank)


def _is_column(part: Value) -> bool:
    """Whether a part is the text of a column as it is."""
    return part.kind is Kind.TEXT and part.column is not None
