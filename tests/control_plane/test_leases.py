from __future__ import annotations

import pytest
from sqlalchemy import select, update

from clients.identity import Principal
from control_plane import leases
from control_plane.admission import submit_job
from control_plane.platform import Platform
from control_plane.reconciler import Reconciler
from control_plane.records.tables import JOB, LEASE
from tests.control_plane.conftest import job_spec
from tests.control_plane.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio


async def lease(platform: Platform) -> tuple[str, int]:
    [row] = await platform.database.rows(select(LEASE.c.holder, LEASE.c.fence))
    return row.holder, row.fence


async def set_lease(platform: Platform, **columns: object) -> None:
    async with platform.database.writing() as transaction:
        await transaction.execute(update(LEASE).values(**columns))


async def test_a_new_run_is_taken_at_the_next_look(platform: Platform, admin: Principal) -> None:
    await submit_job(platform, admin, job_spec(), None)
    assert await lease(platform) == ("", 0)

    await Reconciler(platform, ScriptedEngine(), lambda: "here").look()

    assert await lease(platform) == (platform.replica, 1)


async def test_a_run_of_another_replica_is_left_alone_until_its_lease_runs_out(
    platform: Platform, admin: Principal
) -> None:
    await submit_job(platform, admin, job_spec(), None)
    await set_lease(platform, holder="another", fence=7, until=platform.database.clock + 60)
    reconciler = Reconciler(platform, ScriptedEngine(), lambda: "here")

    await reconciler.look()
    [row] = await platform.database.rows(select(JOB.c.phase))
    await set_lease(platform, until=platform.database.clock - 0.001)
    await reconciler.look()

    assert row.phase == "pending"
    assert await lease(platform) == (platform.replica, 8)


async def test_what_is_held_is_taken_by_nobody_and_can_be_given_up(
    platform: Platform, admin: Principal
) -> None:
    job = (await submit_job(platform, admin, job_spec(), None)).id
    database = platform.database
    assert await leases.take(database, "a", [job], 60.0) == {job: 1}

    assert await leases.take(database, "b", [job], 60.0) == {}
    await leases.give_up(database, "a")
    assert await leases.take(database, "b", [job], 60.0) == {job: 2}

    await leases.renew(database, "a", 60.0)
    assert await lease(platform) == ("b", 2)


@pytest.mark.parametrize(("holder", "fence"), [("a", 1), ("b", 1), ("a", 2)])
async def test_a_change_under_an_old_fence_is_refused(
    platform: Platform, admin: Principal, holder: str, fence: int
) -> None:
    job = (await submit_job(platform, admin, job_spec(), None)).id
    await leases.take(platform.database, "a", [job], 0.0)
    await leases.take(platform.database, "b", [job], 60.0)

    async def change() -> None:
        async with platform.database.writing() as transaction:
            await leases.require(transaction, job, holder, fence)

    with pytest.raises(leases.LeaseLost):
        await change()


async def test_a_settled_run_has_no_lease(platform: Platform, admin: Principal) -> None:
    await submit_job(platform, admin, job_spec(), None)
    engine = ScriptedEngine()
    reconciler = Reconciler(platform, engine, lambda: "here")

    for _ in range(100):
        await engine.play(platform)
        await reconciler.look()

    assert await platform.database.rows(select(LEASE.c.job)) == []
