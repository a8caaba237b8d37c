"""All that lasts, into a folder and back, wherever records and objects lie.

A backup is made beside running servers, and is of one moment: while nothing may be deleted
(``holds``), the records are copied out of one transaction, and then every object that they name,
each checked by its digest. Objects are named by content, so what an earlier backup in the same
folder has is not copied again. The manifest is written last: until then the folder holds the
backup before, whole.

The records become a file of SQLite's, whatever they were in, so a backup of one kind of platform
can be restored as another. Runs under way are restored as attempts that their engine does not know,
and so go on from their last checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import NullPool, create_engine

from control_plane.data_folder import FolderInUse, claimed, write_private
from control_plane.holds import Hold, HoldLost, held
from control_plane.ids import new_id
from control_plane.migrations import HEAD
from control_plane.platform import open_records
from control_plane.records import copies
from control_plane.records.database import translated
from control_plane.records.sqlite import open_sqlite, refusal
from sharing.directory_store import DirectoryStore
from sharing.object_store import (
    Digest,
    ObjectCorrupt,
    ObjectMissing,
    ObjectStore,
    digest_of_file,
)

MANIFEST: Final = "backup.json"
FORMAT: Final = 1
AT_ONCE: Final = 8
"""Objects that are copied at a time."""
_DATABASE: Final = "foedus.db"
_NEEDED: Final = (
    "SELECT digest FROM program UNION SELECT digest FROM dataset UNION SELECT digest FROM model "
    "UNION SELECT digest FROM model_variant"
)
_OF_JOBS: Final = "SELECT digest FROM job_object"
_REVISION: Final = "SELECT version_num FROM alembic_version"

Tell = Callable[[int, int], None]
"""Hears how many objects are done, and of how many."""


class BackupError(Exception):
    """There is no backup, or it was not restored; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where all that lasts of a platform is.

    Attributes:
        folder: Its data folder: secrets, and records unless they are elsewhere.
        store: Its objects.
        url: Of PostgreSQL, if the records are there.
    """

    folder: Path
    store: ObjectStore
    url: str | None = field(default=None, repr=False)


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backup consists of.

    Attributes:
        format: Of this document.
        made_at: The moment that it is of.
        database: Digest of the copy, which lies beside as ``database-...``.
        tables: Rows by table.
        objects: How many the records name.
        size_bytes: Of these objects together.
        missing: Objects of jobs that were being deleted at that moment.
    """

    format: int
    made_at: datetime
    database: Digest
    tables: dict[str, int]
    objects: int
    size_bytes: int
    missing: tuple[Digest, ...]


async def back_up(
    place: Place, folder: Path, now: datetime, tell: Tell = lambda _done, _of: None
) -> BackupManifest:
    """Back a platform up into ``folder``, whether servers use it or not.

    Raises:
        BackupError: There is nothing to back up, or an object that is needed is gone.
        DatabaseUnavailable: The records cannot be read.
        StoreError: An object cannot be read or written, or is corrupt.
        OSError: A file cannot be read or written.
    """
    await asyncio.to_thread(_require_records, place)
    await asyncio.to_thread(folder.mkdir, 0o700, parents=True, exist_ok=True)
    with _alone(folder), _draft(folder) as draft:
        async with _holding(place, now) as hold:
            await asyncio.to_thread(_copy_records, place, draft)
            needed, of_jobs = _named_by(draft)
            target = DirectoryStore(folder)
            sizes = await _copy_all(place.store, target, needed | of_jobs, tell)
            missing = (needed | of_jobs) - sizes.keys()
            if lost := missing & needed:
                raise BackupError(f"the store lacks objects that the records need: {min(lost)}")
            await hold.renew()
        manifest = BackupManifest(
            format=FORMAT,
            made_at=now,
            database=await asyncio.to_thread(digest_of_file, draft),
            tables=_count(draft),
            objects=len(sizes),
            size_bytes=sum(sizes.values()),
            missing=tuple(sorted(missing)),
        )
        draft.replace(_database_in(folder, manifest))
        _sync(folder)
        write_private(folder / MANIFEST, msgspec.json.encode(manifest))
        _sync(folder)
        await asyncio.to_thread(_drop_others, folder, manifest, frozenset(sizes))
    return manifest


