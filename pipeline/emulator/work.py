"""A batch's lines answered, one by one in flat memory: result files, and the books of what was charged (contract §6).

Knows nothing of a batch's states; why it ends before its lines are done is told to it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from pipeline.emulator.answers import BadRequest, answer
from pipeline.emulator.faults import Faults
from pipeline.emulator.settings import EmulatorSettings
from pipeline.emulator.spoiling import refused_line, spoilt

SHUFFLE_LINES, SHUFFLE_BYTES = 1_000, 8 << 20
"""Answers are shuffled in groups of so many."""
_ENDED = {
    "batch_expired": "This request could not be executed before the completion window expired.",
    "batch_cancelled": "This request could not be executed before the batch was cancelled.",
}
_GOOD = b'{%b"custom_id":%b,"response":{"status_code":200,"request_id":"%b%012d","body":%b},"error":null}\n'


@dataclass(slots=True)
class Done:
    """Counts of a batch that was worked off; tokens of its good answers."""

    lines: int = 0
    completed: int = 0
    failed: int = 0
    charged: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a batch ends before its lines are done.

    Attributes:
        code: `batch_expired` or `batch_cancelled`; None: it does not.
        share: the share of lines that were executed, where no upstream server tells which.
        silent: whether the others get no line at all.
        barren: whether no line succeeds.
    """

    code: str | None = None
    share: float = 1.0
    silent: bool = False
    barren: bool = False


Kept = tuple[int, int, bytes]
"""An upstream server's answer: line (from 0), status, JSON body."""


def work_off(
    path: Path,
    out: Sequence[Path],
    *,
    settings: EmulatorSettings,
    faults: Faults,
    ending: Ending,
    batch_id: str = "batch_",
    answers: Iterator[Kept] | None = None,
) -> Done:
    """Answer a file's lines.

    Args:
        path: the input file, which was validated.
        out: output, errors and charged custom_ids are written there.
        settings: seed of the answers and of their order, and the profile's habits.
        faults: what was ordered.
        ending: how it ends early.
        batch_id: goes into the ids of requests.
        answers: an upstream server's answers in the order of lines; None: synthetic ones.
    """
    with out[0].open("wb") as output, out[1].open("wb") as errors, out[2].open("wb") as charged:
        work = _Work(settings, faults, ending, batch_id, output, errors, charged)
        with path.open("rb") as file:
            if answers is None:
                work.answer_all(file)
            else:
                work.pass_on_all(file, answers)
        work.finish()
        for each in (output, errors, charged):
            each.flush()
            os.fsync(each.fileno())
    return work.done


