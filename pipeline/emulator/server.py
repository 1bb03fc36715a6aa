"""The service over HTTP: roots, credentials, error shapes, streaming. A thin adapter; nothing is decided here.

The classic root `/openai` needs an api-version, `/openai/v1` and `/v1` do not (contract §1). Uploads are streamed to
disk.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline.emulator.faults import Fault
from pipeline.emulator.service import EmulatorSettings, Refusal, Service, refusal

Handler = Callable[[Request], Awaitable[Response]]
_EXPIRY_NAMES = ("expires_after[seconds]", "expires_after.seconds")
_PAGE_MAX = 100


class _HangUp(Exception):  # noqa: N818 - an ordered fault
    """Close the connection without an answer."""


def application(service: Service) -> Starlette:
    """The ASGI application of a service."""
    http = _Http(service)
    routes = [
        Route("/_emulator/books", http.books),
        Route("/_emulator/health", http.health),
        Route("/_emulator/faults", http.order_faults, methods=["POST"]),
    ]
    for root in ("/openai/v1", "/openai", "/v1"):
        routes += [
            Route(f"{root}/files", http.guarded(http.upload, "upload"), methods=["POST"]),
            Route(f"{root}/files", http.guarded(http.files, "list_files"), methods=["GET"]),
            Route(f"{root}/files/{{id}}", http.guarded(http.file, "get_file"), methods=["GET"]),
            Route(f"{root}/files/{{id}}", http.guarded(http.delete, "delete_file"), methods=["DELETE"]),
            Route(f"{root}/files/{{id}}/content", http.guarded(http.content, "content"), methods=["GET"]),
            Route(f"{root}/batches", http.guarded(http.create, "create_batch"), methods=["POST"]),
            Route(f"{root}/batches", http.guarded(http.batches, "list_batches"), methods=["GET"]),
            Route(f"{root}/batches/{{id}}", http.guarded(http.batch, "get_batch"), methods=["GET"]),
            Route(f"{root}/batches/{{id}}/cancel", http.guarded(http.cancel, "cancel"), methods=["POST"]),
        ]
    return Starlette(routes=routes)


class _Http:
    def __init__(self, service: Service) -> None:
        self._service = service

    def guarded(self, handler: Handler, op: str) -> Handler:
        """A handler behind credentials, api-version, ordered faults, and the service's error shapes."""

        async def guarded(request: Request) -> Response:
            try:
                self._check(request)
                fault = self._service.faults.take(op)
                if fault is not None and fault.kind == "hang_up_before":
                    raise _HangUp
                if fault is not None and fault.kind.startswith("status:"):
                    return _faulty(fault)
                answer = await handler(request)
                if fault is not None and fault.kind == "hang_up_after":
                    raise _HangUp
                return answer
            except Refusal as told:
                return JSONResponse(told.body, told.status)
            except _HangUp:
                return _Cut()
            except ClientDisconnect:
                return Response(status_code=400)

        return guarded

    def _check(self, request: Request) -> None:
        path = request.url.path
        if (
            path.startswith("/openai/")
            and not path.startswith("/openai/v1/")
            and not request.query_params.get("api-version")
        ):
            raise refusal(404, "404", "Resource not found")
        bearer = request.headers.get("authorization", "")
        given = request.headers.get("api-key") or (bearer[7:] if bearer.lower().startswith("bearer ") else "")
        wanted = self._service.settings.key
        if not given or (wanted is not None and not secrets.compare_digest(given.encode(), wanted.encode())):
            text = "Access denied due to invalid subscription key or wrong API endpoint."
            raise refusal(401, "401", text)

    async def upload(self, request: Request) -> Response:
        try:
            # Parts beyond a small size are spooled to disk by the parser: a file is never whole in memory.
            async with request.form(max_files=1, max_fields=20) as form:
                file, purpose = form.get("file"), form.get("purpose")
                if file is None or isinstance(file, str) or purpose != "batch":
                    raise refusal(400, "invalidPayload", "A file and purpose 'batch' are required.")
                expires = next((int(str(form[name])) for name in _EXPIRY_NAMES if name in form), None)
                target = self._service.settings.state / f"upload.{secrets.token_hex(8)}"
                size = await run_in_threadpool(_copy, file.file, target)
                if size == 0:
                    target.unlink()
                    raise refusal(400, "invalidPayload", "The file is empty.")
                doc = await run_in_threadpool(self._service.add_file, target, file.filename or "", "batch", expires)
        except (MultiPartException, ValueError) as error:
            raise refusal(400, "invalidPayload", f"The upload cannot be read: {error}") from error
        return JSONResponse(doc, 201)

    async def files(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._service.files, request.query_params.get("purpose")))

    async def file(self, request: Request) -> Response:
        return JSONResponse(self._service.file(request.path_params["id"]))

    async def delete(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._service.delete_file, request.path_params["id"]))

    async def content(self, request: Request) -> Response:
        file = self._service.file(request.path_params["id"])
        return FileResponse(self._service.path_of(file["id"]), media_type="application/octet-stream")

    async def create(self, request: Request) -> Response:
        asked = await _json_object(request)
        doc, headers = await run_in_threadpool(self._service.create, asked)
        return JSONResponse(doc, 200, headers)

    async def batches(self, request: Request) -> Response:
        raw = request.query_params.get("limit", "20")
        if not raw.isascii() or not raw.isdigit() or not 1 <= int(raw[:9]) <= _PAGE_MAX:
            raise refusal(400, "invalidPayload", f"limit must be 1 to {_PAGE_MAX}.")
        after = request.query_params.get("after")
        return JSONResponse(await run_in_threadpool(self._service.batches, after, int(raw)))

    async def batch(self, request: Request) -> Response:
        return JSONResponse(self._service.batch(request.path_params["id"]))

    async def cancel(self, request: Request) -> Response:
        return JSONResponse(self._service.cancel(request.path_params["id"]))

    async def books(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._service.books))

    async def health(self, request: Request) -> Response:
        return JSONResponse({"ok": True, "pid": os.getpid()})

    async def order_faults(self, request: Request) -> Response:
        try:
            return JSONResponse({"open": self._service.faults.order(await request.json())})
        except (ValueError, KeyError, TypeError) as error:
            return JSONResponse({"error": {"code": "invalidPayload", "message": str(error)}}, 400)


