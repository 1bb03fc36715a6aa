"""Commands on a run that is there: tick, cancel, retry, clean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.cli.commands import EXIT_CODES, PATH, cli, summary


def _pace_options(command: Any) -> Any:
    """Options of everything that speaks to the service on behalf of a run."""
    for option in reversed(
        [
            click.option("--deployments", type=PATH, help="Several Azure deployments (YAML). [changeable on resume]"),
            click.option("--model", help="Model; on Azure the deployment. [changeable on resume]"),
            click.option(
                "--quota-tokens", type=click.IntRange(min=1), help="Enqueued-token quota. [changeable on resume]"
            ),
            click.option(
                "--poll-seconds",
                type=click.FloatRange(min=0, min_open=True),
                help="Seconds between polls; default 60. [changeable on resume]",
            ),
        ]
    ):
        command = option(command)
    return command


@cli.command(epilog=EXIT_CODES)
@click.argument("run", type=PATH)
@_pace_options
@click.option(
    "--max-attempts", type=click.IntRange(min=1), default=3, show_default=True, help="Executed attempts a row, at most."
)
@click.option(
    "--max-error-rate",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Stop when a larger share of the answered rows has failed; 1: never. [changeable on resume]",
)
@click.option("--yes", is_flag=True, help="Agree to the plan, where nobody has yet.")
@click.option("--submit", is_flag=True, help="Submit a run that was built for upload by hand.")
def tick(run: Path, **given: Any) -> int:
    """One pass over RUN and exit, for cron and Airflow: exit code 4 until it is finished."""
    from pipeline.console import Screen
    from pipeline.opening import Options, with_specs
    from pipeline.operating import tick as do
    from pipeline.status import show

    screen = Screen()
    done = do(run, with_specs(Options(**given)), screen)
    if done is None:
        return show(run, screen, as_json=False, watch=False)
    counts, out, synthetic = done
    summary(screen, counts, out, synthetic=synthetic)
    return 3 if counts.failed else 0


@cli.command(epilog=EXIT_CODES)
@click.argument("run", type=PATH)
@_pace_options
@click.option("--submit", is_flag=True, help="Also a run that was built for upload by hand.")
def cancel(run: Path, **given: Any) -> int:
    """Cancel RUN's batches and keep what they answered; only `retry` goes on with it.

    A process that holds the run is asked to do it. Unsettled creates are settled first.
    """
    from pipeline.console import Screen
    from pipeline.opening import Options, with_specs
    from pipeline.operating import cancel as do

    screen = Screen()
    counts, out, synthetic = do(run, with_specs(Options(**given)), screen)
    summary(screen, counts, out, synthetic=synthetic)
    return 3 if counts.failed else 0


@cli.command(epilog=EXIT_CODES)
@click.argument("run", type=PATH)
@_pace_options
@click.option("--code", "codes", multiple=True, help="Only rows that failed with this code; may be repeated.")
@click.option("--may-pay-again", is_flag=True, help="Also rows of lost batches, which may have been paid for.")
@click.option(
    "--max-attempts", type=click.IntRange(min=1), default=3, show_default=True, help="Executed attempts a row, at most."
)
@click.option("--yes", is_flag=True, help="Agree to the plan, where nobody has yet.")
def retry(run: Path, codes: tuple[str, ...], may_pay_again: bool, **given: Any) -> int:
    """Another round for RUN's failed rows, and for those that a cancelled run never sent."""
    from pipeline.console import Screen
    from pipeline.opening import Options, with_specs
    from pipeline.operating import retry as do

    screen = Screen()
    options = with_specs(Options(**given, max_error_rate=1.0))
    counts, out, synthetic = do(run, options, screen, codes=codes, may_pay_again=may_pay_again)
    summary(screen, counts, out, synthetic=synthetic)
    return 3 if counts.failed else 0


@cli.command(epilog=EXIT_CODES)
@click.argument("run", type=PATH)
@click.option("--deployments", type=PATH, help="Several Azure deployments (YAML).")
@click.option("--keep-remote", is_flag=True, help="Leave the files at the service.")
@click.option("--keep-local", is_flag=True, help="Leave the local files.")
def clean(run: Path, deployments: Path | None, keep_remote: bool, keep_local: bool) -> int:
    """Delete RUN's files at the service, and local ones that are no longer needed.

    Result files at the service go once their content is on disk; request and result files here once the run is
    finished. Rows, outcomes and the ledger stay: the output can always be written again.
    """
    from pipeline.console import Screen
    from pipeline.opening import Options, with_specs
    from pipeline.operating import clean as do

    screen = Screen()
    options = with_specs(Options(deployments=deployments))
    cleaned = do(run, options, screen, remote=not keep_remote, local=not keep_local)
    screen.say(f"deleted {cleaned.remote_files:,} files at the service, {cleaned.local_bytes:,} bytes here")
    return 0
