"""Credentials by which organisations reach their own buckets, without passing through this server.

The S3 server makes them, holds what they may do, and alone knows their secret; on record is whom
they were made for. They are made before they are on record, and ended before they are off it: so
what counts is on record, but for credentials whose secret was lost with the answer.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy import Row, delete, insert, select

from clients.identity import Principal
from clients.resources import NewStorageCredential, StorageAccess, StorageCredential
from control_plane import audit
from control_plane.accounts import find_organisation
from control_plane.authorisation import Action, Relation, may
from control_plane.hosts import may_for_all
from control_plane.ids import new_id
from control_plane.pages import Slice, cut, newest
from control_plane.platform import Platform
from control_plane.records.tables import STORAGE_CREDENTIAL
from control_plane.refusals import Forbidden, NoBuckets, NotFound
from sharing.object_store import Granting, StoreRefused


async def add_storage_credential(
    platform: Platform, who: Principal, name: str, new: NewStorageCredential
) -> StorageCredential:
    """Make credentials for the buckets of an organisation, named by id or name.

    The answer is the only place where their secret ever stands.

    Raises:
        NotFound: There is no such organisation that the caller may know of.
        Forbidden: The caller is no admin.
        NoBuckets: The store has none, or its server makes us no credentials.
        StoreUnavailable: The server did not answer.
    """
    organisation = await _managed(platform, who, name)
    store = _granting(platform)
    now = platform.now()
    expires_at = now + timedelta(seconds=new.lifetime_s)
    try:
        access = await store.grant(organisation, expires_at)
    except StoreRefused as error:
        raise NoBuckets(str(error)) from error
    made = StorageCredential(
        id=new_id("storage", now),
        label=new.label,
        organisation=organisation,
        access_key=access.access_key,
        made_by=who.user,
        created_at=now,
        expires_at=expires_at,
    )
    row = msgspec.structs.asdict(made)
    del row["access"]
    async with platform.database.writing() as transaction:
        await transaction.execute(insert(STORAGE_CREDENTIAL), row)
        detail = {"organisation": organisation, "access_key": made.access_key}
        await audit.note(
            transaction, platform.now(), who, "storage-credential.add", made.id, detail=detail
        )
    shown = StorageAccess(
        url=access.url,
        region=access.region,
        access_key=access.access_key,
        secret_key=access.secret_key,
        datasets=access.datasets,
        models=access.models,
    )
    return msgspec.structs.replace(made, access=shown)


async def list_storage_credentials(
    platform: Platform, who: Principal, name: str, limit: int, before: str | None = None
) -> Slice[StorageCredential]:
    """Credentials of an organisation, newest first, without their secrets.

    Raises:
        NotFound: There is no such organisation that the caller may know of.
        Forbidden: The caller is no admin.
    """
    organisation = await _managed(platform, who, name)
    query = select(STORAGE_CREDENTIAL).where(STORAGE_CREDENTIAL.c.organisation == organisation)
    rows = await platform.database.rows(newest(query, STORAGE_CREDENTIAL.c.id, limit, before))
    return cut([(row.id, _credential(row)) for row in rows], limit)


async def revoke_storage_credential(
    platform: Platform, who: Principal, name: str, credential: str
) -> None:
    """End credentials: from now on the S3 server refuses them.

    Raises:
        NotFound: There are none of this id, or no such organisation.
        Forbidden: The caller is no admin.
        NoBuckets: The store is not that which made them.
        StoreUnavailable: The server did not answer; they are on record, and may still count.
    """
    organisation = await _managed(platform, who, name)
    is_it = (STORAGE_CREDENTIAL.c.id == credential) & (
        STORAGE_CREDENTIAL.c.organisation == organisation
    )
    row = await platform.database.one_or_none(select(STORAGE_CREDENTIAL).where(is_it))
    if row is None:
        raise NotFound("no such credentials")
    store = _granting(platform)
    try:
        await store.revoke(row.access_key)
    except StoreRefused as error:
        raise NoBuckets(str(error)) from error
    async with platform.database.writing() as transaction:
        if await transaction.execute(delete(STORAGE_CREDENTIAL).where(is_it)):
            detail = {"organisation": organisation, "access_key": row.access_key}
            await audit.note(
                transaction,
                platform.now(),
                who,
                "storage-credential.revoke",
                credential,
                detail=detail,
            )


async def _managed(platform: Platform, who: Principal, name: str) -> str:
    """Id of an organisation whose storage the caller manages."""
    organisation = await find_organisation(platform.database, name)
    if organisation is None or not (
        organisation == who.organisation or await may_for_all(platform, who, Action.MANAGE_STORAGE)
    ):
        raise NotFound("no such organisation")
    if not may(who.roles, Action.MANAGE_STORAGE, Relation.OWNER):
        raise Forbidden("only an admin may manage credentials for storage")
    return organisation


def _granting(platform: Platform) -> Granting:
    if not isinstance(platform.store, Granting):
        raise NoBuckets("objects lie in a folder of the server, which has no buckets")
    return platform.store


def _credential(row: Row[Any]) -> StorageCredential:
    return msgspec.convert(row._mapping, StorageCredential)