class _Work:
    """One batch being worked off."""

    def __init__(
        self, settings: EmulatorSettings, faults: Faults, ending: Ending, batch_id: str, *files: IO[bytes]
    ) -> None:
        self._settings, self._faults, self._ending = settings, faults, ending
        self._output, self._errors, self._charged = files
        self._request_id = (batch_id.removeprefix("batch_")[:24] or "00000000-0000-4000-8000-").encode()
        self._has_ids, self._filters = settings.habits.result_ids, settings.habits.filters
        self._chance = random.Random(settings.seed)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._last: bytes | None = None
        self.done = Done()

    def answer_all(self, file: IO[bytes]) -> None:
        """Answer every line that is executed before the end."""
        ending, loads = self._ending, orjson.loads
        for number, line in enumerate(file):
            request = loads(line)
            self.done.lines += 1
            if ending.code is not None and not int((number + 1) * ending.share) > int(number * ending.share):
                self._leave(request["custom_id"], number, ending.code)
            else:
                self._answer(request, number, None)

    def pass_on_all(self, file: IO[bytes], answers: Iterator[Kept]) -> None:
        """Pass on what the upstream server has answered: all of it, whatever the batch's end."""
        kept = next(answers, None)
        for number, line in enumerate(file):
            request = orjson.loads(line)
            self.done.lines += 1
            if kept is None or kept[0] != number:
                self._leave(request["custom_id"], number, self._ending.code or "batch_cancelled")
                continue
            self._answer(request, number, kept)
            kept = next(answers, None)

    def finish(self) -> None:
        """Write what is held back."""
        self._flush()
        if self._last is not None:
            self._output.write(self._last[: max(1, len(self._last) // 2)])

    def _leave(self, custom_id: str, number: int, code: str) -> None:
        """A line that was never executed."""
        if self._settings.habits.unexecuted_fail:
            self.done.failed += 1
        if not self._ending.silent:
            error = {"code": code, "message": _ENDED[code]}
            self._errors.write(self._line(custom_id, number, response=None, error=error))

    def _answer(self, request: dict[str, Any], number: int, kept: Kept | None) -> None:
        custom_id, body = request["custom_id"], request["body"]
        fault = self._faults.take("line", custom_id=custom_id)
        kind = fault.kind if fault else "500" if self._ending.barren else None
        refused = None
        if kind is not None:
            refused = refused_line(kind, filters=self._filters)
        if refused is None and body.get("stream"):
            refused = self._refusal(400, BadRequest("invalid_value", "stream", "stream cannot be batched."))
        if refused is not None:
            return self._refuse(custom_id, number, refused, completed=kind == "status_0")
        if kept is not None:
            status, text = kept[1], kept[2]
            if not 200 <= status < 300:
                return self._refuse(custom_id, number, self._refused_by(status, text))
            tokens = _tokens_of(text)
        else:
            try:
                made = answer(request["url"], body, self._settings.seed, filters=self._filters)
                text, tokens = made.body, (made.input_tokens, made.output_tokens)
            except BadRequest as error:
                return self._refuse(custom_id, number, self._refusal(400, error))
        done = self.done
        done.completed += 1
        done.charged += 1
        done.input_tokens += tokens[0]
        done.output_tokens += tokens[1]
        name = orjson.dumps(custom_id)
        # One custom_id a line; as JSON where it has characters that could break the line.
        self._charged.write((name if b"\\" in name else name[1:-1]) + b"\n")
        head = b""
        if self._has_ids:
            head = b'"id":"batch_req_%b%012d",' % (self._request_id.replace(b"-", b""), number)
        if kind is not None:
            text = spoilt(text, kind)
        self._hold(_GOOD % (head, name, self._request_id, number, text), kind)
        return None

    def _hold(self, line: bytes, kind: str | None) -> None:
        """Keep a line until its group is full: the order is not the input's."""
        if kind is not None:
            if kind == "lost":
                return
            if kind == "truncated":
                line, self._last = self._last or b"", line  # the file ends in the midst of the last such line
            elif kind == "malformed":
                line = line[: len(line) // 2] + b"\n"
            elif kind == "doubled":
                line += line
        self._held.append(line)
        self._held_bytes += len(line)
        if len(self._held) >= SHUFFLE_LINES or self._held_bytes > SHUFFLE_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._chance.shuffle(self._held)
        self._output.write(b"".join(self._held))
        self._held.clear()
        self._held_bytes = 0

    def _refuse(self, custom_id: str, number: int, found: dict[str, Any], *, completed: bool = False) -> None:
        """A line without a good answer, in the error file; nothing is charged for it."""
        line = self._line(custom_id, number, **found)
        if completed:  # a status 0 was seen in output files, counted as completed
            self.done.completed += 1
            self._hold(line, None)
            return
        self.done.failed += 1
        self._errors.write(line)

    def _refusal(self, status: int, error: BadRequest) -> dict[str, Any]:
        told = {
            "message": error.message, "type": "invalid_request_error", "param": error.param, "code": error.code,
        }  # fmt: skip
        return {"response": {"status_code": status, "body": {"error": told}}, "error": None}

    def _refused_by(self, status: int, body: bytes) -> dict[str, Any]:
        return {"response": {"status_code": status, "body": orjson.Fragment(body)}, "error": None}

    def _line(self, custom_id: str, number: int, *, response: Any, error: Any) -> bytes:
        request_id = f"{self._request_id.decode()}{number:012d}"
        if response is not None:
            response = {"status_code": response["status_code"], "request_id": request_id, "body": response["body"]}
        found = {"custom_id": custom_id, "response": response, "error": error}
        if self._has_ids:
            found = {"id": f"batch_req_{request_id.replace('-', '')}", **found}
        return orjson.dumps(found) + b"\n"


def _tokens_of(body: bytes) -> tuple[int, int]:
    """Input and output tokens that an upstream server's answer tells."""
    found = orjson.loads(body)
    usage = found.get("usage") if isinstance(found, dict) else None
    if not isinstance(usage, dict):
        return 0, 0
    told = [usage.get(one, usage.get(other)) for one, other in (("prompt_tokens", "input_tokens"),
                                                                ("completion_tokens", "output_tokens"))]  # fmt: skip
    return tuple(value if isinstance(value, int) else 0 for value in told)  # type: ignore[return-value]
