"""How an emulator behaves: profiles of the services, and the settings of one emulator. Times in seconds.

A profile holds what differs from service to service (contract §10); every choice where the contract says "unknown"
stands in docs/emulator.md.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

WINDOW_S = 86_400
DAY_S = 86_400
VALIDATING_S, EXECUTING_S, FINALIZING_S, PROCESSING_S = 120.0, 80.0, 40.0, 80.0
"""How long a small batch and a file take at speed 1, about as Azure's own samples do (contract §4)."""

QUIRKS = frozenset(
    {
        "capitals", "iso_times", "text_times", "null_counts", "no_metadata", "null_endpoint", "text_lines",
        "single_error", "failed_as_completed", "canceled", "bare_lists", "value_lists", "null_sizes", "null_ids",
        "created_200", "window_ends",
    }
)  # fmt: skip
"""Oddities (contract §1 to §5) that can be switched on."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Limits and habits of one kind of service.

    Attributes:
        roots: the URL roots it has.
        lines_max, file_bytes_max: of an input file.
        inputs_max: inputs of all embeddings requests of a file; None: no cap.
        created: HTTP status of an upload and of a create on the classic root; 200 on the others.
        no_id: what stands for a file id that there is not (yet).
        result_ids: whether result lines have an id of their own.
        gate: whether a batch is refused while its file is not processed.
        empty_files: whether a result file without lines is made all the same.
        expires: whether batches expire when their window ends.
        exact_url: whether the create's endpoint must be the lines' url to the letter.
        embeddings: whether embeddings may be batched.
        files_max, files_max_expiring: input files without and with an expiry; None: no cap.
        expiry_s_min: least seconds until a file may expire.
        input_expiry_s, result_expiry_s: when files expire that were given no expiry; None: never.
        headers: whether creates on the classic root tell the enqueued tokens.
        dashed: whether the ids of files are hexadecimal, as Azure's are.
        parameters: whether a bad line is told with the parameter that is missing or wrong.
        filters: whether answers carry the results of content filters.
        usage: whether batches tell their model and usage.
        unexecuted_fail: whether lines that were never executed count as failed.
    """

    roots: tuple[str, ...]
    lines_max: int
    file_bytes_max: int
    inputs_max: int | None
    created: int
    no_id: str | None
    result_ids: bool
    gate: bool
    empty_files: bool
    expires: bool
    exact_url: bool
    embeddings: bool
    files_max: int | None
    files_max_expiring: int | None
    expiry_s_min: int
    input_expiry_s: int | None
    result_expiry_s: int | None
    headers: bool
    dashed: bool
    parameters: bool
    filters: bool
    usage: bool
    unexecuted_fail: bool


_AZURE: dict[str, Any] = {
    "lines_max": 100_000, "file_bytes_max": 200_000_000, "inputs_max": None, "no_id": "", "result_ids": False,
    "gate": True, "empty_files": True, "expires": False, "exact_url": False, "embeddings": False, "files_max": 500,
    "files_max_expiring": 10_000, "expiry_s_min": 3 * DAY_S, "input_expiry_s": None, "result_expiry_s": None,
    "dashed": True, "parameters": False, "filters": True, "unexecuted_fail": True,
}  # fmt: skip
PROFILES = {
    "azure": Profile(roots=("/openai/v1", "/openai", "/v1"), created=201, headers=True, usage=False, **_AZURE),
    "azure-v1": Profile(roots=("/openai/v1",), created=200, headers=False, usage=True, **_AZURE),
    "openai": Profile(
        roots=("/v1",), lines_max=50_000, file_bytes_max=200_000_000, inputs_max=50_000, created=200, no_id=None,
        result_ids=True, gate=False, empty_files=False, expires=True, exact_url=True, embeddings=True, files_max=None,
        files_max_expiring=None, expiry_s_min=3_600, input_expiry_s=30 * DAY_S, result_expiry_s=30 * DAY_S,
        headers=False, dashed=False, parameters=True, filters=False, usage=True, unexecuted_fail=False,
    ),
}  # fmt: skip


@functools.lru_cache(maxsize=32)
def _habits(profile: str, quirks: frozenset[str]) -> Profile:
    """A profile, less what quirks change of it (contract §10, §11)."""
    changes: dict[str, Any] = {}
    if "null_ids" in quirks:
        changes["no_id"] = None
    if "created_200" in quirks:
        changes["created"] = 200
    if "window_ends" in quirks:
        changes["expires"] = True
    return replace(PROFILES[profile], **changes)


@dataclass(frozen=True, slots=True)
class EmulatorSettings:
    """One emulator.

    Attributes:
        state: folder of its state.
        profile: `azure`, `azure-v1` or `openai`.
        host, port: where it listens; port 0: any free one.
        key: the only key it takes; None: any.
        seed: of the answers.
        speed: how much faster than the service time passes; `instant` takes every delay away.
        fail_fast: validation errors refuse the create, instead of failing the batch later.
        quota_tokens: enqueued-token limit of each deployment; None: none.
        others_tokens: tokens that others hold in each deployment's queue.
        tokens_per_character: the service's own estimate of a file's tokens.
        header_means: `file` or `sum`: what the header `deployment-enqueued-tokens` says.
        lines_max: lines a file, at most; None: the profile's.
        deployments: the only ones it knows; empty: any.
        standard_deployments: those that exist and are not for batches.
        quirks: oddities of the objects.
        faults: orders that stand from the start.
        fault_seed: of orders by rate.
        upstream: root of a server that answers the lines; None: synthetic answers.
        upstream_key: its key.
        concurrency: requests to it at once.
        die_with_parent: end when standard input ends.
    """

    state: Path
    profile: str = "azure"
    host: str = "127.0.0.1"
    port: int = 0
    key: str | None = field(default=None, repr=False)
    seed: int = 0
    speed: float = 400.0
    instant: bool = False
    fail_fast: bool = False
    quota_tokens: int | None = None
    others_tokens: int = 0
    tokens_per_character: float = 0.25
    header_means: str = "file"
    lines_max: int | None = None
    deployments: tuple[str, ...] = ()
    standard_deployments: tuple[str, ...] = ()
    quirks: frozenset[str] = frozenset()
    faults: tuple[dict[str, Any], ...] = ()
    fault_seed: int = 0
    upstream: str | None = None
    upstream_key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    die_with_parent: bool = False

    @property
    def habits(self) -> Profile:
        """The profile's habits."""
        return _habits(self.profile, self.quirks)

    @property
    def lines_cap(self) -> int:
        """Lines a file, at most."""
        return self.lines_max or self.habits.lines_max

    def delay_s(self, seconds: float) -> float:
        """A delay at this speed."""
        return 0.0 if self.instant else seconds / self.speed
