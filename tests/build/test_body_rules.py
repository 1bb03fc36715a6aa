"""What a request body may hold, by the kind of request: each refusal with its place and what to write."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.build.body_rules import check_body, inputs_of
from pipeline.errors import PromptError

USER = {"role": "user", "content": "hello"}


def content(*parts: Any) -> dict[str, Any]:
    """A user message of these parts."""
    return {"role": "user", "content": list(parts)}


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("chat", {"stream": True}, "body.stream cannot be used, as a batch gives whole answers; remove it"),
    ("chat", {"stream": "{{ s }}"}, "body.stream cannot be used, as a batch gives whole answers; remove it"),
    ("chat", {"stream_options": {"include_usage": True}}, "body.stream_options cannot be used, as a batch gives whole"),
    ("chat", {"data_sources": []}, "body.data_sources cannot be used, as On Your Data gives empty answers in batches"),
    ("responses", {"background": True}, "body.background cannot be used, as a batch runs in the background by itself"),
    ("responses", {"stream": True}, "body.stream cannot be used"),
    ("chat", {"n": "{{ n }}"}, "body.n must not be a template, as it decides the type of the answer column"),
    ("chat", {"n": 129}, "body.n must be a whole number from 1 to 128, found 129"),
    ("chat", {"input": "x"}, "body.input is not known to url chat; write messages instead"),
    ("chat", {"instructions": "x"}, "body.instructions is not known to url chat; write a message with role system"),
    ("chat", {"max_output_tokens": 5}, "body.max_output_tokens is not known to url chat; write max_completion_tokens"),
    ("responses", {"messages": [USER]}, "body.messages is not known to url responses; write input instead"),
    ("responses", {"max_tokens": 5}, "body.max_tokens is not known to url responses; write max_output_tokens instead"),
    ("responses", {"max_completion_tokens": 5}, "body.max_completion_tokens is not known to url responses"),
    ("responses", {"response_format": {}}, "body.response_format is not known to url responses; write text.format"),
    ("responses", {"reasoning_effort": "low"}, "body.reasoning_effort is not known to url responses; write reasoning."),
    ("embeddings", {"messages": [USER]}, "body.messages is not known to url embeddings; write input instead"),
    ("chat", {"messages": [USER] * 2049}, "body.messages has 2,049 messages, and the service takes 2,048; use fewer"),
    ("chat", {"messages": [{"role": "user", "content": 5}]}, "body.messages[0].content must be text or a list of"),
    ("chat", {"messages": [content("a")]}, "body.messages[0].content[0] must be a mapping with type, found text"),
    (
        "chat",
        {"messages": [USER, content({"type": "input_text", "text": "a"})]},
        "body.messages[1].content[0] has type input_text, which url chat does not know; write text",
    ),
    ("chat", {"messages": [content({"type": "input_image"})]}, "which url chat does not know; write image_url"),
    (
        "chat",
        {"messages": [content({"type": "image_url", "image_url": "https://x"})]},
        "body.messages[0].content[0].image_url must be a mapping with the text url, found text",
    ),
    ("chat", {"messages": [content(*[IMAGE] * 51)]}, "a request has 51 images, and the service takes 50; use fewer"),
    ("responses", {"input": [5]}, "body.input[0] must be a mapping with role and content, found a number"),
    (
        "responses",
        {"input": [content({"type": "text", "text": "a"})]},
        "body.input[0].content[0] has type text, which url responses does not know; write input_text",
    ),
    ("responses", {"input": [content(IMAGE)]}, "which url responses does not know; write input_image"),
    (
        "responses",
        {"input": [content({"type": "input_image", "image_url": {"url": "x"}})]},
        "body.input[0].content[0].image_url must be text on responses, found a mapping",
    ),
    ("embeddings", {"input": []}, "body.input must be text or a list that is not empty"),
    ("embeddings", {"input": ["a", 1]}, "body.input must be text, a list of texts, or tokens as numbers"),
    ("embeddings", {"input": [{"a": 1}]}, "body.input must be text, a list of texts, or tokens as numbers"),
    ("embeddings", {"input": ["a"] * 2049}, "body.input has 2,049 inputs, and the service takes 2,048 a request"),
]


@pytest.mark.parametrize(("kind", "more", "sentence"), REFUSED, ids=[f"{k}-{s[:40]}" for k, _, s in REFUSED])
def test_refuses_what_the_service_would_refuse_on_every_line(kind: str, more: dict[str, Any], sentence: str) -> None:
    """One sentence with the place in the body, and what to write or why not."""
    good: dict[str, Any] = {"messages": [USER]} if kind == "chat" else {"input": "hello"}
    with pytest.raises(PromptError) as caught:
        check_body("p.yaml", kind, {**good, **more})
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("Prompt file p.yaml: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("chat", {"messages": [USER], "stream": False, "stream_options": None, "background": False, "n": 2, "new": {}}),
        ("chat", {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": []}], "max_tokens": 5}),
        ("chat", {"messages": [content({"type": "text", "text": "a"}, *[IMAGE] * 50)]}),
        ("chat", {"messages": [content({"type": "input_audio", "input_audio": {}}, {"type": "later"})]}),
        ("responses", {"input": [content({"type": "input_text", "text": "a"}), {"type": "item_reference"}], "n": "x"}),
        ("responses", {"input": [content({"type": "input_image", "file_id": "f"})], "instructions": "be brief"}),
        ("embeddings", {"input": ["a", "b"], "dimensions": 8}),
        ("embeddings", {"input": [1, 2, 3]}),
        ("embeddings", {"input": [[1, 2], [3]]}),
    ],
)
def test_lets_everything_else_through(kind: str, body: dict[str, Any]) -> None:
    """Parameters that are off, unknown ones, and parts of kinds yet to come are the service's own business."""
    check_body("p.yaml", kind, body)


@pytest.mark.parametrize(
    ("asked", "inputs"), [("a", 1), (["a"], 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2)]
)
def test_inputs_of_embeddings_are_counted_as_the_service_counts_them(asked: Any, inputs: int) -> None:
    """Texts, or lists of tokens; a list of numbers is one input."""
    assert inputs_of("embeddings", {"input": asked}) == inputs
    assert inputs_of("responses", {"input": asked}) == 1
