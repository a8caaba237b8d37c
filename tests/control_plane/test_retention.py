from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from clients.identity import Principal
from control_plane import step_logs
from control_plane.accounts import bootstrap
from control_plane.administration import read_status
from control_plane.audit import list_audit, verify_audit
from control_plane.holds import ObjectsHeld, held
from control_plane.jobs import list_artifacts, list_rounds
from control_plane.platform import Platform, open_platform
from control_plane.records.tables import JOB, JOB_OBJECT, ROUND
from control_plane.retention import surplus, sweep
from sharing.directory_store import DirectoryStore
from sharing.object_store import ObjectMissing, digest_of
from tests.control_plane.conftest import RULES, Clock
from tests.control_plane.databases import sqlite_alone
from tests.control_plane.scripted_engine import checkpoint, transcript
from tests.control_plane.test_reconciler import Bench, submit
from tests.control_plane.test_reconciler_faults import Died, FailPoints, MortalDatabase, MortalStore

pytestmark = pytest.mark.anyio
WEEK = timedelta(days=7)
KEPT = replace(RULES, retain_checkpoints=WEEK, retain_logs=2 * WEEK)


@pytest.fixture
async def bench(data_folder: Path, database_url: str | None, clock: Clock) -> AsyncIterator[Bench]:
    store = DirectoryStore(data_folder / "objects")
    async with open_platform(
        folder=data_folder, store=store, rules=KEPT, now=clock, database_url=database_url
    ) as platform:
        token = await bootstrap(platform)
        assert token is not None
        yield Bench(platform, await platform.identity.authenticate(token))


async def objects_of(platform: Platform, job: str) -> set[str]:
    """What the job has on record, each of which is in the store."""
    rows = await platform.database.rows(select(JOB_OBJECT.c.digest).where(JOB_OBJECT.c.job == job))
    for row in rows:
        await platform.store.stat(row.digest)
    return {row.digest for row in rows}


async def audited(platform: Platform, who: Principal) -> list[tuple[str, str, dict[str, Any]]]:
    entries = (await list_audit(platform, who, 100)).items
    return [(e.action, e.object, dict(e.detail)) for e in entries if e.action.endswith(".wipe")]


async def is_stored(platform: Platform, content: bytes) -> bool:
    try:
        await platform.store.stat(digest_of(content))
    except ObjectMissing:
        return False
    return True


def test_surplus_is_what_was_had_and_is_not_named() -> None:
    assert surplus(["c", "a", "b", "a"], ["b", "x"]) == ["a", "c"]


async def test_checkpoints_go_when_their_time_is_over_and_what_proves_the_model_stays(
    bench: Bench, clock: Clock
) -> None:
    job = await submit(bench)
    await bench.until_settled(job)
    before = await objects_of(bench.platform, job)

    clock.now += WEEK - timedelta(seconds=1)
    await sweep(bench.platform)
    assert await objects_of(bench.platform, job) == before
    clock.now += timedelta(seconds=1)
    await sweep(bench.platform)

    after = await objects_of(bench.platform, job)
    assert before - after == {digest_of(checkpoint(n)) for n in (2, 3)}
    assert not await is_stored(bench.platform, checkpoint(3))
    named = {a.digest for a in await list_artifacts(bench.platform, bench.who, job)}
    assert named | {digest_of(transcript(n)) for n in (1, 2, 3)} < after
    assert len((await list_rounds(bench.platform, bench.who, job, 0, 10)).items) == 3
    left = await bench.platform.database.rows(
        select(ROUND.c.number).where(ROUND.c.checkpoint.is_not(None))
    )
    assert left == []
    assert await audited(bench.platform, bench.who) == [("checkpoints.wipe", job, {"objects": 2})]


async def test_sweeping_again_does_nothing_more(bench: Bench, clock: Clock) -> None:
    await bench.until_settled(await submit(bench))
    clock.now += 3 * WEEK

    for _ in range(3):
        await sweep(bench.platform)

    kinds = [kind for kind, _, _ in await audited(bench.platform, bench.who)]
    assert sorted(kinds) == ["checkpoints.wipe", "logs.wipe"]
    assert (await verify_audit(bench.platform, bench.who)).is_whole


