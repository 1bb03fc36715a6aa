"""Whatever is thrown at it: never a 500, never a hang; killed, it goes on; answers depend on the request alone."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.acceptance.command import environment
from tests.emulator.serving import Served, serving

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
KNOWN = st.fixed_dictionaries(
    {},
    optional={
        "input_file_id": JSON, "endpoint": JSON | st.just("/chat/completions"), "metadata": JSON,
        "completion_window": st.just("24h") | JSON, "output_expires_after": JSON,
    },
)  # fmt: skip
LINES = JSON | st.fixed_dictionaries(
    {
        "custom_id": st.text(min_size=1, max_size=8), "method": st.just("POST"), "url": st.just("/chat/completions"),
        "body": st.dictionaries(st.sampled_from(["messages", "n", "stream", "response_format", "x"]), JSON).map(
            lambda body: {"model": "m", **body}),
    }
)  # fmt: skip
FORMS = st.lists(
    st.tuples(st.sampled_from(["purpose", "file", "expires_after[seconds]", "expires_after.seconds", "x"]),
              st.booleans(), st.binary(max_size=20) | st.sampled_from([b"batch", b"1209600"])), max_size=4,
).map(lambda parts: b"".join(
    b'--x\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    % (name.encode(), b'; filename="a.jsonl"' if is_file else b"", value) for name, is_file, value in parts
) + b"--x--\r\n")  # fmt: skip
PATHS = st.sampled_from(
    ["files", "batches", "files/{}", "files/{}/content", "batches/{}", "batches/{}/cancel", "models", "../etc", "%00"]
)


HEADERS = st.dictionaries(
    st.sampled_from(["api-key", "Authorization", "Range", "If-Range", "Accept-Encoding", "Expect", "X-Odd"]),
    st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=20)
    | st.sampled_from(["Bearer k", "bytes=0-", "bytes=5-1", "bytes=-3", "bytes=0-1,3-4", "bytes=" + "0-," * 99]),
    max_size=4,
)


@pytest.fixture(scope="module")
def module_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One emulator for all of it, with a file that can be asked for."""
    with serving(tmp_path_factory.mktemp("robust") / "state", instant=True) as found:
        yield found


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    """A client that gives up after a while: a hang is an error."""
    with httpx2.Client(timeout=10) as found:
        yield found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"]),
    root=st.sampled_from(["/openai/", "/openai/", "/openai/v1/", "/v1/", "/_emulator/", "/"]),
    path=PATHS,
    name=st.text(st.characters(codec="ascii", exclude_characters="#?/\\"), min_size=1, max_size=30),
    query=st.dictionaries(st.sampled_from(["api-version", "after", "limit", "purpose", "order"]), st.text(max_size=12)),
    body=st.one_of(st.binary(max_size=300), KNOWN.map(json.dumps), JSON.map(json.dumps), FORMS),
    kind=st.sampled_from(["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain"]),
    headers=HEADERS,
)
def test_arbitrary_calls_get_an_answer_and_never_a_500(
    module_served: Served, http: httpx2.Client, **given_call: Any
) -> None:
    """Any method, path, query, header and body, at every endpoint."""
    method, root, path, name = (given_call[key] for key in ("method", "root", "path", "name"))
    content = given_call["body"] if isinstance(given_call["body"], bytes) else given_call["body"].encode()
    headers = {"api-key": "k", **given_call["headers"], "content-type": given_call["kind"]}
    query = given_call["query"] if root != "/openai/" else {"api-version": "2024-10-21", **given_call["query"]}
    module_served.service.faults.clear()
    try:
        got = http.request(
            method, module_served.url + root + path.format(name), params=query, content=content,
            headers=[(key.encode(), value.encode("latin-1")) for key, value in headers.items()],
        )  # fmt: skip
    except (httpx2.InvalidURL, httpx2.LocalProtocolError):
        return  # the client itself will not send it
    assert got.status_code < 500, got.text


def test_a_lone_surrogate_is_refused_and_not_stumbled_over(module_served: Served) -> None:
    """JSON may spell it, UTF-8 cannot: 400."""
    asked = b'{"input_file_id":"f","endpoint":"/x","completion_window":"24h","metadata":{"k":"\\ud800"}}'
    for path in ("openai/v1/batches", "_emulator/faults"):
        got = httpx2.post(f"{module_served.url}/{path}", content=asked, headers={"api-key": "k"})
        assert got.status_code == 400


