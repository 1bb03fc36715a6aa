"""The seam to the network: whatever the SDK or what lies below it raises has one meaning, and no secret leaks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from pipeline.errors import CredentialsError
from pipeline.submit.remote import NO_TOKEN, CallFailed, Effect, remote_batch
from pipeline.submit.service import EntraToken, Service, failure

Handler = Callable[[httpx2.Request], httpx2.Response]
BATCH = {"id": "batch_1", "object": "batch", "status": "validating", "input_file_id": "file-1", "endpoint": "/v1/x",
         "completion_window": "24h", "created_at": 1}  # fmt: skip


def service_of(handler: Handler, log: list[str] | None = None, **more: Any) -> Service:
    """The real SDK over a transport that answers as told."""
    client = openai.OpenAI(
        api_key="secret-key", base_url="http://service.invalid/v1",
        http_client=openai.DefaultHttpxClient(transport=httpx2.MockTransport(handler)),
    )  # fmt: skip
    return Service(client, log=(log if log is not None else []).append, **more)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's retries do not sleep."""
    monkeypatch.setattr(openai._base_client.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize(
    ("status", "effect"),
    [
        (400, Effect.REFUSED), (401, Effect.CREDENTIALS), (403, Effect.CREDENTIALS), (404, Effect.MISSING),
        (408, Effect.UNKNOWN), (409, Effect.UNKNOWN), (413, Effect.REFUSED), (422, Effect.REFUSED),
        (429, Effect.THROTTLED), (500, Effect.UNKNOWN), (502, Effect.UNKNOWN), (503, Effect.UNKNOWN),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b'{"error": {"code": "c", "message": "m"}}', "c", "m"),
        (b'{"errors": {"object": "list", "data": [{"code": "c", "message": "m", "line": null}]}}', "c", "m"),
        (b'{"statusCode": 401, "message": "m"}', "", "m"),
        (b"<html><body>Bad\n gateway</body></html>", "", "Bad gateway"),
        (b"", "", ""),
    ],
    ids=["error", "errors", "statusCode", "html", "empty"],
)
def test_a_status_and_any_body_have_one_meaning(
    status: int, effect: Effect, content: bytes, code: str, message: str
) -> None:
    """Every shape of an error body that the contract lists (§5), on a create, which is called exactly once."""
    calls = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        calls.append(request)
        return httpx2.Response(status, content=content)

    with pytest.raises(CallFailed) as told:
        service_of(handler).create("file-1", "/v1/x", {})
    assert (told.value.effect, told.value.status) == (effect, status)
    assert told.value.code == code
    assert message in told.value.message
    assert len(calls) == 1, "a create is never repeated by itself"


def every_exception(module: object, base: type[BaseException]) -> list[type[BaseException]]:
    """The exception classes of a library."""
    return [found for _, found in inspect.getmembers(module, inspect.isclass) if issubclass(found, base)]


@pytest.mark.parametrize("kind", every_exception(httpx2, httpx2.TransportError), ids=lambda kind: kind.__name__)
def test_no_failure_of_the_transport_is_unmapped(kind: type[httpx2.TransportError]) -> None:
    """Only where no connection was made is it certain that nothing was done."""

    def handler(request: httpx2.Request) -> httpx2.Response:
        raise kind("broken")

    with pytest.raises(CallFailed) as told:
        service_of(handler).create("file-1", "/v1/x", {})
    never_sent = issubclass(kind, httpx2.ConnectError | httpx2.ConnectTimeout)
    assert told.value.effect is (Effect.UNREACHABLE if never_sent else Effect.UNKNOWN)


def test_an_upload_is_sent_once_and_a_read_again() -> None:
    """Retries of the SDK are off where a retry could pay twice, and on where it costs nothing."""
    calls: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        calls.append(f"{request.method} {request.url.path}")
        return httpx2.Response(503)

    service = service_of(handler)
    with pytest.raises(CallFailed):
        service.upload(Path(__file__), "n.jsonl")
    assert len(calls) == 1
    with pytest.raises(CallFailed):
        service.batch("batch_1")
    assert len(calls) > 3


@pytest.mark.parametrize(
    ("header", "seconds"),
    [({"retry-after": "7"}, 7.0), ({"retry-after-ms": "1500"}, 1.5), ({"retry-after": "x"}, None)],
)
def test_what_the_service_asks_to_wait_is_known(header: dict[str, str], seconds: float | None) -> None:
    """Seconds or milliseconds; nonsense is no wait."""
    with pytest.raises(CallFailed) as told:
        service_of(lambda request: httpx2.Response(429, headers=header)).create("f", "/v1/x", {})
    assert told.value.retry_after_s == seconds


def test_after_a_401_the_token_is_asked_for_once_more() -> None:
    """It may just have expired; a second 401 is an answer."""
    answers, renewed = [401, 200, 401, 401], list[bool]()
    service = service_of(
        lambda request: httpx2.Response(answers.pop(0), json=BATCH), renew=lambda: renewed.append(True)
    )
    assert service.create("file-1", "/v1/x", {})[0].id == "batch_1"
    assert renewed == [True]
    with pytest.raises(CallFailed) as told:
        service.create("file-1", "/v1/x", {})
    assert told.value.effect is Effect.CREDENTIALS
    assert answers == []


