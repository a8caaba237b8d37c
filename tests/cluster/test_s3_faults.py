"""What the S3 store says and keeps when the server, its disk, the network or a right is gone."""

from __future__ import annotations

import io
import ipaddress
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from minio.credentials import AssumeRoleProvider
from minio.versioningconfig import ENABLED, VersioningConfig

from sharing import s3_bucket
from sharing.object_store import (
    BucketMissing,
    ObjectCorrupt,
    ObjectMissing,
    RightMissing,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    digest_of,
)
from sharing.s3_bucket import Address
from sharing.s3_store import PART_BYTES, S3Store
from tests.cluster.conftest import MINIO
from tests.cluster.minio_server import Server, client

pytestmark = pytest.mark.anyio

PART = bytes(range(256)) * (PART_BYTES // 256)
WHOLE = PART + PART + PART + b"rest"
WRITER = """
import sys
import anyio
from sharing.s3_bucket import Address
from sharing.s3_store import PART_BYTES, S3Store

async def halting():
    for _ in range(6):
        yield bytes(PART_BYTES)
    print("half", flush=True)
    await anyio.sleep_forever()

async def main():
    address = Address(
        endpoint=sys.argv[1], secure=False, access_key="faulty", secret_key="faulty-test-only"
    )
    await S3Store(address, "kept").put(halting(), expect=sys.argv[2] or None)

anyio.run(main)
"""


@asynccontextmanager
async def opened(address: Address, bucket: str = "kept") -> AsyncIterator[S3Store]:
    store = S3Store(address, bucket)
    try:
        yield store
    finally:
        await store.close()


async def parts(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


async def read(store: S3Store, digest: str, start: int = 0) -> bytes:
    return b"".join([chunk async for chunk in store.get(digest, start=start)])


async def test_a_server_that_restarts_during_a_put_is_not_noticed(own_server: Server) -> None:
    async def interrupted() -> AsyncIterator[bytes]:
        yield PART
        yield PART
        own_server.kill()
        group.start_soon(anyio.to_thread.run_sync, own_server.start)
        yield PART
        yield b"rest"

    async with opened(own_server.address) as store, anyio.create_task_group() as group:
        await store.make_bucket()

        stored = await store.put(interrupted(), expect=digest_of(WHOLE))

        assert await read(store, stored.digest) == WHOLE


async def test_a_server_that_stays_away_is_unavailable_and_nothing_is_readable(
    own_server: Server,
) -> None:
    async def interrupted() -> AsyncIterator[bytes]:
        yield PART
        own_server.kill()
        yield PART
        yield PART
        yield b"rest"

    async with opened(own_server.address) as store:
        await store.make_bucket()
        with anyio.fail_after(60), pytest.raises(StoreUnavailable):
            await store.put(interrupted(), expect=digest_of(WHOLE))
        own_server.start()

        with pytest.raises(ObjectMissing):
            await store.stat(digest_of(WHOLE))
        await store.put(parts(WHOLE), expect=digest_of(WHOLE))
        assert await read(store, digest_of(WHOLE)) == WHOLE


async def test_a_server_that_restarts_during_a_get_is_not_noticed(own_server: Server) -> None:
    async with opened(own_server.address) as store, anyio.create_task_group() as group:
        await store.make_bucket()
        stored = await store.put(parts(PART, PART, PART, b"rest"))
        reader = store.get(stored.digest)
        received = [await anext(reader)]
        own_server.kill()
        group.start_soon(anyio.to_thread.run_sync, own_server.start)

        received += [chunk async for chunk in reader]

        assert b"".join(received) == WHOLE


async def test_a_server_that_stays_away_ends_a_get_before_the_end(own_server: Server) -> None:
    received: list[bytes] = []
    async with opened(own_server.address) as store:
        await store.make_bucket()
        stored = await store.put(parts(PART, PART, PART, b"rest"))
        reader = store.get(stored.digest)
        received.append(await anext(reader))
        own_server.kill()

        with anyio.fail_after(60), pytest.raises(StoreUnavailable):
            await exhaust(reader, received)

    assert len(b"".join(received)) < len(WHOLE)


async def exhaust(reader: AsyncIterator[bytes], received: list[bytes]) -> None:
    async for chunk in reader:
        received.append(chunk)


async def test_a_server_that_is_silent_is_unavailable_within_a_bound(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_bucket, "READ_S", 0.5)
    async with opened(own_server.address) as store:
        await store.make_bucket()
        own_server.freeze()

        with anyio.fail_after(10), pytest.raises(StoreUnavailable, match="Timeout"):
            await store.stat(digest_of(b"weights"))


@pytest.mark.parametrize("expect", [digest_of(b"not yet known"), ""], ids=["named", "staged"])
async def test_a_writer_that_is_killed_leaves_nothing_readable(
    own_server: Server, expect: str
) -> None:
    async with opened(own_server.address) as store:
        await store.make_bucket()
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, own_server.address.endpoint, expect],
            stdout=subprocess.PIPE,
        ) as writer:
            assert writer.stdout
            assert writer.stdout.readline() == b"half\n"
            writer.send_signal(signal.SIGKILL)

        assert list(client(own_server.address).list_objects("kept", recursive=True)) == []
        with pytest.raises(ObjectMissing):
            await store.stat(digest_of(b"not yet known"))
    assert own_server.uploads()  # which expire


