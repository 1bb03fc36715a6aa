"""Options that say how the data is read and which of its rows are wanted."""

from __future__ import annotations

from typing import Any

import click


def data_options(command: Any) -> Any:
    """Give a command these options."""
    for option in reversed(
        [
            click.option(
                "--columns",
                multiple=True,
                metavar="NAMES",
                help="Only these columns, parted by commas; may be repeated. [identity]",
            ),
            click.option(
                "--where", metavar="EXPR", help="Only rows for which this SQL expression is true. [identity]"
            ),
            click.option(
                "--sample",
                type=click.IntRange(min=0),
                metavar="ROWS",
                help="So many rows drawn from those that --where leaves, in their order. [identity]",
            ),
            click.option("--seed", type=int, help="Of --sample; default 0. [identity]"),
            click.option(
                "--delimiter", metavar="CHAR", help="Of CSV and TSV files; default: comma, in .tsv tab. [identity]"
            ),
            click.option(
                "--quote", metavar="CHAR", help="Of CSV and TSV files; default a double one; `none`. [identity]"
            ),
            click.option("--encoding", metavar="NAME", help="Of CSV and TSV files; default UTF-8. [identity]"),
            click.option(
                "--infer-types",
                is_flag=True,
                help="CSV values become numbers, dates, … where that loses nothing; default: text. [identity]",
            ),
            click.option(
                "--requests/--no-requests",
                default=None,
                help="Whether the data is finished request lines; default: by its first line. [identity]",
            ),
        ]
    ):
        command = option(command)
    return command
