"""Which objects are needed, and giving up those that are not."""

from __future__ import annotations

from sqlalchemy import delete, exists, or_, select

from control_plane.holds import require_free
from control_plane.platform import Platform
from control_plane.records.database import Transaction
from control_plane.records.tables import DATASET, JOB_OBJECT, MODEL, PROGRAM, VARIANT
from sharing.object_store import Digest, ObjectMissing, StoreUnavailable, Wiping


async def release(platform: Platform, job: str, digest: Digest, *, is_wiped: bool = False) -> None:
    """Give up a job's object, and delete it if nobody else needs it; can be repeated.

    Where it ``is_wiped``, its bytes are written over first if the store has a medium of ours.

    Raises:
        ObjectsHeld: Nothing may be deleted just now.
        StoreUnavailable: It may still be there, and is on record as before.
    """
    async with platform.custody.of(digest):
        await require_free(platform.database)
        if not await _is_needed_beside(platform, job, digest):
            if is_wiped and isinstance(platform.store, Wiping):
                await platform.store.wipe(digest)
            else:
                await platform.store.delete(digest)
        async with platform.database.writing() as transaction:
            await transaction.execute(
                delete(JOB_OBJECT).where(JOB_OBJECT.c.job == job, JOB_OBJECT.c.digest == digest)
            )


async def require_stored(platform: Platform, digest: Digest) -> None:
    """Raise unless the object is there; the caller holds it in custody.

    Raises:
        StoreUnavailable: It was given up just now; storing it again will help.
    """
    try:
        await platform.store.stat(digest)
    except ObjectMissing as error:
        raise StoreUnavailable("the object was deleted while it was stored") from error


async def keep(transaction: Transaction, job: str, digest: Digest) -> bool:
    """Put on record that a job has an object; False if it is already."""
    known = await transaction.one_or_none(
        select(JOB_OBJECT.c.job).where(JOB_OBJECT.c.job == job, JOB_OBJECT.c.digest == digest)
    )
    if known is None:
        await transaction.execute(JOB_OBJECT.insert(), {"job": job, "digest": digest})
    return known is None


async def _is_needed_beside(platform: Platform, job: str, digest: Digest) -> bool:
    """True if anything but ``job`` refers to the object."""
    uses = [
        exists().where(JOB_OBJECT.c.digest == digest, JOB_OBJECT.c.job != job),
        *(exists().where(table.c.digest == digest) for table in (VARIANT, MODEL, PROGRAM, DATASET)),
    ]
    row = await platform.database.one_or_none(select(or_(*uses).label("is_needed")))
    return row is None or bool(row.is_needed)
