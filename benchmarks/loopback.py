"""The smallest batch server that the peers and we can all speak to: OpenAI's paths, answers at once, nothing checked.

It stands for no service and is no test of one; its own work is kept small, so that what is measured is the client's.

python -m benchmarks.loopback FOLDER    prints its port
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_ID = re.compile(rb'"custom_id":\s*"([^"]*)"')
ANSWER = '{"label": "an answer of the loopback server, as long as a sentence is"}'
_BODY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-mini",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER, "refusal": None}}
    ],
    "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
}
_TAIL = (
    b'","response":' + json.dumps({"status_code": 200, "request_id": "r", "body": _BODY}).encode() + b',"error":null}\n'
)
FILES: dict[str, dict[str, Any]] = {}
BATCHES: dict[str, dict[str, Any]] = {}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    folder = Path()

    def do_GET(self) -> None:
        """Files, batches, contents and lists."""
        parts = self.path.split("?")[0].strip("/").split("/")[1:]
        match parts:
            case ["files", name, "content"]:
                self._answer((self.folder / name).read_bytes(), "application/octet-stream")
            case ["files", name] if name in FILES:
                self._json(FILES[name])
            case ["batches", name] if name in BATCHES:
                self._json(BATCHES[name])
            case ["files"]:
                self._json({"object": "list", "data": list(FILES.values()), "has_more": False})
            case ["batches"]:
                self._json({"object": "list", "data": list(BATCHES.values())[::-1], "has_more": False})
            case _:
                self._json({"error": {"message": "not here", "code": "not_found"}}, 404)

    def do_DELETE(self) -> None:
        """A file goes."""
        name = self.path.split("/")[-1]
        FILES.pop(name, None)
        (self.folder / name).unlink(missing_ok=True)
        self._json({"id": name, "object": "file", "deleted": True})

    def do_POST(self) -> None:
        """An upload, a create, or a cancel (everything is over by then)."""
        body = b"".join(self._body())
        if self.path.endswith("/files"):
            self._json(self._file(self._part(body), "batch"))
        elif self.path.endswith("/cancel"):
            self._json(BATCHES[self.path.split("/")[-2]])
        else:
            self._json(self._batch(json.loads(body)))

    def _body(self) -> Iterator[bytes]:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            yield self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _part(self, body: bytes) -> bytes:
        """The content of the multipart field `file`."""
        boundary = b"--" + self.headers["Content-Type"].split("boundary=")[1].strip('"').encode()
        start = body.index(b'name="file"')
        start = body.index(b"\r\n\r\n", start) + 4
        return body[start : body.index(b"\r\n" + boundary, start)]

    def _file(self, content: bytes, purpose: str) -> dict[str, Any]:
        name = f"file-{len(FILES) + len(BATCHES):06d}-{time.monotonic_ns()}"
        (self.folder / name).write_bytes(content)
        FILES[name] = {
            "id": name, "object": "file", "bytes": len(content), "created_at": int(time.time()), "status": "processed",
            "filename": f"{name}.jsonl", "purpose": purpose, "expires_at": int(time.time()) + 86_400,
        }  # fmt: skip
        return FILES[name]

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        ids = _ID.findall((self.folder / asked["input_file_id"]).read_bytes())
        head = b'{"id":"r","custom_id":"'
        output = self._file(b"".join(head + custom_id + _TAIL for custom_id in ids), "batch_output")
        now, name = int(time.time()), f"batch_{len(BATCHES):06d}"
        BATCHES[name] = {
            "id": name, "object": "batch", "endpoint": asked["endpoint"], "input_file_id": asked["input_file_id"],
            "completion_window": "24h", "status": "completed", "output_file_id": output["id"], "error_file_id": None,
            "created_at": now, "in_progress_at": now, "finalizing_at": now, "completed_at": now,
            "expires_at": now + 86_400, "metadata": asked.get("metadata") or {},
            "request_counts": {"total": len(ids), "completed": len(ids), "failed": 0},
        }  # fmt: skip
        return BATCHES[name]

    def _json(self, value: object, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), "application/json", status)

    def _answer(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Clients that hang up are no news."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing."""


def main() -> None:
    """Serve until killed."""
    Handler.folder = Path(sys.argv[1])
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
