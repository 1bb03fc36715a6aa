"""Calls that go wrong as was ordered: refused, hung up on, answered unreadably, cut short, or carried out too late.

Faults of lines and batches are not HTTP's matter; neither are those of listings, which the domain carries out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from pipeline.emulator.faults import LISTING_KINDS, Fault
from pipeline.emulator.holding import held_by
from pipeline.emulator.objects import odd, odd_page
from pipeline.emulator.service import Service

_PAGE = "<html><body><h1>ordered fault</h1></body></html>"
_PIECE_BYTES = 1 << 16


class HangUp(Exception):  # noqa: N818 - an ordered fault
    """Close the connection without an answer."""


def fault_of(service: Service, request: Request, op: str) -> Fault | None:
    """The order that strikes a call, or None."""
    name = str(request.path_params.get("id", ""))
    path = None
    if op == "create_batch":
        path = service.content_of(request.state.asked.get("input_file_id"))
    elif op in ("get_batch", "cancel"):
        path = service.input_of(name)
    elif name:
        path = service.content_of(name)
    holds = held_by(path) if path is not None else lambda pattern: False
    return service.faults.take(op, but=LISTING_KINDS, holds=holds)


async def answered(
    service: Service, fault: Fault, handler: Callable[[Request], Awaitable[Response]], request: Request
) -> Response:
    """Answer a call as was ordered.

    Raises:
        HangUp: the connection is to be closed.
    """
    head, _, word = fault.kind.partition(":")
    if head in ("status", "html", "empty", "plain"):
        return _refused(head, int(word), fault.retry_after)
    if fault.kind == "hang":
        await asyncio.sleep(fault.seconds)
    if fault.kind in ("hang", "hang_up_before"):
        raise HangUp
    if fault.kind == "late":
        await run_in_threadpool(service.create_later, request.state.asked, fault.seconds)
        raise HangUp
    answer = await handler(request)
    match fault.kind:
        case "hang_after":
            await asyncio.sleep(fault.seconds)
            raise HangUp
        case "hang_up_after":
            raise HangUp
        case "garbled":
            return HTMLResponse(_PAGE, answer.status_code)
        case "cut" if isinstance(answer, FileResponse):
            return _Half(answer)
    return await _changed(service, fault.kind, word, answer)


async def _changed(service: Service, kind: str, word: str, answer: Response) -> Response:
    """A good answer with what was ordered of its object."""
    if answer.status_code >= 400 or not isinstance(answer, JSONResponse):
        return answer
    doc = orjson.loads(bytes(answer.body))
    if kind == "null_size":
        doc["bytes"] = None
    elif kind == "unprocessable":
        await run_in_threadpool(service.spoil_file, doc["id"])
    elif kind == "truncated":
        doc = await run_in_threadpool(service.halve_file, doc["id"])
    elif kind.startswith("quirk:"):
        quirks = frozenset({word})
        if isinstance(doc.get("data"), list):
            doc = odd_page({**doc, "data": [odd(one, quirks) for one in doc["data"]]}, quirks)
        else:
            doc = odd(doc, quirks)
    headers = {name: value for name, value in answer.headers.items() if name not in ("content-length", "content-type")}
    return JSONResponse(doc, answer.status_code, headers)


def _refused(shape: str, status: int, retry_after: float | None) -> Response:
    """An ordered refusal: in the usual shape, as the gateway's JSON, as a page, or with nothing (contract §5)."""
    headers = {}
    if retry_after is not None:
        headers["retry-after"] = str(int(retry_after) if retry_after == int(retry_after) else retry_after)
    if shape == "html":
        return HTMLResponse(_PAGE, status, headers)
    if shape == "empty":
        return Response(b"", status, headers)
    if shape == "plain":
        return JSONResponse({"statusCode": status, "message": "ordered fault"}, status, headers)
    return JSONResponse({"error": {"code": str(status), "message": "ordered fault"}}, status, headers)


class _Half(Response):
    """Half of a file, then the connection ends."""

    def __init__(self, whole: FileResponse) -> None:
        super().__init__()
        self._path = Path(whole.path)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        size = self._path.stat().st_size
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        left = size // 2
        with self._path.open("rb") as file:
            while left and (piece := file.read(min(left, _PIECE_BYTES))):
                left -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        raise ConnectionAbortedError("ordered fault: cut")


class Cut(Response):
    """No answer: the connection ends without a byte."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        # The server offers no way to hang up; its own request cycle, whose method `receive` is, has the transport.
        transport = getattr(getattr(receive, "__self__", None), "transport", None)
        if transport is not None:
            transport.abort()
        raise ConnectionAbortedError("ordered fault: hang up")
