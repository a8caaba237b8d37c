"""PostgreSQL: the records of any number of replicas; the only module that knows psycopg.

Transactions are READ COMMITTED; what keeps them apart is said in ``database``. A statement that
waits (for a lock, for a server that is gone) is given up after a time, on both ends of the
connection, so neither a lost server nor a lost replica holds anybody up for good. Replicas hear
each other by LISTEN and NOTIFY: a notice leaves with the commit that it tells of, and not without.

Source: PostgreSQL 15, chapter 13 (explicit locking), appendix A (error codes), NOTIFY. A pooler
between us and the server must pool sessions, not transactions, for LISTEN and prepared statements.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import conninfo
from psycopg.types.string import StrDumper
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Double,
    create_engine,
    event,
    literal_column,
    make_url,
    text,
)
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import OperationalError as AlchemyOperationalError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from control_plane.records.database import Backend, Database, Sharing, translated, upgrade
from control_plane.refusals import DatabaseUnavailable, WrittenMeanwhile

READERS: Final = 4
WRITERS: Final = 4
CONNECT_S: Final = 5
STATEMENT_S: Final = 10
LOCK_S: Final = 5
IDLE_S: Final = 60
"""A transaction that nothing is asked of for so long is undone; an object's store may be slow."""
PING_S: Final = 3.0
"""Between looks whether a silent connection for notices still stands."""
CHANNEL: Final = "foedus"
MIGRATION: Final = "foedus migration"
_CLOCK: Final[ColumnElement[float]] = literal_column(
    "CAST(extract(epoch FROM clock_timestamp()) AS double precision)", Double()
)
_LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
_TELL: Final = text(f"SELECT pg_notify('{CHANNEL}', :notice)")
_SESSION: Final[Mapping[str, str]] = {
    "timezone": "UTC",
    "statement_timeout": f"{STATEMENT_S}s",
    "lock_timeout": f"{LOCK_S}s",
    "idle_in_transaction_session_timeout": f"{IDLE_S}s",
    # The server, too, finds out that a replica's machine is gone, and lets go of its locks.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "synchronous_commit": "on",
}
_NETWORK: Final[Mapping[str, Any]] = {
    "application_name": "foedus",
    "connect_timeout": CONNECT_S,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_TWICE: Final = "23505"
_PASSING: Final = (
    "08",  # the connection
    "25006",  # read-only: it became a standby
    "25P03",  # idle in a transaction for too long
    "40",  # undone because of another transaction
    "53",  # no room, memory or connection
    "55P03",  # a lock was not to be had in time
    "57",  # shut down, cancelled, starting up
    "58",  # its own disk
)


class _Text(StrDumper):
    """Text with a sign for NUL, which PostgreSQL cannot hold; a cause's detail may have one."""

    def dump(self, obj: str) -> Any:  # noqa: ANN401 - psycopg's buffer
        return super().dump(obj.replace("\0", "\N{SYMBOL FOR NULL}") if "\0" in obj else obj)


def parse_url(url: str) -> URL:
    """A URL as ``postgresql://user:password@host:port/name``, as SQLAlchemy wants it.

    Raises:
        ValueError: It is no such URL. The message does not repeat it, for it may hold a password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError("is no URL of a database") from None
    return parsed.set(drivername="postgresql+psycopg")


def open_postgres(url: str) -> Database:
    """The database at ``url``, its tables made or brought up to date if need be; blocks.

    Raises:
        ValueError: ``url`` is not one of PostgreSQL's.
        DatabaseUnavailable: It does not answer, or is of a later version than this program.
    """
    parsed, arguments = _connecting(url)
    engine = partial(
        create_engine, parsed, connect_args=arguments, max_overflow=0, hide_parameters=True
    )
    # Twice as many as there are writers, because those that hold a name write, too.
    writers = engine(isolation_level="READ COMMITTED", pool_size=2 * WRITERS, pool_pre_ping=True)
    event.listen(writers, "connect", _prepare)
    try:
        with translated(refusal):
            upgrade(writers, _alone)
    except DatabaseUnavailable:
        writers.dispose()
        raise
    readers = engine(isolation_level="AUTOCOMMIT", pool_size=READERS, pool_reset_on_return=None)
    event.listen(readers, "connect", _prepare)
    whole = {**_arguments_of(parsed), **arguments}
    return Database(
        Backend(
            readers=readers,
            writers=writers,
            num_readers=READERS,
            num_writers=WRITERS,
            clock=_CLOCK,
            refusal=refusal,
            sharing=Sharing(_LOCK, _TELL, lambda: _notices(whole)),
        )
    )


@contextmanager
def reading_one_moment(url: str) -> Iterator[Connection]:
    """One moment of the database at ``url``, to be read at leisure; nobody waits for it; blocks.

    Raises:
        ValueError: ``url`` is not one of PostgreSQL's.
        DatabaseUnavailable: It does not answer.
    """
    with _connection(url, "REPEATABLE READ", is_read_only=True) as connection:
        yield connection


@contextmanager
def filling(url: str) -> Iterator[Connection]:
    """One transaction on the database at ``url``, in which nobody else adds to it; blocks.

    Raises:
        ValueError: ``url`` is not one of PostgreSQL's.
        DatabaseUnavailable: It does not answer; nothing was written.
    """
    with _connection(url, "READ COMMITTED", is_read_only=False) as connection:
        connection.exec_driver_sql("LOCK TABLE organisation IN EXCLUSIVE MODE")
        yield connection
        connection.commit()


@contextmanager
def _connection(url: str, isolation: IsolationLevel, *, is_read_only: bool) -> Iterator[Connection]:
    parsed, arguments = _connecting(url)
    engine = create_engine(
        parsed,
        connect_args=arguments,
        poolclass=NullPool,
        isolation_level=isolation,
        execution_options={"postgresql_readonly": is_read_only},
        hide_parameters=True,
    )
    event.listen(engine, "connect", _prepare)
    with translated(refusal), engine.connect() as connection:
        yield connection


def _connecting(url: str) -> tuple[URL, dict[str, Any]]:
    """A URL without options, and what to connect with."""
    parsed = parse_url(url)
    options = " ".join(f"-c {name}={value}" for name, value in _SESSION.items())
    if "options" in parsed.query:
        options = f"{parsed.query['options']} {options}"
    return parsed.difference_update_query(("options",)), {**_NETWORK, "options": options}


def refusal(error: DBAPIError) -> Exception | None:
    """What an error of PostgreSQL's means to the caller; None if a statement is wrong."""
    state = getattr(error.orig, "sqlstate", None)
    if state == _TWICE:
        return WrittenMeanwhile("it was put on record at the same time")
    if state is None:
        is_lost = error.connection_invalidated or isinstance(error, AlchemyOperationalError)
        return DatabaseUnavailable("the database cannot be reached") if is_lost else None
    if not state.startswith(_PASSING):
        return None
    return DatabaseUnavailable(f"the database did not answer: {_said(error.orig)} ({state})")


async def _notices(arguments: Mapping[str, Any]) -> AsyncGenerator[str | None, None]:
    connection: psycopg.AsyncConnection[Any] | None = None
    try:
        async with asyncio.timeout(2 * CONNECT_S):
            connection = await psycopg.AsyncConnection.connect(**arguments, autocommit=True)
            await connection.execute(f"LISTEN {CHANNEL}")
        yield None
        while True:
            async for notice in connection.notifies(timeout=PING_S):
                yield notice.payload
            async with asyncio.timeout(PING_S):
                await connection.execute("SELECT 1")
    except (psycopg.Error, TimeoutError, OSError) as error:
        raise DatabaseUnavailable(f"notices cannot be heard: {type(error).__name__}") from error
    finally:
        if connection is not None:
            await connection.close()


def _arguments_of(url: URL) -> dict[str, Any]:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return dict(conninfo.conninfo_to_dict(plain))


def _alone(connection: Connection) -> None:
    """Let one replica at a time change the tables; the others find them changed."""
    connection.exec_driver_sql("SET LOCAL lock_timeout = '10min'")
    connection.exec_driver_sql("SET LOCAL statement_timeout = '10min'")
    connection.execute(_LOCK, {"name": MIGRATION})


def _prepare(connection: psycopg.Connection[Any], _: ConnectionPoolEntry) -> None:
    connection.adapters.register_dumper(str, _Text)


def _said(error: BaseException | None) -> str:
    """The server's own words, in which no address and no password stands."""
    return getattr(getattr(error, "diag", None), "message_primary", None) or "no reason was given"
