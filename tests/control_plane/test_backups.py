from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, text, update

from clients.identity import Principal
from control_plane import audit, leases, step_logs
from control_plane.admission import submit_job
from control_plane.backup_command import run
from control_plane.backups import MANIFEST, BackupError, Place, back_up, read_manifest, restore
from control_plane.data_folder import FolderInUse, claimed
from control_plane.holds import HoldLost, ObjectsHeld, held, require_free
from control_plane.jobs import get_job
from control_plane.keyring import CURSORS
from control_plane.objects import keep, release
from control_plane.platform import Platform, open_platform
from control_plane.records.tables import HOLD, PROGRAM
from control_plane.settings import Settings
from sharing.directory_store import DirectoryStore
from sharing.object_store import ObjectCorrupt, ObjectMissing, StoreFull, digest_of
from tests.control_plane.conftest import job_spec
from tests.e2e.test_full_disk import fill, small_disk

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 11, 21, tzinfo=UTC)


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


def fresh(folder: Path) -> Place:
    return Place(folder=folder, store=DirectoryStore(folder))


def place_of(platform: Platform) -> Place:
    return Place(folder=platform.folder, store=platform.store)


@pytest.fixture
async def platform(data_folder: Path) -> AsyncIterator[Platform]:
    """As the server opens it: objects lie in the data folder itself."""
    async with open_platform(folder=data_folder, store=DirectoryStore(data_folder)) as platform:
        yield platform


