"""The records in a real PostgreSQL: their tables, their faults, and several replicas over them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, insert, select, text, update
from sqlmodel import SQLModel

from clients.identity import NotAuthentic, Principal
from clients.resources import NewOrganisation, NewToken, QuotaChange
from control_plane import leases
from control_plane.accounts import add_organisation, add_token, bootstrap, revoke_token
from control_plane.admission import submit_job
from control_plane.audit import verify_audit
from control_plane.jobs import watch
from control_plane.journal import Fact, load, record
from control_plane.keyring import CURSORS
from control_plane.migrations import HEAD
from control_plane.migrations.upgrading import configuration
from control_plane.platform import Platform, open_platform
from control_plane.quotas import change_quota
from control_plane.reconciler import Reconciler
from control_plane.records.database import Database
from control_plane.records.postgres import open_postgres, parse_url
from control_plane.records.tables import EVENT, IDEMPOTENCY, JOB, LEASE, ORGANISATION
from control_plane.refusals import DatabaseUnavailable, NameTaken, QuotaExhausted
from control_plane.rotation import rotate
from sharing.directory_store import DirectoryStore
from sharing.object_store import digest_of
from tests.cluster.faults import Faults
from tests.cluster.own_postgres import OwnPostgres
from tests.control_plane.conftest import RULES, job_spec
from tests.control_plane.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio
CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()"
)
ROOT = Path(__file__).parent.parent.parent


@asynccontextmanager
async def replica(folder: Path, url: str, **more: Any) -> AsyncIterator[Platform]:
    """A process's worth of control plane; the objects are everybody's."""
    store = DirectoryStore(folder.parent / "shared")
    async with open_platform(
        folder=folder, store=store, rules=RULES, database_url=url, **more
    ) as platform:
        yield platform


@asynccontextmanager
async def two(folder: Path, url: str) -> AsyncIterator[tuple[Platform, Platform, Principal]]:
    async with replica(folder / "a", url) as a, replica(folder / "b", url) as b:
        token = await bootstrap(a)
        assert token is not None
        await until(lambda: a.identity._remembers and b.identity._remembers)
        yield a, b, await a.identity.authenticate(token)


async def until(condition: Any, patience_s: float = 10.0) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)


def psycopg_of(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, autocommit=True)


def test_the_revisions_make_the_tables_that_the_code_has(records_url: str) -> None:
    open_postgres(records_url).close()

    engine = create_engine(parse_url(records_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
    engine.dispose()


def test_tables_of_the_first_revision_are_brought_up_to_date(records_url: str) -> None:
    engine = create_engine(parse_url(records_url))
    config = configuration()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text("INSERT INTO organisation VALUES ('o', 'o', now())"))
        connection.execute(text("INSERT INTO user_account VALUES ('u', 'o', 'u', '[]', now())"))
        connection.execute(
            text("INSERT INTO collaboration VALUES ('c', 'c', '', '[]', '{}', null, now())")
        )
        for job, settled in (("open", False), ("over", True)):
            connection.execute(
                text(
                    "INSERT INTO job (id, name, collaboration, organisation, submitted_by, spec,"
                    " plan_digest, phase, desired, waits_for, version, attempt, fruitless, rounds,"
                    " round, metrics, last_event, settled, created_at, updated_at) VALUES (:job,"
                    " 'n', 'c', 'o', 'u', '{}', 'd', 'pending', 'run', '', 0, 0, 0, 1, 0, '{}', 0,"
                    " :settled, now(), now())"
                ),
                {"job": job, "settled": settled},
            )
    engine.dispose()

    open_postgres(records_url).close()

    with psycopg_of(records_url) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (HEAD,)
        assert connection.execute("SELECT job, fence FROM lease").fetchall() == [("open", 0)]


def test_replicas_that_start_at_once_make_the_tables_once(records_url: str) -> None:
    failures: list[BaseException] = []

    def start() -> None:
        try:
            open_postgres(records_url).close()
        except BaseException as error:  # noqa: BLE001 - told by the assertion
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []


def test_tables_of_a_later_version_are_refused(records_url: str) -> None:
    open_postgres(records_url).close()
    with psycopg_of(records_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(DatabaseUnavailable, match="another version"):
        open_postgres(records_url)


@pytest.mark.parametrize("port", [1, 0], ids=["nobody listens", "a wrong password"])
def test_a_server_that_cannot_be_used_is_unavailable_without_its_password(
    postgres: str, port: int
) -> None:
    url = parse_url(postgres).set(drivername="postgresql", password="very-secret")
    url = url.set(port=port or url.port)

    with pytest.raises(DatabaseUnavailable) as refused:
        open_postgres(url.render_as_string(hide_password=False))

    assert "very-secret" not in f"{refused.value!r} {refused.value.__cause__!r}"


async def test_text_with_a_zero_in_it_is_kept(records_url: str) -> None:
    database = open_postgres(records_url)
    async with database.writing() as transaction:
        row = {"id": "a", "name": "a\0b", "created_at": "2026-01-01T00:00:00Z"}
        await transaction.execute(
            text("INSERT INTO organisation VALUES (:id, :name, CAST(:created_at AS timestamptz))"),
            row,
        )

    [found] = await database.rows(select(ORGANISATION.c.name))
    database.close()

    assert found.name == "a␀b"


async def test_a_lock_that_is_not_to_be_had_is_given_up(
    records_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from control_plane.records import postgres as module

    monkeypatch.setattr(module, "_SESSION", {**module._SESSION, "lock_timeout": "100ms"})
    database = open_postgres(records_url)
    async with database.writing() as transaction:
        await transaction.alone("a name")

        with pytest.raises(DatabaseUnavailable, match="55P03"):
            async with database.alone("a name"):
                pass
    async with database.alone("a name"):
        pass
    database.close()


async def test_replicas_that_start_at_once_found_the_platform_once(
    records_url: str, tmp_path: Path
) -> None:
    async with (
        replica(tmp_path / "a", records_url) as a,
        replica(tmp_path / "b", records_url) as b,
    ):
        tokens = await asyncio.gather(bootstrap(a), bootstrap(b))
        keys = [platform.keys.values(CURSORS) for platform in (a, b)]

    assert sorted(token is None for token in tokens) == [False, True]
    assert len(set(keys)) == 1


async def test_a_key_that_one_replica_rotated_the_other_knows(
    records_url: str, tmp_path: Path
) -> None:
    async with two(tmp_path, records_url) as (a, b, admin):
        [first] = b.keys.values(CURSORS)

        await asyncio.gather(*(rotate(p, admin, CURSORS, is_at_once=False) for p in (a, b)))
        await until(lambda: len(b.keys.values(CURSORS)) == len(a.keys.values(CURSORS)) == 3)
        assert b.keys.values(CURSORS)[0] == a.keys.values(CURSORS)[0]
        assert first in b.keys.values(CURSORS)
        await rotate(a, admin, CURSORS, is_at_once=True)

        await until(lambda: b.keys.values(CURSORS) == a.keys.values(CURSORS))
        assert len(b.keys.values(CURSORS)) == 1


async def test_a_key_is_one_job_however_many_replicas_are_asked(
    records_url: str, tmp_path: Path
) -> None:
    async with two(tmp_path, records_url) as (a, b, admin):
        for i in range(10):
            jobs = await asyncio.gather(
                *(submit_job(p, admin, job_spec(), f"key-{i:04}") for p in (a, b))
            )
            assert jobs[0].id == jobs[1].id
        rows = await a.database.rows(select(JOB.c.id))

    assert len(rows) == 10


async def test_a_name_is_given_once(records_url: str, tmp_path: Path) -> None:
    async with two(tmp_path, records_url) as (a, b, admin):
        for i in range(5):
            new = NewOrganisation(name=f"org-{i}")
            made = await asyncio.gather(
                *(add_organisation(p, admin, new) for p in (a, b)), return_exceptions=True
            )
            assert sorted(isinstance(one, NameTaken) for one in made) == [False, True]


async def test_events_that_replicas_tell_at_once_have_no_gap_and_reach_all_watchers(
    records_url: str, tmp_path: Path
) -> None:
    async with two(tmp_path, records_url) as (a, b, admin):
        job = (await submit_job(a, admin, job_spec(), None)).id

        async def tell(platform: Platform) -> None:
            for _ in range(50):
                async with platform.database.writing() as transaction:
                    row = await load(transaction, job)
                    fact = Fact(kind="something.happened", fields={})
                    await record(transaction, platform.hub, row, platform.now(), {}, [fact])

        async def listen(platform: Platform) -> list[int]:
            heard = []
            async for told in await watch(platform, admin, job, 0):
                heard.append(told.id)
                if told.id == 101:
                    break
            return heard

        listeners = [asyncio.create_task(listen(p)) for p in (a, b, a, b)]
        await until(lambda: a.hub.num_watchers == b.hub.num_watchers == 2)
        async with asyncio.timeout(20):
            await asyncio.gather(tell(a), tell(b))
            assert await asyncio.gather(*listeners) == [list(range(1, 102))] * 4


async def test_a_lost_connection_for_notices_is_made_up_for(
    records_url: str, tmp_path: Path
) -> None:
    async with two(tmp_path, records_url) as (a, b, admin):
        job = (await submit_job(a, admin, job_spec(), None)).id
        stream = await watch(b, admin, job, 0)
        assert (await anext(stream)).id == 1
        waiting = asyncio.ensure_future(anext(stream))
        with psycopg_of(records_url) as connection:
            connection.execute(CUT)
        for _ in range(20):  # who writes finds its connections gone, and may try again
            try:
                async with a.database.writing() as transaction:
                    row = await load(transaction, job)
                    fact = Fact(kind="something.happened", fields={})
                    await record(transaction, a.hub, row, a.now(), {}, [fact])
                break
            except DatabaseUnavailable:
                await asyncio.sleep(0.05)

        async with asyncio.timeout(10):
            assert (await waiting).id == 2  # type: ignore[attr-defined]
        await stream.aclose()  # type: ignore[attr-defined]


async def test_a_token_that_one_replica_revoked_is_good_at_none(
    records_url: str, tmp_path: Path
) -> None:
    async with two(tmp_path, records_url) as (a, b, admin):
        token = await add_token(a, admin, NewToken(label="t"))
        assert token.secret is not None
        await b.identity.authenticate(token.secret)

        await revoke_token(a, admin, token.id)

        await until(lambda: not b.identity._known)
        with pytest.raises(NotAuthentic):
            await b.identity.authenticate(token.secret)


async def test_a_submission_at_one_replica_wakes_the_others(
    records_url: str, tmp_path: Path
) -> None:
    async with two(tmp_path, records_url) as (a, b, admin):
        await b.bell.wait(0.1)

        await submit_job(a, admin, job_spec(), None)

        began = time.monotonic()
        await b.bell.wait(5.0)
        assert time.monotonic() - began < 1.0


async def test_an_object_is_in_the_custody_of_one_replica(records_url: str, tmp_path: Path) -> None:
    async with two(tmp_path, records_url) as (a, b, _):
        holders: list[str] = []

        async def hold(platform: Platform, name: str) -> None:
            async with platform.custody.of(digest_of(b"x")):
                holders.append(name)
                await asyncio.sleep(0.05)
                assert holders[-1] == name

        await asyncio.gather(*(hold(p, f"{i}") for i, p in enumerate((a, b, a, b))))

    assert sorted(holders) == ["0", "1", "2", "3"]


async def test_a_lease_is_taken_once_passed_on_when_it_ran_out_and_fenced(
    records_url: str, tmp_path: Path
) -> None:
    async with two(tmp_path, records_url) as (a, b, admin):
        jobs = [(await submit_job(a, admin, job_spec(), None)).id for _ in range(20)]
        taken = await asyncio.gather(
            *(leases.take(p.database, p.replica, jobs, 0.5) for p in (a, b))
        )
        assert sorted([*taken[0], *taken[1]]) == jobs
        assert set(taken[0].values()) | set(taken[1].values()) == {1}
        mine = taken[0] or taken[1]
        old, new = (a, b) if taken[0] else (b, a)
        assert await leases.take(new.database, new.replica, list(mine), 10.0) == {}
        await asyncio.sleep(0.6)

        again = await leases.take(new.database, new.replica, list(mine), 10.0)

        assert again == dict.fromkeys(mine, 2)
        with pytest.raises(leases.LeaseLost):
            async with old.database.writing() as transaction:
                await leases.require(transaction, next(iter(mine)), old.replica, 1)
        await leases.renew(old.database, old.replica, 10.0)
        rows = await a.database.rows(select(LEASE.c.holder).where(LEASE.c.job.in_(list(mine))))
        assert {row.holder for row in rows} == {new.replica}


async def test_a_run_that_another_replica_took_is_left_alone(
    records_url: str, tmp_path: Path
) -> None:
    engine = ScriptedEngine()
    async with two(tmp_path, records_url) as (a, b, admin):
        job = (await submit_job(a, admin, job_spec(), None)).id
        late, early = (Reconciler(p, engine, lambda: "here") for p in (a, b))
        observe = engine.observe
        await late.look()  # attempt 1 is submitted
        taken: list[Any] = []

        async def slow(job: str, attempt: int) -> Any:
            if not taken:  # while the engine is asked, the lease runs out, and the other takes it
                taken.append(await leases.give_up(a.database, a.replica))
                await early.look()
                await _cancel(b, admin, job)
            return await observe(job, attempt)

        engine.observe = slow  # type: ignore[method-assign]
        before = await _version(a, job)
        await late.look()

        rows = await a.database.rows(select(LEASE.c.holder, LEASE.c.fence))
        assert [tuple(row) for row in rows] == [(b.replica, 2)]
        assert await _version(a, job) == before + 1  # the cancellation alone


async def _both_admitting(a: Platform, b: Platform, admin: Principal) -> list[str]:
    """Two replicas admit a job each at the same time, and then both end; what was refused, how."""
    acts = []
    for platform in (a, b):
        job = (await submit_job(platform, admin, job_spec(), None)).id
        held = await leases.take(platform.database, platform.replica, [job], 10.0)
        reconciler = Reconciler(platform, ScriptedEngine(), lambda: "here")
        acts.append(reconciler._admit(await reconciler._view(job, held[job])))

    refused = await asyncio.gather(*acts, return_exceptions=True)

    async with a.database.writing() as transaction:
        await transaction.execute(update(JOB).values(phase="failed", settled=True))
    return [type(one).__name__ for one in refused if one is not None]


async def test_the_last_slot_is_given_away_once(
    records_url: str, tmp_path: Path, faults: Faults
) -> None:
    longest_s, doubled = 0.0, 0
    async with two(tmp_path, records_url) as (a, b, admin):
        a, b = (replace(p, rules=replace(RULES, max_running=1)) for p in (a, b))
        for _ in range(10):
            began = time.monotonic()
            refused = await _both_admitting(a, b, admin)
            longest_s = max(longest_s, time.monotonic() - began)
            doubled += 1 - len(refused)
            assert refused == ["_Changed"]
    outcome = "one is admitted, the other waits, each time"
    faults.record(
        *("Two replicas race for the last slot", outcome, longest_s),
        within_s=5,
        runs=20,
        lost=doubled,
    )


async def test_the_last_room_in_a_quota_is_given_away_once(
    records_url: str, tmp_path: Path
) -> None:
    async with two(tmp_path, records_url) as (a, b, admin):
        for bounds in (QuotaChange(running=1), QuotaChange(running=None, workers=4)):
            await change_quota(a, admin, "home", bounds)
            for _ in range(5):
                assert await _both_admitting(a, b, admin) == ["_Changed"]


async def test_the_last_open_job_of_a_quota_is_taken_once_and_every_act_is_in_the_log(
    records_url: str, tmp_path: Path
) -> None:
    async with two(tmp_path, records_url) as (a, b, admin):
        await change_quota(a, admin, "home", QuotaChange(open_jobs=10))

        done = await asyncio.gather(
            *(submit_job(p, admin, job_spec(), None) for p in (a, b) * 10), return_exceptions=True
        )

        refused = [one for one in done if isinstance(one, BaseException)]
        assert [type(one) for one in refused] == [QuotaExhausted] * 10
        found = await verify_audit(b, admin)
        assert (found.is_whole, found.rows) == (True, 1 + 1 + 10)


async def _cancel(platform: Platform, who: Principal, job: str) -> None:
    from control_plane.jobs import change_desired
    from workflows.run import Desired

    await change_desired(platform, who, job, Desired.CANCELLED)


async def _version(platform: Platform, job: str) -> int:
    [row] = await platform.database.rows(select(JOB.c.version).where(JOB.c.id == job))
    return int(row.version)


async def test_connections_that_are_cut_in_any_phase_of_a_submission_lose_and_double_nothing(
    records_url: str, tmp_path: Path, faults: Faults
) -> None:
    """All connections of the database are ended again and again while jobs are submitted."""
    async with replica(tmp_path / "a", records_url) as platform:
        token = await bootstrap(platform)
        admin = await platform.identity.authenticate(token or "")
        stop, cuts = threading.Event(), [0]

        def cut() -> None:
            with psycopg_of(records_url) as connection:
                while not stop.wait(0.023):
                    connection.execute(CUT)
                    cuts[0] += 1

        thread = threading.Thread(target=cut)
        thread.start()
        failures, answered, longest_s = 0, {}, 0.0
        try:
            async with asyncio.timeout(60):
                for i in range(60):
                    began = time.monotonic()
                    while i not in answered:
                        try:
                            job = await submit_job(platform, admin, job_spec(), f"key-{i:04}")
                            answered[i] = job.id
                        except DatabaseUnavailable:
                            failures += 1
                    longest_s = max(longest_s, time.monotonic() - began)
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)
        rows = await platform.database.rows(select(JOB.c.id))
        faults.record(
            f"PostgreSQL's connections are cut {cuts[0]} times while jobs are submitted",
            f"{failures} submissions refused and repeated, none doubled",
            longest_s,
            within_s=30,
            runs=len(answered),
            lost=len(set(answered.values()) ^ {row.id for row in rows}),
        )
        await _require_whole(platform.database, answered)

    assert failures > 0
    assert cuts[0] > 20


async def _require_whole(database: Database, answered: dict[int, str]) -> None:
    """Each answered job is on record once, with its key, its lease and its one event."""
    jobs = await database.rows(select(JOB.c.id, JOB.c.last_event).order_by(JOB.c.id))
    assert [row.id for row in jobs] == sorted(answered.values())
    assert {row.last_event for row in jobs} == {1}
    for table in (LEASE, IDEMPOTENCY, EVENT):
        rows = await database.rows(select(table.c.job).order_by(table.c.job))
        assert [row.job for row in rows] == sorted(answered.values()), table.name


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_server_that_goes_away_in_a_transaction_takes_nothing_half_done_with_it(
    own_postgres: OwnPostgres, tmp_path: Path, mode: str, faults: Faults
) -> None:
    async with replica(tmp_path / "a", own_postgres.url) as platform:
        admin = await platform.identity.authenticate(await bootstrap(platform) or "")
        answered = {0: (await submit_job(platform, admin, job_spec(), "key-0000")).id}

        async def write() -> None:
            async with platform.database.writing() as transaction:
                row = {"id": "a", "name": "half", "created_at": platform.now()}
                await transaction.execute(insert(ORGANISATION), row)
                await asyncio.to_thread(own_postgres.stop, mode)
                await transaction.execute(insert(ORGANISATION), {**row, "id": "b", "name": "done"})

        with pytest.raises(DatabaseUnavailable):
            await write()
        with pytest.raises(DatabaseUnavailable):
            await submit_job(platform, admin, job_spec(), "key-0001")
        await asyncio.to_thread(own_postgres.start)
        began = time.monotonic()

        answered[1] = (await submit_job(platform, admin, job_spec(), "key-0001")).id
        needed_s = time.monotonic() - began
        rows = await platform.database.rows(select(JOB.c.id))
        faults.record(
            f"PostgreSQL is restarted in a transaction ({mode})",
            "refused as unavailable, nothing half done",
            needed_s,
            within_s=10,
            runs=len(answered),
            lost=len(set(answered.values()) ^ {row.id for row in rows}),
        )
        await _require_whole(platform.database, answered)
        names = await platform.database.rows(select(ORGANISATION.c.name))
        assert [row.name for row in names] == ["home"]
        await until(lambda: platform.identity._remembers)


@pytest.mark.timeout(900)
def test_the_control_planes_own_tests_pass_on_it(postgres: str) -> None:
    """The suite of the control plane, but for what has nothing to do with records."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "tests/control_plane"),
            *("--ignore", "tests/control_plane/test_server.py"),
        ],
        cwd=ROOT,
        env={**os.environ, "FOEDUS_TEST_DATABASE_URL": postgres},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:]
