"""A real server behind the emulator: every line is sent to an OpenAI-compatible endpoint, some at a time.

Answers are kept the moment they are here, so that a restart asks for none of them again. A 429, a 5xx or no answer is
tried again; where the server asks for a pause, every request waits. What then still fails becomes the line's error.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2
import orjson

from pipeline.emulator.store import Store

TRIES_MAX, BUSY_TRIES_MAX = 8, 100
"""Tries of a line: those that failed, and those that found the server busy (429)."""
WAIT_S, WAIT_S_MAX, ASKED_WAIT_S_MAX = 0.5, 30.0, 600.0
TIMEOUT_S = 600.0


class Upstream:
    """An OpenAI-compatible server.

    Args:
        root: its root, such as `http://127.0.0.1:8000/v1`.
        key: its key, or None.
        concurrency: requests at once, over all batches.

    Raises:
        ValueError: the root is no address.
    """

    def __init__(self, root: str, key: str | None, concurrency: int) -> None:
        if not root.startswith(("http://", "https://")):
            raise ValueError(f"--upstream {root!r}: an address such as http://127.0.0.1:8000/v1 is needed.")
        self._root, self._concurrency = root.rstrip("/"), concurrency
        headers = {"content-type": "application/json"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._client = httpx2.Client(headers=headers, timeout=TIMEOUT_S, limits=limits)
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="upstream")
        self._ended = threading.Event()
        self._quiet_until = 0.0

    def stop(self) -> None:
        """Send nothing more; answers that are under way are still taken."""
        self._ended.set()

    def close(self) -> None:
        """Close the connections, with whatever is under way."""
        self.stop()
        self._pool.shutdown(wait=False)
        self._client.close()

    def answer_all(self, store: Store, batch_id: str, path: Path, stopping: Callable[[], bool]) -> bool:
        """Ask every line of a file that has no answer yet.

        Args:
            store: keeps the answers.
            batch_id: whose lines they are.
            path: the input file.
            stopping: looked at before each line; what was sent by then is still waited for.

        Returns:
            Whether every line has its answer.
        """

        def ask(number: int, line: bytes) -> bool:
            answer = None if stopping() else self._asked(orjson.loads(line), stopping)
            if answer is not None:
                store.keep_answer(batch_id, number, *answer)
            return answer is not None

        asked: deque[Future[bool]] = deque()
        whole = True
        try:
            for number, line in _open_lines(path, store.answered_lines(batch_id)):
                if self._ended.is_set() or stopping():
                    return False
                asked.append(self._pool.submit(ask, number, line))
                if len(asked) > 2 * self._concurrency:  # a bounded look ahead
                    whole = asked.popleft().result() and whole
        finally:
            wait(asked)
        return whole and all(not future.cancelled() and future.result() for future in asked)

    def _asked(self, request: dict[str, Any], stopping: Callable[[], bool]) -> tuple[int, bytes] | None:
        """Status and JSON body of one line's answer; None: stopped before there was one."""
        if request["body"].get("stream"):
            return 400, _error("invalid_value", "stream cannot be batched.")
        try:
            content = orjson.dumps(request["body"])
        except TypeError:
            return 400, _error("invalid_value", "The body is nested too deeply.")
        target = self._root + str(request["url"]).removeprefix("/v1")
        tries = busy = 0
        while True:
            if not self._waited(stopping):
                return None
            try:
                answer = self._client.post(target, content=content)
                status, body = answer.status_code, _json_body(answer)
                asked_wait = _retry_after(answer)
            except httpx2.HTTPError as error:
                status, body, asked_wait = 503, _error("upstream", type(error).__name__), 0.0
            except RuntimeError:  # the client was closed between
                return None
            if body is None:
                return 502, _error("upstream", "The upstream server's answer is no JSON.")
            if (status != 429 and status < 500) or b'"insufficient_quota"' in body:
                return status, body
            tries, busy = (tries, busy + 1) if status == 429 else (tries + 1, busy)
            if tries >= TRIES_MAX or busy >= BUSY_TRIES_MAX:
                return status, body
            pause = max(min(WAIT_S * 2 ** min(tries + busy - 1, 10), WAIT_S_MAX), asked_wait)
            if asked_wait:  # it is the server that wants quiet, not the line that is bad: everybody waits
                self._quiet_until = max(self._quiet_until, time.monotonic() + pause)
            elif self._ended.wait(pause):
                return None

    def _waited(self, stopping: Callable[[], bool]) -> bool:
        """Wait while the server has asked for quiet; False: stopped."""
        while (left := self._quiet_until - time.monotonic()) > 0:
            if self._ended.wait(min(left, 1.0)) or stopping():
                return False
        return not self._ended.is_set()


def _retry_after(answer: httpx2.Response) -> float:
    """Seconds that the server asks to wait, bounded; 0 where it does not say."""
    told = answer.headers
    try:
        in_ms = "retry-after-ms" in told
        pause = float(told["retry-after-ms"]) / 1_000 if in_ms else float(told.get("retry-after", 0))
    except ValueError:
        try:
            pause = (parsedate_to_datetime(told["retry-after"]) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, KeyError):
            pause = 0.0
    return min(max(pause, 0.0), ASKED_WAIT_S_MAX)


def _json_body(answer: httpx2.Response) -> bytes | None:
    """The answer's body as compact JSON; an error page as an error in the usual shape; None: a success that is none."""
    try:
        return orjson.dumps(orjson.loads(answer.content))
    except (orjson.JSONDecodeError, TypeError):
        return None if answer.is_success else _error(f"http_{answer.status_code}", answer.text[:500])


def _error(code: str, message: str) -> bytes:
    return orjson.dumps({"error": {"code": code, "message": message, "type": "upstream_error", "param": None}})


def _open_lines(path: Path, answered: Iterator[int]) -> Iterator[tuple[int, bytes]]:
    """The lines without an answer; `answered` in order."""
    known = next(answered, None)
    with path.open("rb") as file:
        for number, line in enumerate(file):
            while known is not None and known < number:  # answered since this began
                known = next(answered, None)
            if number != known:
                yield number, line
