"""The process dies after every durable write and every effect at the service; the next life finishes, and pays once."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable

import pytest

from pipeline.folder import RunFolder
from tests.submit.world import World

Making = Callable[..., World]
ROWS = 12


def small(make: Making) -> World:
    """Two shards, one row of which fails at first: a pooled retry follows."""
    world = make(texts=[f"q {number}" for number in range(ROWS - 1)] + [None], lines_max=6)
    world.order({"on": "line", "kind": "500", "match": "-4$"})
    return world


def check(world: World, *, charged_twice: int = 0) -> None:
    """Laws 1 to 3 on the output and in the books."""
    output = world.output()
    assert output["text"].to_pylist() == world.texts
    assert output["status"].to_pylist() == ["succeeded"] * (ROWS - 1) + ["skipped"]
    times = world.charged()
    assert len(times) == ROWS - 1
    assert sum(count > 1 for count in times.values()) == charged_twice
    answers = output["answer"].to_pylist()[: ROWS - 1]
    assert all(answers) and len(set(answers)) == ROWS - 1


def events_of(make: Making) -> int:
    """How many events an undisturbed life has."""
    world = small(make)
    assert world.go()
    check(world)
    return world.mortality.count


def test_death_after_everything_that_happens_for_the_first_time_loses_nothing_and_pays_nothing_twice(
    make: Making,
) -> None:
    """Whatever is recorded or takes effect, of whichever batch, is the last thing of its life the first time."""
    world, seen, lives = small(make), set[str](), 0
    while not world.go(dies_at_new=seen):
        lives += 1
    assert lives > 40
    check(world)


@pytest.mark.slow
def test_death_after_every_single_event_loses_nothing_and_pays_nothing_twice(make: Making) -> None:
    """Whatever the last thing was that happened, the next life finishes; one world for each event."""
    events = events_of(make)
    assert events > 40
    for event in range(1, events + 1):
        world = small(make)
        world.go(dies_after=event)
        assert world.go(), event
        check(world)
        world.close()


@pytest.mark.parametrize("seed", range(6))
def test_dying_again_and_again_among_faults_pays_once(make: Making, seed: int) -> None:
    """Creates and uploads that hang up after their effect or land late, lists that lag, a death every few events."""
    chance = random.Random(seed)
    world = small(make)
    for _ in range(60):
        world.order(
            {"on": chance.choice(["create_batch", "upload"]), "kind": chance.choice(["hang_up_after", "status:500"])},
            {"on": "create_batch", "kind": "late", "seconds": chance.choice([130.0, 900.0]), "rate": 0.2, "times": 1},
            {"on": "list_batches", "kind": "lag", "seconds": 120.0, "rate": 0.2, "times": 1},
            {"on": chance.choice(["list_batches", "content", "get_file"]), "kind": "status:503"},
        )
    lives = 0
    while not world.go(dies_after=chance.randrange(3, 40) if lives < 25 else 0):
        lives += 1
        world.clock.now += chance.choice([1.0, 100.0, 5_000.0])
    check(world)


def test_a_create_that_lands_late_finds_no_input(make: Making) -> None:
    """The client gave up, the listing lagged, the input was deleted: what lands afterwards has nothing to run."""
    world = small(make)
    service = world.services["m"]
    late: list[dict[str, object]] = []
    create = service.create

    def lost(asked: dict[str, object]) -> object:
        service.create = create  # type: ignore[method-assign]
        late.append(asked)
        raise ConnectionAbortedError

    service.create = lost  # type: ignore[method-assign,assignment]
    assert world.go()
    with pytest.raises(Exception, match="does not exist"):
        create(late[0])
    check(world)


def test_a_create_that_lands_within_the_grace_is_adopted(make: Making) -> None:
    """The answer was lost and the batch appears minutes later: it is ours, and nothing is posted again."""
    world = small(make)
    service = world.services["m"]
    create, landing = service.create, [0.0]

    def slow(asked: dict[str, object]) -> object:
        service.create = create  # type: ignore[method-assign]
        landing[0] = world.clock.now + 130
        pending.append(asked)
        raise ConnectionAbortedError

    pending: list[dict[str, object]] = []
    service.create = slow  # type: ignore[method-assign,assignment]
    with world.start() as life:

        def land(_: object) -> None:
            if pending and world.clock.now > landing[0]:
                create(pending.pop())

        life.to_the_end(each=land)
    check(world)
    assert len(service.books()["batches"]) == 3


def test_a_listing_that_lags_does_not_lead_to_a_second_batch(make: Making) -> None:
    """A batch that no listing shows for two minutes is waited for."""
    world = small(make)
    service = world.services["m"]
    batches = service.batches
    shown_after = world.clock.now + 130

    def lagging(after: str | None, limit: int) -> dict[str, object]:
        page = batches(after, limit)
        return page if world.clock.now > shown_after else {**page, "data": [], "has_more": False}

    service.batches = lagging  # type: ignore[method-assign]
    world.order({"on": "create_batch", "kind": "hang_up_after"})
    assert world.go()
    check(world)


def test_other_teams_batches_over_many_pages_are_left_alone(make: Making) -> None:
    """Ours is found behind three hundred others; none of theirs is touched."""
    world = small(make)
    service = world.services["m"]
    (world.root / "theirs").write_bytes(
        b'{"custom_id":"t","method":"POST","url":"/chat/completions","body":{"model":"m","messages":[]}}\n'
    )
    world.order({"on": "create_batch", "kind": "hang_up_after"})
    with world.start() as life:
        life.pass_once()
        for number in range(300):
            shutil.copy(world.root / "theirs", world.root / f"theirs-{number}")
            file = service.add_file(world.root / f"theirs-{number}", "t.jsonl", "batch", None)
            asked = {"input_file_id": file["id"], "endpoint": "/chat/completions", "completion_window": "24h"}
            service.create({**asked, "metadata": {"batchmill_run": "another"}})
        life.to_the_end()
    output = world.output()
    assert output["status"].to_pylist() == ["succeeded"] * (ROWS - 1) + ["skipped"]
    ours = {name: count for name, count in world.charged().items() if name != "t"}
    assert set(ours.values()) == {1}


def test_work_whose_create_is_unsettled_never_moves(make: Making) -> None:
    """Its deployment stays dark for days while another is idle: the rows wait where they may have been accepted."""
    world = make(texts=["a", "b", "c"], lines_max=10, emulators={"m": {}, "other": {}})
    world.order({"on": "create_batch", "kind": "hang_up_after"}, at="m")
    world.order({"on": "create_batch", "kind": "hang_up_after"}, at="other")
    with world.start() as life:
        while not any(batch.state == "unsettled" for batch in life.ledger.open_batches()):
            life.pass_once()
        (batch,) = life.ledger.open_batches()
        world.order({"on": "list_batches", "kind": "status:503", "times": 10**6}, at=batch.deployment)
        for _ in range(400):  # more than a day: the waits have grown to minutes
            life.pass_once()
        (still,) = life.ledger.open_batches()
        assert (still.state, still.deployment) == ("unsettled", batch.deployment)
        world.services[batch.deployment].faults.clear()
        life.to_the_end()
    assert world.output()["status"].to_pylist() == ["succeeded"] * 3
    assert set(world.charged().values()) == {1}


# ---- a ledger from an old backup, and two copies of a run


@pytest.mark.parametrize("moment", ["nothing", "first", "retry"])
@pytest.mark.parametrize("metadata", [True, False])
def test_a_ledger_from_an_old_backup_takes_over_what_it_does_not_know(
    make: Making, moment: str, metadata: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that were sent after the backup are read from their input files, or from their results."""
    from pipeline.emulator import service as emulator

    world = small(make)
    backup = world.root / "backup"
    seen = {"nothing": 0, "first": 1, "retry": 3}[moment]
    taken = False
    with world.start() as life:
        if seen == 0:
            shutil.copytree(world.folder.path, backup)
            taken = True
        while not life.runner.finished():
            life.pass_once()
            if not taken and len(world.services["m"].books()["batches"]) >= seen:
                shutil.copytree(world.folder.path, backup)
                taken = True
                if moment == "retry":
                    break
    shutil.rmtree(world.folder.path)
    shutil.copytree(backup, world.folder.path)
    if not metadata and moment == "retry":
        shown = emulator.shown_batch
        monkeypatch.setattr(emulator, "shown_batch", lambda doc: {**shown(doc), "metadata": None})
    assert world.go()
    check(world)


