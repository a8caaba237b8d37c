"""A pass over open jobs: nobody in it waits for another, and a long line costs one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from sqlalchemy import update

from clients.identity import Principal
from control_plane import leases
from control_plane.admission import submit_job
from control_plane.jobs import get_job
from control_plane.platform import Platform
from control_plane.quotas import line_of
from control_plane.reconciler import Reconciler
from control_plane.records.database import Database, Transaction
from control_plane.records.tables import JOB, LEASE
from control_plane.refusals import DatabaseUnavailable
from tests.control_plane.conftest import job_spec
from tests.control_plane.scripted_engine import ScriptedEngine
from workflows.engine import Observation

pytestmark = pytest.mark.anyio


class SlowEngine(ScriptedEngine):
    """Does not answer for one job until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = ""
        self.answers = asyncio.Event()
        self.asked: list[str] = []
        self.was_asked = asyncio.Event()

    async def observe(self, job: str, attempt: int) -> Observation | None:
        self.asked.append(job)
        self.was_asked.set()
        if job == self.slow:
            await self.answers.wait()
        return await super().observe(job, attempt)


class CountedDatabase(Database):
    """Counts what is written."""

    def __init__(self, database: Database) -> None:
        self.__dict__.update(database.__dict__)
        self.transactions = 0

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Transaction]:
        self.transactions += 1
        async with super().writing() as transaction:
            yield transaction


