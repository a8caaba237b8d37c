"""Waking the reconcilers when there is something for them to do."""

from __future__ import annotations

import asyncio

from control_plane.notices import WAKE
from control_plane.records.database import Transaction


class Bell:
    """Wakes the reconciler of this replica, and by ``ring_after`` those of the others."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Something changed that it should look at."""
        self._rung.set()

    def ring_after(self, transaction: Transaction) -> None:
        """Wake the reconcilers of all replicas once ``transaction`` is on disk."""
        transaction.after_commit(self.ring)
        transaction.tell(WAKE)

    async def wait(self, timeout_s: float) -> None:
        """Return when it was rung since the last return, or after ``timeout_s`` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._rung.wait()
        except TimeoutError:
            return
        self._rung.clear()
