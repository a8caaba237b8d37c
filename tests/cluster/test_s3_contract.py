"""The object store's contract, kept by the adapter for S3 over a real MinIO."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import pytest
from minio.versioningconfig import ENABLED, VersioningConfig

from sharing.object_store import digest_of
from sharing.s3_bucket import Address
from sharing.s3_store import S3Store
from tests.cluster.minio_server import client
from tests.sharing.test_object_store import *  # noqa: F403 - the suite itself
from tests.sharing.test_object_store import Tamper


@pytest.fixture(params=["without versions", "with versions", "with lock"])
async def store(request: pytest.FixtureRequest, s3: Address, bucket: str) -> AsyncIterator[S3Store]:
    store = S3Store(s3, bucket, is_locked=request.param == "with lock")
    assert await store.make_bucket()
    if request.param == "with versions":
        client(s3).set_bucket_versioning(bucket, VersioningConfig(ENABLED))
    yield store
    await store.close()


@pytest.fixture
def tamper(s3: Address, bucket: str) -> Tamper:
    def replace(content: bytes, other: bytes) -> None:
        name = "objects/" + digest_of(content).removeprefix("sha256:")
        assert client(s3).stat_object(bucket, name)
        client(s3).put_object(bucket, name, io.BytesIO(other), len(other))

    return replace
