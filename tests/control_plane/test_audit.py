from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from clients.identity import Principal
from clients.resources import NewOrganisation, Role
from control_plane import accounts, admission, audit, jobs
from control_plane.enrolment import ExternalUser, enrol
from control_plane.platform import Platform
from control_plane.refusals import Forbidden, NameTaken, NotFound
from control_plane.tracing import trace_id
from tests.control_plane.conftest import People, job_spec
from tests.control_plane.databases import sqlite_alone
from workflows.run import Desired

pytestmark = pytest.mark.anyio


async def acts(platform: Platform, who: Principal) -> list[tuple[str, str, str]]:
    entries = (await audit.list_audit(platform, who, 200)).items
    return [(entry.action, entry.object, entry.actor) for entry in reversed(entries)]


def rewrite(folder: Path, *statements: str) -> None:
    """What somebody can do who owns the file: without the triggers that stop everybody else."""
    with sqlite3.connect(folder / "foedus.db") as connection:
        connection.execute("DROP TRIGGER audit_no_update")
        connection.execute("DROP TRIGGER audit_no_delete")
        for statement in statements:
            connection.execute(statement)
    connection.close()


async def test_every_act_is_told_in_order_with_who_did_it(
    platform: Platform, admin: Principal
) -> None:
    trace_id.set("a-trace")
    added = await accounts.add_organisation(platform, admin, NewOrganisation(name="clinic"))
    job = await admission.submit_job(platform, admin, job_spec(), None)
    await jobs.change_desired(platform, admin, job.id, Desired.CANCELLED)
    await jobs.change_desired(platform, admin, job.id, Desired.CANCELLED)

    assert await acts(platform, admin) == [
        ("platform.found", admin.organisation, ""),
        ("organisation.add", added.id, admin.user),
        ("job.submit", job.id, admin.user),
        ("job.cancel", job.id, admin.user),
    ]
    newest = (await audit.list_audit(platform, admin, 1)).items[0]
    assert (newest.number, newest.outcome, newest.trace_id) == (4, "done", "a-trace")


async def test_an_act_that_was_undone_is_not_told(platform: Platform, admin: Principal) -> None:
    before = await acts(platform, admin)

    with pytest.raises(NameTaken):
        await accounts.add_organisation(platform, admin, NewOrganisation(name="home"))

    assert await acts(platform, admin) == before


async def test_no_secret_is_in_the_log(platform: Platform, people: People) -> None:
    await people.add("clinic", "eva", Role.DEVELOPER)

    text = str(await audit.list_audit(platform, people.admin, 200))

    assert "foedus_" not in text
    assert "token.add" in text


@pytest.mark.parametrize("verb", ["UPDATE audit SET actor = 'x'", "DELETE FROM audit"])
async def test_the_database_refuses_to_change_the_log(
    platform: Platform, admin: Principal, verb: str
) -> None:
    with pytest.raises(DBAPIError, match="can only be added to"):
        async with platform.database.writing() as transaction:
            await transaction.execute(text(verb))
    assert (await audit.verify_audit(platform, admin)).is_whole


async def test_a_whole_log_is_found_whole_across_batches(
    platform: Platform, admin: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(5):
        await accounts.add_organisation(platform, admin, NewOrganisation(name=f"clinic {i}"))
    monkeypatch.setattr(audit, "BATCH", 2)

    found = await audit.verify_audit(platform, admin)

    newest = (await audit.list_audit(platform, admin, 1)).items[0]
    assert (found.is_whole, found.rows, found.head) == (True, 6, newest.digest)


@sqlite_alone
@pytest.mark.parametrize(
    ("statement", "broken_at"),
    [
        ("UPDATE audit SET actor = 'somebody else' WHERE number = 2", 2),
        ("UPDATE audit SET at = '2020-01-01 00:00:00.000000' WHERE number = 3", 3),
        ("UPDATE audit SET digest = (SELECT digest FROM audit WHERE number = 1)", 2),
        ("DELETE FROM audit WHERE number = 2", 2),
        ("DELETE FROM audit WHERE number = 4", 4),
        ("UPDATE audit SET number = 9 WHERE number = 4", 4),
    ],
    ids=["an actor", "a time", "digests", "a row taken out", "the last row cut off", "a number"],
)
async def test_tampering_is_found_where_it_begins(
    platform: Platform, admin: Principal, statement: str, broken_at: int
) -> None:
    for name in ("b", "c", "d"):
        await accounts.add_organisation(platform, admin, NewOrganisation(name=name))
    rewrite(platform.folder, statement)

    found = await audit.verify_audit(platform, admin)

    assert (found.is_whole, found.broken_at, found.head) == (False, broken_at, None)


@sqlite_alone
async def test_a_log_that_was_computed_anew_is_found_by_what_was_kept_elsewhere(
    platform: Platform, admin: Principal
) -> None:
    kept: list[Any]
    with structlog.testing.capture_logs() as kept:
        for name in ("b", "c"):
            await accounts.add_organisation(platform, admin, NewOrganisation(name=name))
    rows = [
        dict(row._mapping)
        for row in await platform.database.rows(audit.select(audit.AUDIT).order_by("number"))
    ]
    rows[1]["actor"] = "somebody else"
    digest, changes = audit.FIRST_DIGEST, []
    for row in rows:
        digest = audit.digest_after(digest, row)
        changes.append(
            f"UPDATE audit SET actor = '{row['actor']}', digest = '{digest}' "
            f"WHERE number = {row['number']}"
        )
    rewrite(platform.folder, *changes, f"UPDATE audit_head SET digest = '{digest}'")
    told = next(line for line in kept if line["event"] == "audit.recorded")

    assert (await audit.verify_audit(platform, admin)).is_whole
    found = await audit.verify_audit(platform, admin, (told["number"], told["digest"]))
    assert (found.is_whole, found.broken_at) == (False, 2)
    with pytest.raises(NotFound, match="the log ends at 3"):
        await audit.verify_audit(platform, admin, (4, told["digest"]))


async def test_others_see_their_own_organisation_only_and_need_the_role(
    platform: Platform, people: People
) -> None:
    auditor = await people.add("clinic", "ada", Role.AUDITOR)
    developer = await people.add("clinic", "eva", Role.DEVELOPER)
    job = await admission.submit_job(platform, developer, job_spec(), None)

    assert await acts(platform, auditor) == [("job.submit", job.id, developer.user)]
    with pytest.raises(Forbidden):
        await audit.list_audit(platform, developer, 10)
    with pytest.raises(Forbidden):
        await audit.verify_audit(platform, auditor)


async def test_a_user_of_the_identity_provider_is_told_at_first_and_when_the_roles_change(
    platform: Platform, admin: Principal
) -> None:
    roles = frozenset({Role.DEVELOPER})
    user = ExternalUser(id="user_x", name="eva", organisation="clinic", roles=roles)
    for come in (user, user, replace(user, roles=frozenset({Role.AUDITOR}))):
        known = await enrol(platform.database, platform.now, come)

    assert (await acts(platform, admin))[1:] == [
        ("organisation.add", known.organisation, ""),
        ("user.enrol", "user_x", ""),
        ("user.change", "user_x", ""),
    ]


async def test_a_path_that_no_database_can_hold_does_not_break_the_log(
    platform: Platform, admin: Principal
) -> None:
    await audit.note_refusal(platform, admin, "GET /v1/jobs/{job}", "/v1/jobs/\0")

    assert (await audit.verify_audit(platform, admin)).is_whole
