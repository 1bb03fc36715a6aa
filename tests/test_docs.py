"""The documentation cannot lie: commands, options, exit codes and columns are those of the code; examples are run."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

import click
import pytest

from pipeline import errors
from pipeline.cli import cli
from pipeline.merge.output import Shape, own_columns
from tests.acceptance.command import batchmill

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_reference_of_commands_is_what_the_commands_say() -> None:
    """`docs/commands.md` is made from the commands."""
    spec = importlib.util.spec_from_file_location("make_commands", ROOT / "docs" / "make_commands.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert written == module.reference(cli), "run: python docs/make_commands.py"


def test_every_command_and_option_has_help() -> None:
    """Somebody who asks gets a sentence."""
    for name, command in cli.commands.items():
        assert command.help, name
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, (name, option.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_a_page_names_is_there(page: Path) -> None:
    """No page promises what the code does not have."""
    text = page.read_text(encoding="utf-8")
    params = [param for command in cli.commands.values() for param in command.params]
    options = {opt for param in params for opt in (*param.opts, *param.secondary_opts)}
    options |= {"--help", "--version", *emulator_options(), "--strict", "--kill-seeds", "--rows", "--write"}
    for command in re.findall(r"`batchmill ([a-z]+)", text):
        assert command in cli.commands, f"{page.name} names batchmill {command}"
    for option in re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", text):
        assert option in options, f"{page.name} names {option}"


@cache
def emulator_options() -> set[str]:
    """The options of `batchmill emulator` and of its `books`, which have parsers of their own."""
    helps = [batchmill("emulator", *words, "--help", cwd=ROOT).stdout for words in ((), ("books",))]
    return {option for text in helps for option in re.findall(r"--[a-z][a-z-]+", text)}


def test_every_output_column_is_documented() -> None:
    """In the README, by name."""
    for name in own_columns(Shape("chat", {"type": "object"})).names:
        assert f"`{name}`" in README, name


def test_every_exit_code_is_documented() -> None:
    """In the README, with what it means."""
    codes = {
        found.exit_code for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, errors.BatchmillError)
    }  # fmt: skip
    told = README.partition("Exit codes:")[2]
    for code in {0, 3, 130, 143, *codes}:
        assert re.search(rf"\b{code}\b", told), code


def test_links_lead_somewhere() -> None:
    """Every relative link of every page."""
    for page in PAGES:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readmes_example_prints_what_it_shows(tmp_path: Path) -> None:
    """The command as written; what differs from run to run (ids, the fingerprint's own name aside) is left out."""
    block = README.partition("$ batchmill run sample_data")[2].partition("```")[0]
    command, *shown = ("run sample_data" + block).strip().splitlines()
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    done = batchmill(*command.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    def plain(lines: list[str]) -> list[str]:
        text = re.sub(r"batch_[0-9a-f-]{36}", "BATCH", "\n".join(lines))
        return [" ".join(line.split()) for line in text.splitlines() if not re.match(r"\s*\d+% ", line)]

    assert plain(done.stderr.strip().splitlines()) == plain(shown)
