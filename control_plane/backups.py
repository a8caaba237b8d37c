"""``python -m control_plane backup|restore FOLDER``: all that lasts, into a folder and back.

A backup is made beside a running server, and is of one moment: objects are kept from deletion while
the database is copied (SQLite's online backup, one transaction) and every object that it names is
linked aside; then they are copied at leisure, each checked by its digest. Objects are named by
content, so what an earlier backup in the same folder has is not copied again. The manifest is
written last: until then the folder holds the backup before, whole.

Records in PostgreSQL and objects in a bucket are backed up by their own means. There is no route
for this on purpose: whoever could call it would have every organisation's models. Runs under way
are restored as attempts that their engine does not know, and so go on from their last checkpoint.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from control_plane.data_folder import FolderInUse, claimed, write_private
from control_plane.platform import utc_now
from control_plane.settings import Settings
from sharing.directory_store import DirectoryStore
from sharing.object_store import Digest, ObjectCorrupt, ObjectMissing, StoreError, digest_of_file

MANIFEST: Final = "backup.json"
FORMAT: Final = 1
_DATABASE: Final = "foedus.db"
_LOGS: Final = "logs"
_NEEDED: Final = (
    "SELECT digest FROM program UNION SELECT digest FROM dataset UNION SELECT digest FROM model "
    "UNION SELECT digest FROM model_variant"
)
_OF_JOBS: Final = "SELECT digest FROM job_object"


class BackupError(Exception):
    """There is no backup, or it was not restored; the message says why."""


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
        logs: How many files of logs there are.
    """

    format: int
    made_at: datetime
    database: Digest
    tables: dict[str, int]
    objects: int
    size_bytes: int
    missing: tuple[Digest, ...]
    logs: int


async def back_up(data: Path, folder: Path, now: datetime) -> BackupManifest:
    """Back the data folder up into ``folder``, whether a server uses it or not.

    Raises:
        BackupError: There is nothing to back up, or an object that is needed is gone.
        StoreError: An object cannot be read or written, or is corrupt.
        OSError: A file cannot be read or written.
    """
    if not (data / _DATABASE).is_file():
        raise BackupError(f"{data} has no records to back up")
    await asyncio.to_thread(folder.mkdir, 0o700, parents=True, exist_ok=True)
    source, target = DirectoryStore(data), DirectoryStore(folder)
    with _staging(data) as stage, _draft(folder) as draft:
        staged = DirectoryStore(stage)
        with source.kept():
            await asyncio.to_thread(_copy_database, data / _DATABASE, draft)
            needed, of_jobs = _named_by(draft)
            missing = await asyncio.to_thread(_link, source, staged, needed | of_jobs)
        if lost := missing & needed:
            raise BackupError(f"the store lacks objects that the records need: {min(lost)}")
        present = (needed | of_jobs) - missing
        size_bytes = 0
        for digest in sorted(present):
            size_bytes += await _copy(staged, target, digest)
        logs = await asyncio.to_thread(_copy_logs, data / _LOGS, folder / _LOGS)
        manifest = BackupManifest(
            format=FORMAT,
            made_at=now,
            database=await asyncio.to_thread(digest_of_file, draft),
            tables=_count(draft),
            objects=len(present),
            size_bytes=size_bytes,
            missing=tuple(sorted(missing)),
            logs=logs,
        )
        draft.replace(_database_in(folder, manifest))
    write_private(folder / MANIFEST, msgspec.json.encode(manifest))
    await asyncio.to_thread(_drop_others, _database_in(folder, manifest))
    return manifest


async def restore(folder: Path, data: Path) -> BackupManifest:
    """Restore the backup in ``folder`` into a data folder without records.

    Records come last, so what was cut short is no platform, and can be restored again.

    Raises:
        BackupError: There is no whole backup, or the data folder has records.
        FolderInUse: A server works in the data folder.
        StoreError: An object cannot be read or written, or is corrupt.
        OSError: A file cannot be read or written.
    """
    manifest = read_manifest(folder)
    with claimed(data):
        if (data / _DATABASE).exists():
            raise BackupError(f"{data} has records already; restore into another folder")
        database = _database_in(folder, manifest)
        if await asyncio.to_thread(digest_of_file, database) != manifest.database:
            raise BackupError(f"{database} is not the database that was backed up")
        needed, of_jobs = _named_by(database)
        source, target = DirectoryStore(folder), DirectoryStore(data)
        for digest in sorted((needed | of_jobs) - frozenset(manifest.missing)):
            await _copy(source, target, digest)
        await asyncio.to_thread(_copy_logs, folder / _LOGS, data / _LOGS)
        if _count(database) != manifest.tables:
            raise BackupError("the tables have not the rows that were backed up")
        with _draft(data) as draft:
            await asyncio.to_thread(_copy_file, database, draft)
            draft.replace(data / _DATABASE)
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


