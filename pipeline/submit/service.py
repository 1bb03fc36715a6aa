"""The one seam to the network: the Files and Batches of one endpoint, through the official SDK.

The only importer of `openai` and `azure.identity`. Maps every failure to `CallFailed` with a kind that says what is
known of the call's effect, and every answer to small values of ours; tolerant of what the contract lists as odd
(§3). Automatic retries are on for reads and off for upload and create. Knows nothing of the ledger; never prints or
logs a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import openai

from pipeline.config import AZURE_API_VERSION, ServiceKind
from pipeline.durable import replacing
from pipeline.errors import CredentialsError, UsageError
from pipeline.submit.remote import (
    INPUT_EXPIRY_S,
    NO_TOKEN,
    CallFailed,
    Effect,
    QuotaHeaders,
    RemoteBatch,
    RemoteFile,
    first_error,
    remote_batch,
    retry_after_s,
    text_of,
    whole_of,
)

ENTRA_SCOPE = "https://cognitiveservices.azure.com/.default"
"""Scope of the batch guide; newer pages name another (contract §1), hence `AZURE_OPENAI_SCOPE`."""

READ_RETRIES = 4
CONNECT_TIMEOUT_S = 15.0
UPLOAD_TIMEOUT_S = httpx2.Timeout(1_800.0, connect=CONNECT_TIMEOUT_S)
CALL_TIMEOUT_S = httpx2.Timeout(120.0, connect=CONNECT_TIMEOUT_S)
DOWNLOAD_TRIES = 5
"""How often a download that was cut goes on where it stopped, before it counts as failed."""

LIMIT_HEADER = "deployment-maximum-enqueued-tokens"


def failure(error: Exception) -> CallFailed:
    """Say what an exception of the SDK or of the libraries below it means for the call."""
    if isinstance(error, CallFailed):
        return error
    if isinstance(error, openai.APIStatusError):
        return _status_failure(error)
    if isinstance(error, CredentialsError):  # no token could be had: nothing was sent
        return CallFailed(Effect.CREDENTIALS, None, NO_TOKEN, str(error))
    causes = [error, *(cause for cause in (error.__cause__, error.__context__) if cause)]
    if isinstance(error, openai.APITimeoutError):
        connecting = any(isinstance(cause, httpx2.ConnectTimeout) for cause in causes)
        return CallFailed(Effect.UNREACHABLE if connecting else Effect.UNKNOWN, None, "timeout", "No answer in time.")
    if any(isinstance(cause, httpx2.ConnectError) for cause in causes):
        return CallFailed(Effect.UNREACHABLE, None, "unreachable", f"No connection ({causes[-1]}).")
    return CallFailed(Effect.UNKNOWN, None, "no_answer", f"{type(error).__name__}: {causes[-1]}")


def _request_id(headers: Mapping[str, str]) -> str:
    """The service's own id of a call."""
    return headers.get("apim-request-id") or headers.get("x-request-id") or "-"


def _status_failure(error: openai.APIStatusError) -> CallFailed:
    status, body = error.status_code, error.body
    code, message = "", ""
    if isinstance(body, dict):
        listed = body.get("errors")
        if listed:
            found = first_error(listed)
            code, message = found[0] or "", found[1] or ""
        else:
            wrapped = body.get("error")
            inner = wrapped if isinstance(wrapped, dict) else body
            code, message = str(inner.get("code") or ""), str(inner.get("message") or "")
    message = (
        message
        or re.sub(r"<[^>]*>|\s+", " ", str(error.message if isinstance(body, dict) else error.response.text)).strip()
    )
    wait = retry_after_s(error.response.headers)
    if status in (401, 403):
        effect = Effect.CREDENTIALS
    elif status == 404:
        effect = Effect.MISSING
    elif status == 429:
        effect = Effect.THROTTLED
    elif status in (408, 409) or status >= 500:
        effect = Effect.UNKNOWN
    else:
        effect = Effect.REFUSED
    limit = whole_of(error.response.headers.get(LIMIT_HEADER))
    return CallFailed(effect, status, code, message, retry_after_s=wait, maximum_tokens=limit)


