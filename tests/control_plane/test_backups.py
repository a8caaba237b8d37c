from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clients.identity import Principal
from control_plane import audit
from control_plane.admission import submit_job
from control_plane.backups import MANIFEST, BackupError, back_up, read_manifest, restore, run
from control_plane.data_folder import FolderInUse, claimed
from control_plane.jobs import get_job
from control_plane.objects import keep, release
from control_plane.platform import Platform, open_platform
from control_plane.records.tables import PROGRAM
from control_plane.settings import Settings
from sharing.directory_store import DirectoryStore
from sharing.object_store import ObjectCorrupt, digest_of
from tests.control_plane.conftest import job_spec

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 11, 21, tzinfo=UTC)


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.fixture
async def platform(data_folder: Path) -> AsyncIterator[Platform]:
    """As the server opens it: objects lie in the data folder itself."""
    async with open_platform(folder=data_folder, store=DirectoryStore(data_folder)) as platform:
        yield platform


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
    logs = platform.folder / "logs" / job.id / "1"
    logs.mkdir(parents=True)
    (logs / "federate.log").write_text("hello")

    made = await back_up(platform.folder, tmp_path / "backup", NOW)
    await submit_job(platform, admin, job_spec(name="later"), None)
    restored = await restore(tmp_path / "backup", tmp_path / "data")

    assert made == restored == read_manifest(tmp_path / "backup")
    assert (made.objects, made.tables["job"], made.missing, made.logs) == (1, 1, (), 1)
    store = DirectoryStore(tmp_path / "data")
    async with open_platform(folder=tmp_path / "data", store=store) as other:
        assert (await get_job(other, admin, job.id)).value == job
        assert b"".join([chunk async for chunk in store.get(kept)]) == b"a checkpoint"
        assert (await audit.verify_audit(other, admin)).is_whole
        assert (tmp_path / "data" / "logs" / job.id / "1" / "federate.log").read_text() == "hello"


async def test_the_next_backup_copies_what_is_new_and_replaces_the_one_before(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    first = await keep_object(platform, job.id, b"first")
    folder = tmp_path / "backup"
    await back_up(platform.folder, folder, NOW)
    path = next((folder / "objects").rglob(first.removeprefix("sha256:")))
    before = path.stat().st_ino
    await keep_object(platform, job.id, b"second")

    again = await back_up(platform.folder, folder, NOW)

    assert again.objects == 2
    assert path.stat().st_ino == before
    assert len(list(folder.glob("database-*.db"))) == 1


async def test_deleting_waits_while_a_backup_links_what_its_records_name(
    platform: Platform, admin: Principal
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    digest = await keep_object(platform, job.id, b"a checkpoint")

    with DirectoryStore(platform.folder).kept():
        releasing = asyncio.create_task(release(platform, job.id, digest))
        await asyncio.sleep(0.05)
        assert not releasing.done()
        assert (await platform.store.stat(digest)).size_bytes == 12
    await releasing


async def test_an_object_of_a_job_that_is_being_deleted_may_be_missing(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    digest = await keep_object(platform, job.id, b"going")
    await platform.store.delete(digest)

    made = await back_up(platform.folder, tmp_path / "backup", NOW)
    await restore(tmp_path / "backup", tmp_path / "data")

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
        await back_up(platform.folder, tmp_path / "backup", NOW)

    assert not (tmp_path / "backup" / MANIFEST).exists()
    assert not list(platform.folder.glob("backup/objects-kept"))


@pytest.mark.parametrize("harm", ["object", "database", "manifest"])
async def test_a_backup_that_was_harmed_is_not_restored(
    platform: Platform, admin: Principal, tmp_path: Path, harm: str
) -> None:
    job = await submit_job(platform, admin, job_spec(), None)
    digest = await keep_object(platform, job.id, b"content")
    folder = tmp_path / "backup"
    await back_up(platform.folder, folder, NOW)
    path = {
        "object": lambda: next((folder / "objects").rglob(digest.removeprefix("sha256:"))),
        "database": lambda: next(folder.glob("database-*.db")),
        "manifest": lambda: folder / MANIFEST,
    }[harm]()
    path.chmod(0o600)
    path.write_bytes(b"harmed" + path.read_bytes()[6:])

    with pytest.raises((BackupError, ObjectCorrupt)):
        await restore(folder, tmp_path / "data")

    assert not (tmp_path / "data" / "foedus.db").exists()


async def test_a_folder_with_records_or_a_server_is_not_restored_into(
    platform: Platform, admin: Principal, tmp_path: Path
) -> None:
    await back_up(platform.folder, tmp_path / "backup", NOW)

    with pytest.raises(BackupError, match="has records already"):
        await restore(tmp_path / "backup", platform.folder)
    with claimed(tmp_path / "data"), pytest.raises(FolderInUse):
        await restore(tmp_path / "backup", tmp_path / "data")


def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOEDUS_DATA", str(tmp_path / "data"))

    assert run(Settings(), ["backup", str(tmp_path / "backup")]) == 1
    assert "has no records" in capsys.readouterr().err
    assert run(Settings(), ["restore", str(tmp_path / "backup")]) == 1
    assert "holds no finished backup" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "instead"),
    [
        ({"DATABASE_URL": "postgresql://a:secret@there:1/records"}, "pg_dump"),
        (
            {
                "STORE": "s3",
                "S3_ENDPOINT": "there:1",
                "S3_ACCESS_KEY": "a",
                "S3_SECRET_KEY": "secret",
            },
            "replication",
        ),
    ],
    ids=["records", "objects"],
)
@pytest.mark.parametrize("deed", ["backup", "restore"])
def test_what_lies_elsewhere_is_refused_with_what_to_use_instead(
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    deed: str,
    settings: dict[str, str],
    instead: str,
) -> None:
    monkeypatch.setenv("FOEDUS_DATA", str(data_folder))
    for name, value in settings.items():
        monkeypatch.setenv(f"FOEDUS_{name}", value)

    assert run(Settings(), [deed, str(tmp_path / "backup")]) == 1

    told = capsys.readouterr().err
    assert instead in told
    assert "secret" not in told
    assert not (tmp_path / "backup").exists()


def test_a_database_that_is_damaged_is_told(data_folder: Path, tmp_path: Path) -> None:
    shutil.copy(data_folder / "foedus.db", tmp_path / "foedus.db")
    with (tmp_path / "foedus.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)

    with pytest.raises((BackupError, sqlite3.DatabaseError)):
        asyncio.run(back_up(tmp_path, tmp_path / "backup", NOW))
