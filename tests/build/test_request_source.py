"""Finished request lines: checked whole, ids kept, bodies as they were written, url and model those of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.build.files import list_files
from pipeline.build.request_source import BODY_COLUMN, RequestTemplate, holds_requests, open_requests
from pipeline.checking import FileCheck, Rules
from pipeline.config import ServiceKind
from pipeline.errors import SourceError
from pipeline.ids import CUSTOM_ID_COLUMN


def request(number: int = 0, **more: Any) -> dict[str, Any]:
    """A good request."""
    body = {"model": "m", "messages": [{"role": "user", "content": f"é {number}"}]}
    return {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body, **more}


def rendered(path: Path) -> list[bytes]:
    """The lines that go out, under another model and url."""
    template, lines = RequestTemplate(), []
    for block in open_requests([path]).blocks(block_bytes=200):
        ids = pa.concat_arrays(block[CUSTOM_ID_COLUMN].chunks)
        found = template.render(block, ids, model="new", url="/chat/completions")
        texts = [text.encode() for text in found.lines.to_pylist()]
        assert found.line_bytes.to_pylist() == [len(text) for text in texts]
        assert all(0 < tokens <= len(text) for tokens, text in zip(found.tokens.to_pylist(), texts, strict=True))
        lines += texts
    return lines


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            b'{"custom_id":"a","method":"POST","url":"/chat/completions","body":{"model":"m","messages":[]}}',
            b'{"custom_id":"a","method":"POST","url":"/chat/completions","body":{"model":"new","messages":[]}}\n',
        ),
        (
            b' { "body" : { "x" : 1.50 , "model" : "m" , "big" : 123456789012345678901 , "t" : "\\u00e9\\u2028" } ,'
            b' "url":"/v1/chat/completions","custom_id":"\\u0041\\"","method":"POST", "more": 1 }\r',
            b'{"custom_id":"A\\"","method":"POST","url":"/chat/completions",'
            b'"body":{"model":"new","x":1.50,"big":123456789012345678901,"t":"\\u00e9\\u2028"}}\n',
        ),
        (
            b'{"custom_id":"a","method":"POST","url":"/chat/completions","body":{"model":"m"}}',
            b'{"custom_id":"a","method":"POST","url":"/chat/completions","body":{"model":"new"}}\n',
        ),
        (
            b'{"custom_id":"a","method":"POST","url":"/chat/completions","body":{ "messages": [ 1 ] }}',
            b'{"custom_id":"a","method":"POST","url":"/chat/completions","body":{"model":"new","messages": [ 1 ]}}\n',
        ),
    ],
)
def test_a_body_goes_out_as_it_was_written(tmp_path: Path, line: bytes, expected: bytes) -> None:
    """Numbers, escapes and nesting byte for byte; only the model is another, and url and custom_id around it."""
    (tmp_path / "r.jsonl").write_bytes(line)
    assert rendered(tmp_path / "r.jsonl") == [expected]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\"\\é", max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    bodies=st.lists(st.dictionaries(st.text("xyzé\"\\{", max_size=4), JSON, max_size=4), min_size=1, max_size=6),
    ascii_only=st.booleans(),
    separators=st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " :  ")]),
    at=st.integers(0, 4),
)
def test_any_request_goes_out_equal_but_for_its_model(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    bodies: list[dict[str, Any]],
    ascii_only: bool,
    separators: tuple[str, str],
    at: int,
) -> None:
    """Whatever wrote the lines; and what goes out passes the check."""
    path = tmp_path_factory.mktemp("requests") / "r.jsonl"
    wanted = []
    with path.open("w", encoding="utf-8", newline="") as file:
        for number, body in enumerate(bodies):
            items = list(body.items())
            items.insert(at, ("model", "m"))
            line = request(number, body=dict(items))
            file.write(json.dumps(line, ensure_ascii=ascii_only, separators=separators) + "\n")
            wanted.append({**request(number), "url": "/chat/completions", "body": {**body, "model": "new"}})
    lines = rendered(path)
    assert [orjson.loads(line) for line in lines] == wanted
    path.write_bytes(b"".join(lines))
    assert [looked.faults for looked in FileCheck(path, Rules.of(ServiceKind.AZURE)).blocks()] == [[], []]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (b"{oops", "line 2: not JSON"),
        (b"[]", "line 2: no JSON object"),
        (orjson.dumps({**request(1), "custom_id": 5}), "line 2: custom_id is missing, or is not text"),
        (orjson.dumps({**request(1), "body": {}}), "line 2: body is missing, or is not an object"),
        (orjson.dumps(request(1, method="GET")), "line 2: method is not POST"),
        (orjson.dumps(request(1, url="/v1/embeddings")), "line 2: url '/v1/embeddings' is of another kind than before"),
        (orjson.dumps(request(1, url="/v1/files")), "line 2: url '/v1/files' is none of"),
        (orjson.dumps(request(1, body={"stream": True})), "line 2: body.stream cannot be used"),
        (orjson.dumps(request(1, body={"model": 5})), "line 2: body.model is no text"),
        (b'{"custom_id":"x",' + orjson.dumps(request(1))[1:], "line 2: the key 'custom_id' stands twice"),
        (orjson.dumps(request(0)), "request 2 has the custom_id of"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_request_is_named(tmp_path: Path, second: bytes, words: str) -> None:
    """Before anything is sent, with file and line."""
    (tmp_path / "r.jsonl").write_bytes(orjson.dumps(request(0)) + b"\n" + second + b"\n")
    with pytest.raises(SourceError) as told:
        open_requests([tmp_path / "r.jsonl"])
    assert words in str(told.value)
    assert "r.jsonl" in str(told.value)


def test_models_kinds_and_several_answers_are_told(tmp_path: Path) -> None:
    """One model or two, the kind by the url, whether any line asks for more than one answer; rows from any one on."""
    for number, more in enumerate(({}, {"body": {"model": "x", "n": 2}})):
        (tmp_path / f"{number}.jsonl").write_bytes(orjson.dumps(request(number, **more)) + b"\n")
    one = open_requests([tmp_path / "0.jsonl"])
    assert (one.kind, one.model, one.models, one.several, one.rows) == ("chat", "m", "", False, 1)
    both = open_requests([tmp_path])
    assert both.model is None
    assert "'m' in" in both.models
    assert "1.jsonl, line 1" in both.models
    assert (both.several, both.rows) == (True, 2)
    assert [block[BODY_COLUMN].to_pylist() for block in both.blocks(start_row=1)] == [['"n":2']]
    assert one.digest != both.digest


def test_request_lines_are_told_from_a_table_by_the_first_line(tmp_path: Path) -> None:
    """All four keys make a request; anything else is a table."""
    (tmp_path / "r.jsonl").write_bytes(b"\n" + orjson.dumps(request(0)))
    (tmp_path / "t.jsonl").write_bytes(orjson.dumps({"custom_id": "a", "body": {}}))
    assert holds_requests(list_files([tmp_path / "r.jsonl"]))
    assert not holds_requests(list_files([tmp_path / "t.jsonl"]))
