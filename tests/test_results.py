"""Result lines in every shape of the contract (§6) and of its relatives, and files in every condition."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from copy import deepcopy
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import results
from pipeline.results import RESULTS, gives_several, read_results

USAGE = {
    "prompt_tokens": 21,
    "completion_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def chat(content: Any = "Lisbon", finish: Any = "stop", **more: Any) -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": content, **more}
    return {"model": "gpt-4.1", "choices": [{"index": 0, "finish_reason": finish, "message": message}], "usage": USAGE}


def response(text: str = "Lisbon", **more: Any) -> dict[str, Any]:
    """A body of the Responses API."""
    usage = {"input_tokens": 21, "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 1}}
    message = {"type": "message", "content": [{"type": "output_text", "text": text}]}
    output = [{"type": "reasoning", "summary": []}, message]
    return {"object": "response", "status": "completed", "model": "m", "output": output, "usage": usage, **more}


def line(custom_id: Any = "r-1", body: Any = None, status: Any = 200, error: Any = None) -> dict[str, Any]:
    """A result line."""
    answer = {"status_code": status, "request_id": "q", "body": chat() if body is None else body}
    return {"custom_id": custom_id, "response": answer, "error": error}


def read(tmp_path: Path, content: bytes, kind: str = "chat", **options: Any) -> list[dict[str, Any]]:
    """What a file of that content gives."""
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    tables = list(read_results(path, kind, **options))
    assert all(table.schema.equals(RESULTS) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def one(tmp_path: Path, value: Any, kind: str = "chat", **options: Any) -> dict[str, Any]:
    """What one line gives."""
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    (row,) = read(tmp_path, content + b"\n", kind, **options)
    return row


FILTERED = {"status_code": 400, "body": {"error": {"code": "content_filter", "message": "no"}}}
SHAPES: list[tuple[str, Any, str, dict[str, Any]]] = [
    ("good", line(), "chat", {"usable": True, "answer": "Lisbon", "finish_reason": "stop", "http_status": 200}),
    ("usage", line(), "chat", {"prompt_tokens": 21, "completion_tokens": 2, "cached_tokens": 5, "reasoning_tokens": 1}),
    ("no usage", line(body={**chat(), "usage": None}), "chat", {"usable": True, "prompt_tokens": None}),
    ("length", line(body=chat("Lis", "length")), "chat", {"usable": True, "finish_reason": "length"}),
    ("empty text", line(body=chat("")), "chat", {"usable": True, "answer": ""}),
    ("content parts", line(body=chat([{"type": "text", "text": "a"}, {"text": "b"}])), "chat", {"answer": "ab"}),
    ("refusal", line(body=chat(None, refusal="I cannot")), "chat", {"usable": True, "answer": "I cannot"}),
    ("tool calls", line(body=chat(None, tool_calls=[{"id": "c"}])), "chat", {"usable": True, "answer": '[{"id":"c"}]'}),
    ("no choices", line(body={**chat(), "choices": []}), "chat", {"error_code": "malformed_result"}),
    ("null choices", line(body={**chat(), "choices": None}), "chat", {"error_code": "malformed_result"}),
    ("nothing said", line(body=chat(None)), "chat", {"usable": False, "error_code": "malformed_result"}),
    ("filtered", line(body=chat("half", "content_filter")), "chat", {"error_code": "content_filter", "usable": False}),
    (
        "filtered prompt",
        {"custom_id": "r-1", "response": FILTERED},
        "chat",
        {"error_code": "content_filter", "http_status": 400, "error_message": "no"},
    ),
    (
        "HTTP failure in the body",
        line(status=429, body={"error": {"code": "429", "message": "slow"}}),
        "chat",
        {"usable": False, "http_status": 429, "error_code": "429", "error_message": "slow"},
    ),
    ("numeric code", line(status=429, body={"error": {"code": 429}}), "chat", {"error_code": "429"}),
    ("error as text", line(status=500, body={"error": "boom"}), "chat", {"http_status": 500, "error_message": "boom"}),
    ("failure under 200", line(body={"error": {"code": 404}}), "chat", {"usable": False, "http_status": 404}),
    ("failure without body", line(status=503, body=""), "chat", {"http_status": 503, "error_code": "http_503"}),
    ("status 0", line(status=0), "chat", {"usable": False, "http_status": 0, "error_code": "http_0"}),
    ("status as text", line(status="200"), "chat", {"usable": True, "http_status": 200}),
    ("status null", line(status=None), "chat", {"usable": True}),
    (
        "expired",
        {"custom_id": "r-1", "response": None, "error": {"code": "batch_expired", "message": "late"}},
        "chat",
        {"usable": False, "http_status": None, "error_code": "batch_expired", "error_message": "late"},
    ),
    ("error without response", {"custom_id": "r-1", "error": {"message": "x"}}, "chat", {"error_code": "error"}),
    ("line error as text", {"custom_id": "r-1", "error": "gone"}, "chat", {"error_message": "gone"}),
    ("empty error", {**line(), "error": {}}, "chat", {"usable": True}),
    ("empty error in the body", line(body={**chat(), "error": {}}), "chat", {"usable": True, "answer": "Lisbon"}),
    ("code as a list", line(error={"code": ["x"]}), "chat", {"usable": False, "error_code": "['x']"}),
    ("code as an object", line(status=400, body={"error": {"code": {"a": 1}}}), "chat", {"http_status": 400}),
    (
        "tool calls nested too deeply",
        line(body=chat(None, tool_calls=json.loads("[" * 200 + "]" * 200))),
        "chat",
        {"usable": True, "answer": "[" * 200 + "]" * 200},
    ),
    ("error of nulls", line(error={"code": None, "message": None}), "chat", {"usable": True}),
    ("no error key", {"custom_id": "r-1", "response": line()["response"]}, "chat", {"usable": True}),
    ("neither", {"custom_id": "r-1", "response": None, "error": None}, "chat", {"error_code": "malformed_result"}),
    ("only an id", {"custom_id": "r-1"}, "chat", {"error_code": "malformed_result"}),
    ("null body", {"custom_id": "r-1", "response": {"status_code": 200, "body": None}}, "chat", {"usable": False}),
    ("body as JSON text", line(body=json.dumps(chat())), "chat", {"usable": True, "answer": "Lisbon"}),
    ("body as other text", line(body="<html>"), "chat", {"error_code": "malformed_result"}),
    ("unknown fields", {**line(), "id": "batch_req_1", "x": [1, {"y": 2}]}, "chat", {"usable": True}),
    ("big numbers", line(body={**chat(), "seed": 2**80}), "chat", {"usable": True}),
    ("big count", line(body={**chat(), "usage": {"prompt_tokens": 2**70}}), "chat", {"prompt_tokens": None}),
    ("odd count", line(body={**chat(), "usage": {"prompt_tokens": True}}), "chat", {"prompt_tokens": None}),
    ("U+2028", line(body=chat("a\u2028b")), "chat", {"answer": "a\u2028b"}),
    ("NUL", line(body=chat("a\x00b")), "chat", {"answer": "a\x00b"}),
    ("lone surrogate", line(body=chat("a\ud800b")), "chat", {"usable": True, "answer": "a\ufffdb"}),
    ("surrogate pair", line(body=chat("a😀b")), "chat", {"usable": True, "answer": "a😀b"}),
    ("response", line(body=response()), "responses", {"usable": True, "answer": "Lisbon", "finish_reason": "stop"}),
    ("response usage", line(body=response()), "responses", {"prompt_tokens": 21, "reasoning_tokens": 1}),
    (
        "incomplete for length",
        line(body=response(status="incomplete", incomplete_details={"reason": "max_output_tokens"})),
        "responses",
        {"usable": True, "finish_reason": "length"},
    ),
    (
        "incomplete for the filter",
        line(body=response(status="incomplete", incomplete_details={"reason": "content_filter"})),
        "responses",
        {"usable": False, "error_code": "content_filter"},
    ),
    (
        "response refusal",
        line(body=response(output=[{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}])),
        "responses",
        {"usable": True, "answer": "no"},
    ),
    (
        "response call",
        line(body=response(output=[{"type": "function_call", "name": "f"}])),
        "responses",
        {"usable": True, "answer": '[{"type":"function_call","name":"f"}]'},
    ),
    ("response failed", line(body=response(output=[], status="failed")), "responses", {"usable": False}),
    (
        "response failed with an error",
        line(body=response(error={"code": "server_error", "message": "x"})),
        "responses",
        {"usable": False, "error_code": "server_error", "http_status": 500},
    ),
    ("vector beyond all floats", line(body={"data": [{"embedding": [10**400]}]}), "embeddings", {"usable": False}),
    ("vector of nothing", line(body={"data": []}), "embeddings", {"error_code": "malformed_result"}),
    ("embedding", line(body={"data": [{"embedding": [0.5, 1]}]}), "embeddings", {"answer": "[0.5,1.0]"}),
    (
        "embedding in base64",
        line(body={"data": [{"embedding": base64.b64encode(struct.pack("<2f", 0.5, 2)).decode()}]}),
        "embeddings",
        {"answer": "[0.5,2.0]"},
    ),
    (
        "several embeddings",
        line(body={"data": [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1]}]}),
        "embeddings",
        {"answer": "[[1.0],[2.0]]"},
    ),
]


@pytest.mark.parametrize(("value", "kind", "expected"), [shape[1:] for shape in SHAPES], ids=[s[0] for s in SHAPES])
def test_every_shape_gives_its_row(tmp_path: Path, value: Any, kind: str, expected: dict[str, Any]) -> None:
    """Each shape says what it means, with the id it came with."""
    row = one(tmp_path, value, kind)
    assert row["custom_id"] == "r-1"
    assert {name: row[name] for name in expected} == expected


def test_several_choices_are_a_list_in_their_order(tmp_path: Path) -> None:
    """Choices sort by index; a filtered one is null beside good ones; with n above 1 even one choice is a list."""
    choice = {"finish_reason": "stop", "message": {"content": "b"}}
    body = {"choices": [{**choice, "index": 1}, {"index": 0, "finish_reason": "stop", "message": {"content": "a"}}]}
    assert one(tmp_path, line(body=body))["answer"] == '["a","b"]'
    body["choices"].append({"index": 2, "finish_reason": "content_filter", "message": {"content": "x"}})
    assert one(tmp_path, line(body=body))["answer"] == '["a","b",null]'
    assert one(tmp_path, line(), several=True)["answer"] == '["Lisbon"]'


def test_who_asks_for_several_answers() -> None:
    """`n` above 1, or an embedding of several texts."""
    assert gives_several("chat", {"n": 2})
    assert not gives_several("chat", {"n": 1})
    assert gives_several("embeddings", {"input": ["a", "b"]})
    assert not gives_several("embeddings", {"input": [1, 2]})


@pytest.mark.parametrize(
    ("text", "custom_id"),
    [
        (b'{"custom_id":"r-2","response":{"status', "r-2"),
        (b'{"custom_id":"r-2"} trailing', "r-2"),
        (b'{"custom_id": 5}', None),
        (b"null", None),
        (b"true", None),
        (b"[1]", None),
        (b"garbage", None),
        (b'{"custom_id":"r-2","response":"\xff"}', "r-2"),
        (b"\x00\x00\x00", None),
        (b'{"custom_id":"r-2","z":' + b"[" * 100_000, "r-2"),
        (b'{"custom_id":"r-2","z":' + b"9" * 5_000 + b"}", "r-2"),
    ],
)
def test_a_bad_line_costs_that_line(tmp_path: Path, text: bytes, custom_id: str | None) -> None:
    """First, in the middle or last: its neighbours are read, and its id is told where it can be seen."""
    good = [json.dumps(line(f"r-{index}")).encode() for index in (1, 3)]
    for lines in ([text, *good], [good[0], text, good[1]], [*good, text], [text, text]):
        rows = read(tmp_path, b"\n".join(lines) + b"\n")
        kept = [each for each in ("r-1", "r-3") if any(each.encode() in text and text in good for text in lines)]
        assert [row["custom_id"] for row in rows if row["usable"]] == kept
        bad = [row for row in rows if not row["usable"]]
        assert {row["custom_id"] for row in bad} == {custom_id}
        assert {row["error_code"] for row in bad} == {"malformed_result"}


def test_whole_lines_that_lost_their_newline_are_both_read(tmp_path: Path) -> None:
    """Two objects on one line are two results, and nobody else's row moves."""
    lines = [json.dumps(line(f"r-{index}", chat(f"a{index}"))) for index in range(4)]
    rows = read(tmp_path, f"{lines[0]}\n{lines[1]}{lines[2]}\n{lines[3]}\n".encode())
    assert [(row["custom_id"], row["answer"]) for row in rows] == [(f"r-{i}", f"a{i}") for i in range(4)]


