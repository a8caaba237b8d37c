"""How late events reach a thousand watchers of one server process, and what a watcher costs.

The server is the product's own process with its default bounds on event streams; only its engine
runs nothing, so that no training takes the processors. Twenty jobs run, each does a round a second,
and each round is what the wrapper of a real one sends: the checkpoint, the transcript and two
events. A thousand watchers, two hundred of each of five users, sit in another process: fifty at
each job, or all at one of them. The records are in PostgreSQL (the lab's), and then in SQLite.

A delay counts from before an event's request is sent until the watcher's process has read it from
the socket, so it includes that the event is committed. No other control plane of federated learning
streams events to many, so there is no peer; beneath stands the same uvicorn with an application
that does nothing else (``benchmarks.sse_peer``), told the same at the same pace.

Memory is the growth of the server's anonymous memory from before the streams are opened until all
of them were told something. A user's two hundred and first stream must answer 429.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles
from typing import Final, cast

import httpx
import uvloop

from benchmarks import lab
from benchmarks.api import JOB, PATIENCE_S, Server, attempt_token, started, together
from benchmarks.report import Figure, run_benchmark
from tests.control_plane.databases import new_database

REPETITIONS: Final = 5
WATCHERS: Final = 1_000
USERS: Final = 5
JOBS: Final = 20
ROUNDS: Final = 4
ROUND_S: Final = 1.0
DELAY_TARGET_MS: Final = 1_000.0
FROM_NOW: Final = 10**9
"""After which event to begin: later than any."""
CHECKPOINT: Final = os.urandom(4096)
TRANSCRIPT: Final = os.urandom(1024)
TOLD: Final = re.compile(rb'"kind":"(round\.\w+)".*?"round":(\d+)')

Watch = tuple[int, bytes]
"""Which job a watcher is to be told of, and the request that it sends."""
Name = tuple[int, str, int]
"""An event: its job, its kind and its round."""


class Watcher(asyncio.Protocol):
    """One connection that notes when it read which event."""

    def __init__(self, watch: Watch, arrivals: list[tuple[Name, float]], opened: list[int]) -> None:
        self._job, self._request = watch
        self._arrivals = arrivals
        self._opened = opened
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note what came."""
        now = time.monotonic()
        *whole, self._buffer = (self._buffer + data).split(b"\n\n")
        for block in whole:
            if block.endswith(b"retry: 500"):
                self._opened.append(self._job)
            elif told := TOLD.search(block):
                self._arrivals.append(((self._job, told[1].decode(), int(told[2])), now))


def _watch(pipe: Connection, host: str, port: int, watches: Sequence[Watch]) -> None:
    pipe.send(None)
    pipe.recv()
    uvloop.run(_watch_all(pipe, host, port, watches))


async def _watch_all(pipe: Connection, host: str, port: int, watches: Sequence[Watch]) -> None:
    """Open all streams, say how long that took, and tell what came when asked to end."""
    loop = asyncio.get_running_loop()
    arrivals: list[tuple[Name, float]] = []
    opened: list[int] = []
    began = time.monotonic()
    pairs = [
        await loop.create_connection(partial(Watcher, watch, arrivals, opened), host, port)
        for watch in watches
    ]
    while len(opened) < len(watches):
        await asyncio.sleep(0.01)
        if time.monotonic() > began + PATIENCE_S:
            raise RuntimeError(f"{len(opened)} of {len(watches)} streams are open")
    pipe.send(time.monotonic() - began)
    await asyncio.to_thread(pipe.recv)
    for transport, _ in pairs:
        transport.abort()
    pipe.send(arrivals)


Tell = Callable[[httpx.AsyncClient, int, int, dict[Name, float]], Awaitable[None]]
"""Does what a job sends in a round, and notes when it began to send each event."""


@dataclass
class Attempts:
    """What the wrappers of running jobs do.

    Attributes:
        jobs: Their ids and their attempts' tokens.
        numbers: Events that each has told.
    """

    jobs: Sequence[tuple[str, str]]
    numbers: list[int] = field(default_factory=lambda: [0] * JOBS)

    async def tell(
        self, client: httpx.AsyncClient, job: int, round_: int, sent: dict[Name, float]
    ) -> None:
        """One round of a job."""
        name, token = self.jobs[job]
        at, headers = f"/v1/attempts/{name}/1", {"Authorization": f"Bearer {token}"}

        async def event(kind: str, **fields: object) -> None:
            self.numbers[job] += 1
            told = {"kind": kind, "number": self.numbers[job], "at": time.time(), **fields}
            sent[job, kind, round_] = time.monotonic()
            body = {"step": "federate", "events": [told]}
            answer = await client.post(f"{at}/events", json=body, headers=headers)
            answer.raise_for_status()

        digests = []
        await event("round.started", round=round_, cohort=10)
        for content in (CHECKPOINT, TRANSCRIPT):
            own = content + f"{job}.{round_}".encode()
            digests.append(f"sha256:{hashlib.sha256(own).hexdigest()}")
            answer = await client.put(f"{at}/objects/{digests[-1]}", content=own, headers=headers)
            answer.raise_for_status()
        await event("round.finished", **_finished(round_, *digests))


