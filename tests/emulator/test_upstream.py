"""A real server behind the emulator: its answers, its errors, its pace; none asked for twice once it was stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from pipeline.emulator import machine, upstream
from tests.acceptance.command import environment
from tests.emulator.serving import Served, serving

LINES = 2_000


class Stub:
    """An OpenAI-compatible server: counts what it answered; refuses some requests first."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()
        self.guard = threading.Lock()
        self.at_once = self.most_at_once = 0
        self.together = threading.Barrier(8)
        self.after: threading.Event | None = None
        self.after_lines = 0
        self.headers: dict[str, str] = {}
        self.hook: Callable[[int, int], tuple[int, Any] | None] | None = None
        self.times: list[float] = []

    def answer(self, body: dict[str, object]) -> tuple[int, Any]:
        """Status and body."""
        seed = int(str(body["seed"]))
        with self.guard:
            self.times.append(time.monotonic())
            self.asked[seed] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            tries, early = self.asked[seed], sum(self.asked.values()) <= 8
        try:
            if early and self.hook is None:
                self.together.wait(10)  # the first eight come together, or never
            if self.hook is not None and (found := self.hook(seed, tries)) is not None:
                return found
            faulty = self.hook is None
            if faulty and seed % 10 == 3 and tries == 1:
                return 429, {"error": {"code": "rate", "message": "slower"}}
            if faulty and seed % 10 == 7 and tries == 1:
                return 500, {"error": {"code": "oops", "message": "no"}}
            if faulty and seed % 100 == 50:
                return 400, {"error": {"code": "bad", "message": "never"}}
            with self.guard:
                self.answered[seed] += 1
                if self.after is not None and sum(self.answered.values()) >= self.after_lines:
                    self.after.set()
            text = {"role": "assistant", "content": f"answer {seed}"}
            return 200, {"model": "real", "choices": [{"index": 0, "finish_reason": "stop", "message": text}]}
        finally:
            with self.guard:
                self.at_once -= 1


@contextmanager
def stubbed() -> Iterator[tuple[Stub, str]]:
    """The stub over HTTP."""
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        """One request."""

        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """Answer it."""
            assert self.path in ("/v1/chat/completions", "/v1/embeddings")
            assert self.headers["authorization"] == "Bearer upstream-key"
            status, body = stub.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in stub.headers.items() if status == 429 else ():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: object) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield stub, f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def until_done(served: Served, batch_id: str) -> None:
    """Let the batch come to its end."""
    for _ in range(3_000):
        served.pass_s(200)
        if served.service.batch(batch_id)["status"] in ("completed", "cancelled"):
            return
        served.service.join_upstream(0.2)
    raise AssertionError("never done")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries do not wait."""
    monkeypatch.setattr(upstream, "WAIT_S", 0.0)


@pytest.mark.slow
def test_two_thousand_lines_are_answered_by_the_server_behind(tmp_path: Path) -> None:
    """With concurrency 8; 429 and 500 are tried again, a 400 is the line's error; an interrupted batch goes on."""
    with stubbed() as (stub, url):
        more = {"upstream": url, "upstream_key": "upstream-key", "concurrency": 8}
        stub.after, stub.after_lines = threading.Event(), LINES // 2
        with serving(tmp_path / "state", **more) as served:  # type: ignore[arg-type]
            batch = served.create(served.request_lines(LINES))
            served.pass_s(150)
            served.pass_s(150)
            assert stub.after.wait(60)
        half = sum(stub.answered.values())
        assert LINES // 2 <= half < LINES
        with serving(tmp_path / "state", **more) as served:  # type: ignore[arg-type]
            served.clock.now += 1_000
            until_done(served, batch.id)
            now = served.client().batches.retrieve(batch.id)
            lines = {line["custom_id"]: line for line in served.lines_of(now.output_file_id)}
            errors = {line["custom_id"]: line for line in served.lines_of(now.error_file_id)}
    assert set(stub.answered.values()) == {1}, "an answer that was stored is not asked for again"
    assert stub.most_at_once == 8
    bad = {f"r-{seed}" for seed in range(50, LINES, 100)}
    assert set(errors) == bad and set(lines) == {f"r-{seed}" for seed in range(LINES)} - bad
    assert errors["r-50"]["response"]["status_code"] == 400
    for name, line in lines.items():
        assert line["response"]["body"]["choices"][0]["message"]["content"] == f"answer {name[2:]}"
    assert (now.request_counts.completed, now.request_counts.failed) == (LINES - len(bad), len(bad))


UPSTREAM: dict[str, Any] = {"upstream_key": "upstream-key", "concurrency": 4}


