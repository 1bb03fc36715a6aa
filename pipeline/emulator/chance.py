"""A stream of choices from a seed, which also counts what was made: a value neither grows nor nests for ever."""

from __future__ import annotations

from types import TracebackType

DEPTH_MAX = 10
PARTS_MAX, PARTS_HARD_MAX = 300, 20_000
"""After so many parts the shortest way is taken; after the latter there is no value."""
_MASK = (1 << 64) - 1


class Unanswerable(ValueError):
    """There is no value of that kind, or none was found."""


class Chance:
    """Choices from a seed.

    Args:
        seed: any whole number.
    """

    __slots__ = ("_depth", "_parts", "_state")

    def __init__(self, seed: int) -> None:
        self._state = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK
        self._depth = self._parts = 0

    def below(self, count: int) -> int:
        """A number from 0 to `count` - 1."""
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & _MASK
        return (self._state >> 24) % count

    def deeper(self) -> Chance:
        """A context one level down."""
        return self

    def spend(self, parts: int) -> None:
        """Note that so many parts are about to be made.

        Raises:
            Unanswerable: they are too many.
        """
        self._parts += parts
        if self._parts > PARTS_HARD_MAX:
            raise Unanswerable("every value of the schema is too large")

    def __enter__(self) -> None:
        self._depth += 1
        self.spend(1)
        if self._depth > 20 * DEPTH_MAX:
            raise Unanswerable("every value of the schema is too deep")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1

    def short(self) -> bool:
        """Whether the shortest way is to be taken from here on."""
        return self._depth >= DEPTH_MAX or self._parts >= PARTS_MAX
