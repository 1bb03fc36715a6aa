"""The service's contract, driven only through the official SDK: on the emulator, and live where a resource is named.

Every test here runs on each profile of the emulator, through AzureOpenAI on the classic root, OpenAI on the v1 root and
OpenAI as such. The same tests run on a real Azure resource (marker `live`) when `BATCHMILL_LIVE_ENDPOINT`,
`BATCHMILL_LIVE_KEY` and `BATCHMILL_LIVE_DEPLOYMENT` are set; a handful of lines is executed, which may cost money.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from tests.emulator.serving import API_VERSION, URLS, serving

LIVE = {
    name: os.environ.get(f"BATCHMILL_LIVE_{name}", "") for name in ("ENDPOINT", "KEY", "DEPLOYMENT", "HOURS", "POLL_S")
}
"""Read when the module is loaded: no test sees the variables themselves."""
PROFILES = ["azure", "azure-v1", "openai"]
TERMINAL = {"completed", "failed", "expired", "cancelled", "canceled"}


@dataclass
class Resource:
    """A service under test, and how time passes there."""

    client: openai.OpenAI
    profile: str
    model: str
    wait: Callable[[], None]
    waits_max: int
    again: Callable[..., openai.OpenAI]
    files: list[str] = field(default_factory=list)
    stem: str = ""

    def lines(self, count: int, **body: Any) -> bytes:
        """Request lines, with ids of their own."""
        self.stem = uuid.uuid4().hex[:8]
        asked = {"model": self.model, "messages": [{"role": "user", "content": "Say one word."}], **body}
        return b"".join(
            orjson.dumps({"custom_id": f"{self.stem}-{n}", "method": "POST", "url": URLS[self.profile], "body": asked})
            + b"\n"
            for n in range(count)
        )

    def upload(self, content: bytes, **more: Any) -> Any:
        """An uploaded and processed file."""
        file = self.client.files.create(file=("batchmill-contract.jsonl", content), purpose="batch", **more)
        self.files.append(file.id)
        for _ in range(self.waits_max):
            if self.client.files.retrieve(file.id).status not in ("pending", "running", "uploaded"):
                break
            self.wait()
        return file

    def create(self, content: bytes, **more: Any) -> Any:
        """A batch on such a file."""
        file = self.upload(content)
        return self.client.batches.create(
            input_file_id=file.id, endpoint=URLS[self.profile], completion_window="24h", **more
        )  # type: ignore[call-overload]

    def ended(self, batch_id: str) -> Any:
        """The batch once it is terminal."""
        for _ in range(self.waits_max):
            now = self.client.batches.retrieve(batch_id)
            if now.status in TERMINAL:
                return now
            self.wait()
        raise AssertionError(f"{batch_id} has not ended")

    def results(self, file_id: str | None) -> list[dict[str, Any]]:
        """Lines of a result file."""
        content = self.client.files.content(file_id).read() if file_id else b""
        return [orjson.loads(line) for line in content.split(b"\n") if line]


def live_resource(profile: str) -> Iterator[Resource]:
    """The real one; what was uploaded is deleted."""
    if not all(LIVE[name] for name in ("ENDPOINT", "KEY", "DEPLOYMENT")):
        pytest.skip("BATCHMILL_LIVE_ENDPOINT, _KEY and _DEPLOYMENT name no resource")

    def again(**more: Any) -> openai.OpenAI:
        fixed = {"api_key": LIVE["KEY"], **more}
        root = LIVE["ENDPOINT"].rstrip("/").removesuffix("/openai/v1")
        if profile == "azure":
            return openai.AzureOpenAI(azure_endpoint=root, **{"api_version": API_VERSION, **fixed})
        return openai.OpenAI(base_url=f"{root}/openai/v1/", **{k: v for k, v in fixed.items() if k != "api_version"})

    poll_s, hours = float(LIVE["POLL_S"] or 60), float(LIVE["HOURS"] or 2)
    waits_max = int(hours * 3_600 / poll_s)
    found = Resource(again(), profile, LIVE["DEPLOYMENT"], lambda: time.sleep(poll_s), waits_max, again)
    try:
        yield found
    finally:
        for file_id in found.files:
            found.client.files.delete(file_id)


@pytest.fixture(
    params=[*PROFILES, *(pytest.param(f"live-{name}", marks=pytest.mark.live) for name in ("azure", "azure-v1"))]
)
def resource(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Resource]:
    """An emulator of each profile, or a live resource on each of its roots."""
    if request.param.startswith("live-"):
        yield from live_resource(request.param.removeprefix("live-"))
        return
    with serving(tmp_path / "state", request.param, key="k", deployments=("m",)) as served:

        def again(**more: Any) -> openai.OpenAI:
            if request.param != "azure":
                more.pop("api_version", None)
                return served.client(**more)
            fixed = {"azure_endpoint": served.url, "api_version": API_VERSION, "api_key": "k", "max_retries": 0}
            return openai.AzureOpenAI(**{**fixed, **more})  # type: ignore[arg-type]

        yield Resource(served.client(), request.param, "m", lambda: served.pass_s(30), 100, again)


def test_a_batch_goes_its_way_to_results_that_are_whole(resource: Resource) -> None:
    """Statuses in order, timestamps that grow, counts that end at the total, and one result line for each request."""
    batch = resource.create(resource.lines(3, max_tokens=16), metadata={"owner": "batchmill-contract"})
    assert batch.object == "batch" and batch.status == "validating" and batch.completion_window == "24h"
    assert 86_000 <= batch.expires_at - batch.created_at <= 86_400
    assert not batch.output_file_id and not batch.error_file_id and not batch.errors
    now = resource.ended(batch.id)
    assert now.status == "completed"
    assert now.created_at <= now.in_progress_at <= now.finalizing_at <= now.completed_at
    assert not now.failed_at and not now.cancelled_at and not now.expired_at
    assert now.metadata == {"owner": "batchmill-contract"} and now.input_file_id == batch.input_file_id
    assert (now.request_counts.total, now.request_counts.completed, now.request_counts.failed) == (3, 3, 0)
    lines = resource.results(now.output_file_id)
    assert {line["custom_id"] for line in lines} == {f"{resource.stem}-{n}" for n in range(3)} and len(lines) == 3
    for line in lines:
        assert line["error"] is None and line["response"]["status_code"] == 200 and line["response"]["request_id"]
        body = line["response"]["body"]
        assert body["object"] == "chat.completion" and body["choices"][0]["message"]["role"] == "assistant"
        assert body["choices"][0]["finish_reason"] in ("stop", "length")
        assert body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"] == body["usage"]["total_tokens"]
        filters = resource.profile != "openai"
        assert ("prompt_filter_results" in body) == filters and ("id" in line) == (not filters)
    if resource.profile == "openai":
        assert now.error_file_id is None
    else:
        assert resource.client.files.content(now.error_file_id).read() == b""
    output = resource.client.files.retrieve(now.output_file_id)
    assert output.purpose == "batch_output"
    assert output.bytes == len(resource.client.files.content(now.output_file_id).read())


def test_answers_follow_the_schema_that_was_asked_for(resource: Resource) -> None:
    """A strict json_schema: the text is JSON that conforms to it."""
    schema = {
        "type": "object", "additionalProperties": False, "required": ["word"],
        "properties": {"word": {"type": "string", "enum": ["yes", "no"]}},
    }  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "word", "strict": True, "schema": schema}}
    now = resource.ended(resource.create(resource.lines(1, response_format=wanted)).id)
    [line] = resource.results(now.output_file_id)
    found = orjson.loads(line["response"]["body"]["choices"][0]["message"]["content"])
    assert found.keys() == {"word"} and found["word"] in ("yes", "no")


def test_a_file_is_what_was_uploaded(resource: Resource) -> None:
    """Object, wait, list, streamed and ranged content, expiry, deletion: each of the SDK's own ways works unchanged."""
    client, content = resource.client, resource.lines(20)
    month = {"anchor": "created_at", "seconds": 1_209_600}
    file = resource.upload(content, expires_after=month)
    assert file.object == "file" and file.purpose == "batch" and file.filename == "batchmill-contract.jsonl"
    assert file.expires_at - file.created_at == 1_209_600
    now = client.files.wait_for_processing(file.id, poll_interval=1)
    assert now.status == "processed" and now.bytes == len(content)
    with client.files.with_streaming_response.content(file.id) as answer:
        assert b"".join(answer.iter_bytes(1_000)) == content
    part = client.files.content(file.id, extra_headers={"Range": "bytes=10-19"})
    assert part.read() in (content[10:20], content)  # whether Azure honours ranges is not documented
    assert file.id in {found.id for found in client.files.list(purpose="batch")}
    gone = client.files.delete(file.id)
    resource.files.remove(file.id)
    assert gone.deleted and gone.id == file.id
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_batches_are_listed_page_by_page_each_once(resource: Resource) -> None:
    """The SDK's own pagination finds every batch once; after the last there is an empty page."""
    made = [resource.create(resource.lines(1)).id for _ in range(3)]
    seen = []
    for found in resource.client.batches.list(limit=2):
        seen.append(found.id)
        if set(made) <= set(seen):
            break
    assert set(made) <= set(seen) and len(seen) == len(set(seen))
    page = resource.client.batches.list(limit=2)
    assert len(page.data) == 2
    while page.has_next_page():
        page = page.get_next_page()
    assert resource.client.batches.list(limit=2, after=page.data[-1].id).data == [] or page.data == []
    for batch_id in made:
        resource.client.batches.cancel(batch_id)


