from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlmodel import SQLModel

from control_plane.migrations import HEAD
from control_plane.migrations.upgrading import configuration
from control_plane.records.database import Database
from control_plane.records.sqlite import open_sqlite
from control_plane.records.tables import MEMBER, ORGANISATION
from control_plane.refusals import DatabaseUnavailable, WrittenMeanwhile
from tests.control_plane.databases import open_records, sqlite_alone

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


@pytest.fixture
def database(data_folder: Path, database_url: str | None) -> Iterator[Database]:
    database = open_records(data_folder, database_url)
    yield database
    database.close()


def organisation(name: str) -> dict[str, object]:
    return {"id": name, "name": name, "created_at": NOW}


async def names(database: Database) -> list[str]:
    rows = await database.rows(select(ORGANISATION.c.name).order_by(ORGANISATION.c.name))
    return [row.name for row in rows]


def test_the_revisions_make_the_tables_that_the_code_has(tmp_path: Path) -> None:
    open_sqlite(tmp_path / "foedus.db").close()

    with create_engine(f"sqlite:///{tmp_path / 'foedus.db'}").connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_the_newest_revision_is_the_one_that_is_known_without_alembic() -> None:
    assert ScriptDirectory.from_config(configuration()).get_current_head() == HEAD


def test_a_start_with_tables_in_place_does_without_alembic(empty_records: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from control_plane.records.sqlite import open_sqlite\n"
        f"open_sqlite(Path({str(empty_records / 'foedus.db')!r})).close()\n"
        "sys.exit('alembic' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_first_start_that_was_cut_short_is_made_up_for(tmp_path: Path) -> None:
    path = tmp_path / "foedus.db"
    with sqlite3.connect(path) as connection:  # as far as a killed first start could come
        connection.execute("PRAGMA journal_mode = WAL")
    connection.close()

    open_sqlite(path).close()

    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
    connection.close()


async def test_what_is_committed_is_read(database: Database) -> None:
    async with database.writing() as transaction:
        await transaction.execute(insert(ORGANISATION), organisation("a"))

    assert await names(database) == ["a"]


async def test_an_error_undoes_all_of_a_transaction(database: Database) -> None:
    async def fail() -> None:
        async with database.writing() as transaction:
            await transaction.execute(insert(ORGANISATION), organisation("a"))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        await fail()

    assert await names(database) == []
    async with database.writing() as transaction:
        await transaction.execute(insert(ORGANISATION), organisation("b"))
    assert await names(database) == ["b"]


async def test_readers_do_not_wait_for_the_writer_nor_see_what_is_not_committed(
    database: Database,
) -> None:
    async with database.writing() as transaction:
        await transaction.execute(insert(ORGANISATION), organisation("a"))

        async with asyncio.timeout(2):
            assert await names(database) == []


@sqlite_alone
async def test_writers_take_turns(database: Database) -> None:
    async def write(i: int) -> None:
        async with database.writing() as transaction:
            found = await transaction.rows(select(ORGANISATION.c.id))
            await asyncio.sleep(0)
            await transaction.execute(insert(ORGANISATION), organisation(f"{len(found):02}"))

    await asyncio.gather(*(write(i) for i in range(20)))

    assert await names(database) == [f"{i:02}" for i in range(20)]


@sqlite_alone  # elsewhere in the order of who waits for whom
async def test_what_is_told_after_a_commit_is_told_in_order_and_only_then(
    database: Database,
) -> None:
    told: list[int] = []

    async def write(i: int) -> None:
        async with database.writing() as transaction:
            await transaction.execute(insert(ORGANISATION), organisation(str(i)))
            transaction.after_commit(lambda: told.append(i))
            assert i not in told

    await asyncio.gather(*(write(i) for i in range(10)))

    assert told == list(range(10))


async def test_nothing_is_told_of_what_was_undone(database: Database) -> None:
    told: list[int] = []

    async def fail() -> None:
        async with database.writing() as transaction:
            transaction.after_commit(lambda: told.append(1))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        await fail()

    await database.ping()
    assert told == []


@pytest.mark.parametrize("steps", range(12))
async def test_cancelling_a_writer_anywhere_leaves_all_or_nothing(
    database: Database, steps: int
) -> None:
    told: list[str] = []

    async def write() -> None:
        async with database.writing() as transaction:
            await transaction.execute(insert(ORGANISATION), organisation("a"))
            await transaction.execute(insert(ORGANISATION), organisation("b"))
            transaction.after_commit(lambda: told.append("a, b"))

    task = asyncio.create_task(write())
    for _ in range(steps):
        await asyncio.sleep(0.0005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with database.writing() as transaction:
        await transaction.execute(insert(ORGANISATION), organisation("c"))

    assert (await names(database), told) in ((["c"], []), (["a", "b", "c"], ["a, b"]))


async def test_what_does_not_refer_to_anything_is_refused(database: Database) -> None:
    async def write() -> None:
        async with database.writing() as transaction:
            row = {"collaboration": "none", "organisation": "none"}
            await transaction.execute(insert(MEMBER), row)

    with pytest.raises(IntegrityError):
        await write()


async def test_what_is_on_record_already_is_told_apart(database: Database) -> None:
    async def write() -> None:
        async with database.writing() as transaction:
            await transaction.execute(insert(ORGANISATION), organisation("a"))

    await write()
    with pytest.raises(WrittenMeanwhile):
        await write()

    assert await names(database) == ["a"]


async def test_the_clock_is_that_of_the_world(database: Database) -> None:
    [row] = await database.rows(select(database.clock.label("now")))

    assert abs(row.now - time.time()) < 2


async def test_moments_come_back_in_utc_whatever_zone_they_went_in_with(
    database: Database,
) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))
    async with database.writing() as transaction:
        row = {**organisation("a"), "created_at": elsewhere}
        await transaction.execute(insert(ORGANISATION), row)

    found = await database.one_or_none(select(ORGANISATION.c.created_at))

    assert found is not None
    assert found.created_at == NOW
    assert found.created_at.tzinfo is UTC


async def test_a_database_that_somebody_else_holds_is_unavailable(data_folder: Path) -> None:
    database = open_sqlite(data_folder / "foedus.db", busy_timeout_s=0.05)
    other = sqlite3.connect(data_folder / "foedus.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(DatabaseUnavailable):
        async with database.writing():
            pass

    other.execute("ROLLBACK")
    other.close()
    async with database.writing() as transaction:
        await transaction.execute(insert(ORGANISATION), organisation("a"))
    assert await names(database) == ["a"]
    database.close()


async def test_a_statement_that_is_wrong_is_no_unavailable_database(database: Database) -> None:
    with pytest.raises(DBAPIError):
        await database.rows(text("SELECT nothing FROM nowhere"))


async def test_an_answering_database_answers(database: Database) -> None:
    await database.ping()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "foedus.db").mkdir()

    with pytest.raises(DatabaseUnavailable):
        open_sqlite(tmp_path / "foedus.db")


def test_records_of_the_first_release_are_there_after_the_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "foedus.db"
    engine = create_engine(f"sqlite:///{path}")
    settings = configuration()
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, "0001")
        connection.execute(
            text("INSERT INTO organisation (id, name, created_at) VALUES ('a', 'a', '2026-01-02')")
        )
    engine.dispose()

    open_sqlite(path).close()

    with sqlite3.connect(path) as upgraded:
        assert upgraded.execute("SELECT id, name FROM organisation").fetchall() == [("a", "a")]
        assert upgraded.execute("SELECT number FROM audit_head").fetchall() == [(0,)]
    upgraded.close()
