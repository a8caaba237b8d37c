"""Keeping every object while what the records name is copied.

A hold is a row, so that it holds for all replicas and on every kind of database and store. It ends
by itself soon after the last word of who took it. What was being deleted in the moment in which it
was taken may still go; nothing that is asked for later does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from sqlalchemy import delete, insert, select, update

from control_plane.records.database import Database
from control_plane.records.tables import HOLD
from control_plane.refusals import DatabaseUnavailable
from sharing.object_store import StoreUnavailable

HOLD_S: Final = 60.0
"""After which a hold ends that nobody renews."""


class ObjectsHeld(StoreUnavailable):
    """Nothing can be deleted just now, because a backup is being made."""


class HoldLost(Exception):
    """It ended meanwhile, so objects may have been deleted."""


class Hold:
    """A hold that stands; handed out by ``held``."""

    def __init__(self, database: Database, id: str) -> None:
        self._database = database
        self._id = id

    async def renew(self) -> None:
        """Have it stand for ``HOLD_S`` from now.

        Raises:
            HoldLost: It has ended.
            DatabaseUnavailable: The database did not answer.
        """
        async with self._database.writing() as transaction:
            renewed = await transaction.execute(
                update(HOLD)
                .where(HOLD.c.id == self._id, HOLD.c.until > self._database.clock)
                .values(until=self._database.clock + HOLD_S)
            )
        if not renewed:
            raise HoldLost(f"the database was away for {HOLD_S:g} s, and objects may have gone")


@asynccontextmanager
async def held(database: Database, id: str) -> AsyncIterator[Hold]:
    """Let no object be deleted meanwhile; ask the hold for a last time before relying on it.

    Raises:
        DatabaseUnavailable: The database did not answer.
    """
    hold = Hold(database, id)
    async with database.writing() as transaction:
        await transaction.execute(delete(HOLD).where(HOLD.c.until <= database.clock))
        await transaction.execute(insert(HOLD).values(id=id, until=database.clock + HOLD_S))
    renewing = asyncio.create_task(_keep(hold), name=id)
    try:
        yield hold
    finally:
        renewing.cancel()
        await asyncio.wait((renewing,))
        with suppress(DatabaseUnavailable):  # then it ends by itself
            async with database.writing() as transaction:
                await transaction.execute(delete(HOLD).where(HOLD.c.id == id))


async def require_free(database: Database) -> None:
    """Raise unless objects may be deleted.

    Raises:
        ObjectsHeld: They may not.
        DatabaseUnavailable: The database did not answer.
    """
    standing = select(HOLD.c.id).where(HOLD.c.until > database.clock).limit(1)
    if await database.one_or_none(standing) is not None:
        raise ObjectsHeld("a backup is being made, and nothing is deleted until it is whole")


async def _keep(hold: Hold) -> None:
    with suppress(HoldLost):
        while True:
            await asyncio.sleep(HOLD_S / 6)
            with suppress(DatabaseUnavailable):
                await hold.renew()