def test_a_cancelled_batch_ends_as_cancelled(resource: Resource) -> None:
    """cancelling at once, cancelled in the end, each with its time; cancelling it again changes nothing."""
    batch = resource.create(resource.lines(2))
    asked = resource.client.batches.cancel(batch.id)
    assert asked.status in ("cancelling", "cancelled") and asked.cancelling_at
    now = resource.ended(batch.id)
    assert now.status in ("cancelled", "canceled") and now.cancelled_at >= now.cancelling_at
    assert resource.client.batches.retrieve(batch.id).status == now.status


@pytest.mark.parametrize("fault", ["duplicate_custom_id", "invalid_json_line", "model_not_found"])
def test_a_bad_file_is_refused_at_once_or_fails_later_with_its_code(resource: Resource, fault: str) -> None:
    """The same list of errors in a 400 under `errors`, or in the batch under `errors`; never in silence."""
    content = resource.lines(2)
    if fault == "duplicate_custom_id":
        content = content.replace(b"-1", b"-0")
    elif fault == "invalid_json_line":
        content += b"{not json\n"
    else:
        content = content.replace(b'"model":"%b"' % resource.model.encode(), b'"model":"batchmill-none"')
    try:
        batch = resource.create(content)
    except openai.BadRequestError as error:
        assert isinstance(error.body, dict)
        entry = error.body["errors"]["data"][0]
        found = (entry["code"], entry["message"])
    else:
        now = resource.ended(batch.id)
        assert now.status == "failed"
        found = (now.errors.data[0].code, now.errors.data[0].message)
    assert found[0] == fault and found[1]


