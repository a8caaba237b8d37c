"""Users whom an identity provider vouches for, put on record when they first come.

Their names, organisations and roles are the provider's to say; the record follows each token. Their
ids follow from issuer and subject, so whoever comes first through two servers at once is one user.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import insert, select, update

from clients.identity import NotEntitled, Principal
from clients.resources import Role, ShortName
from control_plane import audit
from control_plane.accounts import found_organisation
from control_plane.records.database import Database, Transaction
from control_plane.records.tables import COLLABORATION, ORGANISATION, USER
from control_plane.refusals import WrittenMeanwhile

LONGEST_NAME: Final = 100


class ExternalUser(msgspec.Struct, frozen=True, kw_only=True):
    """Someone as the identity provider describes them.

    Attributes:
        id: Ours, which follows from theirs.
        organisation: Its name.
    """

    id: str
    name: str
    organisation: str
    roles: frozenset[Role]


async def enrol(database: Database, now: Callable[[], datetime], user: ExternalUser) -> Principal:
    """Put ``user`` on record as described, with the organisation if it is new.

    Raises:
        NotEntitled: The organisation's name cannot be one here.
        DatabaseUnavailable: The database did not answer.
    """
    try:
        return await _recorded(database, now, user)
    except WrittenMeanwhile:  # another server was just as quick; now its rows are there
        return await _recorded(database, now, user)


async def _recorded(
    database: Database, now: Callable[[], datetime], user: ExternalUser
) -> Principal:
    roles = msgspec.json.encode(sorted(user.roles)).decode()
    known = await database.one_or_none(
        select(USER.c.name, USER.c.organisation)
        .join(ORGANISATION, ORGANISATION.c.id == USER.c.organisation)
        .where(USER.c.id == user.id, USER.c.roles == roles)
        .where(ORGANISATION.c.name == user.organisation)
    )
    if known is not None and known.name in _names(user):
        return _principal(user, known.name, known.organisation)
    async with database.writing() as transaction:
        organisation, is_new = await _organisation(transaction, user.organisation, now)
        name = await _free_name(transaction, user, organisation)
        values = {"name": name, "organisation": organisation, "roles": roles}
        changed = await transaction.execute(
            update(USER).where(USER.c.id == user.id).values(**values)
        )
        if not changed:
            await transaction.execute(insert(USER), {"id": user.id, "created_at": now(), **values})
        if is_new:
            detail = {"name": user.organisation}
            await audit.note(
                transaction, now(), None, "organisation.add", organisation, detail=detail
            )
        action = "user.change" if changed else "user.enrol"
        await audit.note(
            transaction,
            now(),
            None,
            action,
            user.id,
            detail={"name": name, "organisation": organisation, "roles": sorted(user.roles)},
        )
    return _principal(user, name, organisation)


async def _organisation(
    transaction: Transaction, name: str, now: Callable[[], datetime]
) -> tuple[str, bool]:
    """Id of the organisation, and whether it was added just now."""
    row = await transaction.one_or_none(
        select(ORGANISATION.c.id).where(ORGANISATION.c.name == name)
    )
    if row is not None:
        return str(row.id), False
    try:
        msgspec.convert(name, ShortName)
    except msgspec.ValidationError as error:
        raise NotEntitled("the name of this user's organisation cannot be one here") from error
    if await transaction.one_or_none(
        select(COLLABORATION.c.id).where(COLLABORATION.c.name == name)
    ):
        raise NotEntitled(
            f"the organisation {name!r} cannot be added, for a collaboration has its name; "
            "ask whoever runs the platform"
        )
    return (await found_organisation(transaction, name, now())).id, True


def _names(user: ExternalUser) -> tuple[str, str]:
    """The user's name, and what to call them where another user of the organisation has it."""
    name = user.name[:LONGEST_NAME]
    return name, f"{name}-{user.id[-6:]}"


async def _free_name(transaction: Transaction, user: ExternalUser, organisation: str) -> str:
    name, other = _names(user)
    taken = await transaction.one_or_none(
        select(USER.c.id).where(
            USER.c.organisation == organisation, USER.c.name == name, USER.c.id != user.id
        )
    )
    return other if taken else name


def _principal(user: ExternalUser, name: str, organisation: str) -> Principal:
    return Principal(user=user.id, name=name, organisation=organisation, roles=user.roles)
