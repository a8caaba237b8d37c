"""Job reads a second on one server process, and how late an event reaches a hundred watchers.

The server is the product's own process on a folder of its own; only its engine runs nothing, so
that no training takes the processors. The load comes from other processes over keep-alive
connections, through an HTTP client of a few lines: a comfortable one would be the bottleneck.
Beside the reads stands ``/health/live`` on the same server, which is routing, middleware and socket
without a token, a search and a job.

Events are posted as a running attempt posts them, with its token, and watched from another process.
A delay counts from before the event's request is sent until a watcher has the event.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, cast

import uvloop

from benchmarks.report import Figure, run_benchmark
from control_plane.__main__ import main as serve
from control_plane.data_folder import write_private
from control_plane.settings import Settings
from workflows.capabilities import EngineAbilities
from workflows.engine import Activity, Credentials, Observation, WorkflowEngine
from workflows.plan import Plan

REPETITIONS: Final = 5
WARM_S: Final = 0.5
READ_S: Final = 2.0
LOADERS: Final = 2
CONNECTIONS: Final = 16
JOBS: Final = 50
WATCHERS: Final = 100
EVENTS: Final = 100
PAUSE_S: Final = 0.02
PATIENCE_S: Final = 30.0
READS_TARGET: Final = 1_000.0
DELAY_TARGET_MS: Final = 100.0
TOKENS: Final = "attempt-tokens.json"
JOB: Final = {
    "name": "read-me",
    "program": {"kind": "builtin", "name": "digits-mlp"},
    "data": {"kind": "partitioned", "dataset": "digits"},
    "runtime": {"kind": "native"},
}
TICK: Final = re.compile(rb'"reason":"tick (\d+)"')


class IdleEngine:
    """Takes plans and runs nothing; whoever measures plays the attempt."""

    abilities = EngineAbilities()

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokens: dict[str, str] = {}
        self._cancelled: set[str] = set()

    async def submit(self, plan: Plan, credentials: Credentials) -> None:
        """Leave the attempt's token where the benchmark finds it."""
        self._tokens[plan.job] = credentials.token
        write_private(self._folder / TOKENS, json.dumps(self._tokens).encode())

    async def observe(self, job: str, attempt: int) -> Observation | None:
        """It runs from its submission until it is cancelled."""
        if job not in self._tokens:
            return None
        is_over = job in self._cancelled
        return Observation(activity=Activity.CANCELLED if is_over else Activity.RUNNING)

    async def cancel(self, job: str, attempt: int) -> None:
        """From now on it does not run."""
        self._cancelled.add(job)

    async def remove(self, job: str, attempt: int) -> None:
        """Nothing is left."""


def _idle_engine(settings: Settings, environ: Mapping[str, str]) -> WorkflowEngine:
    return IdleEngine(settings.data)


@dataclass(frozen=True)
class Server:
    """A server that was started, and the token of its first administrator."""

    host: str
    port: int
    token: str
    folder: Path
    pid: int

    def call(self, method: str, path: str, body: object = None, token: str = "") -> Any:  # noqa: ANN401
        """The JSON that a request answers with."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        headers = {"Authorization": f"Bearer {token or self.token}"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content.decode()}")
        return json.loads(content)


@contextmanager
def started(**settings: str) -> Iterator[Server]:
    """A fresh server in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, **settings, "FOEDUS_DATA": name, "FOEDUS_PORT": "0"}
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.api", "--serve"],
            env={**environment, "FOEDUS_FIRST_TOKEN_FILE": str(folder / "token")},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdout is not None
            host, _, port = child.stdout.readline().strip().rpartition("/")[2].rpartition(":")
            yield Server(host, int(port), (folder / "token").read_text(), folder, child.pid)
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(PATIENCE_S)


