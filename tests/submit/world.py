"""A run and its service in one process: the real SDK over loopback HTTP, a virtual clock, and a way to die anywhere.

Not a test. `World` holds what survives a crash (the run folder, the emulator); each `start` is one life of the process.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.build.packer import Limits
from pipeline.build.prompt import load_prompt
from pipeline.build.seal import seal
from pipeline.build.source import open_source
from pipeline.build.template import compile_template
from pipeline.config import ServiceKind, Settings
from pipeline.emulator.server import listening, server_of
from pipeline.emulator.service import Service as Emulator
from pipeline.emulator.settings import EmulatorSettings
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.publish import publish
from pipeline.rounds import Rounds
from pipeline.shard import QUEUED_STATES, BatchState
from pipeline.submit.posting import Pace
from pipeline.submit.runner import Runner
from pipeline.submit.service import Service, connect

PROMPT = 'body:\n  model: m\n  messages:\n    - {role: user, content: "{{ text }}"}\n'
POLL_S = 60.0
DAY_S = 86_400.0
_STATES = frozenset(BatchState)


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Clock:
    """Virtual Unix seconds."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Mortality:
    """Counts what happens (every durable write, every effect at the service) and dies after the n-th."""

    def __init__(self) -> None:
        self.count, self.dies_after = 0, 0
        self.seen: set[str] | None = None

    def event(self, kind: str) -> None:
        """Something has just happened; with `seen`, the first of each kind is the last thing that happens in a life."""
        self.count += 1
        if self.count == self.dies_after:
            raise Killed
        if self.seen is not None and kind not in self.seen:
            self.seen.add(kind)
            raise Killed


class MortalDb:
    """A SQLite connection whose every durable write is an event."""

    def __init__(self, db: Any, mortality: Mortality) -> None:
        self._db, self._mortality, self._kind = db, mortality, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, sql: str, *values: Any) -> Any:
        """As of the connection."""
        found = self._db.execute(sql, *values)
        wrote = sql.startswith("COMMIT") or sql.lstrip().startswith(("INSERT", "UPDATE", "DELETE"))
        if wrote and not self._db.in_transaction:
            self._mortality.event(self._kind)
        elif wrote:
            # Which statement, of which state and which batch; not at what time.
            telling = [value for given in values for value in given if value in _STATES or type(value) is int]
            self._kind = f"{sql} {telling}"
        return found


class MortalService:
    """A service whose every effect is an event, after it has taken place and before anybody knows."""

    def __init__(self, service: Service, mortality: Mortality) -> None:
        self._service, self._mortality = service, mortality

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._service, name)
        if name not in ("upload", "create", "delete_file", "cancel", "download"):
            return found

        def called(*arguments: Any) -> Any:
            answer = found(*arguments)
            told = re.search(r"b\d{6}", str(arguments))
            self._mortality.event(f"{name} {told[0] if told else ''}")
            return answer

        return called


