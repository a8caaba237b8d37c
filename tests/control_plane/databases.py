"""Which database the tests of the control plane run on: SQLite, or PostgreSQL if one is named.

``FOEDUS_TEST_DATABASE_URL`` names a database of a PostgreSQL server; what is made there are
databases of our own, and they are dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from control_plane.audit import FIRST_DIGEST
from control_plane.records.database import Database
from control_plane.records.sqlite import open_sqlite
from control_plane.records.tables import ORGANISATION, SECRET

SERVER = os.environ.get("FOEDUS_TEST_DATABASE_URL")
sqlite_alone = pytest.mark.skipif(SERVER is not None, reason="it is about SQLite")


@contextmanager
def new_database(server: str | None = SERVER) -> Iterator[str | None]:
    """URL of an empty database on ``server``; None where the tests run on SQLite."""
    if server is None:
        yield None
        return
    import psycopg

    name = f"foedus_test_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            drop = f"DROP DATABASE {name} WITH (FORCE)"
            connection.execute(drop)  # type: ignore[call-overload]


def empty(url: str | None) -> None:
    """Empty all tables of the database at ``url``."""
    if url is not None:
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                f"TRUNCATE {ORGANISATION.name}, {SECRET.name}, collaboration CASCADE"  # type: ignore[call-overload]
            )
            connection.execute("ALTER TABLE audit DISABLE TRIGGER audit_append_only")
            connection.execute("TRUNCATE audit")
            connection.execute("ALTER TABLE audit ENABLE TRIGGER audit_append_only")
            connection.execute(
                f"UPDATE audit_head SET number = 0, digest = '{FIRST_DIGEST}'"  # type: ignore[call-overload]
            )


def open_records(folder: Path, url: str | None) -> Database:
    """The records in ``folder``, or those at ``url``."""
    if url is None:
        return open_sqlite(folder / "foedus.db")
    from control_plane.records.postgres import open_postgres

    return open_postgres(url)
