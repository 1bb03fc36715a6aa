"""Each ordered fault, seen through the official SDK; plans are read strictly and strike reproducibly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from pipeline.emulator.faults import BATCH_KINDS, CALLS, LINE_KINDS, OF_CALLS, OF_EVERY_CALL, Faults, load_plan
from pipeline.emulator.settings import QUIRKS
from tests.emulator.serving import URLS, Served, serving


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """An Azure emulator."""
    with serving(tmp_path / "state") as found:
        yield found


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One without delays, for all tests that order their faults from the start."""
    with serving(tmp_path_factory.mktemp("quick") / "state", fault_seed=11, instant=True) as found:
        yield found


def lines_of(served: Served, batch: Any) -> tuple[dict[str, Any], list[str], list[str]]:
    """A batch's readable lines by custom_id, and its raw output and error lines."""
    raw = []
    for file_id in (batch.output_file_id, batch.error_file_id):
        text = served.client().files.content(file_id).read().decode() if file_id else ""
        raw.append([line for line in text.split("\n") if line])
    found = {}
    for line in raw[0] + raw[1]:
        try:
            parsed = json.loads(line)
            found[parsed["custom_id"]] = parsed
        except ValueError:
            continue
    return found, raw[0], raw[1]


STRUCK = {
    "match": ({"match": "^r-3$"}, ["r-3"]),
    "nth": ({"nth": 5}, ["r-4"]),
    "times": ({"times": 2}, ["r-0", "r-1"]),
    "rate": ({"rate": 0.3}, None),
}
"""Ways to choose, and the lines of ten that each strikes (by rate: those that the seed draws)."""


def drawn(seed: int, number: int, count: int, rate: float) -> list[str]:
    """The lines that an order by rate strikes, computed apart from the emulator."""
    import random

    chance = random.Random(f"{seed}:{number}")
    return [f"r-{line}" for line in range(count) if chance.random() < rate]


@pytest.mark.parametrize("chosen", STRUCK)
@pytest.mark.parametrize("kind", sorted(LINE_KINDS - {"truncated"}))
def test_every_fault_of_a_line_is_seen_on_the_lines_that_were_chosen(quick: Served, kind: str, chosen: str) -> None:
    """By custom_id, by occasion, by number and by rate; in the file and the shape that the contract gives it (§6)."""
    more, struck = STRUCK[chosen]
    quick.service.faults.clear()
    quick.order({"on": "line", "kind": kind, **more})
    batch = quick.finished(quick.request_lines(10))
    lines, output, errors = lines_of(quick, batch)
    assert batch.status == "completed"
    struck = drawn(11, 0, 10, 0.3) if struck is None else struck
    assert struck, "the seed strikes some"
    good = {name for name, line in lines.items() if is_good(line)}
    for name in struck:
        check_line(kind, lines.get(name), name, output, errors)
    untouched = {f"r-{number}" for number in range(10)} - set(struck)
    assert untouched <= good
    if kind not in ("doubled",):
        assert good == untouched
    failed = kind in ("429", "500", "503", "400", "content_filter", "request_timeout", "null_response")
    assert batch.request_counts.failed == (len(struck) if failed else 0)
    assert batch.request_counts.completed == 10 - batch.request_counts.failed
    assert len(errors) == (len(struck) if failed else 0)


def is_good(line: dict[str, Any]) -> bool:
    """Whether a line is an answer that nothing is wrong with."""
    response = line["response"]
    if response is None or response["status_code"] != 200:
        return False
    choice = response["body"]["choices"][0]
    text = choice["message"]["content"]
    return choice["finish_reason"] == "stop" and bool(text) and not text.startswith("[synthetic] not")


