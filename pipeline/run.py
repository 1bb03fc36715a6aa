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

from pipeline.build.image_rows import image_rows
from pipeline.build.image_template import compile_prompt
from pipeline.build.image_tokens import ImageTokens
from pipeline.build.packer import Limits
from pipeline.build.prompt import Prompt
from pipeline.build.request_source import RequestTemplate
from pipeline.build.seal import seal
from pipeline.config import ServiceKind, Settings
from pipeline.connecting import is_loopback, services_of
from pipeline.console import Screen, service_words
from pipeline.errors import RunFolderError, StoppedError, UsageError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.merge.output import MergeCounts
from pipeline.opening import Job, Options
from pipeline.progress import progress_of
from pipeline.publish import publish
from pipeline.rounds import Rounds
from pipeline.signals import Signals
from pipeline.submit.posting import Pace
from pipeline.submit.runner import Runner, Tolerance

REAL_POLL_S = 60.0
EMULATOR_POLL_S = 0.2
GRACE_POLLS = 5
"""An unknown create is waited for this many polls before its input is taken away."""

GRACE_S_MIN = 300.0
"""And this long at least, seconds, at a real service: its listings lag however often one polls."""

LOOK_S = 1.0
"""How often a waiting run looks whether somebody asked for its end."""


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
        self._fresh = job is not None and self.ledger.get("settings") is None
        if job is not None and self._fresh:
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
        model = options.model or self.ledger.get("model") or self.settings.model
        if self.settings.service is not ServiceKind.OPENAI:
            self.settings = replace(self.settings, model=model)
            self.ledger.put("model", model)  # the last one named stays
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
            image_tokens=ImageTokens(**self.settings.image_tokens),
        )
        if job is not None:
            self.template = job.template
        elif self.settings.requests:
            self.template = RequestTemplate()
        else:
            self.template = compile_prompt(prompt, self.schema, on_null=self.settings.on_null)

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
            image_rows(self._job.source, self.template),
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
            refuse_nulls=settings.on_null == "error",
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
        where = ", ".join(spec.name for spec in self._options.specs) or self.settings.model
        self._screen.table(
            f"run {self.folder.path}",
            {
                "rows": totals.rows,
                "requests": totals.requests,
                "skipped": totals.skipped,
                "shards": totals.shards,
                "input tokens (estimate)": totals.tokens,
                "service": service_words(self.settings.service),
                "deployments" if self._options.specs else "model": where,
                "template": "fast path" if self.template.fast else f"row by row ({self.template.reason})",
            }
            | ({"own columns": f"prefixed {self.settings.columns_prefix}"} if self.settings.columns_prefix else {}),
        )
        if self.settings.synthetic or not totals.requests or self.ledger.get("consent"):
            return
        question = (
            f"Submit {totals.requests:,} requests (about {totals.tokens:,} input tokens) to {where} on "
            f"{service_words(self.settings.service)}?"
        )
        self._signals.stop_if_asked(self.folder)
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
            max_attempts=self._options.max_attempts,
            clock=time.time,
            keep_requests=self._options.keep_requests,
        )

    def submit(self, *, once: bool = False) -> bool:
        """Ask until every row has its outcome.

        Args:
            once: one pass only.

        Returns:
            Whether nothing is left to be done.

        Raises:
            ServiceError: the service cannot be used; resumable.
            ErrorRateError: too many rows fail.
            InterruptedBySignal: stopped; resumable.
        """
        self._check_may_submit()
        if self.ledger.get("finished"):
            return True
        emulated = self.settings.service is ServiceKind.EMULATOR
        poll_s = self._options.poll_seconds or (EMULATOR_POLL_S if emulated else REAL_POLL_S)
        with ExitStack() as stack:
            services = services_of(
                stack,
                self.folder,
                self.ledger,
                self.settings,
                specs=self._options.specs,
                quota_tokens=self._options.quota_tokens,
            )
            runner = Runner(
                self.ledger,
                services,
                self.rounds(),
                run_id=self.ledger.get("run_id") or "",
                endpoint_url=self.settings.url,
                pace=Pace(poll_s, self._grace_s(poll_s)),
                pool_rows=self.settings.lines_max,
                clock=time.time,
                say=self._screen.say,
                stopping=self._signals.asked,
                tolerance=Tolerance(self._options.max_error_rate, self._options.warn_after_hours * 3_600),
            )
            runner.recover(fresh=self._fresh)
            try:
                while not runner.finished():
                    self._signals.stop_if_asked(self.folder)
                    self._take_cancel_request()
                    wait = runner.pass_once()
                    self._screen.progress(progress_of(self.ledger))
                    if once and not runner.finished():
                        return False
                    self._rest(wait)
                runner.sweep_lost_uploads()
            finally:
                self._screen.end_progress()
        with self.ledger.transaction():
            if self.ledger.get("cancelling"):
                self.ledger.put("cancelling", "")
                self.ledger.put("cancelled", "1")
            self.ledger.put("finished", "1")
        self.folder.cancel_request.unlink(missing_ok=True)
        return True

    def _grace_s(self, poll_s: float) -> float:
        """How long a create or a listing may lag, seconds; what listens on this very machine is no real service."""
        real = any(
            known.set_aside is None and not is_loopback(known.endpoint) for known in self.ledger.deployments()
        )  # the emulator is known by kind
        return max(poll_s * GRACE_POLLS, GRACE_S_MIN if real else 0.0)

    def _check_may_submit(self) -> None:
        """A run that was built for upload by hand, or was cancelled, does not go on by itself.

        Raises:
            UsageError: says what to add or to call.
        """
        if self.ledger.get("by_hand") and not self._options.submit:
            raise UsageError(
                f"{self.folder.path} was built for upload by hand: add --submit to submit it from here after all."
            )
        if self.ledger.get("cancelled"):
            raise RunFolderError(
                f"{self.folder.path} was cancelled: ask its open rows again with batchmill retry {self.folder.path}"
            )
        self.ledger.put("by_hand", "")
        self.ledger.put("halted", "")

    def _take_cancel_request(self) -> None:
        """Begin to cancel the run when somebody asked for it."""
        if self.folder.cancel_request.exists() and not self.ledger.get("cancelling"):
            self._screen.say("cancelling: what is queued is cancelled, what was answered is kept")
            self.ledger.put("cancelling", "1")

    def _rest(self, seconds: float) -> None:
        """Wait, unless a signal comes or somebody asks for the run's end."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._signals.asked():
            if self.folder.cancel_request.exists() and not self.ledger.get("cancelling"):
                return
            self._signals.wait(min(left, LOOK_S))

    def cancel(self) -> None:
        """Cancel the run: settle what is unsettled, cancel what is queued, keep what was answered.

        Raises:
            StoppedError: nothing was sealed, so there is nothing to cancel.
        """
        if not self.ledger.get("sealed"):
            raise StoppedError(f"{self.folder.path} has sent nothing yet: there is nothing to cancel.")
        if self.ledger.get("finished"):
            self.folder.cancel_request.unlink(missing_ok=True)
            return
        self.ledger.put("cancelling", "1")
        self.submit()

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
        rounds = self.rounds()
        while shards := self.ledger.unbatched(1):
            self._signals.stop_if_asked(self.folder)
            rounds.plan_shard(shards[0].shard, None, None)
        for batch in self.ledger.open_batches():
            self._signals.stop_if_asked(self.folder)
            rounds.render(batch, self.settings.model)
        return sum(1 for batch in self.ledger.open_batches())

    def merge(self) -> tuple[MergeCounts, Path]:
        """Write the output."""
        return publish(self.folder, self.ledger, self.settings, self.schema, out=self._options.out, partial=False)