async def test_what_an_open_job_or_another_job_needs_stays(bench: Bench, clock: Clock) -> None:
    over = await submit(bench)
    await bench.until_settled(over)
    clock.now += WEEK
    going_on = await submit(bench)
    while not await is_stored_for(bench.platform, going_on, checkpoint(3)):
        await bench.look()

    await sweep(bench.platform)

    assert digest_of(checkpoint(3)) not in await objects_of(bench.platform, over)
    assert digest_of(checkpoint(3)) in await objects_of(bench.platform, going_on)


async def is_stored_for(platform: Platform, job: str, content: bytes) -> bool:
    return digest_of(content) in await objects_of(platform, job)


async def test_a_job_that_is_still_being_cleared_away_keeps_all(bench: Bench, clock: Clock) -> None:
    job = await submit(bench)
    await bench.until_settled(job)
    before = await objects_of(bench.platform, job)
    async with bench.platform.database.writing() as transaction:
        await transaction.execute(update(JOB).values(settled=False))
    clock.now += 2 * WEEK

    await sweep(bench.platform)

    assert await objects_of(bench.platform, job) == before
    assert await log_of(bench.platform, job) == b"hello\n"


async def test_what_a_lost_attempt_left_goes_too(bench: Bench, clock: Clock) -> None:
    job = await submit(bench)
    await bench.until_settled(job)
    stray = await bench.platform.store.put(one(b"never told of"))
    async with bench.platform.database.writing() as transaction:
        await transaction.execute(JOB_OBJECT.insert(), {"job": job, "digest": stray.digest})
    clock.now += WEEK

    await sweep(bench.platform)

    assert not await is_stored(bench.platform, b"never told of")