class HeldUpDatabase(CountedDatabase):
    """Lets nobody write until it is told to."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.may_write = asyncio.Event()
        self.refuses = False

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Transaction]:
        async with super().writing() as transaction:
            await self.may_write.wait()
            if self.refuses:
                raise DatabaseUnavailable("gone")
            yield transaction


async def submit(platform: Platform, who: Principal) -> str:
    return (await submit_job(platform, who, job_spec(), None)).id


async def waits_for(platform: Platform, who: Principal, job: str) -> str:
    return (await get_job(platform, who, job)).value.waits_for


@asynccontextmanager
async def going_on(reconciler: Reconciler) -> AsyncIterator[None]:
    """Its loop, ended as a server ends it."""
    loop = asyncio.create_task(reconciler.run())
    try:
        yield
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


async def until_succeeded(
    platform: Platform, who: Principal, job: str, engine: ScriptedEngine
) -> None:
    async with asyncio.timeout(30):
        while (await get_job(platform, who, job)).value.phase != "succeeded":
            await engine.play(platform)
            await asyncio.sleep(0.005)


async def test_a_run_that_takes_long_holds_up_no_other(
    platform: Platform, admin: Principal
) -> None:
    engine = SlowEngine()
    slow, quick = await submit(platform, admin), await submit(platform, admin)
    await Reconciler(platform, engine, lambda: "here").look()
    engine.slow = slow
    engine.asked.clear()

    async with going_on(Reconciler(platform, engine, lambda: "here")):
        await until_succeeded(platform, admin, quick, engine)
        times_asked = engine.asked.count(slow)
        meanwhile = (await get_job(platform, admin, slow)).value.phase
        engine.answers.set()
        await until_succeeded(platform, admin, slow, engine)

    assert times_asked == 1
    assert meanwhile != "succeeded"


async def test_leases_that_take_long_to_take_hold_up_no_pass(
    platform: Platform, admin: Principal
) -> None:
    job = await submit(platform, admin)
    database = HeldUpDatabase(platform.database)
    reconciler = Reconciler(replace(platform, database=database), ScriptedEngine(), lambda: "here")

    async with asyncio.timeout(10):
        for _ in range(3):
            await reconciler.look(0.02)
    num_begun = database.transactions
    database.may_write.set()
    async with asyncio.timeout(10):
        while (await get_job(platform, admin, job)).value.phase == "pending":
            await reconciler.look()

    assert num_begun == 1


async def test_what_fails_after_its_pass_is_told_by_the_next(
    platform: Platform, admin: Principal
) -> None:
    await submit(platform, admin)
    database = HeldUpDatabase(platform.database)
    reconciler = Reconciler(replace(platform, database=database), ScriptedEngine(), lambda: "here")
    await reconciler.look(0.02)

    async def look_on() -> None:
        while True:
            await reconciler.look(0.02)

    database.refuses = True
    database.may_write.set()
    with pytest.raises(DatabaseUnavailable, match="gone"):
        await asyncio.wait_for(look_on(), 10)


async def test_nothing_is_moved_on_once_the_loop_has_ended(
    platform: Platform, admin: Principal
) -> None:
    engine = SlowEngine()
    engine.slow = await submit(platform, admin)

    async with going_on(Reconciler(platform, engine, lambda: "here")):
        await engine.was_asked.wait()
        await asyncio.sleep(0.1)  # longer than a look waits
    engine.answers.set()
    await asyncio.sleep(0.05)

    assert engine.started == {}
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("move")]


async def test_a_long_line_is_told_its_places_in_one_transaction(
    platform: Platform, admin: Principal
) -> None:
    jobs = [await submit(platform, admin) for _ in range(12)]
    reconciler = Reconciler(platform, ScriptedEngine(), lambda: "here")
    for _ in range(4):
        await reconciler.look()
    before = [await waits_for(platform, admin, job) for job in jobs[2:]]
    async with platform.database.writing() as transaction:
        await transaction.execute(
            update(JOB).where(JOB.c.id.in_(jobs[2:])).values(waits_for="something else")
        )
    database = CountedDatabase(platform.database)
    counting = replace(platform, database=database)

    await Reconciler(counting, ScriptedEngine(), lambda: "here")._tell_places(
        *await _line(platform, jobs[2:])
    )

    assert before[0] == "a free slot: it is next"
    assert before[9] == "a free slot: 9 jobs are ahead"
    assert [await waits_for(platform, admin, job) for job in jobs[2:]] == before
    assert database.transactions == 1


async def test_places_that_take_long_to_tell_are_not_told_twice(
    platform: Platform, admin: Principal
) -> None:
    jobs = [await submit(platform, admin) for _ in range(6)]
    engine = ScriptedEngine()
    for _ in range(4):
        await Reconciler(platform, engine, lambda: "here").look()
    async with platform.database.writing() as transaction:
        await transaction.execute(
            update(JOB).where(JOB.c.id.in_(jobs[2:])).values(waits_for="something else")
        )
    database = HeldUpDatabase(platform.database)
    reconciler = Reconciler(replace(platform, database=database), engine, lambda: "here")

    async with asyncio.timeout(10):
        for _ in range(3):
            await reconciler.look(0.02)
    num_begun = database.transactions
    database.may_write.set()
    async with asyncio.timeout(10):
        while await waits_for(platform, admin, jobs[-1]) == "something else":
            await reconciler.look()

    assert num_begun == 1


async def test_a_place_is_told_under_the_lease_and_of_what_was_seen_alone(
    platform: Platform, admin: Principal
) -> None:
    jobs = [await submit(platform, admin) for _ in range(6)]
    reconciler = Reconciler(platform, ScriptedEngine(), lambda: "here")
    await reconciler.look()
    rows, fences, places = await _line(platform, jobs[2:])
    told = {job: replace(place, waits_for="told late") for job, place in places.items()}
    async with platform.database.writing() as transaction:
        await transaction.execute(
            update(JOB).where(JOB.c.id == jobs[2]).values(version=JOB.c.version + 1)
        )
        await transaction.execute(
            update(LEASE).where(LEASE.c.job == jobs[3]).values(fence=LEASE.c.fence + 1)
        )
        await transaction.execute(
            update(LEASE).where(LEASE.c.job == jobs[4]).values(holder="another")
        )

    await reconciler._tell_places(rows, fences, told)

    found = [await waits_for(platform, admin, job) == "told late" for job in jobs[2:]]
    assert found == [False, False, False, True]


async def _line(platform, jobs):  # type: ignore[no-untyped-def]
    """Rows, fences and places of those who wait."""
    rows = await platform.database.rows(leases.open_runs(platform.database))
    places = {place.job: place for place in await line_of(platform, rows)}
    fences = leases.held(rows, platform.replica)
    return [row for row in rows if row.id in jobs], fences, places
