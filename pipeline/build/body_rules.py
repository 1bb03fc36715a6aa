"""What a request body must have and must not have, by the kind of request (contract §5).

Only what the service is known to refuse on every line, or to answer with nothing, is refused here, before anything is
sent; every other parameter passes through untouched, known or not. Knows nothing of templates' columns or of rows.
"""

from __future__ import annotations

from typing import Any

from pipeline.build.prompt_words import describe, has_template, hint
from pipeline.errors import PromptError

MESSAGES_MAX = 2_048
"""Most messages of a request (contract §5)."""

INPUTS_MAX = 2_048
"""Most inputs of one embeddings request."""

IMAGES_MAX = 50
"""Most images of a request (contract §5)."""

CHOICES_MAX = 128
"""Most answers that one chat request may ask for with `n`."""

_REQUIRED = {"chat": "messages", "responses": "input", "embeddings": "input"}

_OFF = (None, False)
_REFUSED = {
    "stream": "as a batch gives whole answers; remove it",
    "stream_options": "as a batch gives whole answers and streams nothing; remove it",
    "background": "as a batch runs in the background by itself; remove it",
    "data_sources": (
        "as On Your Data gives empty answers in batches; put what the model is to know into the prompt, from a column"
    ),
}
"""Keys that no batch can have, with the reason; null and false say nothing and pass."""

_ELSEWHERE = {
    "chat": {
        "input": "messages",
        "instructions": "a message with role system",
        "max_output_tokens": "max_completion_tokens",
    },
    "responses": {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "max_completion_tokens": "max_output_tokens",
        "response_format": "text.format",
        "reasoning_effort": "reasoning.effort",
    },
    "embeddings": {"messages": "input"},
}
"""Keys of another kind of request, which the service refuses on each line, with what is written instead."""

_PARTS = {
    "chat": {"input_text": "text", "output_text": "text", "input_image": "image_url", "input_file": "file"},
    "responses": {"text": "input_text", "image_url": "input_image", "file": "input_file"},
}
"""Types of content parts of another kind of request, with what is written instead."""


def check_body(name: str, kind: str, body: dict[str, Any]) -> None:
    """Check a request body, without `model`, against what its kind of request takes in batches.

    Args:
        name: of the prompt file, for messages.
        kind: chat, responses or embeddings.
        body: as read, templates in it.

    Raises:
        PromptError: the first fault, with its place and what to write.
    """
    required = _REQUIRED[kind]
    for key, reason in _REFUSED.items():
        if not any(body.get(key) is off for off in _OFF):
            raise PromptError(f"Prompt file {name}: body.{key} cannot be used, {reason}.")
    for key, instead in _ELSEWHERE[kind].items():
        if key in body:
            raise PromptError(f"Prompt file {name}: body.{key} is not known to url {kind}; write {instead} instead.")
    if required not in body:
        raise PromptError(
            f"Prompt file {name}: body.{required} is missing, which url {kind} needs{hint(required, body)}."
        )
    if kind == "chat":
        _check_messages(name, body["messages"])
        _check_n(name, body.get("n"))
    elif kind == "responses":
        _check_input(name, body["input"])
    else:
        _check_inputs(name, body["input"])
    images = sum(1 for _ in image_parts(kind, body))
    if images > IMAGES_MAX:
        raise PromptError(
            f"Prompt file {name}: a request has {images} images, and the service takes {IMAGES_MAX}; use fewer."
        )


def inputs_of(kind: str, body: dict[str, Any]) -> int:
    """How many inputs a request has, by which the service counts embeddings: texts, or lists of tokens."""
    asked = body.get("input")
    if kind != "embeddings" or not isinstance(asked, list):
        return 1
    return len(asked) if all(isinstance(entry, str | list) for entry in asked) else 1


