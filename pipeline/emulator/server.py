"""The service over HTTP: roots, credentials, error shapes, streaming. A thin adapter; nothing is decided here.

The classic root `/openai` needs an api-version, `/openai/v1` and `/v1` do not (contract §1). Uploads are streamed to
disk. What an ordered fault does to a call is in `misbehaving`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline.emulator.misbehaving import Cut, HangUp, answered, fault_of
from pipeline.emulator.refusals import Refusal, refusal
from pipeline.emulator.service import Service
from pipeline.emulator.settings import EmulatorSettings
from pipeline.emulator.uploading import received

Handler = Callable[[Request], Awaitable[Response]]
_PAGE_MAX = 100
_BODY_BYTES_MAX = 4 << 20
_VERSION = re.compile(r"20\d\d-\d\d-\d\d(-preview)?")
_FIRST_VERSION, _FIRST_VERSION_WITH_EXPIRY = "2024-07-01", "2025-03-01"
"""Batches came with the first; before the second an expiry of files is ignored in silence (contract §1, §2)."""


def application(service: Service) -> Starlette:
    """The ASGI application of a service."""
    http = _Http(service)
    routes = [
        Route("/_emulator/books", http.books),
        Route("/_emulator/health", http.health),
        Route("/_emulator/faults", http.order_faults, methods=["POST"]),
        Route("/_emulator/faults", http.clear_faults, methods=["DELETE"]),
    ]
    for root in service.settings.habits.roots:
        if service.settings.habits.dashed:
            deployed = "/deployments/{name}" if root == "/openai" else ""
            routes += [
                Route(f"{root}{deployed}/{path}", http.guarded(http.synchronous, ""), methods=["POST"])
                for path in ("chat/completions", "responses", "embeddings")
            ]
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
    return Starlette(routes=routes, exception_handlers={404: _not_found, 405: _not_found})


async def _not_found(request: Request, error: Exception) -> Response:
    """A path that the service does not have (contract §1)."""
    return JSONResponse({"error": {"code": "404", "message": "Resource not found"}}, 404)


class _Http:
    def __init__(self, service: Service) -> None:
        self._service = service

    def guarded(self, handler: Handler, op: str) -> Handler:
        """A handler behind credentials, api-version, ordered faults, and the service's error shapes."""

        async def guarded(request: Request) -> Response:
            try:
                self._check(request)
                if op == "create_batch":
                    request.state.asked = await _json_object(request)
                fault = await run_in_threadpool(fault_of, self._service, request, op) if op else None
                answer = await (handler(request) if fault is None else answered(self._service, fault, handler, request))
            except Refusal as told:
                answer = JSONResponse(told.body, told.status)
            except (HangUp, ClientDisconnect):
                return Cut()
            name = "apim-request-id" if self._service.settings.habits.dashed else "x-request-id"
            answer.headers.setdefault(name, str(uuid.uuid4()))
            return answer

        return guarded

    def _check(self, request: Request) -> None:
        if _is_classic(request):
            version = request.query_params.get("api-version", "")
            if not _VERSION.fullmatch(version) or version[:10] < _FIRST_VERSION:
                raise refusal(404, "404", "Resource not found")
        bearer = request.headers.get("authorization", "")
        given = request.headers.get("api-key") or (bearer[7:] if bearer.lower().startswith("bearer ") else "")
        wanted = self._service.settings.key
        if not given or (wanted is not None and not secrets.compare_digest(given.encode(), wanted.encode())):
            text = "Access denied due to invalid subscription key or wrong API endpoint."
            raise refusal(401, "401", text)

    def _made(self, request: Request, doc: dict[str, Any], headers: dict[str, str]) -> Response:
        """The answer to an upload or a create: on the classic root 201 with its place, elsewhere 200 (contract §1)."""
        status = self._service.settings.habits.created if _is_classic(request) else 200
        if status == 201:
            headers = {**headers, "location": f"{str(request.url).partition('?')[0]}/{doc['id']}?{request.url.query}"}
        return JSONResponse(doc, status, headers)

    async def synchronous(self, request: Request) -> Response:
        """A deployment for batches does not answer single calls (contract §5)."""
        text = "The requested operation is unsupported: the deployment is of a batch type and takes only batches."
        raise refusal(400, "OperationNotSupported", text)

    async def upload(self, request: Request) -> Response:
        got = await received(request, self._service.settings)
        expires_s = got.expires_s
        if _is_classic(request) and request.query_params["api-version"][:10] < _FIRST_VERSION_WITH_EXPIRY:
            expires_s = None
        doc = await run_in_threadpool(self._service.add_file, got.content, got.name, "batch", expires_s, got.characters)
        return self._made(request, doc, {})

    async def files(self, request: Request) -> Response:
        asked = request.query_params
        order = asked.get("order", "desc")
        if order not in ("asc", "desc"):
            raise refusal(400, "invalidPayload", "order must be asc or desc.")
        limit = _whole(asked.get("limit", "10000"), 10_000)
        return JSONResponse(
            await run_in_threadpool(self._service.files, asked.get("purpose"), asked.get("after"), limit, order)
        )

    async def file(self, request: Request) -> Response:
        return JSONResponse(self._service.file(request.path_params["id"]))

    async def delete(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._service.delete_file, request.path_params["id"]))

    async def content(self, request: Request) -> Response:
        file = self._service.file(request.path_params["id"])
        path = self._service.path_of(file["id"])
        try:
            return FileResponse(path, media_type="application/octet-stream", stat_result=path.stat())
        except FileNotFoundError:
            raise refusal(404, "notFound", f"No file with id '{file['id']}' was found.") from None

    async def create(self, request: Request) -> Response:
        doc, headers = await run_in_threadpool(self._service.create, request.state.asked)
        told = _is_classic(request) and self._service.settings.habits.headers
        return self._made(request, doc, headers if told else {})

    async def batches(self, request: Request) -> Response:
        limit = _whole(request.query_params.get("limit", "20"), _PAGE_MAX)
        after = request.query_params.get("after")
        return JSONResponse(await run_in_threadpool(self._service.batches, after, limit))

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
            return JSONResponse({"open": self._service.faults.order(orjson.loads(await _body(request)))})
        except ValueError as error:
            return JSONResponse({"error": {"code": "invalidPayload", "message": str(error)}}, 400)
        except Refusal as told:
            return JSONResponse(told.body, told.status)
        except ClientDisconnect:
            return Cut()

    async def clear_faults(self, request: Request) -> Response:
        self._service.faults.clear()
        return JSONResponse({"open": 0})