def _finished(round_: int, checkpoint: str, transcript: str) -> dict[str, object]:
    return {
        "round": round_,
        "rounds": 1000,
        "sites": 10,
        "dropped": 0,
        "loss": 0.25,
        "metrics": {"accuracy": 0.96875},
        "bytes_up": 353_000,
        "bytes_down": 353_000,
        "seconds": 0.875,
        "model": checkpoint,
        "checkpoint": checkpoint,
        "transcript": transcript,
    }


async def tell_peer(
    client: httpx.AsyncClient, job: int, round_: int, sent: dict[Name, float]
) -> None:
    """The two events of a round alone, as long as the server's."""
    fields = {"round.started": {"round": round_, "cohort": 10}}
    digest = "sha256:" + "0" * 64
    fields["round.finished"] = cast("dict[str, int]", _finished(round_, digest, digest))
    for kind, told in fields.items():
        body = f'{{"id":1,"kind":"{kind}","attempt":1,"fields":{json.dumps(told)}}}'
        sent[job, kind, round_] = time.monotonic()
        answer = await client.post(f"/tell/{job}", content=body.replace('": ', '":'))
        answer.raise_for_status()


async def _do_rounds(url: str, tell: Tell, first: int) -> dict[Name, float]:
    """Let every job do its rounds, evenly over each second; when each event was sent."""
    sent: dict[Name, float] = {}
    began = time.monotonic()
    limits = httpx.Limits(max_connections=2 * JOBS, max_keepalive_connections=2 * JOBS)

    async def one(client: httpx.AsyncClient, job: int) -> None:
        for number in range(ROUNDS):
            due = began + (number + job / JOBS) * ROUND_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await tell(client, job, first + number, sent)

    async with (
        httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits, trust_env=False) as c,
        asyncio.TaskGroup() as tasks,
    ):
        for job in range(JOBS):
            tasks.create_task(one(c, job))
    return sent


@dataclass(frozen=True)
class Told:
    """One thousand watchers, told of some rounds.

    Attributes:
        open_s: Seconds until all streams were open.
        delays_ms: Of every event at every watcher.
        growth_kb: Of the server's memory, for each watcher.
    """

    open_s: float
    delays_ms: Sequence[float]
    growth_kb: float

    def percentile_ms(self, which: int) -> float:
        """Delay that so many of a hundred do not exceed."""
        return quantiles(self.delays_ms, n=100)[which - 1]


def tell(
    host: str, port: int, pid: int, watches: Sequence[Watch], attempts: Tell, first: int
) -> Told:
    """Open the streams, let the jobs do rounds, and see that every event came to every watcher."""
    before = _anonymous_kb(pid)
    with together(1, partial(_watch, host=host, port=port, watches=watches)) as (pipe,):
        open_s = pipe.recv()
        sent = uvloop.run(_do_rounds(f"http://{host}:{port}", attempts, first))
        time.sleep(2 * DELAY_TARGET_MS / 1e3)
        growth = _anonymous_kb(pid) - before
        pipe.send(None)
        arrivals = pipe.recv()
    expected = sum(2 * ROUNDS for _ in watches)
    if len(arrivals) != expected:
        raise RuntimeError(f"{len(arrivals)} events arrived of {expected}")
    return Told(open_s, [1e3 * (at - sent[name]) for name, at in arrivals], growth / len(watches))


def _anonymous_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise RuntimeError("this system does not tell anonymous memory")


def _users(server: Server) -> list[str]:
    """Tokens of as many users of the first organisation as are needed."""
    who = server.call("GET", "/v1/whoami")
    tokens = []
    for number in range(USERS):
        body = {"name": f"watcher-{number}", "organisation": who["organisation"]}
        user = server.call("POST", "/v1/users", body)
        tokens.append(server.call("POST", "/v1/tokens", {"user": user["id"]})["secret"])
    return tokens


