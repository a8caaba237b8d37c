"""What every use case works with, as one value."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from clients.identity import IdentityProvider
from clients.resources import Quota
from control_plane.bell import Bell
from control_plane.capabilities import read_capabilities
from control_plane.custody import Custody
from control_plane.event_hub import EventHub
from control_plane.ids import new_id
from control_plane.keyring import KeyRing
from control_plane.local_identity import LocalIdentity
from control_plane.notices import Ears, follow
from control_plane.records.database import Database
from control_plane.records.sqlite import open_sqlite
from control_plane.tracing import Span
from sharing.object_store import Digest, ObjectStore
from workflows.capabilities import Capabilities, EngineAbilities
from workflows.engine import Location
from workflows.environment import environment_digest

SCRATCH: Final = "scratch"
"""Folder of what is being uploaded just now."""

NO_QUOTA: Final = Quota()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What whoever runs the platform decides.

    Attributes:
        max_running: Runs that are worked on at a time, by all replicas together; others wait.
        max_attempts: Attempts lost in a row, without a new round, after which a run fails.
        interval_s: Between looks at what is open.
        retry_first_s: Between a lost attempt and the next; doubles while nothing is gained.
        retry_longest_s: Longest such pause.
        lease_s: After which another replica takes on the runs of one that is silent.
        max_bundle_bytes: Largest program as uploaded.
        max_dataset_bytes: Largest data set as uploaded.
        max_object_bytes: Largest object that a step may store.
        probe_timeout_s: Longest that trying out an upload may take in all.
        max_streams: Event streams that are open at a time.
        max_user_streams: Of them, those of one user.
        quota: What an organisation may have that has no quota of its own.
        lock_proofs: How long the store keeps what proves a run; None leaves it to the records.
        retain_checkpoints: After a job's end, then they are wiped; None for ever.
        retain_logs: Likewise.
    """

    max_running: int = 2
    max_attempts: int = 5
    interval_s: float = 0.2
    retry_first_s: float = 0.5
    retry_longest_s: float = 30.0
    lease_s: float = 10.0
    max_bundle_bytes: int = 64 << 20
    max_dataset_bytes: int = 1 << 30
    max_object_bytes: int = 4 << 30
    probe_timeout_s: float = 120.0
    max_streams: int = 2000
    max_user_streams: int = 200
    quota: Quota = NO_QUOTA
    lock_proofs: timedelta | None = None
    retain_checkpoints: timedelta | None = None
    retain_logs: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The control plane without its faces.

    Attributes:
        database: The records.
        hub: Tells watchers of events.
        store: The objects.
        folder: Data folder; scratch lies there.
        environment: Digest of what is installed.
        capabilities: What a job may ask for, uploads aside.
        rules: What whoever runs the platform decided.
        now: The clock, in UTC.
        identity: Who is calling.
        send_spans: Takes the spans of a run that has ended; None if nobody wants them.
        locate: Where people look at an attempt; None where the engine has no place for that.
        keys: What the platform seals with.
        custody: Guards objects while they come and go.
        bell: Wakes the reconciler.
        in_flight: Idempotency keys, by user, of submissions that are being worked on here. Another
            replica that works on the same finds the key on record when it comes to commit.
        replica: Which of the processes that share the records this is.
    """

    database: Database
    hub: EventHub
    store: ObjectStore
    folder: Path
    environment: Digest
    capabilities: Capabilities
    rules: Rules
    now: Callable[[], datetime]
    identity: IdentityProvider
    keys: KeyRing
    custody: Custody
    replica: str
    bell: Bell
    send_spans: Callable[[Sequence[Span]], None] | None = None
    locate: Callable[[str, int], Location] | None = None
    in_flight: set[tuple[str, str]] = field(default_factory=set)


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


MakeIdentity = Callable[
    [Database, Callable[[], datetime]], AbstractAsyncContextManager[IdentityProvider]
]


@asynccontextmanager
async def local_identity(
    database: Database, now: Callable[[], datetime]
) -> AsyncIterator[IdentityProvider]:
    """Users and tokens of our own."""
    yield LocalIdentity(database, now)


@asynccontextmanager
async def open_platform(
    *,
    folder: Path,
    store: ObjectStore,
    rules: Rules | None = None,
    engine: EngineAbilities | None = None,
    now: Callable[[], datetime] = utc_now,
    database_url: str | None = None,
    identity: MakeIdentity = local_identity,
    send_spans: Callable[[Sequence[Span]], None] | None = None,
    locate: Callable[[str, int], Location] | None = None,
) -> AsyncIterator[Platform]:
    """The platform over what lies in ``folder``, made or brought up to date if need be.

    The folder must be ours alone: what an earlier process left in scratch is wiped. With a
    ``database_url`` the records are in that PostgreSQL, for all replicas together; the store must
    be one for all of them as well.

    Args:
        folder: Of everything that lasts.
        store: The objects.
        rules: What whoever runs the platform decided.
        engine: What the engine can do; None for nothing beyond this machine.
        now: The clock, in UTC.
        database_url: Of PostgreSQL; None for SQLite in the folder.
        identity: Makes who says who is calling.
        send_spans: Takes the spans of a run that has ended; None if nobody wants them.
        locate: Where people look at an attempt; None where the engine has no place for that.

    Raises:
        DatabaseUnavailable: The records cannot be opened.
    """
    rules = rules or Rules()
    await asyncio.to_thread(shutil.rmtree, folder / SCRATCH, ignore_errors=True)
    database = await asyncio.to_thread(open_records, folder, database_url)
    hub = EventHub(rules.max_streams, rules.max_user_streams)
    bell = Bell()
    capabilities = await asyncio.to_thread(read_capabilities)
    if engine is not None:
        capabilities = msgspec.structs.replace(capabilities, engine=engine)
    keys = KeyRing(database, now)
    try:
        await keys.load()
        async with (
            identity(database, now) as provider,
            _hearing(Ears(database, hub, bell.ring, provider, keys)),
        ):
            yield Platform(
                database=database,
                hub=hub,
                store=store,
                folder=folder,
                environment=await asyncio.to_thread(environment_digest),
                capabilities=capabilities,
                rules=rules,
                now=now,
                identity=provider,
                send_spans=send_spans,
                locate=locate,
                keys=keys,
                custody=Custody(database),
                bell=bell,
                # One process holds the folder, so who opens its records is who did so before.
                replica=new_id("replica", now()) if database.sharing else "the only one",
            )
    finally:
        database.close()


@asynccontextmanager
async def _hearing(ears: Ears) -> AsyncIterator[None]:
    """Hear what other replicas tell."""
    following = asyncio.create_task(follow(ears), name="notices")
    try:
        yield
    finally:
        following.cancel()
        await asyncio.wait((following,))


def open_records(folder: Path, url: str | None) -> Database:
    """The records, made or brought up to date if need be; blocks.

    Args:
        folder: Of everything that lasts.
        url: Of PostgreSQL; None for SQLite in the folder.

    Raises:
        DatabaseUnavailable: They cannot be opened.
    """
    if url is None:
        return open_sqlite(folder / "foedus.db")
    from control_plane.records.postgres import open_postgres

    return open_postgres(url)
