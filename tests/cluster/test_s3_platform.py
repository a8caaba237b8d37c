"""The product's own server over a bucket: the same jobs, and the same models."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from sharing.object_store import digest_of, digest_of_file
from sharing.s3_bucket import Address
from tests.cluster.faults import Faults, Victim
from tests.cluster.minio_server import Server, client
from tests.e2e.jobs import small
from tests.e2e.real_server import RealServer, running
from workflows.run import Phase

WAIT_S = 120.0
AWAY_S = 3.0


def settings(address: Address, bucket: str, folder: Path) -> Mapping[str, str]:
    secret = folder / "secret"
    secret.write_text(address.secret_key + "\n")
    return {
        "FOEDUS_STORE": "s3",
        "FOEDUS_S3_BUCKET": bucket,
        "FOEDUS_S3_SECRET_KEY_FILE": str(secret),
        "MINIO_ENDPOINT": address.endpoint,
        "MINIO_ACCESS": address.access_key,
        "MINIO_SECURE": "false",
    }


def model_of_a_job(server: RealServer, folder: Path) -> str:
    """Digest of the model that comes of a job."""
    with server.client() as platform:
        submitted = platform.submit(small(platform, "digits"))
        done = submitted.wait(timeout_s=WAIT_S)
        assert done.phase is Phase.SUCCEEDED, done
        made = {found.name: found for found in submitted.artifacts()}["model.safetensors"]
        path = submitted.pull_artifact(made, folder / "found.safetensors")
    return digest_of_file(path)


def test_a_job_over_a_bucket_makes_the_model_of_one_over_a_folder(
    s3: Address, bucket: str, tmp_path: Path
) -> None:
    with running(tmp_path / "folder") as server:
        expected = model_of_a_job(server, tmp_path)

    with running(tmp_path / "bucket", **settings(s3, bucket, tmp_path)) as server:
        found = model_of_a_job(server, tmp_path)
        with server.client() as platform:
            [model] = platform.models.list()
            pulled = platform.models.pull(model.id, "safetensors", tmp_path, direct=True)
        content = f"{server.url}/v1/models/{model.id}/content?variant=safetensors&direct=true"
        headers = {"Authorization": f"Bearer {server.token}"}
        linked = httpx.get(content, headers=headers, trust_env=False)
        link = linked.headers["location"]
        fetched = httpx.get(link, trust_env=False)
        forged = httpx.get(link.replace(expected[7:], "0" * 64), trust_env=False)
        log = server.log

    assert found == expected == digest_of_file(pulled) == digest_of(fetched.content)
    assert (linked.status_code, linked.headers["cache-control"]) == (307, "no-store")
    assert "Expires=300" in link
    assert forged.status_code == 403
    assert "X-Amz-Signature" not in log
    assert not (tmp_path / "bucket" / "data" / "objects").exists()
    kept = [item.object_name for item in client(s3).list_objects(bucket, recursive=True)]
    assert "objects/" + expected.removeprefix("sha256:") in kept
    assert not [name for name in kept if not (name or "").startswith("objects/")]
    assert s3.secret_key not in log


def test_a_store_that_is_killed_again_and_again_loses_nothing(
    own_server: Server, tmp_path: Path, faults: Faults
) -> None:
    with running(tmp_path / "folder") as server:
        expected = model_of_a_job(server, tmp_path)

    with (
        running(tmp_path / "bucket", **settings(own_server.address, "kept", tmp_path)) as server,
        server.client() as platform,
    ):
        victim = Victim(platform.submit(small(platform, "digits")), tmp_path)
        for number in (1, 2, 3):
            victim.hear_until_round(number)
            own_server.kill()
            time.sleep(AWAY_S)
            own_server.start()
            victim.relieve()
        victim.require_same(
            faults, f"MinIO is away for {AWAY_S:g} s in three rounds", expected, within_s=30
        )


def test_a_server_without_its_bucket_server_does_not_start_and_tells_why(tmp_path: Path) -> None:
    nowhere = Address(endpoint="127.0.0.1:1", access_key="nobody", secret_key="quite-hidden")
    server = RealServer(tmp_path / "bucket", settings(nowhere, "kept", tmp_path))

    with pytest.raises(AssertionError):
        server.start()

    assert "the server did not answer" in server.log
    assert "quite-hidden" not in server.log
