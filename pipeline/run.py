"""Composes sealing, submitting and merging into one resumable run.

Owns the order of a run (open or find its folder, seal, plan, consent, rounds, merge) and what of it is frozen. Every part may
be the last before a crash: the next start finds where it stands in the ledger. What a person sees is the screen's.
"""

from __future__ import annotations

import base64
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import pyarrow as pa

from pipeline.build.packer import Limits
from pipeline.build.prompt import Prompt, default_prompt, load_prompt
from pipeline.build.seal import seal
from pipeline.build.source import Source, open_source
from pipeline.build.template import Template, compile_template
from pipeline.config import LIMITS, ServiceKind, Settings, checked_limit, request_url, shard_tokens_max
from pipeline.console import Screen, service_words
from pipeline.embedded import KEY, EmbeddedEmulator
from pipeline.errors import InterruptedBySignal, RunFolderError, StoppedError, UsageError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.merge.output import MergeCounts, check_out, choose_prefix
from pipeline.progress import progress_of
from pipeline.publish import publish
from pipeline.rounds import Rounds
from pipeline.submit.runner import Pace, Runner
from pipeline.submit.service import Service, connect

REAL_POLL_S = 60.0
EMULATOR_POLL_S = 0.2
GRACE_POLLS = 5
"""An unknown create is waited for this many polls before its input is taken away."""

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