def test_rows_that_nobody_can_tell_are_not_asked_again_by_themselves(make: Making) -> None:
    """Input and results of an unknown batch are gone: every row that it may have had fails as lost."""
    world = small(make)
    backup = world.root / "backup"
    shutil.copytree(world.folder.path, backup)
    assert world.go()
    before = world.charged()
    service = world.services["m"]
    for file in service.files(None)["data"]:
        service.delete_file(file["id"])
    shutil.rmtree(world.folder.path)
    shutil.copytree(backup, world.folder.path)
    assert world.go()
    output = world.output()
    assert output["status"].to_pylist() == ["failed"] * (ROWS - 1) + ["skipped"]
    assert set(output["error_code"].to_pylist()[: ROWS - 1]) == {"batch_lost"}
    assert world.charged() == before


def test_two_live_copies_of_a_run_stop(make: Making) -> None:
    """A batch of this run that appears while we run was not sent by us: one sentence, and nothing more is sent."""
    from pipeline.errors import TwoLiveCopiesError

    world = small(make)
    world.services["m"].faults.clear()
    copy = RunFolder(world.root / "copy")
    shutil.copytree(world.folder.path, copy.path)
    with world.start() as one, world.start(copy) as other, pytest.raises(TwoLiveCopiesError):
        one.runner.pass_once()
        other.runner.pass_once()
        for _ in range(20):
            one.pass_once()
            other.pass_once()