def check_line(kind: str, struck: dict[str, Any] | None, name: str, output: list[str], errors: list[str]) -> None:
    """That a fault has the shape it should have."""
    if kind in ("lost", "malformed"):
        assert struck is None
        return
    assert struck
    response = struck["response"]
    body = response["body"] if response else {}
    choice = (body.get("choices") or [{}])[0]
    match kind:
        case "429" | "500" | "503" | "400":
            assert response["status_code"] == int(kind)
            assert struck["error"] is None and body["error"]["code"] == kind
        case "content_filter":
            assert response["status_code"] == 400 and body["error"]["code"] == "content_filter"
            assert body["error"]["innererror"]["content_filter_result"]["violence"]["filtered"] is True
        case "status_0":
            assert response["status_code"] == 0 and any(f'"{name}"' in line for line in output), "counted as completed"
        case "request_timeout":
            assert response is None and struck["error"]["code"] == "request_timeout"
        case "null_response":
            assert response is None and struck["error"] is None
        case "length":
            assert choice["finish_reason"] == "length" and choice["message"]["content"]
        case "filtered":
            assert response["status_code"] == 200 and choice["finish_reason"] == "content_filter"
        case "refusal":
            assert choice["message"]["refusal"] and choice["message"]["content"] is None
        case "invalid_answer":
            assert choice["message"]["content"].startswith("[synthetic] not")
        case "doubled":
            assert sum(f'"{name}"' in line for line in output) == 2


def test_a_truncated_output_ends_in_the_midst_of_the_line_that_was_named(quick: Served) -> None:
    """Every other line is whole; there is no last line end."""
    for more in ({"match": "^r-3$"}, {"nth": 4}):
        quick.service.faults.clear()
        quick.order({"on": "line", "kind": "truncated", **more})
        lines, output, _ = lines_of(quick, quick.finished(quick.request_lines(10)))
        assert len(output) == 10 and set(lines) == {f"r-{n}" for n in range(10)} - {"r-3"}
        assert '"r-3"' in output[-1]


@pytest.mark.parametrize("kind", ["length", "filtered", "refusal", "invalid_answer"])
def test_the_answers_of_responses_are_spoilt_in_their_own_shape(tmp_path: Path, kind: str) -> None:
    """`status: incomplete` with its reason, a refusal as a part of the content (§6)."""
    with serving(tmp_path / "state", "openai", instant=True) as served:
        served.order({"on": "line", "kind": kind})
        batch = served.finished(served.request_lines(1, url="/v1/responses", input="hi"), endpoint="/v1/responses")
        body = served.lines_of(batch.output_file_id)[0]["response"]["body"]
    part = body["output"][0]["content"][0]
    if kind in ("length", "filtered"):
        reason = {"length": "max_output_tokens", "filtered": "content_filter"}[kind]
        assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": reason}
    elif kind == "refusal":
        assert part["type"] == "refusal" and part["refusal"] and "text" not in part
    else:
        assert part["text"].startswith("[synthetic] not")


ENDS = {
    "token_limit": ("failed", 0, 0), "others": ("failed", 0, 0), "fail": ("failed", 0, 0),
    "fail_running": ("failed", 0, 0), "expire_half": ("expired", 5, 10), "expire_half_silent": ("expired", 5, 5),
    "cancel_half": ("cancelled", 5, 10), "no_success": ("completed", 0, 10),
}  # fmt: skip
"""Status, answered lines and lines in all of a batch of ten."""


@pytest.mark.parametrize("fail_fast", [False, True], ids=["late", "fast"])
@pytest.mark.parametrize("kind", sorted(ENDS))
def test_every_fault_that_ends_a_batch_is_seen(tmp_path: Path, kind: str, fail_fast: bool) -> None:
    """What was answered is there; a refusal comes at the create where the service fails fast."""
    with serving(tmp_path / "state", instant=True, quota_tokens=10_000, fail_fast=fail_fast) as served:
        served.order({"on": "batch", "kind": kind})
        if fail_fast and kind in ("token_limit", "others", "fail"):
            with pytest.raises(openai.BadRequestError) as told:
                served.create(served.request_lines(10))
            body: Any = told.value.body
            assert body["errors"]["data"][0]["code"] == (
                "invalid_request" if kind == "fail" else "token_limit_exceeded"
            )
            return
        batch = served.finished(served.request_lines(10))
        _, output, errors = lines_of(served, batch)
        assert (batch.status, len(output), len(output) + len(errors)) == ENDS[kind]
        if batch.status == "failed":
            codes = {"fail": "invalid_request", "fail_running": "input_modified"}
            assert batch.errors.data[0].code == codes.get(kind, "token_limit_exceeded")
        if kind == "no_success":
            assert not batch.output_file_id and batch.request_counts.completed == 0


