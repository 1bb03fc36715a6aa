"""Synthetic answers: a function of the request body (less `model`) and a seed, never of batch, time or custom_id.

They conform to the JSON Schema that a request asks for, and are labelled as synthetic in text and model. They are put
together as bytes: most of a batch is answered at the speed of reading it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import struct
from typing import Any, NamedTuple

import orjson

from pipeline.emulator.chance import Chance
from pipeline.emulator.leaves import WORDS
from pipeline.emulator.values import conforming

LABEL = "[synthetic] "
CHOICES_MAX, INPUTS_MAX, DIMENSIONS, DIMENSIONS_MAX = 128, 2_048, 8, 3_072
_PAIRS = [f"{one} {other}" for one in WORDS for other in WORDS]
_SAFE = b'{"filtered":false,"severity":"safe"}'
_FILTERS = b'{"hate":%b,"self_harm":%b,"sexual":%b,"violence":%b}' % ((_SAFE,) * 4)
_OF_PROMPT = b'"prompt_filter_results":[{"prompt_index":0,"content_filter_results":%b}],' % _FILTERS
_OF_CHOICE = b',"content_filter_results":' + _FILTERS
_HEAD = b'{"id":"chatcmpl-%b","object":"chat.completion","created":1700000000,"model":%b,"choices":['
_USAGE = (
    b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":0}}}'
)
_CHOICE = (
    b'{"index":%d,"finish_reason":"stop","logprobs":null,"message":{"role":"assistant","content":%b,"refusal":null}%b}'
)
_ONE_CHOICE = {
    True: _HEAD + _CHOICE % (0, b"%b", _OF_CHOICE) + b"]," + _OF_PROMPT + _USAGE,
    False: _HEAD + _CHOICE % (0, b"%b", b"") + b"]," + _USAGE,
}
"""The whole of an answer with one choice, with and without the results of content filters."""
_RESPONSE = (
    b'{"id":"resp_%b","object":"response","created_at":1700000000.0,"status":"completed","error":null,'
    b'"incomplete_details":null,"model":%b,"output":[{"id":"msg_%b","type":"message","role":"assistant",'
    b'"status":"completed","content":[{"type":"output_text","text":%b,"annotations":[]}]}],"usage":{"input_tokens":%d,'
    b'"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},"output_tokens":%d,"output_tokens_details":{"reasoning_tokens":0},'
    b'"total_tokens":%d}}'
)


class Answer(NamedTuple):
    """The body of a good response as JSON, and its tokens."""

    body: bytes
    input_tokens: int
    output_tokens: int


class BadRequest(ValueError):
    """What the service would answer with 400: code, the parameter at fault, and its words."""

    def __init__(self, code: str, param: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.message = message


def answer(url: str, body: dict[str, Any], seed: int, *, filters: bool = True) -> Answer:
    """A good response to a request body.

    Args:
        url: of the line; its end says whether it is chat, a response or embeddings.
        body: the request body; its `model` is taken out of it.
        seed: another seed, another answer.
        filters: whether it carries the results of content filters, as Azure's do.

    Raises:
        BadRequest: what is asked cannot be answered.
    """
    model = _named(str(body.pop("model", None)))
    try:
        content = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        raise BadRequest("invalid_value", "body", "The body is nested too deeply.") from None
    digest = hashlib.sha256(_key(seed) + content).hexdigest()[:32]
    input_tokens = max(1, len(content) // 4)
    if url.endswith("/embeddings"):
        return _embeddings(body, digest, model, input_tokens)
    name = digest.encode()
    if url.endswith("/responses"):
        if not body.get("input"):
            raise BadRequest("missing_required_parameter", "input", "Missing required parameter: 'input'.")
        text = _text(_format_of(body.get("text"), "format"), digest)
        tokens = max(1, len(text) // 4)
        found = _RESPONSE % (name, model, name, text, input_tokens, tokens, input_tokens + tokens)
        return Answer(found, input_tokens, tokens)
    return _chat(body, digest, model, input_tokens, filters=filters)


def _chat(body: dict[str, Any], digest: str, model: bytes, input_tokens: int, *, filters: bool) -> Answer:
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise BadRequest("missing_required_parameter", "messages", "Missing required parameter: 'messages'.")
    schema = _format_of(body, "response_format")
    count, name = body.get("n"), digest[:24].encode()
    if count is None or count == 1:
        text = _text(schema, digest)
        tokens = max(1, len(text) // 4)
        told = (name, model, text, input_tokens, tokens, input_tokens + tokens)
        return Answer(_ONE_CHOICE[filters] % told, input_tokens, tokens)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= CHOICES_MAX:
        raise BadRequest("invalid_value", "n", f"n must be 1 to {CHOICES_MAX}.")
    digests = [digest, *(hashlib.sha256(f"{digest}:{index}".encode()).hexdigest() for index in range(1, count))]
    texts = [_text(schema, one) for one in digests]
    tokens = max(1, sum(map(len, texts)) // 4)
    before, after = (_OF_PROMPT, _OF_CHOICE) if filters else (b"", b"")
    choices = b",".join(_CHOICE % (index, text, after) for index, text in enumerate(texts))
    usage = _USAGE % (input_tokens, tokens, input_tokens + tokens)
    return Answer(_HEAD % (name, model) + choices + b"]," + before + usage, input_tokens, tokens)


@functools.lru_cache(maxsize=16)
def _key(seed: int) -> bytes:
    return f"{seed}:".encode()


@functools.lru_cache(maxsize=16)
def _named(model: str) -> bytes:
    """The model's name in an answer."""
    return orjson.dumps(f"synthetic-{model[:200]}")


