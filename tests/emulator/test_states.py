"""Every way through the states of the contract's §4, seen through the official SDK, with its times and leftovers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from pipeline.emulator import machine
from tests.emulator.serving import serving

PROFILES = ["azure", pytest.param("azure-v1", marks=pytest.mark.slow), "openai"]
TIMES = ["in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at"]
PATHS: dict[str, tuple[list[str], dict[str, Any] | None]] = {
    "completed": (["validating", "in_progress", "finalizing", "completed"], None),
    "failed": (["validating", "failed"], {"kind": "fail"}),
    "failed while running": (["validating", "in_progress", "failed"], {"kind": "fail_running"}),
    "expired": (["validating", "in_progress", "finalizing", "expired"], {"kind": "expire_half"}),
    "cancelled by somebody": (["validating", "in_progress", "cancelling", "cancelled"], {"kind": "cancel_half"}),
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_sets_the_times_of_its_states_and_no_other(tmp_path: Path, profile: str, path: str) -> None:
    """In order, growing, kept once set; `expires_at` is there from the start."""
    states, fault = PATHS[path]
    with serving(tmp_path / "state", profile) as served:
        if fault:
            served.order({"on": "batch", **fault})
        seen = served.run_to_end(served.create(served.request_lines(4)).id)
        assert [now.status for now in seen] == states
        for number, now in enumerate(seen):
            wanted = [f"{status}_at" for status in states[: number + 1] if status != "validating"]
            assert [name for name in TIMES if getattr(now, name) is not None] == sorted(wanted, key=TIMES.index)
            told = [now.created_at, *(getattr(now, name) for name in wanted)]
            assert told == sorted(told) and now.expires_at == now.created_at + 86_400
            if number + 1 < len(states):
                assert not now.output_file_id and not now.error_file_id, "results are there at the end"


def test_counts_are_zero_then_move_to_the_end(tmp_path: Path) -> None:
    """Nothing before validation; then the total, and more and more of it."""
    with serving(tmp_path / "state") as served:
        batch, seen = served.create(served.request_lines(50)), []
        for _ in range(40):
            counts = served.client().batches.retrieve(batch.id).request_counts
            seen.append((counts.total, counts.completed))
            served.pass_s(8)
        assert seen[0] == (0, 0) and seen[-1] == (50, 50)
        assert [done for _, done in seen] == sorted(done for _, done in seen) and len(set(seen)) > 5


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("moment", ["validating", "in_progress", "finalizing", "completed"])
def test_a_cancel_drains_and_keeps_what_was_answered(tmp_path: Path, profile: str, moment: str) -> None:
    """From each state; the rest is `batch_cancelled`; what was answered is charged; on a terminal batch it is 200."""
    with serving(tmp_path / "state", profile) as served:
        client, batch = served.client(), served.create(served.request_lines(20))
        while client.batches.retrieve(batch.id).status != moment:
            served.pass_s(20)
        if moment == "in_progress":
            served.clock.now += 40
        answer = client.batches.cancel(batch.id)
        if moment == "completed":
            assert answer.status == "completed" and answer.cancelling_at is None
            return
        assert answer.status == "cancelling" and answer.cancelling_at
        assert client.batches.cancel(batch.id).status == "cancelling"
        now = served.run_to_end(batch.id)[-1]
        assert now.status == "cancelled" and now.cancelled_at >= now.cancelling_at and now.completed_at is None
        answered, rest = served.lines_of(now.output_file_id), served.lines_of(now.error_file_id)
        expected = {"validating": range(1), "in_progress": range(5, 16), "finalizing": range(20, 21)}[moment]
        assert len(answered) in expected
        assert len(answered) + len(rest) == (0 if moment == "validating" else 20)
        assert {line["error"]["code"] for line in rest} <= {"batch_cancelled"}
        # OpenAI was seen to count lines that were never executed nowhere: total is not completed + failed there.
        assert now.request_counts.completed == len(answered)
        assert now.request_counts.failed == (0 if profile == "openai" else len(rest))
        assert served.service.books()["accepted_lines"] == len(answered)
        assert client.batches.cancel(batch.id).status == "cancelled"


def test_a_cancel_that_comes_while_lines_are_answered_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is amid the lines: the batch drains with all of its answers, and never leaves cancelling."""
    begun, cancelled = threading.Event(), threading.Event()
    work_off = machine.work_off

    def slow(*given: Any, **more: Any) -> Any:
        begun.set()
        assert cancelled.wait(20)
        return work_off(*given, **more)

    monkeypatch.setattr(machine, "work_off", slow)
    with serving(tmp_path / "state") as served:
        batch = served.create(served.request_lines(10))
        served.pass_s(130)
        working = threading.Thread(target=served.pass_s, args=(100,))
        working.start()
        assert begun.wait(20)
        assert served.client().batches.cancel(batch.id).status == "cancelling"
        cancelled.set()
        working.join()
        assert served.client().batches.retrieve(batch.id).status == "cancelling"
        now = served.run_to_end(batch.id)[-1]
        assert now.status == "cancelled" and now.finalizing_at is None
        assert len(served.lines_of(now.output_file_id)) == 10
        assert served.service.books()["accepted_lines"] == 10