@pytest.mark.parametrize("expect", [digest_of(WHOLE), None], ids=["named", "staged"])
async def test_a_put_that_fails_leaves_no_upload(own_server: Server, expect: str | None) -> None:
    async with opened(own_server.address) as store:
        await store.make_bucket()
        with pytest.raises(ConnectionResetError):
            await store.put(broken(), expect=expect)
        with pytest.raises(ObjectCorrupt):
            await store.put(parts(PART, b"other"), expect=digest_of(WHOLE))

    assert own_server.uploads() == []


async def broken() -> AsyncIterator[bytes]:
    yield PART
    yield PART
    raise ConnectionResetError


async def test_a_staged_object_is_gone_when_it_is_in_its_place(own_server: Server) -> None:
    async with opened(own_server.address) as store:
        await store.make_bucket()
        stored = await store.put(parts(PART, PART, PART, b"rest"))

        assert await read(store, stored.digest) == WHOLE

    kept = client(own_server.address).list_objects("kept", recursive=True)
    assert [found.object_name for found in kept] == ["objects/" + digest_of(WHOLE)[7:]]
    assert own_server.uploads() == []


async def test_an_upload_that_is_discarded_behind_our_back_is_not_taken_for_stored(
    own_server: Server,
) -> None:
    async with opened(own_server.address) as store:
        await store.make_bucket()

        async def sabotaged() -> AsyncIterator[bytes]:
            yield PART
            yield PART
            name = "objects/" + digest_of(WHOLE)[7:]
            minio = client(own_server.address)
            [upload] = minio._list_multipart_uploads("kept", prefix=name).uploads
            minio._abort_multipart_upload("kept", name, upload.upload_id or "")
            yield PART + b"rest"

        with pytest.raises(StoreUnavailable):
            await store.put(sabotaged(), expect=digest_of(WHOLE))

        with pytest.raises(ObjectMissing):
            await store.stat(digest_of(WHOLE))


async def test_an_existing_object_is_not_rewritten(own_server: Server) -> None:
    async with opened(own_server.address) as store:
        await store.make_bucket()
        for content in (b"weights", WHOLE):
            name = "objects/" + digest_of(content)[7:]
            await store.put(parts(content), expect=digest_of(content))
            before = client(own_server.address).stat_object("kept", name).last_modified
            await anyio.sleep(1.1)  # times are in seconds

            await store.put(parts(content), expect=digest_of(content))
            await store.put(parts(content))

            assert client(own_server.address).stat_object("kept", name).last_modified == before


