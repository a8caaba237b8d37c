"""An engine of files, which several control planes reach.

Attempts are played by the test, from what lies in the folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from control_plane.data_folder import write_private
from control_plane.settings import Settings
from workflows.capabilities import EngineAbilities
from workflows.engine import Activity, Credentials, Observation, WorkflowEngine
from workflows.plan import Plan

FOLDER = "FOEDUS_TEST_ENGINE"


class Submitted(msgspec.Struct, frozen=True):
    """What an engine was handed."""

    plan: Plan
    url: str
    token: str


class SharedEngine:
    """Adapter of ``WorkflowEngine`` over a folder: a file per attempt, and one for its end."""

    abilities = EngineAbilities()

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def submit(self, plan: Plan, credentials: Credentials) -> None:
        path = self._folder / f"{plan.job}.{plan.attempt}"
        submitted = Submitted(plan, credentials.url, credentials.token)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        draft.write_bytes(msgspec.json.encode(submitted))
        try:
            path.hardlink_to(draft)  # made by one of all
        except FileExistsError:
            return
        finally:
            draft.unlink()

    async def observe(self, job: str, attempt: int) -> Observation | None:
        path = self._folder / f"{job}.{attempt}"
        try:
            return msgspec.json.decode(
                path.with_suffix(path.suffix + ".end").read_bytes(), type=Observation
            )
        except FileNotFoundError:
            return Observation(activity=Activity.RUNNING) if path.exists() else None

    async def cancel(self, job: str, attempt: int) -> None:
        end = self._folder / f"{job}.{attempt}.end"
        write_private(end, msgspec.json.encode(Observation(activity=Activity.CANCELLED)))

    async def remove(self, job: str, attempt: int) -> None:
        """What was is kept, for the test to count."""


def shared_engine(settings: Settings, environ: Mapping[str, str]) -> WorkflowEngine:
    return SharedEngine(Path(environ[FOLDER]))