@pytest.mark.parametrize("profile", ["azure", "openai"])
def test_a_window_ends_where_the_service_says_so(tmp_path: Path, profile: str) -> None:
    """OpenAI: unfinished lines are `batch_expired`. Azure's guide says its batches run on; a quirk ends them too."""
    for quirks in (frozenset[str](), frozenset({"window_ends"})):
        with serving(tmp_path / f"{len(quirks)}", profile, quirks=quirks) as served:
            served.order({"on": "batch", "kind": "stall", "seconds": 90_000})
            batch = served.create(served.request_lines(10))
            for _ in range(20):
                served.pass_s(5_000)
            now = served.client().batches.retrieve(batch.id)
            ends = profile == "openai" or bool(quirks)
            assert now.status == ("expired" if ends else "completed")
            rest = served.lines_of(now.error_file_id)
            assert {line["error"]["code"] for line in rest} == ({"batch_expired"} if ends else set())
            assert len(rest) + len(served.lines_of(now.output_file_id)) == 10


@pytest.mark.parametrize("profile", PROFILES)
def test_a_batch_of_which_every_line_failed_is_completed(tmp_path: Path, profile: str) -> None:
    """OpenAI: no output file; Azure: an empty text instead of its id; all lines in the error file."""
    with serving(tmp_path / "state", profile) as served:
        served.order({"on": "line", "kind": "500", "rate": 1})
        now = served.finished(served.request_lines(3))
        assert now.status == "completed"
        assert (now.request_counts.completed, now.request_counts.failed) == (0, 3)
        assert now.output_file_id == (None if profile == "openai" else "")
        assert len(served.lines_of(now.error_file_id)) == 3


@pytest.mark.parametrize("profile", PROFILES)
def test_model_and_usage_stand_in_batches_where_the_reference_has_them(tmp_path: Path, profile: str) -> None:
    """On OpenAI and v1: the sums of the lines' own usage; not on classic Azure."""
    with serving(tmp_path / "state", profile) as served:
        now = served.finished(served.request_lines(5))
        told = (now.model_extra or {}).get("usage") if profile == "azure" else now.usage
        if profile == "azure":
            assert told is None
            return
        used = [line["response"]["body"]["usage"] for line in served.lines_of(now.output_file_id)]
        assert now.model == "m" and now.usage.input_tokens == sum(one["prompt_tokens"] for one in used)
        assert now.usage.total_tokens == sum(one["total_tokens"] for one in used)


