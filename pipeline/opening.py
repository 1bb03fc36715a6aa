"""What a command line means: the source, the prompt, the settings, and the run folder they belong to.

Everything that can be checked before a row is read is checked here, with one sentence that says what to change.
Writes nothing and sends nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipeline.build.body_rules import inputs_of
from pipeline.build.files import list_files
from pipeline.build.image_template import ImageTemplate, compile_prompt
from pipeline.build.prompt import Prompt, default_prompt, load_prompt
from pipeline.build.prompt_text import with_system
from pipeline.build.request_source import RequestSource, RequestTemplate, holds_requests, open_requests
from pipeline.build.selection import Selected, Selection, named_columns
from pipeline.build.source import ReadOptions, open_source
from pipeline.build.template import Template
from pipeline.config import ServiceKind, Settings, checked_limit, limits_of, request_url, shard_tokens_max
from pipeline.connecting import connect_spec
from pipeline.console import Screen
from pipeline.errors import LedgerError, RunFolderError, UsageError
from pipeline.folder import RunFolder
from pipeline.ids import CUSTOM_ID_COLUMN
from pipeline.ledger import Ledger
from pipeline.merge.output import check_out, choose_prefix
from pipeline.submit.deployments import DeploymentSpec, load_deployments

EMULATOR_MODEL = "gpt-4o-batch"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said; None where it said nothing."""

    data: tuple[Path, ...] = ()
    prompt: Path | None = None
    system: Path | None = None
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
    on_null: str = "skip"
    prefix: str | None = None
    poll_seconds: float | None = None
    yes: bool = False
    new_run: bool = False
    submit: bool = False
    keep_requests: bool = False
    deployments: Path | None = None
    max_error_rate: float = 0.5
    warn_after_hours: float = 30.0
    flatten: bool = False
    raw: bool = False
    keep_invalid: bool = False
    retry_invalid: bool = False
    neutralise_formulas: bool = False
    columns: tuple[str, ...] = ()
    where: str | None = None
    sample: int | None = None
    seed: int | None = None
    delimiter: str | None = None
    quote: str | None = None
    encoding: str | None = None
    infer_types: bool = False
    requests: bool | None = None
    specs: tuple[DeploymentSpec, ...] = ()
    """The lines of the deployments file, once it was read."""

    @property
    def output_choices(self) -> dict[str, bool]:
        """What the output is to look like, by the names under which the ledger keeps it."""
        names = ("flatten", "raw", "keep_invalid", "retry_invalid", "neutralise_formulas")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Job:
    """A source, its prompt and the settings that follow from both: what a new run would be."""

    source: Selected
    template: Template | ImageTemplate | RequestTemplate
    settings: Settings


