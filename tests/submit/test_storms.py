"""Many things go wrong at once: conservation holds, nobody pays twice, and every row that could succeed does."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.emulator import server
from pipeline.emulator.refusals import refusal
from pipeline.ledger import Ledger
from pipeline.shard import Batch, BatchState
from tests.submit.world import Life, World

Making = Callable[..., World]


@pytest.mark.parametrize("seed", range(5))
def test_a_storm_of_faults_loses_no_row_and_pays_none_twice(make: Making, seed: int) -> None:
    """Five in a hundred lines each of 429, 500, lost, malformed and doubled; batches expire half done; calls fail."""
    chance = random.Random(seed)
    rows = 200
    world = make(texts=[f"q {n}" for n in range(rows)], lines_max=40, max_attempts=6)
    spoilt: set[int] = set()
    for kind in ("429", "500", "lost", "malformed", "doubled"):
        chosen = chance.sample(range(rows), rows // 20)
        spoilt |= set(chosen) if kind in ("lost", "malformed") else set()
        for row in chosen:
            world.order({"on": "line", "kind": kind, "match": f"-{row}$"})
    world.order({"on": "batch", "kind": "expire_half", "times": 2})
    for on in ("list_batches", "content", "get_file", "upload", "create_batch"):
        kinds = ["status:503", "hang_up_after", *(["cut"] if on == "content" else [])]
        world.order({"on": on, "kind": chance.choice(kinds), "times": chance.randrange(1, 4)})
    deaths = 0
    while not world.go(dies_after=chance.randrange(10, 60) if deaths < 6 else 0):
        deaths += 1
    output = world.output()
    assert output["text"].to_pylist() == world.texts
    assert Counter(output["status"].to_pylist()) == {"succeeded": rows}
    usable_twice = [name for name, count in world.charged().items() if count > 1]
    # A line that was executed but came back lost or malformed may be charged again: nothing usable came of it.
    unusable = {f"{world.settings.id_prefix}-{row}" for row in spoilt}
    assert set(usable_twice) <= unusable
    assert max(output["attempt"].to_pylist()) <= 6


@pytest.mark.parametrize("shards", [120, pytest.param(1_000, marks=pytest.mark.slow)])
def test_the_failed_rows_of_many_shards_make_a_handful_of_batches(make: Making, shards: int) -> None:
    """A thousand shards with five failed rows each make a few more batches, not a thousand."""
    world = make(texts=[f"q {n}" for n in range(shards * 6)], lines_max=6)
    world.settings = replace(world.settings, lines_max=1_000)  # a pooled file takes more rows than these tiny shards
    with world.start() as life:
        while shard := life.ledger.unbatched(1):
            life.rounds.plan_shard(shard[0].shard, None, None)
        for batch in life.ledger.open_batches():
            ended_with_five_failures(world, life, batch)
        assert sum(rows for _, rows in life.ledger.leftovers()) == shards * 5
        life.to_the_end()
    assert len(world.services["m"].books()["batches"]) <= shards * 5 // 1_000 + 1
    assert set(world.output()["status"].to_pylist()) == {"succeeded"}
    assert world.output()["attempt"].to_pylist().count(2) == shards * 5
    assert set(world.charged().values()) == {1}


def ended_with_five_failures(world: World, life: Life, batch: Batch) -> None:
    """A first batch of a shard as a service would have left it: one row answered, the others failed with 500."""
    ledger, now = life.ledger, world.clock.now
    ledger.note(batch, deployment="m")
    batch = ledger.end_upload(ledger.begin_upload(ledger.batch(batch.batch), "run", now), f"file-{batch.batch}", now)
    ledger.upload_deleted(f"file-{batch.batch}", now)
    batch = ledger.move(batch, BatchState.POSTING, now, posted_at=now)
    batch = ledger.move(batch, BatchState.SUBMITTED, now, remote_id=f"batch-{batch.batch}")
    ids = pq.read_table(world.folder.batch_rows(batch.name))["custom_id"].to_pylist()
    good = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "model": "m"}
    responses = [{"status_code": 200 if name == ids[0] else 500, "body": good} for name in ids]
    lines = [
        orjson.dumps({"custom_id": name, "response": response, "error": None})
        for name, response in zip(ids, responses, strict=True)
    ]
    with pa.CompressedOutputStream(str(world.folder.results(batch.name)[0]), "zstd") as file:
        file.write(b"\n".join(lines) + b"\n")
    batch = ledger.move(batch, BatchState.ENDED, now, remote_status="completed", output_file_id="o")
    life.rounds.close(ledger.move(batch, BatchState.COLLECTED, now), None)


def test_counts_that_promise_more_lines_are_waited_for(make: Making) -> None:
    """The files are fetched again until they hold what the service's own counts say; the row is not asked again."""
    world = make(texts=["a", "b", "c"])
    service = world.services["m"]
    whole: dict[str, bytes] = {}
    with world.start() as life:
        while not any(batch["status"] == "completed" for batch in service.books()["batches"]):
            life.pass_once()
        doc = service.batches(None, 1)["data"][0]
        path = service.path_of(doc["output_file_id"])
        whole["content"] = path.read_bytes()
        part = whole["content"].splitlines(keepends=True)[0]
        path.write_bytes(part)
        service._store._db.execute(
            "UPDATE file SET doc = json_set(doc, '$.bytes', ?) WHERE id = ?", (len(part), doc["output_file_id"])
        )
        for _ in range(3):
            life.pass_once()
        assert not life.runner.finished()
        path.write_bytes(whole["content"])
        service._store._db.execute(
            "UPDATE file SET doc = json_set(doc, '$.bytes', ?) WHERE id = ?",
            (len(whole["content"]), doc["output_file_id"]),
        )
        life.to_the_end()
    assert world.output()["status"].to_pylist() == ["succeeded"] * 3
    assert set(world.output()["attempt"].to_pylist()) == {1}
    assert len(service.books()["batches"]) == 1


