"""The ledger of a run: one SQLite file that survives kill -9 at any instruction.

Owns every write of a run's state, the legality of a batch's moves, and the append-only list of transitions. One
process writes (the run folder's lock sees to that), others may read. Statements stand in `ledger.sql`. Keeps nothing
per source row, no secret, and knows nothing of the network.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.errors import DiskFullError, LedgerError
from pipeline.quota import Quota
from pipeline.shard import Batch, BatchState, Shard, StateCount, Totals, Upload, is_legal

SCHEMA_VERSION = 2

_SETTABLE = frozenset(
    {
        "deployment", "since", "fetches", "cancel_asked", "results_deleted", "refusals", "not_before", "posted_at",
        "unsettled_at", "input_deleted_at", "upload", "remote_id", "remote_status", "missing_since", "output_file_id",
        "error_file_id", "error_code", "error_message", "count_total", "count_completed", "count_failed",
        "used_prompt_tokens", "used_completion_tokens", "succeeded", "failed", "leftover", "prompt_tokens",
        "completion_tokens", "cached_tokens", "reasoning_tokens", "answered_rows", "invalid_answers", "lost_rows",
        "unknown_lines", "doubled_lines", "malformed_lines",
    }
)  # fmt: skip
"""Columns of a batch that change along with a move."""


@cache
def _statements() -> dict[str, str]:
    """The named statements of `ledger.sql`."""
    text = files("pipeline").joinpath("ledger.sql").read_text(encoding="utf-8")
    parts = text.split("-- name: ")[1:]
    return {name.strip(): body.strip() for name, body in (part.split("\n", 1) for part in parts)}


@dataclass(frozen=True, slots=True)
class Deployment:
    """A place for batches: its name in this run, the `model` of its requests, and what is known of its quota."""

    name: str
    model: str
    endpoint: str
    quota: Quota
    proven: bool
    set_aside: str | None


class Ledger:
    """The open ledger.

    Args:
        path: the SQLite file.
        create: make it; otherwise it must be there.
        readonly: for `status` and `merge --partial`, beside a running process.

    Raises:
        LedgerError: not there, not a ledger, or of another version.
    """

    def __init__(self, path: Path, *, create: bool = False, readonly: bool = False) -> None:
        self.path = path
        if not create and not path.is_file():
            raise LedgerError(f"{path.parent} holds no run (there is no {path.name} in it): name a run folder.")
        mode = "ro" if readonly else "rwc" if create else "rw"
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        self._sql = _statements()
        with self._told():
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)
            self._open(create=create, readonly=readonly)

    def _open(self, *, create: bool, readonly: bool) -> None:
        self._db.execute("PRAGMA foreign_keys=ON")
        if not readonly:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
        self.has_schema = True
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and create:
            with self.transaction():
                # executescript would commit by itself; a trigger holds semicolons, so SQLite tells statements apart.
                statement = ""
                for line in self._sql["schema"].splitlines(keepends=True):
                    statement += line
                    if sqlite3.complete_statement(statement):
                        self._db.execute(statement)
                        statement = ""
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif version == 0:
            self.has_schema = False  # killed between making the file and its first transaction
        elif version != SCHEMA_VERSION:
            raise LedgerError(
                f"{self.path} is a ledger of version {version}, this batchmill writes version {SCHEMA_VERSION}: "
                "finish the run with the version that began it."
            )

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        self._db.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn SQLite's errors into ours, at this one place."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "full" in str(error) or "disk I/O" in str(error):
                raise DiskFullError(
                    f"No room left on the disk of {self.path.parent}: free some and run the same command again."
                ) from error
            raise LedgerError(f"The ledger {self.path} cannot be used ({error}).") from error
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError):
                raise
            raise LedgerError(f"{self.path} is not a ledger, or is damaged ({error}).") from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block's writes, or none; durable when the block ends. Nested blocks join the outer one."""
        if self._db.in_transaction:
            yield
            return
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._open_transaction():
                    self._db.execute("ROLLBACK")
                raise

    def _open_transaction(self) -> bool:
        return self._db.in_transaction

    def _run(self, name: str, *values: Any) -> sqlite3.Cursor:
        with self._told():
            return self._db.execute(self._sql[name], values)

    # ---- meta

    def put(self, key: str, value: str) -> None:
        """Set one value of the run."""
        self._run("put_meta", key, value)

    def get(self, key: str) -> str | None:
        """One value of the run, or None."""
        found = self._run("get_meta", key).fetchone()
        return None if found is None else str(found[0])

    # ---- shards

    def seal_span(self, span: int, first_row: int, stop_row: int, shards: Sequence[tuple[Any, ...]]) -> None:
        """Record a span whose row files are durable.

        `shards`: (name, first row, stop row, requests, skipped, bytes, tokens) each.
        """
        with self.transaction():
            self._run("add_span", span, first_row, stop_row)
            for name, *rest in shards:
                self._run("add_shard", name, span, *rest)

    def next_span(self) -> tuple[int, int]:
        """Number and first row of the span to be sealed next."""
        span, row = self._run("last_span").fetchone()
        return int(span), int(row)

    def shards(self) -> Iterator[Shard]:
        """All shards in row order."""
        return (Shard(*row) for row in self._run("shards"))

    def shards_of(self, batch: int) -> list[Shard]:
        """The shards that a batch has rows of, in row order."""
        return [Shard(*row) for row in self._run("shards_of_batch", batch)]

    def shards_covering(self, first_row: int, last_row: int) -> list[Shard]:
        """The shards that hold any row from `first_row` to `last_row`, both included."""
        return [Shard(*row) for row in self._run("shards_covering", first_row, last_row)]

    def unbatched(self, most: int) -> list[Shard]:
        """The first shards that no batch has yet."""
        return [Shard(*row) for row in self._run("shards_unbatched", most)]

    def totals(self) -> Totals:
        """Sums over all shards."""
        return Totals(*self._run("totals").fetchone())

    # ---- deployments

    def add_deployment(self, name: str, model: str, endpoint: str, quota_tokens: int | None) -> None:
        """Make a deployment known, or renew its address and quota on resume; it takes work again."""
        self._run("add_deployment", name, model, endpoint, quota_tokens)

    def deployments(self) -> list[Deployment]:
        """The deployments of the run, by name."""
        return [
            Deployment(name, model, endpoint, Quota.from_json(learnt, asked), bool(proven), set_aside)
            for name, model, endpoint, asked, learnt, proven, set_aside in self._run("deployments")
        ]

    def deployment(self, name: str) -> Deployment:
        """One deployment as it stands."""
        return next(known for known in self.deployments() if known.name == name)

    def learn(self, name: str, *, quota: Quota | None = None, **values: int | str | None) -> None:
        """Keep what was learnt of a deployment: of its quota, that it is proven, why it is set aside."""
        assert values.keys() <= {"proven", "set_aside"}
        found = {**values, **({} if quota is None else {"learnt": quota.to_json()})}
        columns = ", ".join(f"{column} = ?" for column in found)
        with self._told():
            self._db.execute(f"UPDATE deployment SET {columns} WHERE name = ?", (*found.values(), name))

    # ---- batches

    def next_batch(self) -> int:
        """The number the next batch gets."""
        return int(self._run("next_batch").fetchone()[0])

    def add_batch(
        self,
        batch: int,
        *,
        bytes: int,
        tokens: int,
        shards: Sequence[tuple[int, int]],
        kind: str = "first",
        since: float = 0.0,
    ) -> None:
        """Record a planned batch whose row list is durable; it belongs to no deployment yet.

        Args:
            batch: its number.
            bytes, tokens: sums over its rows.
            shards: (shard, rows of it) each.
            kind: `first`, `pooled`, `adopted` (found at the service), or `copy` (found there beside the batch that
                has its rows).
            since: when it was planned, Unix seconds.
        """
        with self.transaction():
            rows = sum(count for _, count in shards)
            self._run("add_batch", batch, rows, bytes, tokens, kind, since)
            for shard, count in shards:
                self._run("add_batch_shard", batch, shard, count)

    def mark_batched(self, shard: int) -> None:
        """All sendable rows of the shard are in batches now."""
        if self._run("mark_batched", shard).rowcount != 1:
            raise LedgerError(f"Shard {shard} was to be planned twice: the run folder is inconsistent.")

    def place_leftover(self, batch: int) -> None:
        """The batch's unanswered rows are in a later batch now."""
        if self._run("place_leftover", batch).rowcount != 1:
            raise LedgerError(
                f"The leftovers of batch {batch} were to be planned twice: the run folder is inconsistent."
            )

    def retake(self, batch: int, rows: int) -> None:
        """Failed rows of a finished batch are in a later batch now."""
        self._run("retake", rows, batch)

    def leftovers(self) -> list[tuple[int, int]]:
        """(batch, rows) of finished batches with rows to be asked again that no batch has yet."""
        return [(int(batch), int(rows)) for batch, rows in self._run("leftovers")]

    def _batches(self, where: str, *values: Any) -> list[Batch]:
        with self._told():
            found = self._db.execute(f"{self._sql['batches']} WHERE {where} ORDER BY b.batch", values)
            return [Batch(row[0], row[1] or "", BatchState(row[2]), *row[3:]) for row in found]

    def open_batches(self) -> list[Batch]:
        """The batches that still want something done."""
        return self._batches("b.state NOT IN ('done', 'split')")

    def any_open(self) -> bool:
        """Whether any batch still wants something done."""
        return bool(self._run("any_open").fetchone()[0])

    def planned_batches(self) -> list[Batch]:
        """The batches that are nowhere yet."""
        return self._batches("b.state = 'planned'")

    def leftover_rows(self) -> int:
        """How many rows of finished batches are to be asked again and have no later batch yet."""
        return int(self._run("leftover_rows").fetchone()[0])

    def queued(self) -> list[tuple[str, BatchState, int, int]]:
        """(deployment, state, batches, tokens) for every pair there is; the deployment is empty for none."""
        return [(row[0], BatchState(row[1]), row[2], row[3]) for row in self._run("queued")]

    def batches(self) -> list[Batch]:
        """All batches."""
        return self._batches("1")

    def kept_results(self) -> list[Batch]:
        """Finished batches whose result files are still at the service."""
        return self._batches(
            "b.state = 'done' AND b.results_deleted = 0 AND (b.output_file_id <> '' OR b.error_file_id <> '')"
        )

    def batch(self, number: int) -> Batch:
        """One batch as it stands now."""
        return self._batches("b.batch = ?", number)[0]

    def move(self, batch: Batch, new: BatchState, at: float, note: str = "", **values: Any) -> Batch:
        """Move a batch to another state, with what changes along; durable on return.

        Raises:
            LedgerError: the move is not in the table, or the batch is no longer where the caller saw it.
        """
        if not is_legal(batch.state, new):
            raise LedgerError(f"Batch {batch.name} cannot go from {batch.state} to {new}: please report this.")
        assert values.keys() <= _SETTABLE, values.keys() - _SETTABLE
        columns = "".join(f", {column} = ?" for column in values)
        with self.transaction():
            done = self._db.execute(
                f"UPDATE batch SET state = ?{columns} WHERE batch = ? AND state = ?",
                (new, *values.values(), batch.batch, batch.state),
            )
            if done.rowcount != 1:
                raise LedgerError(
                    f"Batch {batch.name} is no longer {batch.state}: does another process act on this run?"
                )
            if new is BatchState.SUBMITTED:  # the file remembers what was made of it, whatever becomes of the batch
                self._run("upload_accepted", values["remote_id"], batch.batch)
            self._run("add_transition", at, batch.batch, batch.state, new, note)
        return self.batch(batch.batch)

    def note(self, batch: Batch, **values: Any) -> None:
        """Change facts of a batch that do not move it (its status at the service, its counts)."""
        assert values.keys() <= _SETTABLE, values.keys() - _SETTABLE
        columns = ", ".join(f"{column} = ?" for column in values)
        with self._told():
            self._db.execute(f"UPDATE batch SET {columns} WHERE batch = ?", (*values.values(), batch.batch))

    def state_counts(self) -> dict[BatchState, StateCount]:
        """Sums over batches by state."""
        found = (StateCount(BatchState(row[0]), *row[1:]) for row in self._run("state_counts"))
        return {count.state: count for count in found}

    def outcome_files(self) -> Iterator[tuple[int, int, str, str]]:
        """(shard, batch, deployment, the service's batch id) of every finished batch, by shard and batch."""
        return iter(self._run("outcome_files"))

    def books(self, *, doubtful: bool = False) -> Iterator[tuple[Any, ...]]:
        """What every finished batch answered and used, or those that may differ; see `pipeline.books.Book`."""
        return iter(self._run("doubtful" if doubtful else "audit"))

    # ---- uploads

    def begin_upload(self, batch: Batch, run_id: str, at: float) -> Batch:
        """Record that an upload begins, under a name never used before; the batch is `uploading` on return."""
        with self.transaction():
            tries = int(self._run("uploads_of_batch", batch.batch).fetchone()[0])
            name = f"batchmill-{run_id}-{batch.name}-{tries + 1:02d}.jsonl"
            upload = self._run("add_upload", batch.batch, batch.deployment, name, at).lastrowid
            return self.move(batch, BatchState.UPLOADING, at, name, upload=upload)

    def end_upload(self, batch: Batch, file_id: str, at: float) -> Batch:
        """Record the input file that an upload made."""
        with self.transaction():
            self._run("upload_arrived", file_id, batch.upload_name)
            return self.move(batch, BatchState.UPLOADED, at, file_id)

    def spent_uploads(self) -> list[tuple[str, str]]:
        """(file, deployment) of the input files at the service that no open batch needs."""
        return [(str(row[0]), str(row[1])) for row in self._run("uploads_spent")]

    def upload_deleted(self, file_id: str, at: float) -> None:
        """Record that an input file is gone from the service."""
        self._run("upload_deleted", at, file_id)

    def lost_uploads(self) -> list[tuple[str, str]]:
        """(name, deployment) of uploads whose outcome never became known: their files may lie at the service."""
        return [(str(row[0]), str(row[1])) for row in self._run("uploads_lost")]

    def upload_swept(self, name: str, file_id: str | None, at: float) -> None:
        """Record that the file of a lost upload is gone, or never was."""
        self._run("upload_swept", file_id, at, name)

    def has_uploads(self, deployment: str) -> bool:
        """Whether a deployment has ever taken an input file of this run."""
        return self._run("has_uploads", deployment).fetchone() is not None

    def upload_of_file(self, file_id: str) -> Upload | None:
        """The upload that an input file is of, or None when it is not ours."""
        found = self._run("upload_of_file", file_id).fetchone()
        return None if found is None else Upload(*found)

    def adopt(self, batch: Batch, deployment: str, file_id: str, remote_id: str, at: float) -> Batch:
        """Make a planned batch the one that the service has accepted from an input file; `submitted` on return."""
        with self.transaction():
            known = self.upload_of_file(file_id)
            if known is None:
                upload = self._run("add_upload", batch.batch, deployment, f"adopted-{file_id}", at).lastrowid
                self._run("upload_arrived", file_id, f"adopted-{file_id}")
            else:
                upload = known.upload
                self._run("give_upload", batch.batch, upload)
            values = {"deployment": deployment, "upload": upload, "remote_id": remote_id, "posted_at": at}
            return self.move(batch, BatchState.SUBMITTED, at, f"adopted {remote_id}", unsettled_at=None, **values)

    def adopted_batches(self) -> list[int]:
        """The batches that were found at the service and taken over."""
        return [int(row[0]) for row in self._run("adopted_batches")]

    def transitions(self) -> Iterator[tuple[float, int, str, str, str]]:
        """Every move ever made: (time, batch, from, to, note)."""
        return iter(self._run("transitions"))
