"""Files that are sent to a real MinIO in parts, by links, and what does not get in that way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest

from clients.errors import Unreachable
from clients.identity import Principal
from clients.resources import (
    NewOrganisation,
    NewToken,
    NewUpload,
    NewUser,
    Quota,
    Role,
    Upload,
)
from clients.sdk import Foedus
from clients.transport import Patience, Transport
from control_plane.accounts import add_organisation, add_token, add_user, bootstrap
from control_plane.datasets import list_datasets, take_dataset
from control_plane.direct_uploads import (
    MOST_OPEN,
    PART_BYTES,
    abort_upload,
    begin_upload,
    link_parts,
    sizes_of,
)
from control_plane.platform import Platform, Rules, open_platform
from control_plane.programs import take_program
from control_plane.records.tables import UPLOAD
from control_plane.refusals import (
    Forbidden,
    NotFound,
    ProbeFailed,
    QuotaExhausted,
    Unacceptable,
)
from sharing.object_store import (
    ObjectCorrupt,
    ObjectMissing,
    ObjectTooLarge,
    PartsMissing,
    StoreUnavailable,
    digest_of,
    digest_of_file,
)
from sharing.s3_bucket import Address
from sharing.s3_store import S3Store
from tests.cluster.minio_server import Server, client
from tests.cluster.tcp_proxy import TcpProxy
from tests.cluster.test_s3_platform import settings
from tests.e2e.real_server import PATIENCE, RealServer, running

pytestmark = pytest.mark.anyio

RULES = Rules(max_dataset_bytes=64 << 20, max_bundle_bytes=20 << 20)
QUOTA_BYTES = 100 << 20


def examples(path: Path, mb: float) -> bytes:
    """A data set of random numbers."""
    random = np.random.default_rng(int(mb * 8))
    rows = int(mb * (1 << 20) / 4 / 64)
    x = random.standard_normal((rows, 64), dtype=np.float32)
    np.savez(path, x=x, y=random.integers(0, 2, rows))
    return path.read_bytes()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Three parts, of which the last is small."""
    return examples(tmp_path_factory.mktemp("data") / "random.npz", 34)


@dataclass
class Site:
    """A developer of an organisation, and what they do by hand."""

    platform: Platform
    who: Principal
    clock: list[datetime] = field(default_factory=list)

    async def begin(self, content: bytes, digest: str = "", size_bytes: int = 0) -> Upload:
        new = NewUpload(digest or digest_of(content), size_bytes or len(content))
        return (await begin_upload(self.platform, self.who, new))[0]

    async def link(self, digest: str, number: int, lifetime_s: int = 60) -> str:
        links = await link_parts(self.platform, self.who, digest, (number,), lifetime_s)
        return links.links[0].url

    async def send(self, content: bytes, digest: str = "", but: tuple[int, ...] = ()) -> str:
        """Send all parts; the name of the upload."""
        digest = (await self.begin(content, digest)).digest
        for number in sizes_of(len(content)):
            if number not in but:
                url = await self.link(digest, number)
                answer = await put(url, part_of(content, number))
                assert answer.status_code == 200, answer.text
        return digest

    async def take(self, digest: str) -> bool:
        return (await take_dataset(self.platform, self.who, "random", "npz", "y", digest))[1]

    async def is_known(self) -> bool:
        return bool((await list_datasets(self.platform, self.who, 10)).items)


async def put(url: str, content: bytes) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return await client.put(url, content=content)


def part_of(content: bytes, number: int) -> bytes:
    return content[(number - 1) * PART_BYTES : number * PART_BYTES]


