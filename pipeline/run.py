"""Composes sealing, submitting and merging into one resumable run.

Owns the order of a run (open or find its folder, seal, plan, consent, rounds, merge) and what of it is frozen. Every
part may be the last before a crash: the next start finds where it stands in the ledger. What a person sees is the
screen's.
"""

from __future__ import annotations

import base64
import secrets
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from pipeline.build.packer import Limits
from pipeline.build.prompt import Prompt
from pipeline.build.seal import seal
from pipeline.build.template import compile_template
from pipeline.config import ServiceKind, Settings
from pipeline.console import Screen, service_words
from pipeline.embedded import KEY, EmbeddedEmulator
from pipeline.errors import RunFolderError, StoppedError, UsageError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.merge.output import MergeCounts
from pipeline.opening import Job, Options
from pipeline.progress import progress_of
from pipeline.publish import publish
from pipeline.rounds import Rounds
from pipeline.shard import BatchState
from pipeline.signals import Signals
from pipeline.submit.posting import Pace
from pipeline.submit.runner import Runner
from pipeline.submit.service import Service, connect

REAL_POLL_S = 60.0
EMULATOR_POLL_S = 0.2
GRACE_POLLS = 5
"""An unknown create is waited for this many polls before its input is taken away."""


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
        if options.out is not None:
            self.ledger.put("out", str(options.out.resolve()))
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
            self._name_deployment(endpoint)
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

    def _name_deployment(self, endpoint: str) -> None:
        """Make the deployment of this start the one that takes work; batches that are nowhere yet go to it."""
        with self.ledger.transaction():
            self.ledger.add_deployment(self.settings.model, endpoint, self._options.quota_tokens)
            for known in self.ledger.deployments():
                if known.name != self.settings.model:
                    self.ledger.learn(known.name, set_aside="another deployment was named")
            for batch in self.ledger.open_batches():
                if batch.state is BatchState.PLANNED and batch.deployment != self.settings.model:
                    self.ledger.note(batch, deployment=self.settings.model)

    def build(self) -> int:
        """Plan every shard and write every request file, for upload by hand.

        Returns:
            How many request files there are.

        Raises:
            RunFolderError: the run has been submitted from here already.
        """
        if self.ledger.get("answered"):
            raise RunFolderError(
                f"{self.folder.path} is being submitted from here: "
                f"go on with batchmill run --run-dir {self.folder.path}"
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
        return publish(self.folder, self.ledger, self.settings, self.schema, out=self._options.out, partial=False)