def _request(server: Server, job: str, token: str) -> bytes:
    return (
        f"GET /v1/jobs/{job}/events?after={FROM_NOW} HTTP/1.1\r\nHost: {server.host}\r\n"
        f"Accept: text/event-stream\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode()


def on_platform(**settings: str) -> tuple[list[Told], list[Told]]:
    """Watchers spread over the jobs, and all at one, in turn; the product's own server."""
    spread: list[Told] = []
    together_: list[Told] = []
    settings |= {"FOEDUS_MAX_RUNNING": str(JOBS), "FOEDUS_LOG_LEVEL": "warning"}
    with started(**settings) as server:
        users = _users(server)
        spec = {**JOB, "rounds": 1000}
        ids = [server.call("POST", "/v1/jobs", spec)["id"] for _ in range(JOBS)]
        attempts = Attempts([(job, attempt_token(server, job)) for job in ids])
        for repetition in range(2 * REPETITIONS):
            jobs = [i % JOBS if repetition % 2 == 0 else 0 for i in range(WATCHERS)]
            watches = [
                (job, _request(server, ids[job], users[i % USERS])) for i, job in enumerate(jobs)
            ]
            first = 1 + repetition * ROUNDS
            told = tell(server.host, server.port, server.pid, watches, attempts.tell, first)
            (together_ if repetition % 2 else spread).append(told)
        _require_bound(server, ids[0], users[0])
    return spread, together_


def _require_bound(server: Server, job: str, token: str) -> None:
    """See that a user gets as many streams as are promised, and a plain no for one more."""
    headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
    connections = []
    for number in range(WATCHERS // USERS + 1):
        connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE_S)
        connection.request("GET", f"/v1/jobs/{job}/events", headers=headers)
        connections.append(connection)
        status = connection.getresponse().status
        if status != (200 if number < WATCHERS // USERS else 429):
            raise RuntimeError(f"stream {number + 1} of a user answers {status}")
    for connection in connections:
        connection.close()


@contextmanager
def peer() -> Iterator[tuple[str, int, int]]:
    """The floor: host, port and process."""
    command = [sys.executable, "-m", "benchmarks.sse_peer"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        host, _, port = child.stdout.readline().strip().rpartition("/")[2].rpartition(":")
        yield host, int(port), child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(PATIENCE_S)


def on_peer() -> tuple[list[Told], list[Told]]:
    """The same with the floor."""
    spread: list[Told] = []
    together_: list[Told] = []
    with peer() as (host, port, pid):
        for repetition in range(2 * REPETITIONS):
            jobs = [i % JOBS if repetition % 2 == 0 else 0 for i in range(WATCHERS)]
            watches = [
                (job, f"GET /watch/{job} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()) for job in jobs
            ]
            told = tell(host, port, pid, watches, tell_peer, 1 + repetition * ROUNDS)
            (together_ if repetition % 2 else spread).append(told)
    return spread, together_


def measure() -> Sequence[Figure]:
    """All figures."""
    with new_database(lab.postgres()) as url:
        assert url is not None
        on_postgres = on_platform(FOEDUS_DATABASE_URL=url)
    named = {
        "PostgreSQL": on_postgres,
        "SQLite": on_platform(),
        "floor": on_peer(),
    }
    return [figure for name, told in named.items() for figure in _figures(name, *told)]


def _figures(name: str, spread: Sequence[Told], together_: Sequence[Told]) -> Iterator[Figure]:
    target = None if name == "floor" else DELAY_TARGET_MS
    shapes: Mapping[str, Sequence[Told]] = {
        f"{WATCHERS // JOBS} at each of {JOBS} jobs": spread,
        "all at one job": together_,
    }
    for shape, told in shapes.items():
        late = tuple(one.percentile_ms(99) for one in told)
        middle = tuple(one.percentile_ms(50) for one in told)
        where = f"{name}, {shape}: delay,"
        yield Figure(name=f"{where} 99th percentile", unit="ms", values=late, target=target)
        yield Figure(name=f"{where} median", unit="ms", values=middle)
    # Later repetitions find the memory of earlier ones.
    growth = (spread[0].growth_kb,)
    opening = tuple(one.open_s for one in (*spread, *together_))
    yield Figure(name=f"{name}: memory of a watcher", unit="kB", values=growth)
    yield Figure(name=f"{name}: {WATCHERS} streams opened", unit="s", values=opening)


if __name__ == "__main__":
    sys.exit(
        run_benchmark(
            "watchers",
            f"{WATCHERS} watchers on one server process",
            __doc__ or "",
            ("litestar", "uvicorn", "uvloop", "httptools", "msgspec", "sqlalchemy", "psycopg"),
            measure,
        )
    )
