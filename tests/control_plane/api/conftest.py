"""One real server for all tests of the API: real records and store, and an engine that only waits.

What an attempt does is played through the routes of attempts, with the token that the engine was
handed. So nothing here starts a process, and everything between HTTP and disk is what ships.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from litestar.testing import TestClient

from control_plane.app import create_app
from control_plane.data_folder import claimed
from control_plane.settings import Settings
from sharing.object_store import StoredObject, digest_of
from tests.control_plane import databases
from workflows.capabilities import EngineAbilities
from workflows.engine import Activity, Credentials, Observation
from workflows.manifest import Manifest
from workflows.plan import Plan

PATIENCE_S = 20.0
JOB: Mapping[str, Any] = {
    "name": "digits",
    "program": {"kind": "builtin", "name": "digits-mlp"},
    "data": {"kind": "partitioned", "dataset": "digits", "sites": 4},
    "runtime": {"kind": "native"},
    "rounds": 2,
}


class WaitingEngine:
    """Keeps what it was asked to run, and says of it what the test lets it say."""

    abilities = EngineAbilities()

    def __init__(self) -> None:
        self.plans: dict[tuple[str, int], tuple[Plan, Credentials]] = {}
        self.seen: dict[tuple[str, int], Observation] = {}

    async def submit(self, plan: Plan, credentials: Credentials) -> None:
        key = (plan.job, plan.attempt)
        self.plans.setdefault(key, (plan, credentials))
        self.seen.setdefault(key, Observation(activity=Activity.RUNNING))

    async def observe(self, job: str, attempt: int) -> Observation | None:
        return self.seen.get((job, attempt))

    async def cancel(self, job: str, attempt: int) -> None:
        self.seen[job, attempt] = Observation(activity=Activity.CANCELLED)

    async def remove(self, job: str, attempt: int) -> None:
        self.plans.pop((job, attempt), None)
        self.seen.pop((job, attempt), None)


@dataclass
class Server:
    """The server under test, and what a developer and a stranger have of it."""

    client: TestClient[Any]
    engine: WaitingEngine
    settings: Settings
    token: str
    tokens: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, *, token: str | None = None, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {token or self.token}", **more.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **more)

    def get(self, path: str, **more: Any) -> Any:
        return self.call("GET", path, **more)

    def submit(self, **changes: Any) -> str:
        answer = self.call("POST", "/v1/jobs", json={**JOB, **changes})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def newcomer(self, organisation: str, *roles: str) -> str:
        """Token of a new user of ``organisation``, which is added if it is new."""
        name = f"{organisation}-{len(self.tokens)}"
        self.call("POST", "/v1/organisations", json={"name": organisation})
        user = self.call(
            "POST",
            "/v1/users",
            json={"name": name, "organisation": organisation, "roles": roles or ("developer",)},
        )
        assert user.status_code == 201, user.text
        made = self.call("POST", "/v1/tokens", json={"label": "t", "user": user.json()["id"]})
        assert made.status_code == 201, made.text
        self.tokens[name] = made.json()["secret"]
        return self.tokens[name]

    def until(self, condition: Callable[[], Any]) -> Any:
        """What ``condition`` returns once that is true; it must become so in time."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.01)
        raise AssertionError(f"not within {PATIENCE_S} s: {condition}")

    def attempt(self, job: str) -> Attempt:
        """The job's first attempt, once the engine was handed it."""
        plan, credentials = self.until(lambda: self.engine.plans.get((job, 1)))
        return Attempt(self, plan, credentials.token)

    def cancel(self, job: str) -> None:
        """Cancel a job and wait until it is closed and cleared away."""
        assert self.call("PATCH", f"/v1/jobs/{job}", json={"desired": "cancelled"}).is_success
        self.until(lambda: self.get(f"/v1/jobs/{job}").json()["phase"] == "cancelled")


@dataclass
class Attempt:
    """What the wrapper of an attempt does, by hand."""

    server: Server
    plan: Plan
    token: str
    numbers: dict[str, int] = field(default_factory=dict)

    @property
    def at(self) -> str:
        return f"/v1/attempts/{self.plan.job}/{self.plan.attempt}"

    def put(self, content: bytes) -> str:
        digest = digest_of(content)
        answer = self.server.call(
            "PUT", f"{self.at}/objects/{digest}", token=self.token, content=content
        )
        assert answer.is_success, answer.text
        return digest

    def tell(self, step: str, *events: Mapping[str, Any]) -> httpx.Response:
        """Post events with the numbers that come next."""
        numbered = []
        for event in events:
            self.numbers[step] = self.numbers.get(step, 0) + 1
            numbered.append({"number": self.numbers[step], "at": time.time(), **event})
        answer: httpx.Response = self.server.call(
            "POST",
            f"{self.at}/events",
            token=self.token,
            json={"step": step, "events": numbered},
        )
        return answer

    def finish_round(self, number: int) -> None:
        checkpoint = self.put(f"checkpoint {number} of {self.plan.job}".encode())
        transcript = self.put(f'{{"round":{number},"job":"{self.plan.job}"}}\n'.encode())
        answer = self.tell(
            "federate",
            {"kind": "round.started", "round": number, "cohort": 4},
            {
                "kind": "round.finished",
                "round": number,
                "rounds": self.plan.spec.rounds,
                "sites": 4,
                "dropped": 0,
                "loss": 1.0 / number,
                "metrics": {"accuracy": 0.5},
                "bytes_up": 10,
                "bytes_down": 10,
                "seconds": 0.1,
                "model": digest_of(b"model"),
                "checkpoint": checkpoint,
                "transcript": transcript,
            },
        )
        assert answer.status_code == 200, answer.text

    def finish_step(self, step: str, outputs: Mapping[str, bytes]) -> None:
        manifest = Manifest(
            job=self.plan.job,
            attempt=self.plan.attempt,
            step=step,  # type: ignore[arg-type]
            plan_digest=self.plan.plan_digest,
            outputs={
                name: StoredObject(self.put(content), len(content))
                for name, content in outputs.items()
            },
        )
        digest = self.put(msgspec.json.encode(manifest))
        answer = self.tell(step, {"kind": "step.succeeded", "manifest": digest})
        assert answer.status_code == 200, answer.text
        seen = self.server.engine.seen[self.plan.job, self.plan.attempt]
        self.server.engine.seen[self.plan.job, self.plan.attempt] = msgspec.structs.replace(
            seen,
            manifests={**seen.manifests, step: digest},
            activity=Activity.SUCCEEDED if step == "publish" else Activity.RUNNING,
        )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("server")
    with databases.new_database() as url:
        yield from serving(folder, url)


def serving(folder: Path, database_url: str | None) -> Iterator[Server]:
    settings = Settings(
        data=folder,
        database_url=database_url,
        max_running=1000,
        reconcile_s=0.02,
        heartbeat_s=0.2,
        program_mb=1,
        dataset_mb=1,
        body_kb=64,
    )
    tokens: list[str] = []
    engine = WaitingEngine()
    app = create_app(
        settings, engine=engine, url=lambda: "http://127.0.0.1:1", announce_token=tokens.append
    )
    with claimed(folder), TestClient(app, raise_server_exceptions=False) as client:
        yield Server(client, engine, settings, tokens[0])


@pytest.fixture(scope="session")
def stranger(server: Server) -> str:
    """Token of a developer and operator of another organisation."""
    return server.newcomer("elsewhere", "developer", "operator", "admin")
