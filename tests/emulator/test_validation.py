"""Every validation error of the contract's §5 through the official SDK: fail-fast and late, with code and line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from tests.emulator.serving import URLS, Served, serving

PROFILES = ["azure", pytest.param("azure-v1", marks=pytest.mark.slow), "openai"]
NO_MODEL = "A valid model deployment name couldn't be extracted"


@dataclass(frozen=True)
class Case:
    """A file and what is told of it; `param` is told on OpenAI alone."""

    code: str
    content: bytes
    line: int | None
    words: str
    param: str | None = None
    endpoint: str | None = None


def entry_of(served: Served, content: bytes, **more: Any) -> dict[str, Any]:
    """The first error of a file: from the refusal, or from the batch that failed."""
    if served.service.settings.fail_fast:
        with pytest.raises(openai.BadRequestError) as told:
            served.create(content, **more)
        error: Any = told.value
        assert error.code is None, "Azure's fail-fast body has no `error`"
        assert error.body["errors"]["object"] == "list"
        found: dict[str, Any] = error.body["errors"]["data"][0]
        return found
    batch = served.create(content, **more)
    assert batch.status == "validating" and batch.errors is None
    seen = served.run_to_end(batch.id)
    assert [now.status for now in seen] == ["validating", "failed"]
    now = seen[-1]
    assert now.failed_at >= now.created_at and now.errors.object == "list" and len(now.errors.data) == 1
    assert not now.output_file_id and not now.error_file_id and now.request_counts.total == 0
    assert served.service.books()["accepted_lines"] == 0
    return dict(now.errors.data[0])


def changed(line: bytes, **changes: Any) -> bytes:
    """A line with other members; None takes one away."""
    found = {**orjson.loads(line), **changes}
    return orjson.dumps({name: value for name, value in found.items() if value is not None}) + b"\n"


def cases(served: Served) -> list[Case]:
    """A file for every validation code."""
    one, two, three = served.request_lines(3).splitlines(keepends=True)
    openai_like = served.profile == "openai"
    missing = "missing_required_parameter" if openai_like else "invalid_request"
    other = "/v1/responses"
    return [
        Case("invalid_json_line", one + b"{not json\n" + three, 2, "not parseable as valid JSON"),
        Case("invalid_json_line", one + b"\n" + three, 2, "not parseable"),
        Case("invalid_json_line", b"[" + one.strip() + b",\n" + two, 1, "not parseable"),
        Case("invalid_json_line", one + two[:-9], 2, "not parseable"),
        Case("too_many_tasks", served.request_lines(6), None, "more than 5 tasks"),
        Case("url_mismatch", one + changed(two, url=other), 2, "same url"),
        Case("url_mismatch", one, 1, "does not match the endpoint", "url", "/v1/embeddings"),
        Case("model_not_found", served.request_lines(2, model="nobody"), None, "'nobody' was not found"),
        Case("model_mismatch", one + two.replace(b'"model":"m"', b'"model":"n"'), 2, "the same model"),
        Case("duplicate_custom_id", one + two + one, 3, "'r-0' stands more than once"),
        Case("duplicate_custom_id", changed(one, custom_id="x" * 99) * 2, 2, "more than once"),
        Case("empty_file", b"\n", None, "no requests"),
        Case("empty_file", b" \r\n\n", None, "no requests"),
        Case("invalid_request", served.request_lines(2, model="standard"), None, "not of a batch type"),
        Case("invalid_request", one + changed(two, method="GET"), 2, "'method'", "method"),
        Case("invalid_request", changed(one, custom_id=7), 1, "'custom_id'", "custom_id"),
        Case("invalid_request", changed(one, custom_id=""), 1, "'custom_id'", "custom_id"),
        Case("invalid_request", changed(one, body=[1]), 1, "'body'", "body"),
        Case("invalid_request", one + b"[1]\n", 2, "must be a JSON object"),
        Case("invalid_request", changed(one, url="/v1/moderations"), 1, "cannot be batched", "url"),
        Case("invalid_request", b"\xef\xbb\xbf" + one, 1, NO_MODEL),
        Case("invalid_request", changed(one, body={"model": "", "messages": [1]}), 1, NO_MODEL, "body.model"),
        *(Case(missing, one + changed(two, **{name: None}), 2, f"'{name}'", name) for name in
          ("custom_id", "method", "url", "body")),
        Case(missing, changed(one, body={"messages": [1]}), 1, "'model'" if openai_like else NO_MODEL, "body.model"),
    ]  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("fail_fast", [True, False], ids=["fast", "late"])
def test_every_validation_error_is_told_with_code_line_and_message(
    tmp_path: Path, profile: str, fail_fast: bool
) -> None:
    """In a 400 under plural `errors`, or as `failed` with the same list; nothing is charged."""
    more: dict[str, Any] = {"fail_fast": fail_fast, "lines_max": 5, "deployments": ("m",), "instant": True}
    with serving(tmp_path / "state", profile, standard_deployments=("standard",), **more) as served:
        for case in cases(served):
            asked = {"endpoint": case.endpoint} if case.endpoint else {}
            found = entry_of(served, case.content, **asked)
            assert (found["code"], found["line"]) == (case.code, case.line), case
            assert case.words in found["message"], case
            assert found["param"] == (case.param if profile == "openai" else None), case


@pytest.mark.parametrize("fail_fast", [True, False], ids=["fast", "late"])
@pytest.mark.parametrize(
    "code", ["input_modified", "input_no_permissions", "token_limit_exceeded", "invalid_request", "anything_new"]
)
def test_a_code_that_no_file_brings_about_can_be_ordered(tmp_path: Path, fail_fast: bool, code: str) -> None:
    """Those of blobs, and any that the service may yet have."""
    with serving(tmp_path / "state", fail_fast=fail_fast, instant=True) as served:
        served.order({"on": "batch", "kind": "fail", "code": code})
        assert entry_of(served, served.request_lines(1))["code"] == code
        assert served.finished(served.request_lines(1)).status == "completed"


def test_an_input_file_that_vanishes_fails_its_batch(tmp_path: Path) -> None:
    """Deleted before it was validated, or while it is executed: the batch fails with `empty_file`."""
    with serving(tmp_path / "state") as served:
        for wait_s in (0, 130):
            batch = served.create(served.request_lines(2))
            served.pass_s(wait_s)
            served.client().files.delete(batch.input_file_id)
            now = served.run_to_end(batch.id)[-1]
            assert (now.status, now.errors.data[0].code) == ("failed", "empty_file")


@pytest.mark.parametrize(
    ("endpoint", "url", "taken"),
    [
        ("/chat/completions", "/chat/completions", True), ("/chat/completions", "/v1/chat/completions", True),
        ("/chat/completions", "/v1/responses", True), ("/v1/chat/completions", "/chat/completions", True),
        ("/v1/chat/completions", "/v1/responses", True), ("/v1/responses", "/v1/responses", True),
        ("/v1/responses", "/v1/chat/completions", False), ("/v1/embeddings", "/v1/embeddings", False),
        ("/chat/completions", "/responses", False),
    ],
)  # fmt: skip
def test_azure_reads_the_file_to_tell_chat_from_responses(tmp_path: Path, endpoint: str, url: str, taken: bool) -> None:
    """The guide passes `/chat/completions` for all of them (§5); embeddings are not for batches there (§11)."""
    with serving(tmp_path / "state", instant=True) as served:
        more: dict[str, Any] = {"input": "hi"} if "chat" not in url else {}
        now = served.finished(served.request_lines(1, url=url, **more), endpoint=endpoint)
        assert (now.status == "completed") == taken


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/chat/completions"])
def test_openai_wants_the_very_url(tmp_path: Path, endpoint: str) -> None:
    """Equal to the letter, and under /v1."""
    with serving(tmp_path / "state", "openai", instant=True) as served:
        for url in ("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/chat/completions"):
            now = served.finished(served.request_lines(1, url=url, input="hi"), endpoint=endpoint)
            assert (now.status == "completed") == (url == endpoint and url.startswith("/v1/"))


def test_the_caps_of_a_file_are_each_profiles_own(tmp_path: Path) -> None:
    """100,000 lines on Azure, 50,000 on OpenAI, and there 50,000 embedding inputs however few the lines."""
    line = b'{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[1]}}\n'
    for profile, lines in (("azure", 100_000), ("openai", 50_000)):
        with serving(tmp_path / profile, profile, instant=True, fail_fast=True) as served:
            content = b"".join(line % number for number in range(lines + 1))
            assert entry_of(served, content, endpoint="/v1/chat/completions")["code"] == "too_many_tasks"
            if profile == "openai":
                wide = served.request_lines(2, url="/v1/embeddings", input=["x"] * 25_001)
                assert "50000 embedding inputs" in entry_of(served, wide, endpoint="/v1/embeddings")["message"]


@pytest.mark.parametrize("means", ["file", "sum"])
@pytest.mark.parametrize("fail_fast", [True, False], ids=["fast", "late"])
def test_the_enqueued_tokens_have_a_limit_and_two_headers(tmp_path: Path, means: str, fail_fast: bool) -> None:
    """Held until a batch has ended; the first header says this file's or the sum's, by the service's own estimate."""
    with serving(
        tmp_path / "state", quota_tokens=2_000, header_means=means, fail_fast=fail_fast, tokens_per_character=0.5
    ) as served:
        content = served.request_lines(10, messages=[{"role": "user", "content": "äöü€"}])
        estimate = int(len(content.decode()) * 0.5)
        assert estimate < int(len(content) * 0.5), "characters, not bytes"
        told = []
        served.order({"on": "batch", "kind": "stall", "seconds": 1_000, "times": 2})
        for _ in range(2):
            file = served.upload(content)
            raw = served.client().batches.with_raw_response.create(
                input_file_id=file.id, endpoint="/chat/completions", completion_window="24h"
            )
            assert raw.headers["deployment-maximum-enqueued-tokens"] == "2000"
            told.append(int(raw.headers["deployment-enqueued-tokens"]))
        assert told == ([estimate] * 2 if means == "file" else [estimate, 2 * estimate])
        found = entry_of(served, content)
        assert found["code"] == "token_limit_exceeded"
        assert "limit of 2K for the deployment 'm'" in found["message"]
        for _ in range(8):
            served.pass_s(200)
        assert served.finished(content).status == "completed", "released when the others have ended"


