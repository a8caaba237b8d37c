"""All rows of all tables, from one kind of database to another.

What differs between the kinds is evened out: text in PostgreSQL has a sign for NUL, and SQLite
keeps NaN as null. Holds are of the moment, and stay behind.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, Table, delete, func, insert, select
from sqlmodel import SQLModel

from control_plane.records.tables import AUDIT_HEAD, HOLD

BATCH: Final = 1000
TABLES: Final[tuple[Table, ...]] = tuple(
    table for table in SQLModel.metadata.sorted_tables if table is not HOLD
)
"""In an order in which none refers to a later one."""


class Content(msgspec.Struct, frozen=True):
    """What is in a table.

    Attributes:
        rows: How many.
        digest: SHA-256 of every row, added up: the same in any order.
    """

    rows: int
    digest: str


def copy_rows(source: Connection, target: Connection) -> dict[str, Content]:
    """Add all rows to tables that have none; what was read."""
    target.execute(delete(AUDIT_HEAD))  # of a log without entries, as its migration made it

    def add(table: Table, rows: Sequence[Row[Any]]) -> None:
        target.execute(insert(table), [dict(row._mapping) for row in rows])

    return {table.name: _read(source, table, partial(add, table)) for table in TABLES}


def contents(connection: Connection) -> dict[str, Content]:
    """What is in each table."""
    return {table.name: _read(connection, table, lambda _: None) for table in TABLES}


def is_empty(connection: Connection) -> bool:
    """True if no table has a row but those that migrations made."""
    counts = (
        connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in TABLES
        if table is not AUDIT_HEAD
    )
    return not any(counts)


def _read(
    connection: Connection, table: Table, take: Callable[[Sequence[Row[Any]]], None]
) -> Content:
    count = total = 0
    for rows in _batches(connection, table):
        take(rows)
        count += len(rows)
        for row in rows:
            encoded = msgspec.msgpack.encode([_plain(value) for value in row])
            total += int.from_bytes(hashlib.sha256(encoded).digest(), "big")
    return Content(count, f"{total % 2**256:064x}")


def _batches(connection: Connection, table: Table) -> Iterator[Sequence[Row[Any]]]:
    columns = sorted(table.columns, key=lambda column: column.name)  # migrations append theirs
    options = {"yield_per": BATCH}
    yield from connection.execute(select(*columns), execution_options=options).partitions()


def _plain(value: Any) -> Any:  # noqa: ANN401 - a column's
    match value:
        case str():
            return value.replace("\0", "\N{SYMBOL FOR NULL}")
        case float() if math.isnan(value):
            return None
    return value
