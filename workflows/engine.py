"""Port to whatever runs plans."""

from __future__ import annotations

import enum
import re
from typing import Final, Protocol, runtime_checkable

import msgspec

from sharing.object_store import Digest
from workflows.capabilities import EngineAbilities
from workflows.causes import Cause
from workflows.plan import Plan, StepKind

_JOB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class EngineError(Exception):
    """The engine did not do what was asked."""


class PlanRefused(EngineError):
    """The engine will never accept this plan."""


class EngineUnavailable(EngineError):
    """The engine did not answer; the same call may succeed later."""


class Activity(enum.StrEnum):
    """What an attempt does, as its engine sees it."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


class Observation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine says of an attempt.

    Attributes:
        activity: What it does. ``LOST``: it was started, no longer runs and left no record.
        step: Step it is at, while it runs.
        cause: Why, if it failed.
        manifests: Digests of the manifests recorded so far, by step.
    """

    activity: Activity
    step: StepKind | None = None
    cause: Cause | None = None
    manifests: dict[StepKind, Digest] = {}


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """How a step's wrapper reaches the control plane. Never part of a plan.

    Attributes:
        url: Where it listens.
        token: Good for one attempt alone.
        traceparent: Continues the trace that the job was submitted in; empty for none.
    """

    url: str
    token: str
    traceparent: str = ""

    def __repr__(self) -> str:
        return f"Credentials(url={self.url!r})"


@runtime_checkable
class WorkflowEngine(Protocol):
    """Port. An attempt is known by job and number, so every call can be repeated.

    Adapters: ``workflows.local_engine`` runs steps as child processes, ``workflows.argo_engine``
    as pods of an Argo workflow.

    Attributes:
        abilities: What admission may promise on its behalf.
    """

    abilities: EngineAbilities

    async def submit(self, plan: Plan, credentials: Credentials) -> None:
        """Start ``plan`` unless this attempt was started before.

        Raises:
            PlanRefused: It never will.
            EngineUnavailable: It may have started.
        """
        ...

    async def observe(self, job: str, attempt: int) -> Observation | None:
        """State of an attempt; None if it was never started.

        Raises:
            EngineUnavailable: The state is unknown.
        """
        ...

    async def cancel(self, job: str, attempt: int) -> None:
        """Ask an attempt to stop, politely and, after a grace, firmly; returns at once.

        Raises:
            EngineUnavailable: It may still run.
        """
        ...

    async def remove(self, job: str, attempt: int) -> None:
        """Forget an attempt that no longer runs, and wipe its scratch; absent is fine.

        Raises:
            EngineUnavailable: Something of it may be left.
        """
        ...


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """Where people find an attempt by its engine's own tools.

    Attributes:
        namespace: Of the cluster.
        name: Of the workflow.
        url: Of its page; None if the engine has none.
    """

    namespace: str
    name: str
    url: str | None


@runtime_checkable
class Inspectable(Protocol):
    """Port of engines whose attempts people can look at."""

    def locate(self, job: str, attempt: int) -> Location:
        """Where an attempt is, from when it was started until it is removed."""
        ...


def require_safe(plan: Plan) -> None:
    """Refuse names that lead out of the run directory, and steps before what they build on.

    Raises:
        PlanRefused: There is one.
    """
    require_job_id(plan.job)
    done: set[str] = set()
    for step in plan.steps:
        if step.name in done or not done.issuperset(step.after):
            raise PlanRefused(f"step {step.name} comes twice, or before what it takes")
        done.add(step.name)
    outputs = [name for step in plan.steps for name in (*step.outputs, *step.optional_outputs)]
    for name in (*plan.inputs, *outputs):
        if not _FILE_NAME.fullmatch(name):
            raise PlanRefused(f"{name!r} can not be the name of a file")


def require_job_id(job: str) -> None:
    """Refuse what can not name a folder or, in part, an object of an engine.

    Raises:
        PlanRefused: It can not.
    """
    if not _JOB_ID.fullmatch(job):
        raise PlanRefused(f"{job!r} can not be the id of a job")
