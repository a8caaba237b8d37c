"""From POST to publish as one trace, at a collector that speaks the real protocol."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from litestar.testing import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from control_plane.app import create_app
from control_plane.data_folder import claimed
from control_plane.settings import Settings
from tests.control_plane.api.conftest import JOB, Server, WaitingEngine

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


class Collector:
    """Keeps what is exported to it."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                assert self.path == "/v1/traces"
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


def run_and_fail(server: Server) -> str:
    """A job of one finished round whose attempt is then cancelled."""
    header = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    job = str(server.call("POST", "/v1/jobs", json=JOB, headers=header).json()["id"])
    attempt = server.attempt(job)
    attempt.tell("federate", {"kind": "step.started"})
    attempt.finish_round(1)
    server.cancel(job)
    server.until(lambda: server.call("DELETE", f"/v1/jobs/{job}").status_code == 204)
    return job


def test_a_run_is_one_trace_below_the_callers_span(collector: Collector, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, reconcile_s=0.02, otlp_endpoint=collector.url)
    tokens: list[str] = []
    engine = WaitingEngine()
    app = create_app(
        settings, engine=engine, url=lambda: "http://127.0.0.1:1", announce_token=tokens.append
    )
    with claimed(tmp_path), TestClient(app) as client:
        server = Server(client, engine, settings, tokens[0])
        handed: list[str] = []
        submit = engine.submit

        async def keep(plan: Any, credentials: Any) -> None:
            handed.append(credentials.traceparent)
            await submit(plan, credentials)

        engine.submit = keep  # type: ignore[method-assign]
        job = run_and_fail(server)
        client.get("/health/live")

    ours = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    by_id = {span.span_id.hex(): span for span in ours}

    def way_up(name: str) -> list[str]:
        span = next(span for span in ours if span.name == name)
        way = [span.name]
        while (parent := by_id.get(span.parent_span_id.hex())) is not None:
            span = parent
            way.append(span.name)
        assert span.parent_span_id.hex() == CALLER
        return way

    assert way_up("round 1") == ["round 1", "federate", "attempt 1", "run", "POST /v1/jobs"]
    assert way_up("admission") == ["admission", "run", "POST /v1/jobs"]
    assert handed[0].split("-")[1] == TRACE
    assert handed[0].split("-")[2] in by_id
    run = next(span for span in ours if span.name == "run")
    assert {(a.key, a.value.string_value) for a in run.attributes} == {("foedus.job", job)}
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in ours)
    assert not [span for span in collector.spans if "/health" in span.name]


def test_a_collector_that_is_away_holds_nobody_up(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, reconcile_s=0.02, otlp_endpoint="http://127.0.0.1:9")
    tokens: list[str] = []
    engine = WaitingEngine()
    app = create_app(settings, engine=engine, url=lambda: "", announce_token=tokens.append)

    with claimed(tmp_path), TestClient(app) as client:
        server = Server(client, engine, settings, tokens[0])
        job = server.submit()
        server.cancel(job)
