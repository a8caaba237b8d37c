"""Port to whatever runs plans."""

from __future__ import annotations

import enum
from typing import Protocol, runtime_checkable

import msgspec

from sharing.object_store import Digest
from workflows.causes import Cause
from workflows.plan import Plan, StepKind


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
    """

    url: str
    token: str

    def __repr__(self) -> str:
        return f"Credentials(url={self.url!r})"


@runtime_checkable
class WorkflowEngine(Protocol):
    """Port. An attempt is known by job and number, so every call can be repeated.

    Adapters: ``workflows.local_engine`` runs steps as child processes.
    """

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