class Reader(asyncio.Protocol):
    """One connection that asks again as soon as it was answered."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        self.requests = requests
        self.answered = 0
        self.buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.requests[0])

    def data_received(self, data: bytes) -> None:
        """Count whole answers, and ask again after each."""
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(self.buffer.decode())
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        if len(body) < length:
            return
        self.buffer = body[length:]
        self.answered += 1
        assert self.transport is not None
        self.transport.write(self.requests[self.answered % len(self.requests)])


async def _read(host: str, port: int, requests: Sequence[bytes]) -> int:
    loop = asyncio.get_running_loop()
    readers = []
    for _ in range(CONNECTIONS):
        _, reader = await loop.create_connection(partial(Reader, requests), host, port)
        readers.append(reader)
    await asyncio.sleep(WARM_S)
    before = sum(reader.answered for reader in readers)
    await asyncio.sleep(READ_S)
    answered = sum(reader.answered for reader in readers) - before
    for reader in readers:
        assert reader.transport is not None
        reader.transport.abort()
    return answered


def _load(pipe: Connection, host: str, port: int, requests: Sequence[bytes]) -> None:
    pipe.send(None)
    pipe.recv()
    pipe.send(uvloop.run(_read(host, port, requests)))


def answers_per_second(server: Server, paths: Sequence[str]) -> float:
    """Answers a second that the server gives to all loaders together."""
    requests = [
        f"GET {path} HTTP/1.1\r\nHost: {server.host}\r\nAuthorization: Bearer {server.token}"
        "\r\n\r\n".encode()
        for path in paths
    ]
    with together(
        LOADERS, partial(_load, host=server.host, port=server.port, requests=requests)
    ) as p:
        answered: int = sum(pipe.recv() for pipe in p)
    return answered / READ_S


@contextmanager
def together(number: int, work: Callable[..., None]) -> Iterator[list[Connection]]:
    """Processes that begin at the same moment, by their pipes."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(number)]
    processes = [context.Process(target=work, args=(theirs,)) for _, theirs in pairs]
    for process, (_, theirs) in zip(processes, pairs, strict=True):
        process.start()
        theirs.close()
    ours = [mine for mine, _ in pairs]
    for pipe in ours:
        pipe.recv()
    for pipe in ours:
        pipe.send(None)
    try:
        yield ours
    finally:
        for process in processes:
            process.join(PATIENCE_S)


async def _watch_one(
    host: str,
    port: int,
    request: bytes,
    arrivals: list[tuple[int, float]],
    open_: asyncio.Queue[None],
) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    await reader.readuntil(b"retry: ")
    open_.put_nowait(None)
    while True:
        line = await reader.readline()
        now = time.monotonic()
        if tick := TICK.search(line):
            arrivals.append((int(tick[1]), now))
            if int(tick[1]) == EVENTS - 1:
                break
    writer.close()


async def _watch_all(pipe: Connection, host: str, port: int, request: bytes) -> list[Any]:
    arrivals: list[tuple[int, float]] = []
    open_: asyncio.Queue[None] = asyncio.Queue()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(WATCHERS):
            tasks.create_task(_watch_one(host, port, request, arrivals, open_))
        for _ in range(WATCHERS):
            await open_.get()
        pipe.send(None)
    return arrivals


def _watch(pipe: Connection, host: str, port: int, request: bytes) -> None:
    pipe.send(None)
    pipe.recv()
    pipe.send(uvloop.run(_watch_all(pipe, host, port, request)))


def event_delays_ms(server: Server) -> list[float]:
    """Delays of every event at every watcher."""
    job = server.call("POST", "/v1/jobs", {**JOB, "name": "watch-me"})["id"]
    token = attempt_token(server, job)
    last = server.call("GET", f"/v1/jobs/{job}/events?limit=200")["items"][-1]["id"]
    request = (
        f"GET /v1/jobs/{job}/events?after={last} HTTP/1.1\r\nHost: {server.host}\r\n"
        f"Accept: text/event-stream\r\nAuthorization: Bearer {server.token}\r\n\r\n"
    ).encode()
    work = partial(_watch, host=server.host, port=server.port, request=request)
    with together(1, work) as (pipe,):
        pipe.recv()
        sent = _post_ticks(server, job, token)
        arrivals = pipe.recv()
    server.call("PATCH", f"/v1/jobs/{job}", {"desired": "cancelled"})
    if len(arrivals) != WATCHERS * EVENTS:
        raise RuntimeError(f"{len(arrivals)} events arrived of {WATCHERS * EVENTS}")
    return [1e3 * (at - sent[number]) for number, at in arrivals]