def _copy(source: Any, target: Path) -> int:
    size = 0
    with target.open("wb") as file:
        while piece := source.read(1 << 20):
            size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return size


async def _json_object(request: Request) -> dict[str, Any]:
    try:
        found = json.loads(await request.body())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise refusal(400, "invalidPayload", "The request body is no JSON object.")
    return found


def _faulty(fault: Fault) -> Response:
    status = int(fault.kind.partition(":")[2])
    headers = {} if fault.retry_after is None else {"retry-after": str(fault.retry_after)}
    return JSONResponse({"error": {"code": str(status), "message": "ordered fault"}}, status, headers)


class _Cut(Response):
    """No answer: the body announced is never sent, and the server closes the connection."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise ConnectionAbortedError("ordered fault: hang up")


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """The caller has its own."""


def listening(settings: EmulatorSettings) -> socket.socket:
    """A listening socket."""
    made = socket.create_server((settings.host, settings.port), backlog=128)
    made.set_inheritable(False)
    return made


def server_of(service: Service) -> uvicorn.Server:
    """A server for a service."""
    config = uvicorn.Config(
        application(service), log_level="critical", access_log=False, lifespan="off", timeout_keep_alive=75
    )
    return _Server(config)


def serve(settings: EmulatorSettings) -> None:
    """Serve until SIGTERM, SIGINT or, when asked for, the end of standard input."""
    service = Service(settings)
    with listening(settings) as sock:
        server = server_of(service)

        def stop(*_: object) -> None:
            server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        if settings.die_with_parent:
            threading.Thread(target=_until_end_of_input, args=(stop,), daemon=True).start()
        service.start()
        url = f"http://{settings.host}:{sock.getsockname()[1]}"
        sys.stdout.write(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
        sys.stdout.flush()
        asyncio.run(server.serve(sockets=[sock]))
    service.close()


def _until_end_of_input(stop: Callable[[], None]) -> None:
    while sys.stdin.buffer.read(1):
        pass
    stop()
