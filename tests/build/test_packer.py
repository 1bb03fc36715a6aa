"""The packer keeps every limit, wastes no room, and does not care how the stream was cut into blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.build.packer import Limits, Packer

ROWS = st.lists(st.one_of(st.just((0, 0)), st.tuples(st.integers(1, 50), st.integers(1, 40))), min_size=1, max_size=80)
LIMITS = st.builds(Limits, st.integers(1, 12), st.integers(50, 200), st.one_of(st.none(), st.integers(5, 100)))


def shards_of(rows: list[tuple[int, int]], limits: Limits, blocks: list[int]) -> list[list[tuple[int, int]]]:
    """The shards that a packer cuts a stream into, when it comes in blocks of the given sizes."""
    packer = Packer(limits)
    shards: list[list[tuple[int, int]]] = [[]]
    start = 0
    for size in [*blocks, len(rows)]:
        block = rows[start : start + size]
        start += len(block)
        if not block:
            continue
        sizes = np.array([one for one, _ in block], dtype=np.int64)
        tokens = np.array([one for _, one in block], dtype=np.int64)
        begins = set(packer.cut(sizes, tokens))
        for index, row in enumerate(block):
            if index in begins:
                shards.append([])
            shards[-1].append(row)
    return shards


def fits(shard: list[tuple[int, int]], limits: Limits) -> bool:
    """Whether a shard is within the limits."""
    sent = [row for row in shard if row[0]]
    within = len(sent) <= limits.lines_max and sum(size for size, _ in sent) <= limits.bytes_max
    return within and (limits.tokens_max is None or sum(tokens for _, tokens in sent) <= limits.tokens_max)


@settings(max_examples=300, deadline=None)
@given(ROWS, LIMITS, st.lists(st.integers(1, 20), max_size=8))
def test_shards_hold_the_limits_and_are_as_full_as_they_can_be(
    rows: list[tuple[int, int]], limits: Limits, blocks: list[int]
) -> None:
    """Every row is in one shard, in order; each is within limits or a single large row; none could take one more."""
    shards = shards_of(rows, limits, blocks)
    assert [row for shard in shards for row in shard] == rows
    for shard in shards:
        sent = [row for row in shard if row[0]]
        assert fits(shard, limits) or len(sent) == 1
    for shard, following in zip(shards, shards[1:], strict=False):
        assert not fits([*shard, following[0]], limits)


@settings(max_examples=200, deadline=None)
@given(ROWS, LIMITS, st.lists(st.integers(1, 20), max_size=8))
def test_cuts_do_not_depend_on_blocks(rows: list[tuple[int, int]], limits: Limits, blocks: list[int]) -> None:
    """The same rows give the same shards, however they are read."""
    assert shards_of(rows, limits, blocks) == shards_of(rows, limits, [])