def test_each_deployment_has_a_queue_of_its_own_and_others_may_sit_in_it(tmp_path: Path) -> None:
    """What one holds is no matter to another; what others hold counts, for as long as it was ordered."""
    with serving(tmp_path / "state", quota_tokens=1_000, fail_fast=True) as served:
        content = served.request_lines(15)
        for model in ("m", "n"):
            served.create(content.replace(b'"model":"m"', b'"model":"%b"' % model.encode()))
        assert entry_of(served, content)["code"] == "token_limit_exceeded"
        for _ in range(8):
            served.pass_s(200)
        served.order({"on": "batch", "kind": "others", "seconds": 3_600, "tokens": 900})
        for _ in range(2):
            assert entry_of(served, content)["code"] == "token_limit_exceeded"
        served.clock.now += 3_600
        assert served.create(content).id


def test_openai_tells_a_full_queue_in_its_own_words_and_only_later(tmp_path: Path) -> None:
    """As `failed`, with the limit written out; no headers."""
    with serving(tmp_path / "state", "openai", quota_tokens=90_000, others_tokens=90_000) as served:
        found = entry_of(served, served.request_lines(1))
        assert found["message"].startswith("Enqueued token limit reached for m in organization")
        assert "Limit: 90,000 enqueued tokens." in found["message"]
        file = served.upload(served.request_lines(1))
        raw = served.client().batches.with_raw_response.create(
            input_file_id=file.id, endpoint=URLS["openai"], completion_window="24h"
        )
        assert "deployment-enqueued-tokens" not in raw.headers
