"""Large files, sent to the object store itself in parts, by links of ours.

An upload is named by the digest that the file is said to have, so beginning it again is going on
with it. Its bytes are nobody's until they are made a data set or a program of: then all of them are
read, and what has another digest is deleted. What nobody comes back to is forgotten: by us when the
next upload begins, by the store's own rules within a day.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Row, delete, insert, select

from clients.identity import Principal
from clients.resources import NewUpload, PartLink, PartLinks, Upload
from control_plane.authorisation import Action, Relation, may
from control_plane.platform import Platform
from control_plane.quotas import require_room
from control_plane.records.tables import UPLOAD
from control_plane.refusals import (
    Forbidden,
    NoDirectUploads,
    NotFound,
    ProbeFailed,
    QuotaExhausted,
    Unacceptable,
    WrittenMeanwhile,
)
from sharing.object_store import (
    Digest,
    ObjectCorrupt,
    ObjectTooLarge,
    Staged,
    StoreError,
    TakingParts,
    UploadGone,
)
from workflows.program import BundleError

PART_BYTES: Final = 16 << 20
MOST_PARTS: Final = 10_000
"""Of one upload, by the rules of S3."""
LIFETIME: Final = timedelta(hours=20)
"""Less than the day after which the store forgets an upload."""
MOST_OPEN: Final = 16
"""Uploads of one organisation that are under way at a time."""
SWEPT_AT_ONCE: Final = 20


async def begin_upload(platform: Platform, who: Principal, new: NewUpload) -> tuple[Upload, bool]:
    """Begin an upload, or go on with that of the same digest; False if there was one.

    Raises:
        Forbidden: The caller may not upload.
        NoDirectUploads: The store takes none.
        ObjectTooLarge: It is larger than a data set may be.
        QuotaExhausted: The organisation has as many bytes, or uploads under way, as it may.
        Unacceptable: One of this digest and another size is under way.
        StoreUnavailable: The store did not answer.
    """
    _require_right(who)
    store = _store(platform)
    most = min(platform.rules.max_dataset_bytes, PART_BYTES * MOST_PARTS)
    if new.size_bytes > most:
        raise ObjectTooLarge(f"it is larger than {most:,} bytes")
    await _sweep(platform, store)
    row = await _row(platform, who, new.digest)
    if row is not None:
        if row.size_bytes != new.size_bytes:
            raise Unacceptable("size_bytes", f"it was begun with {row.size_bytes}; abort it first")
        with contextlib.suppress(UploadGone):
            return await _upload(store, row), False
        await _forget(platform, row)
    staged = await store.begin_parts()
    try:
        await _put_on_record(platform, who, new, staged)
    except BaseException as error:
        with contextlib.suppress(StoreError):
            await store.discard_parts(staged)
        if not isinstance(error, WrittenMeanwhile):
            raise
    row = await _require_row(platform, who, new.digest)
    return await _upload(store, row), row.key == staged.key


async def link_parts(
    platform: Platform, who: Principal, digest: Digest, numbers: tuple[int, ...], lifetime_s: int
) -> PartLinks:
    """Links that take parts of an upload.

    Raises:
        Forbidden: The caller may not upload.
        NotFound: The caller's organisation has no such upload under way.
        Unacceptable: It has no such part.
    """
    _require_right(who)
    row = await _require_row(platform, who, digest)
    store, sizes = _store(platform), sizes_of(row.size_bytes)
    if beyond := [number for number in numbers if number not in sizes]:
        raise Unacceptable("numbers", f"there is no part {beyond[0]}; there are {len(sizes)}")
    wanted = {number: sizes[number] for number in numbers}
    expires_at = platform.now() + timedelta(seconds=lifetime_s)
    links = await store.link_parts(_staged(row), wanted, lifetime_s)
    return PartLinks(
        links=tuple(PartLink(number, wanted[number], url) for number, url in links.items()),
        expires_at=expires_at,
    )


async def abort_upload(platform: Platform, who: Principal, digest: Digest) -> None:
    """Forget an upload with all of its parts.

    Raises:
        Forbidden: The caller may not upload.
        NotFound: The caller's organisation has no such upload under way.
        StoreUnavailable: It is still there.
    """
    _require_right(who)
    row = await _require_row(platform, who, digest)
    await _store(platform).discard_parts(_staged(row))
    await _forget(platform, row)


@asynccontextmanager
async def arrived(
    platform: Platform, who: Principal, digest: Digest
) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes of an upload whose parts have all come; whoever reads them verifies the digest.

    It is over when they were used, or turned out to be of no use. What failed for another reason
    can be done again.

    Raises:
        NotFound: The caller's organisation has no such upload under way.
        PartsMissing: Not all parts have come.
        UploadGone: The store has forgotten it.
        StoreUnavailable: The store did not answer.
    """
    row = await _require_row(platform, who, digest)
    store, staged = _store(platform), _staged(row)
    try:
        await store.join_parts(staged, sizes_of(row.size_bytes))
        yield store.read_parts(staged)
    except (ObjectCorrupt, ObjectTooLarge, ProbeFailed, BundleError):
        with contextlib.suppress(StoreError):
            await store.discard_parts(staged)
        await _forget(platform, row)
        raise
    except UploadGone:
        await _forget(platform, row)
        raise
    with contextlib.suppress(StoreError):  # which forgets it by itself
        await store.discard_parts(staged)
    await _forget(platform, row)


