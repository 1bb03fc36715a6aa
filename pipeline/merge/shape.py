"""What the output's own columns are called, in which order they stand, and of what types they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.merge.answers import answer_type

FALLBACK_PREFIX = "llm_"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the output's own columns look like.

    Attributes:
        kind: chat, responses or embeddings.
        schema: JSON Schema of a typed answer, or None.
        several: requests ask for several answers; the answer is a list of them.
        flatten: a typed answer's top level as columns `answer.<name>` in place of `answer`.
        raw: a last column with the whole response body as JSON text.
        keep_invalid: an answer that breaks its schema succeeds, with its text in `answer_text`.
    """

    kind: str
    schema: dict[str, Any] | None = None
    several: bool = False
    flatten: bool = False
    keep_invalid: bool = False
    raw: bool = False

    @property
    def answer_type(self) -> pa.DataType:
        """The type of the answer column."""
        one = pa.string()
        if self.kind == "embeddings":
            one = pa.list_(pa.float32())
        elif self.schema:
            one = answer_type(self.schema)
        return pa.list_(one) if self.several else one

    @property
    def flattened(self) -> list[pa.Field]:
        """The fields that take the place of `answer`, without their `answer.`."""
        kind = self.answer_type
        return list(kind) if self.flatten and pa.types.is_struct(kind) else []


def own_columns(shape: Shape) -> pa.Schema:
    """The output's own columns, before any prefix."""
    answer = [pa.field(f"answer.{field.name}", field.type) for field in shape.flattened]
    text = [pa.field("answer_text", pa.string())] if shape.schema else []
    return pa.schema(
        [
            pa.field("custom_id", pa.string()),
            pa.field("status", pa.string()),
            *(answer or [pa.field("answer", shape.answer_type)]),
            *text,
            pa.field("finish_reason", pa.string()),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("prompt_tokens", pa.int64()),
            pa.field("completion_tokens", pa.int64()),
            pa.field("cached_tokens", pa.int64()),
            pa.field("reasoning_tokens", pa.int64()),
            pa.field("model", pa.string()),
            pa.field("deployment", pa.string()),
            pa.field("attempt", pa.int32()),
            pa.field("batch_id", pa.string()),
            *([pa.field("raw", pa.string())] if shape.raw else []),
        ]
    )


def choose_prefix(
    source_schema: pa.Schema,
    schema: dict[str, Any] | None,
    asked: str | None,
    *,
    flatten: bool = False,
    raw: bool = False,
) -> str:
    """The prefix of the output's own columns: none, or `llm_` where the source has one of their names.

    Raises:
        UsageError: the prefix asked for, or `llm_`, collides as well.
    """
    names = own_columns(Shape("chat", schema, raw=raw)).names
    if flatten:
        names += own_columns(Shape("chat", schema, flatten=True)).names
    taken = set(source_schema.names)
    for prefix in ("", FALLBACK_PREFIX) if asked is None else (asked,):
        if not any(prefix + name in taken for name in names):
            return prefix
    clash = next(prefix + name for name in names if prefix + name in taken)
    raise UsageError(f"The source has a column {clash!r}, as the output would: choose another prefix with --prefix.")
