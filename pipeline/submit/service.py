"""The one seam to the network: the Files and Batches of one endpoint, through the official SDK.

The only importer of `openai` and `azure.identity`. Maps every failure to `CallFailed` with a kind that says what is
known of the call's effect, and every answer to small values of ours; tolerant of what the contract lists as odd
(§3). Automatic retries are on for reads and off for upload and create. Knows nothing of the ledger; never prints or
logs a secret.
"""

from __future__ import annotations

import email.utils
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai

from pipeline.config import AZURE_API_VERSION, ServiceKind
from pipeline.durable import replacing
from pipeline.errors import CredentialsError, UsageError
from pipeline.submit.remote import (
    CallFailed,
    Effect,
    QuotaHeaders,
    RemoteBatch,
    RemoteFile,
    first_error,
    remote_batch,
    text_of,
    whole_of,
)

ENTRA_SCOPE = "https://cognitiveservices.azure.com/.default"
"""Scope of the batch guide; newer pages name another (contract §1), hence `AZURE_OPENAI_SCOPE`."""

INPUT_EXPIRY_S = 30 * 86_400
"""Expiry of input files: the longest that the service takes (contract §2), far beyond any batch's life."""

READ_RETRIES = 4
UPLOAD_TIMEOUT_S = 1_800.0
CALL_TIMEOUT_S = 120.0
DOWNLOAD_PIECE_BYTES = 1 << 20


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds asked for by `retry-after-ms` or `retry-after` (seconds or a date)."""
    try:
        if value := headers.get("retry-after-ms"):
            return float(value) / 1000
        if value := headers.get("retry-after"):
            return float(value)
    except ValueError:
        pass
    else:
        return None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, TypeError):
        return None


def failure(error: Exception) -> CallFailed:
    """Say what an exception of the SDK or of the libraries below it means for the call."""
    if isinstance(error, CallFailed):
        return error
    if isinstance(error, openai.APIStatusError):
        return _status_failure(error)
    causes = [error, *(cause for cause in (error.__cause__, error.__context__) if cause)]
    if isinstance(error, openai.APITimeoutError):
        connecting = any(isinstance(cause, httpx2.ConnectTimeout) for cause in causes)
        return CallFailed(Effect.UNREACHABLE if connecting else Effect.UNKNOWN, None, "timeout", "No answer in time.")
    if any(isinstance(cause, httpx2.ConnectError) for cause in causes):
        return CallFailed(Effect.UNREACHABLE, None, "unreachable", f"No connection ({causes[-1]}).")
    return CallFailed(Effect.UNKNOWN, None, "no_answer", f"{type(error).__name__}: {causes[-1]}")


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
        message or re.sub(r"<[^>]*>|\s+", " ", str(error.response.text if body is None else error.message)).strip()
    )
    wait = _retry_after(error.response.headers)
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
    return CallFailed(effect, status, code, message, wait)


class Service:
    """Files and batches of one endpoint.

    Args:
        client: the SDK's client; its own retries are set per call here.
        log: receives one line per call: what, status, the service's request id.
        supports_expiry: whether uploads may carry an expiry.
    """

    def __init__(self, client: openai.OpenAI, *, log: Callable[[str], None], supports_expiry: bool = True) -> None:
        self._reading = client.with_options(max_retries=READ_RETRIES, timeout=CALL_TIMEOUT_S)
        self._once = client.with_options(max_retries=0, timeout=CALL_TIMEOUT_S)
        self._sending = client.with_options(max_retries=0, timeout=UPLOAD_TIMEOUT_S)
        self._log = log
        self._supports_expiry = supports_expiry

    def _call(self, what: str, make: Callable[[], Any]) -> Any:
        """One call; logged; failures mapped."""
        try:
            raw = make()
        except openai.OpenAIError as error:
            failed = failure(error)
            request_id = getattr(error, "request_id", None) or "-"
            self._log(f"{what} {failed.effect} {failed.status or '-'} {failed.code} {request_id} {failed.message}")
            raise failed from error
        except (httpx2.HTTPError, ValueError) as error:
            failed = failure(error)
            self._log(f"{what} {failed.effect} - {failed.message}")
            raise failed from error
        headers = raw.headers
        self._log(f"{what} ok {raw.status_code} {headers.get('apim-request-id') or headers.get('x-request-id') or '-'}")
        return raw

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
        if not text_of(getattr(answer, "id", None)):
            raise CallFailed(Effect.UNKNOWN, None, "unreadable", "The service's answer is no file.")
        return RemoteFile(
            answer.id,
            (text_of(getattr(answer, "status", None)) or "").lower(),
            whole_of(getattr(answer, "bytes", None)),
        )

    def file(self, file_id: str) -> RemoteFile:
        """A file as it stands."""
        return self._file(
            self._parsed(f"file {file_id}", lambda: self._reading.files.with_raw_response.retrieve(file_id))[0]
        )

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
            whole_of(headers.get("deployment-maximum-enqueued-tokens")),
        )
        return remote_batch(answer), quota

    def batch(self, batch_id: str) -> RemoteBatch:
        """A batch as it stands."""
        return remote_batch(
            self._parsed(f"batch {batch_id}", lambda: self._reading.batches.with_raw_response.retrieve(batch_id))[0]
        )

    def batches(self) -> Iterator[RemoteBatch]:
        """Every batch that the service lists, over all pages, in its order; a page that repeats ends the listing."""
        after: str | None = None
        seen: set[str] = set()
        while True:
            options: dict[str, Any] = {"limit": 100}
            if after:
                options["after"] = after
            page, _ = self._parsed("list batches", partial(self._reading.batches.with_raw_response.list, **options))
            found = [remote_batch(entry) for entry in (page.data or [])]
            fresh = [entry for entry in found if entry.id not in seen]
            yield from fresh
            if not fresh or page.has_more is False:
                return
            seen.update(entry.id for entry in fresh)
            after = found[-1].id

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
        try:
            with (
                replacing(path) as temporary,
                pa.CompressedOutputStream(pa.OSFile(str(temporary), "wb"), "zstd") as sink,
            ):
                with self._reading.files.with_streaming_response.content(file_id) as answer:
                    for piece in answer.iter_bytes(DOWNLOAD_PIECE_BYTES):
                        sink.write(piece)
                        size += len(piece)
                if expected is not None and expected != size:
                    raise CallFailed(
                        Effect.UNKNOWN, None, "cut_short", f"{file_id} gave {size:,} of {expected:,} bytes."
                    )
        except (openai.OpenAIError, httpx2.HTTPError, CallFailed) as error:
            failed = failure(error)
            self._log(f"content {file_id} {failed.effect} {failed.status or '-'} {failed.message}")
            raise failed from error
        self._log(f"content {file_id} ok {size} bytes")
        return size


def connect(
    kind: ServiceKind, *, log: Callable[[str], None], endpoint: str | None = None, api_key: str | None = None
) -> tuple[Service, str, bool]:
    """The service that the environment names.

    Args:
        kind: the kind of service.
        log: receives one line a call.
        endpoint: overrides the environment's (the embedded emulator's address).
        api_key: overrides the environment's.

    Returns:
        The service, its endpoint, and whether it is a `/v1` root.

    Raises:
        UsageError: the environment lacks something; says what.
        CredentialsError: no Entra ID credential could be made.
    """
    if kind is ServiceKind.OPENAI:
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if not key:
            raise UsageError("--service openai needs OPENAI_API_KEY in the environment.")
        base = endpoint or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        return Service(openai.OpenAI(api_key=key, base_url=base), log=log), base, True
    base = endpoint or os.environ.get("AZURE_OPENAI_ENDPOINT") or ""
    if not re.match(r"https?://[^/\s]+", base):
        raise UsageError(
            "--service azure needs AZURE_OPENAI_ENDPOINT, such as https://NAME.openai.azure.com"
            + (f" (it is {base!r})." if base else " (it is not set).")
        )
    base = base.rstrip("/")
    key = api_key or os.environ.get("AZURE_OPENAI_API_KEY")
    credential: dict[str, Any] = {"api_key": key} if key else {"azure_ad_token_provider": _entra_token()}
    if base.endswith("/openai/v1"):
        token = key or credential["azure_ad_token_provider"]
        return Service(openai.OpenAI(api_key=token, base_url=base + "/"), log=log), base, True
    version = os.environ.get("AZURE_OPENAI_API_VERSION") or os.environ.get("OPENAI_API_VERSION") or AZURE_API_VERSION
    client = openai.AzureOpenAI(azure_endpoint=base, api_version=version, **credential)
    # Older api-versions ignore the expiry in silence (contract §2); asking costs nothing, so it is always asked for.
    return Service(client, log=log), base, False


def _entra_token() -> Callable[[], str]:
    """Entra ID through whatever the machine has (environment, managed identity, `az login`); azure-identity caches."""
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import CredentialUnavailableError, DefaultAzureCredential, get_bearer_token_provider

    provider = get_bearer_token_provider(DefaultAzureCredential(), os.environ.get("AZURE_OPENAI_SCOPE") or ENTRA_SCOPE)

    def token() -> str:
        try:
            return provider()
        except (CredentialUnavailableError, ClientAuthenticationError) as error:
            reason = str(error).splitlines()[0][:200]
            raise CredentialsError(
                f"No Entra ID token could be had ({reason}): sign in with `az login`, or set AZURE_OPENAI_API_KEY."
            ) from error

    return token