def test_the_roots_differ_as_the_contract_says(tmp_path: Path) -> None:
    """One emulator, three roots: 201 with its place, and the quota's headers, on the classic one alone (§1, §8)."""
    with serving(tmp_path / "state", quota_tokens=10_000) as served:
        roots: dict[str, openai.OpenAI] = {
            "/openai": served.client(),
            "/openai/v1": openai.OpenAI(base_url=f"{served.url}/openai/v1/", api_key="k"),
            "/v1": openai.OpenAI(base_url=f"{served.url}/v1/", api_key="k"),
        }
        for root, client in roots.items():
            classic = root == "/openai"
            raw = client.files.with_raw_response.create(file=("a.jsonl", served.request_lines(1)), purpose="batch")
            assert raw.status_code == (201 if classic else 200) and raw.headers["apim-request-id"]
            assert ("location" in raw.headers) == classic
            served.clock.now += 100
            made = client.batches.with_raw_response.create(
                input_file_id=raw.parse().id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            assert made.status_code == (201 if classic else 200)
            assert ("deployment-enqueued-tokens" in made.headers) == classic
            if classic:
                found = httpx2.get(made.headers["location"], headers={"api-key": "k"})
                assert found.status_code == 200 and found.json()["id"] == made.parse().id
            assert client.batches.with_raw_response.cancel(made.parse().id).status_code == 200


def test_a_batch_deployment_answers_no_single_calls(tmp_path: Path) -> None:
    """400 `OperationNotSupported`; files and batches under a deployment are no path at all (§1, §5)."""
    with serving(tmp_path / "state") as served:
        asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        for client in (served.client(), openai.OpenAI(base_url=f"{served.url}/openai/v1/", api_key="k")):
            with pytest.raises(openai.BadRequestError) as told:
                client.chat.completions.create(**asked)
            assert told.value.code == "OperationNotSupported"
        with pytest.raises(openai.NotFoundError, match="Resource not found"):
            served.client().get("/deployments/m/files", cast_to=object)


def test_an_api_version_must_be_one_that_has_batches(tmp_path: Path) -> None:
    """Missing, malformed, a model's date: 404 on the classic root; the others want none (§1)."""
    with serving(tmp_path / "state") as served:
        versions = {"2024-07-01-preview": True, "2024-10-21": True, "2024-05-13": False, "2024-99": False, " ": False}
        for version, there in versions.items():
            client = openai.AzureOpenAI(
                azure_endpoint=served.url, api_version=version, azure_ad_token_provider=lambda: "t", max_retries=0
            )
            if there:
                assert client.files.list().data == []
            else:
                with pytest.raises(openai.NotFoundError, match="Resource not found"):
                    client.files.list()


def test_lists_are_newest_first_with_strict_pages(tmp_path: Path) -> None:
    """Seven batches in pages of three; an empty page after the last; limits 1 to 100; unknown `after` is refused."""
    with serving(tmp_path / "state") as served:
        ids = [served.create(served.request_lines(1)).id for _ in range(7)]
        client = served.client()
        assert [batch.id for batch in client.batches.list(limit=3)] == ids[::-1]
        page = client.batches.list(limit=100, after=ids[0])
        assert page.data == [] and page.has_more is False
        first = client.batches.list(limit=3)
        assert first.has_more is True and (first.first_id, first.last_id) == (ids[6], ids[4])  # type: ignore[attr-defined]
        for wrong in ({"limit": 0}, {"limit": 101}, {"after": "batch_none"}):
            with pytest.raises(openai.BadRequestError):
                client.batches.list(**wrong)  # type: ignore[arg-type]
        files = [file.id for file in client.files.list(purpose="batch", limit=2)]
        assert len(files) == len(set(files)) == 7
        assert [file.id for file in client.files.list(purpose="batch", limit=2, order="asc")] == files[::-1]


def test_nothing_else_is_done_to_a_result_than_to_shuffle_it(tmp_path: Path) -> None:
    """Every request has its line, in another order than the input's, whatever the seed."""
    orders = []
    for seed in (1, 2):
        with serving(tmp_path / f"{seed}", seed=seed) as served:
            lines = served.lines_of(served.finished(served.request_lines(60)).output_file_id)
            orders.append([line["custom_id"] for line in lines])
            assert sorted(orders[-1]) == sorted(f"r-{number}" for number in range(60))
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])
