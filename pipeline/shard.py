"""The vocabulary of a run: shards, batches, uploads, their states, and the table of legal moves. Pure.

A *shard* is a sealed set of rows. A *batch* is the service's work on a frozen list of rows of one or many shards. An
*upload* is one input file: every create has one of its own. States are text in the ledger; `MOVES` is the only list
of legal moves, and the ledger refuses any other. Knows nothing of files, of SQL or of the service.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class BatchState(StrEnum):
    """Where a batch is, from our side."""

    PLANNED = "planned"  # its rows are frozen and durable; nothing of it is at the service
    UPLOADING = "uploading"  # an upload was begun; its outcome is not recorded
    UPLOADED = "uploaded"  # the input file is at the service, perhaps not processed yet
    POSTING = "posting"  # the intent to create is recorded; the outcome is not
    UNSETTLED = "unsettled"  # the create's outcome is unknown; looked for, never posted again on hope
    SUBMITTED = "submitted"  # the service accepted it
    ENDED = "ended"  # terminal at the service; its result files are not all here
    COLLECTED = "collected"  # its result files are whole on disk
    DONE = "done"  # its outcomes are written
    SPLIT = "split"  # never accepted; its rows went to smaller batches


MOVES: dict[BatchState, frozenset[BatchState]] = {
    # A batch may turn up at the service in any state before `submitted`: an earlier create of it landed late.
    BatchState.PLANNED: frozenset({BatchState.UPLOADING, BatchState.SPLIT, BatchState.COLLECTED, BatchState.SUBMITTED}),
    BatchState.UPLOADING: frozenset({BatchState.UPLOADED, BatchState.PLANNED, BatchState.SUBMITTED}),
    BatchState.UPLOADED: frozenset({BatchState.POSTING, BatchState.PLANNED, BatchState.SUBMITTED}),
    BatchState.POSTING: frozenset(
        {BatchState.SUBMITTED, BatchState.UNSETTLED, BatchState.PLANNED, BatchState.COLLECTED}
    ),
    BatchState.UNSETTLED: frozenset({BatchState.SUBMITTED, BatchState.PLANNED}),
    BatchState.SUBMITTED: frozenset({BatchState.ENDED}),
    # Ended without anything accepted (refused late for quota, or for the deployment): the rows wait for another create.
    BatchState.ENDED: frozenset({BatchState.COLLECTED, BatchState.PLANNED}),
    BatchState.COLLECTED: frozenset({BatchState.DONE}),
    BatchState.DONE: frozenset(),
    BatchState.SPLIT: frozenset(),
}

OPEN_STATES = frozenset(BatchState) - {BatchState.DONE, BatchState.SPLIT}
"""States of a batch that still wants something done."""

QUEUED_STATES = frozenset(
    {BatchState.UPLOADING, BatchState.UPLOADED, BatchState.POSTING, BatchState.UNSETTLED, BatchState.SUBMITTED}
)
"""States in which a batch counts against the enqueued-token quota, or is about to."""

TERMINAL_STATUSES = frozenset({"completed", "failed", "expired", "cancelled"})
"""The service's terminal statuses (contract §4). Any other, known or not, means: still going on."""


def normal_status(raw: str | None) -> str:
    """The service's status as the contract spells it: lower case, `canceled` as `cancelled`; empty for none."""
    status = (raw or "").lower()
    return "cancelled" if status == "canceled" else status


@dataclass(frozen=True, slots=True)
class Shard:
    """A sealed shard as the ledger knows it. Rows are 0-based positions in the source; sizes as measured at sealing."""

    shard: int
    name: str
    first_row: int
    stop_row: int
    requests: int
    skipped: int
    bytes: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as the ledger knows it; times are Unix seconds, ids are the service's (None: none yet).

    `deployment` is empty while it belongs to none; `kind`: `first`, `pooled` or `adopted`; `fetches`: how often its
    results were fetched afresh; `count_*`: what the service says of its lines.
    """

    batch: int
    deployment: str
    state: BatchState
    rows: int
    bytes: int
    tokens: int
    refusals: int
    not_before: float
    posted_at: float | None
    unsettled_at: float | None
    input_deleted_at: float | None
    remote_id: str | None
    remote_status: str
    missing_since: float | None
    output_file_id: str | None
    error_file_id: str | None
    error_code: str | None
    error_message: str | None
    file_id: str | None
    upload_name: str | None
    succeeded: int
    failed: int
    leftover: int
    since: float
    kind: str
    fetches: int
    cancel_asked: int
    count_total: int | None
    count_completed: int | None
    count_failed: int | None
    upload: int | None = None

    @property
    def claimed_lines(self) -> int:
        """How many result lines the service's own counts promise; 0 where it says nothing."""
        return (self.count_completed or 0) + (self.count_failed or 0)

    @property
    def name(self) -> str:
        """`b000123`: the stem of the batch's files."""
        return f"b{self.batch:06d}"


@dataclass(frozen=True, slots=True)
class Upload:
    """An input file of ours: the batch that it belongs to, where it went, and what the service made of it (or None)."""

    upload: int
    batch: int
    deployment: str
    remote_id: str | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the sealed shards."""

    shards: int
    rows: int
    requests: int
    skipped: int
    bytes: int
    tokens: int


@dataclass(frozen=True, slots=True)
class StateCount:
    """Sums over the batches of one state.

    `reported` is what the service says is finished, `placed` what later batches took over.
    """

    state: BatchState
    batches: int
    rows: int
    tokens: int
    succeeded: int
    failed: int
    leftover: int
    prompt_tokens: int
    completion_tokens: int
    reported: int
    placed: int


def is_legal(old: BatchState, new: BatchState) -> bool:
    """Whether a batch may go from one state to another."""
    return new in MOVES[old]
