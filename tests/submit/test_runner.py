"""The whole way of a batch over loopback HTTP with the real SDK: every oddity of the service ends in the right rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import CredentialsError, DeploymentError, ErrorRateError
from tests.submit.world import World

Making = Callable[..., World]
ALL = 20


def statuses(world: World) -> Counter[tuple[str, str | None]]:
    """Rows by status and code."""
    output = world.output()
    return Counter(zip(output["status"].to_pylist(), output["error_code"].to_pylist(), strict=True))


def test_everything_is_answered_once(make: Making) -> None:
    """Twenty rows in two shards: twenty answers, each charged once, and no input file left at the service."""
    world = make()
    assert world.go()
    assert statuses(world) == {("succeeded", None): ALL}
    assert set(world.charged().values()) == {1} and len(world.charged()) == ALL
    assert [file["purpose"] for file in world.services["m"].files(None)["data"]].count("batch") == 0


@pytest.mark.parametrize("kind", ["hang_up_after", "hang_up_before", "status:500", "status:408", "status:409"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_create_without_a_clear_answer_is_settled_by_looking(make: Making, kind: str, times: int) -> None:
    """Whether it took effect or not, one batch is accepted for the rows, and each is charged once."""
    world = make()
    world.order({"on": "create_batch", "kind": kind, "times": times})
    assert world.go()
    assert statuses(world) == {("succeeded", None): ALL}
    assert set(world.charged().values()) == {1}
    assert any(new == "unsettled" for _, _, new, _ in world.transitions())
    adopted = any(old == "unsettled" and new == "submitted" for _, old, new, _ in world.transitions())
    assert adopted == (kind == "hang_up_after")


@pytest.mark.parametrize(
    "fault",
    [
        {"on": "upload", "kind": "hang_up_after", "times": 2},
        {"on": "upload", "kind": "status:503"},
        {"on": "create_batch", "kind": "status:429", "retry_after": 7},
        {"on": "get_file", "kind": "status:500", "times": 9},
        {"on": "list_batches", "kind": "status:502", "times": 12},
        {"on": "content", "kind": "status:502", "times": 9},
        {"on": "content", "kind": "hang_up_after", "times": 7},
        {"on": "delete_file", "kind": "status:500", "times": 7},
    ],
    ids=lambda fault: f"{fault['on']}-{fault['kind']}",
)
def test_trouble_with_any_call_is_waited_out(make: Making, fault: dict[str, Any]) -> None:
    """Once the service has ever answered, no failing call ends the run or loses a row."""
    world = make()
    world.order(fault)
    assert world.go()
    assert statuses(world) == {("succeeded", None): ALL}
    assert set(world.charged().values()) == {1}
    assert [file["purpose"] for file in world.services["m"].files(None)["data"]].count("batch") <= 2


@pytest.mark.parametrize("kind", ["429", "500", "status_0"])
def test_failed_lines_are_asked_again_pooled(make: Making, kind: str) -> None:
    """Rows of several batches go together in one more batch, and only those."""
    world = make()
    for number in (2, 3, 14):
        world.order({"on": "line", "kind": kind, "match": f"-{number}$"})
    assert world.go()
    assert statuses(world) == {("succeeded", None): ALL}
    attempts = world.output()["attempt"].to_pylist()
    assert [row for row, attempt in enumerate(attempts) if attempt == 2] == [2, 3, 14]
    books = world.services["m"].books()
    assert [batch["lines"] for batch in books["batches"]] == [10, 10, 3]
    assert set(world.charged().values()) == {1}


def test_a_row_that_never_succeeds_fails_after_its_attempts(make: Making) -> None:
    """`max_attempts` bounds what is executed, and the service's code is told."""
    world = make(max_attempts=3)
    world.order({"on": "line", "kind": "500", "match": "-5$", "times": 9})
    assert world.go()
    assert statuses(world) == {("succeeded", None): ALL - 1, ("failed", "500"): 1}
    assert world.output()["attempt"].to_pylist()[5] == 3