def service_kind(
    name: str, *, interactive: bool, say: Callable[[str], None], deployments: Path | None = None
) -> ServiceKind:
    """The service that `--service` names; `auto` means Azure when its endpoint is set, else the emulator.

    A deployments file means Azure.

    Raises:
        UsageError: `auto`, no endpoint, and nobody there to see that answers would be synthetic.
    """
    if deployments is not None:
        if name not in ("auto", "azure"):
            raise UsageError(f"--deployments names Azure deployments: leave out --service {name}, or say azure.")
        return ServiceKind.AZURE
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
    if not options.data:
        raise UsageError("Name the data: batchmill run DATA, or --run-dir DIR to go on with a run.")
    source, selection, found = _opened(options)
    prompt = _requests_prompt(options, found, say) if found else _prompt(options, source, say)
    template = RequestTemplate() if found else compile_prompt(prompt, source.schema, on_null=options.on_null)
    endpoint = options.specs[0].endpoint or "" if options.specs else os.environ.get("AZURE_OPENAI_ENDPOINT", "")
    v1 = endpoint.rstrip("/").endswith("/openai/v1")
    limits = limits_of(kind, prompt.kind, inputs_of(prompt.kind, prompt.body))
    if options.id_column and options.id_column not in source.schema.names:
        raise UsageError(
            f"--id-column {options.id_column!r} is no column of {shown(options.data)}: "
            f"it has {', '.join(source.schema.names)}."
        )
    if options.specs and options.model:
        raise UsageError("--model and --deployments both name deployments: give one of them.")
    # Measured under the longest name, so that a sealed shard fits whichever deployment it goes to.
    longest = max(
        (spec.deployment for spec in options.specs), key=lambda name: (len(name.encode()), name), default=None
    )
    model = options.model or longest or prompt.model or (EMULATOR_MODEL if kind is ServiceKind.EMULATOR else None)
    if not model:
        raise UsageError(
            "No model is named: give --model NAME (on Azure the deployment), or body.model in the prompt file."
        )
    if options.flatten and prompt.answer is not None and "properties" not in prompt.answer:
        raise UsageError("--flatten spreads the properties of a typed answer, and this one has none: leave it out.")
    for name in ("flatten", "keep_invalid", "retry_invalid"):
        if getattr(options, name) and prompt.answer is None:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} is for typed answers: give the prompt file an `answer`, or leave {flag} out.")
    if options.limit is not None and options.limit < 0:
        raise UsageError("--limit takes a number of rows, 0 or more.")
    settings = Settings(
        service=kind,
        kind=prompt.kind,
        body=prompt.body,
        model=model,
        answer=prompt.answer,
        prompt_name=prompt.name,
        data_path=shown([path.resolve() for path in options.data]),
        data_name=source.name,
        data_digest=source.digest,
        limit_rows=options.limit,
        id_column=options.id_column or (CUSTOM_ID_COLUMN if selection.sparse or found else None),
        lines_max=checked_limit("--max-lines", options.max_lines, limits.lines_max, kind),
        bytes_max=checked_limit("--max-bytes", options.max_bytes, limits.bytes_max, kind),
        tokens_max=shard_tokens_max(_quota_tokens(options)),
        columns_prefix=choose_prefix(
            source.schema, prompt.answer, options.prefix, flatten=options.flatten, raw=options.raw
        ),
        url=request_url(kind, prompt.kind, v1=v1 and kind is ServiceKind.AZURE),
        image_tokens=asdict(prompt.image_tokens),
        selection=selection.identity(),
        requests=found is not None,
        on_null=options.on_null,
    )
    return Job(source, template, settings)


def _opened(options: Options) -> tuple[Selected, Selection, RequestSource | None]:
    """The source, what is wanted of it, and, where it is finished request lines, what these say."""
    if options.seed is not None and options.sample is None:
        raise UsageError("--seed is of a sample: add --sample ROWS, or leave it out.")
    seed = options.seed or 0
    told = ReadOptions(options.delimiter, options.quote, options.encoding, options.infer_types)
    found = options.requests
    if found is None:
        found = holds_requests(list_files(options.data))
    if not found:
        source = open_source(options.data, told)
        selection = Selection(named_columns(options.columns, source.schema), options.where, options.sample, seed)
        return Selected(source, selection, numbered=options.id_column is None), selection, None
    flags = {
        "--prompt": options.prompt, "--system": options.system, "--id-column": options.id_column,
        "--columns": options.columns, "--where": options.where, told.given() or "": told.given(),
    }  # fmt: skip
    for flag, value in flags.items():
        if value:
            raise UsageError(
                f"{shown(options.data)} holds finished request lines, for which there is no {flag}: leave it out, or "
                "read the lines as a table with --no-requests."
            )
    requests = open_requests(options.data)
    selection = Selection(sample_rows=options.sample, seed=seed)
    return Selected(requests, selection, numbered=False), selection, requests


def _requests_prompt(options: Options, found: RequestSource, say: Callable[[str], None]) -> Prompt:
    """What stands for the prompt of finished request lines: their kind and model."""
    if found.models and not options.model and not options.specs:
        raise UsageError(f"The request lines name different models ({found.models}): name the one to use with --model.")
    say("Finished request lines: their custom_ids are kept; url and model are those of this run.")
    body = {"n": 2} if found.several else {}  # all that the output's shape depends on
    return Prompt(kind=found.kind, body=body, model=found.model, answer=None, name="request lines")


def shown(data: Sequence[Path]) -> str:
    """The data in a sentence."""
    return str(data[0]) + (f" and {len(data) - 1:,} more" if len(data) > 1 else "")


def _quota_tokens(options: Options) -> int | None:
    """The smallest quota named: a shard should fit every deployment."""
    named = [spec.quota_tokens for spec in options.specs if spec.quota_tokens]
    if options.quota_tokens:
        named.append(options.quota_tokens)
    return min(named, default=None)


def with_specs(options: Options) -> Options:
    """The options with the deployments file read.

    Raises:
        UsageError: the file is wrong.
    """
    return replace(options, specs=load_deployments(options.deployments)) if options.deployments else options


