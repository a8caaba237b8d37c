"""What every use case works with, as one value."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from control_plane.capabilities import read_capabilities
from control_plane.custody import Custody
from control_plane.event_hub import EventHub
from control_plane.local_identity import LocalIdentity
from control_plane.records.database import Database, open_database
from sharing.object_store import Digest, ObjectStore
from workflows.capabilities import Capabilities
from workflows.environment import environment_digest

SCRATCH: Final = "scratch"
"""Folder of what is being uploaded just now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What whoever runs the platform decides.

    Attributes:
        max_running: Runs that this machine works on at a time; others wait.
        max_attempts: Attempts lost in a row, without a new round, after which a run fails.
        interval_s: Between looks at what is open.
        retry_first_s: Between a lost attempt and the next; doubles while nothing is gained.
        retry_longest_s: Longest such pause.
        max_bundle_bytes: Largest program as uploaded.
        max_dataset_bytes: Largest data set as uploaded.
        max_object_bytes: Largest object that a step may store.
        probe_timeout_s: Longest that trying out an upload may take in all.
        max_streams: Event streams that are open at a time.
        max_user_streams: Of them, those of one user.
    """

    max_running: int = 2
    max_attempts: int = 5
    interval_s: float = 0.2
    retry_first_s: float = 0.5
    retry_longest_s: float = 30.0
    max_bundle_bytes: int = 64 << 20
    max_dataset_bytes: int = 1 << 30
    max_object_bytes: int = 4 << 30
    probe_timeout_s: float = 120.0
    max_streams: int = 2000
    max_user_streams: int = 200


class Bell:
    """Wakes the reconciler."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Something changed that it should look at."""
        self._rung.set()

    async def wait(self, timeout_s: float) -> None:
        """Return when it was rung since the last return, or after ``timeout_s`` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()
        except TimeoutError:
            return
        self._rung.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The control plane without its faces.

    Attributes:
        database: The records.
        hub: Tells watchers of events.
        store: The objects.
        folder: Data folder; logs of runs and scratch lie there.
        environment: Digest of what is installed.
        capabilities: What a job may ask for, uploads aside.
        rules: What whoever runs the platform decided.
        now: The clock, in UTC.
        identity: Who is calling.
        custody: Guards objects while they come and go.
        bell: Wakes the reconciler.
        in_flight: Idempotency keys, by user, of submissions that are being worked on.
    """

    database: Database
    hub: EventHub
    store: ObjectStore
    folder: Path
    environment: Digest
    capabilities: Capabilities
    rules: Rules
    now: Callable[[], datetime]
    identity: LocalIdentity
    custody: Custody = field(default_factory=Custody)
    bell: Bell = field(default_factory=Bell)
    in_flight: set[tuple[str, str]] = field(default_factory=set)


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


@asynccontextmanager
async def open_platform(
    *,
    folder: Path,
    store: ObjectStore,
    rules: Rules | None = None,
    now: Callable[[], datetime] = utc_now,
) -> AsyncIterator[Platform]:
    """The platform over what lies in ``folder``, made or brought up to date if need be.

    The folder must be ours alone: what an earlier process left in scratch is wiped.

    Raises:
        DatabaseUnavailable: The records cannot be opened.
    """
    rules = rules or Rules()
    await asyncio.to_thread(shutil.rmtree, folder / SCRATCH, ignore_errors=True)
    database = await asyncio.to_thread(open_database, folder / "foedus.db")
    try:
        yield Platform(
            database=database,
            hub=EventHub(rules.max_streams, rules.max_user_streams),
            store=store,
            folder=folder,
            environment=await asyncio.to_thread(environment_digest),
            capabilities=await asyncio.to_thread(read_capabilities),
            rules=rules,
            now=now,
            identity=LocalIdentity(database, now),
        )
    finally:
        database.close()