def test_a_download_that_is_cut_goes_on_where_it_stopped(make: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the content, then a hang-up, again and again: the file on disk is whole, or not there."""
    world = make(texts=["x" * 50] * 400, lines_max=400)
    ranges: list[str] = []

    class Cut(server.FileResponse):
        """Gives some of a file and hangs up, three times."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            asked = dict(scope["headers"]).get(b"range", b"").decode()
            ranges.append(asked)
            if len(ranges) > 3:
                await super().__call__(scope, receive, send)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-") or 0)
            content = Path(self.path).read_bytes()
            length = str(len(content) - start).encode()
            status = 206 if asked else 200
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]})
            await send({"type": "http.response.body", "body": content[start : start + 20_000], "more_body": True})
            raise ConnectionAbortedError

    monkeypatch.setattr(server, "FileResponse", Cut)
    assert world.go()
    assert world.output()["status"].to_pylist() == ["succeeded"] * 400
    assert any(asked for asked in ranges), "a cut download is resumed"


def test_the_cap_on_input_files_is_waited_out(make: Making) -> None:
    """`quotaExceeded` for files: what we no longer need is deleted, the rest waits, and somebody is told."""
    world = make()
    service = world.services["m"]
    add, refusals = service.add_file, [3]

    def full(content: Any, name: str, purpose: str, expires_s: int | None, characters: int = 0) -> Any:
        if purpose == "batch" and refusals[0]:
            refusals[0] -= 1
            raise refusal(400, "quotaExceeded", "The quota for files without expiry is reached. The maximum is 500.")
        return add(content, name, purpose, expires_s, characters)

    service.add_file = full  # type: ignore[method-assign]
    assert world.go()
    assert set(world.output()["status"].to_pylist()) == {"succeeded"}
    assert any("no more input files" in line for line in world.said)


def test_a_cancel_settles_what_is_unsettled_first(make: Making) -> None:
    """A create that took effect unseen is found, then cancelled; its answers are kept, and nothing is paid twice."""
    world = make()
    world.order({"on": "create_batch", "kind": "hang_up_after"})
    with world.start() as life:
        while not any(batch.state == "unsettled" for batch in life.ledger.open_batches()):
            life.pass_once()
        life.ledger.put("cancelling", "1")
        life.to_the_end()
        assert not any(batch.state == "unsettled" for batch in life.ledger.open_batches())
    ledger = Ledger(world.folder.ledger)
    ledger.put("cancelled", "1")
    ledger.close()
    found = Counter(zip(world.output()["status"].to_pylist(), world.output()["error_code"].to_pylist(), strict=True))
    assert found["skipped", "run_cancelled"] >= 10
    assert sum(found.values()) == 20
    assert set(world.charged().values()) <= {1}
    assert found["succeeded", None] == len(world.charged())


def test_a_batch_that_never_moves_is_warned_of_once(make: Making) -> None:
    """After the time that was named; it is waited for all the same."""
    from pipeline.submit.runner import Tolerance

    world = make(texts=["a"])
    world.services["m"].step = lambda: 1.0  # type: ignore[method-assign]
    with world.start(tolerance=Tolerance(warn_after_s=3_600.0)) as life:
        for _ in range(200):
            life.pass_once()
    assert sum("warning" in line for line in world.said) == 1
