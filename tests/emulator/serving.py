"""An emulator over loopback HTTP for the tests, its worker stepped by the test. Not a test."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import orjson

from pipeline.emulator.server import listening, server_of
from pipeline.emulator.service import Service
from pipeline.emulator.settings import EmulatorSettings
from tests.submit.world import Clock

API_VERSION = "2025-04-01-preview"
URLS = {"azure": "/chat/completions", "azure-v1": "/v1/chat/completions", "openai": "/v1/chat/completions"}


@dataclass
class Served:
    """A served emulator and the official SDK pointed at it."""

    url: str
    service: Service
    clock: Clock
    profile: str
    _kept: openai.OpenAI | None = None

    def client(self, **more: Any) -> openai.OpenAI:
        """The SDK's client for the profile's root; one for all calls, as making it takes longer than a call."""
        if not more:
            self._kept = self._kept or self._made_client()
            return self._kept
        return self._made_client(**more)

    def _made_client(self, **more: Any) -> openai.OpenAI:
        fixed: dict[str, Any] = {"max_retries": 0, "api_key": "k", **more}
        if self.profile == "azure":
            return openai.AzureOpenAI(azure_endpoint=self.url, api_version=API_VERSION, **fixed)
        root = {"azure-v1": "/openai/v1/", "openai": "/v1/"}[self.profile]
        return openai.OpenAI(base_url=self.url + root, **fixed)

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.now += seconds
        self.service.step()

    def request_lines(self, count: int, *, model: str = "m", url: str | None = None, **body: Any) -> bytes:
        """Good request lines."""
        fixed = {"messages": [{"role": "user", "content": "hello"}]}
        return b"".join(
            orjson.dumps(
                {
                    "custom_id": f"r-{number}", "method": "POST", "url": url or URLS[self.profile],
                    "body": {"model": model, **fixed, **body, "seed": number},
                }
            )
            + b"\n"
            for number in range(count)
        )  # fmt: skip

    def upload(self, content: bytes, name: str = "in.jsonl", **more: Any) -> Any:
        """Upload through the SDK; processed on return."""
        file = self.client().files.create(file=(name, content), purpose="batch", **more)
        self.clock.now += 120
        return file

    def create(self, content: bytes, **more: Any) -> Any:
        """Upload and create."""
        file = self.upload(content)
        fixed: dict[str, Any] = {"endpoint": URLS[self.profile], "completion_window": "24h", **more}
        return self.client().batches.create(input_file_id=file.id, **fixed)

    def finished(self, content: bytes, **more: Any) -> Any:
        """A batch that ran to its end."""
        batch = self.create(content, **more)
        for _ in range(8):
            self.pass_s(200)
        return self.client().batches.retrieve(batch.id)

    def run_to_end(self, batch_id: str) -> list[Any]:
        """Let a batch run to its end: the batch as it was seen at each of its states."""
        seen: list[Any] = []
        for _ in range(60):
            now = self.client().batches.retrieve(batch_id)
            if not seen or seen[-1].status != now.status:
                seen.append(now)
            if now.status in ("completed", "failed", "expired", "cancelled"):
                break
            self.pass_s(15)
        return seen

    def order(self, *faults: dict[str, Any]) -> None:
        """Order faults over the control endpoint."""
        httpx2.post(f"{self.url}/_emulator/faults", json=list(faults)).raise_for_status()

    def lines_of(self, file_id: str | None) -> list[dict[str, Any]]:
        """A result file's lines."""
        if not file_id:
            return []
        content = self.client().files.content(file_id).read()
        return [orjson.loads(line) for line in content.split(b"\n") if line]


@contextmanager
def serving(state: Path, profile: str = "azure", **more: Any) -> Iterator[Served]:
    """Serve an emulator with a virtual clock at Azure's own pace."""
    clock = Clock()
    service = Service(EmulatorSettings(state=state, profile=profile, **({"speed": 1.0} | more)), clock)
    sock = listening(service.settings)
    server = server_of(service)
    threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])), daemon=True).start()
    while not server.started:
        time.sleep(0.001)
    try:
        yield Served(f"http://127.0.0.1:{sock.getsockname()[1]}", service, clock, profile)
    finally:
        # Nobody waits for the server's thread: nothing is asked of it any more, and it ends at its next tick.
        server.should_exit = server.force_exit = True
        service.close()
