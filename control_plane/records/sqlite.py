"""SQLite: the records of one process, in one file.

In WAL mode readers read while the one writer writes; writers queue in our process, in order,
instead of running into each other's locks. A transaction that returned is on disk
(``synchronous=FULL``).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy import ColumnElement, Connection, Double, create_engine, event, literal_column
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from control_plane.records.database import Backend, Database, translated, upgrade
from control_plane.refusals import DatabaseUnavailable, WrittenMeanwhile

READERS: Final = 2
BUSY_TIMEOUT_S: Final = 5.0
_CLOCK: Final[ColumnElement[float]] = literal_column(
    "((julianday('now') - 2440587.5) * 86400.0)", Double()
)
_PASSING: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
_TWICE: Final = frozenset({sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY})


def open_sqlite(path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Database:
    """The database in the file at ``path``, made or brought up to date if need be; blocks.

    Raises:
        DatabaseUnavailable: It cannot be opened, or is of a later version than this program.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    url = f"sqlite:///{path}"
    arguments = {"check_same_thread": False, "timeout": busy_timeout_s, "cached_statements": 256}
    writer = create_engine(url, connect_args=arguments, pool_size=1, max_overflow=0)
    event.listen(writer, "connect", _prepare)
    event.listen(writer, "begin", _begin_immediate)
    with translated(refusal):
        upgrade(writer)
    readers = create_engine(
        url,
        connect_args=arguments,
        isolation_level="AUTOCOMMIT",
        pool_size=READERS,
        max_overflow=0,
        pool_reset_on_return=None,
    )
    event.listen(readers, "connect", _prepare)
    return Database(
        Backend(
            readers=readers,
            writers=writer,
            num_readers=READERS,
            num_writers=1,
            clock=_CLOCK,
            refusal=refusal,
        )
    )


def refusal(error: DBAPIError) -> Exception | None:
    """What an error of SQLite's means to the caller; None if a statement is wrong."""
    code = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code in _TWICE:
        return WrittenMeanwhile(f"it is on record already: {error.orig}")
    if code & 0xFF in _PASSING:
        return DatabaseUnavailable(f"the database did not answer: {error.orig}")
    return None


def _prepare(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    # With no isolation level the driver begins nothing by itself: SQLAlchemy's begin does.
    connection.isolation_level = None
    # What is deleted is written over with zeros.
    pragmas = "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
