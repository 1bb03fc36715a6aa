"""The commands. Each parses its options, calls one thing, and says the exit code; errors are translated once, in
`main`.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import __version__
from pipeline.cli.data_options import data_options
from pipeline.cli.output_options import output_options
from pipeline.errors import BatchmillError
from pipeline.memory import settle_allocators

if TYPE_CHECKING:
    from pipeline.merge.output import MergeCounts

PATH = click.Path(path_type=Path)
EXIT_CODES = """\b
Exit codes:
  0    every row succeeded, or was skipped by rule
  1    the run could not go on
  2    wrong usage or configuration; nothing was sent
  3    finished, some rows failed
  4    stopped with work pending
  130  interrupted (SIGINT), resumable; 143: SIGTERM"""


@click.group(epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="batchmill")
def cli() -> None:
    """Run a prompt over a whole corpus through the Azure OpenAI Batch API.

    The same rows come back, in the same order, with the answers beside them.
    """


def _source_options(command: Any) -> Any:
    """Options that say what is asked of which rows."""
    for option in reversed(
        [
            click.option(
                "--prompt",
                type=PATH,
                help="Prompt file: YAML, .prompty, or a text (.txt, .md, .j2) as the user message. Without one, the "
                "text column is the prompt. [identity]",
            ),
            click.option("--system", type=PATH, help="Text file (a template) as the system message. [identity]"),
            click.option("--run-dir", type=PATH, help="Run folder; default runs/<data>-<fingerprint>."),
            click.option(
                "--service",
                type=click.Choice(["auto", "azure", "openai", "emulator"]),
                default="auto",
                show_default=True,
                help="Where to; auto: Azure when AZURE_OPENAI_ENDPOINT is set, else the emulator. [identity]",
            ),
            click.option(
                "--deployments",
                type=PATH,
                help="Several Azure deployments (YAML): endpoint, name, key, quota. [changeable on resume]",
            ),
            click.option("--model", help="Model; on Azure the deployment. [changeable on resume; identity on OpenAI]"),
            click.option(
                "--quota-tokens", type=click.IntRange(min=1), help="Enqueued-token quota. [changeable on resume]"
            ),
            click.option("--max-lines", type=int, help="Lines a request file, at most. [first time only]"),
            click.option("--max-bytes", type=int, help="Bytes a request file, at most. [first time only]"),
            click.option("--limit", type=int, metavar="ROWS", help="Only the first ROWS rows. [identity]"),
            click.option("--id-column", help="Column whose values are the custom_ids. [identity]"),
            click.option(
                "--on-null",
                type=click.Choice(["skip", "empty", "error"]),
                default="skip",
                show_default=True,
                help="A null in a used column: skip the row, read an empty text, or refuse the run. [identity]",
            ),
            click.option("--prefix", help="Prefix of the output's own columns. [first time only]"),
        ]
    ):
        command = option(command)
    return command


def _run_options(command: Any) -> Any:
    """Options of a run that submits."""
    for option in reversed(
        [
            click.option(
                "--out", type=PATH, help="Output: .parquet .csv .jsonl .arrow, or a folder/. [changeable on resume]"
            ),
            click.option(
                "--max-attempts",
                type=click.IntRange(min=1),
                default=3,
                show_default=True,
                help="Executed attempts a row, at most. [changeable on resume]",
            ),
            click.option(
                "--poll-seconds", type=float, help="Seconds between polls; default 60. [changeable on resume]"
            ),
            click.option(
                "--max-error-rate",
                type=click.FloatRange(0, 1),
                default=0.5,
                show_default=True,
                help="Stop when a larger share of the answered rows has failed; 1: never. [changeable on resume]",
            ),
            click.option(
                "--warn-after-hours",
                type=click.FloatRange(min=0),
                default=30.0,
                show_default=True,
                help="Warn of a batch that is not finished after this long. [changeable on resume]",
            ),
            click.option(
                "--retry-invalid",
                is_flag=True,
                help="Ask again for answers that break their schema; costs an attempt. [changeable on resume]",
            ),
            click.option("--yes", is_flag=True, help="Agree to the plan; needed where nobody can be asked."),
            click.option("--new-run", is_flag=True, help="Start although an unfinished run of the same data exists."),
            click.option("--submit", is_flag=True, help="Submit a run that was built for upload by hand."),
            click.option(
                "--keep-requests",
                is_flag=True,
                help="Keep request files after their results are in. [changeable on resume]",
            ),
            click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout, nothing else."),
        ]
    ):
        command = option(command)
    return command


@cli.command(epilog=EXIT_CODES)
@click.argument("data", type=PATH, nargs=-1)
@_source_options
@data_options
@_run_options
@output_options
def run(as_json: bool, **given: Any) -> int:
    """Seal, plan, submit, watch and merge DATA; the same command again resumes.

    DATA: files of one kind (Parquet, CSV, TSV, JSONL, Arrow), folders of them, or globs in quotes.
    With --run-dir and no DATA an existing run goes on without looking at its source.
    """
    from pipeline.console import Screen, print_json
    from pipeline.opening import Options, open_run, with_specs
    from pipeline.progress import status_of
    from pipeline.publish import remember_choices
    from pipeline.run import Run
    from pipeline.signals import Signals
    from pipeline.status import say_audit

    screen = Screen(quiet=as_json)
    options = with_specs(Options(**given))
    signals = Signals()
    with signals.caught():
        folder, job = open_run(options, screen)
        folder.make()
        with folder.held():
            this = Run(folder, job, options, screen, signals)
            try:
                remember_choices(this.ledger, **options.output_choices)
                this.seal()
                this.consent()
                this.submit()
                counts, out = this.merge()
                status = status_of(this.ledger)
            finally:
                this.close()
    if as_json:
        print_json({"run": str(folder.path), **status, "out": str(out)})
    say_audit(screen, status["audit"])
    summary(screen, counts, out, synthetic=this.settings.synthetic)
    return 3 if counts.failed else 0


def summary(screen: Any, counts: MergeCounts, out: Path, *, synthetic: bool) -> None:
    """The two lines that a merge ends with."""
    parts = [f"{counts.succeeded:,} succeeded", f"{counts.failed:,} failed", f"{counts.skipped:,} skipped"]
    if counts.pending:
        parts.append(f"{counts.pending:,} pending")
    screen.say(f"{counts.rows:,} rows: {', '.join(parts)}" + (" (synthetic answers)" if synthetic else ""))
    screen.say(f"output: {out}")


@cli.command(epilog=EXIT_CODES)
@click.argument("data", type=PATH, nargs=-1, required=True)
@_source_options
@data_options
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON on stdout.")
@click.option(
    "--show", type=click.IntRange(min=0), default=2, show_default=True, help="How many of the first requests to show."
)
def plan(as_json: bool, show: int, **given: Any) -> int:
    """The dry run: rows, shards, tokens, and the first requests; writes nothing, sends nothing."""
    from pipeline.console import Screen, print_json
    from pipeline.opening import Options, prepare, service_kind, shown, with_specs
    from pipeline.plan import plan_of, plan_table

    screen = Screen(quiet=as_json)
    options = with_specs(Options(**given))
    kind = service_kind(
        options.service, interactive=screen.interactive, say=screen.say, deployments=options.deployments
    )
    found = plan_of(prepare(options, kind, screen.say), options, show=show)
    if as_json:
        print_json(found)
    else:
        screen.table(f"plan for {shown(options.data)}", plan_table(found))
        for line in found["first_requests"]:
            click.echo(line)
    return 0


@cli.command(epilog=EXIT_CODES)
@click.argument("data", type=PATH, nargs=-1, required=True)
@_source_options
@data_options
@click.option("--new-run", is_flag=True, help="Start although an unfinished run of the same data exists.")
def build(**given: Any) -> int:
    """Request files only, to upload by hand; `run --submit` submits them from here after all."""
    from pipeline.console import Screen
    from pipeline.opening import Options, open_run, with_specs
    from pipeline.run import Run
    from pipeline.signals import Signals

    screen = Screen()
    options = with_specs(Options(**given))
    signals = Signals()
    with signals.caught():
        folder, job = open_run(options, screen)
        folder.make()
        with folder.held():
            this = Run(folder, job, options, screen, signals)
            try:
                this.seal()
                written = this.build()
            finally:
                this.close()
    screen.say(f"{written:,} request files in {folder.path / 'requests'}")
    return 0


@cli.command(epilog=EXIT_CODES)
@click.argument("run", type=PATH, required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
@click.option("--watch", is_flag=True, help="Again every two seconds until the run is finished.")
def status(run: Path | None, as_json: bool, watch: bool) -> int:
    """Where a run stands; without RUN, where the newest one in runs/ stands."""
    from pipeline.console import Screen
    from pipeline.status import newest, show

    folder = run or newest(Path("runs"))
    return show(folder, Screen(), as_json=as_json, watch=watch)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON on stdout.")
def ls(as_json: bool) -> int:
    """The runs in runs/."""
    from pipeline.console import Screen
    from pipeline.status import list_runs

    list_runs(Path("runs"), Screen(), as_json=as_json)
    return 0


@cli.command(epilog=EXIT_CODES)
@click.argument("run", type=PATH)
@click.option("--out", type=PATH, help="Output: .parquet .csv .jsonl .arrow, or a folder/.")
@click.option(
    "--partial", is_flag=True, help="What is there, the rest marked pending; does not disturb a running process."
)
@click.option(
    "--results", type=PATH, metavar="DIR", help="Result files downloaded by hand, in any names; taken in first."
)
@output_options
@click.option("--json", "as_json", is_flag=True, help="The counts as JSON on stdout.")
def merge(run: Path, out: Path | None, partial: bool, results: Path | None, as_json: bool, **choices: bool) -> int:
    """Write a run's output again, or, with --results, that of a run whose batches were run by hand."""
    from dataclasses import asdict

    from pipeline.console import Screen, print_json
    from pipeline.status import merge_again

    screen = Screen(quiet=as_json)
    counts, path, synthetic = merge_again(
        run, out=out, partial=partial, choices=choices, results=results, say=screen.say
    )
    if as_json:
        print_json({**asdict(counts), "out": str(path)})
    summary(screen, counts, path, synthetic=synthetic)
    return 4 if counts.pending else 3 if counts.failed else 0


@cli.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def emulator(arguments: tuple[str, ...]) -> int:
    """Serve the emulator: an Azure OpenAI Files + Batches service on loopback (see its own --help)."""
    try:
        from pipeline.emulator.__main__ import main as serve
    except ImportError as error:
        raise BatchmillError(
            f"The emulator needs its extra ({error.name} is missing): pip install 'batchmill[emulator]'."
        ) from error
    serve(list(arguments))
    return 0


def main() -> None:
    """Run the command; every error of ours ends as one sentence and its exit code."""
    settle_allocators()
    try:
        code = cli.main(standalone_mode=False)
    except BatchmillError as error:
        code = _say(str(error), error.exit_code)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = _say("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            code = _say("No room left on the disk: free some and run the same command again.", 1)
        else:
            where = f" {error.filename}" if error.filename else ""
            code = _say(f"{error.strerror or error}{where}: check that it is there and may be read and written.", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _say(text: str, code: int) -> int:
    from pipeline.console import Screen

    Screen().error(text)
    return code
