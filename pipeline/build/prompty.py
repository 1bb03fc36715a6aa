"""`.prompty` files, which Azure's own tools write: front matter and role sections, to a document of our own YAML.

Owns both shapes of the front matter: the first (model.configuration and model.parameters) and the second (model.id and
model.options). What only describes the prompt is left; what cannot be carried over is refused, or told in a note, by
name. Knows nothing of what a request body may hold.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pipeline.build.image_bytes import FORMATS, data_url
from pipeline.build.prompt_text import read_text
from pipeline.build.prompt_words import describe, hint
from pipeline.build.prompt_yaml import parsed_yaml, read_yaml
from pipeline.errors import PromptError

_SILENT = frozenset({"name", "description", "authors", "tags", "version", "metadata", "sample", "$schema", "$id"})
"""Keys that describe the prompt and ask for nothing."""

_KNOWN = ("model", "inputs", "inputSchema", "outputs", "outputSchema", "template")
_REFUSED = {
    "base": "write out what it inherits",
    "tools": "write them as the service takes them under model.options.tools (model.parameters.tools)",
}
_MODEL_KEYS = ("id", "api", "apiType", "provider", "configuration", "connection", "parameters", "options", "response")
_PROVIDERS = frozenset({"azure_openai", "openai", "azure", "foundry"})
_APIS = ("chat", "responses")
_OPTIONS = {
    "topP": "top_p",
    "frequencyPenalty": "frequency_penalty",
    "presencePenalty": "presence_penalty",
    "stopSequences": "stop",
    "allowMultipleToolCalls": "parallel_tool_calls",
}
"""Names of the second front matter, as the service has them; `maxOutputTokens` depends on the kind of request."""

_FENCE = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_ROLE = re.compile(
    r"^[ \t]*#?[ \t]*(assistant|developer|function|system|tools|user)[ \t]*(?:\[([^\]]*)\])?[ \t]*:[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_TEMPLATED_ROLE = re.compile(r"^[ \t]*#?[ \t]*\{\{[^}\n]*\brole\b[^}\n]*\}\}[ \t]*:[ \t]*$", re.MULTILINE)
_THREAD = re.compile(r"^[ \t]*!\[thread\]", re.MULTILINE)
_IMAGE = re.compile(r"!\[[^\]]*\]\(\s*(\{\{.*?\}\}|[^)\s]*)[^)]*\)")
_COLUMN = re.compile(r"\{\{-?\s*([^|{}]+?)\s*-?\}\}")
_ENVIRONMENT = re.compile(r"\$\{env:([^}:]+)(?::([^}]*))?\}")
_FILE = re.compile(r"\$\{file:([^}]+)\}")
_NAME = re.compile(r"""\s*name\s*=\s*["']?([^"',]*)["']?\s*""")


def read_prompty(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read a `.prompty` file.

    Returns:
        A document with url and body as of our YAML, and what of the file was not carried over, a sentence each.

    Raises:
        PromptError: it cannot be read, or says something that a batch cannot do.
    """
    text = read_text(path, "--prompt")
    fence = _FENCE.match(text)
    head = parsed_yaml("\n" + fence[1], path.name) if fence else {}
    if head is None:
        head = {}
    if not isinstance(head, dict):
        raise PromptError(f"Prompt file {path.name}: the front matter must be a mapping, found {describe(head)}.")
    reading = _Reading(path)
    reading.front_matter(head)
    sections = text[fence.end() :] if fence else text
    return reading.document(sections), tuple(reading.notes)


