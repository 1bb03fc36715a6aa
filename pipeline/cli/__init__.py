"""The command line: parse, call, exit code. No logic; heavy imports wait until a command needs them."""

from pipeline.cli import check, operator  # noqa: F401  # their commands belong to the group
from pipeline.cli.commands import cli, main

__all__ = ["cli", "main"]
