"""Write `docs/commands.md` from the commands themselves: `python docs/make_commands.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Commands

Made from the commands themselves by `python docs/make_commands.py`; a test holds the two together.

*identity* options are part of the run's fingerprint: with another value it is another run. *first time only* options
are frozen when a run starts. *changeable on resume* options may differ from start to start of the same run.
"""


def reference(group: click.Group) -> str:
    """The page."""
    parts = [HEAD]
    for name in sorted(group.commands):
        command = group.commands[name]
        context = click.Context(command, info_name=f"batchmill {name}", parent=None)
        usage = " ".join(command.collect_usage_pieces(context))
        parts.append(f"## batchmill {name}\n\n`batchmill {name} {usage}`\n\n{_paragraphs(command.help)}\n")
        options = [found for found in command.params if isinstance(found, click.Option)]
        if options:
            parts.append("| option | what it does |\n|---|---|\n" + "".join(map(_row, options)))
    return "\n".join(parts)


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    default = option.default
    shown = f" (default: {default})" if option.show_default and default is not None else ""
    choices = f" One of {', '.join(option.type.choices)}." if isinstance(option.type, click.Choice) else ""
    return f"| {names} | {' '.join((option.help or '').split())}{choices}{shown} |\n"


def main() -> None:
    """Write the page."""
    sys.path.insert(0, str(ROOT))
    from pipeline.cli import cli

    (ROOT / "docs" / "commands.md").write_text(reference(cli), encoding="utf-8")


if __name__ == "__main__":
    main()
