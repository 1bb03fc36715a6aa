"""What a hostile service, network or operator can do to a run: each of these would once have cost rows or money."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from pipeline.connecting import is_loopback, services_of
from pipeline.emulator import service as emulator
from pipeline.errors import UnreachableError, UsageError
from pipeline.ledger import Ledger
from pipeline.shard import BatchState
from tests.submit.world import Life, World, served

Making = Callable[..., World]


def statuses(world: World) -> Counter[tuple[str, str | None]]:
    """Rows by status and code."""
    output = world.output()
    return Counter(zip(output["status"].to_pylist(), output["error_code"].to_pylist(), strict=True))


def until(life: Life, state: str) -> None:
    """Passes until a batch is in a state."""
    for _ in range(500):
        if any(batch.state == state for batch in life.ledger.open_batches()):
            return
        life.pass_once()
    raise AssertionError(f"no batch ever was {state}")


def showing(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None]) -> None:
    """Every batch object of the service is changed as told."""
    shown = emulator.shown_batch

    def odd(doc: dict[str, Any]) -> dict[str, Any]:
        found = json.loads(json.dumps(shown(doc)))
        change(found)
        return dict(found)

    monkeypatch.setattr(emulator, "shown_batch", odd)


# ---- batches that fail as a whole


def test_a_late_refusal_with_file_ids_costs_no_attempt_and_is_paid_once(
    make: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure's sample of a failed batch has file ids: it holds no results, and is not taken over again at every look."""

    def with_ids(doc: dict[str, Any]) -> None:
        if doc["status"] == "failed":
            doc.update(output_file_id="file-never-made", error_file_id="file-nor-this", completed_at=1)

    showing(monkeypatch, with_ids)
    world = make()
    world.order({"on": "batch", "kind": "token_limit", "times": 2})
    assert world.go()
    assert statuses(world) == {("succeeded", None): 20}
    assert set(world.output()["attempt"].to_pylist()) == {1}
    assert set(world.charged().values()) == {1}


@pytest.mark.parametrize(
    "orders",
    [
        [{"on": "batch", "kind": "token_limit"}, {"on": "batch", "kind": "expire_half"}],
        [{"on": "batch", "kind": "fail"}, {"on": "line", "kind": "lost", "match": "-2$"}],
        [{"on": "create_batch", "kind": "hang_up_before"}, {"on": "upload", "kind": "hang_up_after"}],
    ],
    ids=["refused-then-expired", "failed-and-lost", "never-created"],
)
def test_death_after_every_kind_of_event_among_late_failures(make: Making, orders: list[dict[str, Any]]) -> None:
    """Whatever was decided and not yet acted upon when the process died is decided the same way by the next life."""
    calm = make(texts=[f"q {n}" for n in range(6)], lines_max=3)
    calm.order(*orders)
    assert calm.go()
    expected, seen = statuses(calm), set[str]()
    world = make(texts=[f"q {n}" for n in range(6)], lines_max=3)
    world.order(*orders)
    deaths = 0
    while not world.go(dies_at_new=seen):
        deaths += 1
    assert deaths > 15
    assert statuses(world) == expected
    lost = {f"{world.settings.id_prefix}-2"} if "lost" in str(orders) else set()
    assert {name for name, times in world.charged().items() if times > 1} <= lost


def test_a_result_file_that_is_gone_costs_only_the_rows_that_stood_in_it(make: Making) -> None:
    """After an hour the rows that no file on disk answers are lost; what the other file has answered is kept."""
    world = make(texts=["a", "b", "c", "d"])
    world.order({"on": "line", "kind": "500", "match": "-[23]$", "times": 2})
    service = world.services["m"]
    with world.start() as life:
        while not any(batch["status"] == "completed" for batch in service.books()["batches"]):
            life.pass_once()
        service.delete_file(service.batches(None, 1)["data"][0]["error_file_id"])
        began = world.clock.now
        life.to_the_end()
        assert world.clock.now - began >= 3_600
    assert statuses(world) == {("succeeded", None): 2, ("failed", "batch_lost"): 2}
    assert set(world.charged().values()) == {1}