def test_other_refusals_of_a_line_are_final_at_once(make: Making) -> None:
    """A 400 and a content filter are not asked again."""
    world = make()
    world.order({"on": "line", "kind": "400", "match": "-1$"}, {"on": "line", "kind": "content_filter", "match": "-2$"})
    assert world.go()
    assert statuses(world) == {
        ("succeeded", None): ALL - 2, ("failed", "400"): 1, ("failed", "content_filter"): 1,
    }  # fmt: skip
    assert len(world.services["m"].books()["batches"]) == 2


@pytest.mark.parametrize("kind", ["lost", "malformed"])
def test_a_row_without_a_readable_line_is_asked_again_after_a_second_look(make: Making, kind: str) -> None:
    """Both files are fetched afresh and agree before a row counts as lost; it then costs an attempt."""
    world = make()
    world.order({"on": "line", "kind": kind, "match": "-7$"})
    assert world.go()
    assert statuses(world) == {("succeeded", None): ALL}
    assert world.output()["attempt"].to_pylist()[7] == 2


def test_doubled_lines_change_nothing(make: Making) -> None:
    """The first good line counts."""
    world = make()
    world.order({"on": "line", "kind": "doubled", "times": 8})
    assert world.go()
    assert statuses(world) == {("succeeded", None): ALL}


@pytest.mark.parametrize(("kind", "code"), [("expire_half", "batch_expired"), ("cancel_half", "batch_cancelled")])
def test_what_an_ended_batch_has_answered_is_kept(make: Making, kind: str, code: str) -> None:
    """The rest is asked again without costing an attempt, three times running at most."""
    world = make()
    world.order({"on": "batch", "kind": kind})
    assert world.go()
    assert statuses(world) == {("succeeded", None): ALL}
    assert set(world.charged().values()) == {1}
    assert set(world.output()["attempt"].to_pylist()) == {1}
    hopeless = make()
    hopeless.order({"on": "batch", "kind": kind, "times": 99})
    assert hopeless.go()
    found = statuses(hopeless)
    assert found["failed", code] > 0 and found["failed", code] + found["succeeded", None] == ALL
    assert set(hopeless.charged().values()) == {1}


def test_a_batch_that_fails_in_validation_fails_its_rows_with_the_code(make: Making) -> None:
    """Not for quota, not for the deployment: what is wrong with the file will be wrong again."""
    world = make()
    world.order({"on": "batch", "kind": "fail"})
    assert world.go()
    assert statuses(world) == {("succeeded", None): 10, ("failed", "invalid_request"): 10}


@pytest.mark.parametrize("fail_fast", [True, False])
def test_refusals_for_quota_cost_nothing_and_teach_the_limit(make: Making, fail_fast: bool) -> None:
    """In either shape; a shard larger than the limit goes as several batches."""
    world = make(emulators={"m": {"quota_tokens": 1_500, "fail_fast": fail_fast}}, texts=["x" * 900] * ALL)
    assert world.go()
    assert statuses(world) == {("succeeded", None): ALL}
    assert set(world.output()["attempt"].to_pylist()) == {1}
    assert len(world.services["m"].books()["batches"]) > 2
    assert sum("quota" in note for *_, note in world.transitions()) == 1, "one refusal teaches it"


def test_a_row_larger_than_the_whole_quota_is_skipped(make: Making) -> None:
    """Only when the refusal's limit is below the row's own estimate; the others are answered."""
    texts = ["small"] * 9 + ["x" * 20_000]
    world = make(emulators={"m": {"quota_tokens": 2_000, "fail_fast": True}}, texts=texts)
    assert world.go()
    assert statuses(world) == {("succeeded", None): 9, ("skipped", "over_quota"): 1}