def answered(served: Served, lines: bytes, **more: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A batch that the server behind has answered: it, its good lines and its errors by custom_id."""
    batch = served.create(lines, **more)
    until_done(served, batch.id)
    now = served.client().batches.retrieve(batch.id)
    output, errors = served.lines_of(now.output_file_id), served.lines_of(now.error_file_id)
    return now, {line["custom_id"]: line for line in output}, {line["custom_id"]: line for line in errors}


@pytest.mark.parametrize(
    ("headers", "least_s"), [({"retry-after": "1"}, 1.0), ({"retry-after-ms": "400"}, 0.4)], ids=["s", "ms"]
)
def test_nobody_asks_while_the_server_wants_quiet(tmp_path: Path, headers: dict[str, str], least_s: float) -> None:
    """A 429 with Retry-After holds every line back, not only the one that was told; none is lost by it."""
    with stubbed() as (stub, url), serving(tmp_path / "state", upstream=url, **UPSTREAM) as served:
        stub.headers = headers
        stub.hook = lambda seed, tries: (429, {"error": {"code": "rate"}}) if sum(stub.asked.values()) == 6 else None
        _, good, errors = answered(served, served.request_lines(30))
    assert len(good) == 30 and not errors
    gaps = [later - earlier for earlier, later in zip(stub.times, stub.times[1:], strict=False)]
    assert max(gaps) >= least_s * 0.9, "a pause as long as was asked for"
    before = gaps.index(max(gaps)) + 1
    assert before < 20, "no more than the others asked while that answer was on its way"


def test_a_server_that_is_busy_for_long_is_waited_for_and_a_broken_one_is_not(tmp_path: Path) -> None:
    """Twenty 429s cost a line nothing; eight 500s make its error; no quota left is final at once."""
    with stubbed() as (stub, url), serving(tmp_path / "state", upstream=url, **UPSTREAM) as served:

        def hook(seed: int, tries: int) -> tuple[int, Any] | None:
            if seed == 0 and tries <= 20:
                return 429, {"error": {"code": "rate"}}
            if seed == 1:
                return 500, b"<html>broken</html>"
            return (429, {"error": {"code": "insufficient_quota"}}) if seed == 2 else None

        stub.hook = hook
        now, good, errors = answered(served, served.request_lines(5))
    assert now.status == "completed" and set(good) == {"r-0", "r-3", "r-4"}
    assert (stub.asked[0], stub.asked[1], stub.asked[2]) == (21, 8, 1)
    assert errors["r-1"]["response"]["status_code"] == 500
    assert errors["r-1"]["response"]["body"]["error"]["code"] == "http_500"
    assert errors["r-2"]["response"]["status_code"] == 429


def test_what_the_server_says_becomes_what_a_batch_would_say(tmp_path: Path) -> None:
    """Its errors with their status and body; a success that is no JSON is 502; `stream` is refused and never sent."""
    with stubbed() as (stub, url), serving(tmp_path / "state", upstream=url, **UPSTREAM) as served:
        told = {0: (404, {"error": {"code": "no_model"}}), 1: (200, b"<html>"), 2: (422, b"nothing")}
        stub.hook = lambda seed, tries: told.get(seed)
        lines = served.request_lines(4) + served.request_lines(5, stream=True).splitlines(keepends=True)[4]
        _, good, errors = answered(served, lines)
    assert set(good) == {"r-3"} and stub.asked[4] == 0
    statuses = {name: line["response"]["status_code"] for name, line in errors.items()}
    assert statuses == {"r-0": 404, "r-1": 502, "r-2": 422, "r-4": 400}
    assert errors["r-0"]["response"]["body"] == {"error": {"code": "no_model"}} and errors["r-0"]["error"] is None
    assert good["r-3"]["response"]["body"]["model"] == "real"


def test_a_cancelled_batch_keeps_every_answer_that_the_server_gave(tmp_path: Path) -> None:
    """What was paid for is in the output, the rest is `batch_cancelled`; nothing more is asked."""
    with stubbed() as (stub, url), serving(tmp_path / "state", upstream=url, **UPSTREAM) as served:
        stub.hook = lambda seed, tries: None
        stub.after, stub.after_lines = threading.Event(), 100
        batch = served.create(served.request_lines(600))
        served.pass_s(150)
        served.pass_s(150)
        assert stub.after.wait(60)
        assert served.client().batches.cancel(batch.id).status == "cancelling"
        until_done(served, batch.id)
        now = served.client().batches.retrieve(batch.id)
        output, rest = served.lines_of(now.output_file_id), served.lines_of(now.error_file_id)
    assert now.status == "cancelled"
    assert {line["custom_id"] for line in output} == {f"r-{seed}" for seed in stub.answered}
    assert len(output) + len(rest) == 600 and 100 <= len(output) < 600
    assert now.request_counts.completed == len(output)


def test_two_batches_share_the_concurrency(tmp_path: Path) -> None:
    """The server never sees more requests at once than were allowed."""
    with stubbed() as (stub, url), serving(tmp_path / "state", upstream=url, **UPSTREAM) as served:

        def slow(seed: int, tries: int) -> None:
            time.sleep(0.002)

        stub.hook = slow
        batches = [served.create(served.request_lines(40)) for _ in range(3)]
        for batch in batches:
            until_done(served, batch.id)
        books = served.service.books()
    assert 1 < stub.most_at_once <= 4
    assert [batch["charged"] for batch in books["batches"]] == [40] * 3 and books["charged_more_than_once"] == 40


def test_killed_half_way_it_asks_for_nothing_that_it_has(tmp_path: Path) -> None:
    """SIGKILL of the real process amid 200 lines: after the restart only what had no stored answer is asked again."""
    with stubbed() as (stub, url):
        stub.hook = lambda seed, tries: None
        stub.after, stub.after_lines = threading.Event(), 100

        def started() -> tuple[subprocess.Popen[str], openai.OpenAI]:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.emulator", "--state", str(tmp_path / "state"), "--instant",
                 "--upstream", url, "--upstream-key-env", "UP_KEY"],
                env={**environment(), "UP_KEY": "upstream-key"}, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert process.stdout
            root = json.loads(process.stdout.readline())["url"]
            return process, openai.OpenAI(base_url=f"{root}/openai/v1/", api_key="k")

        process, client = started()
        with serving(tmp_path / "other", "azure-v1") as local:
            content = local.request_lines(200)
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        assert stub.after.wait(60)
        process.kill()
        process.communicate()
        at_kill = sum(stub.asked.values())
        process, client = started()
        try:
            while (now := client.batches.retrieve(batch.id)).status != "completed":
                time.sleep(0.02)
            assert now.output_file_id
            lines = client.files.content(now.output_file_id).read().splitlines()
        finally:
            process.terminate()
            process.communicate()
    assert len(lines) == 200 and at_kill >= 100
    # At most what was under way at the kill, eight requests, was answered without being stored.
    assert sum(stub.asked.values()) <= 200 + 8 and set(stub.asked) == set(range(200))
    assert os.listdir(tmp_path / "state" / "charged") == [batch.id]


@pytest.mark.parametrize("moment", ["executed", "published"])
def test_an_end_between_two_writes_asks_for_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Dead with the results written and the state not: the next life goes on, with the same files and no request."""
    with stubbed() as (stub, url):
        stub.hook = lambda seed, tries: None
        with serving(tmp_path / "state", upstream=url, **UPSTREAM) as served:
            batch = served.create(served.request_lines(20))
            put = machine.Machine._put

            def dying(self: machine.Machine, doc: dict[str, Any], status: str | None = None) -> None:
                if status == "finalizing" or (moment == "published" and doc.get("_executed")):
                    raise KeyboardInterrupt
                put(self, doc, status)

            monkeypatch.setattr(machine.Machine, "_put", dying)
            with pytest.raises(KeyboardInterrupt):
                until_done(served, batch.id)
            monkeypatch.undo()
            now = served.clock.now
        with serving(tmp_path / "state", upstream=url, **UPSTREAM) as served:
            served.clock.now = now
            until_done(served, batch.id)
            done = served.client().batches.retrieve(batch.id)
            assert len(served.lines_of(done.output_file_id)) == 20
            results = [file for file in served.client().files.list() if file.purpose == "batch_output"]
            assert {file.id for file in results} == {done.output_file_id, done.error_file_id}
            assert served.service.books()["accepted_lines"] == 20
    assert sum(stub.asked.values()) == 20


def test_embeddings_go_to_their_own_path(tmp_path: Path) -> None:
    """On the profile that has them."""
    with stubbed() as (stub, url), serving(tmp_path / "state", "openai", upstream=url, **UPSTREAM) as served:
        stub.hook = lambda seed, tries: (200, {"object": "list", "data": [], "usage": {"prompt_tokens": 3}})
        now, good, _ = answered(
            served, served.request_lines(2, url="/v1/embeddings", input="x"), endpoint="/v1/embeddings"
        )
    assert len(good) == 2 and now.usage.input_tokens == 6


def test_a_server_that_is_not_there_gives_every_line_its_error(tmp_path: Path) -> None:
    """503 for each, as a batch would say it; the batch still ends."""
    with pytest.raises(ValueError, match="--upstream"):
        upstream.Upstream("localhost:1", None, 1)
    with serving(tmp_path / "state", upstream="http://127.0.0.1:9/v1", concurrency=4) as served:
        batch = served.create(served.request_lines(5))
        until_done(served, batch.id)
        now = served.client().batches.retrieve(batch.id)
        errors = served.lines_of(now.error_file_id)
    assert {line["response"]["status_code"] for line in errors} == {503}
    assert len(errors) == 5
