"""The books of a run: what its batches answered and used, against what the service says of them. Pure.

Owns the explanation of every difference between the service's counts and the result files, and the sums of usage by
batch, deployment and run. Knows nothing of files or of SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Book:
    """A finished batch. Counts `total`, `completed`, `reported_failed` and the tokens `used_…` are the service's, None
    where it gave none.

    Attributes:
        answered: rows whose result line has a good HTTP status: what the service calls completed.
        unknown, doubled, malformed: result lines of no row of the batch, more than one of a row, not readable.
        lost: rows that stand in neither result file.
        invalid: rows that fail because their answer breaks its schema.
    """

    batch: int
    batch_id: str
    deployment: str
    remote_status: str
    rows: int
    total: int | None
    completed: int | None
    reported_failed: int | None
    succeeded: int
    failed: int
    leftover: int
    answered: int
    unknown: int
    doubled: int
    malformed: int
    lost: int
    invalid: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    used_prompt_tokens: int | None = None
    used_completion_tokens: int | None = None

    @property
    def fits_usage(self) -> bool | None:
        """Whether the results' tokens add up to those that the service told of the batch; None where it told none."""
        told = (self.used_prompt_tokens, self.used_completion_tokens)
        found = (self.prompt_tokens, self.completion_tokens)
        if told == (None, None):
            return None
        return all(one is None or one == other for one, other in zip(told, found, strict=True))


_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")


def differences(book: Book) -> Iterator[str]:
    """Every way in which a batch's results are not what they should be, one sentence each."""
    if book.total is not None and book.total != book.rows and book.total:
        yield f"the service counts {book.total:,} requests where {book.rows:,} were sent"
    if book.completed is not None and book.completed != book.answered:
        reasons = [
            f"{count:,} {word}"
            for count, word in ((book.malformed, "lines cannot be read"), (book.lost, "rows stand in neither file"))
            if count
        ]
        yield (
            f"the service counts {book.completed:,} completed, and {book.answered:,} rows have a good line"
            f" ({', '.join(reasons) or 'its count includes lines without a good HTTP status, or leaves some out'})"
        )
    told = (book.completed or 0) + (book.reported_failed or 0)
    if book.total and book.completed is not None and told != book.total:
        yield (
            f"the service counts {told:,} completed and failed of {book.total:,}: the rest was not worked off before"
            f" the batch was {book.remote_status or 'over'}"
        )
    if book.fits_usage is False:
        yield (
            f"the service used {book.used_prompt_tokens or 0:,} tokens for requests and"
            f" {book.used_completion_tokens or 0:,} for answers, and the result lines say {book.prompt_tokens:,} and"
            f" {book.completion_tokens:,} ({_why_usage_differs(book)})"
        )
    for count, words in (
        (book.unknown, "result lines belong to no row of the batch; they are kept in its .unknown.jsonl"),
        (book.doubled, "result lines are second ones of their row; the first usable one counts"),
        (book.malformed, "result lines cannot be read"),
        (book.lost, "rows stand in neither result file"),
    ):
        if count:
            yield f"{count:,} {words}"


def _why_usage_differs(book: Book) -> str:
    """What may be missing from the lines, or from the service's sum."""
    reasons = [
        f"{count:,} {word}"
        for count, word in (
            (book.malformed, "lines cannot be read"),
            (book.lost, "rows stand in neither file"),
            (book.doubled, "lines are second ones, which count once here"),
            (book.unknown, "lines belong to no row"),
            (book.rows - book.answered - book.lost, "rows have no good line, and failures may tell no usage"),
        )
        if count > 0
    ]
    return ", ".join(reasons) or "every row has its line: the service counts tokens that it does not tell by line"


def books_of(rows: Iterable[tuple[Any, ...]]) -> list[Book]:
    """Books from the ledger's rows."""
    return [Book(*row) for row in rows]


def audit_of(books: Iterable[Book]) -> list[dict[str, Any]]:
    """Batches with differences, and their explanation."""
    return [
        {"batch": book.batch, "batch_id": book.batch_id, "differences": found}
        for book in books
        if (found := list(differences(book)))
    ]


def agreement_of(audit: Sequence[object], finished: int) -> dict[str, int]:
    """How many batches are over, and how many of them are just what the service says of them.

    Args:
        audit: as of `audit_of`: an entry for every finished batch that differs.
        finished: how many batches are over.
    """
    return {"batches": finished, "agree": finished - len(audit)}


def usage_of(books: Iterable[Book]) -> dict[str, Any]:
    """Tokens of the run, by deployment and by batch; beside each batch what the service told of it, where it did."""
    run = dict.fromkeys(_TOKENS, 0)
    deployments: dict[str, dict[str, int]] = {}
    batches = []
    for book in books:
        used = {name: getattr(book, name) for name in _TOKENS}
        told = {
            "service_prompt_tokens": book.used_prompt_tokens,
            "service_completion_tokens": book.used_completion_tokens,
        }
        named = {"batch": book.batch, "batch_id": book.batch_id, "deployment": book.deployment}
        batches.append({**named, **used, **told, "agrees": book.fits_usage})
        for total in (run, deployments.setdefault(book.deployment, dict.fromkeys(_TOKENS, 0))):
            for name, count in used.items():
                total[name] += count
    return {"run": run, "deployments": deployments, "batches": batches}