def sizes_of(size_bytes: int) -> dict[int, int]:
    """Bytes of each part of a file, by number from 1."""
    starts = range(0, size_bytes, PART_BYTES)
    return {i: min(PART_BYTES, size_bytes - start) for i, start in enumerate(starts, 1)}


async def _put_on_record(
    platform: Platform, who: Principal, new: NewUpload, staged: Staged
) -> None:
    now = platform.now()
    async with platform.database.writing() as transaction:
        # Asked first, so that no other upload of the organisation goes on record meanwhile.
        await require_room(transaction, platform, who.organisation, size_bytes=new.size_bytes)
        under_way = await transaction.rows(
            select(UPLOAD.c.size_bytes).where(UPLOAD.c.organisation == who.organisation)
        )
        if len(under_way) >= MOST_OPEN:
            raise QuotaExhausted("uploads under way", len(under_way), MOST_OPEN)
        whole = new.size_bytes + sum(row.size_bytes for row in under_way)
        await require_room(transaction, platform, who.organisation, size_bytes=whole)
        row = {
            "organisation": who.organisation,
            "digest": new.digest,
            "size_bytes": new.size_bytes,
            "key": staged.key,
            "upload": staged.upload,
            "created_at": now,
            "expires_at": now + LIFETIME,
        }
        await transaction.execute(insert(UPLOAD), row)


async def _sweep(platform: Platform, store: TakingParts) -> None:
    """Forget uploads that nobody came back to, whosever they are."""
    query = select(UPLOAD).where(UPLOAD.c.expires_at <= platform.now()).limit(SWEPT_AT_ONCE)
    for row in await platform.database.rows(query):
        with contextlib.suppress(StoreError):
            await store.discard_parts(_staged(row))
            await _forget(platform, row)


async def _forget(platform: Platform, row: Row[Any]) -> None:
    async with platform.database.writing() as transaction:
        await transaction.execute(delete(UPLOAD).where(UPLOAD.c.key == row.key))


async def _row(platform: Platform, who: Principal, digest: Digest) -> Row[Any] | None:
    return await platform.database.one_or_none(
        select(UPLOAD).where(
            UPLOAD.c.organisation == who.organisation,
            UPLOAD.c.digest == digest,
            UPLOAD.c.expires_at > platform.now(),
        )
    )


async def _require_row(platform: Platform, who: Principal, digest: Digest) -> Row[Any]:
    row = await _row(platform, who, digest)
    if row is None:
        raise NotFound("no such upload is under way")
    return row


async def _upload(store: TakingParts, row: Row[Any]) -> Upload:
    sizes = sizes_of(row.size_bytes)
    return Upload(
        digest=row.digest,
        size_bytes=row.size_bytes,
        part_bytes=PART_BYTES,
        num_parts=len(sizes),
        stored=tuple(sorted(await store.parts_of(_staged(row), sizes))),
        expires_at=row.expires_at,
    )


def _staged(row: Row[Any]) -> Staged:
    return Staged(row.key, row.upload)


def _require_right(who: Principal) -> None:
    if not may(who.roles, Action.UPLOAD, Relation.OWNER):
        raise Forbidden("your roles do not allow you to upload")


def _store(platform: Platform) -> TakingParts:
    if not isinstance(platform.store, TakingParts):
        raise NoDirectUploads("objects lie in a folder of the server")
    return platform.store