def test_an_answer_that_cannot_be_read_is_an_unknown_effect() -> None:
    """A 200 that is no batch: it may have been made."""
    for content in (b"", b"[]", b"<html>", b'{"object": "batch"}', b"null", b'{"id": ""}'):
        with pytest.raises(CallFailed) as told:
            service_of(
                lambda request, content=content: httpx2.Response(
                    200, content=content, headers={"content-type": "application/json"}
                )
            ).create("file-1", "/v1/x", {})
        assert told.value.effect is Effect.UNKNOWN, content


def test_quota_headers_are_read_from_acceptances_and_refusals() -> None:
    """As numbers, or not at all (contract §8)."""
    headers = {"deployment-enqueued-tokens": "139", "deployment-maximum-enqueued-tokens": "740000"}
    _, quota = service_of(lambda request: httpx2.Response(201, json=BATCH, headers=headers)).create("f", "/v1/x", {})
    assert (quota.enqueued_tokens, quota.maximum_tokens) == (139, 740_000)
    with pytest.raises(CallFailed) as told:
        service_of(lambda request: httpx2.Response(400, headers=headers)).create("f", "/v1/x", {})
    assert told.value.maximum_tokens == 740_000


def test_no_secret_is_logged_or_told() -> None:
    """Neither key nor header, whatever fails; every call is logged with the service's request id."""
    log: list[str] = []
    service = service_of(
        lambda request: httpx2.Response(401, json={"error": {"message": "no"}}, headers={"x-request-id": "req-7"}), log
    )
    with pytest.raises(CallFailed) as told:
        service.create("file-1", "/v1/x", {})
    assert "secret-key" not in "".join(log) + str(told.value) + repr(told.value)
    assert any("req-7" in line for line in log)
    azures = service_of(lambda request: httpx2.Response(500, headers={"apim-request-id": "apim-8"}), log)
    with pytest.raises(CallFailed):
        azures.download("file-1", Path("x"))
    assert "apim-8" in log[-1]


@pytest.mark.parametrize("body", [{}, {"data": None}, {"data": {}}, {"error": "x"}, [], "x", None])
def test_what_is_no_listing_is_not_taken_for_an_empty_one(body: object) -> None:
    """An unknown create is settled by absence from a listing: an answer that cannot be read says nothing of absence."""
    service = service_of(lambda request: httpx2.Response(200, json=body))
    for listing in (service.batches, service.input_files):
        with pytest.raises(CallFailed) as told:
            list(listing())
        assert told.value.effect is Effect.UNKNOWN


def test_a_listing_wrapped_in_value_is_read() -> None:
    """One of the samples of the contract (§3) is."""
    service = service_of(lambda request: httpx2.Response(200, json={"value": [BATCH], "has_more": False}))
    assert [batch.id for batch in service.batches()] == ["batch_1"]


def test_where_no_token_can_be_had_nothing_was_sent() -> None:
    """The machine's sign-in has ended: that is trouble with credentials like any other, and can be waited out."""

    def no_token() -> str:
        raise CredentialsError("No Entra ID token could be had (expired): sign in with `az login`.")

    client = openai.AzureOpenAI(
        azure_endpoint="http://service.invalid", api_version="2025-04-01-preview", azure_ad_token_provider=no_token,
        http_client=openai.DefaultHttpxClient(transport=httpx2.MockTransport(lambda request: httpx2.Response(200))),
    )  # fmt: skip
    service = Service(client, log=lambda line: None)
    for call in (lambda: service.create("f", "/v1/x", {}), lambda: service.download("f", Path("x")), service.batches):
        with pytest.raises(CallFailed, match="az login") as told:
            list(call() or [])  # type: ignore[call-overload]
        assert (told.value.effect, told.value.code) == (Effect.CREDENTIALS, NO_TOKEN)


def test_an_entra_token_is_asked_for_anew_once_it_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """azure-identity keeps a token until shortly before its end: a refused one must be forgotten to be renewed."""
    made: list[str] = []

    def provider_of(credential: object, scope: str) -> Callable[[], str]:
        made.append(scope)
        number = len(made)
        return lambda: f"token {number}"

    monkeypatch.setattr("azure.identity.get_bearer_token_provider", provider_of)
    token = EntraToken()
    assert [token(), token()] == ["token 1", "token 1"]
    token.renew()
    assert token() == "token 2"


def test_a_listing_that_repeats_its_last_page_ends() -> None:
    """Some servers never say that there is no more."""
    page = {"object": "list", "data": [BATCH, {**BATCH, "id": "batch_2"}], "has_more": True, "last_id": "batch_2"}
    service = service_of(lambda request: httpx2.Response(200, json=page))
    assert [batch.id for batch in service.batches()] == ["batch_1", "batch_2"]


def test_foreign_exceptions_become_ours_once() -> None:
    """What is mapped already stays."""
    mapped = CallFailed(Effect.MISSING, 404, "c", "m")
    assert failure(mapped) is mapped
    with pytest.raises(CallFailed):
        remote_batch(object())