async def _body(request: Request) -> bytes:
    """A request's body, bounded.

    Raises:
        Refusal: 413, it is too large to be a create or a plan of faults.
    """
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > _BODY_BYTES_MAX:
            raise refusal(413, "invalidPayload", "The request body is too large.")
    return bytes(found)


async def _json_object(request: Request) -> dict[str, Any]:
    """A request's body, which must be a JSON object.

    Raises:
        Refusal: it is none, or too large.
    """
    try:
        found = orjson.loads(await _body(request))
        orjson.dumps(found)  # what is nested too deeply to be written again is refused, too
    except (orjson.JSONDecodeError, TypeError):
        found = None
    if not isinstance(found, dict):
        raise refusal(400, "invalidPayload", "The request body is no JSON object.")
    return found


def _whole(text: str, most: int) -> int:
    """A number of entries from 1 to `most`."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise refusal(400, "invalidPayload", f"limit must be 1 to {most}.")
    return int(text)


def _is_classic(request: Request) -> bool:
    return request.url.path.startswith("/openai/") and not request.url.path.startswith("/openai/v1/")


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """The caller has its own."""


def listening(settings: EmulatorSettings) -> socket.socket:
    """A listening socket."""
    made = socket.create_server((settings.host, settings.port), backlog=128)
    made.set_inheritable(False)
    # Accepted sockets inherit it; without it every answer waits for the client's delayed acknowledgement.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
    if any(thread.name.startswith("upstream") for thread in threading.enumerate()):
        # An answer of the server behind is still awaited, and may be for minutes: all that is here is on disk.
        os._exit(0)


def _until_end_of_input(stop: Callable[[], None]) -> None:
    while sys.stdin.buffer.read(1):
        pass
    stop()
