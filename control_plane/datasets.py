"""Data sets: files of examples that developers upload for simulations, each read once in whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import Literal

import msgspec
from sqlalchemy import insert, select

from clients.identity import Principal
from clients.resources import Dataset
from control_plane import audit
from control_plane.authorisation import Action, Relation, may
from control_plane.direct_uploads import arrived
from control_plane.objects import require_stored
from control_plane.pages import Slice, cut
from control_plane.platform import Platform
from control_plane.quotas import require_room
from control_plane.records.tables import DATASET
from control_plane.refusals import Forbidden, NotFound
from control_plane.uploads import (
    ask_probe,
    newest_uploads,
    place_of,
    read,
    receive,
    scratch,
)
from control_plane.views import dataset_of, text_of
from sharing.object_store import Digest, ObjectCorrupt, digest_of_file
from workflows.capabilities import DatasetFacts

Format = Literal["npz", "csv", "parquet"]


async def upload_dataset(
    platform: Platform,
    who: Principal,
    name: str,
    format: Format,
    label: str,
    chunks: AsyncIterable[bytes],
    expect: Digest | None = None,
) -> tuple[Dataset, bool]:
    """Take in a file of examples; False if the caller's organisation had it with this label.

    Raises:
        ObjectCorrupt: It has not the digest ``expect``.
        Forbidden: The caller may not upload.
        ObjectTooLarge: It is larger than a data set may be.
        ProbeFailed: It cannot be read; the cause names the place.
        QuotaExhausted: The organisation has as many bytes as it may.
        StoreError: It was not stored.
    """
    if not may(who.roles, Action.UPLOAD, Relation.OWNER):
        raise Forbidden("your roles do not allow you to upload data sets")
    async with scratch(platform) as folder:
        file = folder / f"dataset.{format}"
        size_bytes = await receive(chunks, file, platform.rules.max_dataset_bytes)
        digest = await asyncio.to_thread(digest_of_file, file)
        if expect is not None and digest != expect:
            raise ObjectCorrupt(f"the bytes are {digest}, not {expect}")
        if (known := await _find(platform, who, digest, label)) is not None:
            return known, False
        question = {"kind": "dataset", "file": file.name, "label": label}
        found = await ask_probe(platform, folder, question)
        facts = msgspec.convert(found["dataset"], DatasetFacts)
        await platform.store.put(read(file), expect=digest)
        created_at = platform.now()
        row = {
            "organisation": who.organisation,
            "digest": digest,
            "label": label,
            "format": format,
            "name": name,
            "size_bytes": size_bytes,
            "facts": text_of(facts),
            "created_at": created_at,
        }
        async with platform.custody.of(digest):
            await require_stored(platform, digest)
            if (known := await _find(platform, who, digest, label)) is not None:
                return known, False
            async with platform.database.writing() as transaction:
                await require_room(transaction, platform, who.organisation, size_bytes=size_bytes)
                await transaction.execute(insert(DATASET), row)
                detail = {"name": row["name"], "size_bytes": size_bytes}
                await audit.note(
                    transaction, platform.now(), who, "dataset.upload", digest, detail=detail
                )
    return Dataset(
        digest=digest,
        name=name,
        format=format,
        label=label,
        size_bytes=size_bytes,
        facts=facts,
        created_at=created_at,
    ), True


async def take_dataset(
    platform: Platform, who: Principal, name: str, format: Format, label: str, digest: Digest
) -> tuple[Dataset, bool]:
    """Take in a file of examples that was sent to the store in parts.

    Raises:
        NotFound: None of this digest was.
        PartsMissing: Not all of it was.
        As ``upload_dataset``; whatever is wrong with the file itself, it is gone then.
    """
    if (known := await _find(platform, who, digest, label)) is not None:
        return known, False
    async with arrived(platform, who, digest) as chunks:
        return await upload_dataset(platform, who, name, format, label, chunks, digest)


async def list_datasets(
    platform: Platform, who: Principal, limit: int, before: str | None = None
) -> Slice[Dataset]:
    """The data sets of the caller's organisation, newest first."""
    rows = await platform.database.rows(newest_uploads(DATASET, who, limit, before))
    return cut([(place_of(row), dataset_of(row)) for row in rows], limit)


async def get_dataset(platform: Platform, who: Principal, digest: Digest) -> Dataset:
    """One data set; as it was read last, if it was uploaded with several labels.

    Raises:
        NotFound: The caller's organisation has none of this digest.
    """
    found = await _find(platform, who, digest)
    if found is None:
        raise NotFound("no such data set")
    return found


async def _find(
    platform: Platform, who: Principal, digest: Digest, label: str | None = None
) -> Dataset | None:
    query = select(DATASET).where(
        DATASET.c.organisation == who.organisation, DATASET.c.digest == digest
    )
    if label is not None:
        query = query.where(DATASET.c.label == label)
    row = await platform.database.one_or_none(query.order_by(DATASET.c.created_at.desc()))
    return None if row is None else dataset_of(row)