class HaltingStore(DirectoryStore):
    """Stops at the first object that is read, until it may go on."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reached, self.goes_on = asyncio.Event(), asyncio.Event()

    async def get(
        self, digest: str, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[bytes]:
        self.reached.set()
        await self.goes_on.wait()
        async for chunk in super().get(digest, start=start, stop=stop):
            yield chunk


async def keep_object(platform: Platform, job: str, content: bytes) -> str:
    stored = await platform.store.put(chunks(content))
    async with platform.database.writing() as transaction:
        await keep(transaction, job, stored.digest)
    return stored.digest


async def test_what_was_backed_up_beside_a_server_is_restored_whole(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    kept = await keep_object(platform, job.id, b"a checkpoint")
    await step_logs.append(
        platform, job.id, 1, "federate", offset=0, content=b"hello", limit=1 << 20
    )

    made = await back_up(place_of(platform), tmp_path / "backup", NOW)
    await submit_job(platform, admin, job_spec(name="later"), None)
    restored = await restore(tmp_path / "backup", fresh(tmp_path / "data"))

    assert made == restored == read_manifest(tmp_path / "backup")
    assert (made.objects, made.tables["job"], made.missing) == (1, 1, ())
    store = DirectoryStore(tmp_path / "data")
    async with open_platform(folder=tmp_path / "data", store=store) as other:
        assert (await get_job(other, admin, job.id)).value == job
        assert b"".join([chunk async for chunk in store.get(kept)]) == b"a checkpoint"
        assert (await audit.verify_audit(other, admin)).is_whole
        log = step_logs.read(other, job.id, 1, ("federate",))
        assert b"".join([part async for part in log]) == b"hello"


async def test_the_next_backup_copies_what_is_new_and_replaces_the_one_before(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    first = await keep_object(platform, job.id, b"first")
    folder = tmp_path / "backup"
    await back_up(place_of(platform), folder, NOW)
    path = next((folder / "objects").rglob(first.removeprefix("sha256:")))
    before = path.stat().st_ino
    await keep_object(platform, job.id, b"second")

    again = await back_up(place_of(platform), folder, NOW)

    assert again.objects == 2
    assert path.stat().st_ino == before
    assert len(list(folder.glob("database-*.db"))) == 1


async def test_nothing_is_deleted_while_a_backup_is_made_and_everything_afterwards(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    digest = await keep_object(platform, job.id, b"a checkpoint")
    store = HaltingStore(platform.folder)
    place = Place(folder=platform.folder, store=store)

    making = asyncio.create_task(back_up(place, tmp_path / "backup", NOW))
    await store.reached.wait()
    with pytest.raises(ObjectsHeld):
        await release(platform, job.id, digest)
    store.goes_on.set()
    made = await making
    await release(platform, job.id, digest)

    assert (made.objects, made.missing) == (1, ())
    with pytest.raises(ObjectMissing):
        await platform.store.stat(digest)


async def test_the_hold_of_who_died_ends_by_itself(platform: Platform) -> None:
    async with held(platform.database, "backup") as hold:
        with pytest.raises(ObjectsHeld):
            await require_free(platform.database)
        async with platform.database.writing() as transaction:
            await transaction.execute(update(HOLD).values(until=platform.database.clock - 1))

        await require_free(platform.database)
        with pytest.raises(HoldLost):
            await hold.renew()


async def test_a_backup_that_lost_its_hold_is_none(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    await keep_object(platform, job.id, b"a checkpoint")
    store = HaltingStore(platform.folder)

    making = asyncio.create_task(
        back_up(Place(folder=platform.folder, store=store), tmp_path / "backup", NOW)
    )
    await store.reached.wait()
    async with platform.database.writing() as transaction:
        await transaction.execute(delete(HOLD))
    store.goes_on.set()
    with pytest.raises(BackupError, match="may have gone"):
        await making

    assert not (tmp_path / "backup" / MANIFEST).exists()


async def test_a_backup_that_is_stopped_leaves_the_one_before(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    first = await keep_object(platform, job.id, b"first")
    folder = tmp_path / "backup"
    before = await back_up(place_of(platform), folder, NOW)
    await keep_object(platform, job.id, b"second")
    store, had = HaltingStore(platform.folder), asyncio.Event()
    place = Place(folder=platform.folder, store=store)

    making = asyncio.create_task(
        back_up(place, folder, NOW + timedelta(days=1), lambda _done, _of: had.set())
    )
    await had.wait()
    await store.reached.wait()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making

    await require_free(platform.database)
    assert await restore(folder, fresh(tmp_path / "data")) == before
    assert (await DirectoryStore(tmp_path / "data").stat(first)).size_bytes == 5
    assert not list(folder.glob(".database*"))


async def test_a_disk_that_fills_up_at_any_moment_leaves_the_backup_before(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    await keep_object(platform, job.id, b"first")
    outcomes = []
    with small_disk(tmp_path / "disk") as disk:
        folder = disk / "backup"
        before = await back_up(place_of(platform), folder, NOW)
        await keep_object(platform, job.id, bytes(300_000))
        await step_logs.append(
            platform, job.id, 1, "federate", offset=0, content=bytes(300_000), limit=1 << 20
        )
        filler = fill(disk)
        for room in (0, 100_000, 400_000, 700_000, 900_000, 1_500_000):
            os.truncate(filler, filler.stat().st_size - room)
            try:
                before = await back_up(place_of(platform), folder, NOW)
                outcomes.append("whole")
            except (StoreFull, OSError, sqlite3.OperationalError) as error:
                outcomes.append(type(error).__name__)
            assert read_manifest(folder) == before
            assert not list(folder.glob(".database*"))
            filler = fill(disk)
        await restore(folder, fresh(tmp_path / "data"))

    assert {"OperationalError", "StoreFull"} < set(outcomes)
    assert outcomes[-1] == "whole", outcomes
    assert before.objects == 2


async def test_two_backups_into_one_folder_are_refused(platform: Platform, tmp_path: Path) -> None:
    with claimed(tmp_path / "backup"), pytest.raises(BackupError, match="under way"):
        await back_up(place_of(platform), tmp_path / "backup", NOW)


async def test_records_of_another_version_are_left_alone(
    platform: Platform, tmp_path: Path
) -> None:
    async with platform.database.writing() as transaction:
        await transaction.execute(text("UPDATE alembic_version SET version_num = '0006'"))

    with pytest.raises(BackupError, match="another version"):
        await back_up(place_of(platform), tmp_path / "backup", NOW)

    row = await platform.database.one_or_none(text("SELECT version_num FROM alembic_version"))
    assert row is not None
    assert row.version_num == "0006"


async def test_what_was_deleted_is_in_no_later_backup(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    digest = await keep_object(platform, job.id, b"to be forgotten")
    folder = tmp_path / "backup"
    await back_up(place_of(platform), folder, NOW)
    await release(platform, job.id, digest)

    await back_up(place_of(platform), folder, NOW)

    assert not list((folder / "objects").rglob(digest.removeprefix("sha256:")))


async def test_only_the_owner_can_read_what_secrets_there_are(
    platform: Platform, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"

    await back_up(place_of(platform), folder, NOW)
    await restore(folder, fresh(tmp_path / "data"))

    assert folder.stat().st_mode & 0o777 == 0o700
    for path in (*folder.glob("database-*"), folder / MANIFEST, tmp_path / "data" / "foedus.db"):
        assert path.stat().st_mode & 0o777 == 0o600, path
    async with open_platform(folder=tmp_path / "data", store=platform.store) as other:
        assert other.keys.values(CURSORS) == platform.keys.values(CURSORS)


async def test_no_lease_of_the_moment_holds_up_what_is_restored(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    await leases.take(platform.database, "another replica", [job.id], lease_s=3600)

    await back_up(place_of(platform), tmp_path / "backup", NOW)
    await restore(tmp_path / "backup", fresh(tmp_path / "data"))

    async with open_platform(folder=tmp_path / "data", store=platform.store) as other:
        [run] = await other.database.rows(leases.open_runs(other.database))
        assert leases.free([run]) == [job.id]
        assert run.fence == 1


async def test_an_object_of_a_job_that_is_being_deleted_may_be_missing(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    digest = await keep_object(platform, job.id, b"going")
    await platform.store.delete(digest)

    made = await back_up(place_of(platform), tmp_path / "backup", NOW)
    await restore(tmp_path / "backup", fresh(tmp_path / "data"))

    assert made.missing == (digest,)


async def test_a_backup_without_an_upload_is_none(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    row = {
        "organisation": admin.organisation,
        "digest": digest_of(b"gone"),
        "name": "x",
        "size_bytes": 4,
        "facts": "{}",
        "created_at": NOW,
    }
    async with platform.database.writing() as transaction:
        await transaction.execute(PROGRAM.insert(), row)

    with pytest.raises(BackupError, match="lacks objects"):
        await back_up(place_of(platform), tmp_path / "backup", NOW)

    assert not (tmp_path / "backup" / MANIFEST).exists()
    assert not list((tmp_path / "backup").glob(".database*"))


@pytest.mark.parametrize("harm", ["object", "database", "manifest"])
async def test_a_backup_that_was_harmed_is_not_restored(
    platform: Platform, admin: Principal, tmp_path: Path, harm: str
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    digest = await keep_object(platform, job.id, b"content")
    folder = tmp_path / "backup"
    await back_up(place_of(platform), folder, NOW)
    path = {
        "object": lambda: next((folder / "objects").rglob(digest.removeprefix("sha256:"))),
        "database": lambda: next(folder.glob("database-*.db")),
        "manifest": lambda: folder / MANIFEST,
    }[harm]()
    path.chmod(0o600)
    path.write_bytes(b"harmed" + path.read_bytes()[6:])

    with pytest.raises((BackupError, ObjectCorrupt)):
        await restore(folder, fresh(tmp_path / "data"))

    assert not (tmp_path / "data" / "foedus.db").exists()


async def test_a_folder_with_records_or_a_server_is_not_restored_into(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    await back_up(place_of(platform), tmp_path / "backup", NOW)

    with pytest.raises(BackupError, match="has records already"):
        await restore(tmp_path / "backup", place_of(platform))
    with claimed(tmp_path / "data"), pytest.raises(FolderInUse):
        await restore(tmp_path / "backup", fresh(tmp_path / "data"))


def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOEDUS_DATA", str(tmp_path / "data"))

    assert run(Settings(), ["backup", str(tmp_path / "backup")]) == 1
    assert "has no records" in capsys.readouterr().err
    assert run(Settings(), ["restore", str(tmp_path / "backup")]) == 1
    assert "holds no finished backup" in capsys.readouterr().err


def test_a_database_that_is_damaged_is_told(data_folder: Path, tmp_path: Path) -> None:
    shutil.copy(data_folder / "foedus.db", tmp_path / "foedus.db")
    with (tmp_path / "foedus.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)

    with pytest.raises((BackupError, sqlite3.DatabaseError)):
        asyncio.run(back_up(fresh(tmp_path), tmp_path / "backup", NOW))