def _prompt(options: Options, source: Selected, say: Callable[[str], None]) -> Prompt:
    if options.prompt is not None:
        prompt = load_prompt(options.prompt)
        for note in prompt.notes:
            say(note)
    else:
        prompt, column = default_prompt(source.schema)
        say(f"No prompt file: each request is the text of column {column!r}.")
    return prompt if options.system is None else with_system(prompt, options.system)


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
        for other in (ledger.parent for ledger in sorted(runs.glob("*/run.db"))):
            if _is_unfinished(RunFolder(other), settings):
                theirs = frozen_settings(RunFolder(other))
                assert theirs
                raise RunFolderError(
                    f"{other} is an unfinished run of the same data with another {_difference(theirs, settings)}: "
                    "go on with it "
                    f"(batchmill run --run-dir {other}), or start a new one with --new-run."
                )
    return folder


def _is_unfinished(folder: RunFolder, wanted: Settings) -> bool:
    """Whether a folder holds an unfinished run of the same data; one that cannot be read is none of our business."""
    try:
        frozen = frozen_settings(folder)
        return frozen is not None and frozen.data_digest == wanted.data_digest and not is_finished(folder)
    except LedgerError:
        return False


def _difference(frozen: Settings, wanted: Settings) -> str:
    for word, names in {
        "source": ("data_digest",),
        "service": ("service",),
        "prompt": ("kind", "body", "answer"),
        "selection of rows": ("limit_rows", "id_column", "selection"),
        "rule for nulls": ("on_null",),
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


def _as_named(options: Options, frozen: Settings) -> Settings:
    """A run's settings with what the command line names of its identity, where its source is not looked at."""
    named: dict[str, Any] = {}
    if options.prompt is not None:
        prompt = load_prompt(options.prompt)
        named |= {"kind": prompt.kind, "body": prompt.body, "answer": prompt.answer}
    if options.service != "auto":
        named["service"] = ServiceKind(options.service)
    if options.limit is not None:
        named["limit_rows"] = options.limit
    if options.id_column is not None:
        named["id_column"] = options.id_column
    return replace(frozen, **named)


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


def _check_out_apart(out: Path, data: Sequence[Path]) -> None:
    """Refuse an output that would overwrite the source, or be taken for a part of it the next time."""
    there = out.resolve()
    for path in data:
        source = path.resolve()
        if there == source:
            raise UsageError(f"--out {out} is the source itself: name another file.")
        if source.is_dir() and source in there.parents or not source.exists() and fnmatch(str(there), str(source)):
            raise UsageError(f"--out {out} lies in the source {path}, and would be read with it: name another place.")
        if there in source.parents:
            raise UsageError(f"--out {out} holds the source {path}, and would replace it: name another place.")


def open_run(options: Options, screen: Screen) -> tuple[RunFolder, Job | None]:
    """The folder and the job that the options mean; writes nothing.

    Raises:
        UsageError: and its kinds.
    """
    if options.out is not None:
        check_out(options.out)
        if options.neutralise_formulas and options.out.suffix.lower() != ".csv":
            raise UsageError(f"--neutralise-formulas is for CSV, and {options.out} is none: name a .csv file.")
        _check_out_apart(options.out, options.data)
    if options.poll_seconds is not None and not options.poll_seconds > 0:
        raise UsageError("--poll-seconds takes a number of seconds above 0.")
    if not options.data:
        if options.run_dir is None:
            raise UsageError("Name the data (batchmill run DATA), or a run to go on with (--run-dir DIR).")
        folder = RunFolder(options.run_dir)
        frozen = frozen_settings(folder)
        if frozen is None:
            raise RunFolderError(f"{options.run_dir} was stopped before it began: run it again with its data.")
        _check_same(folder, frozen, _as_named(options, frozen), options)
        return folder, None
    kind = service_kind(
        options.service, interactive=screen.interactive, say=screen.say, deployments=options.deployments
    )
    job = prepare(options, kind, screen.say)
    # A configuration that lacks something is found before sealing.
    for spec in options.specs:
        connect_spec(spec, log=lambda line: None)
    if kind is not ServiceKind.EMULATOR and not options.specs:
        from pipeline.submit.service import connect  # the SDK takes a second to load: only who speaks waits for it

        connect(kind, log=lambda line: None)
    return find_folder(options, job.settings, Path("runs")), job