@pytest.mark.parametrize("kind", sorted(BATCH_KINDS - ENDS.keys()))
def test_every_fault_that_delays_a_batch_is_seen(served: Served, kind: str) -> None:
    """Stalled, forgotten for a while, counts forgotten for good: it ends all the same."""
    client = served.client()
    served.order({"on": "batch", "kind": kind, "seconds": 10_000})
    batch = served.create(served.request_lines(4))
    served.pass_s(150)
    if kind == "forgotten":
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve(batch.id)
        assert client.batches.list().data == []
    served.pass_s(900)
    if kind == "stall":
        assert client.batches.retrieve(batch.id).status == "in_progress"
    for _ in range(3):
        served.pass_s(10_000)
    now = client.batches.retrieve(batch.id)
    assert now.status == "completed"
    assert (now.request_counts.total is None) == (kind == "forget_counts")


@pytest.mark.parametrize(
    ("more", "struck"),
    [({"match": "^r-7$"}, [False, True, True]), ({"nth": 2}, [False, True, False]), ({"rate": 0.5}, None)],
    ids=["match", "nth", "rate"],
)
def test_batches_are_chosen_by_a_custom_id_they_hold_by_occasion_and_by_rate(
    tmp_path: Path, more: dict[str, Any], struck: list[bool] | None
) -> None:
    """Of three batches, of which the last two hold the line."""
    found = []
    for _ in range(2):
        with serving(tmp_path / f"{len(found)}", instant=True, fault_seed=3) as served:
            served.order({"on": "batch", "kind": "fail", "times": None, **more})
            statuses = [served.finished(served.request_lines(count)).status for count in (5, 8, 9)]
        found.append([status == "failed" for status in statuses])
    assert found[0] == found[1], "reproducible"
    assert found[0] == struck or struck is None


CALL_FAULTS: dict[str, type[Exception]] = {
    "status:401": openai.AuthenticationError, "status:408": openai.APIStatusError, "status:409": openai.ConflictError,
    "status:429": openai.RateLimitError, "status:500": openai.InternalServerError,
    "status:503": openai.InternalServerError, "html:502": openai.InternalServerError,
    "empty:500": openai.InternalServerError, "plain:401": openai.AuthenticationError,
    "hang": openai.APITimeoutError, "hang_after": openai.APITimeoutError, "hang_up_before": openai.APIConnectionError,
    "hang_up_after": openai.APIConnectionError, "late": openai.APIConnectionError,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(CALL_FAULTS))
def test_every_fault_of_a_create_is_seen_and_whether_it_took_effect(served: Served, kind: str) -> None:
    """Refusals in every shape, hanging and hanging up before or after the effect, an effect minutes later."""
    file = served.upload(served.request_lines(1))
    seconds = 0.4 if kind.startswith("hang") else 300
    served.order({"on": "create_batch", "kind": kind, "retry_after": 7, "seconds": seconds})
    client = served.client(timeout=0.2) if kind in ("hang", "hang_after") else served.client()
    with pytest.raises(CALL_FAULTS[kind]) as told:
        client.batches.create(input_file_id=file.id, endpoint="/chat/completions", completion_window="24h")
    response = getattr(told.value, "response", None)
    if response is not None:
        assert response.headers["retry-after"] == "7"
        head = kind.partition(":")[0]
        assert (response.text == "") == (head == "empty") and ("<html>" in response.text) == (head == "html")
        assert ('"statusCode"' in response.text) == (head == "plain")
    took_effect = kind in ("hang_up_after", "hang_after")
    assert len(served.client().batches.list().data) == took_effect
    served.pass_s(301)
    assert len(served.client().batches.list().data) == (took_effect or kind == "late")


def test_a_create_can_be_answered_with_what_nobody_can_read(served: Served) -> None:
    """A 2xx with a page in it; the batch is there."""
    served.order({"on": "create_batch", "kind": "garbled"})
    file = served.upload(served.request_lines(1))
    raw = served.client().batches.with_raw_response.create(
        input_file_id=file.id, endpoint="/chat/completions", completion_window="24h"
    )
    assert raw.status_code == 201 and raw.text.startswith("<html>")
    assert [batch.input_file_id for batch in served.client().batches.list()] == [file.id]