@pytest.mark.parametrize("depth", [100, 300, 900, 5_000])
def test_what_is_nested_deeply_is_answered_or_refused(module_served: Served, depth: int) -> None:
    """In a create, in orders, in lines: no recursion ends the service, and the batch ends."""
    nest = b"[" * depth + b"]" * depth
    asked = b'{"input_file_id":"f","endpoint":"/x","completion_window":"24h","x":%b}' % nest
    module_served.order({"on": "create_batch", "kind": "late"})
    for path in ("openai/v1/batches", "openai/v1/batches", "_emulator/faults"):
        with contextlib.suppress(httpx2.RemoteProtocolError, httpx2.ReadError):
            got = httpx2.post(f"{module_served.url}/{path}", content=asked, headers={"api-key": "k"})
            assert got.status_code == 400
    module_served.service.faults.clear()
    for member in (b'"x"', b'"response_format"'):
        line = module_served.request_lines(1).replace(b'"seed":0', b'"seed":0,%b:%b' % (member, nest))
        now = module_served.finished(line)
        assert now.status == ("completed" if depth < 1_000 else "failed")
        assert now.request_counts.completed == (depth < 250)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.binary(max_size=60).map(
    lambda tail: b"POST /openai/v1/batches HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n" + tail))  # fmt: skip
def test_arbitrary_bytes_on_the_wire_do_no_harm(module_served: Served, content: bytes) -> None:
    """What is no HTTP at all, or breaks off: at most a refusal, and the next call is answered."""
    host, _, port = module_served.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(content)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            answer = sock.recv(4_096)
            assert not answer or not answer.startswith(b"HTTP/1.1 5")
    assert module_served.client().batches.list(limit=1).object == "list"  # type: ignore[attr-defined]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=1, max_size=400) | st.lists(LINES, max_size=5).map(
    lambda lines: "\n".join(map(json.dumps, lines)).encode() or b"\n"))  # fmt: skip
def test_arbitrary_files_end_their_batch_and_nothing_else(module_served: Served, content: bytes) -> None:
    """Whatever an input file holds, its batch is terminal and the next one runs."""
    module_served.service.faults.clear()
    batch = module_served.create(content)
    module_served.service.step()
    now = module_served.client().batches.retrieve(batch.id)
    assert now.status in ("failed", "completed")
    if now.status == "failed":
        assert now.errors.data[0].code and now.errors.data[0].message
    else:
        found = module_served.lines_of(now.output_file_id) + module_served.lines_of(now.error_file_id)
        assert len(found) == now.request_counts.total


def test_killed_it_goes_on_with_the_same_batches_and_charges_once(tmp_path: Path) -> None:
    """SIGKILL while a batch is under way; after a restart it is completed, with the answers it would have had."""

    def started() -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.emulator", "--state", str(tmp_path / "state"), "--speed", "200"],
            env=environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout
        return process, json.loads(process.stdout.readline())["url"]

    process, url = started()
    with serving(tmp_path / "other") as local:
        content = local.request_lines(200)
    client = openai.AzureOpenAI(azure_endpoint=url, api_version="2024-10-21", api_key="k")
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    client.files.wait_for_processing(file.id, poll_interval=0.05)
    batch = client.batches.create(input_file_id=file.id, endpoint="/chat/completions", completion_window="24h")
    process.kill()
    process.communicate()
    process, url = started()
    try:
        client = openai.AzureOpenAI(azure_endpoint=url, api_version="2024-10-21", api_key="k")
        while client.batches.retrieve(batch.id).status != "completed":
            pass
        with urllib.request.urlopen(f"{url}/_emulator/books") as got:
            books = json.load(got)
        assert (books["accepted_lines"], books["charged_more_than_once"]) == (200, 0)
    finally:
        process.terminate()
        process.communicate()
    told = subprocess.run(
        [sys.executable, "-m", "pipeline", "emulator", "books", "--state", str(tmp_path / "state")],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(told.stdout) == books


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_memory_does_not_grow_with_what_is_sent(tmp_path: Path) -> None:
    """A real process: an upload, a create's body and orders of 60 MB each, a batch of 36,000 lines: 60 MB at most."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.emulator", "--state", str(tmp_path / "state"), "--instant"],
        env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        url = json.loads(process.stdout.readline())["url"]
        client = openai.AzureOpenAI(azure_endpoint=url, api_version="2024-10-21", api_key="k", max_retries=0)
        client.files.list()
        idle = psutil.Process(process.pid).memory_info().rss
        text = "x" * 1_500
        with serving(tmp_path / "other") as local:
            [line] = local.request_lines(1, messages=[{"role": "user", "content": text}]).splitlines(keepends=True)
        with (tmp_path / "in.jsonl").open("wb") as out:
            for number in range(36_000):
                out.write(line.replace(b'"r-0"', b'"r-%d"' % number))
        with (tmp_path / "in.jsonl").open("rb") as given_file:
            file = client.files.create(file=given_file, purpose="batch")
        assert file.bytes and file.bytes > 55_000_000
        batch = client.batches.create(input_file_id=file.id, endpoint="/chat/completions", completion_window="24h")
        for path in ("openai/v1/batches", "_emulator/faults"):
            with contextlib.suppress(httpx2.HTTPError):  # it may hang up before all of it was sent
                body = (b" " * (1 << 20) for _ in range(60))
                assert httpx2.post(f"{url}/{path}", content=body, headers={"api-key": "k"}).status_code == 413
        while batch.status not in ("completed", "failed"):
            batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed"
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())[1]) * 1_024  # type: ignore[index]
        assert peak - idle < 60_000_000
    finally:
        process.terminate()
        process.communicate()
