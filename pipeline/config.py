"""What a run is told: the kind of service, its limits, and the settings frozen when the run starts.

Owns the limits per service (dated, from the service's contract, §7), the fingerprint that names a run, and the
checks of numbers given on the command line. Reads no file and speaks to nobody. Holds no secret: keys stay in the
environment.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.errors import LedgerError, UsageError

AZURE_API_VERSION = "2025-04-01-preview"
"""Default api-version of the classic Azure root: the first with file expiry and blob input (contract §1)."""

QUOTA_SHARE = 0.9
"""Share of an enqueued-token quota that is used: the service's own estimate differs from ours (contract §8)."""

SHARDS_PER_QUOTA = 3
"""A shard's token cap is the usable quota divided by this, so that several batches are under way at once."""

FORMAT = 1
"""Version of the frozen settings; another one is refused."""


class ServiceKind(StrEnum):
    """The services a run can go to. A run keeps one kind for life; it is part of its fingerprint."""

    AZURE = "azure"
    OPENAI = "openai"
    EMULATOR = "emulator"


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """What one input file may hold (contract §7, 2026-09)."""

    lines_max: int
    bytes_max: int


LIMITS = {
    ServiceKind.AZURE: ServiceLimits(100_000, 200_000_000),
    ServiceKind.EMULATOR: ServiceLimits(100_000, 200_000_000),
    ServiceKind.OPENAI: ServiceLimits(50_000, 200_000_000),
}

EMBEDDING_INPUTS_MAX = 50_000
"""Inputs of all embeddings requests of a batch (contract §7)."""

_PATHS = {"chat": "/chat/completions", "responses": "/responses", "embeddings": "/embeddings"}


def request_url(service: ServiceKind, kind: str, *, v1: bool) -> str:
    """The `url` of every line and the `endpoint` of the create, for a kind of request on a service (contract §5).

    Raises:
        UsageError: the service has no batches of that kind.
    """
    path = _PATHS[kind]
    if service is ServiceKind.OPENAI or (kind == "embeddings" and service is ServiceKind.EMULATOR):
        return "/v1" + path
    if kind == "embeddings":
        raise UsageError(
            "url: embeddings cannot be run in batches on Azure (only chat and responses can); use --service openai."
        )
    return "/v1" + path if v1 or kind == "responses" else path


def limits_of(service: ServiceKind, kind: str, inputs: int) -> ServiceLimits:
    """What one input file of a kind of request may hold.

    Args:
        service: kind of service.
        kind: chat, responses or embeddings, which the emulator takes as OpenAI does.
        inputs: inputs of each request, which the service counts for embeddings.
    """
    if kind != "embeddings":
        return LIMITS[service]
    limits = LIMITS[ServiceKind.OPENAI]
    return ServiceLimits(max(1, min(limits.lines_max, EMBEDDING_INPUTS_MAX // inputs)), limits.bytes_max)


def checked_limit(name: str, value: int | None, ceiling: int, service: ServiceKind) -> int:
    """A limit given on the command line, or the service's own where none is given.

    Raises:
        UsageError: not from 1 to the service's limit.
    """
    if value is None:
        return ceiling
    if not 1 <= value <= ceiling:
        raise UsageError(
            f"{name} {value:,} is outside 1 to {ceiling:,}, the limit of {service.value}: choose a value within it."
        )
    return value


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything frozen when a run starts; kept in the ledger, so that a resume needs neither source nor prompt file.

    Attributes:
        service: kind of service.
        kind: chat, responses or embeddings.
        body: the request body with its templates, without `model`.
        model: deployment (Azure) or model name.
        answer: JSON Schema of the typed answer, or None.
        prompt_name: file name of the prompt, for messages.
        data_path: where the source was; for people, never read again once the run is sealed.
        data_name: the source's name without its ending.
        data_digest: identity of the source's content.
        limit_rows: `--limit`, or None for all rows.
        id_column: column whose values are the custom_ids, or None.
        lines_max, bytes_max, tokens_max: caps of one shard.
        columns_prefix: prefix of the output's own columns ("" or "llm_" or `--prefix`).
        url: `url` of every request line.
        image_tokens: what an image is taken to cost: `base` and `tile`, or its `characters`.
        selection: which columns and rows of the source are wanted (`--columns`, `--where`, `--sample`, `--seed`), by
            name; empty: all.
        requests: whether the source is finished request lines, so that there is no prompt.
        on_null: what a null in a used column does: skip, empty or error.
    """

    service: ServiceKind
    kind: str
    body: dict[str, Any]
    model: str
    answer: dict[str, Any] | None
    prompt_name: str
    data_path: str
    data_name: str
    data_digest: str
    limit_rows: int | None
    id_column: str | None
    lines_max: int
    bytes_max: int
    tokens_max: int | None
    columns_prefix: str
    url: str
    image_tokens: dict[str, Any] = field(default_factory=lambda: {"base": 85, "tile": 170, "characters": False})
    selection: dict[str, Any] = field(default_factory=dict)
    requests: bool = False
    on_null: str = "skip"

    @property
    def fingerprint(self) -> str:
        """Hex digest of what makes two runs the same run (design, *The command line*).

        Limits, quota and the Azure deployment are left out on purpose: they may differ without changing what is
        asked.
        """
        identity = {
            "format": FORMAT,
            "data": self.data_digest,
            "limit": self.limit_rows,
            "id_column": self.id_column,
            "kind": self.kind,
            "body": json.dumps(self.body),  # as text: the order of its keys is the order on the wire
            "model": self.model if self.service is ServiceKind.OPENAI else None,
            "answer": json.dumps(self.answer),
            "on_null": self.on_null,
            "service": self.service.value,
        }
        if self.selection:
            identity["selection"] = self.selection
        text = json.dumps(identity, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def id_prefix(self) -> str:
        """First eight characters of the fingerprint: the head of every custom_id."""
        return self.fingerprint[:8]

    @property
    def synthetic(self) -> bool:
        """Whether the answers are invented by the emulator."""
        return self.service is ServiceKind.EMULATOR

    def to_json(self) -> str:
        """The settings as one line of JSON for the ledger."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read back what `to_json` wrote.

        Raises:
            LedgerError: written by another version.
        """
        values = json.loads(text)
        if values.pop("format", None) != FORMAT:
            raise LedgerError("The run folder was made by another version of batchmill: finish it with that version.")
        values["service"] = ServiceKind(values["service"])
        return cls(**values)


def shard_tokens_max(quota_tokens: int | None) -> int | None:
    """Token cap of a shard under a quota: a share, so that several fit at once; None without a quota."""
    if quota_tokens is None:
        return None
    return max(1, int(quota_tokens * QUOTA_SHARE) // SHARDS_PER_QUOTA)
