"""The services of a run: one from the environment, several from a deployments file, or the embedded emulator.

Owns which deployment is reached how, and what becomes of deployments that an earlier start named. Keys stay in the
environment. Knows nothing of batches' ways.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline import quota
from pipeline.config import ServiceKind, Settings
from pipeline.embedded import KEY, EmbeddedEmulator
from pipeline.errors import CredentialsError, ServiceError, UnreachableError, UsageError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.shard import QUEUED_STATES, Batch, BatchState
from pipeline.submit.deployments import DeploymentSpec
from pipeline.submit.remote import CallFailed, Effect

if TYPE_CHECKING:
    from pipeline.submit.service import Connection, Service


def call_log(folder: RunFolder, stack: ExitStack) -> Callable[[str], None]:
    """A function that writes one line a call, with the time, to the run's log."""
    log = stack.enter_context(folder.log.open("a", encoding="utf-8"))

    def write(line: str) -> None:
        log.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {line}\n")
        log.flush()

    return write


def connect_spec(spec: DeploymentSpec, log: Callable[[str], None]) -> Connection:
    """The service of one line of a deployments file."""
    from pipeline.submit.service import connect  # the SDK takes a second to load: only who speaks waits for it

    return connect(
        ServiceKind.AZURE,
        log=log,
        endpoint=spec.endpoint,
        api_key=os.environ.get(spec.key_env) if spec.key_env else None,
        api_version=spec.api_version,
        from_environment=False,
    )


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint is on this machine, or the embedded emulator."""
    host = urlsplit(endpoint).hostname or ""
    return endpoint == ServiceKind.EMULATOR.value or host in ("localhost", "::1") or host.startswith("127.")


def services_of(
    stack: ExitStack,
    folder: RunFolder,
    ledger: Ledger,
    settings: Settings,
    *,
    specs: Sequence[DeploymentSpec] = (),
    quota_tokens: int | None = None,
) -> dict[str, Service]:
    """Connect to every deployment that takes work, and to those that still hold some.

    Args:
        stack: closes what is opened.
        folder, ledger, settings: the run.
        specs: the deployments file's lines; none: the one that `settings.model` names.
        quota_tokens: `--quota-tokens`, for those that name none.

    Returns:
        The services by deployment.

    Raises:
        UsageError: a deployment that holds batches of the run cannot be reached any more, or its name means another
            service now.
    """
    from pipeline.submit.service import Connection, connect

    log = call_log(folder, stack)
    found: dict[str, Connection] = {}
    if specs:
        for spec in specs:
            found[spec.name] = connect_spec(spec, log)
    elif settings.service is ServiceKind.EMULATOR:
        # Only OpenAI has batches of embeddings, so for these the emulator is like it.
        embeddings = settings.kind == "embeddings"
        child = stack.enter_context(EmbeddedEmulator(folder.emulator, "openai" if embeddings else None))
        like, endpoint = (ServiceKind.OPENAI, child.url + "/v1") if embeddings else (ServiceKind.AZURE, child.url)
        service = connect(like, log=log, endpoint=endpoint, api_key=KEY).service
        # Known by kind: its address changes with every start.
        found[settings.model] = Connection(service, ServiceKind.EMULATOR.value, False)
    else:
        found[settings.model] = connect(settings.service, log=log)
    listed = [
        replace(spec, quota_tokens=spec.quota_tokens or quota_tokens)
        for spec in specs or (DeploymentSpec(settings.model, settings.model),)
    ]
    _check_same_services(ledger, found)
    with ledger.transaction():
        for spec in listed:
            _forget_limits(ledger, spec)
            ledger.add_deployment(spec.name, spec.deployment, found[spec.name].endpoint, spec.quota_tokens)
    services = {name: connection.service for name, connection in found.items()}
    by_endpoint = {connection.endpoint: connection.service for connection in found.values()}
    return services | _left_over(ledger, set(found), by_endpoint)


def _forget_limits(ledger: Ledger, spec: DeploymentSpec) -> None:
    """A quota that is named anew takes the place of limits that refusals taught: nobody else may say that they rose."""
    for known in ledger.deployments():
        if known.name == spec.name and spec.quota_tokens not in (None, known.quota.asked_tokens):
            ledger.learn(spec.name, quota=quota.forgetting_limits(known.quota))


def _check_same_services(ledger: Ledger, found: dict[str, Connection]) -> None:
    """A deployment that has another address now must be the service that it was, as long as it holds something.

    Looked for at another service, what it holds would not be there, and would be sent a second time.

    Raises:
        UsageError: it is another one, or that cannot be told.
    """
    held = _held(ledger)
    for known in ledger.deployments():
        connection = found.get(known.name)
        if connection is None or connection.endpoint == known.endpoint or not held.get(known.name):
            continue
        if urlsplit(connection.endpoint).netloc.lower() == urlsplit(known.endpoint).netloc.lower():
            continue  # another root of the same resource
        if not _knows(connection.service, held[known.name]):
            raise UsageError(
                f"Deployment {known.name!r} was at {known.endpoint} and still holds {len(held[known.name])} batches of "
                f"this run there; {connection.endpoint} does not know them: name the old endpoint until they are done."
            )


def _held(ledger: Ledger) -> dict[str, list[Batch]]:
    """What deployments hold of a run, or may hold."""
    states = QUEUED_STATES - {BatchState.UPLOADING} | {BatchState.ENDED}
    held: dict[str, list[Batch]] = {}
    for batch in ledger.open_batches():
        if batch.state in states:
            held.setdefault(batch.deployment, []).append(batch)
    return held


def _knows(service: Service, batches: Sequence[Batch]) -> bool:
    """Whether a service knows any of the batches, or the input file of one.

    Raises:
        ServiceError: it gives no answer.
    """
    try:
        for batch in batches:
            try:
                if batch.remote_id:
                    service.batch(batch.remote_id)
                elif batch.file_id:
                    service.file(batch.file_id)
            except CallFailed as failed:
                if failed.effect is not Effect.MISSING:
                    raise
            else:
                return True
    except CallFailed as failed:
        raise no_answer(failed) from failed
    return False


def no_answer(failed: CallFailed) -> ServiceError:
    """A call that failed as the one sentence that ends a command."""
    if failed.effect is Effect.CREDENTIALS:
        return CredentialsError(f"The service refuses the credentials ({failed}): check the key or the role.")
    return UnreachableError(f"The service gave no answer ({failed}): check the endpoint, then repeat the command.")


def _left_over(ledger: Ledger, named: set[str], by_endpoint: dict[str, Service]) -> dict[str, Service]:
    """Deployments of earlier starts that are not named any more: no new work, but what they hold is waited for."""
    services, held = {}, _held(ledger)
    for known in ledger.deployments():
        if known.name in named:
            continue
        if known.endpoint in by_endpoint:
            ledger.learn(known.name, set_aside="another deployment was named")
            services[known.name] = by_endpoint[known.endpoint]
            continue
        if holds := held.get(known.name):
            raise UsageError(
                f"Deployment {known.name!r} at {known.endpoint} still holds {len(holds)} batches of this run: name it "
                "again (in the deployments file, or through AZURE_OPENAI_ENDPOINT) until they are done."
            )
        ledger.learn(known.name, set_aside="it is not named any more")
    return services