@pytest.mark.parametrize("start", [0, 1], ids=["whole", "part"])
async def test_an_object_that_is_rewritten_while_it_is_read_breaks_off(
    own_server: Server, start: int
) -> None:
    received: list[bytes] = []
    async with opened(own_server.address) as store:
        await store.make_bucket()
        stored = await store.put(parts(WHOLE), expect=digest_of(WHOLE))
        reader = store.get(stored.digest, start=start)
        received.append(await anext(reader))
        name = "objects/" + digest_of(WHOLE)[7:]
        forged = bytes(len(WHOLE))
        client(own_server.address).put_object("kept", name, io.BytesIO(forged), len(forged))

        with pytest.raises(ObjectCorrupt, match="while it was read"):
            await exhaust(reader, received)

    assert WHOLE[start:].startswith(b"".join(received))


async def test_a_bucket_with_versions_lets_a_reader_finish(own_server: Server) -> None:
    async with opened(own_server.address) as store:
        await store.make_bucket()
        minio = client(own_server.address)
        minio.set_bucket_versioning("kept", VersioningConfig(ENABLED))
        stored = await store.put(parts(WHOLE), expect=digest_of(WHOLE))
        reader = store.get(stored.digest)
        received = [await anext(reader)]
        minio.fput_object("kept", "objects/" + digest_of(WHOLE)[7:], __file__)
        await store.delete(stored.digest)

        await exhaust(reader, received)

        assert b"".join(received) == WHOLE


async def test_an_altered_object_of_many_parts_is_mended(own_server: Server) -> None:
    async with opened(own_server.address) as store:
        await store.make_bucket()
        await store.put(parts(WHOLE), expect=digest_of(WHOLE))
        minio = client(own_server.address)
        for expect in (digest_of(WHOLE), None):
            minio.fput_object("kept", "objects/" + digest_of(WHOLE)[7:], __file__)
            with pytest.raises(ObjectCorrupt):
                await read(store, digest_of(WHOLE))

            await store.put(parts(WHOLE), expect=expect)

            assert await read(store, digest_of(WHOLE)) == WHOLE


async def test_a_full_disk_is_said_to_be_full(s3: Address, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk], check=True)
    server = Server(MINIO, disk / "minio")
    try:
        server.start()
        async with opened(server.address) as store:
            await store.make_bucket()
            with pytest.raises(StoreFull):
                await store.put(parts(*[PART] * 12), expect=digest_of(PART * 12))
            await anyio.to_thread.run_sync(store._threads.shutdown)

        async with opened(server.address) as store:
            with pytest.raises(ObjectMissing):
                await store.stat(digest_of(PART * 12))
        assert server.uploads() == []
    finally:
        server.kill()
        subprocess.run(["umount", disk], check=True)


async def test_a_bucket_that_is_not_there_is_told_from_an_object(s3: Address, bucket: str) -> None:
    async with opened(s3, bucket) as store:
        for call in (
            store.stat(digest_of(b"weights")),
            store.put(parts(b"weights")),
            store.put(parts(WHOLE)),
            store.delete(digest_of(b"weights")),
            read(store, digest_of(b"weights")),
        ):
            with pytest.raises(BucketMissing, match=bucket):
                await call


@pytest.mark.parametrize("wrong", ["secret_key", "access_key"])
async def test_wrong_credentials_are_refused_and_not_told(
    s3: Address, bucket: str, wrong: str
) -> None:
    async with opened(s3, bucket) as store:
        await store.make_bucket()
    address = replace(s3, **{wrong: "quite-another-value"})
    async with opened(address, bucket) as store:
        for call in (store.stat(digest_of(b"")), store.put(parts(b"weights")), store.make_bucket()):
            with pytest.raises(StoreRefused, match="credentials") as refused:
                await call

            assert not isinstance(refused.value, RightMissing)
            assert "quite-another-value" not in str(refused.value)
            assert s3.secret_key not in str(refused.value)