def _format_of(holder: Any, name: str) -> Any:
    """The JSON Schema asked for; True for any JSON object; None for plain text."""
    wanted = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_object":
        return True
    if wanted.get("type") == "json_schema":
        inner = wanted.get("json_schema")
        return (inner if isinstance(inner, dict) else wanted).get("schema", True)
    return None


def _text(schema: Any, digest: str) -> bytes:
    """The text of an answer, as a JSON string."""
    number = int(digest[:14], 16)
    if schema is None:
        pairs = _PAIRS
        return (
            f'"{LABEL}{pairs[number % 676]} {pairs[(number >> 10) % 676]} {pairs[(number >> 20) % 676]} '
            f'{pairs[(number >> 30) % 676]} {digest[:8]}"'
        ).encode()
    if schema is True:
        return b'"{\\"synthetic\\":true}"'
    try:
        return orjson.dumps(orjson.dumps(conforming(schema, number)).decode())
    except (ValueError, TypeError, OverflowError) as error:
        raise BadRequest("invalid_value", "response_format", f"The schema cannot be answered: {error}.") from None


def _embeddings(body: dict[str, Any], digest: str, model: bytes, input_tokens: int) -> Answer:
    given, size, encoding = body.get("input"), body.get("dimensions"), body.get("encoding_format", "float")
    if not given or not isinstance(given, str | list):
        raise BadRequest("missing_required_parameter", "input", "Missing required parameter: 'input'.")
    size = DIMENSIONS if size is None else size
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= DIMENSIONS_MAX:
        raise BadRequest("invalid_value", "dimensions", f"dimensions must be 1 to {DIMENSIONS_MAX}.")
    if encoding not in ("float", "base64"):
        raise BadRequest("invalid_value", "encoding_format", "encoding_format must be float or base64.")
    count = inputs_of(given)
    if count > INPUTS_MAX:
        raise BadRequest("invalid_value", "input", f"input must hold at most {INPUTS_MAX} entries.")
    chance = Chance(int(digest, 16))
    data = []
    for index in range(count):
        vector = [chance.below(2_001) / 1_000 - 1 for _ in range(size)]
        length = math.sqrt(sum(value * value for value in vector)) or 1.0
        # As single floats, which is what the service computes with.
        packed = struct.pack(f"<{size}f", *[value / length for value in vector])
        value = base64.b64encode(packed).decode() if encoding == "base64" else struct.unpack(f"<{size}f", packed)
        data.append({"object": "embedding", "index": index, "embedding": value})
    found = b'{"object":"list","model":%b,"data":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
    return Answer(found % (model, orjson.dumps(data), input_tokens, input_tokens), input_tokens, 0)


def inputs_of(given: Any) -> int:
    """How many inputs an embeddings request has: a text, a list of tokens, or a list of either."""
    if not isinstance(given, list):
        return 1
    return 1 if given and all(isinstance(part, int) for part in given) else len(given)
