"""What is counted while a batch's results are collected: lines, rows and tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.outcome import INVALID_ANSWER, LOST, Verdict


@dataclass(frozen=True, slots=True)
class OutcomeSummary:
    """Counts of one batch: rows by verdict, lines that were unknown, doubled or malformed, tokens of its rows.

    `lines`: result lines read; `lost`: rows that stand in neither file although their batch was completed; `answered`:
    rows whose line has a good HTTP status, as the service counts its completed ones; `invalid`: rows that fail because
    their answer breaks its schema.
    """

    rows: int
    succeeded: int
    failed: int
    retry: int
    unknown: int
    doubled: int
    malformed: int
    prompt_tokens: int
    completion_tokens: int
    lines: int = 0
    lost: int = 0
    answered: int = 0
    invalid: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(slots=True)
class Tally:
    """The counts of `OutcomeSummary` while they grow."""

    lines: int = 0
    lost: int = 0
    unknown: int = 0
    doubled: int = 0
    malformed: int = 0
    answered: int = 0
    invalid: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def add_rows(self, outcomes: pa.Table) -> None:
        """Count what the rows' own lines say; doubled lines count once."""
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"):
            setattr(self, name, getattr(self, name) + (pc.sum(outcomes[name]).as_py() or 0))
        codes = outcomes["error_code"]
        self.lost += pc.sum(pc.equal(codes, LOST)).as_py() or 0
        broken = pc.and_(pc.equal(codes, INVALID_ANSWER), pc.equal(outcomes["status"], Verdict.FAILED.value))
        self.invalid += pc.sum(broken).as_py() or 0

    def summary(self, rows: int, verdicts: dict[Verdict, int]) -> OutcomeSummary:
        """The counts at the end, with those of the rows."""
        counted = {field.name: getattr(self, field.name) for field in fields(self)}
        return OutcomeSummary(
            rows=rows,
            succeeded=verdicts[Verdict.SUCCEEDED],
            failed=verdicts[Verdict.FAILED],
            retry=verdicts[Verdict.RETRY],
            **counted,
        )