def call(served: Served, op: str, file_id: str, batch_id: str) -> Any:
    """One call of each kind."""
    client = served.client()
    match op:
        case "upload":
            return client.files.create(file=("in.jsonl", b"x"), purpose="batch")
        case "list_files":
            return client.files.list()
        case "get_file":
            return client.files.retrieve(file_id)
        case "delete_file":
            return client.files.delete(file_id)
        case "content":
            return client.files.content(file_id)
        case "create_batch":
            return client.batches.create(input_file_id=file_id, endpoint="/chat/completions", completion_window="24h")
        case "list_batches":
            return client.batches.list()
        case "get_batch":
            return client.batches.retrieve(batch_id)
    return client.batches.cancel(batch_id)


@pytest.mark.parametrize("op", sorted(CALLS))
def test_every_call_takes_refusals_and_hang_ups_by_nth_rate_and_match(served: Served, op: str) -> None:
    """The second of three; those that the seed draws; those that are about a file with the custom_id."""
    batch = served.create(served.request_lines(12))
    file_id = batch.input_file_id

    def outcome() -> str:
        try:
            call(served, op, file_id if op != "delete_file" else served.upload(served.request_lines(12)).id, batch.id)
        except openai.APIStatusError as error:
            return str(error.status_code)
        except openai.APIConnectionError:
            return "cut"
        return "good"

    served.order({"on": op, "kind": "status:503", "nth": 2}, {"on": op, "kind": "hang_up_after", "nth": 2})
    assert [outcome() for _ in range(4)] == ["good", "503", "cut", "good"]
    assert httpx2.delete(f"{served.url}/_emulator/faults").json() == {"open": 0}
    served.order({"on": op, "kind": "status:429", "rate": 0.5})
    chance = drawn(0, 0, 8, 0.5)
    assert [outcome() for _ in range(8)] == ["429" if f"r-{n}" in chance else "good" for n in range(8)]
    httpx2.delete(f"{served.url}/_emulator/faults")
    if op in ("upload", "list_files", "list_batches"):
        with pytest.raises(httpx2.HTTPStatusError):
            served.order({"on": op, "kind": "status:500", "match": "x"})
        return
    served.order({"on": op, "kind": "status:500", "match": "^r-11$", "times": None})
    served.order({"on": op, "kind": "status:409", "match": "^nobody$", "times": None})
    assert outcome() == "500"


def test_every_special_fault_of_a_call_has_a_test_of_its_own() -> None:
    """Here and below: none is left out."""
    special = {kind for kinds in OF_CALLS.values() for kind in kinds}
    assert special == {"null_size", "truncated", "unprocessable", "lag", "small_pages", "cut", "late"}
    assert set(OF_EVERY_CALL) == {"hang", "hang_after", "hang_up_before", "hang_up_after", "garbled"}


@pytest.mark.parametrize("lists", ["batches", "files"])
def test_listings_lag_and_come_in_small_pages(served: Served, lists: str) -> None:
    """What is young is not listed yet, on several pages; two entries a page, and every one in the end."""
    for _ in range(5):
        served.create(served.request_lines(1))
        served.clock.now += 30
    listed = getattr(served.client(), lists)
    on = f"list_{lists}"
    served.order({"on": on, "kind": "lag", "seconds": 300, "times": 3}, {"on": on, "kind": "small_pages", "times": 3})
    young = [one for one in listed.list(limit=50) if one.created_at > served.clock.now - 300]
    assert young == []
    httpx2.delete(f"{served.url}/_emulator/faults")
    served.order({"on": on, "kind": "small_pages", "times": 3})
    page = listed.list(limit=50)
    assert len(page.data) == 2 and page.has_more
    assert len(list(page)) == 5


