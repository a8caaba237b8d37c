"""A server that says what a test wants, over a real socket: cut streams, wrong bytes, restarts."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Answer = Callable[["Handler"], None]


@dataclass
class Script:
    """Answers in order, and what was asked; more questions than answers are a fault."""

    answers: list[Answer]
    asked: list[Asked] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        headers = {key.lower(): value for key, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, self.rfile.read(length))
        self.script.asked.append(asked)
        if self.script.answers:
            self.script.answers.pop(0)(self)
        else:
            reply(599, b"nothing more was scripted")(self)

    do_GET = do_POST = do_PATCH = do_DELETE = do_HEAD = answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()


@contextlib.contextmanager
def serving(*answers: Answer, port: int = 0) -> Iterator[Script]:
    script = Script(list(answers))
    handler = type("Scripted", (Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def reply(status: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def value(content: Any, status: int = 200) -> Answer:
    return reply(status, msgspec.json.encode(content), Content_Type="application/json")


def problem(status: int, slug: str, **members: Any) -> Answer:
    body = {
        "type": f"https://foedus.dev/problems/{slug}",
        "title": slug.replace("-", " ").capitalize(),
        "status": status,
        **members,
    }
    headers = {"Content_Type": "application/problem+json"}
    if status == 503:
        headers["Retry_After"] = "0"
    return reply(status, msgspec.json.encode(body), **headers)


def cut(body: bytes, of: int, status: int = 200, **headers: str) -> Answer:
    """Promise ``of`` bytes, send ``body``, and break the connection."""

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for key, text in headers.items():
            handler.send_header(key.replace("_", "-"), text)
        handler.send_header("Content-Length", str(of))
        handler.end_headers()
        handler.wfile.write(body)
        hang_up(handler)

    return answer


def hang_up(handler: Handler) -> None:
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def stream(*pieces: bytes, then: Callable[[Handler], None] | None = None) -> Answer:
    """An event stream whose end is the connection's end."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
        if then is not None:
            then(handler)
        handler.close_connection = True

    return answer


def message(number: int, kind: str, **fields: Any) -> bytes:
    """One event as the control plane would send it."""
    event = {
        "id": number,
        "kind": kind,
        "at": "2026-01-01T00:00:00Z",
        "attempt": 1,
        "fields": fields,
    }
    data = msgspec.json.encode(event).decode()
    return f"id: {number}\nevent: {kind}\ndata: {data}\n\n".encode()
