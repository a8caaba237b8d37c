"""Which object store the settings choose, opened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from control_plane.settings import Settings
from sharing.directory_store import DirectoryStore
from sharing.object_store import ObjectStore, StoreRefused

log = structlog.get_logger()


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[ObjectStore]:
    """The store of the objects; that of an S3 server is there and answers, or is made.

    Raises:
        StoreRefused: Something must be changed, at the server or in the settings.
        StoreUnavailable: The server does not answer.
    """
    if settings.store == "directory":
        yield DirectoryStore(settings.data)
        return
    from sharing.s3_bucket import Address
    from sharing.s3_store import S3Store

    secret = await asyncio.to_thread(_secret, settings)
    address = Address(
        endpoint=settings.s3_endpoint,
        secure=settings.s3_secure,
        region=settings.s3_region,
        access_key=settings.s3_access_key,
        secret_key=secret,
        ca_file=settings.s3_ca_file,
    )
    store = S3Store(
        address,
        settings.s3_bucket,
        public_endpoint=settings.s3_public_endpoint,
        is_locked=settings.s3_retention_days is not None,
    )
    try:
        if await store.make_bucket():
            log.info("store.bucket_made", bucket=settings.s3_bucket)
        yield store
    finally:
        await store.close()


def _secret(settings: Settings) -> str:
    if settings.s3_secret_key_file is None:
        return settings.s3_secret_key.get_secret_value()
    try:
        return settings.s3_secret_key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        path = settings.s3_secret_key_file
        raise StoreRefused(f"FOEDUS_S3_SECRET_KEY_FILE: {path} cannot be read") from error
