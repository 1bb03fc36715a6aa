"""The options that say what the output looks like; `run` and `merge` share them."""

from __future__ import annotations

from typing import Any

import click


def output_options(command: Any) -> Any:
    """Options that the last one given of stays with the run."""
    for option in reversed(
        [
            click.option(
                "--flatten",
                is_flag=True,
                help="Spread a typed answer's top level into columns answer.<name>. [changeable on resume]",
            ),
            click.option(
                "--raw",
                is_flag=True,
                help="A last column `raw`: the whole response body as JSON text. [changeable on resume]",
            ),
            click.option(
                "--keep-invalid",
                is_flag=True,
                help="Answers that break their schema succeed, their text in answer_text. [changeable on resume]",
            ),
            click.option(
                "--neutralise-formulas",
                is_flag=True,
                help="In CSV, a quote before text that a spreadsheet would compute. [changeable on resume]",
            ),
        ]
    ):
        command = option(command)
    return command