def limited(s3: Address, bucket: str, *rights: str) -> Address:
    """Credentials that may do only this, and only in this bucket."""
    places = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    statement = {"Effect": "Allow", "Action": list(rights), "Resource": places}
    found = AssumeRoleProvider(
        sts_endpoint=f"http://{s3.endpoint}",
        access_key=s3.access_key,
        secret_key=s3.secret_key,
        region=s3.region,
        policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}),
    ).retrieve()
    return replace(
        s3,
        access_key=found.access_key,
        secret_key=found.secret_key,
        session_token=found.session_token or "",
    )


@pytest.fixture
def filled(s3: Address, bucket: str) -> str:
    minio = client(s3)
    minio.make_bucket(bucket)
    minio.fput_object(bucket, "objects/" + digest_of(Path(__file__).read_bytes())[7:], __file__)
    return bucket


@pytest.mark.parametrize(
    ("lacking", "rights"),
    [
        ("s3:GetObject", ["s3:PutObject", "s3:DeleteObject", "s3:ListBucket"]),
        ("s3:PutObject", ["s3:GetObject", "s3:DeleteObject", "s3:ListBucket"]),
        ("s3:DeleteObject", ["s3:GetObject", "s3:PutObject", "s3:ListBucket"]),
    ],
)
async def test_a_right_that_lacks_is_named(
    s3: Address, filled: str, lacking: str, rights: list[str]
) -> None:
    digest = digest_of(Path(__file__).read_bytes())
    async with opened(limited(s3, filled, *rights), filled) as store:
        calls = {
            "s3:GetObject": lambda: read(store, digest),
            "s3:PutObject": lambda: store.put(parts(WHOLE), expect=digest_of(WHOLE)),
            "s3:DeleteObject": lambda: store.delete(digest),
        }

        with pytest.raises(RightMissing, match=lacking) as refused:
            await calls[lacking]()

        assert filled in str(refused.value)
        assert s3.secret_key not in str(refused.value)
        for right, call in calls.items():
            if right != lacking:
                await call()


async def test_a_bucket_that_several_make_at_once_is_made(s3: Address, bucket: str) -> None:
    async with opened(s3, bucket) as store, anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(store.make_bucket)

    async with opened(s3, bucket) as store:
        assert not await store.make_bucket()


async def test_tls_is_spoken_with_servers_that_the_authority_vouches_for(tmp_path: Path) -> None:
    certificates = tmp_path / "certificates"
    authority = certify(certificates)
    server = Server(MINIO, tmp_path / "minio", certificates)
    try:
        server.start()
        async with opened(replace(server.address, ca_file=authority)) as store:
            await store.make_bucket()
            stored = await store.put(parts(WHOLE))
            assert await read(store, stored.digest) == WHOLE
        async with opened(server.address) as store:
            with pytest.raises(StoreUnavailable, match="SSLError"):
                await store.stat(stored.digest)
    finally:
        server.kill()


def certify(folder: Path) -> Path:
    """A key and a certificate for this machine, where MinIO looks for them; the certificate."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test's MinIO")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8, bare = Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    (folder / "private.key").write_bytes(key.private_bytes(pem, pkcs8, bare))
    (folder / "public.crt").write_bytes(certificate.public_bytes(pem))
    return folder / "public.crt"


async def test_nobody_listens_is_unavailable(s3: Address) -> None:
    async with opened(replace(s3, endpoint="127.0.0.1:1")) as store:
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await store.stat(digest_of(b"weights"))


async def test_a_server_without_tls_is_unavailable_over_tls(s3: Address) -> None:
    async with opened(replace(s3, secure=True)) as store:
        with pytest.raises(StoreUnavailable):
            await store.stat(digest_of(b"weights"))
