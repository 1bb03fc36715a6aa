"""The audit of a batch's results against the service's counts, and the sums of usage."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.books import Book, audit_of, differences, usage_of

CLEAN: dict[str, Any] = {
    **{"batch": 1, "batch_id": "batch_1", "deployment": "d", "remote_status": "completed", "rows": 10},
    **{"total": 10, "completed": 8, "reported_failed": 2, "succeeded": 8, "failed": 2, "leftover": 0, "answered": 8},
    **dict.fromkeys(["unknown", "doubled", "malformed", "lost", "invalid"], 0),
    **{"prompt_tokens": 100, "completion_tokens": 20, "cached_tokens": 5, "reasoning_tokens": 1},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"total": None, "completed": None, "reported_failed": None}, []),
        ({"total": 9, "reported_failed": 1}, ["counts 9 requests where 10 were sent"]),
        ({"answered": 7, "malformed": 1}, ["1 lines cannot be read", "1 result lines cannot be read"]),
        ({"answered": 7, "lost": 1}, ["1 rows stand in neither file", "1 rows stand in neither"]),
        ({"completed": 9}, ["counts 9 completed, and 8", "11 completed and failed of 10"]),
        ({"reported_failed": 0, "remote_status": "cancelled"}, ["not worked off before the batch was cancelled"]),
        ({"unknown": 3}, ["3 result lines belong to no row"]),
        ({"doubled": 2}, ["2 result lines are second ones"]),
        ({"used_prompt_tokens": 100, "used_completion_tokens": 20}, []),
        ({"used_prompt_tokens": 100}, []),
        (
            {"used_prompt_tokens": 130, "used_completion_tokens": 20},
            ["130 tokens for requests and 20 for answers, and the result lines say 100 and 20 (2 rows have no good"],
        ),
        (
            {"used_completion_tokens": 25, "doubled": 1},
            ["1 lines are second ones, which count once here", "1 result lines are second ones"],
        ),
    ],
)
def test_every_difference_is_explained(change: dict[str, Any], words: list[str]) -> None:
    """One sentence each, and none where the counts agree."""
    found = list(differences(Book(**{**CLEAN, **change})))
    assert len(found) == len(words)
    for text, word in zip(found, words, strict=True):
        assert word in text


def test_only_batches_with_differences_are_named() -> None:
    """A clean batch is not spoken of."""
    books = [Book(**CLEAN), Book(**{**CLEAN, "batch": 2, "unknown": 1})]
    assert [entry["batch"] for entry in audit_of(books)] == [2]


def test_usage_adds_up() -> None:
    """By batch, by deployment, and in total."""
    usage = usage_of([Book(**{**CLEAN, "deployment": name}) for name in ("a", "b", "a")])
    assert usage["run"]["prompt_tokens"] == 300
    assert usage["deployments"]["a"] == {
        "prompt_tokens": 200,
        "completion_tokens": 40,
        "cached_tokens": 10,
        "reasoning_tokens": 2,
    }
    assert len(usage["batches"]) == 3
    assert usage["batches"][0]["agrees"] is None


@pytest.mark.parametrize(("told", "agrees"), [(100, True), (101, False), (None, None)])
def test_usage_is_set_beside_what_the_service_says(told: int | None, agrees: bool | None) -> None:
    """Where the batch has a usage of its own."""
    (batch,) = usage_of([Book(**{**CLEAN, "used_prompt_tokens": told})])["batches"]
    assert (batch["service_prompt_tokens"], batch["agrees"]) == (told, agrees)