def test_blank_lines_line_ends_and_a_byte_order_mark_mean_nothing(tmp_path: Path) -> None:
    """Blank lines are no results, \\r\\n ends a line, a mark at the start is skipped, the last newline may lack."""
    text = json.dumps(line()).encode()
    for content in (text, b"\n\n" + text + b"\n \n", text + b"\r\n", b"\xef\xbb\xbf" + text + b"\n"):
        assert [row["answer"] for row in read(tmp_path, content)] == ["Lisbon"]


def test_absent_and_empty_files_hold_nothing(tmp_path: Path) -> None:
    """No file, no byte, or nothing but newlines."""
    assert list(read_results(tmp_path / "none.jsonl", "chat")) == []
    assert read(tmp_path, b"") == read(tmp_path, b"\n\n") == []


def test_compressed_files_are_read_as_they_are(tmp_path: Path) -> None:
    """`.zst` and `.gz` by their endings."""
    text = json.dumps(line()).encode()
    (tmp_path / "r.jsonl.zst").write_bytes(zstandard.compress(text))
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(text))
    for name in ("r.jsonl.zst", "r.jsonl.gz"):
        assert [table.num_rows for table in read_results(tmp_path / name, "chat")] == [1]


def test_raw_is_the_whole_body(tmp_path: Path) -> None:
    """Every field and every digit of the body, failures included."""
    body = {**chat(), "seed": 2**80, "x": None}
    assert json.loads(one(tmp_path, line(body=body), raw=True)["raw"]) == body
    failed = line(status=400, body={"error": {"code": "x"}})
    assert json.loads(one(tmp_path, failed, raw=True)["raw"]) == {"error": {"code": "x"}}


