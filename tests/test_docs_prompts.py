"""docs/prompts.md cannot lie: its prompts are loaded and compiled, its tables hold what the code refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.build import body_rules, strict_schema
from pipeline.build.image_template import compile_prompt
from pipeline.build.image_tokens import DEFAULT
from pipeline.build.prompt import KEYS, TEXT_COLUMNS, load_prompt
from pipeline.build.prompt_text import ENDINGS
from pipeline.config import LIMITS, ServiceKind

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "prompts.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(yaml|prompty)\n(.*?)```", PAGE, re.DOTALL)
SCHEMA = pa.schema([("question", pa.string()), ("photo", pa.binary())])


@pytest.mark.parametrize(("ending", "text"), BLOCKS, ids=range(len(BLOCKS)))
def test_every_prompt_of_the_page_can_be_run(tmp_path: Path, ending: str, text: str) -> None:
    """As it stands, over the columns that it names."""
    (tmp_path / f"p.{ending}").write_text(text)
    prompt = load_prompt(tmp_path / f"p.{ending}")
    compile_prompt(prompt, SCHEMA)
    assert prompt.notes == ()
    assert prompt.model


def test_the_page_shows_every_kind_of_prompt() -> None:
    """Each endpoint, a typed answer, images, and a `.prompty`."""
    assert len(BLOCKS) >= 7
    text = "".join(block for _, block in BLOCKS)
    for word in ("url: chat", "url: responses", "url: embeddings", "answer:", "| image", "image_tokens:", "user:\n"):
        assert word in text


def test_the_page_names_what_the_code_has() -> None:
    """Keys, endings, columns, refused keys, limits and costs."""
    for word in (*KEYS, *ENDINGS, *TEXT_COLUMNS, *body_rules._REFUSED, *strict_schema._NOTES):
        assert f"`{word}`" in PAGE or f"`x{word}`" in PAGE, word
    for number in (
        body_rules.MESSAGES_MAX, body_rules.IMAGES_MAX, body_rules.CHOICES_MAX, strict_schema.PROPERTIES_MAX,
        strict_schema.ENUM_VALUES_MAX, strict_schema.NAMES_CHARACTERS_MAX, strict_schema.LARGE_ENUM_CHARACTERS_MAX,
        LIMITS[ServiceKind.AZURE].lines_max, LIMITS[ServiceKind.OPENAI].lines_max,
    ):  # fmt: skip
        assert f"{number:,}" in PAGE, number
    assert f"{DEFAULT.base} tokens and {DEFAULT.tile} for each tile" in PAGE