# ---- several deployments


def test_a_create_is_settled_by_its_own_deployment_where_two_share_a_service(make: Making) -> None:
    """Both list the same batches: what is found belongs to the deployment that it was sent to."""
    world = make(texts=["a", "b", "c"], lines_max=10, emulators={"m": {}, "n": {}})
    world.urls["n"] = world.urls["m"]
    world.order({"on": "create_batch", "kind": "hang_up_after"})
    with world.start() as life:
        until(life, "unsettled")
        (batch,) = life.ledger.open_batches()
        life.to_the_end()
    assert set(world.output()["deployment"].to_pylist()) == {batch.deployment}
    assert set(world.charged().values()) == {1}


def test_a_deployment_that_was_never_looked_at_ends_a_resumed_run_instead_of_hanging_it(make: Making) -> None:
    """It may hold batches of another life of the run: it is named, not passed over, and not waited for in silence."""
    world = make(emulators={"m": {}, "dark": {}})
    world.urls["dark"] = "http://127.0.0.1:9"
    with pytest.raises(UnreachableError, match="dark"):
        world.go()
    world.urls["dark"] = world.urls["m"]
    assert world.go()
    assert statuses(world) == {("succeeded", None): 20}


def test_a_deployment_that_stumbles_at_its_first_call_is_not_set_aside(make: Making) -> None:
    """A 503 says nothing of the configuration, also where another deployment could take the work."""
    world = make(emulators={"m": {}, "n": {}})
    for name in ("m", "n"):
        world.order({"on": "upload", "kind": "status:503"}, at=name)
    with world.start() as life:
        life.runner.recover(fresh=True)
        life.to_the_end()
    assert not any("set aside" in line for line in world.said)
    assert statuses(world) == {("succeeded", None): 20}


@pytest.mark.parametrize("state", ["submitted", "unsettled"])
def test_what_a_service_holds_is_not_looked_for_at_another(
    make: Making, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """There it would not be found, and be sent a second time; the same service at another address is known again."""
    world = make(texts=["a"], emulators={"m": {}, "other": {}})
    other = world.urls.pop("other")
    if state == "unsettled":
        world.order({"on": "create_batch", "kind": "hang_up_after"})
    with world.start() as life:
        until(life, state)
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "k")
    with served(world.services["m"]) as moved:
        for url, known in ((other, False), (moved, True)):
            monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", url)
            ledger = Ledger(world.folder.ledger)
            with ExitStack() as stack:
                stack.callback(ledger.close)
                if known:
                    assert set(services_of(stack, world.folder, ledger, world.settings)) == {"m"}
                else:
                    with pytest.raises(UsageError, match="does not know them"):
                        services_of(stack, world.folder, ledger, world.settings)
                    assert ledger.deployment("m").endpoint == world.urls["m"]


def test_only_what_listens_on_this_machine_counts_as_no_real_service() -> None:
    """A real service's listings lag by minutes, however often one polls."""
    near = ["http://127.0.0.1:8080", "http://localhost:1/openai/v1", "http://[::1]:5", "emulator"]
    far = ["https://east.openai.azure.com", "https://api.openai.com/v1", "http://10.0.0.1", "https://localhost.example"]
    assert all(map(is_loopback, near)) and not any(map(is_loopback, far))


# ---- manners


def test_retry_after_on_a_create_holds_for_the_whole_deployment(make: Making) -> None:
    """The service asked to be left alone: no other batch is tried in its place."""
    world = make()
    world.order({"on": "create_batch", "kind": "status:429", "retry_after": 1_000})
    with world.start() as life:
        while not any("429" in note for *_, note in world.transitions()):
            life.pass_once()
        told = world.clock.now
        life.to_the_end()
    ledger = Ledger(world.folder.ledger, readonly=True)
    first = min(at for at, _, _, new, _ in ledger.transitions() if new == "posting" and at > told)
    ledger.close()
    assert first >= told + 900
    assert statuses(world) == {("succeeded", None): 20}


