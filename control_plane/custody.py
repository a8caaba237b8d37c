"""One at a time per object.

Between looking whether anybody needs an object and deleting it, nobody may come to need it.
This is the only process that writes to the records of its data folder, so a lock in memory is
enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sharing.object_store import Digest


class Custody:
    """Locks by digest; one takes no room while nobody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: dict[Digest, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, digest: Digest) -> AsyncIterator[None]:
        """Be the only one to store, record or delete the object meanwhile."""
        lock, users = self._locks.get(digest, (asyncio.Lock(), 0))
        self._locks[digest] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(digest)
            if users > 1:
                self._locks[digest] = (lock, users - 1)
