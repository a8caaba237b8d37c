"""Who may see the platform's keys, and have new ones take their place."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, delete, insert, select, update

from clients.identity import Principal
from clients.resources import KeyState, PlatformKey
from control_plane import audit
from control_plane.authorisation import Action
from control_plane.hosts import require_host
from control_plane.ids import new_id
from control_plane.keyring import PURPOSES, new_value
from control_plane.notices import KEYS
from control_plane.platform import Platform
from control_plane.records.tables import SECRET
from control_plane.refusals import NotFound

OVERLAP: Final = timedelta(days=1)
"""For which a key is good after its rotation: longer than anybody takes to read a list."""
_ALONE: Final = "keys"


async def list_keys(platform: Platform, who: Principal) -> tuple[PlatformKey, ...]:
    """All keys without what they are, by id.

    Raises:
        Forbidden: The caller is no admin or operator of the organisation that runs the platform.
    """
    await require_host(platform, who, Action.READ_PLATFORM)
    rows = await platform.database.rows(select(SECRET).order_by(SECRET.c.name))
    return tuple(_view(row, platform.now()) for row in rows)


async def rotate(
    platform: Platform, who: Principal, purpose: str, *, is_at_once: bool
) -> PlatformKey:
    """Have a new key seal from now on; the one before ends a day later, or ``is_at_once``.

    Raises:
        Forbidden: The caller is no admin of the organisation that runs the platform.
        NotFound: There are no keys for that.
    """
    await require_host(platform, who, Action.MANAGE_ORGANISATIONS)
    if purpose not in PURPOSES:
        raise NotFound("no such purpose of a key")
    now = platform.now()
    id = f"{purpose}.{new_id('key', now)}"
    seals = SECRET.c.ends_at.is_(None)
    is_of_purpose = (SECRET.c.name == purpose) | SECRET.c.name.startswith(f"{purpose}.")
    async with platform.database.writing() as transaction:
        await transaction.alone(_ALONE)
        if is_at_once:
            await transaction.execute(delete(SECRET).where(is_of_purpose))
        else:
            ending = update(SECRET).where(is_of_purpose, seals).values(ends_at=now + OVERLAP)
            await transaction.execute(ending)
        row = {"name": id, "value": new_value(), "created_at": now}
        await transaction.execute(insert(SECRET), row)
        await audit.note(transaction, now, who, "key.rotate", id, detail={"at_once": is_at_once})
        transaction.tell(KEYS)
    await platform.keys.load()
    return PlatformKey(id=id, purpose=purpose, state=KeyState.SEALS, created_at=now, ends_at=None)


async def wipe_ended(platform: Platform) -> None:
    """Delete the keys that are good no more; can be repeated, by several at once.

    Raises:
        DatabaseUnavailable: The database did not answer.
    """
    now = platform.now()
    async with platform.database.writing() as transaction:
        gone = await transaction.rows(
            delete(SECRET).where(SECRET.c.ends_at <= now).returning(SECRET.c.name)
        )
        for row in gone:
            await audit.note(transaction, now, None, "key.wipe", row.name)
        if gone:
            transaction.tell(KEYS)
    if gone:
        await platform.keys.load()


def _view(row: Row[Any], now: datetime) -> PlatformKey:
    if row.ends_at is None:
        state = KeyState.SEALS
    else:
        state = KeyState.OPENS if now < row.ends_at else KeyState.ENDED
    return PlatformKey(
        id=row.name,
        purpose=row.name.partition(".")[0],
        state=state,
        created_at=row.created_at,
        ends_at=row.ends_at,
    )