async def restore(
    folder: Path, place: Place, tell: Tell = lambda _done, _of: None
) -> BackupManifest:
    """Restore the backup in ``folder`` as a platform without records.

    Records come last, so what was cut short is no platform, and can be restored again.

    Raises:
        BackupError: There is no whole backup, or the platform has records.
        FolderInUse: A server works in the data folder.
        DatabaseUnavailable: The records cannot be written.
        StoreError: An object cannot be read or written, or is corrupt.
        OSError: A file cannot be read or written.
    """
    manifest = read_manifest(folder)
    with claimed(place.folder):
        if place.url is None and (place.folder / _DATABASE).exists():
            raise BackupError(f"{place.folder} has records already; restore into another folder")
        database = _database_in(folder, manifest)
        if await asyncio.to_thread(digest_of_file, database) != manifest.database:
            raise BackupError(f"{database} is not the database that was backed up")
        needed, of_jobs = _named_by(database)
        wanted = (needed | of_jobs) - frozenset(manifest.missing)
        sizes = await _copy_all(DirectoryStore(folder), place.store, wanted, tell)
        if lost := wanted - sizes.keys():
            raise BackupError(f"the backup lacks {min(lost)}")
        if _count(database) != manifest.tables:
            raise BackupError("the tables have not the rows that were backed up")
        with _draft(place.folder) as draft:
            await asyncio.to_thread(_copy_file, database, draft)
            if place.url is None:
                draft.replace(place.folder / _DATABASE)
                _sync(place.folder)
            else:
                await asyncio.to_thread(_fill, draft, place.url)
    return manifest


def read_manifest(folder: Path) -> BackupManifest:
    """What the backup in ``folder`` consists of.

    Raises:
        BackupError: There is none that this version understands.
    """
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=BackupManifest)
    except FileNotFoundError:
        raise BackupError(f"{folder} holds no finished backup") from None
    except msgspec.MsgspecError as error:
        raise BackupError(f"{folder / MANIFEST} cannot be understood: {error}") from error
    if manifest.format != FORMAT:
        raise BackupError(f"{folder} is of format {manifest.format}; this version knows {FORMAT}")
    return manifest


def _database_in(folder: Path, manifest: BackupManifest) -> Path:
    return folder / f"database-{manifest.database.removeprefix('sha256:')}.db"


