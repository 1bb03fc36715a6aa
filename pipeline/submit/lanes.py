"""The deployments of a run as it meets them: which answer, which are waited for, which take no more work.

One lane's trouble never stops another. A lane that fails is left alone for a while, longer each time; work that it
surely has not accepted may go elsewhere, what it may have accepted never does. Knows nothing of batches' ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import CredentialsError, DeploymentError, ServiceError, UnreachableError
from pipeline.ledger import Ledger
from pipeline.shard import BatchState
from pipeline.submit.posting import NOWHERE
from pipeline.submit.remote import NO_TOKEN, CallFailed, Effect

if TYPE_CHECKING:
    from pipeline.submit.service import Service

BACKOFF_S_MAX = 300.0
AWAY_AFTER_S = 900.0
"""A deployment that has not answered for this long no longer holds work that it has not accepted, seconds."""


@dataclass(slots=True)
class Lane:
    """One deployment's way: its service, and how it has been answering."""

    name: str
    service: Service
    troubles: int = 0
    retry_at: float = 0.0
    down_since: float | None = None
    polled_at: float = float("-inf")
    surveyed: bool = False


class Lanes:
    """All of them.

    Args:
        ledger: the run's ledger, writable.
        services: the endpoints by deployment.
        poll_s: seconds between polls.
        clock: Unix seconds now.
        say: one line for the person who watches.
        jitter: a factor around 1, drawn anew each time.
    """

    def __init__(
        self,
        ledger: Ledger,
        services: Mapping[str, Service],
        *,
        poll_s: float,
        clock: Callable[[], float],
        say: Callable[[str], None],
        jitter: Callable[[], float],
    ) -> None:
        self._ledger, self._poll_s, self._clock, self._say, self._jitter = ledger, poll_s, clock, say, jitter
        self._lanes = {name: Lane(name, service) for name, service in services.items()}

    def all(self) -> list[Lane]:
        """Every lane."""
        return list(self._lanes.values())

    def has(self, deployment: str) -> bool:
        """Whether a deployment of the ledger is reached in this start."""
        return deployment in self._lanes

    def of(self, deployment: str, otherwise: Lane | None = None) -> Lane:
        """The lane of a deployment; `otherwise` where it is not reached in this start."""
        return self._lanes[deployment] if otherwise is None else self._lanes.get(deployment, otherwise)

    def answering(self, lane: Lane) -> bool:
        """Whether a call may be made now."""
        return lane.retry_at <= self._clock()

    def well(self, lane: Lane) -> None:
        """The lane has answered."""
        if lane.down_since is not None and lane.troubles > 1:
            self._say(f"{lane.name} is answering again")
        lane.troubles, lane.retry_at, lane.down_since = 0, 0.0, None

    def failed(self, lane: Lane, failed: CallFailed) -> None:
        """A call failed in a way that says nothing about one batch: stop the run, or wait and go on.

        Raises:
            ServiceError: nothing was ever answered, so the configuration is wrong.
        """
        now = self._clock()
        lane.troubles += 1
        lane.down_since = now if lane.down_since is None else lane.down_since
        wait = min(max(self._poll_s, 1.0) * 2.0 ** min(lane.troubles - 1, 6), BACKOFF_S_MAX) * self._jitter()
        wait = max(wait, failed.retry_after_s or 0.0)
        lane.retry_at = now + wait
        if self._misconfigured(lane, failed):
            return
        if failed.effect is Effect.CREDENTIALS:
            self._say(
                f"{failed.message} What {lane.name} has accepted is waited for; trying again in {wait:.0f} s"
                if failed.code == NO_TOKEN
                else f"{lane.name} refuses the credentials ({failed.status} {failed.message}): renew the role "
                "assignment, or stop (Ctrl-C) and run the same command again with a new key; what it has accepted is "
                f"waited for, trying again in {wait:.0f} s"
            )
            if self._others_open(lane):
                self._release(lane, "it refuses the credentials")
            return
        self._say(f"{lane.name} is not answering well ({failed}); going on in {wait:.0f} s")
        if now - lane.down_since > AWAY_AFTER_S and self._others_open(lane):
            self._release(lane, "it does not answer")

    def _misconfigured(self, lane: Lane, failed: CallFailed) -> bool:
        """Before anything was ever answered, trouble means that the configuration is wrong: the lane was set aside.

        Raises:
            ServiceError: there is no other, or it may hold batches of another life of this run.
        """
        if self._ledger.get("answered") is not None and (lane.surveyed or self._ledger.has_uploads(lane.name)):
            return False
        dark = lane.down_since is not None and self._clock() - lane.down_since > AWAY_AFTER_S
        if failed.effect in (Effect.UNKNOWN, Effect.THROTTLED) and not dark:
            return False
        if lane.surveyed and self._others_open(lane):
            self.set_aside(lane.name, str(failed))
            return True
        if failed.effect is Effect.CREDENTIALS:
            raise CredentialsError(
                failed.message
                if failed.code == NO_TOKEN
                else f"{self._named(lane)} refuses the credentials ({failed.status} {failed.message}): check the key "
                "or the role assignment and run the same command again."
            )
        if failed.effect in (Effect.MISSING, Effect.REFUSED):
            raise DeploymentError(
                f"{self._named(lane)} refuses the call ({failed.status} {failed.code}: {failed.message}): check the "
                "endpoint, the api-version and the deployment, and run the same command again."
            )
        raise UnreachableError(
            f"{self._named(lane)} cannot be reached: {failed.message} Check the endpoint and run the same command "
            "again."
        )

    def _named(self, lane: Lane) -> str:
        """The service, by the deployment's name where there are several."""
        return f"The service of {lane.name}" if len(self._lanes) > 1 else "The service"

    def unsurveyed(self) -> list[str]:
        """Deployments that have not been looked at yet for batches of other lives of this run."""
        return [lane.name for lane in self._lanes.values() if not lane.surveyed]

    def no_deployment(self, lane: Lane, error: ServiceError) -> None:
        """A deployment takes no batches: set it aside.

        Raises:
            ServiceError: none is left.
        """
        self.set_aside(lane.name, str(error))
        if not self._others_open(lane):
            raise error

    def set_aside(self, name: str, why: str) -> None:
        """Give a deployment no more work in this start of the run; what it has not accepted goes to the others."""
        self._say(f"{name} is set aside: {why}")
        self._ledger.learn(name, set_aside=why)
        self._release(self._lanes[name], "it was set aside")

    def _release(self, lane: Lane, why: str) -> None:
        """Take back what a lane has surely not accepted."""
        for batch in self._ledger.open_batches():
            if batch.deployment == lane.name and batch.state in (BatchState.UPLOADED, BatchState.UPLOADING):
                self._ledger.move(batch, BatchState.PLANNED, self._clock(), f"{lane.name}: {why}", **NOWHERE)

    def _others_open(self, lane: Lane) -> bool:
        """Whether another deployment takes work."""
        return any(
            known.name != lane.name and known.set_aside is None and known.name in self._lanes
            for known in self._ledger.deployments()
        )