class Signals:
    """SIGINT and SIGTERM: the first asks to stop after the current step, the second leaves at once."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._asked = threading.Event()
        self.number = 0

    @contextmanager
    def caught(self) -> Iterator[Signals]:
        """Catch both while the block runs (in the main thread)."""
        before = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set():
            os._exit(128 + number)
        self.number = number
        self._asked.set()

    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep, or until a signal comes."""
        self._asked.wait(seconds)

    def stop_if_asked(self, folder: RunFolder) -> None:
        """Raise when a signal came."""
        if self.asked():
            raise InterruptedBySignal(
                f"Stopped; nothing is lost. Go on with: batchmill run --run-dir {folder.path}", self.number
            )


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
            f"--id-column {options.id_column!r} is no column of {options.data}: it has {', '.join(source.schema.names)}."
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
                    f"{other} is an unfinished run of the same data with another {_difference(theirs, settings)}: go on with it "
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
            f"{folder.path} is a run of {frozen.data_path} with {frozen.prompt_name} on {frozen.service.value}; what you ask for has another "
            f"{_difference(frozen, wanted)}: name another folder with --run-dir."
        )
    for flag, given, name in (
        ("--max-lines", options.max_lines, "lines_max"),
        ("--max-bytes", options.max_bytes, "bytes_max"),
        ("--prefix", options.prefix, "columns_prefix"),
    ):
        if given is not None and given != getattr(frozen, name):
            raise RunFolderError(
                f"{folder.path} was started with {flag} {getattr(frozen, name)}, which cannot change any more: leave {flag} out, or "
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


class Run:
    """A run whose folder is held.

    Args:
        folder: the run folder, held by the caller.
        job: source and settings for a new run, None to go on without looking at the source.
        options: what the command line said.
        screen: where a person looks.
        signals: caught signals.
    """

    def __init__(self, folder: RunFolder, job: Job | None, options: Options, screen: Screen, signals: Signals) -> None:
        self.folder, self._options, self._screen, self._signals = folder, options, screen, signals
        self.ledger = Ledger(folder.ledger, create=job is not None)
        self._job = job
        if job is not None and self.ledger.get("settings") is None:
            with self.ledger.transaction():
                self.ledger.put("settings", job.settings.to_json())
                self.ledger.put("schema", base64.b64encode(job.source.schema.serialize()).decode())
                self.ledger.put("run_id", secrets.token_hex(8))
                self.ledger.put("created_at", datetime.now(UTC).isoformat(timespec="seconds"))
        text = self.ledger.get("settings")
        if text is None:
            raise StoppedError(f"{folder.path} was stopped before anything was sealed: run it again with its data.")
        self.settings = Settings.from_json(text)
        self.schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.ledger.get("schema") or "")))
        model = options.model or self.settings.model
        if self.settings.service is not ServiceKind.OPENAI:
            self.settings = replace(self.settings, model=model)
        elif model != self.settings.model:
            raise RunFolderError(
                f"{folder.path} is a run with model {self.settings.model}: name another folder with --run-dir."
            )
        prompt = Prompt(
            kind=self.settings.kind,
            body=self.settings.body,
            model=self.settings.model,
            answer=self.settings.answer,
            name=self.settings.prompt_name,
        )
        self.template = job.template if job else compile_template(prompt, self.schema)

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    def seal(self) -> None:
        """Seal what is not sealed yet.

        Raises:
            SourceError: the source cannot be read to its end; nothing was sent.
            InterruptedBySignal: stopped; what is sealed stays.
        """
        if self.ledger.get("sealed"):
            return
        if self._job is None:
            raise StoppedError(
                f"{self.folder.path} is not sealed yet: run it again with its data ({self.settings.data_path})."
            )
        settings = self.settings
        span, row = self.ledger.next_span()
        spans = seal(
            self._job.source,
            self.template,
            Limits(settings.lines_max, settings.bytes_max, settings.tokens_max),
            rows_dir=self.folder.rows,
            model=settings.model,
            url=settings.url,
            custom_id_prefix=settings.id_prefix,
            id_column=settings.id_column,
            start_row=row,
            span=span,
            limit_rows=settings.limit_rows,
            should_stop=self._signals.asked,
        )
        for sealed in spans:
            self.ledger.seal_span(
                sealed.span,
                sealed.first_row,
                sealed.stop_row,
                [(s.name, s.first_row, s.stop_row, s.requests, s.skipped, s.bytes, s.tokens) for s in sealed.shards],
            )
            self._screen.say(f"sealed {sealed.stop_row:,} rows")
        self._signals.stop_if_asked(self.folder)
        self.ledger.put("sealed", "1")

    def consent(self) -> None:
        """Show the plan and have it agreed to, once; the emulator costs nothing.

        Raises:
            UsageError: nobody agreed.
        """
        totals = self.ledger.totals()
        self._screen.table(
            f"run {self.folder.path}",
            {
                "rows": totals.rows,
                "requests": totals.requests,
                "skipped": totals.skipped,
                "shards": totals.shards,
                "input tokens (estimate)": totals.tokens,
                "service": service_words(self.settings.service),
                "model": self.settings.model,
                "template": "fast path" if self.template.fast else f"row by row ({self.template.reason})",
            }
            | ({"own columns": f"prefixed {self.settings.columns_prefix}"} if self.settings.columns_prefix else {}),
        )
        if self.settings.synthetic or not totals.requests or self.ledger.get("consent"):
            return
        question = (
            f"Submit {totals.requests:,} requests (about {totals.tokens:,} input tokens) to {self.settings.model} on "
            f"{service_words(self.settings.service)}?"
        )
        if not self._options.yes and not self._screen.ask(question):
            raise UsageError(f"Nothing was sent: agree to the plan above with --yes. ({question})")
        self.ledger.put("consent", f"{totals.requests} requests, {totals.tokens} tokens")

    def rounds(self) -> Rounds:
        """The run's rounds."""
        return Rounds(
            self.folder,
            self.ledger,
            self.settings,
            self.template,
            deployment=self.settings.model,
            max_attempts=self._options.max_attempts,
            clock=time.time,
            keep_requests=self._options.keep_requests,
        )

    def submit(self) -> None:
        """Ask until every row has its outcome.

        Raises:
            ServiceError: the service cannot be used; resumable.
            InterruptedBySignal: stopped; resumable.
        """
        if self.ledger.get("by_hand") and not self._options.submit:
            raise UsageError(
                f"{self.folder.path} was built for upload by hand: add --submit to submit it from here after all."
            )
        self.ledger.put("by_hand", "")
        emulated = self.settings.service is ServiceKind.EMULATOR
        poll_s = self._options.poll_seconds or (EMULATOR_POLL_S if emulated else REAL_POLL_S)
        with ExitStack() as stack:
            service, endpoint = self._connect(stack, emulated)
            self.ledger.add_deployment(self.settings.model, endpoint, self._options.quota_tokens)
            runner = Runner(
                self.ledger,
                service,
                self.rounds(),
                run_id=self.ledger.get("run_id") or "",
                endpoint_url=self.settings.url,
                pace=Pace(poll_s, poll_s * GRACE_POLLS),
                pool_rows=self.settings.lines_max,
                clock=time.time,
                say=self._screen.say,
                stopping=self._signals.asked,
            )
            runner.recover()
            try:
                while not runner.finished():
                    self._signals.stop_if_asked(self.folder)
                    wait = runner.pass_once()
                    self._screen.progress(progress_of(self.ledger))
                    if wait:
                        self._signals.wait(wait)
            finally:
                self._screen.end_progress()
        self.ledger.put("finished", "1")

    def build(self) -> int:
        """Plan every shard and write every request file, for upload by hand.

        Returns:
            How many request files there are.

        Raises:
            RunFolderError: the run has been submitted from here already.
        """
        if self.ledger.get("answered"):
            raise RunFolderError(
                f"{self.folder.path} is being submitted from here: go on with batchmill run --run-dir {self.folder.path}"
            )
        self.ledger.put("by_hand", "1")
        self.ledger.add_deployment(self.settings.model, "", self._options.quota_tokens)
        rounds = self.rounds()
        while shards := self.ledger.unbatched(1):
            self._signals.stop_if_asked(self.folder)
            rounds.plan_shard(shards[0].shard, None)
        for batch in self.ledger.open_batches():
            self._signals.stop_if_asked(self.folder)
            rounds.render(batch)
        return sum(1 for batch in self.ledger.open_batches())

    def _connect(self, stack: ExitStack, emulated: bool) -> tuple[Service, str]:
        log = stack.enter_context(self.folder.log.open("a", encoding="utf-8"))

        def write(line: str) -> None:
            log.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {line}\n")
            log.flush()

        if emulated:
            child = stack.enter_context(EmbeddedEmulator(self.folder.emulator))
            service, _, _ = connect(ServiceKind.AZURE, log=write, endpoint=child.url, api_key=KEY)
            return service, ServiceKind.EMULATOR.value  # known by kind: its address changes with every start
        service, endpoint, _ = connect(self.settings.service, log=write)
        return service, endpoint

    def merge(self) -> tuple[MergeCounts, Path]:
        """Write the output."""
        if self._options.out is not None:
            self.ledger.put("out", str(self._options.out))
        return publish(self.folder, self.ledger, self.settings, self.schema, out=self._options.out, partial=False)


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
