"""Everything that stops a command, each with the exit code a script sees.

BatchmillError               1    the run could not go on
├── UsageError               2    wrong usage or configuration; nothing was sent
│   ├── PromptError          2    the prompt file or a template in it
│   ├── SourceError          2    the data: missing, unreadable, of a kind that cannot be carried
│   └── RunFolderError       2    the run folder belongs to something else
├── LedgerError              1    the ledger is of another version, or contradicts itself
├── RunHeldError             1    another process acts on the run folder
├── DiskFullError            1    no room left; resumable once there is
├── ServiceError             1    the service cannot be used as configured
│   ├── UnreachableError     1    no answer from the endpoint at all
│   ├── CredentialsError     1    401 or 403
│   └── DeploymentError      1    the deployment does not exist or is not a batch deployment
├── TwoLiveCopiesError       1    somebody else runs a copy of this run
├── ErrorRateError           1    too many rows fail: something is systematically wrong
├── AuditError               1    rows out differ from rows in
└── StoppedError             4    stopped with work pending, resumable
    └── InterruptedBySignal  130/143

A bad *row* is never an exception: it is an outcome with a code. The text of an error is one sentence for the user:
what is wrong, where, and what to do. Knows nothing of click or rich.
"""

from __future__ import annotations


class BatchmillError(Exception):
    """The run could not go on; the text says why and what to do."""

    exit_code: int = 1


class UsageError(BatchmillError):
    """A flag, a file or a configuration is wrong; found before anything was sent."""

    exit_code = 2


class PromptError(UsageError):
    """The prompt file is wrong."""


class SourceError(UsageError):
    """The source cannot be read whole, or has a type that the output could not keep."""


class RunFolderError(UsageError):
    """The run folder does not belong to this source, prompt or service."""


class LedgerError(BatchmillError):
    """The ledger cannot be used."""


class RunHeldError(BatchmillError):
    """Another process acts on the run folder."""


class DiskFullError(BatchmillError):
    """The disk is full."""


class ServiceError(BatchmillError):
    """The service cannot be used as configured."""


class UnreachableError(ServiceError):
    """The endpoint has never answered."""


class CredentialsError(ServiceError):
    """The service refuses the credentials."""


class DeploymentError(ServiceError):
    """The deployment does not exist, or is not one for batches."""


class TwoLiveCopiesError(BatchmillError):
    """A batch of this run appeared that the ledger does not know: two copies of the run are alive."""


class ErrorRateError(BatchmillError):
    """More rows fail than `--max-error-rate` allows; what was queued is cancelled, what was answered is kept."""


class AuditError(BatchmillError):
    """The output would not have one row for every input row."""


class StoppedError(BatchmillError):
    """Stopped with work pending."""

    exit_code = 4


class InterruptedBySignal(StoppedError):
    """Stopped by SIGINT or SIGTERM; resumable."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
