"""Keys of the platform's own, which all its replicas share: made when first needed, and rotated.

The newest key of a purpose seals from now on; those before it are still good for what they sealed,
until they end and are wiped. A key is a row, and what is done to one a single transaction, so a
replica that dies leaves the keys of before or those of after.

Attempts and users have tokens of their own, of which only hashes are kept; nothing here seals them,
so rotation leaves runs alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy import insert, select

from control_plane.records.database import Database
from control_plane.records.tables import SECRET
from control_plane.refusals import WrittenMeanwhile

CURSORS: Final = "cursors"
"""Purpose of the key that seals cursors of lists."""
PURPOSES: Final = (CURSORS,)
KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key, whose id begins with what it is for.

    Attributes:
        id: The purpose, and for all but the first of it a dot and more.
        value: 256 random bits; never shown.
        created_at: None if that is longer ago than is on record.
        ends_at: When it is good no more; None for the one that seals.
    """

    id: str
    value: bytes = field(repr=False)
    created_at: datetime | None
    ends_at: datetime | None

    @property
    def purpose(self) -> str:
        """What it is for."""
        return self.id.partition(".")[0]


class KeyRing:
    """The platform's keys as this replica knows them; a notice has it look again."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._keys: tuple[Key, ...] = ()

    async def load(self) -> None:
        """Read all keys, and make those that there must be.

        Raises:
            DatabaseUnavailable: The database did not answer.
        """
        keys = await self._read()
        for purpose in lacking(keys):
            row = {"name": purpose, "value": new_value(), "created_at": self._now()}
            try:
                async with self._database.writing() as transaction:
                    await transaction.execute(insert(SECRET), row)
            except WrittenMeanwhile:
                pass  # by another replica at its first start
            keys = await self._read()
        self._keys = keys

    def values(self, purpose: str) -> tuple[bytes, ...]:
        """What is good for ``purpose`` now, and first what seals."""
        now = self._now()
        return tuple(
            key.value
            for key in sorted(self._keys, key=lambda key: key.ends_at is not None)
            if key.purpose == purpose and (key.ends_at is None or now < key.ends_at)
        )

    async def _read(self) -> tuple[Key, ...]:
        rows = await self._database.rows(select(SECRET).order_by(SECRET.c.name))
        return tuple(
            Key(
                id=row.name,
                value=bytes(row.value),
                created_at=row.created_at,
                ends_at=row.ends_at,
            )
            for row in rows
        )


def lacking(keys: Iterable[Key]) -> tuple[str, ...]:
    """Purposes for which none of ``keys`` seals."""
    sealing = {key.purpose for key in keys if key.ends_at is None}
    return tuple(purpose for purpose in PURPOSES if purpose not in sealing)


def new_value() -> bytes:
    """A key nobody has had."""
    return secrets.token_bytes(KEY_BYTES)
