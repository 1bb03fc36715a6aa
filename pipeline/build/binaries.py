"""Raw bytes in templates: they have no text, so only what says what to do with them is allowed.

Owns the check that a binary column, or a binary part of one, is only encoded, measured or asked about. Pure.
"""

from __future__ import annotations

import pyarrow as pa
from jinja2 import nodes

from pipeline.build.columns import holds_binary, unwrapped
from pipeline.build.references import column_of
from pipeline.errors import PromptError

TAKES_BINARY = frozenset({"b64encode", "length", "count"})
"""Filters that take bytes as they are."""

_ASKS = frozenset({"none", "defined", "undefined"})


def check_binary(tree: nodes.Template, schema: pa.Schema, prompt_name: str, where: str) -> None:
    """Check every use of a column with bytes in it.

    Raises:
        PromptError: bytes would be printed or computed with.
    """
    _Binaries(schema, prompt_name, where).visit(tree)


class _Binaries:
    """Goes through a tree, with the types of the columns at hand."""

    def __init__(self, schema: pa.Schema, prompt_name: str, where: str) -> None:
        self._schema, self._prompt_name, self._where = schema, prompt_name, where
        self._has_row = "row" in schema.names

    def visit(self, node: nodes.Node) -> None:
        """Look at a node whose value is used as text or number."""
        found = self._part(node)
        if found is not None:
            name, kind = found
            if holds_binary(kind):
                raise PromptError(
                    f"Prompt file {self._prompt_name}: column {name} is of type {kind}, which has no text; "
                    f"write {{{{ {name} | b64encode }}}} for base64 of bytes, or convert it to a string column first "
                    f"({self._where})."
                )
            return
        takes = isinstance(node, nodes.Filter) and node.name in TAKES_BINARY
        asks = isinstance(node, nodes.Test) and node.name in _ASKS
        for child in node.iter_child_nodes():
            part = self._part(child) if takes or asks else None
            if part is None:
                self.visit(child)
            elif takes and holds_binary(part[1]) and isinstance(node, nodes.Filter) and node.name == "b64encode":
                self._check_bytes(*part)

    def _check_bytes(self, name: str, kind: pa.DataType) -> None:
        if unwrapped(kind).num_fields:
            raise PromptError(
                f"Prompt file {self._prompt_name}: b64encode takes bytes, and column {name} is of type {kind}; "
                f"name the part of it that holds them ({self._where})."
            )

    def _part(self, node: nodes.Node) -> tuple[str, pa.DataType] | None:
        """The column that a node is or reads a part of, and the type of that part."""
        name = column_of(node, has_row=self._has_row)
        if name is not None:
            known = self._schema.get_all_field_indices(name)
            return (name, unwrapped(self._schema.field(known[0]).type)) if known else None
        if isinstance(node, nodes.Getattr | nodes.Getitem):
            parent = self._part(node.node)
            if parent is None:
                return None
            key = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, "value", None)
            return parent[0], _inside(parent[1], key)
        return None


def _inside(kind: pa.DataType, key: object) -> pa.DataType:
    if pa.types.is_struct(kind) and isinstance(key, str) and kind.get_field_index(key) >= 0:
        return unwrapped(kind.field(key).type)
    if isinstance(key, int) and not isinstance(key, bool) and kind.num_fields == 1:
        return unwrapped(kind.field(0).type)
    return kind


