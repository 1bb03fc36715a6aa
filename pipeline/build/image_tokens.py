"""How many enqueued tokens an image is taken to cost.

Owns the formula: a base and an amount for each tile of 512 pixels, after the image was made to fit the service's
largest size; `detail: low` costs the base alone. The length of the base64 does not count. The service does not publish
how its quota counts images (contract §8); this is how it charges for them (gpt-4o and gpt-4.1). Where its quota
turns out to count base64 as text, `characters` does so too. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from pipeline.build.prompt_words import describe, hint
from pipeline.errors import PromptError

TILE_PIXELS = 512
FIT_PIXELS = 2_048
"""Both sides are made to fit this first."""

SHORT_PIXELS = 768
"""Then the shorter side is made to fit this."""

TILES_MAX = 8
"""Tiles of the largest image that is left after that: 768 by 2,048 pixels."""


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """What an image costs, in tokens: `base`, and `tile` for each tile; or, with `characters`, what its base64 would
    cost as text."""

    base: int = 85
    tile: int = 170
    characters: bool = False

    def of(self, size: tuple[int, int] | None, *, low: bool = False) -> int:
        """The tokens of one image.

        Args:
            size: width and height in pixels; None: unknown, counted as the largest.
            low: `detail: low`.
        """
        return self.base if low else self.base + self.tile * (TILES_MAX if size is None else tiles(*size))


DEFAULT = ImageTokens()


def tiles(width: int, height: int) -> int:
    """How many tiles the service looks at in an image of that many pixels."""
    scale = min(1.0, FIT_PIXELS / max(width, height))
    scale = min(scale, SHORT_PIXELS / min(width, height))
    return max(1, ceil(width * scale / TILE_PIXELS)) * max(1, ceil(height * scale / TILE_PIXELS))


def read_image_tokens(name: str, value: object) -> ImageTokens:
    """The `image_tokens` of a prompt file.

    Raises:
        PromptError: it is neither `characters` nor a mapping of base and tile to whole numbers.
    """
    if value is None:
        return DEFAULT
    if value == "characters":
        return ImageTokens(characters=True)
    if not isinstance(value, dict):
        raise PromptError(
            f"Prompt file {name}: image_tokens must be characters, or a mapping with base and tile, found "
            f"{describe(value)}."
        )
    known = ("base", "tile")
    for key, number in value.items():
        if key not in known:
            raise PromptError(
                f"Prompt file {name}: image_tokens has the unknown key {key!r}{hint(str(key), known)}; known keys: "
                "base, tile."
            )
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 1_000_000:
            raise PromptError(
                f"Prompt file {name}: image_tokens.{key} must be a whole number from 0 to 1,000,000, found {number!r}."
            )
    return ImageTokens(**value)