def _require_records(place: Place) -> None:
    """Raise unless there are records, as this version makes them: it must not change their tables.

    Raises:
        BackupError: There are none.
    """
    try:
        if place.url is None:
            with contextlib.closing(_opened(place.folder / _DATABASE)) as records:
                [(found,)] = records.execute(_REVISION).fetchall()
        else:
            from control_plane.records.postgres import reading_one_moment

            with reading_one_moment(place.url) as moment:
                has_tables = moment.dialect.has_table(moment, "alembic_version")
                found = moment.exec_driver_sql(_REVISION).scalar() if has_tables else None
    except sqlite3.OperationalError:
        found = None
    if found is None:
        raise BackupError(
            f"{place.folder if place.url is None else 'the database'} has no records to back up"
        )
    if found != HEAD:
        raise BackupError("the records are of another version of the platform; use that one")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other backups out of ``folder``."""
    try:
        with claimed(folder):
            yield
    except FolderInUse as error:
        raise BackupError(f"another backup into {folder} is under way") from error


@contextlib.asynccontextmanager
async def _holding(place: Place, now: datetime) -> AsyncIterator[Hold]:
    """Keep all objects meanwhile."""
    database = await asyncio.to_thread(open_records, place.folder, place.url)
    try:
        async with held(database, new_id("backup", now)) as hold:
            yield hold
    except HoldLost as error:
        raise BackupError(str(error)) from error
    finally:
        database.close()


@contextlib.contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """Where the database is copied to; gone afterwards unless it was moved."""
    draft = folder / ".database"
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        yield draft
    finally:
        for path in folder.glob(f"{draft.name}*"):  # SQLite has files beside
            path.unlink(missing_ok=True)


def _copy_records(place: Place, draft: Path) -> None:
    """Copy the records of one moment, without what ends with the processes that have them."""
    if place.url is None:
        _copy_sqlite(place.folder / _DATABASE, draft)
    else:
        _copy_postgres(place.url, draft)
    with contextlib.closing(sqlite3.connect(draft)) as copy, copy:
        copy.execute("DELETE FROM hold")
        copy.execute("UPDATE lease SET holder = '', until = 0")
    _sync(draft)


def _copy_sqlite(source: Path, draft: Path) -> None:
    with (
        contextlib.closing(_opened(source)) as live,
        contextlib.closing(sqlite3.connect(draft)) as copy,
    ):
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE").close()
        found = copy.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        raise BackupError(f"the database is damaged: {found}")


def _copy_postgres(url: str, draft: Path) -> None:
    from control_plane.records.postgres import reading_one_moment

    open_sqlite(draft).close()
    copy = create_engine(f"sqlite:///{draft}", poolclass=NullPool)
    with reading_one_moment(url) as moment, translated(refusal), copy.begin() as rows:
        read = copies.copy_rows(moment, rows)
    with translated(refusal), copy.connect() as rows:
        written = copies.contents(rows)
        rows.exec_driver_sql("PRAGMA journal_mode = DELETE")
    if written != read:
        raise BackupError("the copied tables are not those of the database")


def _fill(draft: Path, url: str) -> None:
    """Put the records into PostgreSQL, all or none of them."""
    from control_plane.records.postgres import filling, open_postgres

    open_sqlite(draft).close()
    open_postgres(url).close()
    copy = create_engine(f"sqlite:///{draft}", poolclass=NullPool)
    with filling(url) as target, copy.connect() as rows:
        if not copies.is_empty(target):
            raise BackupError("the database has records already; restore into another one")
        if copies.copy_rows(rows, target) != copies.contents(target):
            raise BackupError("the tables are not those that were backed up")


def _copy_file(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    _sync(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _drop_others(folder: Path, manifest: BackupManifest, kept: frozenset[Digest]) -> None:
    """Delete what only earlier backups needed: nothing outlives its deletion by two backups."""
    for path in folder.glob("database-*.db"):
        if path != _database_in(folder, manifest):
            path.unlink()
    for path in (folder / "objects").glob("??/*"):
        if f"sha256:{path.name}" not in kept:
            path.unlink()


def _named_by(database: Path) -> tuple[frozenset[Digest], frozenset[Digest]]:
    """Objects that uploads and models need, and those of jobs."""
    with contextlib.closing(_opened(database)) as connection:
        return (
            frozenset(row[0] for row in connection.execute(_NEEDED)),
            frozenset(row[0] for row in connection.execute(_OF_JOBS)),
        )


def _count(database: Path) -> dict[str, int]:
    with contextlib.closing(_opened(database)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608
            for (name,) in sorted(names)
        }


def _opened(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{database}?mode=ro", uri=True)


async def _copy_all(
    source: ObjectStore, target: ObjectStore, digests: frozenset[Digest], tell: Tell
) -> dict[Digest, int]:
    """Copy objects, a few at a time; sizes of those that the source has."""
    waiting = iter(sorted(digests))
    sizes: dict[Digest, int] = {}
    done = 0

    async def copy_on() -> None:
        nonlocal done
        for digest in waiting:
            with contextlib.suppress(ObjectMissing):
                sizes[digest] = await _copy(source, target, digest)
            done += 1
            tell(done, len(digests))

    copying = [asyncio.create_task(copy_on()) for _ in range(AT_ONCE)]
    try:
        await asyncio.gather(*copying)
    finally:
        for task in copying:
            task.cancel()
        await asyncio.wait(copying)
    return sizes


async def _copy(source: ObjectStore, target: ObjectStore, digest: Digest) -> int:
    """Copy an object unless it is there and whole; its size."""
    with contextlib.suppress(ObjectMissing, ObjectCorrupt):
        size_bytes = 0
        async for chunk in target.get(digest):
            size_bytes += len(chunk)
        return size_bytes
    return (await target.put(source.get(digest), expect=digest)).size_bytes
