"""Credentials of one organisation, against everything that is another's, at a real MinIO."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from minio import Minio
from minio.error import S3Error

from sharing.object_store import StoreRefused, StoreUnavailable
from sharing.s3_bucket import Address
from sharing.s3_buckets import Access, Buckets, give_access, make_buckets
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
def access(s3: Address, north: str) -> Access:
    return give_access(s3, north, 3600)


def test_an_organisation_reaches_its_own_buckets(s3: Address, access: Access) -> None:
    own, buckets = client(access.address), access.buckets
    put(client(s3), buckets.models)

    put(own, buckets.datasets)

    assert own.get_object(buckets.datasets, "thing").read() == b"content"
    assert own.get_object(buckets.models, "thing").read() == b"content"
    assert [found.object_name for found in own.list_objects(buckets.datasets)] == ["thing"]
    assert 3000 < (access.ends_at - datetime.now(UTC)).total_seconds() <= 3600


def test_an_organisation_does_not_write_its_models(s3: Address, access: Access) -> None:
    own, models = client(access.address), access.buckets.models
    put(client(s3), models)

    assert refusal(lambda: put(own, models)) == "AccessDenied"
    assert refusal(lambda: own.remove_object(models, "thing")) == "AccessDenied"


def test_an_organisation_reaches_nothing_of_another(access: Access, south: Buckets) -> None:
    own = client(access.address)
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


def test_an_organisation_makes_no_buckets_and_changes_no_rules(access: Access) -> None:
    own = client(access.address)

    assert refusal(lambda: own.make_bucket("anything-at-all-4711")) == "AccessDenied"
    assert refusal(lambda: own.delete_bucket_lifecycle(access.buckets.datasets)) == "AccessDenied"
    assert refusal(lambda: own.remove_bucket(access.buckets.datasets)) == "AccessDenied"


def test_scoped_credentials_do_not_grow_by_asking_again(access: Access, south: Buckets) -> None:
    southern = south.datasets.removesuffix("-datasets")
    try:
        widened = give_access(access.address, southern, 3600)
    except StoreRefused:
        return
    assert refusal(lambda: client(widened.address).get_object(south.datasets, "thing")) == (
        "AccessDenied"
    )


def test_what_is_overwritten_is_kept(s3: Address, access: Access) -> None:
    datasets = access.buckets.datasets
    for _ in range(2):
        put(client(access.address), datasets)

    assert len(list(client(s3).list_objects(datasets, include_version=True))) == 2


def test_making_buckets_may_be_repeated(s3: Address, north: str, access: Access) -> None:
    put(client(access.address), access.buckets.datasets)

    assert make_buckets(s3, north) == access.buckets

    assert client(s3).stat_object(access.buckets.datasets, "thing")


def test_a_wrong_secret_gets_no_credentials(s3: Address, north: str) -> None:
    with pytest.raises(StoreRefused) as refused:
        give_access(replace(s3, secret_key="quite-another-value"), north, 3600)

    assert "quite-another-value" not in str(refused.value)


def test_a_server_that_is_away_is_unavailable(s3: Address, north: str) -> None:
    with pytest.raises(StoreUnavailable):
        give_access(replace(s3, endpoint="127.0.0.1:1"), north, 3600)
