"""The lines of an input file, checked as the service checks them before anything is executed (contract §5).

Owns the validation codes and their words. Knows nothing of batches, quotas or answers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from pipeline.emulator.answers import inputs_of
from pipeline.emulator.settings import EmulatorSettings

_BOM = b"\xef\xbb\xbf"
_ID_CHARACTERS_KEPT = 64
_AZURE_URLS = frozenset({"/chat/completions", "/v1/chat/completions", "/v1/responses"})
_OPENAI_URLS = frozenset({"/v1/chat/completions", "/v1/responses", "/v1/embeddings"})
_NO_MODEL = (
    "A valid model deployment name couldn't be extracted from the input file. Please ensure that each row in the input "
    "file has a valid deployment name specified in the 'model' field, and that the deployment name is consistent "
    "across all rows."
)


class Invalid(Exception):  # noqa: N818 - a finding
    """A validation error with its code, line and parameter."""

    def __init__(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.line = line
        self.param = param

    def entry(self) -> dict[str, Any]:
        """As it stands in the service's error list."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": self.line}


class Checked(NamedTuple):
    """What a good input file says."""

    model: str
    url: str
    lines: int


def validate(path: Path, endpoint: str, settings: EmulatorSettings) -> Checked:
    """Check an input file; its deployment, url and number of lines.

    Raises:
        Invalid: the first fault.
    """
    model = url = None
    seen: set[str | bytes] = set()
    number = inputs = 0
    lines_max, habits, loads = settings.lines_cap, settings.habits, orjson.loads
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number > lines_max:
                raise Invalid("too_many_tasks", f"The batch has more than {lines_max} tasks.")
            try:
                found = loads(line)
                custom_id, body, address, method = found["custom_id"], found["body"], found["url"], found["method"]
                name = body["model"]
            except (ValueError, KeyError, TypeError):
                raise _fault(line, number, settings, is_blank=_is_blank(path)) from None
            if (
                method != "POST"
                or type(custom_id) is not str
                or not custom_id
                or type(body) is not dict
                or type(address) is not str
                or type(name) is not str
                or not name
            ):
                raise _fault(line, number, settings)
            key = custom_id if len(custom_id) <= _ID_CHARACTERS_KEPT else _digest(custom_id)
            if key in seen:
                text = f"The custom_id '{custom_id[:100]}' stands more than once."
                raise Invalid("duplicate_custom_id", text, number)
            seen.add(key)
            if url is None:
                model, url = name, address
                _check_url(url, endpoint, settings)
            elif address != url:
                raise Invalid("url_mismatch", "All requests of a file must have the same url.", number)
            elif name != model:
                raise Invalid("model_mismatch", "All requests of a file must name the same model.", number)
            if habits.inputs_max is not None and url == "/v1/embeddings":
                inputs += inputs_of(body.get("input"))
                if inputs > habits.inputs_max:
                    raise Invalid("too_many_tasks", f"The batch has more than {habits.inputs_max} embedding inputs.")
    if model is None or url is None:
        raise Invalid("empty_file", "The input file holds no requests.")
    _check_model(model, settings)
    return Checked(model, url, number)


def first_model(path: Path) -> str | None:
    """The deployment that the first line names, or None."""
    try:
        with path.open("rb") as file:
            name = orjson.loads(file.readline())["body"]["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None


def _digest(custom_id: str) -> bytes:
    """What is kept of a long custom_id: memory does not grow with their length."""
    return hashlib.blake2b(custom_id.encode(), digest_size=16).digest()


def _is_blank(path: Path) -> bool:
    """Whether a file holds nothing but space."""
    with path.open("rb") as file:
        while piece := file.read(1 << 16):
            if piece.strip():
                return False
    return True


def _fault(line: bytes, number: int, settings: EmulatorSettings, *, is_blank: bool = False) -> Invalid:
    """What is wrong with a line."""
    if is_blank:
        return Invalid("empty_file", "The input file holds no requests.")
    if number == 1 and line.startswith(_BOM):
        return Invalid("invalid_request", _NO_MODEL, 1)
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return Invalid("invalid_json_line", "This line is not parseable as valid JSON.", number)
    if not isinstance(found, dict):
        return Invalid("invalid_request", "A line must be a JSON object.", number)
    told = settings.habits.parameters
    for name, kind in (("custom_id", str), ("method", str), ("url", str), ("body", dict)):
        if name not in found:
            code = "missing_required_parameter" if told else "invalid_request"
            return Invalid(code, f"Missing required parameter: '{name}'.", number, name if told else None)
        value = found[name]
        if not isinstance(value, kind) or not value or (name == "method" and value != "POST"):
            text = f"Invalid value for '{name}'."
            return Invalid("invalid_request", text, number, name if told else None)
    if told and "model" not in found["body"]:
        return Invalid("missing_required_parameter", "Missing required parameter: 'model'.", number, "body.model")
    return Invalid("invalid_request", _NO_MODEL, number, "body.model" if told else None)


def _check_url(url: str, endpoint: str, settings: EmulatorSettings) -> None:
    """The create's endpoint against the lines' url (contract §5, §10)."""
    exact = settings.habits.exact_url
    if url not in (_OPENAI_URLS if exact else _AZURE_URLS):
        raise Invalid("invalid_request", f"The url '{url[:100]}' cannot be batched.", 1, "url" if exact else None)
    # Azure reads the file to tell chat from responses: the guide passes /chat/completions for all of them.
    taken = {url} if exact else {"/chat/completions", "/v1/chat/completions", url, url.removeprefix("/v1")}
    if endpoint not in taken:
        text = f"The url '{url}' of the requests does not match the endpoint '{endpoint[:100]}'."
        raise Invalid("url_mismatch", text, 1, "url" if exact else None)


def _check_model(model: str, settings: EmulatorSettings) -> None:
    """The deployment must be there and be for batches."""
    if model in settings.standard_deployments:
        text = f"The deployment '{model[:100]}' is not of a batch type (GlobalBatch or DataZoneBatch)."
        raise Invalid("invalid_request", text)
    if settings.deployments and model not in settings.deployments:
        names = ", ".join(settings.deployments)
        text = (
            f"The provided model deployment '{model[:100]}' was not found. Please provide a valid model deployment "
            f"name. Valid deployments: {names}."
        )
        raise Invalid("model_not_found", text)
