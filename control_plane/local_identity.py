"""Who is calling, by users and hashed tokens of our own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import bindparam, select

from clients.identity import NotAuthentic, Principal
from clients.resources import Role
from control_plane.ids import TOKEN_PREFIX, hash_of_token
from control_plane.known_callers import KNOWN_FOR, KnownCallers
from control_plane.records.database import Database
from control_plane.records.tables import TOKEN, USER

MOST_KNOWN: Final = 1024
_SELECT: Final = (
    select(USER.c.id, USER.c.name, USER.c.organisation, USER.c.roles, TOKEN.c.expires_at)
    .join(TOKEN, TOKEN.c.user_id == USER.c.id)
    .where(TOKEN.c.hash == bindparam("hash"))
)
_ROLES: Final = msgspec.json.Decoder(frozenset[Role])


class LocalIdentity:
    """Adapter of ``IdentityProvider`` over the records.

    A token is searched for at most once a minute; ``forget`` makes a revocation count at once. Of a
    revocation by another replica it hears through ``notices``.
    """

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._known = KnownCallers(MOST_KNOWN)
        self._generation = 0
        self._remembers = True

    async def authenticate(self, credential: str) -> Principal:
        if not credential.startswith(TOKEN_PREFIX):
            raise NotAuthentic("this is no token of this platform")
        hashed = hash_of_token(credential)
        now = self._now()
        if (known := self._known.find(hashed, now)) is not None:
            return known
        generation = self._generation
        row = await self._database.one_or_none(_SELECT, {"hash": hashed})
        if row is None:
            raise NotAuthentic("this token is not known, or was revoked")
        if row.expires_at is not None and row.expires_at <= now:
            raise NotAuthentic("this token has expired")
        principal = Principal(
            user=row.id,
            name=row.name,
            organisation=row.organisation,
            roles=_ROLES.decode(row.roles),
        )
        if self._remembers and generation == self._generation:
            until = now + KNOWN_FOR
            self._known.add(hashed, principal, min(until, row.expires_at or until))
        return principal

    def forget(self) -> None:
        """Search for every token anew: one was revoked, or roles changed."""
        self._generation += 1
        self._known.clear()

    def remember(self, does: bool) -> None:
        """Whether to: not while a revocation by another replica would not be heard of."""
        self.forget()
        self._remembers = does
