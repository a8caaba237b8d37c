"""One at a time per object.

Between looking whether anybody needs an object and deleting it, nobody may come to need it. Within
this process a lock in memory keeps callers apart, in order; between replicas the database does, for
as long as the connection stands: a replica that loses it between looking and deleting, while
another stores the same bytes, deletes what the other has put on record.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from control_plane.records.database import Database
from sharing.object_store import Digest


class Custody:
    """Locks by digest; one takes no room while nobody holds or awaits it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._locks: dict[Digest, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, digest: Digest) -> AsyncIterator[None]:
        """Be the only one to store, record or delete the object meanwhile.

        Raises:
            DatabaseUnavailable: Whether others hold it could not be found out.
        """
        lock, users = self._locks.get(digest, (asyncio.Lock(), 0))
        self._locks[digest] = (lock, users + 1)
        try:
            async with lock, self._database.alone(f"object {digest}"):
                yield
        finally:
            lock, users = self._locks.pop(digest)
            if users > 1:
                self._locks[digest] = (lock, users - 1)
