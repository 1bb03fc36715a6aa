"""A batch's lines: validated as the service does (contract §5), then answered, line by line in flat memory."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from pipeline.emulator.answers import answer
from pipeline.emulator.faults import Faults

SHUFFLE_LINES = 1_000
_BOM = b"\xef\xbb\xbf"
_HTTP_FAULTS = {"429": 429, "500": 500, "400": 400, "status_0": 0}


class Invalid(Exception):  # noqa: N818 - a finding
    """A validation error with its code and line."""

    def __init__(self, code: str, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.line = line

    def entry(self) -> dict[str, Any]:
        """As it stands in the service's error list."""
        return {"code": self.code, "message": self.message, "param": None, "line": self.line}


def validate(path: Path, endpoint: str, lines_max: int, deployments: Sequence[str]) -> tuple[str, int]:
    """Check an input file; its deployment and number of lines.

    Raises:
        Invalid: the first fault.
    """
    model: str | None = None
    url: str | None = None
    seen: set[str] = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number > lines_max:
                raise Invalid("too_many_tasks", f"The batch has more than {lines_max} tasks.")
            if number == 1 and line.startswith(_BOM):
                raise Invalid(
                    "invalid_request", "A valid model deployment name couldn't be extracted from the input file.", 1
                )
            model, url = _check_line(line, number, model, url, seen)
    if model is None or url is None:
        raise Invalid("empty_file", "The input file holds no requests.")
    if deployments and model not in deployments:
        names = ", ".join(deployments)
        raise Invalid("model_not_found", f"The provided model deployment '{model}' was not found. Valid: {names}.")
    if url.removeprefix("/v1") != endpoint.removeprefix("/v1"):
        raise Invalid("url_mismatch", f"The url {url} of the requests does not match the endpoint {endpoint}.")
    return model, len(seen)


def _check_line(line: bytes, number: int, model: str | None, url: str | None, seen: set[str]) -> tuple[str, str]:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise Invalid("invalid_json_line", "This line is not parseable as valid JSON.", number) from None
    body = found.get("body") if isinstance(found, dict) else None
    custom_id = found.get("custom_id") if isinstance(found, dict) else None
    if not isinstance(body, dict) or not isinstance(custom_id, str) or found.get("method") != "POST":
        raise Invalid("invalid_request", "custom_id, method POST, url and body are required.", number)
    if custom_id in seen:
        raise Invalid("duplicate_custom_id", f"The custom_id '{custom_id}' stands more than once.", number)
    seen.add(custom_id)
    if not isinstance(found.get("url"), str) or url not in (None, found["url"]):
        raise Invalid("url_mismatch", "All requests of a file must have the same url.", number)
    if not isinstance(body.get("model"), str):
        raise Invalid("invalid_request", "A valid model deployment name couldn't be extracted.", number)
    if model not in (None, body["model"]):
        raise Invalid("model_mismatch", "All requests of a file must name the same model.", number)
    return body["model"], found["url"]


@dataclass(slots=True)
class Done:
    """Counts of a batch that was worked off."""

    lines: int = 0
    completed: int = 0
    failed: int = 0
    charged: int = 0


def work_off(path: Path, out: Sequence[Path], *, seed: int, faults: Faults, half: str | None) -> Done:
    """Answer a file's lines.

    Args:
        path: the input file.
        out: output, errors and charged custom_ids are written there.
        seed: of the answers, and of the order of the output.
        faults: what was ordered.
        half: `expire_half` or `cancel_half`: every second line is left unanswered.
    """
    done = Done()
    chance = random.Random(seed)
    held: list[bytes] = []
    with (
        path.open("rb") as file,
        out[0].open("wb") as output,
        out[1].open("wb") as errors,
        out[2].open("wb") as charged,
    ):
        for line in file:
            request = orjson.loads(line)
            done.lines += 1
            custom_id = request["custom_id"]
            if half and done.lines % 2 == 0:
                code = "batch_expired" if half == "expire_half" else "batch_cancelled"
                error = {"code": code, "message": "This request could not be executed before the batch ended."}
                errors.write(orjson.dumps({"custom_id": custom_id, "response": None, "error": error}) + b"\n")
                done.failed += 1
                continue
            good, text = _answered(request, custom_id, seed, faults)
            if good:
                held.append(text)
                done.completed += 1
                done.charged += 1
                charged.write(custom_id.encode() + b"\n")
                if len(held) >= SHUFFLE_LINES:
                    chance.shuffle(held)
                    output.write(b"".join(held))
                    held.clear()
            else:
                errors.write(text)
                done.failed += 1
        chance.shuffle(held)
        output.write(b"".join(held))
        for each in (output, errors, charged):
            each.flush()
            os.fsync(each.fileno())
    return done


def _answered(request: dict[str, Any], custom_id: str, seed: int, faults: Faults) -> tuple[bool, bytes]:
    """A result line, and whether it is a success (which is charged)."""
    fault = faults.take("line", custom_id=custom_id)
    kind = fault.kind if fault else None
    if kind in _HTTP_FAULTS:
        status = _HTTP_FAULTS[kind]
        body: dict[str, Any] = {"error": {"code": kind, "message": f"ordered fault {kind}"}}
        return False, _line(custom_id, status, body)
    if kind == "content_filter":
        message = "The response was filtered due to the prompt triggering the content management policy."
        return False, _line(custom_id, 400, {"error": {"code": "content_filter", "message": message}})
    if kind == "lost":
        return False, b""
    body = answer(request["url"], request["body"], seed)
    if "choices" in body:
        choice = body["choices"][0]
        if kind == "length":
            choice["finish_reason"] = "length"
        elif kind == "refusal":
            choice["message"].update(content=None, refusal="[synthetic] I cannot help with that.")
        elif kind == "invalid_answer":
            choice["message"]["content"] = "[synthetic] not what the schema asks"
    text = _line(custom_id, 200, body)
    if kind == "malformed":
        text = text[: len(text) // 2] + b"\n"
    return True, text * 2 if kind == "doubled" else text


def _line(custom_id: str, status: int, body: dict[str, Any]) -> bytes:
    response = {"status_code": status, "request_id": "00000000-0000-4000-8000-000000000000", "body": body}
    return orjson.dumps({"custom_id": custom_id, "response": response, "error": None}) + b"\n"
