"""Credentials of one organisation, against everything that is another's, at a real MinIO."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from minio import Minio, MinioAdmin
from minio.credentials.providers import AssumeRoleProvider, StaticProvider
from minio.error import MinioAdminException, S3Error

from sharing.object_store import BucketAccess, RightMissing, StoreRefused, StoreUnavailable
from sharing.s3_bucket import Address, make_account, remove_account
from sharing.s3_buckets import Buckets, buckets_of, give_access, make_buckets, policy
from tests.cluster.minio_server import client, empty


@pytest.fixture
def north(s3: Address) -> Iterator[str]:
    yield from organisation(s3, "north")


@pytest.fixture
def south(s3: Address) -> Iterator[Buckets]:
    for name in organisation(s3, "south"):
        found = Buckets(f"{name}-datasets", f"{name}-models")
        for bucket in (found.datasets, found.models):
            put(client(s3), bucket)
        yield found


def organisation(s3: Address, name: str) -> Iterator[str]:
    unique = f"{name}-{uuid4().hex[:8]}"
    made = make_buckets(s3, unique)
    yield unique
    for bucket in (made.datasets, made.models):
        empty(s3, bucket)


def put(minio: Minio, bucket: str) -> None:
    minio.put_object(bucket, "thing", io.BytesIO(b"content"), 7)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(S3Error) as refused:
        call()
    return str(refused.value.code)


@pytest.fixture
def access(s3: Address, north: str) -> Iterator[BucketAccess]:
    access = give_access(s3, north, soon(), s3.endpoint)
    yield access
    remove_account(s3, access.access_key)


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


def address_of(s3: Address, access: BucketAccess) -> Address:
    return replace(s3, access_key=access.access_key, secret_key=access.secret_key)


@pytest.fixture
def own(s3: Address, access: BucketAccess) -> Minio:
    """The organisation itself, at the server."""
    return client(address_of(s3, access))


def test_an_organisation_reaches_its_own_buckets(
    s3: Address, access: BucketAccess, own: Minio
) -> None:
    put(client(s3), access.models)

    put(own, access.datasets)

    assert own.get_object(access.datasets, "thing").read() == b"content"
    assert own.get_object(access.models, "thing").read() == b"content"
    assert [found.object_name for found in own.list_objects(access.datasets)] == ["thing"]
    assert access.url == f"http://{s3.endpoint}"
    assert access.secret_key not in repr(access)


def test_the_server_itself_ends_credentials_when_they_are_to_end(s3: Address, north: str) -> None:
    ends_at = datetime.now(UTC) + timedelta(seconds=4)
    access = give_access(s3, north, ends_at, s3.endpoint)
    own = address_of(s3, access)
    put(client(own), access.datasets)
    temporary = assumed(own)
    put(temporary, access.datasets)
    link = client(own).presigned_get_object(access.datasets, "thing")

    time.sleep((ends_at - datetime.now(UTC)).total_seconds() + 1.1)

    for it in (client(own), temporary):
        assert refusal(lambda it=it: put(it, access.datasets)) == "AccessDenied"
        assert refusal(lambda it=it: list(it.list_objects(access.models))) == "AccessDenied"
    assert httpx.get(link, trust_env=False).status_code == 403
    remove_account(s3, access.access_key)


def assumed(own: Address) -> Minio:
    """Temporary credentials that somebody made of what they were given."""
    found = AssumeRoleProvider(
        sts_endpoint=f"http://{own.endpoint}",
        access_key=own.access_key,
        secret_key=own.secret_key,
    ).retrieve()
    return client(
        replace(
            own,
            access_key=found.access_key,
            secret_key=found.secret_key,
            session_token=found.session_token or "",
        )
    )


def test_credentials_that_were_revoked_are_void_at_once(
    s3: Address, access: BucketAccess, own: Minio
) -> None:
    put(own, access.datasets)
    temporary = assumed(address_of(s3, access))
    link = own.presigned_get_object(access.datasets, "thing")
    assert httpx.get(link, trust_env=False).is_success

    for _ in range(2):
        remove_account(s3, access.access_key)

    assert refusal(lambda: put(own, access.datasets)) == "InvalidAccessKeyId"
    assert refusal(lambda: own.get_object(access.datasets, "thing")) == "InvalidAccessKeyId"
    assert refusal(lambda: put(temporary, access.datasets)) in ("AccessDenied", "InvalidTokenId")
    assert httpx.get(link, trust_env=False).status_code == 403


def test_credentials_know_of_no_others_and_touch_none(
    s3: Address, access: BucketAccess, north: str, south: Buckets
) -> None:
    others = give_access(s3, south.datasets.removesuffix("-datasets"), soon(), s3.endpoint)
    own = address_of(s3, access)
    admin = MinioAdmin(
        endpoint=s3.endpoint,
        credentials=StaticProvider(own.access_key, own.secret_key),
        secure=False,
    )
    everything = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}],
    }

    with pytest.raises(RightMissing, match="CreateUser"):
        make_account(own, policy(buckets_of(north), soon()))
    with pytest.raises(RightMissing):
        remove_account(own, others.access_key)
    for call in (
        admin.user_list,
        admin.policy_list,
        lambda: admin.user_info(others.access_key),
        lambda: admin.user_disable(others.access_key),
        lambda: admin.add_service_account(policy=everything),
        lambda: admin.policy_add(access.access_key, policy=everything),
        lambda: admin.policy_set("readwrite", user=access.access_key),
    ):
        with pytest.raises(MinioAdminException, match="403"):
            call()
    assert json.loads(admin.list_service_account(""))["accounts"] is None

    put(client(address_of(s3, others)), south.datasets)
    remove_account(s3, others.access_key)


def test_an_organisation_does_not_write_its_models(
    s3: Address, access: BucketAccess, own: Minio
) -> None:
    put(client(s3), access.models)

    assert refusal(lambda: put(own, access.models)) == "AccessDenied"
    assert refusal(lambda: own.remove_object(access.models, "thing")) == "AccessDenied"


def test_an_organisation_reaches_nothing_of_another(own: Minio, south: Buckets) -> None:
    for bucket in (south.datasets, south.models):
        for call in (
            lambda bucket=bucket: own.get_object(bucket, "thing"),
            lambda bucket=bucket: own.stat_object(bucket, "thing"),
            lambda bucket=bucket: list(own.list_objects(bucket)),
            lambda bucket=bucket: put(own, bucket),
            lambda bucket=bucket: own.remove_object(bucket, "thing"),
            lambda bucket=bucket: own.remove_bucket(bucket),
            lambda bucket=bucket: own.set_bucket_policy(bucket, "{}"),
        ):
            assert refusal(call) == "AccessDenied"
    assert not {south.datasets, south.models} & {found.name for found in own.list_buckets()}


def test_an_organisation_makes_no_buckets_and_changes_no_rules(
    access: BucketAccess, own: Minio
) -> None:
    assert refusal(lambda: own.make_bucket("anything-at-all-4711")) == "AccessDenied"
    assert refusal(lambda: own.delete_bucket_lifecycle(access.datasets)) == "AccessDenied"
    assert refusal(lambda: own.remove_bucket(access.datasets)) == "AccessDenied"


def test_what_is_overwritten_is_kept(s3: Address, access: BucketAccess, own: Minio) -> None:
    for _ in range(2):
        put(own, access.datasets)

    assert len(list(client(s3).list_objects(access.datasets, include_version=True))) == 2


def test_making_buckets_may_be_repeated(
    s3: Address, north: str, access: BucketAccess, own: Minio
) -> None:
    put(own, access.datasets)

    assert make_buckets(s3, north) == Buckets(access.datasets, access.models)

    assert client(s3).stat_object(access.datasets, "thing")


def test_a_wrong_secret_gets_no_credentials(s3: Address, north: str) -> None:
    wrong = replace(s3, secret_key="quite-another-value")

    for call in (
        lambda: make_account(wrong, policy(buckets_of(north), soon())),
        lambda: remove_account(wrong, "anyone"),
        lambda: give_access(wrong, north, soon(), s3.endpoint),
    ):
        with pytest.raises(StoreRefused) as refused:
            call()
        assert "quite-another-value" not in str(refused.value)


def test_a_server_that_is_away_is_unavailable(s3: Address, north: str) -> None:
    away = replace(s3, endpoint="127.0.0.1:1")

    for call in (
        lambda: give_access(away, north, soon(), s3.endpoint),
        lambda: make_account(away, policy(buckets_of(north), soon())),
        lambda: remove_account(away, "anyone"),
    ):
        with pytest.raises(StoreUnavailable):
            call()
