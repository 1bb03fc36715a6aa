"""What a command line means: the source, the prompt, the settings, and the run folder they belong to.

Everything that can be checked before a row is read is checked here, with one sentence that says what to change.
Writes nothing and sends nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.build.prompt import Prompt, default_prompt, load_prompt
from pipeline.build.source import Source, open_source
from pipeline.build.template import Template, compile_template
from pipeline.config import LIMITS, ServiceKind, Settings, checked_limit, request_url, shard_tokens_max
from pipeline.console import Screen
from pipeline.errors import RunFolderError, UsageError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.merge.output import check_out, choose_prefix
from pipeline.submit.service import connect

EMULATOR_MODEL = "gpt-4o-batch"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said; None where it said nothing."""

    data: Path | None = None
    prompt: Path | None = None
    out: Path | None = None
    run_dir: Path | None = None
    service: str = "auto"
    model: str | None = None
    quota_tokens: int | None = None
    max_lines: int | None = None
    max_bytes: int | None = None
    max_attempts: int = 3
    limit: int | None = None
    id_column: str | None = None
    prefix: str | None = None
    poll_seconds: float | None = None
    yes: bool = False
    new_run: bool = False
    submit: bool = False
    keep_requests: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A source, its prompt and the settings that follow from both: what a new run would be."""

    source: Source
    template: Template
    settings: Settings


def service_kind(name: str, *, interactive: bool, say: Callable[[str], None]) -> ServiceKind:
    """The service that `--service` names; `auto` means Azure when its endpoint is set, else the emulator.

    Raises:
        UsageError: `auto`, no endpoint, and nobody there to see that answers would be synthetic.
    """
    if name != "auto":
        return ServiceKind(name)
    if os.environ.get("AZURE_OPENAI_ENDPOINT"):
        return ServiceKind.AZURE
    if not interactive:
        raise UsageError(
            "No service is configured: set AZURE_OPENAI_ENDPOINT, or name --service emulator for synthetic answers."
        )
    say("AZURE_OPENAI_ENDPOINT is not set: using the emulator; its answers are synthetic.")
    return ServiceKind.EMULATOR


def prepare(options: Options, kind: ServiceKind, say: Callable[[str], None]) -> Job:
    """Read source and prompt and check everything that can be checked before a row is read.

    Raises:
        UsageError: and its kinds; says what to change.
    """
    if options.data is None:
        raise UsageError("Name the data: batchmill run DATA, or --run-dir DIR to go on with a run.")
    source = open_source(options.data)
    prompt = _prompt(options, source, say)
    template = compile_template(prompt, source.schema)
    v1 = os.environ.get("AZURE_OPENAI_ENDPOINT", "").rstrip("/").endswith("/openai/v1")
    limits = LIMITS[kind]
    if options.id_column and options.id_column not in source.schema.names:
        raise UsageError(
            f"--id-column {options.id_column!r} is no column of {options.data}: "
            f"it has {', '.join(source.schema.names)}."
        )
    model = options.model or prompt.model or (EMULATOR_MODEL if kind is ServiceKind.EMULATOR else None)
    if not model:
        raise UsageError(
            "No model is named: give --model NAME (on Azure the deployment), or body.model in the prompt file."
        )
    if options.limit is not None and options.limit < 0:
        raise UsageError("--limit takes a number of rows, 0 or more.")
    settings = Settings(
        service=kind,
        kind=prompt.kind,
        body=prompt.body,
        model=model,
        answer=prompt.answer,
        prompt_name=prompt.name,
        data_path=str(options.data.resolve()),
        data_name=source.name,
        data_digest=source.digest,
        limit_rows=options.limit,
        id_column=options.id_column,
        lines_max=checked_limit("--max-lines", options.max_lines, limits.lines_max, kind),
        bytes_max=checked_limit("--max-bytes", options.max_bytes, limits.bytes_max, kind),
        tokens_max=shard_tokens_max(options.quota_tokens),
        columns_prefix=choose_prefix(source.schema, prompt.answer, options.prefix),
        url=request_url(kind, prompt.kind, v1=v1 and kind is ServiceKind.AZURE),
    )
    return Job(source, template, settings)


def _prompt(options: Options, source: Source, say: Callable[[str], None]) -> Prompt:
    if options.prompt is not None:
        return load_prompt(options.prompt)
    prompt, column = default_prompt(source.schema)
    say(f"No prompt file: each request is the text of column {column!r}.")
    return prompt


def find_folder(options: Options, settings: Settings, runs: Path) -> RunFolder:
    """The run's folder: the one named, or `runs/<data>-<fingerprint>`.

    Raises:
        RunFolderError: the folder is another run's, or an unfinished run of the same data has another prompt.
    """
    folder = RunFolder(options.run_dir or runs / f"{settings.data_name}-{settings.id_prefix}")
    if folder.ledger.exists():
        frozen = frozen_settings(folder)
        if frozen is not None:
            _check_same(folder, frozen, settings, options)
        return folder
    if folder.path.exists() and any(folder.path.iterdir()) and not (folder.path / "lock").exists():
        raise RunFolderError(f"{folder.path} holds other files and no run: choose another folder with --run-dir.")
    if not options.new_run and options.run_dir is None:
        for other in sorted(runs.glob(f"{settings.data_name}-*")):
            theirs = frozen_settings(RunFolder(other)) if (other / "run.db").exists() else None
            if theirs and theirs.data_digest == settings.data_digest and not is_finished(RunFolder(other)):
                raise RunFolderError(
                    f"{other} is an unfinished run of the same data with another {_difference(theirs, settings)}: "
                    "go on with it "
                    f"(batchmill run --run-dir {other}), or start a new one with --new-run."
                )
    return folder


def _difference(frozen: Settings, wanted: Settings) -> str:
    for word, names in {
        "source": ("data_digest",),
        "service": ("service",),
        "prompt": ("kind", "body", "answer"),
        "selection of rows": ("limit_rows", "id_column"),
    }.items():
        if any(getattr(frozen, name) != getattr(wanted, name) for name in names):
            return word
    return "model"


def _check_same(folder: RunFolder, frozen: Settings, wanted: Settings, options: Options) -> None:
    if frozen.fingerprint != wanted.fingerprint:
        raise RunFolderError(
            f"{folder.path} is a run of {frozen.data_path} with {frozen.prompt_name} on {frozen.service.value}; "
            "what you ask for has another "
            f"{_difference(frozen, wanted)}: name another folder with --run-dir."
        )
    for flag, given, name in (
        ("--max-lines", options.max_lines, "lines_max"),
        ("--max-bytes", options.max_bytes, "bytes_max"),
        ("--prefix", options.prefix, "columns_prefix"),
    ):
        if given is not None and given != getattr(frozen, name):
            raise RunFolderError(
                f"{folder.path} was started with {flag} {getattr(frozen, name)}, which cannot change any more: "
                f"leave {flag} out, or "
                "name another folder with --run-dir."
            )


def frozen_settings(folder: RunFolder) -> Settings | None:
    """The settings of the run in a folder; None when it was killed before it had any."""
    ledger = Ledger(folder.ledger, readonly=True)
    try:
        text = ledger.get("settings") if ledger.has_schema else None
        return None if text is None else Settings.from_json(text)
    finally:
        ledger.close()


def is_finished(folder: RunFolder) -> bool:
    """Whether the run in a folder is sealed and has nothing left to ask."""
    ledger = Ledger(folder.ledger, readonly=True)
    try:
        return bool(ledger.has_schema and ledger.get("finished"))
    finally:
        ledger.close()


def open_run(options: Options, screen: Screen) -> tuple[RunFolder, Job | None]:
    """The folder and the job that the options mean; writes nothing.

    Raises:
        UsageError: and its kinds.
    """
    if options.out is not None:
        check_out(options.out)
        if options.data is not None and options.out.resolve() == options.data.resolve():
            raise UsageError(f"--out {options.out} is the source itself: name another file.")
    if options.poll_seconds is not None and not options.poll_seconds > 0:
        raise UsageError("--poll-seconds takes a number of seconds above 0.")
    if options.data is None:
        if options.run_dir is None:
            raise UsageError("Name the data (batchmill run DATA), or a run to go on with (--run-dir DIR).")
        folder = RunFolder(options.run_dir)
        if frozen_settings(folder) is None:
            raise RunFolderError(f"{options.run_dir} was stopped before it began: run it again with its data.")
        return folder, None
    kind = service_kind(options.service, interactive=screen.interactive, say=screen.say)
    job = prepare(options, kind, screen.say)
    if kind is not ServiceKind.EMULATOR:
        connect(kind, log=lambda line: None)  # a configuration that lacks something is found before sealing
    return find_folder(options, job.settings, Path("runs")), job