def test_an_upload_that_arrived_in_part_is_sent_again(make: Making) -> None:
    """The service tells how many bytes it has: a file that lost its end is never made a batch of."""
    world = make()
    service, short = world.services["m"], [True]
    add = service.add_file

    def cut(content: Any, name: str, purpose: str, expires_s: int | None, characters: int = 0) -> Any:
        if purpose == "batch" and short.pop() if short else False:
            content.write_bytes(content.read_bytes().splitlines(keepends=True)[0])
        return add(content, name, purpose, expires_s, characters)

    service.add_file = cut  # type: ignore[method-assign]
    assert world.go()
    assert statuses(world) == {("succeeded", None): 20}
    assert set(world.output()["attempt"].to_pylist()) == {1}
    assert any("bytes arrived" in note for *_, note in world.transitions())


@pytest.mark.parametrize(("kind", "good"), [("status:413", 20), ("status:400", 10)])
def test_an_upload_that_is_refused_is_not_repeated_for_ever(make: Making, kind: str, good: int) -> None:
    """Too large goes in halves; any other refusal fails its rows with the service's words, and the others go on."""
    world = make()
    with world.start() as life:
        until(life, "submitted")
        world.order({"on": "upload", "kind": kind})
        life.to_the_end()
    found = statuses(world)
    assert found["succeeded", None] == good and sum(found.values()) == 20
    assert set(world.charged().values()) == {1}


def test_a_copy_of_a_batch_is_never_sent_again(make: Making) -> None:
    """An earlier create that took effect after all is cancelled; refused late, its rows stay with the first batch."""
    world = make(texts=["a", "b"])
    with world.start() as life:
        until(life, "submitted")
        (batch,) = life.ledger.open_batches()
        life.rounds.adopt_copy(batch, "m", "file-copy", "batch-copy")
        copy = life.ledger.batch(2)
        facts = {"remote_status": "failed", "error_code": "token_limit_exceeded", "error_message": "limit of 1K"}
        life.ledger.move(copy, BatchState.ENDED, world.clock.now, **facts)
        life.to_the_end()
        assert life.ledger.batch(2).state is BatchState.DONE
    assert statuses(world) == {("succeeded", None): 2}
    assert len(world.services["m"].books()["batches"]) == 1


def test_a_run_that_was_never_answered_properly_ends(make: Making) -> None:
    """Something answers at the address, and never as the service would: the configuration is wrong after a while."""
    world = make()
    world.order(*[{"on": on, "kind": "status:503", "times": 10_000} for on in ("list_batches", "upload")])
    with pytest.raises(UnreachableError):
        world.go()


def test_a_limit_of_the_users_is_for_deployments_that_name_none(make: Making) -> None:
    """Beside a deployments file it is not ignored; named anew, it takes the place of what refusals taught."""
    from pipeline.submit.deployments import DeploymentSpec

    world = make(texts=["a"])
    one = DeploymentSpec("one", "d1", world.urls["m"], quota_tokens=5)
    two = DeploymentSpec("two", "d2", world.urls["m"])
    ledger = Ledger(world.folder.ledger)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        stack.callback(ledger.close)
        patch.setenv("K", "k")
        specs = [replace(spec, key_env="K") for spec in (one, two)]
        services_of(stack, world.folder, ledger, world.settings, specs=specs, quota_tokens=9)
        assert [known.quota.asked_tokens for known in ledger.deployments()] == [5, 9]
        ledger.learn("two", quota=replace(ledger.deployment("two").quota, told_tokens=7, ratio=2.0))
        services_of(stack, world.folder, ledger, world.settings, specs=specs, quota_tokens=9)
        assert ledger.deployment("two").quota.limit_tokens == 7, "nothing new was named"
        services_of(stack, world.folder, ledger, world.settings, specs=specs, quota_tokens=90)
        assert (ledger.deployment("two").quota.limit_tokens, ledger.deployment("two").quota.ratio) == (90, 2.0)
