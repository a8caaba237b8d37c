"""An organisation is given its own buckets over the product's own server and command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from sharing.s3_bucket import Address, make_account, remove_account
from tests.clients.cli_process import foedus
from tests.cluster.minio_server import client, empty
from tests.cluster.test_s3_buckets import put, refusal
from tests.cluster.test_s3_platform import settings
from tests.e2e.real_server import RealServer, running


@dataclass
class Hospital:
    """An organisation with a user."""

    id: str
    name: str
    token: str
    developer: str


@dataclass
class Platform:
    """A server over a bucket, with two organisations."""

    server: RealServer
    north: Hospital
    south: Hospital
    folder: Path

    def call(self, method: str, path: str, token: str, **more: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.request(
            method, self.server.url + path, headers=headers, trust_env=False, timeout=30, **more
        )  # type: ignore[arg-type]

    def hospital(self, name: str) -> Hospital:
        host = self.server.token
        organisation = self.call("POST", "/v1/organisations", host, json={"name": name}).json()

        def token(role: str) -> str:
            body = {"name": role, "organisation": name, "roles": [role]}
            user = self.call("POST", "/v1/users", host, json=body).json()["id"]
            made = self.call("POST", "/v1/tokens", host, json={"user": user}).json()
            return str(made["secret"])

        return Hospital(organisation["id"], name, token("admin"), token("developer"))

    def command(self, token: str, *words: str) -> str:
        ended = foedus(
            *words, home=self.folder, env={"FOEDUS_URL": self.server.url, "FOEDUS_TOKEN": token}
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@pytest.fixture
def platform(s3: Address, bucket: str, tmp_path: Path) -> Iterator[Platform]:
    with running(tmp_path / "server", **settings(s3, bucket, tmp_path)) as server:
        nobody = Hospital("", "", "", "")
        platform = Platform(server, nobody, nobody, tmp_path)
        platform.north, platform.south = platform.hospital("north"), platform.hospital("south")
        yield platform
        for hospital in (platform.north, platform.south):
            at = f"/v1/organisations/{hospital.id}/storage-credentials"
            for made in platform.call("GET", at, hospital.token).json()["items"]:
                platform.call("DELETE", f"{at}/{made['id']}", hospital.token)
            for kind in ("datasets", "models"):
                empty(s3, f"{hospital.id}-{kind}")


def test_an_organisation_is_given_its_own_buckets_and_loses_them_at_once(
    platform: Platform, s3: Address
) -> None:
    north, south = platform.north, platform.south
    at = f"/v1/organisations/{north.id}/storage-credentials"

    written = platform.command(north.token, "admin", "storage", "new", "north", "--label", "ward")
    theirs = platform.call(
        "POST", f"/v1/organisations/{south.id}/storage-credentials", south.token, json={}
    ).json()["access"]
    found = dict(line.split("=", 1) for line in written.splitlines())
    secret = found["AWS_SECRET_ACCESS_KEY"]
    own = client(replace(s3, access_key=found["AWS_ACCESS_KEY_ID"], secret_key=secret))
    assert found["AWS_ENDPOINT_URL"] == f"http://{s3.endpoint}"

    put(own, f"{north.id}-datasets")
    for bucket in (theirs["datasets"], theirs["models"], "foedus"):
        assert refusal(lambda bucket=bucket: list(own.list_objects(bucket))) == "AccessDenied"
        assert refusal(lambda bucket=bucket: put(own, bucket)) == "AccessDenied"

    [listed] = json.loads(
        platform.command(north.token, "admin", "storage", "list", "north", "--json")
    )
    assert (listed["label"], listed["access_key"]) == ("ward", found["AWS_ACCESS_KEY_ID"])
    assert listed["access"] is None
    assert platform.call("GET", at, south.token).status_code == 404
    assert platform.call("DELETE", f"{at}/{listed['id']}", south.token).status_code == 404
    assert platform.call("POST", at, north.developer, json={}).status_code == 403
    put(own, f"{north.id}-datasets")

    platform.command(north.token, "admin", "storage", "revoke", "north", listed["id"])
    assert refusal(lambda: put(own, f"{north.id}-datasets")) == "InvalidAccessKeyId"
    assert platform.call("DELETE", f"{at}/{listed['id']}", north.token).status_code == 404
    assert platform.call("GET", at, north.token).json()["items"] == []

    audit = platform.call("GET", "/v1/admin/audit", north.token).json()["items"]
    acts = [entry["action"] for entry in audit if entry["action"].startswith("storage-")]
    assert acts == ["storage-credential.revoke", "storage-credential.add"]
    records = b"".join(path.read_bytes() for path in platform.server.data.glob("foedus.db*"))
    assert found["AWS_ACCESS_KEY_ID"].encode() in records
    for kept in (secret, theirs["secret_key"]):
        assert kept.encode() not in records
        assert kept not in platform.server.log + json.dumps(audit)


def test_the_host_gives_every_organisation_its_own(platform: Platform) -> None:
    host, north = platform.server.token, platform.north

    made = platform.call(
        "POST", "/v1/organisations/north/storage-credentials", host, json={"lifetime_s": 3600}
    )

    assert made.headers["cache-control"] == "no-store"
    assert made.json()["organisation"] == north.id
    at = f"/v1/organisations/{north.id}/storage-credentials"
    [listed] = platform.call("GET", at, north.token).json()["items"]
    assert listed == {**made.json(), "access": None}


def test_a_platform_that_may_not_make_credentials_says_which_right_it_lacks(
    s3: Address, bucket: str, tmp_path: Path
) -> None:
    everything = {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}
    policy = {"Version": "2012-10-17", "Statement": [everything]}
    limited = make_account(s3, policy)
    try:
        with running(tmp_path / "server", **settings(limited, bucket, tmp_path)) as server:
            me = httpx.get(
                f"{server.url}/v1/whoami",
                headers={"Authorization": f"Bearer {server.token}"},
                trust_env=False,
            ).json()
            refused = httpx.post(
                f"{server.url}/v1/organisations/home/storage-credentials",
                headers={"Authorization": f"Bearer {server.token}"},
                json={},
                timeout=30,
                trust_env=False,
            )
    finally:
        remove_account(s3, limited.access_key)
        for kind in ("datasets", "models"):
            empty(s3, f"{me['organisation']}-{kind}")

    assert refused.status_code == 409
    assert refused.json()["type"].endswith("/no-buckets")
    assert "admin:CreateUser" in refused.json()["detail"]
    assert limited.secret_key not in refused.text
