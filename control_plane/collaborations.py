"""Collaborations: organisations that train together, and what each of them sees."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Row, insert, select

from clients.identity import Principal
from clients.resources import Collaboration, NewCollaboration, Visibility
from control_plane import audit
from control_plane.accounts import find_organisation, naming
from control_plane.authorisation import Action, Relation, may
from control_plane.ids import new_id
from control_plane.pages import Slice, cut, newest
from control_plane.platform import Platform
from control_plane.records.database import Transaction
from control_plane.records.tables import COLLABORATION, MEMBER
from control_plane.refusals import Forbidden, NameTaken, NotFound, Unacceptable

VISIBILITY: Final = msgspec.json.Decoder(Visibility)
NAMES: Final = msgspec.json.Decoder(tuple[str, ...])


async def found_collaboration(
    platform: Platform, who: Principal, new: NewCollaboration
) -> Collaboration:
    """Found a collaboration; the caller's organisation is a member.

    Raises:
        Forbidden: The caller is no admin.
        NameTaken: There is one of this name.
        Unacceptable: An organisation is not known, or the end lies in the past.
    """
    if not may(who.roles, Action.FOUND, Relation.OWNER):
        raise Forbidden("only an admin may found a collaboration")
    now = platform.now()
    if new.ends_at is not None and (new.ends_at.tzinfo is None or new.ends_at <= now):
        raise Unacceptable("ends_at", "must be a time to come, with its zone")
    async with naming(new.name), platform.database.writing() as transaction:
        if await transaction.one_or_none(
            select(COLLABORATION.c.id).where(COLLABORATION.c.name == new.name)
        ):
            raise NameTaken(f"the name {new.name!r} is taken")
        invited = await _resolve(transaction, "organisations", new.organisations)
        members = tuple(dict.fromkeys((who.organisation, *invited)))
        visibility = Visibility(
            **{
                name: await _resolve(
                    transaction, f"visibility.{name}", getattr(new.visibility, name), members
                )
                for name in Visibility.__struct_fields__
            }
        )
        row: dict[str, Any] = {
            "id": new_id("collaboration", now),
            "name": new.name,
            "purpose": new.purpose,
            "datasets": msgspec.json.encode(new.datasets).decode(),
            "visibility": msgspec.json.encode(visibility).decode(),
            "ends_at": new.ends_at,
            "created_at": now,
        }
        await transaction.execute(insert(COLLABORATION), row)
        await transaction.execute(
            insert(MEMBER),
            [{"collaboration": row["id"], "organisation": member} for member in members],
        )
        detail = {"name": new.name, "organisations": members}
        await audit.note(
            transaction, platform.now(), who, "collaboration.found", row["id"], detail=detail
        )
    return await get_collaboration(platform, who, row["id"])


async def list_collaborations(
    platform: Platform, who: Principal, limit: int, before: str | None = None
) -> Slice[Collaboration]:
    """Those that the caller's organisation is a member of, newest first."""
    rows = await platform.database.rows(newest(_of(who), COLLABORATION.c.id, limit, before))
    return cut([(row.id, await _collaboration(platform, row)) for row in rows], limit)


async def get_collaboration(
    platform: Platform, who: Principal, collaboration: str
) -> Collaboration:
    """One collaboration, by id or by name.

    Raises:
        NotFound: There is none that the caller's organisation is a member of.
    """
    for column in (COLLABORATION.c.id, COLLABORATION.c.name):
        if row := await platform.database.one_or_none(_of(who).where(column == collaboration)):
            return await _collaboration(platform, row)
    raise NotFound("no such collaboration")


def _of(who: Principal) -> Any:  # noqa: ANN401 - a select of SQLAlchemy's
    return (
        select(COLLABORATION)
        .join(MEMBER, MEMBER.c.collaboration == COLLABORATION.c.id)
        .where(MEMBER.c.organisation == who.organisation)
    )


async def _collaboration(platform: Platform, row: Row[Any]) -> Collaboration:
    members = await platform.database.rows(
        select(MEMBER.c.organisation)
        .where(MEMBER.c.collaboration == row.id)
        .order_by(MEMBER.c.organisation)
    )
    return Collaboration(
        id=row.id,
        name=row.name,
        purpose=row.purpose,
        organisations=tuple(member.organisation for member in members),
        datasets=NAMES.decode(row.datasets),
        visibility=VISIBILITY.decode(row.visibility),
        ends_at=row.ends_at,
        created_at=row.created_at,
    )


async def _resolve(
    transaction: Transaction,
    field: str,
    names: tuple[str, ...],
    within: tuple[str, ...] | None = None,
) -> tuple[str, ...]:
    """Ids of the organisations that ``names`` name, by id or by name."""
    found = []
    for name in names:
        organisation = await find_organisation(transaction, name)
        if organisation is None or (within is not None and organisation not in within):
            whom = "organisation" if within is None else "member"
            raise Unacceptable(field, f"no {whom} is called {name!r}")
        found.append(organisation)
    return tuple(found)
