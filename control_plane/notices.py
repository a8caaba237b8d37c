"""What replicas tell each other through the database, and what this one does upon hearing it.

A notice says only that something is on record; whoever hears it reads the record. So a notice may
come twice, late, or to who told it, and one that was missed is made up for by reading anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import bindparam, select

from clients.identity import IdentityProvider
from clients.resources import Event
from control_plane.event_hub import DEPTH, EventHub
from control_plane.keyring import KeyRing
from control_plane.records.database import Database
from control_plane.records.tables import EVENT
from control_plane.refusals import DatabaseUnavailable
from control_plane.views import event_of

WAKE: Final = "wake"
"""There is something for a reconciler to look at."""
REVOKED: Final = "revoked"
"""A token is good no more, or somebody's roles changed."""
KEYS: Final = "keys"
"""A key was made, or is good no more."""
RETRY_S: Final = 0.5

_log = structlog.get_logger()
_EVENTS: Final = (
    select(EVENT)
    .where(EVENT.c.job == bindparam("job"), EVENT.c.id > bindparam("after"))
    .order_by(EVENT.c.id)
    .limit(DEPTH)
)


@dataclass(frozen=True, slots=True)
class Ears:
    """What in this replica reacts to what others do.

    Attributes:
        database: Through which they tell.
        hub: Hears of events.
        wake: Wakes the reconciler.
        identity: Forgets who is known no more.
        keys: Looks for new ones.
    """

    database: Database
    hub: EventHub
    wake: Callable[[], None]
    identity: IdentityProvider
    keys: KeyRing


def of_events(job: str, events: Sequence[Event]) -> str:
    """That a job has these events, whose ids are contiguous."""
    return f"event {job} {events[0].id} {events[-1].id}"


async def follow(ears: Ears) -> None:
    """Hear what others tell, until cancelled; does nothing where there are no others.

    While nothing can be heard, every token is searched for anew, and watchers wait. A connection
    that is gone without a sign is found out within ``postgres.PING_S`` twice over.
    """
    sharing = ears.database.sharing
    if sharing is None:
        return
    ears.identity.remember(False)
    is_lost = False
    while True:
        try:
            async with aclosing(sharing.notices()) as notices:
                async for notice in notices:
                    await _hear(ears, notice)
                    is_lost = False
        except DatabaseUnavailable as error:
            ears.identity.remember(False)
            if not is_lost:
                _log.warning("notices.lost", error=str(error))
            is_lost = True
        await asyncio.sleep(RETRY_S)


async def _hear(ears: Ears, notice: str | None) -> None:
    match (notice or "").split():
        case []:  # listening from here on; anything may have been missed
            ears.hub.forget()
            ears.identity.remember(True)
            await ears.keys.load()
            ears.wake()
        case ["event", job, first, last]:
            await _read_events(ears, job, int(first), int(last))
        case [word] if word == WAKE:
            ears.wake()
        case [word] if word == REVOKED:
            ears.identity.forget()
        case [word] if word == KEYS:
            await ears.keys.load()
        case _:  # of a later version
            pass


async def _read_events(ears: Ears, job: str, first: int, last: int) -> None:
    while (after := ears.hub.lacks(job, first, last)) is not None:
        rows = await ears.database.rows(_EVENTS, {"job": job, "after": after})
        if not rows:
            return  # the job was deleted meanwhile
        ears.hub.publish(job, [event_of(row) for row in rows])
