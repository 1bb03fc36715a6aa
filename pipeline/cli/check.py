"""The command `check`: anybody's batch input files against the service's rules."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.commands import EXIT_CODES, PATH, cli

if TYPE_CHECKING:
    from pipeline.checking import Fault, FileCheck
    from pipeline.splitting import Splitter


@cli.command(epilog=EXIT_CODES)
@click.argument("files", type=PATH, nargs=-1, required=True)
@click.option(
    "--service",
    type=click.Choice(["azure", "openai"]),
    default="azure",
    show_default=True,
    help="Whose rules: limits and urls differ.",
)
@click.option("--max-lines", type=int, help="Lines a file, at most; default: the service's limit.")
@click.option("--max-bytes", type=int, help="Bytes a file, at most; default: the service's limit.")
@click.option("--fix-bom", is_flag=True, help="Take a byte order mark off a file, in place.")
@click.option("--split", type=PATH, metavar="DIR", help="Write legal files there, each line byte for byte.")
@click.option("--json", "as_json", is_flag=True, help="Faults and counts as JSON on stdout.")
def check(  # noqa: PLR0917 - click gives them by name
    files: tuple[Path, ...],
    service: str,
    max_lines: int | None,
    max_bytes: int | None,
    fix_bom: bool,
    split: Path | None,
    as_json: bool,
) -> int:
    """Check batch input files (JSONL) against the service's rules.

    Prints every fault with its line and the code that the service would give; exit code 3 when there are any. With
    --split only lines that no file may hold count; they are kept in NAME.faulty.jsonl.
    """
    from pipeline.checking import FileCheck, Rules
    from pipeline.config import LIMITS, ServiceKind, checked_limit
    from pipeline.console import Screen
    from pipeline.errors import UsageError
    from pipeline.splitting import Splitter

    kind = ServiceKind(service)
    rules = Rules(
        kind,
        checked_limit("--max-lines", max_lines, LIMITS[kind].lines_max, kind),
        checked_limit("--max-bytes", max_bytes, LIMITS[kind].bytes_max, kind),
    )
    for path in files:
        if not path.is_file():
            raise UsageError(f"{path} is no file: name JSONL files of batch requests.")
    if split is not None:
        if split.exists() and not split.is_dir():
            raise UsageError(f"{split} is no folder: name one with --split.")
        split.mkdir(parents=True, exist_ok=True)
    screen = Screen(quiet=as_json)
    total, first = 0, True
    if as_json:
        click.echo('{"files":[', nl=False)
    for path in files:
        if fix_bom and _without_bom(path):
            screen.say(f"{path}: took the byte order mark off")
        looking = FileCheck(path, rules)
        splitter = Splitter(path, split, rules) if split is not None else None
        found = _faults(looking, splitter)
        if as_json:
            click.echo("" if first else ",", nl=False)
            count = _json_file(path, found, looking, splitter)
        else:
            count = _say_file(path, found, looking, splitter, screen.say)
        total, first = total + count, False
    if as_json:
        click.echo(f'],"faults":{total}}}')
    return 3 if total else 0


def _faults(looking: FileCheck, splitter: Splitter | None) -> Iterator[Fault]:
    """Every fault of a file; its lines go to parts on the way, and what the parts cure is no fault."""
    if splitter is None:
        for looked in looking.blocks():
            yield from looked.faults
        return
    with closing(splitter):
        for looked in looking.blocks():
            splitter.add(looked)
            yield from (fault for fault in looked.faults if not fault.curable)
        splitter.finish()


def _json_file(path: Path, found: Iterator[Fault], looking: FileCheck, splitter: Splitter | None) -> int:
    """A file's faults as JSON, written as they are found."""
    click.echo(f'{{"file":{json.dumps(str(path))},"faults":[', nl=False)
    count = 0
    for fault in found:
        told = {"line": fault.line, "code": fault.code, "message": fault.message}
        click.echo(("," if count else "") + json.dumps(told), nl=False)
        count += 1
    rest: dict[str, Any] = {"lines": looking.lines, "bytes": looking.size_bytes}
    if splitter is not None:
        aside = splitter.aside
        rest |= {"parts": [str(part) for part in splitter.parts], "faulty": None if aside is None else str(aside)}
    click.echo("]," + json.dumps(rest)[1:], nl=False)
    return count


def _say_file(
    path: Path, found: Iterator[Fault], looking: FileCheck, splitter: Splitter | None, say: Callable[[str], None]
) -> int:
    """A file's faults on stdout, one a line, and what it holds on stderr."""
    count = 0
    for fault in found:
        where = str(path) if fault.line is None else f"{path}:{fault.line}"
        click.echo(f"{where}: {fault.code}: {fault.message}")
        count += 1
    told = f"{count:,} fault{'' if count == 1 else 's'}" if count else "no faults"
    say(f"{path}: {looking.lines:,} lines, {looking.size_bytes:,} bytes, {told}")
    if splitter is not None:
        names = f": {splitter.parts[0]} and on" if splitter.parts else ""
        say(f"{path}: {len(splitter.parts):,} legal files{names}")
        if splitter.aside is not None:
            say(f"{path}: lines that no file may hold are in {splitter.aside}")
    return count


def _without_bom(path: Path) -> bool:
    """Write a file again without its byte order mark; whether it had one."""
    from pipeline.checking import BOM
    from pipeline.durable import replacing

    with path.open("rb") as file:
        if file.read(len(BOM)) != BOM:
            return False
        with replacing(path) as temporary, temporary.open("wb") as plain:
            shutil.copyfileobj(file, plain, 1 << 20)
            shutil.copymode(path, temporary)
            plain.flush()
    return True
