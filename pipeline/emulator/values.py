"""Values that conform to a JSON Schema, chosen by a seeded chance: the same seed gives the same value.

A schema is compiled once into functions and kept. What is built here conforms by construction; a schema with words that
can only be judged on a finished value (`not`, `oneOf`, `pattern` …) has its values judged, and drawn again. Knows
nothing of requests and answers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import jsonschema
import orjson

from pipeline.emulator import leaves
from pipeline.emulator.chance import Chance, Unanswerable

__all__ = ["Unanswerable", "conforming"]

Maker = Callable[[Chance], Any]

_ANNOTATIONS = frozenset(
    {
        "$schema", "$id", "$defs", "definitions", "$comment", "title", "description", "default", "examples",
        "deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding", "strict", "name",
    }
)  # fmt: skip
_BUILT = _ANNOTATIONS | {
    "type", "enum", "const", "$ref", "anyOf", "properties", "required", "additionalProperties", "items", "prefixItems",
    "minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength",
    "maxLength", "format",
}  # fmt: skip
"""Words that are honoured by construction; any other has the value judged."""
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "null": (type(None),),
    "object": (dict,), "array": (list,),
}  # fmt: skip
_TRIES = 200
_MERGES_MAX = 2_000
_SCHEMA_BYTES_KEPT = 1 << 16


def conforming(schema: Any, seed: int) -> Any:
    """A value that conforms to a schema.

    Args:
        schema: a JSON Schema: an object, or true.
        seed: chooses among the values.

    Raises:
        Unanswerable: there is none, none was found, or it would be too large.
    """
    try:
        content = orjson.dumps(schema)
        compiled = _compiled(content) if len(content) <= _SCHEMA_BYTES_KEPT else _Compiled(schema)
        return compiled.value(seed)
    except RecursionError:
        raise Unanswerable("the schema is nested too deeply") from None


@functools.lru_cache(maxsize=64)
def _compiled(content: bytes) -> _Compiled:
    return _Compiled(orjson.loads(content))


class _Compiled:
    """A schema as functions from a chance to a value."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._made: dict[str, Maker] = {}
        self._merges = 0
        self._judged = False
        self._heights: dict[str, float] = {}
        self._measure()
        self._maker = self._compile(root)
        self._judge: Any = None

    def value(self, seed: int) -> Any:
        """A conforming value."""
        for again in range(_TRIES):
            chance = Chance(seed + again)
            found = self._maker(chance)
            # Whether a value must be judged shows at the first one: parts that are referred to are compiled when used.
            if not self._judged or self._is_sound(found):
                return found
        raise Unanswerable("no value was found that conforms to the schema")

    def _is_sound(self, value: Any) -> bool:
        if self._judge is None:
            self._judge = jsonschema.Draft202012Validator(self._root)
        try:
            return bool(self._judge.is_valid(value))
        except Exception as error:  # noqa: BLE001 - a schema that cannot be judged, in whichever way
            raise Unanswerable(f"the schema cannot be read: {type(error).__name__}") from error

    # ---- how deep a schema must go, so that recursion can be left by the shortest way

    def _measure(self) -> None:
        """The least height of every part that is referred to; infinite where there is no end."""
        pointers: set[str] = set()
        waiting, seen = [self._root], 0
        while waiting:
            part = waiting.pop()
            seen += 1
            if isinstance(part, dict):
                pointer = part.get("$ref")
                if isinstance(pointer, str) and pointer not in pointers:
                    pointers.add(pointer)
                    waiting.append(self._resolved(pointer))
                waiting.extend(value for value in part.values() if isinstance(value, dict | list))
            elif isinstance(part, list):
                waiting.extend(value for value in part if isinstance(value, dict | list))
            if seen > 100_000:
                raise Unanswerable("the schema is too large")
        self._heights = dict.fromkeys(pointers, float("inf"))
        for _ in range(min(len(pointers), 100) + 1):
            before = dict(self._heights)
            for pointer in pointers:
                self._heights[pointer] = self._height(self._resolved(pointer))
            if before == self._heights:
                return

    def _height(self, schema: Any) -> float:
        if not isinstance(schema, dict) or "enum" in schema or "const" in schema:
            return 0
        if isinstance(schema.get("$ref"), str):
            return self._heights.get(schema["$ref"], 0) + 1
        for name in ("anyOf", "oneOf"):
            if isinstance(schema.get(name), list) and schema[name]:
                return min(self._height(option) for option in schema[name])
        if isinstance(schema.get("type"), list) and "null" in schema["type"]:
            return 0
        parts = list(schema["allOf"]) if isinstance(schema.get("allOf"), list) else []
        properties = schema.get("properties")
        if isinstance(properties, dict):
            parts += [properties[name] for name in _list_of(schema, "required") if name in properties]
        if schema.get("minItems"):
            parts.append(schema.get("items"))
        return 1 + max((self._height(part) for part in parts), default=0)

    # ---- compiling

    def _resolved(self, pointer: str) -> Any:
        """The part of the schema that a reference within it names."""
        found = self._root
        if not pointer.startswith("#"):
            raise Unanswerable("a reference out of the schema")
        for part in [unquote(part) for part in pointer[1:].split("/") if part]:
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise Unanswerable(f"no {pointer[:100]} in the schema") from None
        return found

    def _compile(self, schema: Any) -> Maker:
        if schema is True or schema == {}:
            return leaves.words
        if not isinstance(schema, dict):
            raise Unanswerable("a part of the schema allows no value")
        if not schema.keys() <= _BUILT:
            self._judged = True
        if "const" in schema:
            return self._one_of([schema["const"]], schema)
        if "enum" in schema:
            return self._one_of(_list_of(schema, "enum"), schema)
        if "$ref" in schema:
            return self._reference(schema)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                return self._either(schema, name)
        if "allOf" in schema:
            merged = {key: value for key, value in schema.items() if key != "allOf"}
            for part in _list_of(schema, "allOf"):
                merged = self._merged(merged, part)
            return self._compile(merged)
        return self._plain(schema)

    def _one_of(self, values: list[Any], schema: dict[str, Any]) -> Maker:
        kinds = schema.get("type")
        if kinds is not None:
            wanted = kinds if isinstance(kinds, list) else [kinds]
            values = [value for value in values if any(_is_a(value, kind) for kind in wanted)]
        if not values:
            raise Unanswerable("an enum of the schema allows no value")
        if schema.keys() - _ANNOTATIONS - {"type", "enum", "const"}:
            self._judged = True
        return lambda chance: values[chance.below(len(values))]

    def _reference(self, schema: dict[str, Any]) -> Maker:
        pointer = schema["$ref"]
        if not isinstance(pointer, str):
            raise Unanswerable("a reference that is no text")
        others = {key: value for key, value in schema.items() if key != "$ref" and key not in _ANNOTATIONS}
        if others:
            return self._compile(self._merged(others, self._resolved(pointer)))

        def referred(chance: Chance) -> Any:
            if pointer not in self._made:
                self._made[pointer] = self._compile(self._resolved(pointer))
            with chance.deeper():
                return self._made[pointer](chance)

        return referred

    def _either(self, schema: dict[str, Any], name: str) -> Maker:
        options = _list_of(schema, name)
        others = {key: value for key, value in schema.items() if key != name and key not in _ANNOTATIONS}
        if others:
            options = [self._merged(others, option) for option in options]
        if not options:
            raise Unanswerable(f"{name} of the schema is empty")
        heights = [self._height(option) for option in options]
        shortest = heights.index(min(heights))
        makers: list[Maker] = []
        for option in options:
            try:
                makers.append(self._compile(option))
            except Unanswerable as error:
                makers.append(_none_for(error))

        def either(chance: Chance) -> Any:
            return makers[shortest if chance.short() else chance.below(len(makers))](chance)

        return either

    def _merged(self, one: Any, other: Any) -> Any:
        """Both in one, as far as that can be told beforehand; the value is judged."""
        self._merges += 1
        self._judged = True
        if self._merges > _MERGES_MAX:
            raise Unanswerable("the schema is too entangled")
        if one is True or other is True:
            return other if one is True else one
        if not isinstance(one, dict) or not isinstance(other, dict):
            raise Unanswerable("a part of the schema allows no value")
        if isinstance(other.get("$ref"), str):
            rest = {key: value for key, value in other.items() if key != "$ref"}
            other = self._merged(self._resolved(other["$ref"]), rest) if rest else self._resolved(other["$ref"])
            return self._merged(one, other)
        found = {**one, **other}
        if isinstance(one.get("properties"), dict) and isinstance(other.get("properties"), dict):
            found["properties"] = {**one["properties"], **other["properties"]}
        for name in ("required", "allOf"):
            if isinstance(one.get(name), list) and isinstance(other.get(name), list):
                found[name] = [*one[name], *other[name]]
        for name, choose in (("minimum", max), ("minItems", max), ("minLength", max), ("maximum", min),
                             ("maxItems", min), ("maxLength", min)):  # fmt: skip
            if name in one and name in other:
                found[name] = choose(one[name], other[name])
        if isinstance(one.get("enum"), list) and isinstance(other.get("enum"), list):
            found["enum"] = [value for value in one["enum"] if value in other["enum"]]
        return found

    def _plain(self, schema: dict[str, Any]) -> Maker:
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._either({"anyOf": [{**schema, "type": each} for each in kind]}, "anyOf")
        if kind is None:
            kind = _implied(schema)
        match kind:
            case "object":
                return self._object(schema)
            case "array":
                return self._array(schema)
            case "integer" | "number":
                return leaves.number_maker(schema, whole=kind == "integer")
            case "boolean":
                return lambda chance: chance.below(2) == 1
            case "null":
                return lambda chance: None
            case "string":
                return leaves.string_maker(schema)
        raise Unanswerable(f"the schema has an unknown type {str(kind)[:50]!r}")

    def _object(self, schema: dict[str, Any]) -> Maker:
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            raise Unanswerable("properties of the schema is no object")
        required = [name for name in _list_of(schema, "required") if isinstance(name, str)]
        more = schema.get("additionalProperties", True)
        open_ended = isinstance(more, dict) and not properties
        fields = []
        for name, part in properties.items():
            try:
                fields.append((name, self._compile(part), name in required))
            except Unanswerable:
                if name in required:
                    raise
        extra = None if more is False else self._compile(more)
        unnamed = [name for name in dict.fromkeys(required) if name not in properties]
        if unnamed and extra is None:
            raise Unanswerable("the schema requires a property that it does not allow")
        least = _count(schema, "minProperties", 0)

        def made(chance: Chance) -> dict[str, Any]:
            found = {}
            with chance.deeper():
                short = chance.short()
                for name, maker, needed in fields:
                    if needed or (not short and chance.below(4)):
                        found[name] = maker(chance)
                for name in unnamed:
                    found[name] = extra(chance)  # type: ignore[misc]
                if extra is not None:
                    wanted = max(least, 0 if short or not open_ended else len(found) + 1 + chance.below(2))
                    chance.spend(max(0, wanted - len(found)))
                    for number in range(1, wanted - len(found) + 1):
                        found[f"key_{number}"] = extra(chance)
            return found

        return made

    def _array(self, schema: dict[str, Any]) -> Maker:
        first = [self._compile(part) for part in _list_of(schema, "prefixItems")]
        rest = schema.get("items", True)
        low = _count(schema, "minItems", 0)
        high = _count(schema, "maxItems", max(low, len(first) + (0 if rest is False or first else 3)))
        if rest is False:
            high = min(high, len(first))
        if low > high:
            raise Unanswerable("minItems of the schema is above maxItems")
        try:
            maker = None if rest is False or high <= len(first) else self._compile(rest)
        except Unanswerable:
            if low > len(first):
                raise
            maker, high = None, min(high, len(first))
        distinct = schema.get("uniqueItems") is True
        usual = min(high, low + 3)

        def made(chance: Chance) -> list[Any]:
            with chance.deeper():
                wanted = max(low, min(1, usual))
                count = low if chance.short() else wanted + chance.below(usual - wanted + 1)
                chance.spend(count)
                found = [part(chance) for part in first[:count]]
                for _ in range(10 * (count - len(found)) if distinct else count - len(found)):
                    assert maker is not None
                    value = maker(chance)
                    if len(found) < count and (not distinct or value not in found):
                        found.append(value)
            return found

        return made


def _none_for(error: Unanswerable) -> Maker:
    def none(chance: Chance) -> Any:
        raise error

    return none


def _list_of(schema: dict[str, Any], name: str) -> list[Any]:
    found = schema.get(name, [])
    if not isinstance(found, list):
        raise Unanswerable(f"{name} of the schema is no list")
    return found


def _count(schema: dict[str, Any], name: str, otherwise: int) -> int:
    found = schema.get(name, otherwise)
    if isinstance(found, bool) or not isinstance(found, int | float) or found != int(found) or found < 0:
        raise Unanswerable(f"{name} of the schema is no count")
    return int(found)


def _implied(schema: dict[str, Any]) -> str:
    """The type that a schema without one speaks of."""
    if schema.keys() & {"properties", "required", "additionalProperties", "minProperties"}:
        return "object"
    if schema.keys() & {"items", "prefixItems", "minItems", "maxItems"}:
        return "array"
    if schema.keys() & {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}:
        return "number"
    return "string"


def _is_a(value: Any, kind: Any) -> bool:
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    if isinstance(value, bool):
        return bool(kind == "boolean")
    return isinstance(value, _TYPES.get(str(kind), ()))
