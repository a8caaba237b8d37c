"""Whoever runs the platform: the organisation that its first start made.

It is known by its name, not by its id: a clock that was set back gives smaller ids.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import select

from clients.identity import Principal
from control_plane.authorisation import Action, may, relation_of
from control_plane.platform import Platform
from control_plane.records.tables import ORGANISATION
from control_plane.refusals import Forbidden

FIRST_ORGANISATION: Final = "home"
_FIRST: Final = select(ORGANISATION.c.id).where(ORGANISATION.c.name == FIRST_ORGANISATION)


async def may_for_all(platform: Platform, who: Principal, action: Action) -> bool:
    """True if the caller may do ``action`` to every organisation, as the platform's host."""
    first = await platform.database.one_or_none(_FIRST)
    if first is None:
        return False
    return may(who.roles, action, relation_of(who, first.id, is_partner=False))


async def require_host(platform: Platform, who: Principal, action: Action) -> None:
    """Raise unless the caller may do ``action`` to every organisation.

    Raises:
        Forbidden: The caller may not.
    """
    if not await may_for_all(platform, who, action):
        raise Forbidden("your role at the organisation that runs the platform must include this")