def test_wrong_credentials_end_the_run_only_before_it_was_ever_answered(make: Making) -> None:
    """At the first call the configuration is wrong; later they were revoked, and the run waits."""
    world = make()
    world.order({"on": "list_batches", "kind": "status:401"})
    with pytest.raises(CredentialsError):
        world.go()
    world.order({"on": "content", "kind": "status:401", "times": 3})
    assert world.go()
    assert any("refuses the credentials" in line for line in world.said)
    assert statuses(world) == {("succeeded", None): ALL}


def test_a_deployment_that_is_not_there_keeps_its_rows_queued(make: Making) -> None:
    """With no other deployment the run stops and says which; nothing is charged."""
    world = make(emulators={"m": {"deployments": ("another",)}})
    with pytest.raises(DeploymentError, match="'m'"):
        world.go()
    assert not world.charged()


def test_a_batch_that_the_service_forgets_is_lost_only_after_an_hour(make: Making) -> None:
    """404 for less than an hour is waited for; then its rows fail, and are never asked again by themselves."""
    world = make(texts=["a"] * 5)
    with world.start() as life:
        while not life.queued():
            life.pass_once()
        forget(world)
        began = world.clock.now
        while not life.runner.finished():
            life.pass_once()
        assert 3_600 <= world.clock.now - began < 5_000
    assert statuses(world) == {("failed", "batch_lost"): 5}


def forget(world: World) -> None:
    """The service no longer knows any batch."""
    world.services["m"]._store._db.execute("DELETE FROM batch")


def test_a_systematic_error_stops_the_run_and_keeps_what_was_answered(make: Making) -> None:
    """More failures than allowed: queued batches are cancelled, and the run says why it stopped."""
    from pipeline.submit.runner import Tolerance

    world = make(texts=[f"q {n}" for n in range(400)], lines_max=100)
    world.order({"on": "line", "kind": "400", "times": 10_000})
    with pytest.raises(ErrorRateError, match="100 of 100"):
        world.go(tolerance=Tolerance(error_rate_max=0.5))
    assert len(world.services["m"].books()["batches"]) <= 3
    world.services["m"].faults.clear()
    ledger_cleared(world)
    assert world.go(tolerance=Tolerance(error_rate_max=1.0))
    assert statuses(world)["failed", "400"] >= 100


def ledger_cleared(world: World) -> None:
    """What a new start of `run` does."""
    from pipeline.ledger import Ledger

    ledger = Ledger(world.folder.ledger)
    ledger.put("halted", "")
    ledger.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda doc: doc.update(status=str(doc["status"]).upper()),
        lambda doc: doc.update(
            output_file_id=doc["output_file_id"] or None, error_file_id=doc["error_file_id"] or None
        ),
        lambda doc: doc.update(request_counts=None),
        lambda doc: doc.update(request_counts={"total": None, "completed": None, "failed": None}),
        lambda doc: doc.update(metadata=None),
        lambda doc: doc.update(created_at="2025-01-01T00:00:00Z"),
        lambda doc: doc.update(endpoint=None, completion_window=None),
        lambda doc: doc.update(status="paused") if doc["status"] == "in_progress" else None,
    ],
    ids=["capitals", "null-ids", "no-counts", "null-counts", "no-metadata", "iso-times", "nulls", "unknown-status"],
)
def test_the_oddities_of_a_batch_object_are_taken_as_they_are(
    make: Making, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None]
) -> None:
    """Every spelling that the contract lists (§3) leads to the same rows."""
    from pipeline.emulator import service as emulator

    shown = emulator.shown_batch

    def odd(doc: dict[str, Any]) -> dict[str, Any]:
        found = json.loads(json.dumps(shown(doc)))
        change(found)
        return found

    monkeypatch.setattr(emulator, "shown_batch", odd)
    world = make()
    world.order({"on": "create_batch", "kind": "hang_up_after"})
    assert world.go()
    assert statuses(world) == {("succeeded", None): ALL}
    assert set(world.charged().values()) == {1}