@dataclass
class World:
    """What survives a crash.

    Attributes:
        root: a folder.
        texts: the source's one text column.
        lines_max: rows of a shard.
        emulator: settings of the emulator, by deployment (each has a resource of its own).
        quotas: `quota_tokens` by deployment, where the user names one.
    """

    root: Path
    texts: list[str | None]
    lines_max: int = 100
    emulators: dict[str, dict[str, Any]] = field(default_factory=lambda: {"m": {}})
    quotas: Mapping[str, int | None] = field(default_factory=dict)
    max_attempts: int = 3
    tokens_max: int | None = None

    def __post_init__(self) -> None:
        self.clock, self.mortality, self.said = Clock(), Mortality(), list[str]()
        self.stack = ExitStack()
        self.services: dict[str, Emulator] = {}
        self._connected: dict[str, Service] = {}
        self.urls: dict[str, str] = {}
        self.folder = RunFolder(self.root / "run")
        for name, changes in self.emulators.items():
            state = self.root / f"emulator-{name}"
            service = Emulator(EmulatorSettings(state=state, instant=True, **changes), self.clock)
            self.services[name] = service
            self.urls[name] = self.stack.enter_context(served(service))
        self._seal()

    def close(self) -> None:
        """End the emulators."""
        self.stack.close()

    def _seal(self) -> None:
        self.folder.make()
        data, prompt_file = self.root / "data.parquet", self.root / "p.yaml"
        pq.write_table(pa.table({"text": pa.array(self.texts, pa.string())}), data)
        prompt_file.write_text(PROMPT)
        source, prompt = open_source(data), load_prompt(prompt_file)
        self.schema, self.template = source.schema, compile_template(prompt, source.schema)
        self.settings = Settings(
            service=ServiceKind.AZURE, kind="chat", body=prompt.body, model="m", answer=None, prompt_name="p",
            data_path="d", data_name="d", data_digest="d", limit_rows=None, id_column=None, lines_max=self.lines_max,
            bytes_max=200_000_000, tokens_max=self.tokens_max, columns_prefix="", url="/chat/completions",
        )  # fmt: skip
        ledger = Ledger(self.folder.ledger, create=True)
        spans = seal(
            source, self.template, Limits(self.lines_max, 200_000_000, self.tokens_max), rows_dir=self.folder.rows,
            model="m", url=self.settings.url, custom_id_prefix=self.settings.id_prefix, id_column=None,
        )  # fmt: skip
        for span in spans:
            shards = [(s.name, s.first_row, s.stop_row, s.requests, s.skipped, s.bytes, s.tokens) for s in span.shards]
            ledger.seal_span(span.span, span.first_row, span.stop_row, shards)
        ledger.put("settings", self.settings.to_json())
        ledger.put("schema", base64.b64encode(self.schema.serialize()).decode())
        ledger.put("run_id", "0123456789abcdef")
        ledger.put("sealed", "1")
        ledger.close()

    @contextmanager
    def start(self, folder: RunFolder | None = None, **more: Any) -> Iterator[Life]:
        """One life of the process; ends with `Killed` where that was ordered."""
        folder = folder or self.folder
        ledger = Ledger(folder.ledger)
        ledger._db.execute("PRAGMA synchronous=OFF")  # the process dies here, the machine does not
        ledger._db = MortalDb(ledger._db, self.mortality)  # type: ignore[assignment]
        try:
            services = {}
            for name in self.urls:
                ledger.add_deployment(name, name, self.urls[name], self.quotas.get(name))
                services[name] = MortalService(self._service(self.urls[name]), self.mortality)
            rounds = Rounds(
                folder, ledger, self.settings, self.template, max_attempts=self.max_attempts, clock=self.clock
            )
            runner = Runner(
                ledger, services, rounds,  # type: ignore[arg-type]
                run_id=ledger.get("run_id") or "", endpoint_url=self.settings.url, pace=Pace(POLL_S, 5 * POLL_S),
                pool_rows=self.lines_max, clock=self.clock, say=self.said.append, stopping=lambda: False,
                jitter=lambda: 1.0, **more,
            )  # fmt: skip
            runner.recover()
            yield Life(self, ledger, rounds, runner)
        finally:
            ledger._db = ledger._db._db  # type: ignore[attr-defined]
            ledger.close()

    def _service(self, url: str) -> Service:
        """The real SDK pointed at an address; it keeps nothing from life to life but its connections."""
        if url not in self._connected:
            self._connected[url] = connect(
                ServiceKind.AZURE, log=lambda line: None, endpoint=url, api_key="k"
            ).service
        return self._connected[url]

    def go(self, dies_after: int = 0, dies_at_new: set[str] | None = None, **more: Any) -> bool:
        """Run to the end, or die after an event, or after the first of a kind not seen yet: whether it was finished."""
        self.mortality.count, self.mortality.dies_after, self.mortality.seen = 0, dies_after, dies_at_new
        try:
            with self.start(**more) as life:
                life.to_the_end()
                life.ledger.put("finished", "1")
                return True
        except Killed:
            return False
        finally:
            self.mortality.dies_after, self.mortality.seen = 0, None

    def output(self) -> pa.Table:
        """The merged output."""
        ledger = Ledger(self.folder.ledger)
        try:
            _, path = publish(
                self.folder, ledger, self.settings, self.schema, out=self.root / "out.parquet", partial=False
            )
        finally:
            ledger.close()
        return pq.read_table(path)

    def charged(self) -> Counter[str]:
        """How often each custom_id was charged, over all deployments."""
        times: Counter[str] = Counter()
        for name in self.services:
            for path in (self.root / f"emulator-{name}" / "charged").iterdir():
                times.update(path.read_text().split())
        return times

    def order(self, *faults: dict[str, Any], at: str = "m") -> None:
        """Order faults at a deployment's service."""
        self.services[at].faults.order(list(faults))

    def transitions(self) -> list[tuple[int, str, str, str]]:
        """(batch, from, to, note) of every move."""
        ledger = Ledger(self.folder.ledger, readonly=True)
        found = [(batch, old, new, note) for _, batch, old, new, note in ledger.transitions()]
        ledger.close()
        return found


@dataclass
class Life:
    """One life of the process."""

    world: World
    ledger: Ledger
    rounds: Rounds
    runner: Runner

    def pass_once(self) -> float:
        """A pass of the run, a step of every service, and the time that the run then waits."""
        wait = self.runner.pass_once()
        for service in self.world.services.values():
            service.step()
        self.world.clock.now += max(wait, 0.001)
        return wait

    def to_the_end(self, *, days: float = 30.0, each: Callable[[Life], None] | None = None) -> None:
        """Passes until the run is finished; the clock does not run for ever."""
        until = self.world.clock.now + days * DAY_S
        for _ in itertools.count():
            if self.runner.finished():
                return
            self.pass_once()
            if each is not None:
                each(self)
            assert self.world.clock.now < until, self.world.said[-20:]

    def queued(self) -> int:
        """Batches that are at the service, or may be."""
        return sum(batch.state in QUEUED_STATES for batch in self.ledger.open_batches())


@contextmanager
def served(service: Emulator) -> Iterator[str]:
    """An emulator over loopback HTTP, its worker stepped by the caller; yields its address."""
    sock, server = listening(service.settings), server_of(service)

    def serve() -> None:
        with sock:
            asyncio.run(server.serve(sockets=[sock]))

    threading.Thread(target=serve, daemon=True).start()
    until = time.monotonic() + 10
    while not server.started and time.monotonic() < until:
        time.sleep(0.002)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True  # its thread ends at its next tick: nobody waits for it
        service.close()


def no_sleep(monkeypatch: Any) -> None:
    """The SDK's own retries do not wait, and nobody waits for the disk: the process dies here, the machine does not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(openai._base_client.time, "sleep", lambda seconds: None)