class Service:
    """Files and batches of one endpoint.

    Args:
        client: the SDK's client; its own retries are set per call here.
        log: receives one line per call: what, status, the service's request id.
        supports_expiry: whether uploads may carry an expiry.
        renew: forgets the token in use, so that the next call asks for a fresh one; None: the credential is a key.
    """

    def __init__(
        self,
        client: openai.OpenAI,
        *,
        log: Callable[[str], None],
        supports_expiry: bool = True,
        renew: Callable[[], None] | None = None,
    ) -> None:
        self._reading = client.with_options(max_retries=READ_RETRIES, timeout=CALL_TIMEOUT_S)
        self._once = client.with_options(max_retries=0, timeout=CALL_TIMEOUT_S)
        self._sending = client.with_options(max_retries=0, timeout=UPLOAD_TIMEOUT_S)
        self._log, self._renew = log, renew
        self._supports_expiry = supports_expiry

    def _call(self, what: str, make: Callable[[], Any]) -> Any:
        """One call; logged; failures mapped. After a 401 a fresh token is asked for, once: it may have expired."""
        try:
            try:
                raw = make()
            except openai.AuthenticationError as error:
                if self._renew is None:
                    raise
                self._log(f"{what} 401 {_request_id(error.response.headers)}, once more with a fresh token")
                self._renew()
                raw = make()
        except (openai.OpenAIError, httpx2.HTTPError, CredentialsError, ValueError) as error:
            raise self._failed(what, error) from error
        self._log(f"{what} ok {raw.status_code} {_request_id(raw.headers)}")
        return raw

    def _failed(self, what: str, error: Exception) -> CallFailed:
        """What an exception means; logged with the service's request id."""
        failed = failure(error)
        answer = getattr(error, "response", None)
        request_id = _request_id(answer.headers) if answer is not None else "-"
        self._log(f"{what} {failed.effect} {failed.status or '-'} {failed.code or '-'} {request_id} {failed.message}")
        return failed

    def _parsed(self, what: str, make: Callable[[], Any]) -> tuple[Any, Mapping[str, str]]:
        raw = self._call(what, make)
        try:
            return raw.parse(), raw.headers
        except Exception as error:  # the SDK's parsing may raise anything on a foreign body
            raise CallFailed(
                Effect.UNKNOWN, raw.status_code, "unreadable", f"The answer cannot be read: {error}"
            ) from error

    def upload(self, path: Path, name: str) -> RemoteFile:
        """Upload an input file under `name`; the file is streamed, never whole in memory.

        Raises:
            CallFailed: as every method here.
        """
        expiry: dict[str, Any] = {}
        if self._supports_expiry:
            expiry = {"expires_after": {"anchor": "created_at", "seconds": INPUT_EXPIRY_S}}
        with path.open("rb") as file:
            answer, _ = self._parsed(
                f"upload {name}",
                lambda: self._sending.files.with_raw_response.create(
                    file=(name, file, "application/jsonl"), purpose="batch", **expiry
                ),
            )
        return self._file(answer)

    @staticmethod
    def _file(answer: Any) -> RemoteFile:
        answer = SimpleNamespace(**answer) if isinstance(answer, dict) else answer
        if not text_of(getattr(answer, "id", None)):
            raise CallFailed(Effect.UNKNOWN, None, "unreadable", "The service's answer is no file.")
        return RemoteFile(
            answer.id,
            (text_of(getattr(answer, "status", None)) or "").lower(),
            whole_of(getattr(answer, "bytes", None)),
            text_of(getattr(answer, "filename", None)) or "",
            whole_of(getattr(answer, "expires_at", None)),
        )

    def file(self, file_id: str) -> RemoteFile:
        """A file as it stands."""
        return self._file(
            self._parsed(f"file {file_id}", lambda: self._reading.files.with_raw_response.retrieve(file_id))[0]
        )

    def input_files(self) -> Iterator[RemoteFile]:
        """Every input file that the service lists, over all pages."""
        after: str | None = None
        seen: set[str] = set()
        while True:
            options: dict[str, Any] = {"purpose": "batch", **({"after": after} if after else {})}
            page, _ = self._parsed("list files", partial(self._reading.files.with_raw_response.list, **options))
            fresh = [file for file in map(self._file, _entries(page)) if file.id not in seen]
            yield from fresh
            if not fresh or page.has_more is False:
                return
            seen.update(file.id for file in fresh)
            after = fresh[-1].id

    def delete_file(self, file_id: str) -> None:
        """Delete a file; one that is gone already counts as deleted."""
        try:
            self._call(f"delete {file_id}", lambda: self._reading.files.with_raw_response.delete(file_id))
        except CallFailed as failed:
            if failed.effect is not Effect.MISSING:
                raise

    def create(self, file_id: str, endpoint: str, metadata: Mapping[str, str]) -> tuple[RemoteBatch, QuotaHeaders]:
        """Create a batch from an input file; one attempt only, never repeated by itself."""
        answer, headers = self._parsed(
            f"create {file_id}",
            lambda: self._once.batches.with_raw_response.create(
                input_file_id=file_id,
                endpoint=endpoint,  # type: ignore[arg-type]  # Azure also takes paths that the SDK does not list
                completion_window="24h",
                metadata=dict(metadata),
            ),
        )
        quota = QuotaHeaders(
            whole_of(headers.get("deployment-enqueued-tokens")),
            whole_of(headers.get(LIMIT_HEADER)),
        )
        return remote_batch(answer), quota

    def batch(self, batch_id: str) -> RemoteBatch:
        """A batch as it stands."""
        return remote_batch(
            self._parsed(f"batch {batch_id}", lambda: self._reading.batches.with_raw_response.retrieve(batch_id))[0]
        )

    def cancel(self, batch_id: str) -> None:
        """Ask a batch to stop; one that has ended or is gone needs no asking."""
        try:
            self._call(f"cancel {batch_id}", lambda: self._reading.batches.with_raw_response.cancel(batch_id))
        except CallFailed as failed:
            if failed.effect not in (Effect.MISSING, Effect.REFUSED) and failed.status != 409:
                raise

    def batches(self) -> Iterator[RemoteBatch]:
        """Every batch that the service lists, over all pages, in its order; a page that repeats ends the listing."""
        after: str | None = None
        seen: set[str] = set()
        while True:
            options: dict[str, Any] = {"limit": 100}
            if after:
                options["after"] = after
            page, _ = self._parsed("list batches", partial(self._reading.batches.with_raw_response.list, **options))
            found = [remote_batch(entry) for entry in _entries(page)]
            fresh = [entry for entry in found if entry.id not in seen]
            yield from fresh
            if not fresh or page.has_more is False:
                return
            seen.update(entry.id for entry in fresh)
            after = found[-1].id

    def _pieces(self, file_id: str, start: int) -> Iterator[bytes]:
        """A file's content from byte `start` on, also from a server that knows no ranges."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._reading.files.with_streaming_response.content(file_id, extra_headers=headers) as answer:
            self._log(f"content {file_id} from {start} {answer.status_code} {_request_id(answer.headers)}")
            skip = start if answer.status_code != 206 else 0
            for piece in answer.iter_bytes():  # as they come, so that a cut loses none
                if skip < len(piece):
                    yield piece[skip:]
                skip = max(0, skip - len(piece))

    def download(self, file_id: str, path: Path) -> int:
        """Stream a file's content to `path` as zstd: whole under its name, or not there.

        Returns:
            The size of the content in bytes.

        Raises:
            CallFailed: also where the service tells another size than was received.
        """
        import pyarrow as pa

        expected = self.file(file_id).bytes
        size = 0
        with (
            replacing(path) as temporary,
            pa.CompressedOutputStream(pa.OSFile(str(temporary), "wb"), "zstd") as sink,
        ):
            for left in reversed(range(DOWNLOAD_TRIES)):
                before = size
                try:
                    for piece in self._pieces(file_id, size):
                        sink.write(piece)
                        size += len(piece)
                    if expected is not None and expected != size:
                        words = f"{file_id} gave {size:,} of {expected:,} bytes."
                        raise CallFailed(Effect.UNKNOWN, None, "cut_short", words)
                    break
                except (openai.OpenAIError, httpx2.HTTPError, CredentialsError, CallFailed) as error:
                    failed = self._failed(f"content {file_id}", error)
                    if not left or size == before or (expected is not None and size > expected):
                        raise failed from error
        self._log(f"content {file_id} ok {size} bytes")
        return size


def _entries(page: Any) -> list[Any]:
    """A listing's entries, also where they are wrapped in `value` (contract §3).

    Raises:
        CallFailed: (unknown) the answer is no listing. It must never pass for an empty one: absence settles creates.
    """
    data = getattr(page, "data", None)
    if data is None:
        data = (getattr(page, "model_extra", None) or {}).get("value")
    if not isinstance(data, list):
        raise CallFailed(Effect.UNKNOWN, None, "unreadable", "The service's answer is no listing.")
    return data


@dataclass(frozen=True, slots=True)
class Connection:
    """A connected service: its endpoint, and whether that is a `/v1` root."""

    service: Service
    endpoint: str
    v1: bool


def connect(
    kind: ServiceKind,
    *,
    log: Callable[[str], None],
    endpoint: str | None = None,
    api_key: str | None = None,
    api_version: str | None = None,
    from_environment: bool = True,
) -> Connection:
    """The service that the environment, or a line of the deployments file, names.

    Args:
        kind: the kind of service.
        log: receives one line a call.
        endpoint: overrides the environment's (the embedded emulator's address).
        api_key: overrides the environment's.
        api_version: of the classic Azure root; overrides the environment's.
        from_environment: whether a key that is not given may come from the usual variable; otherwise Entra ID.

    Raises:
        UsageError: the environment lacks something; says what.
        CredentialsError: no Entra ID credential could be made.
    """
    if kind is ServiceKind.OPENAI:
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if not key:
            raise UsageError("--service openai needs OPENAI_API_KEY in the environment.")
        base = endpoint or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        return Connection(Service(openai.OpenAI(api_key=key, base_url=base), log=log), base, True)
    base = endpoint or os.environ.get("AZURE_OPENAI_ENDPOINT") or ""
    if not re.match(r"https?://[^/\s]+", base):
        raise UsageError(
            "--service azure needs AZURE_OPENAI_ENDPOINT, such as https://NAME.openai.azure.com"
            + (f" (it is {base!r})." if base else " (it is not set).")
        )
    base = base.rstrip("/")
    key = api_key or (os.environ.get("AZURE_OPENAI_API_KEY") if from_environment else None)
    token = None if key else EntraToken()
    renew = token.renew if token else None
    if base.endswith("/openai/v1"):
        client = openai.OpenAI(api_key=key or token, base_url=base + "/")
        return Connection(Service(client, log=log, renew=renew), base, True)
    version = (
        api_version
        or os.environ.get("AZURE_OPENAI_API_VERSION")
        or os.environ.get("OPENAI_API_VERSION")
        or AZURE_API_VERSION
    )
    credential: dict[str, Any] = {"api_key": key} if key else {"azure_ad_token_provider": token}
    client = openai.AzureOpenAI(azure_endpoint=base, api_version=version, **credential)
    # Older api-versions ignore the expiry in silence (contract §2); asking costs nothing, so it is always asked for.
    return Connection(Service(client, log=log, renew=renew), base, False)


class EntraToken:
    """Tokens of Entra ID through whatever the machine has (environment, managed identity, `az login`).

    azure-identity keeps a token until shortly before its end; `renew` forgets it, for one that is refused earlier.
    """

    def __init__(self) -> None:
        self._provider: Callable[[], str] | None = None

    def renew(self) -> None:
        """Ask for a fresh token at the next call."""
        self._provider = None

    def __call__(self) -> str:
        """A token.

        Raises:
            CredentialsError: none could be had; says why, and what to do.
        """
        from azure.core.exceptions import AzureError
        from azure.identity import DefaultAzureCredential, get_bearer_token_provider

        try:
            if self._provider is None:
                scope = os.environ.get("AZURE_OPENAI_SCOPE") or ENTRA_SCOPE
                self._provider = get_bearer_token_provider(DefaultAzureCredential(), scope)
            return self._provider()
        except (AzureError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise CredentialsError(
                f"No Entra ID token could be had ({reason}): sign in with `az login`, or set AZURE_OPENAI_API_KEY."
            ) from error