def test_lines_longer_than_a_piece_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a file is cut into pieces changes nothing."""
    content = b"".join(json.dumps(line(f"r-{i}", chat("x" * i * 30))).encode() + b"\n" for i in range(60))
    whole = read(tmp_path, content)
    assert [len(row["answer"]) for row in whole] == [i * 30 for i in range(60)]
    for size in (100, 1_000, 65_536):
        monkeypatch.setattr(results, "PIECE_BYTES", size)
        assert read(tmp_path, content) == whole


_TEXTS = st.text(max_size=8)
_BODIES = st.one_of(
    st.builds(chat, _TEXTS | st.none(), st.sampled_from(["stop", "length", "content_filter", None])),
    st.builds(lambda n: {**chat(), "usage": {"prompt_tokens": n}}, st.integers(-(2**65), 2**65) | st.none()),
    st.just({"choices": [{"index": 1, "message": {"content": "b"}}, {"index": 0, "message": {"content": "a"}}]}),
    st.builds(response, _TEXTS),
    st.builds(lambda s: response(status=s), st.sampled_from(["incomplete", "completed", "failed"])),
    st.just(response(output=[])),
    st.recursive(
        st.none() | st.booleans() | st.integers() | _TEXTS, lambda s: st.dictionaries(_TEXTS, s), max_leaves=5
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(_BODIES, st.sampled_from([200, 201, 0, 429, None, "200"]), st.none() | _TEXTS), max_size=6),
    st.sampled_from(["chat", "responses"]),
)
def test_reading_at_once_says_what_reading_line_by_line_says(lines: list[Any], kind: str) -> None:
    """The quick reader is never of another opinion than the slow one."""
    made = [line(f"r-{index}", body, status, error) for index, (body, status, error) in enumerate(lines)]
    content = b"".join(json.dumps(each).encode() + b"\n" for each in made)
    quick = results._vectorised(memoryview(content), kind) if content else None
    slow = results._by_line(memoryview(content), kind, several=False, raw=False)
    assert quick is None or quick.equals(slow)


def test_the_quick_reader_is_the_one_that_reads(tmp_path: Path) -> None:
    """The common shape never goes line by line, even with a few failures among it."""
    lines = [line(f"r-{i}") for i in range(50)] + [line("r-50", status=429, body={"error": {"code": "429"}})]
    content = b"".join(orjson.dumps(each) + b"\n" for each in lines)
    table = results._vectorised(memoryview(content), "chat")
    assert isinstance(table, pa.Table)
    assert table["custom_id"].to_pylist() == [f"r-{i}" for i in range(51)]


_ODD = [None, True, 0, -1, 2**70, 1e300, "", "x", "content_filter", [], {}, [None], [{}], {"code": [1]}, {"index": "a"}]
_VECTORS = {"data": [{"index": 0, "embedding": [0.5, 1]}, {"index": 1, "embedding": "AAAA"}]}
_SOUND = {
    "chat": [
        chat(),
        chat([{"type": "text", "text": "a"}]),
        chat(None, tool_calls=[{"id": "c"}]),
        {"error": {"code": 1}},
    ],
    "responses": [response(), response(status="incomplete", incomplete_details={"reason": "x"})],
    "embeddings": [_VECTORS],
}


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value where something else may stand."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(_SOUND)), st.randoms(use_true_random=False))
def test_whatever_stands_anywhere_in_a_line_gives_a_row(kind: str, chance: Any) -> None:
    """No error, one row a line with its id, and the quick reader says what the slow one says."""
    lines = []
    for index in range(chance.randrange(1, 4)):
        made = json.loads(json.dumps(line(f"r-{index}", chance.choice(_SOUND[kind]), chance.choice([200, 200, 429]))))
        for _ in range(chance.randrange(3)):
            holder, key = chance.choice([place for place in _places(made) if place[1] != "custom_id"])
            if isinstance(holder, dict) and chance.random() < 0.3:
                del holder[key]
            else:
                holder[key] = deepcopy(chance.choice(_ODD))
        lines.append(json.dumps(made).encode() + b"\n")
    content = memoryview(b"".join(lines))
    slow = results._by_line(content, kind, several=False, raw=False)
    assert slow["custom_id"].to_pylist() == [f"r-{index}" for index in range(len(lines))]
    assert results._by_line(content, kind, several=True, raw=True).num_rows == len(lines)
    quick = results._vectorised(content, kind)
    assert quick is None or quick.equals(slow)


def test_a_body_that_cannot_be_written_again_costs_only_its_raw_text(tmp_path: Path) -> None:
    """Nested as deeply as can just be read: the answer stands."""
    text = line(body={**chat(), "x": "DEEP"})
    for depth in (300, 900, 980, 1_000):
        row = one(tmp_path, json.dumps(text).replace('"DEEP"', "[" * depth + "]" * depth).encode(), raw=True)
        assert row["custom_id"] == "r-1"
        assert row["usable"] or row["error_code"] == "malformed_result"