class _Reading:
    """One file being read: what its parts said so far."""

    def __init__(self, path: Path) -> None:
        self.notes: list[str] = []
        self._path, self._name = path, path.name
        self._kind = "chat"
        self._body: dict[str, Any] = {}

    def _refuse(self, what: str) -> PromptError:
        return PromptError(f"Prompt file {self._name}: {what}.")

    def _note(self, what: str) -> None:
        self.notes.append(f"Prompt file {self._name}: {what}.")

    def front_matter(self, head: dict[str, Any]) -> None:
        """Take over what the front matter says."""
        for key in head:
            if key in _REFUSED:
                raise self._refuse(f"{key} is not carried over; {_REFUSED[key]}")
            if key not in _SILENT and key not in _KNOWN:
                raise self._refuse(f"unknown key {key!r} in the front matter{hint(str(key), _KNOWN)}")
        self._model(head.get("model"))
        self._inputs(head.get("inputs", head.get("inputSchema")))
        for key in ("outputs", "outputSchema"):
            if head.get(key):
                self._note(f"{key} is not carried over; answers are text unless response_format says otherwise")
        self._template(head.get("template"))

    def _model(self, model: Any) -> None:
        model = {"id": model} if isinstance(model, str) else {} if model is None else model
        if not isinstance(model, dict):
            raise self._refuse(f"model must be a mapping or a name, found {describe(model)}")
        for key in model:
            if key not in _MODEL_KEYS:
                raise self._refuse(f"unknown key model.{key}{hint(str(key), _MODEL_KEYS)}")
        api = model.get("apiType", model.get("api", "chat"))
        if api not in _APIS:
            raise self._refuse(f"model.api {api} cannot be carried over; only chat and responses can")
        self._kind = api
        self._provider("model.provider", model.get("provider"))
        name = model.get("id")
        for key in ("configuration", "connection"):
            given = model.get(key)
            if isinstance(given, dict):
                self._provider(f"model.{key}.type", given.get("type"))
                name = name or given.get("azure_deployment") or given.get("model") or given.get("name")
            if unused := _unused(given):
                self._note(f"model.{key}{unused} is not used; the service comes from --service and the environment")
        if name is not None:
            self._body["model"] = self._model_name(name)
        if model.get("response") not in (None, "first"):
            self._note(f"model.response {model['response']} is not used; --raw keeps whole responses")
        for key in ("parameters", "options"):
            self._parameters(f"model.{key}", model.get(key), renamed=key == "options")
        if self._body.get("model") is None:
            self._body.pop("model", None)

    def _provider(self, where: str, provider: Any) -> None:
        if provider is not None and provider not in _PROVIDERS:
            raise self._refuse(f"{where} {provider} is no OpenAI service; only azure_openai and openai can be used")

    def _model_name(self, name: Any) -> Any:
        found = _ENVIRONMENT.fullmatch(name) if isinstance(name, str) else None
        if found is None:
            return name
        value = os.environ.get(found[1]) or found[2]
        if not value:
            self._note(f"the model is that of the variable {found[1]}, which is not set; name it with --model")
        return value

    def _parameters(self, where: str, given: Any, *, renamed: bool) -> None:
        if given is None:
            return
        if not isinstance(given, dict):
            raise self._refuse(f"{where} must be a mapping, found {describe(given)}")
        for key, raw in given.items():
            value = self._resolved(f"{where}.{key}", raw)
            if renamed and key == "additionalProperties" and isinstance(value, dict):
                self._body |= value
            elif renamed and key == "maxOutputTokens":
                self._body["max_output_tokens" if self._kind == "responses" else "max_completion_tokens"] = value
            elif renamed and key in _OPTIONS:
                self._body[_OPTIONS[key]] = value
            elif renamed and isinstance(key, str) and key != key.lower():
                raise self._refuse(f"{where}.{key} is not carried over; put it under {where}.additionalProperties")
            else:
                self._body[key] = value
        for index, tool in enumerate(self._body.get("tools") or ()):
            if not isinstance(tool, dict) or "type" not in tool:
                raise self._refuse(f"{where}.tools[{index}] has no type; write it as the service takes it")

    def _resolved(self, where: str, value: Any) -> Any:
        """A parameter with the file that it names in its place."""
        if isinstance(value, dict):
            return {key: self._resolved(f"{where}.{key}", inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._resolved(f"{where}[{index}]", inner) for index, inner in enumerate(value)]
        if not isinstance(value, str):
            return value
        if _ENVIRONMENT.search(value):
            raise self._refuse(f"{where} takes a variable of the environment, which a run cannot keep; write the value")
        found = _FILE.fullmatch(value)
        if found and not (self._path.parent / found[1]).exists():
            raise self._refuse(f"{where} names {found[1]}, and there is no {self._path.parent / found[1]}")
        return read_yaml(self._path.parent / found[1]) if found else value

    def _inputs(self, inputs: Any) -> None:
        if isinstance(inputs, dict) and isinstance(inputs.get("properties"), list | dict):
            inputs = inputs["properties"]
        if isinstance(inputs, list):
            inputs = {str(entry.get("name")): entry for entry in inputs if isinstance(entry, dict)}
        if not isinstance(inputs, dict):
            return
        defaults = []
        for key, told in inputs.items():
            if isinstance(told, dict) and "thread" in (told.get("kind"), told.get("type")):
                raise self._refuse(f"inputs.{key} is a thread, which is not carried over; write its messages")
            if not isinstance(told, dict) or "default" in told:
                defaults.append(str(key))
        if defaults:
            self._note(f"the defaults of inputs ({', '.join(defaults)}) are not used; values come from the data")

    def _template(self, template: Any) -> None:
        template = {"format": template} if isinstance(template, str) else template or {}
        if not isinstance(template, dict):
            raise self._refuse(f"template must be a mapping or a name, found {describe(template)}")
        for keys, known in ((("format", "type"), "jinja2"), (("parser",), "prompty")):
            for key in keys:
                told = template.get(key)
                told = told.get("kind") if isinstance(told, dict) else told
                if told not in (None, known):
                    raise self._refuse(f"template.{key} {told} cannot be used; only {known} can")

    def document(self, text: str) -> dict[str, Any]:
        """The role sections as messages, with what the front matter said."""
        for pattern, what in (
            (_THREAD, "![thread] is not carried over; write the messages, each under its role"),
            (_TEMPLATED_ROLE, "the role of a message cannot come from a column; write each message under its role"),
        ):
            if found := pattern.search(text):
                raise self._refuse(f"in the line {found[0].strip()!r}: {what}")
        messages = []
        pieces = _ROLE.split(text)
        if pieces[0].strip():
            messages.append(self._message("system", None, pieces[0]))
        for role, attributes, content in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
            messages.append(self._message(role.lower(), attributes, content))
        if not messages:
            raise self._refuse("there is no message; write one under a line user:")
        key = "messages" if self._kind == "chat" else "input"
        return {"url": self._kind, "body": {**self._body, key: messages}}

    def _message(self, role: str, attributes: str | None, text: str) -> dict[str, Any]:
        if role in ("tools", "function"):
            raise self._refuse(f"a section {role}: is not carried over; only system, user and assistant are")
        message: dict[str, Any] = {"role": role, "content": self._content(text.strip("\n"))}
        if attributes and attributes.strip():
            named = _NAME.fullmatch(attributes)
            if named is None:
                raise self._refuse(f"the attributes [{attributes}] of {role}: are not carried over; only name is")
            message["name"] = named[1]
        return message

    def _content(self, text: str) -> str | list[dict[str, Any]]:
        """The text of a section, or its parts where it shows images."""
        pieces = _IMAGE.split(text)
        if len(pieces) == 1:
            return text
        chat = self._kind == "chat"
        parts: list[dict[str, Any]] = []
        for index, piece in enumerate(pieces):
            if index % 2 and chat:
                parts.append({"type": "image_url", "image_url": {"url": self._image(piece)}})
            elif index % 2:
                parts.append({"type": "input_image", "image_url": self._image(piece)})
            elif piece.strip():
                parts.append({"type": "text" if chat else "input_text", "text": piece.strip()})
        return parts

    def _image(self, target: str) -> str:
        """The URL of an image: a column read as one, an address as it is, or a file beside the prompt."""
        column = _COLUMN.fullmatch(target)
        if column:
            return "{{ " + column[1] + " | image }}"
        if target.startswith(("http://", "https://", "data:", "{{")):
            return target
        path = self._path.parent / target
        try:
            url = data_url(path.read_bytes())
        except OSError as error:
            raise self._refuse(f"the image {target} cannot be read: {error.strerror or error}") from None
        if url is None:
            raise self._refuse(f"the image {target} is no {FORMATS}")
        return url


def _unused(given: Any) -> str:
    """What of a connection says more than the model, in brackets; nothing where it does not."""
    if not isinstance(given, dict):
        return f" ({given})" if given else ""
    more = [str(key) for key in given if key not in ("azure_deployment", "model", "name", "type", "kind")]
    return f" ({', '.join(more)})" if more else ""