def test_downloads_are_cut_short(served: Served) -> None:
    """Half a file, then the connection ends."""
    content = served.request_lines(1_000)
    file = served.upload(content)
    served.order({"on": "content", "kind": "cut", "times": 2})
    with pytest.raises((openai.APIConnectionError, httpx2.HTTPError)):
        served.client().files.content(file.id)
    got = b""
    with pytest.raises(httpx2.HTTPError), served.client().files.with_streaming_response.content(file.id) as answer:
        for piece in answer.iter_bytes():
            got += piece
    assert 0 < len(got) < len(content) and content.startswith(got)
    assert served.client().files.content(file.id).read() == content


def test_sizes_are_null_uploads_lose_their_end_and_files_cannot_be_processed(served: Served) -> None:
    """`bytes: null`; half of an upload kept, which its size tells; `error` in the end, and no batch on it."""
    client, content = served.client(), served.request_lines(100)
    file = served.upload(content)
    served.order({"on": "get_file", "kind": "null_size"}, {"on": "upload", "kind": "null_size"})
    assert client.files.retrieve(file.id).bytes is None
    assert client.files.retrieve(file.id).bytes == len(content)
    assert served.upload(content).bytes is None
    served.order({"on": "upload", "kind": "truncated"})
    assert served.upload(content).bytes == len(content) // 2
    served.order({"on": "upload", "kind": "unprocessable"})
    spoilt = client.files.create(file=("in.jsonl", content), purpose="batch")
    assert spoilt.status == "pending"
    served.clock.now += 100
    assert client.files.wait_for_processing(spoilt.id).status == "error"
    with pytest.raises(openai.BadRequestError, match="'error' state"):
        client.batches.create(input_file_id=spoilt.id, endpoint="/chat/completions", completion_window="24h")


SEEN: dict[str, Any] = {
    "capitals": lambda batch, page: batch.status == "Failed",
    "iso_times": lambda batch, page: str(batch.created_at).startswith("2023-11-14T"),
    "text_times": lambda batch, page: batch.created_at == "1700000120",
    "null_counts": lambda batch, page: batch.request_counts is None,
    "no_metadata": lambda batch, page: batch.metadata is None,
    "null_endpoint": lambda batch, page: batch.endpoint is None,
    "null_ids": lambda batch, page: batch.output_file_id is None,
    "text_lines": lambda batch, page: page["data"][0]["errors"]["data"][0]["line"] == "2",
    "single_error": lambda batch, page: isinstance(page["data"][0]["errors"]["data"], dict),
    "failed_as_completed": lambda batch, page: batch.completed_at and batch.failed_at is None,
    "bare_lists": lambda batch, page: "object" not in page and page["data"],
    "value_lists": lambda batch, page: "data" not in page and page["value"],
}


@pytest.mark.parametrize("how", ["setting", "order"])
@pytest.mark.parametrize("quirk", sorted(SEEN))
def test_every_quirk_of_batch_objects_is_seen_as_a_setting_and_on_single_calls(
    tmp_path: Path, quirk: str, how: str
) -> None:
    """Each oddity that the contract lists (§3, §4), here on a batch that has failed at its second line."""
    quirks = frozenset({quirk}) if how == "setting" else frozenset[str]()
    with serving(tmp_path / "state", quirks=quirks) as served:
        one = served.request_lines(1)
        batch = served.create(one + b"{\n", metadata={"k": "v"})
        served.pass_s(200)
        if how == "order":
            kind = f"quirk:{quirk}"
            served.order({"on": "get_batch", "kind": kind}, {"on": "list_batches", "kind": kind})
        now = served.client().batches.retrieve(batch.id)
        page = served.client().batches.with_raw_response.list().http_response.json()
        assert SEEN[quirk](now, page)
        if how == "order":  # the call after it is as it should be
            assert served.client().batches.retrieve(batch.id).status == "failed"


def test_the_other_quirks_have_tests_of_their_own(tmp_path: Path) -> None:
    """`canceled`, `null_sizes` and `created_200`; `window_ends` stands with the states."""
    assert {*SEEN, "canceled", "null_sizes", "created_200", "window_ends"} == QUIRKS
    with serving(tmp_path / "state", quirks=frozenset({"canceled", "null_sizes", "created_200"})) as served:
        client = served.client()
        raw = client.files.with_raw_response.create(file=("in.jsonl", served.request_lines(1)), purpose="batch")
        assert raw.status_code == 200 and raw.parse().bytes is None
        batch = served.create(served.request_lines(1))
        client.batches.cancel(batch.id)
        served.pass_s(100)
        assert client.batches.retrieve(batch.id).status == "canceled"