def attempt_token(server: Server, job: str) -> str:
    """The token of the job's first attempt, once it has one."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        path = server.folder / TOKENS
        tokens = json.loads(path.read_text()) if path.exists() else {}
        if job in tokens:
            return str(tokens[job])
        time.sleep(0.01)
    raise RuntimeError(f"the engine was not handed {job}")


def _post_ticks(server: Server, job: str, token: str) -> list[float]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE_S)
    headers = {"Authorization": f"Bearer {token}"}
    sent = []
    for number in range(EVENTS):
        event = {
            "kind": "waiting",
            "number": number + 1,
            "at": time.time(),
            "reason": f"tick {number}",
        }
        body = json.dumps({"step": "federate", "events": [event]})
        sent.append(time.monotonic())
        connection.request("POST", f"/v1/attempts/{job}/1/events", body, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(answer.read().decode())
        answer.read()
        time.sleep(PAUSE_S)
    connection.close()
    return sent


def seconds_to_ready() -> float:
    """From the start of a process on a folder that is set up already, to its first answer."""
    with tempfile.TemporaryDirectory() as name:
        environment = {**os.environ, "FOEDUS_DATA": name, "FOEDUS_PORT": "0"}
        took = 0.0
        for _ in range(2):
            began = time.monotonic()
            child = subprocess.Popen(
                [sys.executable, "-m", "control_plane"],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                assert child.stdout is not None
                while "listens at" not in (line := child.stdout.readline()):
                    if not line:
                        raise RuntimeError("the server did not start")
                host, _, port = line.strip().rpartition("/")[2].rpartition(":")
                server = Server(host, int(port), "none", Path(name), child.pid)
                while server.call("GET", "/health/ready")["status"] != "ok":
                    time.sleep(0.005)
                took = time.monotonic() - began
            finally:
                child.send_signal(signal.SIGTERM)
                child.wait(PATIENCE_S)
        return took


def measure() -> Sequence[Figure]:
    """Measure reads, their peer, delays and the start."""
    reads, peers, late, middle = [], [], [], []
    with started() as server:
        jobs = [server.call("POST", "/v1/jobs", JOB)["id"] for _ in range(JOBS)]
        for _ in range(REPETITIONS):
            reads.append(answers_per_second(server, [f"/v1/jobs/{job}" for job in jobs]))
            peers.append(answers_per_second(server, ["/health/live"]))
    with started() as server:
        for _ in range(REPETITIONS):
            delays = event_delays_ms(server)
            cuts = quantiles(delays, n=100)
            middle.append(cuts[49])
            late.append(cuts[98])
    ready = [seconds_to_ready() for _ in range(REPETITIONS)]
    return (
        Figure(
            name="job reads, one server process",
            unit="/s",
            values=tuple(reads),
            bound="at least",
            target=READS_TARGET,
        ),
        Figure(name="peer: /health/live, same server", unit="/s", values=tuple(peers)),
        Figure(
            name="reads by peer",
            unit="",
            values=tuple(r / p for r, p in zip(reads, peers, strict=True)),
        ),
        Figure(
            name=f"event delay, 99th percentile of {WATCHERS} watchers",
            unit="ms",
            values=tuple(late),
            target=DELAY_TARGET_MS,
        ),
        Figure(name="event delay, median", unit="ms", values=tuple(middle)),
        Figure(name="start to ready, warm", unit="s", values=tuple(ready), target=2.0),
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        sys.exit(serve(_idle_engine))
    sys.exit(
        run_benchmark(
            "api",
            "API: job reads a second and event delays",
            __doc__ or "",
            ("litestar", "uvicorn", "uvloop", "httptools", "msgspec", "sqlalchemy"),
            measure,
        )
    )
