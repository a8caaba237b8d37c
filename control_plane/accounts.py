"""Organisations, their users, and the tokens by which these are known."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Row, delete, insert, select

from clients.identity import Principal
from clients.resources import (
    NewOrganisation,
    NewToken,
    NewUser,
    Organisation,
    Role,
    Token,
    User,
    Visibility,
)
from control_plane import audit
from control_plane.authorisation import Action, Relation, may
from control_plane.hosts import FIRST_ORGANISATION, may_for_all, require_host
from control_plane.ids import EXTERNAL_USER, hash_of_token, new_id, new_token
from control_plane.notices import REVOKED
from control_plane.pages import Slice, cut, newest
from control_plane.platform import Platform
from control_plane.records.database import Database, Transaction
from control_plane.records.tables import COLLABORATION, MEMBER, ORGANISATION, TOKEN, USER
from control_plane.refusals import (
    Forbidden,
    NameTaken,
    NotFound,
    Unacceptable,
    WrittenMeanwhile,
)

FIRST_USER: Final = "admin"
FIRST_ROLES: Final = (Role.ADMIN, Role.DEVELOPER, Role.OPERATOR)
_ROLES: Final = msgspec.json.Decoder(tuple[Role, ...])


async def bootstrap(
    platform: Platform, announce: Callable[[str], None] = lambda _: None
) -> str | None:
    """At the first start, make the first organisation, its admin and a token, which is returned.

    Ever after: None. ``announce`` is told the token before it counts, so that no start, however
    it is cut short, leaves a platform that nobody has a token for.
    """
    now = platform.now()
    if await platform.database.rows(select(ORGANISATION.c.id).limit(1)):
        return None
    async with platform.database.writing() as transaction:
        await transaction.alone("bootstrap")
        if await transaction.rows(select(ORGANISATION.c.id).limit(1)):
            return None
        organisation = await found_organisation(transaction, FIRST_ORGANISATION, platform.now())
        user = await _enlist(transaction, FIRST_USER, organisation.id, FIRST_ROLES, platform)
        token, row = _mint("first", user.id, platform)
        await transaction.execute(insert(TOKEN), {**row, "created_at": now, "expires_at": None})
        detail = {"admin": user.id}
        await audit.note(
            transaction, platform.now(), None, "platform.found", organisation.id, detail=detail
        )
        announce(token)
    return token


async def whoami(platform: Platform, who: Principal) -> User:
    """The caller."""
    row = await platform.database.one_or_none(select(USER).where(USER.c.id == who.user))
    if row is None:
        raise NotFound("no such user")
    return _user(row)


async def add_organisation(
    platform: Platform, who: Principal, new: NewOrganisation
) -> Organisation:
    """Add an organisation, and a collaboration for itself under the same name.

    Raises:
        Forbidden: The caller is no admin of the organisation that runs the platform.
        NameTaken: There is one of this name.
    """
    await require_host(platform, who, Action.MANAGE_ORGANISATIONS)
    async with naming(new.name), platform.database.writing() as transaction:
        for table in (ORGANISATION, COLLABORATION):
            if await transaction.one_or_none(select(table.c.id).where(table.c.name == new.name)):
                raise NameTaken(f"the name {new.name!r} is taken")
        organisation = await found_organisation(transaction, new.name, platform.now())
        detail = {"name": new.name}
        await audit.note(
            transaction, platform.now(), who, "organisation.add", organisation.id, detail=detail
        )
    return organisation


async def list_organisations(
    platform: Platform, who: Principal, limit: int, before: str | None = None
) -> Slice[Organisation]:
    """Organisations, newest first: all of them for whoever runs the platform, else one's own."""
    query = newest(select(ORGANISATION), ORGANISATION.c.id, limit, before)
    if not await may_for_all(platform, who, Action.MANAGE_ORGANISATIONS):
        query = query.where(ORGANISATION.c.id == who.organisation)
    rows = await platform.database.rows(query)
    return cut([(row.id, _organisation(row)) for row in rows], limit)


async def add_user(platform: Platform, who: Principal, new: NewUser) -> User:
    """Add a user to an organisation.

    Raises:
        Forbidden: The caller is no admin of it, nor of the organisation that runs the platform.
        Unacceptable: There is no such organisation that the caller may know of.
        NameTaken: The organisation has one of this name.
    """
    if not may(who.roles, Action.MANAGE_USERS, Relation.OWNER):
        raise Forbidden("only an admin may add users")
    is_host = await may_for_all(platform, who, Action.MANAGE_ORGANISATIONS)
    async with naming(new.name), platform.database.writing() as transaction:
        organisation = await find_organisation(transaction, new.organisation)
        if organisation is None or not (is_host or organisation == who.organisation):
            raise Unacceptable("organisation", f"no organisation is called {new.organisation!r}")
        if await transaction.one_or_none(
            select(USER.c.id).where(USER.c.organisation == organisation, USER.c.name == new.name)
        ):
            raise NameTaken(f"the organisation has a user called {new.name!r}")
        user = await _enlist(transaction, new.name, organisation, new.roles, platform)
        detail = {"name": user.name, "organisation": organisation, "roles": user.roles}
        await audit.note(transaction, platform.now(), who, "user.add", user.id, detail=detail)
    return user


async def list_users(
    platform: Platform, who: Principal, limit: int, before: str | None = None
) -> Slice[User]:
    """Users, newest first: of all organisations for whoever runs the platform, else of one's own.

    Raises:
        Forbidden: The caller is no admin.
    """
    if not may(who.roles, Action.MANAGE_USERS, Relation.OWNER):
        raise Forbidden("only an admin may list users")
    query = newest(select(USER), USER.c.id, limit, before)
    if not await may_for_all(platform, who, Action.MANAGE_ORGANISATIONS):
        query = query.where(USER.c.organisation == who.organisation)
    rows = await platform.database.rows(query)
    return cut([(row.id, _user(row)) for row in rows], limit)