@pytest.fixture
async def site(s3: Address, bucket: str, tmp_path: Path) -> AsyncIterator[Site]:
    store = S3Store(s3, bucket)
    await store.make_bucket()
    clock = [datetime.now(UTC)]
    rules = Rules(
        max_dataset_bytes=RULES.max_dataset_bytes,
        max_bundle_bytes=RULES.max_bundle_bytes,
        quota=Quota(storage_bytes=QUOTA_BYTES),
    )
    async with open_platform(
        folder=tmp_path / "data", store=store, rules=rules, now=lambda: clock[-1]
    ) as platform:
        token = await bootstrap(platform)
        assert token is not None
        yield Site(platform, await platform.identity.authenticate(token), clock)
    await store.close()


async def colleague(site: Site, organisation: str, role: Role) -> Site:
    if organisation != "home":
        await add_organisation(site.platform, site.who, NewOrganisation(name=organisation))
    new = NewUser(name=role.value, organisation=organisation, roles=(role,))
    user = await add_user(site.platform, site.who, new)
    token = await add_token(site.platform, site.who, NewToken(user=user.id))
    return Site(site.platform, await site.platform.identity.authenticate(token.secret or ""))


def left_in(s3: Address, bucket: str) -> tuple[list[str], list[str]]:
    """What gathers in the bucket: joined, and uploads that are not."""
    minio = client(s3)
    joined = [str(o.object_name) for o in minio.list_objects(bucket, "partial/", recursive=True)]
    return joined, [str(u.object_name) for u in minio._list_multipart_uploads(bucket).uploads]


async def test_parts_become_a_data_set_and_leave_nothing_else(
    site: Site, s3: Address, bucket: str, content: bytes
) -> None:
    digest = await site.send(content)
    assert not await site.is_known()

    assert await site.take(digest)
    assert not await site.take(digest)

    assert (await site.platform.store.stat(digest)).size_bytes == len(content)
    assert left_in(s3, bucket) == ([], [])
    assert await site.platform.database.rows(UPLOAD.select()) == []


async def test_beginning_again_is_going_on(site: Site, content: bytes) -> None:
    digest = await site.send(content, but=(2,))
    again = await asyncio.gather(*(site.begin(content) for _ in range(4)))
    assert {upload.stored for upload in again} == {(1, 3)}
    assert {(upload.part_bytes, upload.num_parts) for upload in again} == {(PART_BYTES, 3)}
    with pytest.raises(PartsMissing, match="1 of 3 parts are not there: 2"):
        await site.take(digest)

    await put(await site.link(digest, 2), part_of(content, 2))

    assert (await site.begin(content)).stored == (1, 2, 3)
    assert await site.take(digest)


async def test_begun_many_times_at_once_is_begun_once(
    site: Site, s3: Address, bucket: str, content: bytes
) -> None:
    await asyncio.gather(*(site.begin(content) for _ in range(8)))

    assert len(left_in(s3, bucket)[1]) == 1
    await abort_upload(site.platform, site.who, digest_of(content))
    assert left_in(s3, bucket) == ([], [])


async def test_bytes_of_another_digest_are_deleted_and_never_seen(
    site: Site, s3: Address, bucket: str, content: bytes
) -> None:
    claimed = digest_of(b"something else")
    await site.send(content, claimed)

    with pytest.raises(ObjectCorrupt):
        await site.take(claimed)

    assert not await site.is_known()
    assert left_in(s3, bucket) == ([], [])
    for digest in (claimed, digest_of(content)):
        with pytest.raises(ObjectMissing):
            await site.platform.store.stat(digest)
    with pytest.raises(NotFound):
        await site.take(claimed)
    assert await site.take(await site.send(content))


async def test_what_is_no_data_set_is_deleted(site: Site, s3: Address, bucket: str) -> None:
    digest = await site.send(b"no numbers at all " * 1000)

    with pytest.raises(ProbeFailed):
        await site.take(digest)

    assert not await site.is_known()
    assert left_in(s3, bucket) == ([], [])


