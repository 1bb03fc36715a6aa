"""The command line: parse, call, exit code. No logic; heavy imports wait until a command needs them."""

from pipeline.cli.commands import cli, main

__all__ = ["cli", "main"]