def test_a_late_create_survives_a_restart_and_finds_no_input_that_was_deleted(tmp_path: Path) -> None:
    """What was accepted takes effect minutes after the client gave up, whatever happened in between."""
    with serving(tmp_path / "state") as served:
        files = [served.upload(served.request_lines(1)) for _ in range(2)]
        served.order({"on": "create_batch", "kind": "late", "seconds": 300, "times": 2})
        for file in files:
            with pytest.raises(openai.APIConnectionError):
                served.client().batches.create(input_file_id=file.id, endpoint=URLS["azure"], completion_window="24h")
        served.client().files.delete(files[1].id)
        now = served.clock.now
    with serving(tmp_path / "state") as served:
        served.clock.now = now + 10
        served.service.step()
        assert served.client().batches.list().data == []
        served.pass_s(300)
        assert [batch.input_file_id for batch in served.client().batches.list()] == [files[0].id]


def test_orders_by_rate_and_by_occasion_are_reproducible(tmp_path: Path) -> None:
    """The same plan and seed strike the same occasions, whatever else was ordered; nth strikes that one alone."""
    plan = "  - {on: line, kind: '500', rate: 0.2}\n  - {on: upload, kind: 'status:503', nth: 3}\n"
    struck = []
    for more in ("", "  - {on: line, kind: '429', match: nobody}\n"):
        (tmp_path / "plan.yaml").write_text(f"seed: 11\nfaults:\n{plan}{more}")
        orders, seed = load_plan(tmp_path / "plan.yaml")
        faults = Faults(seed)
        faults.order(orders)
        struck.append([bool(faults.take("line", custom_id=str(n))) for n in range(1_000)])
        assert [bool(faults.take("upload")) for _ in range(5)] == [False, False, True, False, False]
    assert struck[0] == struck[1]
    assert 150 < sum(struck[0]) < 250
    other = Faults(12)
    other.order(orders)
    assert [bool(other.take("line", custom_id=str(n))) for n in range(1_000)] != struck[0]


@pytest.mark.parametrize(
    "order",
    [
        {}, {"on": "line"}, {"on": "line", "kind": "no"}, {"on": "nowhere", "kind": "hang"},
        {"on": "line", "kind": "500", "x": 1}, {"on": "line", "kind": "500", "match": "("},
        {"on": "line", "kind": "500", "times": "many"}, "text", 7, {"on": "line", "kind": "500", "rate": 1.5},
        {"on": "line", "kind": "500", "nth": 0}, {"on": "batch", "kind": "stall", "seconds": -1},
        {"on": "batch", "kind": "stall", "seconds": "inf"}, {"on": "upload", "kind": "cut"},
        {"on": "content", "kind": "late"}, {"on": "get_batch", "kind": "status:200"},
        {"on": "get_batch", "kind": "quirk:none"}, {"on": "upload", "kind": "quirk:capitals"},
        {"on": "upload", "kind": "hang", "match": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_an_order_that_cannot_be_read_is_refused(quick: Served, order: Any) -> None:
    """One sentence, from the plan and from the control endpoint alike; nothing is ordered."""
    served = quick
    served.service.faults.clear()
    with pytest.raises(ValueError, match="order|fault"):
        Faults().order([order])
    assert httpx2.post(f"{served.url}/_emulator/faults", json=[order]).status_code == 400
    assert httpx2.post(f"{served.url}/_emulator/faults", json=[]).json() == {"open": 0}


@pytest.mark.parametrize(
    "text", ["[", "7", "faults: 7", "faults: []\nmore: 1", "seed: x\nfaults: []", "faults: [{on: x}]"]
)
def test_a_plan_that_cannot_be_read_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    """With the name of its file."""
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"--faults .*plan\.yaml"):
        load_plan(tmp_path / "plan.yaml")
    with pytest.raises(ValueError, match="cannot be read"):
        load_plan(tmp_path / "none.yaml")