async def add_token(platform: Platform, who: Principal, new: NewToken) -> Token:
    """Make a token; the answer is the only place where its secret ever stands.

    Raises:
        NotFound: There is no such user for whom the caller may make one.
        Unacceptable: It would have expired already, or the user has the identity provider's.
    """
    now = platform.now()
    if new.expires_at is not None and (new.expires_at.tzinfo is None or new.expires_at <= now):
        raise Unacceptable("expires_at", "must be a time to come, with its zone")
    user = new.user or who.user
    if not await _reaches(platform, who, user):
        raise NotFound("no such user")
    if user.startswith(EXTERNAL_USER):
        raise Unacceptable("user", "logs in through the identity provider, which gives its tokens")
    token, row = _mint(new.label, user, platform)
    async with platform.database.writing() as transaction:
        await transaction.execute(
            insert(TOKEN), {**row, "created_at": now, "expires_at": new.expires_at}
        )
        await audit.note(
            transaction, platform.now(), who, "token.add", row["id"], detail={"user": user}
        )
    return Token(
        id=row["id"],
        label=new.label,
        user=user,
        created_at=now,
        expires_at=new.expires_at,
        secret=token,
    )


async def list_tokens(
    platform: Platform, who: Principal, limit: int, before: str | None = None
) -> Slice[Token]:
    """The caller's tokens, without their secrets, newest first."""
    query = select(TOKEN).where(TOKEN.c.user_id == who.user)
    rows = await platform.database.rows(newest(query, TOKEN.c.id, limit, before))
    return cut([(row.id, _token(row)) for row in rows], limit)


async def revoke_token(platform: Platform, who: Principal, token: str) -> None:
    """End a token; from now on nobody is known by it.

    Raises:
        NotFound: There is no such token that the caller may revoke.
    """
    async with platform.database.writing() as transaction:
        row = await transaction.one_or_none(select(TOKEN.c.user_id).where(TOKEN.c.id == token))
        if row is None or not await _reaches(platform, who, row.user_id):
            raise NotFound("no such token")
        await transaction.execute(delete(TOKEN).where(TOKEN.c.id == token))
        detail = {"user": row.user_id}
        await audit.note(transaction, platform.now(), who, "token.revoke", token, detail=detail)
        transaction.after_commit(platform.identity.forget)
        transaction.tell(REVOKED)


@asynccontextmanager
async def naming(name: str) -> AsyncIterator[None]:
    """Put something on record under ``name``, which another may do at the same time.

    Raises:
        NameTaken: Another did.
    """
    try:
        yield
    except WrittenMeanwhile as error:
        raise NameTaken(f"the name {name!r} was taken just now") from error


async def find_organisation(records: Transaction | Database, name: str) -> str | None:
    """Id of the organisation that ``name`` names, by id or else by name."""
    for column in (ORGANISATION.c.id, ORGANISATION.c.name):
        if row := await records.one_or_none(select(ORGANISATION.c.id).where(column == name)):
            return str(row.id)
    return None


async def found_organisation(transaction: Transaction, name: str, now: datetime) -> Organisation:
    """Put an organisation on record, and a collaboration for itself; the name is free."""
    organisation = Organisation(id=new_id("organisation", now), name=name, created_at=now)
    collaboration = new_id("collaboration", now)
    await transaction.execute(insert(ORGANISATION), msgspec.structs.asdict(organisation))
    await transaction.execute(
        insert(COLLABORATION),
        {
            "id": collaboration,
            "name": name,
            "purpose": "",
            "datasets": "[]",
            "visibility": msgspec.json.encode(Visibility()).decode(),
            "ends_at": None,
            "created_at": now,
        },
    )
    await transaction.execute(
        insert(MEMBER), {"collaboration": collaboration, "organisation": organisation.id}
    )
    return organisation


async def _reaches(platform: Platform, who: Principal, user: str) -> bool:
    """True if ``user`` is the caller, or one whom the caller is admin of."""
    if user == who.user:
        return True
    row = await platform.database.one_or_none(select(USER.c.organisation).where(USER.c.id == user))
    if row is None or not may(who.roles, Action.MANAGE_USERS, Relation.OWNER):
        return False
    if row.organisation == who.organisation:
        return True
    return await may_for_all(platform, who, Action.MANAGE_ORGANISATIONS)


async def _enlist(
    transaction: Transaction,
    name: str,
    organisation: str,
    roles: tuple[Role, ...],
    platform: Platform,
) -> User:
    now = platform.now()
    user = User(
        id=new_id("user", now),
        name=name,
        organisation=organisation,
        roles=tuple(dict.fromkeys(roles)),
        created_at=now,
    )
    row = {**msgspec.structs.asdict(user), "roles": msgspec.json.encode(user.roles).decode()}
    await transaction.execute(insert(USER), row)
    return user


def _mint(label: str, user: str, platform: Platform) -> tuple[str, dict[str, str]]:
    token = new_token()
    return token, {
        "id": new_id("token", platform.now()),
        "user_id": user,
        "label": label,
        "hash": hash_of_token(token),
    }


def _organisation(row: Row[Any]) -> Organisation:
    return Organisation(id=row.id, name=row.name, created_at=row.created_at)


def _user(row: Row[Any]) -> User:
    return User(
        id=row.id,
        name=row.name,
        organisation=row.organisation,
        roles=_ROLES.decode(row.roles),
        created_at=row.created_at,
    )


def _token(row: Row[Any]) -> Token:
    return Token(
        id=row.id,
        label=row.label,
        user=row.user_id,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