async def test_a_link_takes_its_own_part_of_its_own_size_and_nothing_else(
    site: Site, s3: Address, bucket: str, content: bytes
) -> None:
    digest = (await site.begin(content)).digest
    first, last = await site.link(digest, 1), await site.link(digest, 3)
    small = part_of(content, 3)

    for url, sent in (
        (last, small + b"x"),
        (last, small[:-1]),
        (last, b""),
        (first, small),
        (last.replace("partNumber=3", "partNumber=1"), small),
        (re.sub("/partial/[0-9a-f]+", "/objects/" + "0" * 64, last), small),
        (last.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"), small),
        (re.sub("X-Amz-SignedHeaders=[^&]*", "X-Amz-SignedHeaders=host", last), small),
    ):
        answer = await put(url, sent)
        assert answer.status_code in (400, 403), (url.partition("?")[0], answer.text)
    async with httpx.AsyncClient(trust_env=False) as asking:
        for method in ("GET", "DELETE", "POST"):
            assert (await asking.request(method, last)).status_code == 403

    assert (await site.begin(content)).stored == ()
    assert (await put(last, small)).status_code == 200
    assert (await site.begin(content)).stored == (3,)


async def test_a_link_is_void_after_its_time(site: Site, content: bytes) -> None:
    digest = (await site.begin(content)).digest
    url = await site.link(digest, 3, lifetime_s=1)

    await asyncio.sleep(2.1)

    assert (await put(url, part_of(content, 3))).status_code == 403


async def test_what_was_aborted_takes_nothing_any_more(
    site: Site, s3: Address, bucket: str, content: bytes
) -> None:
    digest = await site.send(content, but=(3,))
    url = await site.link(digest, 3)

    await abort_upload(site.platform, site.who, digest)

    assert (await put(url, part_of(content, 3))).status_code == 404
    assert left_in(s3, bucket) == ([], [])
    with pytest.raises(NotFound):
        await abort_upload(site.platform, site.who, digest)


async def test_no_link_changes_what_was_joined(site: Site, content: bytes) -> None:
    digest = await site.send(content)
    url = await site.link(digest, 3)
    row = (await site.platform.database.rows(UPLOAD.select()))[0]
    store = site.platform.store
    assert isinstance(store, S3Store)
    from control_plane.direct_uploads import _staged

    for _ in range(2):
        await store.join_parts(_staged(row), sizes_of(len(content)))

    assert (await put(url, part_of(content, 3))).status_code == 404
    assert (await site.begin(content)).stored == (1, 2, 3)
    assert await site.take(digest)


async def test_what_nobody_came_back_to_is_forgotten(
    site: Site, s3: Address, bucket: str, content: bytes
) -> None:
    digest = await site.send(content, but=(3,))
    other = await site.send(content[:100])
    site.clock.append(site.clock[0] + timedelta(hours=21))

    with pytest.raises(NotFound):
        await site.take(digest)
    with pytest.raises(NotFound):
        await site.link(digest, 3)
    begun = await site.begin(b"a third file")

    assert begun.stored == ()
    assert len(left_in(s3, bucket)[1]) == 1
    rows = await site.platform.database.rows(UPLOAD.select())
    assert [row.digest for row in rows] == [digest_of(b"a third file")]
    assert other not in [row.digest for row in rows]


async def test_what_cannot_be_asked_for_is_refused(site: Site, content: bytes) -> None:
    digest = (await site.begin(content)).digest

    with pytest.raises(Unacceptable, match="there is no part 4; there are 3"):
        await site.link(digest, 4)
    with pytest.raises(Unacceptable, match="size_bytes"):
        await site.begin(content, size_bytes=5)
    with pytest.raises(ObjectTooLarge):
        await site.begin(b"large", size_bytes=(64 << 20) + 1)
    large = await site.send(content, digest_of(b"a program"))
    with pytest.raises(ObjectTooLarge):
        await take_program(site.platform, site.who, None, large)
    with pytest.raises(NotFound):
        await site.take(large)


async def test_an_upload_is_its_organisations_alone(site: Site, content: bytes) -> None:
    digest = await site.send(content)
    stranger = await colleague(site, "elsewhere", Role.DEVELOPER)
    operator = await colleague(site, "home", Role.OPERATOR)

    for deed in (stranger.take(digest), stranger.link(digest, 1)):
        with pytest.raises(NotFound):
            await deed
    with pytest.raises(NotFound):
        await abort_upload(site.platform, stranger.who, digest)
    assert (await stranger.begin(content)).stored == ()
    for deed in (operator.begin(content), operator.link(digest, 1)):
        with pytest.raises(Forbidden):
            await deed
    assert (await site.begin(content)).stored == (1, 2, 3)


async def test_what_is_under_way_counts_for_the_quota(site: Site) -> None:
    await site.begin(b"one", size_bytes=50 << 20)

    with pytest.raises(QuotaExhausted, match="bytes of storage"):
        await site.begin(b"two", size_bytes=51 << 20)
    for i in range(MOST_OPEN - 1):
        await site.begin(b"small %d" % i)
    with pytest.raises(QuotaExhausted, match="uploads under way"):
        await site.begin(b"one more")


async def test_a_store_that_is_away_keeps_what_arrived(
    own_server: Server, tmp_path: Path, content: bytes
) -> None:
    store = S3Store(own_server.address, "kept")
    await store.make_bucket()
    async with open_platform(folder=tmp_path / "data", store=store) as platform:
        token = await bootstrap(platform)
        site = Site(platform, await platform.identity.authenticate(token or ""))
        digest = await site.send(content)
        own_server.kill()
        with pytest.raises(StoreUnavailable):
            await site.take(digest)
        own_server.start()

        assert await site.take(digest)
    await store.close()


@pytest.fixture
def door(s3: Address) -> Iterator[TcpProxy]:
    """Where clients reach MinIO."""
    door = TcpProxy(int(s3.endpoint.rpartition(":")[2]))
    yield door
    door.close()


@pytest.fixture
def server(s3: Address, bucket: str, door: TcpProxy, tmp_path: Path) -> Iterator[RealServer]:
    public = {"FOEDUS_S3_PUBLIC_ENDPOINT": f"127.0.0.1:{door.port}"}
    with running(tmp_path / "server", **settings(s3, bucket, tmp_path), **public) as server:
        yield server


def test_a_push_that_was_cut_goes_on_where_it_was(
    server: RealServer, door: TcpProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "random.npz"
    examples(path, 70)
    sent: list[int] = []
    put_to_link = Transport.put_to_link

    def cut_after_two(self: Transport, link: str, content: bytes) -> None:
        if len(sent) == 2:
            door.shut()
        put_to_link(self, link, content)
        sent.append(len(content))

    monkeypatch.setattr(Transport, "put_to_link", cut_after_two)
    impatient = Patience(first_s=0.05, total_s=1)
    with Foedus(server.url, server.token, patience=impatient) as foedus:
        with pytest.raises(Unreachable):
            foedus.datasets.push(path)
        assert sent == [PART_BYTES] * 2
        door.open()
        sent.append(0)  # not to be cut again
        pushed = foedus.datasets.push(path)

    whole = path.stat().st_size
    assert pushed.digest == digest_of_file(path)
    assert sum(sent) == whole
    assert "X-Amz-Signature" not in server.log


def test_a_push_goes_the_ordinary_way_where_the_store_cannot_be_reached(
    server: RealServer, door: TcpProxy, s3: Address, bucket: str, tmp_path: Path
) -> None:
    door.close()
    path = tmp_path / "random.npz"
    examples(path, 17)

    with Foedus(server.url, server.token, patience=PATIENCE) as foedus:
        pushed = foedus.datasets.push(path)

    assert pushed.digest == digest_of_file(path)
    assert left_in(s3, bucket) == ([], [])


def test_a_push_goes_the_ordinary_way_where_objects_lie_in_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "random.npz"
    examples(path, 17)

    with running(tmp_path / "server") as server, server.client() as foedus:
        assert foedus.datasets.push(path).digest == digest_of_file(path)
