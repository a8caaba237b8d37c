"""An engine whose attempts play a script against the use cases that real wrappers reach by HTTP.

What it keeps outlives the platform, as other processes do; ``play`` is one request of each attempt
that runs, and one that failed is made again, as a wrapper does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from clients.identity import NotAuthentic
from control_plane.ingest import append_log, attempt_of, get_object, put_object, take_events
from control_plane.platform import Platform
from control_plane.refusals import Fenced
from sharing.object_store import Digest, StoredObject, digest_of
from workflows.canonical import canonical_bytes
from workflows.capabilities import EngineAbilities
from workflows.causes import Cause
from workflows.engine import Activity, Credentials, EngineUnavailable, Observation
from workflows.events import (
    AnyStepEvent,
    RoundFinished,
    RoundStarted,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from workflows.manifest import Manifest
from workflows.plan import Plan, StepKind
from workflows.steps.card import ModelCard, ModelSignature

Request = Callable[[Platform], Awaitable[None]]
AT = 1_800_000_000.0


def checkpoint(round_: int) -> bytes:
    return f"checkpoint {round_}".encode()


def transcript(round_: int) -> bytes:
    return canonical_bytes({"round": round_})


def model_file() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def stored(content: bytes) -> StoredObject:
    return StoredObject(digest_of(content), len(content))


@dataclass(eq=False)
class Wrapper:
    """One attempt that was started."""

    plan: Plan
    credentials: Credentials
    activity: Activity = Activity.RUNNING
    cause: Cause | None = None
    manifests: dict[StepKind, Digest] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    laid: dict[str, bytes] = field(default_factory=dict)
    fails_with: Cause | None = None

    def __post_init__(self) -> None:
        self.requests = [self._lay_inputs]

    async def play(self, platform: Platform) -> None:
        if self.activity is not Activity.RUNNING:
            return
        if not self.requests:
            self.activity = Activity.SUCCEEDED
            return
        try:
            await self.requests[0](platform)
        except (Fenced, NotAuthentic):
            self.activity = Activity.CANCELLED
            return
        self.requests.pop(0)
        if not self.requests and self.fails_with is not None:
            self.activity, self.cause = Activity.FAILED, self.fails_with

    async def _lay_inputs(self, platform: Platform) -> None:
        attempt = await attempt_of(
            platform, self.credentials.token, self.plan.job, self.plan.attempt
        )
        for name, digest in self.plan.inputs.items():
            _, chunks = await get_object(platform, attempt, digest)
            self.laid[name] = b"".join([chunk async for chunk in chunks])
        resumed = int(self.laid.get("checkpoint.safetensors", b"checkpoint 0").split()[1])
        self.requests += self._federate(resumed)
        if self.fails_with is not None:
            self.requests.append(
                self._tell("federate", StepFailed(number=0, at=AT, cause=self.fails_with))
            )
            return
        self.requests += self._finish("federate", self._federated())
        self.requests += [self._tell("translate", StepStarted(number=0, at=AT))]
        self.requests += self._finish("translate", self._translated())
        if any(step.name == "publish" for step in self.plan.steps):
            self.requests += [self._tell("publish", StepStarted(number=0, at=AT))]
            self.requests += self._finish("publish", self._published())

    def _federate(self, resumed: int) -> list[Request]:
        rounds = self.plan.spec.rounds
        requests = [self._log("federate", b"hello\n")]
        requests.append(self._tell("federate", StepStarted(number=0, at=AT)))
        for n in range(resumed + 1, rounds + 1):
            finished = RoundFinished(
                number=0,
                at=AT + n,
                round=n,
                rounds=rounds,
                sites=4,
                dropped=0,
                loss=1.0 / n,
                metrics={"accuracy": 1 - 1.0 / (n + 1)},
                bytes_up=80,
                bytes_down=80,
                seconds=0.5,
                model=digest_of(f"model {n}".encode()),
                checkpoint=digest_of(checkpoint(n)),
                transcript=digest_of(transcript(n)),
            )
            requests.append(
                self._tell("federate", RoundStarted(number=0, at=AT, round=n, cohort=4))
            )
            requests.append(self._put(checkpoint(n)))
            requests.append(self._put(transcript(n)))
            requests.append(self._tell("federate", finished))
        return requests

    def _federated(self) -> dict[str, bytes]:
        rounds = range(1, self.plan.spec.rounds + 1)
        return {
            "model.safetensors": model_file(),
            "transcripts.jsonl": b"".join(transcript(n) + b"\n" for n in rounds),
            "spent.json": b"[]",
        }

    def _translated(self) -> dict[str, bytes]:
        return {"signature.json": b"{}", "model.onnx": b"onnx"}

    def _published(self) -> dict[str, bytes]:
        card = ModelCard(
            name=self.plan.spec.name,
            job=self.plan.job,
            plan_digest=self.plan.plan_digest,
            digest=digest_of(model_file()),
            variants={"safetensors": stored(model_file()), "onnx-fp32": stored(b"onnx")},
            signature=ModelSignature(framework="torch", inputs=()),
            metrics={},
            round=self.plan.spec.rounds,
            rounds=self.plan.spec.rounds,
            transcript_head=digest_of(transcript(self.plan.spec.rounds)),
            classes=("0", "1"),
        )
        return {"model.json": msgspec.json.encode(card)}

    def _finish(self, step: StepKind, outputs: dict[str, bytes]) -> list[Request]:
        manifest = msgspec.json.encode(
            Manifest(
                job=self.plan.job,
                attempt=self.plan.attempt,
                step=step,
                plan_digest=self.plan.plan_digest,
                outputs={name: stored(content) for name, content in outputs.items()},
            )
        )
        succeeded = StepSucceeded(number=0, at=AT, manifest=digest_of(manifest))

        async def note(platform: Platform) -> None:
            self.manifests[step] = digest_of(manifest)

        puts = [self._put(content) for content in (*outputs.values(), manifest)]
        return [*puts, self._tell(step, succeeded), note]

    def _tell(self, step: StepKind, event: AnyStepEvent) -> Request:
        number = self.numbers[step] = self.numbers.get(step, 0) + 1
        numbered = msgspec.structs.replace(event, number=number)

        async def request(platform: Platform) -> None:
            attempt = await attempt_of(
                platform, self.credentials.token, self.plan.job, self.plan.attempt
            )
            assert await take_events(platform, attempt, step, [numbered]) >= number

        return request

    def _put(self, content: bytes) -> Request:
        async def request(platform: Platform) -> None:
            attempt = await attempt_of(
                platform, self.credentials.token, self.plan.job, self.plan.attempt
            )
            await put_object(platform, attempt, digest_of(content), one_chunk(content))

        return request

    def _log(self, step: StepKind, content: bytes) -> Request:
        async def request(platform: Platform) -> None:
            attempt = await attempt_of(
                platform, self.credentials.token, self.plan.job, self.plan.attempt
            )
            assert await append_log(platform, attempt, step, 0, content) == len(content)

        return request


class ScriptedEngine:
    """Adapter of ``WorkflowEngine`` in memory.

    Attributes:
        wrappers: By job and attempt; what was removed is not there.
        started: How often each attempt was started in all.
        lose: Numbers of attempts that vanish before the request of this index.
        fail: Numbers of attempts that fail after their rounds, and why.
        is_away: Whether it answers no call.
    """

    abilities = EngineAbilities()

    def __init__(self) -> None:
        self.wrappers: dict[tuple[str, int], Wrapper] = {}
        self.started: dict[tuple[str, int], int] = {}
        self.lose: dict[int, int] = {}
        self.fail: dict[int, Cause] = {}
        self.is_away = False
        self._played: dict[tuple[str, int], int] = {}

    async def play(self, platform: Platform) -> None:
        """One request of every attempt that runs."""
        for key, wrapper in list(self.wrappers.items()):
            if self._played.get(key, 0) == self.lose.get(key[1], -1):
                wrapper.activity = Activity.LOST
            running = wrapper.activity is Activity.RUNNING
            await wrapper.play(platform)
            self._played[key] = self._played.get(key, 0) + running

    async def submit(self, plan: Plan, credentials: Credentials) -> None:
        self._require_here()
        key = (plan.job, plan.attempt)
        if key not in self.wrappers:
            cause = self.fail.get(plan.attempt)
            self.wrappers[key] = Wrapper(plan, credentials, fails_with=cause)
            self.started[key] = self.started.get(key, 0) + 1

    async def observe(self, job: str, attempt: int) -> Observation | None:
        self._require_here()
        wrapper = self.wrappers.get((job, attempt))
        if wrapper is None:
            return None
        return Observation(
            activity=wrapper.activity, cause=wrapper.cause, manifests=dict(wrapper.manifests)
        )

    async def cancel(self, job: str, attempt: int) -> None:
        self._require_here()
        wrapper = self.wrappers[job, attempt]
        if wrapper.activity is Activity.RUNNING:
            wrapper.activity = Activity.CANCELLED

    async def remove(self, job: str, attempt: int) -> None:
        self._require_here()
        wrapper = self.wrappers.get((job, attempt))
        assert wrapper is None or wrapper.activity is not Activity.RUNNING
        self.wrappers.pop((job, attempt), None)

    def _require_here(self) -> None:
        if self.is_away:
            raise EngineUnavailable("away")


async def one_chunk(content: bytes) -> AsyncIterator[bytes]:
    yield content
