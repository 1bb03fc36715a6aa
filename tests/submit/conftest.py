"""Worlds for the tests of submitting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.submit.world import World, no_sleep

TEXTS: list[str | None] = [f"question {number}" for number in range(20)]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    """Makes worlds that end with the test; twenty rows in two shards unless said otherwise."""
    no_sleep(monkeypatch)
    made: list[World] = []

    def making(**more: Any) -> World:
        root = tmp_path / f"world-{len(made)}"
        root.mkdir()
        made.append(World(root, **({"texts": TEXTS, "lines_max": 10} | more)))
        return made[-1]

    yield making
    for world in made:
        world.close()
