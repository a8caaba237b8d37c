"""The ingest half of a control plane, over a real socket, that can be switched off and moved.

What it was told outlives its server, as a database would.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections import defaultdict
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sharing.object_store import Digest, digest_of
from workflows.run_directory import write_whole

TOKEN = "attempt-token-7f3a91"
_PATH = re.compile(r"/v1/attempts/([^/]+)/(\d+)/(events|objects|logs)(?:/([^/]+))?")


class ControlPlaneDouble:
    """Attributes:
    objects: Stored bytes by digest.
    events: On record, by step, in the order of their numbers.
    logs: Stored log by step.
    arrivals: What came, in order of arrival: ("object", digest) or ("event", step, number).
    refusals: How many requests were answered with a refusal that was asked for.
    is_fenced: Whether the attempt is superseded.
    """

    def __init__(
        self, endpoint_file: Path, *, listen: str = "127.0.0.1", host: str = "127.0.0.1"
    ) -> None:
        self.objects: dict[Digest, bytes] = {}
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.logs: dict[str, bytes] = defaultdict(bytes)
        self.arrivals: list[tuple[Any, ...]] = []
        self.refusals: dict[int, int] = defaultdict(int)
        self.is_fenced = False
        self.lock = threading.Lock()
        self._endpoint_file = endpoint_file
        self._listen = listen
        self._host = host
        self._refuse: list[int] = []
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://{self._host}:{self._server.server_address[1]}"

    def start(self) -> None:
        self._server = _Server(self, self._listen)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        write_whole(self._endpoint_file, self.url.encode())

    def stop(self) -> None:
        """Drop every connection in the middle of whatever it is doing."""
        if self._server is not None:
            self._server.shutdown()
            self._server.end()
            self._server = None

    def refuse_next(self, *statuses: int) -> None:
        """Answer the next requests with these."""
        with self.lock:
            self._refuse.extend(statuses)

    def refusal(self) -> int | None:
        with self.lock:
            if not self._refuse:
                return None
            status = self._refuse.pop(0)
            self.refusals[status] += 1
            return status

    def put_input(self, content: bytes) -> Digest:
        self.objects[digest_of(content)] = content
        return digest_of(content)

    def kinds(self, step: str) -> list[str]:
        return [event["kind"] for event in self.events[step]]

    def numbers(self, step: str) -> list[int]:
        return [event["number"] for event in self.events[step]]

    def forget(self) -> None:
        """Lose everything, as a data folder that was restored from a backup would."""
        with self.lock:
            self.events.clear()
            self.objects.clear()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, plane: ControlPlaneDouble, listen: str) -> None:
        super().__init__((listen, 0), _Handler)
        self.plane = plane
        self.connections: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def end(self) -> None:
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the other side's to notice."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        plane = self.server.plane
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        url = urlsplit(self.path)
        match = _PATH.fullmatch(url.path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._problem(401, "not-authentic")
        if plane.is_fenced:
            return self._problem(409, "fenced")
        if (status := plane.refusal()) is not None:
            return self._problem(status, "refused-on-purpose")
        if match is None:
            return self._problem(404, "not-found")
        kind, name = match[3], match[4]
        with plane.lock:
            if kind == "objects" and self.command == "GET":
                if name not in plane.objects:
                    return self._problem(404, "object-missing")
                return self._answer(200, plane.objects[name], "application/octet-stream")
            if kind == "objects":
                if f"sha256:{sha256(body).hexdigest()}" != name:
                    return self._problem(422, "object-corrupt")
                plane.objects[name] = body
                plane.arrivals.append(("object", name))
                return self._answer(201, b"{}")
            if kind == "logs":
                return self._log(name, int(parse_qs(url.query)["offset"][0]), body)
            return self._events(json.loads(body))

    def _log(self, step: str, offset: int, body: bytes) -> None:
        plane = self.server.plane
        if offset > len(plane.logs[step]):
            return self._answer(200, json.dumps({"offset": len(plane.logs[step])}).encode())
        plane.logs[step] = plane.logs[step][:offset] + body
        return self._answer(200, json.dumps({"offset": len(plane.logs[step])}).encode())

    def _events(self, body: dict[str, Any]) -> None:
        plane = self.server.plane
        recorded = plane.events[body["step"]]
        for event in body["events"]:
            named = {event.get(name) for name in ("checkpoint", "transcript", "manifest")} - {None}
            if event["number"] > len(recorded) + 1 or not named <= plane.objects.keys():
                return self._problem(409, "event-gap")
            plane.arrivals.append(("event", body["step"], event["number"]))
            if event["number"] == len(recorded) + 1:
                recorded.append(event)
        return self._answer(200, json.dumps({"acknowledged": len(recorded)}).encode())

    def _problem(self, status: int, slug: str) -> None:
        body = {"type": f"https://foedus.example/problems/{slug}", "title": slug, "status": status}
        self._answer(status, json.dumps(body).encode(), "application/problem+json")

    def _answer(self, status: int, body: bytes, media_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
