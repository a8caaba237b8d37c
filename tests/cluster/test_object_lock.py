"""What proves a run is kept by a bucket with object lock; others stay as they are.

The MinIO is the test's own: nobody could clear up what is retained.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from minio.error import S3Error

from clients.errors import Conflict
from clients.sdk import Foedus
from sharing.object_store import ObjectMissing, StoreRefused, digest_of
from sharing.s3_store import S3Store
from tests.cluster.minio_server import Server, client
from tests.cluster.test_s3_platform import WAIT_S, settings
from tests.e2e.jobs import small
from tests.e2e.real_server import running, until
from workflows.run import Phase

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]
CONTENT = b"a manifest"


async def chunks() -> AsyncIterator[bytes]:
    yield CONTENT


def kept_until(server: Server, bucket: str) -> dict[str, datetime | None]:
    """Until when each object of a bucket is retained."""
    minio = client(server.address)
    found = {}
    for item in minio.list_objects(bucket, "objects/", recursive=True):
        retention = minio.get_object_retention(bucket, str(item.object_name))
        digest = "sha256:" + str(item.object_name).removeprefix("objects/")
        found[digest] = None if retention is None else retention.retain_until_date
    return found


async def test_what_is_retained_outlives_its_name_and_nobody_removes_it(
    own_server: Server,
) -> None:
    store = S3Store(own_server.address, "locked", is_locked=True)
    assert await store.make_bucket()
    assert not await store.make_bucket()
    digest, end = digest_of(CONTENT), datetime.now(UTC) + timedelta(days=3)
    await store.put(chunks())

    await store.retain(digest, end)
    await store.retain(digest, end - timedelta(days=2))  # is never for a shorter time

    minio, name = client(own_server.address), "objects/" + digest.removeprefix("sha256:")
    kept = kept_until(own_server, "locked")[digest]
    assert kept is not None
    assert abs(kept - end) < timedelta(seconds=2)
    [version] = minio.list_objects("locked", name, include_version=True)
    await store.delete(digest)
    with pytest.raises(ObjectMissing):
        await store.stat(digest)
    with pytest.raises(S3Error):
        minio.remove_object("locked", name, version_id=version.version_id)
    assert minio.get_object("locked", name, version_id=version.version_id).read() == CONTENT
    await store.put(chunks())
    assert (await store.stat(digest)).size_bytes == len(CONTENT)
    for missing in (digest_of(b"nothing"), "no digest"):
        with pytest.raises(ObjectMissing):
            await store.retain(missing, end)
    await store.close()


async def test_a_bucket_without_lock_is_refused_where_things_are_to_be_retained(
    own_server: Server,
) -> None:
    plain = S3Store(own_server.address, "plain")
    await plain.make_bucket()
    await plain.put(chunks())

    locking = S3Store(own_server.address, "plain", is_locked=True)
    with pytest.raises(StoreRefused, match="FOEDUS_S3_RETENTION_DAYS"):
        await locking.make_bucket()
    await plain.close()
    await locking.close()


def run(foedus: Foedus) -> tuple[str, dict[str, str]]:
    """Id of a job that succeeded, and its artifacts by name."""
    job = foedus.submit(small(foedus, "digits", rounds=2))
    assert job.wait(timeout_s=WAIT_S).phase is Phase.SUCCEEDED
    return job.id, {made.name: made.digest for made in job.artifacts()}


def is_deleted(foedus: Foedus, job: str) -> bool:
    try:
        foedus.job(job).delete()
    except Conflict:  # it is being cleared away
        return False
    return True


def test_the_proofs_of_a_run_are_retained_and_its_model_is_not(
    own_server: Server, tmp_path: Path
) -> None:
    over = {**settings(own_server.address, "proofs", tmp_path)}
    over["FOEDUS_S3_RETENTION_DAYS"] = "30"
    with running(tmp_path / "s", **over) as server, server.client() as foedus:
        job, made = run(foedus)
        kept = kept_until(own_server, "proofs")
        until(lambda: is_deleted(foedus, job), "the job to be deleted", WAIT_S)

    proofs = {made[name] for name in ("transcripts.jsonl", "spent.json", "model.json")}
    retained = {digest for digest, until in kept.items() if until is not None}
    assert proofs < retained
    assert len(retained) == len(proofs) + 3  # a manifest of each step
    assert made["model.safetensors"] in kept.keys() - retained
    for digest in retained:
        end = kept[digest]
        assert end is not None
        assert timedelta(days=29) < end - datetime.now(UTC) < timedelta(days=30, minutes=5)


def test_where_nothing_is_said_nothing_is_retained(own_server: Server, tmp_path: Path) -> None:
    client(own_server.address).make_bucket("lockable", object_lock=True)

    over = settings(own_server.address, "lockable", tmp_path)
    with running(tmp_path / "s", **over) as server, server.client() as foedus:
        run(foedus)

    assert set(kept_until(own_server, "lockable").values()) == {None}