def test_what_is_not_there_and_who_may_not(resource: Resource) -> None:
    """404 for unknown files, batches and paths; 401 for a wrong key; 404 for a version that has no batches."""
    client = resource.client
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-00000000000000000000000000000000")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_00000000-0000-4000-8000-000000000000")
    with pytest.raises(openai.NotFoundError):
        client.get("/nowhere", cast_to=object)
    with pytest.raises(openai.AuthenticationError):
        resource.again(api_key="0" * 32).files.list()
    if resource.profile == "azure":
        with pytest.raises(openai.NotFoundError, match="Resource not found"):
            resource.again(api_version="2024-05-13").batches.list()


def test_a_create_has_its_rules(resource: Resource) -> None:
    """Seventeen pairs of metadata, another window, a file that is not there: refused, and no batch is made."""
    file = resource.upload(resource.lines(1))
    good: dict[str, Any] = {
        "input_file_id": file.id, "endpoint": URLS[resource.profile], "completion_window": "24h",
    }  # fmt: skip
    for change in (
        {"metadata": {str(number): "v" for number in range(17)}},
        {"metadata": {"k": "v" * 513}},
        {"completion_window": "1h"},
        {"input_file_id": "file-00000000000000000000000000000000"},
    ):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
            resource.client.batches.create(**{**good, **change})
