"""Bare texts as prompts, and `--system`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.build.prompt import load_prompt
from pipeline.build.prompt_text import with_system
from pipeline.errors import PromptError


@pytest.mark.parametrize("ending", ["txt", "md", "j2", "jinja", "jinja2", "TXT"])
def test_a_bare_text_is_the_user_message(tmp_path: Path, ending: str) -> None:
    """As it stands, but for one newline at its end; line ends are those of Unix, a byte order mark is no text."""
    path = tmp_path / f"p.{ending}"
    path.write_bytes(b"\xef\xbb\xbf# {{ q }}\r\n\r\nbody: [\n\n")
    prompt = load_prompt(path)
    assert prompt.body == {"messages": [{"role": "user", "content": "# {{ q }}\n\nbody: [\n"}]}
    assert (prompt.kind, prompt.model, prompt.answer, prompt.name) == ("chat", None, None, path.name)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "p.txt has no text; write the message in it"),
        (b" \n\t\n", "p.txt has no text"),
        (b"a\xff", "p.txt is not UTF-8 (byte 1); save it as UTF-8"),
        (None, "does not exist; check the path given to --prompt"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    """One sentence with the file's name."""
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PromptError) as caught:
        load_prompt(path)
    assert sentence in str(caught.value)
    path.unlink(missing_ok=True)
    path.mkdir()
    with pytest.raises(PromptError, match="cannot be read"):
        load_prompt(path)


def prompt_of(tmp_path: Path, text: str) -> Any:
    """A prompt of our YAML."""
    (tmp_path / "p.yaml").write_text(text)
    return load_prompt(tmp_path / "p.yaml")


def test_system_is_added_or_replaced(tmp_path: Path) -> None:
    """First of the messages where there is none; in its place and with its role where there is one."""
    (tmp_path / "s.md").write_text("Be {{ mood }}.\n")
    bare = prompt_of(tmp_path, "body: {messages: [{role: user, content: a}]}")
    added = with_system(bare, tmp_path / "s.md")
    assert added.body["messages"] == [{"role": "system", "content": "Be {{ mood }}."}, {"role": "user", "content": "a"}]
    assert added.digest() != bare.digest()
    own = "body: {seed: 1, messages: [{role: user, content: a}, {role: developer, content: b, name: n}]}"
    replaced = with_system(prompt_of(tmp_path, own), tmp_path / "s.md")
    assert replaced.body["messages"][1] == {"role": "developer", "content": "Be {{ mood }}.", "name": "n"}
    assert list(replaced.body) == ["seed", "messages"]


def test_system_is_instructions_on_responses(tmp_path: Path) -> None:
    """Added in front, or in place of those that are there."""
    (tmp_path / "s.md").write_text("Be brief.")
    for text in ("url: responses\nbody: {input: a}", "url: responses\nbody: {instructions: b, input: a}"):
        assert list(with_system(prompt_of(tmp_path, text), tmp_path / "s.md").body.items()) == [
            ("instructions", "Be brief."),
            ("input", "a"),
        ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("url: embeddings\nbody: {input: a}", "--system cannot be used with url embeddings, which takes no messages"),
        (
            "body: {messages: [{role: system, content: a}, {role: developer, content: b}]}",
            "p.yaml has 2 system messages, and --system replaces one; keep one of them",
        ),
    ],
)
def test_system_is_refused_where_it_is_unclear(tmp_path: Path, text: str, sentence: str) -> None:
    """One sentence, before anything is sent."""
    (tmp_path / "s.md").write_text("x")
    with pytest.raises(PromptError, match=sentence):
        with_system(prompt_of(tmp_path, text), tmp_path / "s.md")
    with pytest.raises(PromptError, match="check the path given to --system"):
        with_system(prompt_of(tmp_path, "body: {messages: [{role: user, content: a}]}"), tmp_path / "absent")
