"""Callers who showed a good credential a moment ago, and need not be looked at again yet."""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Final

from clients.identity import Principal

KNOWN_FOR: Final = timedelta(minutes=1)
"""Longest that a caller is known by a credential; a revocation that is not heard of counts then."""


class KnownCallers:
    """Principals by the hash of their credential."""

    def __init__(self, most: int) -> None:
        """Know nobody yet.

        Args:
            most: Principals; the one that was asked for longest ago makes room.
        """
        self._most = most
        self._known: OrderedDict[str, tuple[Principal, datetime]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, hashed: str, now: datetime) -> Principal | None:
        """Whom the credential is known to be of; None where it has to be looked at."""
        principal, until = self._known.get(hashed, (None, now))
        if principal is None or now >= until:
            return None
        self._known.move_to_end(hashed)
        return principal

    def add(self, hashed: str, principal: Principal, until: datetime) -> None:
        """Know whom the credential is of."""
        self._known[hashed] = (principal, until)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def clear(self) -> None:
        """Know nobody."""
        self._known.clear()
