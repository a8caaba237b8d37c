"""Programs: bundles that developers upload, each tried out once before a job may name it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable

import msgspec
from sqlalchemy import insert, select

from clients.identity import Principal
from clients.resources import Program
from control_plane import audit
from control_plane.authorisation import Action, Relation, may
from control_plane.direct_uploads import arrived
from control_plane.objects import require_stored
from control_plane.pages import Slice, cut
from control_plane.platform import Platform
from control_plane.quotas import require_room
from control_plane.records.tables import PROGRAM
from control_plane.refusals import Forbidden, NotFound
from control_plane.uploads import (
    ask_probe,
    newest_uploads,
    place_of,
    read,
    receive,
    scratch,
)
from control_plane.views import program_of, text_of
from sharing.object_store import Digest, ObjectCorrupt, digest_of_file
from workflows.capabilities import ProgramFacts
from workflows.program import unpack


async def upload_program(
    platform: Platform,
    who: Principal,
    name: str | None,
    chunks: AsyncIterable[bytes],
    expect: Digest | None = None,
) -> tuple[Program, bool]:
    """Take in a bundle; False if the caller's organisation had it already.

    Without a ``name`` it has the one that it declares.

    Raises:
        ObjectCorrupt: It has not the digest ``expect``.
        Forbidden: The caller may not upload.
        ObjectTooLarge: It is larger than a bundle may be.
        BundleError: It is no bundle, or not a safe one.
        ProbeFailed: Its code does not run.
        QuotaExhausted: The organisation has as many bytes as it may.
        StoreError: It was not stored.
    """
    if not may(who.roles, Action.UPLOAD, Relation.OWNER):
        raise Forbidden("your roles do not allow you to upload programs")
    async with scratch(platform) as folder:
        archive = folder / "bundle.tar"
        size_bytes = await receive(chunks, archive, platform.rules.max_bundle_bytes)
        digest = await asyncio.to_thread(digest_of_file, archive)
        if expect is not None and digest != expect:
            raise ObjectCorrupt(f"the bytes are {digest}, not {expect}")
        if (known := await _find(platform, who, digest)) is not None:
            return known, False
        manifest = await asyncio.to_thread(unpack, archive, folder / "program")
        found = await ask_probe(platform, folder, {"kind": "program"})
        facts = msgspec.convert(found["program"], ProgramFacts)
        await platform.store.put(read(archive), expect=digest)
        row = {
            "organisation": who.organisation,
            "digest": digest,
            "name": name or manifest.name,
            "size_bytes": size_bytes,
            "facts": text_of(facts),
            "created_at": platform.now(),
        }
        async with platform.custody.of(digest):
            await require_stored(platform, digest)
            if (known := await _find(platform, who, digest)) is not None:
                return known, False
            async with platform.database.writing() as transaction:
                await require_room(transaction, platform, who.organisation, size_bytes=size_bytes)
                await transaction.execute(insert(PROGRAM), row)
                detail = {"name": row["name"], "size_bytes": size_bytes}
                await audit.note(
                    transaction, platform.now(), who, "program.upload", digest, detail=detail
                )
    return await get_program(platform, who, digest), True


async def take_program(
    platform: Platform, who: Principal, name: str | None, digest: Digest
) -> tuple[Program, bool]:
    """Take in a bundle that was sent to the store in parts.

    Raises:
        NotFound: None of this digest was.
        PartsMissing: Not all of it was.
        As ``upload_program``; whatever is wrong with the file itself, it is gone then.
    """
    if (known := await _find(platform, who, digest)) is not None:
        return known, False
    async with arrived(platform, who, digest) as chunks:
        return await upload_program(platform, who, name, chunks, digest)


async def list_programs(
    platform: Platform, who: Principal, limit: int, before: str | None = None
) -> Slice[Program]:
    """The programs of the caller's organisation, newest first."""
    rows = await platform.database.rows(newest_uploads(PROGRAM, who, limit, before))
    return cut([(place_of(row), program_of(row)) for row in rows], limit)


async def get_program(platform: Platform, who: Principal, digest: Digest) -> Program:
    """One program.

    Raises:
        NotFound: The caller's organisation has none of this digest.
    """
    found = await _find(platform, who, digest)
    if found is None:
        raise NotFound("no such program")
    return found


async def _find(platform: Platform, who: Principal, digest: Digest) -> Program | None:
    row = await platform.database.one_or_none(
        select(PROGRAM).where(
            PROGRAM.c.organisation == who.organisation, PROGRAM.c.digest == digest
        )
    )
    return None if row is None else program_of(row)