async def one(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def log_of(platform: Platform, job: str) -> bytes:
    return b"".join([part async for part in step_logs.read(platform, job, 1, ("federate",))])


async def test_logs_go_later_and_say_so_in_the_audit_log(bench: Bench, clock: Clock) -> None:
    job = await submit(bench)
    await bench.until_settled(job)

    clock.now += 2 * WEEK - timedelta(seconds=1)
    await sweep(bench.platform)
    assert await log_of(bench.platform, job) == b"hello\n"
    clock.now += timedelta(seconds=1)
    await sweep(bench.platform)

    assert await log_of(bench.platform, job) == b""
    assert ("logs.wipe", job, {}) in await audited(bench.platform, bench.who)


@sqlite_alone
async def test_logs_that_were_wiped_are_not_on_the_disk(bench: Bench, clock: Clock) -> None:
    job = await submit(bench)
    await bench.until_settled(job)
    await step_logs.append(
        bench.platform, job, 1, "federate", offset=6, content=b"a patient's name", limit=1 << 20
    )
    path = bench.platform.folder / "foedus.db"

    def is_on_disk() -> bool:
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return b"a patient's name" in path.read_bytes()

    assert is_on_disk()
    clock.now += 2 * WEEK
    await sweep(bench.platform)
    assert not is_on_disk()


async def test_for_ever_is_for_ever(bench: Bench, clock: Clock) -> None:
    job = await submit(bench)
    await bench.until_settled(job)
    before = await objects_of(bench.platform, job)
    clock.now += timedelta(days=36_500)

    await sweep(replace(bench.platform, rules=RULES))

    assert await objects_of(bench.platform, job) == before
    assert await log_of(bench.platform, job) == b"hello\n"


async def test_nothing_goes_while_a_backup_is_made(bench: Bench, clock: Clock) -> None:
    job = await submit(bench)
    await bench.until_settled(job)
    before = await objects_of(bench.platform, job)
    clock.now += WEEK

    async with held(bench.platform.database, "backup"):
        with pytest.raises(ObjectsHeld):
            await sweep(bench.platform)
    assert await objects_of(bench.platform, job) == before
    await sweep(bench.platform)

    assert await objects_of(bench.platform, job) < before


async def test_a_run_that_ends_while_a_backup_is_made_leaves_no_checkpoint_behind(
    bench: Bench, clock: Clock
) -> None:
    job = await submit(bench, rounds=6)
    async with held(bench.platform.database, "backup"):
        await bench.until_settled(job)
        assert all([await is_stored(bench.platform, checkpoint(n)) for n in range(1, 7)])
    clock.now += WEEK

    await sweep(bench.platform)

    assert not any([await is_stored(bench.platform, checkpoint(n)) for n in range(1, 7)])


async def test_a_kill_at_any_point_leaves_nothing_dangling(bench: Bench, clock: Clock) -> None:
    points, deaths = FailPoints(at=10_000), 0
    job = await submit(bench)
    await bench.until_settled(job)
    clock.now += 2 * WEEK
    named = await objects_of(bench.platform, job) - {digest_of(checkpoint(n)) for n in (2, 3)}

    for at in range(1, 100):
        points = FailPoints(at=at)
        database: Any = MortalDatabase(bench.platform.database, points)
        store = MortalStore(bench.platform.store, points)
        try:
            await sweep(replace(bench.platform, database=database, store=store))
        except Died:
            deaths += 1
            assert named <= {row.digest for row in await rows_of(bench.platform, job)}
        else:
            break

    assert deaths > 0
    assert await objects_of(bench.platform, job) == named
    assert await log_of(bench.platform, job) == b""
    [row] = await bench.platform.database.rows(select(JOB.c.wiped_at))
    assert row.wiped_at == clock.now
    kinds = [kind for kind, _, _ in await audited(bench.platform, bench.who)]
    assert kinds.count("checkpoints.wipe") == 1


async def rows_of(platform: Platform, job: str) -> Any:
    return await platform.database.rows(select(JOB_OBJECT.c.digest).where(JOB_OBJECT.c.job == job))


async def test_several_that_sweep_at_once_record_it_once(bench: Bench, clock: Clock) -> None:
    for _ in range(3):
        await bench.until_settled(await submit(bench))
    clock.now += WEEK

    await asyncio.gather(*(sweep(bench.platform) for _ in range(3)))

    assert len(await audited(bench.platform, bench.who)) == 3


async def test_the_status_says_when_what_goes(bench: Bench, clock: Clock) -> None:
    ended_at = clock.now
    await bench.until_settled(await submit(bench))
    clock.now += WEEK

    status = await read_status(bench.platform, bench.who, {})
    await sweep(bench.platform)
    after = await read_status(bench.platform, bench.who, {})

    said = {one.kind: (one.days, one.jobs, one.next_at) for one in status.retention}
    assert said == {
        "checkpoints": (7.0, 1, ended_at + WEEK),
        "logs": (14.0, 1, ended_at + 2 * WEEK),
    }
    assert after.retention[0].jobs == 0
    assert after.retention[0].next_at is None


async def test_what_is_wiped_is_written_over(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    digest = (await store.put(one(b"x" * 3_000_000))).digest
    [path] = (tmp_path / "objects").rglob(digest.removeprefix("sha256:"))

    with path.open("rb") as opened:
        await store.wipe(digest)
        left = opened.read()

    assert left == bytes(3_000_000)
    assert not list((tmp_path / "partial").iterdir())
    await store.wipe(digest)
    with pytest.raises(ObjectMissing):
        await store.stat(digest)


async def test_what_a_killed_wiper_left_is_written_over_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    doomed = tmp_path / "partial" / "doomed-1"
    doomed.write_bytes(b"secret")

    with doomed.open("rb") as opened:
        with pytest.raises(ObjectMissing):
            await DirectoryStore(tmp_path).stat(digest_of(b"any"))
        left = opened.read()

    assert left == bytes(6)
    assert not doomed.exists()