def image_parts(kind: str, body: dict[str, Any]) -> list[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """The content parts that hold an image, each with its place in the body."""
    wanted = {"chat": "image_url", "responses": "input_image"}.get(kind)
    key = _REQUIRED[kind]
    found: list[tuple[tuple[str | int, ...], dict[str, Any]]] = []
    messages = body.get(key)
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        content = message.get("content") if isinstance(message, dict) else None
        for number, part in enumerate(content if isinstance(content, list) else []):
            if isinstance(part, dict) and part.get("type") == wanted:
                found.append(((key, index, "content", number), part))
    return found


def _check_n(name: str, n: object) -> None:
    if isinstance(n, str) and has_template(n):
        raise PromptError(
            f"Prompt file {name}: body.n must not be a template, as it decides the type of the answer column."
        )
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= CHOICES_MAX):
        raise PromptError(f"Prompt file {name}: body.n must be a whole number from 1 to {CHOICES_MAX}, found {n!r}.")


def _check_messages(name: str, messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"Prompt file {name}: body.messages must be a list with at least one message.")
    if len(messages) > MESSAGES_MAX:
        raise PromptError(
            f"Prompt file {name}: body.messages has {len(messages):,} messages, and the service takes "
            f"{MESSAGES_MAX:,}; use fewer."
        )
    for index, message in enumerate(messages):
        where = f"body.messages[{index}]"
        if not isinstance(message, dict):
            raise PromptError(
                f"Prompt file {name}: {where} must be a mapping with role and content, found {describe(message)}."
            )
        if "role" not in message:
            raise PromptError(f"Prompt file {name}: {where}.role is missing{hint('role', message)}.")
        _check_content(name, "chat", f"{where}.content", message.get("content"))


def _check_input(name: str, asked: object) -> None:
    if not isinstance(asked, str | list) or not asked:
        raise PromptError(f"Prompt file {name}: body.input must be text or a list that is not empty.")
    for index, item in enumerate(asked if isinstance(asked, list) else []):
        if not isinstance(item, dict):
            raise PromptError(
                f"Prompt file {name}: body.input[{index}] must be a mapping with role and content, "
                f"found {describe(item)}."
            )
        _check_content(name, "responses", f"body.input[{index}].content", item.get("content"))


def _check_inputs(name: str, asked: object) -> None:
    if not isinstance(asked, str | list) or not asked:
        raise PromptError(f"Prompt file {name}: body.input must be text or a list that is not empty.")
    entries = asked if isinstance(asked, list) else []
    kinds = {type(entry) for entry in entries}
    if len(kinds) > 1 or not kinds <= {str, int, list}:
        raise PromptError(
            f"Prompt file {name}: body.input must be text, a list of texts, or tokens as numbers; "
            "it mixes them or holds something else."
        )
    if len(entries) > INPUTS_MAX:
        raise PromptError(
            f"Prompt file {name}: body.input has {len(entries):,} inputs, and the service takes {INPUTS_MAX:,} a "
            "request; use fewer."
        )


def _check_content(name: str, kind: str, where: str, content: object) -> None:
    if isinstance(content, str | None):
        return
    if not isinstance(content, list):
        raise PromptError(f"Prompt file {name}: {where} must be text or a list of parts, found {describe(content)}.")
    for number, part in enumerate(content):
        place = f"{where}[{number}]"
        if not isinstance(part, dict):
            raise PromptError(f"Prompt file {name}: {place} must be a mapping with type, found {describe(part)}.")
        part_type = part.get("type")
        if part_type in _PARTS[kind]:
            raise PromptError(
                f"Prompt file {name}: {place} has type {part_type}, which url {kind} does not know; "
                f"write {_PARTS[kind][part_type]}."
            )
        _check_image(name, place, part)


def _check_image(name: str, place: str, part: dict[str, Any]) -> None:
    image = part.get("image_url")
    if part.get("type") == "image_url" and not (isinstance(image, dict) and isinstance(image.get("url"), str)):
        raise PromptError(
            f"Prompt file {name}: {place}.image_url must be a mapping with the text url, found {describe(image)}."
        )
    if part.get("type") == "input_image" and image is not None and not isinstance(image, str):
        raise PromptError(f"Prompt file {name}: {place}.image_url must be text on responses, found {describe(image)}.")
