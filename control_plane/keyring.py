"""Secrets of the platform that all its replicas share, made when they are first asked for."""

from __future__ import annotations

import secrets
from typing import Final

from sqlalchemy import insert, select

from control_plane.records.database import Database
from control_plane.records.tables import SECRET
from control_plane.refusals import WrittenMeanwhile

CURSORS: Final = "cursors"
"""Name of the key that seals cursors of lists."""
KEY_BYTES: Final = 32


async def server_secret(database: Database, name: str) -> bytes:
    """The secret called ``name``: 256 random bits.

    Raises:
        DatabaseUnavailable: The database did not answer.
    """
    wanted = select(SECRET.c.value).where(SECRET.c.name == name)
    if (row := await database.one_or_none(wanted)) is not None:
        return bytes(row.value)
    value = secrets.token_bytes(KEY_BYTES)
    try:
        async with database.writing() as transaction:
            await transaction.execute(insert(SECRET), {"name": name, "value": value})
    except WrittenMeanwhile:
        return await server_secret(database, name)
    return value