def require_own_disk(settings: Settings) -> None:
    """Raise unless all that lasts is in the data folder.

    Raises:
        BackupError: It is not; the message says what to use instead.
    """
    if settings.database_url is not None or settings.database_url_file is not None:
        raise BackupError(
            "the records are in PostgreSQL (FOEDUS_DATABASE_URL); back them up with pg_dump or by "
            "the server's continuous archiving, and the objects by the means of their store"
        )
    if settings.store != "directory":
        raise BackupError(
            f"the objects are in a bucket (FOEDUS_STORE={settings.store}); keep them by the "
            f"bucket's own replication or versioning, and copy {_DATABASE} of the data folder "
            "with sqlite3's .backup"
        )


def run(settings: Settings, argv: Sequence[str]) -> int:
    """Back up or restore as the command line says; 0 done, 1 not done, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m control_plane")
    parser.add_argument("deed", choices=("backup", "restore"))
    parser.add_argument("folder", type=Path)
    asked, data = parser.parse_args(argv), settings.data
    try:
        require_own_disk(settings)
        if asked.deed == "backup":
            manifest = asyncio.run(back_up(data, asked.folder, utc_now()))
        else:
            manifest = asyncio.run(restore(asked.folder, data))
    except (BackupError, FolderInUse, StoreError, OSError, sqlite3.Error) as error:
        sys.stderr.write(f"foedus: {asked.deed} failed: {error}\n")
        return 1
    where = asked.folder if asked.deed == "backup" else data
    sys.stdout.write(
        f"{where}: the platform of {manifest.made_at.isoformat()}, {manifest.tables['job']} jobs, "
        f"{manifest.objects} objects, {manifest.size_bytes} bytes, every one verified\n"
    )
    return 0


def _database_in(folder: Path, manifest: BackupManifest) -> Path:
    return folder / f"database-{manifest.database.removeprefix('sha256:')}.db"


@contextlib.contextmanager
def _staging(data: Path) -> Iterator[Path]:
    """A folder on the disk of the objects, wiped afterwards; one backup at a time."""
    stage = data / "backup"
    stage.mkdir(mode=0o700, exist_ok=True)
    with claimed(stage):
        try:
            yield stage / "objects-kept"
        finally:
            shutil.rmtree(stage / "objects-kept", ignore_errors=True)


@contextlib.contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """Where the database is copied to; gone afterwards unless it was moved."""
    draft = folder / ".database"
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _copy_database(source: Path, draft: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as live,
        contextlib.closing(sqlite3.connect(draft)) as copy,
    ):
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE").close()
        found = copy.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        raise BackupError(f"the database is damaged: {found}")
    _sync(draft)


def _copy_file(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    _sync(target)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _drop_others(database: Path) -> None:
    """Delete the databases of earlier backups."""
    for path in database.parent.glob("database-*.db"):
        if path != database:
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


def _link(
    source: DirectoryStore, staged: DirectoryStore, digests: frozenset[Digest]
) -> frozenset[Digest]:
    """Link objects aside; those that are not there."""
    missing = set()
    for digest in digests:
        try:
            source.share(digest, staged)
        except ObjectMissing:
            missing.add(digest)
    return frozenset(missing)


async def _copy(source: DirectoryStore, target: DirectoryStore, digest: Digest) -> int:
    """Copy an object unless it is there and whole; its size."""
    with contextlib.suppress(ObjectMissing, ObjectCorrupt):
        size_bytes = 0
        async for chunk in target.get(digest):
            size_bytes += len(chunk)
        return size_bytes
    return (await target.put(source.get(digest), expect=digest)).size_bytes


def _copy_logs(source: Path, target: Path) -> int:
    if not source.is_dir():
        return 0
    shutil.copytree(source, target, dirs_exist_ok=True)
    return sum(1 for path in target.rglob("*") if path.is_file())
