from __future__ import annotations

from dataclasses import replace

import pytest

from clients.identity import Principal
from clients.resources import Quota, QuotaChange, Role
from control_plane import audit, quotas
from control_plane.admission import submit_job
from control_plane.jobs import change_desired, get_job
from control_plane.platform import Platform
from control_plane.reconciler import Reconciler
from control_plane.records.tables import PROGRAM
from control_plane.refusals import Forbidden, NotFound, QuotaExhausted
from sharing.object_store import digest_of
from tests.control_plane.conftest import People, job_spec
from tests.control_plane.test_decisions import Desired
from workflows.engine import Activity, Credentials, Observation
from workflows.job import Resources, Runtime
from workflows.plan import Plan

pytestmark = pytest.mark.anyio


class Busy:
    """Runs whatever it is given, for ever."""

    async def submit(self, plan: Plan, credentials: Credentials) -> None: ...

    async def observe(self, job: str, attempt: int) -> Observation | None:
        return Observation(activity=Activity.RUNNING)

    async def cancel(self, job: str, attempt: int) -> None: ...

    async def remove(self, job: str, attempt: int) -> None: ...


async def set_quota(platform: Platform, admin: Principal, **bounds: int | None) -> None:
    await quotas.change_quota(platform, admin, "home", QuotaChange(**bounds))


async def test_one_job_more_than_may_be_open_is_refused_until_one_ends(
    platform: Platform, admin: Principal
) -> None:
    await set_quota(platform, admin, open_jobs=2)
    first = await submit_job(platform, admin, job_spec(), None)
    await submit_job(platform, admin, job_spec(), None)

    with pytest.raises(QuotaExhausted, match="has 2 open jobs, of 2"):
        await submit_job(platform, admin, job_spec(), None)

    await change_desired(platform, admin, first.id, Desired.CANCELLED)
    await Reconciler(platform, Busy(), lambda: "").look()
    await submit_job(platform, admin, job_spec(), None)


async def test_a_job_that_asks_for_more_workers_than_there_may_ever_be_is_refused(
    platform: Platform, admin: Principal
) -> None:
    await set_quota(platform, admin, workers=2)

    with pytest.raises(QuotaExhausted, match="asks for 3 workers, of 2"):
        await submit_job(platform, admin, job_spec(runtime=Runtime(kind="native", workers=3)), None)


async def test_an_object_counts_once_for_storage(platform: Platform, admin: Principal) -> None:
    await set_quota(platform, admin, storage_bytes=150)
    row = {
        "organisation": admin.organisation,
        "digest": digest_of(b"x"),
        "name": "x",
        "size_bytes": 100,
        "facts": "{}",
        "created_at": platform.now(),
    }
    async with platform.database.writing() as transaction:
        await transaction.execute(PROGRAM.insert(), row)

    async with platform.database.writing() as transaction:
        await quotas.require_room(transaction, platform, admin.organisation, size_bytes=50)
        with pytest.raises(QuotaExhausted, match="has 100 bytes of storage, of 150"):
            await quotas.require_room(transaction, platform, admin.organisation, size_bytes=51)


async def test_the_platforms_settings_hold_where_an_organisation_has_nothing_of_its_own(
    platform: Platform, admin: Principal
) -> None:
    rules = replace(platform.rules, quota=Quota(running=5, open_jobs=7))
    platform = replace(platform, rules=rules)
    await set_quota(platform, admin, running=2)

    assert (await quotas.own_use(platform, admin)).quota == Quota(running=2, open_jobs=7)
    await set_quota(platform, admin, running=None)
    assert (await quotas.own_use(platform, admin)).quota == Quota(running=5, open_jobs=7)


async def test_setting_a_quota_is_audited_and_for_the_host_alone(
    platform: Platform, people: People
) -> None:
    other = await people.add("clinic", "ada", Role.ADMIN)

    await quotas.change_quota(platform, people.admin, "clinic", QuotaChange(running=4))
    entry = (await audit.list_audit(platform, people.admin, 1)).items[0]

    assert (entry.action, entry.object) == ("quota.set", other.organisation)
    assert entry.detail == {"running": 4}
    with pytest.raises(Forbidden):
        await quotas.change_quota(platform, other, "clinic", QuotaChange(running=9))
    with pytest.raises(NotFound):
        await quotas.change_quota(platform, people.admin, "nobody", QuotaChange(running=9))


async def test_runs_start_by_turns_within_quotas_and_say_why_they_wait(
    platform: Platform, people: People
) -> None:
    clinic = await people.add("clinic", "eva", Role.DEVELOPER)
    await set_quota(platform, people.admin, running=1)
    first = await submit_job(platform, people.admin, job_spec(), None)
    second = await submit_job(
        platform, people.admin, job_spec(resources=Resources(priority="high")), None
    )
    theirs = await submit_job(platform, clinic, job_spec(), None)
    reconciler = Reconciler(platform, Busy(), lambda: "")

    await reconciler.look()
    await reconciler.look()

    async def waits_for(who: Principal, job: str) -> str:
        found = (await get_job(platform, who, job)).value
        return f"{found.phase}: {found.waits_for}"

    assert (await waits_for(people.admin, first.id)) == (
        "pending: place 1; your organisation runs 1 of 1 jobs"
    )
    assert (await waits_for(people.admin, second.id)).startswith("provisioning")
    assert (await waits_for(clinic, theirs.id)).startswith("provisioning")
