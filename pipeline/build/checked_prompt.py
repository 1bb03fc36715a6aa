"""A prompt as a value, and the checks that every prompt passes whatever kind of file it comes from.

Whatever parameter the service has passes through untouched. Does not know what is inside a template (`template.py`
compiles them), which service the requests go to, or any row.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.build.answer_schema import read_answer, with_answer
from pipeline.build.body_rules import check_body
from pipeline.build.image_tokens import DEFAULT, ImageTokens, read_image_tokens
from pipeline.build.json_values import check_json
from pipeline.build.prompt_words import describe, has_template, hint
from pipeline.errors import PromptError

KINDS = ("chat", "responses", "embeddings")
_PATHS = {"chat/completions": "chat", "responses": "responses", "embeddings": "embeddings"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A checked prompt file.

    Attributes:
        kind: "chat", "responses" or "embeddings".
        body: The request body, templates still in it, without `model`; what the answer schema asks of the service
            (`response_format`, `text.format`) is already in it. Its key order is the order on the wire.
        model: The deployment (Azure) or model of the file, None where it names none.
        answer: JSON Schema of the answer as written in the file, None for plain text.
        name: File name, for messages.
        image_tokens: What images are taken to cost.
        notes: What of the file was not carried over, a sentence each, for the person who runs it.
    """

    kind: str
    body: dict[str, Any]
    model: str | None
    answer: dict[str, Any] | None
    name: str
    image_tokens: ImageTokens = DEFAULT
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Identify what is asked: sha256 in hex over kind, body and answer; neither the model nor the file's name.

        Keys count in their order: it is the order on the wire, and in a schema the order in which the model answers.
        """
        identity = {"kind": self.kind, "body": self.body, "answer": self.answer}
        text = json.dumps(identity, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def checked_prompt(
    name: str,
    document: dict[str, Any],
    *,
    folder: Path,
    notes: tuple[str, ...] = (),
) -> Prompt:
    """The prompt that a document of url, body, answer, strict and image_tokens means.

    Args:
        name: file name, for messages.
        document: as of our YAML; `body` must be there.
        folder: where paths in it start from.
        notes: what could not be carried over.

    Raises:
        PromptError: it says something that no request could hold, or that the service would refuse on every line.
    """
    kind = _kind(name, document.get("url", "chat"))
    body = document["body"]
    if not isinstance(body, dict):
        raise PromptError(f"Prompt file {name}: body must be a mapping, found {describe(body)}.")
    check_json(name, body, "body")
    model, body = _split_model(name, body)
    check_body(name, kind, body)
    answer, strict = read_answer(name, document.get("answer"), folder), document.get("strict")
    if strict is not None and (not isinstance(strict, bool) or answer is None):
        raise PromptError(f"Prompt file {name}: strict is true or false, beside an answer; correct or remove it.")
    if answer is not None:
        body = with_answer(name, kind, body, answer, strict=strict is not False)
    tokens = read_image_tokens(name, document.get("image_tokens"))
    return Prompt(kind=kind, body=body, model=model, answer=answer, name=name, image_tokens=tokens, notes=notes)


def _kind(name: str, url: object) -> str:
    text = str(url).strip()
    path = text.strip("/").removeprefix("v1/")
    if text in KINDS:
        return text
    if isinstance(url, str) and path in _PATHS:
        return _PATHS[path]
    raise PromptError(
        f"Prompt file {name}: url {url!r} is not known{hint(path, KINDS)}; use chat, responses, embeddings or a full "
        "path such as /v1/chat/completions."
    )


def _split_model(name: str, body: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    rest = {key: value for key, value in body.items() if key != "model"}
    model = body.get("model")
    if model is None:
        return None, rest
    if not isinstance(model, str) or not model.strip():
        raise PromptError(f"Prompt file {name}: body.model must be the name of a deployment, found {describe(model)}.")
    if has_template(model):
        raise PromptError(
            f"Prompt file {name}: body.model must not be a template, as one batch has one model; use a run for each."
        )
    return model, rest
