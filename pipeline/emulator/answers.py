"""Synthetic answers: a function of the request body (less `model`) and a seed, never of batch, time or custom_id.

They conform to the JSON Schema that a request asks for, and are labelled as synthetic in text and model.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any

import orjson

LABEL = "[synthetic] "
_WORDS = [
    "amber",
    "basalt",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "garnet",
    "harbor",
    "indigo",
    "juniper",
    "kelp",
    "lagoon",
    "marble",
    "nectar",
    "onyx",
    "prairie",
    "quartz",
    "river",
    "saffron",
    "tundra",
    "umber",
    "valley",
    "willow",
    "xenon",
    "yarrow",
    "zephyr",
]
_DEPTH_MAX = 12
_FORMATS = {
    "date": "2024-05-17",
    "date-time": "2024-05-17T08:30:00Z",
    "time": "08:30:00Z",
    "email": "name@example.com",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "hostname": "example.com",
    "duration": "P1D",
}


def answer(url: str, body: dict[str, Any], seed: int) -> dict[str, Any]:
    """The body of a good response to a request body."""
    asked = {name: value for name, value in body.items() if name != "model"}
    content = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
    digest = hashlib.blake2b(content, digest_size=16, key=str(seed).encode()).hexdigest()
    model = f"synthetic-{body.get('model')}"
    prompt_tokens = max(1, len(content) // 4)
    if url.endswith("/embeddings"):
        return _embeddings(body, digest, model, prompt_tokens)
    text = _text(_schema_of(url, body), digest)
    tokens = max(1, len(text) // 4)
    if url.endswith("/responses"):
        return _response(text, digest, model, prompt_tokens, tokens)
    return _chat(text, digest, model, prompt_tokens, tokens)


def _schema_of(url: str, body: dict[str, Any]) -> Any:
    """The JSON Schema asked for; True for any JSON object; None for plain text."""
    wanted = (body.get("text") or {}).get("format") if url.endswith("/responses") else body.get("response_format")
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_object":
        return True
    if wanted.get("type") == "json_schema":
        inner = wanted.get("json_schema")
        holder = inner if isinstance(inner, dict) else wanted
        return holder.get("schema", True)
    return None


def _text(schema: Any, digest: str) -> str:
    if schema is None:
        number = int(digest[:12], 16)
        words = [_WORDS[(number >> shift) % len(_WORDS)] for shift in range(0, 40, 5)]
        return f"{LABEL}{' '.join(words)} {digest[:8]}"
    chance = random.Random(digest)
    value = {"synthetic": True} if schema is True else conforming(schema, schema, chance, 0)
    return orjson.dumps(value).decode()


def conforming(schema: Any, root: Any, chance: random.Random, depth: int) -> Any:
    """A value that conforms to a schema, chosen by `chance`."""
    if schema is True or not isinstance(schema, dict):
        return "synthetic"
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return chance.choice(schema["enum"])
    if "$ref" in schema:
        return conforming(_resolved(schema["$ref"], root), root, chance, depth + 1)
    for name in ("anyOf", "oneOf"):
        if schema.get(name):
            options = schema[name]
            if depth >= _DEPTH_MAX:  # out of a recursion by the way that ends it
                options = [option for option in options if option.get("type") == "null"] or options
            return conforming(chance.choice(options), root, chance, depth + 1)
    if schema.get("allOf"):
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            part = _resolved(part["$ref"], root) if "$ref" in part else part  # noqa: PLW2901
            properties = {**merged.get("properties", {}), **part.get("properties", {})}
            required = [*merged.get("required", []), *part.get("required", [])]
            merged = {**merged, **part, "properties": properties, "required": required}
        return conforming(merged, root, chance, depth + 1)
    return _plain(schema, root, chance, depth)


def _plain(schema: dict[str, Any], root: Any, chance: random.Random, depth: int) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = "null" if depth >= _DEPTH_MAX and "null" in kind else chance.choice(kind)
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    if kind == "object":
        wanted = schema.get("required", []) if depth >= _DEPTH_MAX else schema.get("properties", {})
        return {name: conforming(schema.get("properties", {}).get(name), root, chance, depth + 1) for name in wanted}
    if kind == "array":
        low = int(schema.get("minItems", 0 if depth >= _DEPTH_MAX else 1))
        high = int(schema.get("maxItems", max(low, 3)))
        count = low if depth >= _DEPTH_MAX else chance.randint(min(low, high), high)
        return [conforming(schema.get("items", True), root, chance, depth + 1) for _ in range(count)]
    if kind in ("integer", "number"):
        return _number(schema, chance, whole=kind == "integer")
    if kind == "boolean":
        return chance.random() < 0.5  # noqa: PLR2004
    return None if kind == "null" else _string(schema, chance)


def _number(schema: dict[str, Any], chance: random.Random, *, whole: bool) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 100))
    if "minimum" not in schema and "exclusiveMinimum" not in schema and high < low:
        low = high - 100
    step = schema.get("multipleOf")
    if step:
        first = -(-low // step)
        last = high // step
        return step * chance.randint(int(first), max(int(first), int(last)))  # type: ignore[no-any-return]
    if whole:
        first = int(-(-low // 1)) + (1 if low == schema.get("exclusiveMinimum") else 0)
        last = int(high // 1) - (1 if high == schema.get("exclusiveMaximum") else 0)
        return chance.randint(first, max(first, last))
    return round(low + (high - low) * (0.25 + 0.5 * chance.random()), 6)  # type: ignore[no-any-return]


def _string(schema: dict[str, Any], chance: random.Random) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    text = " ".join(chance.choice(_WORDS) for _ in range(3))
    text = text.ljust(int(schema.get("minLength", 0)), ".")
    return text[: int(schema["maxLength"])] if "maxLength" in schema else text


def _resolved(reference: str, root: Any) -> Any:
    found = root
    for part in [part for part in reference.lstrip("#").split("/") if part]:
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def _chat(text: str, digest: str, model: str, prompt_tokens: int, tokens: int) -> dict[str, Any]:
    safe = {"filtered": False, "severity": "safe"}
    filters = {name: safe for name in ("hate", "self_harm", "sexual", "violence")}
    return {
        "id": f"chatcmpl-{digest[:24]}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "content_filter_results": filters,
            }
        ],
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": filters}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def _response(text: str, digest: str, model: str, prompt_tokens: int, tokens: int) -> dict[str, Any]:
    return {
        "id": f"resp_{digest}",
        "object": "response",
        "created_at": 1_700_000_000.0,
        "status": "completed",
        "model": model,
        "output": [
            {
                "id": f"msg_{digest}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": text, "annotations": []}],
            }
        ],
        "usage": {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt_tokens + tokens,
        },
    }


def _embeddings(body: dict[str, Any], digest: str, model: str, prompt_tokens: int) -> dict[str, Any]:
    chance = random.Random(digest)
    count = len(body["input"]) if isinstance(body.get("input"), list) else 1
    size = int(body.get("dimensions") or 8)
    vectors = [[round(chance.uniform(-1, 1), 6) for _ in range(size)] for _ in range(count)]
    return {
        "object": "list",
        "model": model,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)],
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }
