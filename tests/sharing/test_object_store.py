"""What every object store promises, whichever adapter is behind it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharing.directory_store import DirectoryStore
from sharing.object_store import (
    CHUNK_BYTES,
    Digest,
    ObjectCorrupt,
    ObjectMissing,
    ObjectStore,
    ObjectTooLarge,
    StoredObject,
    digest_of,
)

pytestmark = pytest.mark.anyio

Tamper = Callable[[bytes, bytes], None]
"""Replace, behind the store's back, an object with these bytes by others."""

BIG = bytes(range(256)) * (9 * CHUNK_BYTES // 256) + b"and a little more"


@pytest.fixture(params=["directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    assert request.param == "directory"
    return DirectoryStore(tmp_path)


@pytest.fixture
def tamper(store: ObjectStore, tmp_path: Path) -> Tamper:
    def replace(content: bytes, other: bytes) -> None:
        [place] = [path for path in tmp_path.rglob(digest_of(content)[7:]) if path.is_file()]
        written_ns = place.stat().st_mtime_ns
        place.chmod(0o644)
        place.write_bytes(other)
        os.utime(place, ns=(written_ns, written_ns + 1))  # a clock tick may be longer than a test

    return replace


async def stream(content: bytes, size: int = CHUNK_BYTES) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def read(
    store: ObjectStore, digest: Digest, *, start: int = 0, stop: int | None = None
) -> bytes:
    return b"".join([chunk async for chunk in store.get(digest, start=start, stop=stop)])


async def collect(store: ObjectStore, digest: Digest, received: list[bytes]) -> None:
    async for chunk in store.get(digest):
        received.append(chunk)


async def test_the_adapter_has_the_form_of_the_port(store: ObjectStore) -> None:
    assert isinstance(store, ObjectStore)


@pytest.mark.parametrize("content", [b"", b"weights", BIG], ids=["nothing", "little", "much"])
async def test_what_is_put_can_be_got(store: ObjectStore, content: bytes) -> None:
    stored = await store.put(stream(content))

    assert stored == StoredObject(digest_of(content), len(content))
    assert await store.stat(stored.digest) == stored
    assert await read(store, stored.digest) == content


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.binary(max_size=300), max_size=8),
    start=st.integers(0, 2500),
    stop=st.none() | st.integers(0, 2500),
)
async def test_any_pieces_come_back_as_one_and_any_part_as_a_slice(
    store: ObjectStore, pieces: list[bytes], start: int, stop: int | None
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    content = b"".join(pieces)

    stored = await store.put(chunks(), expect=digest_of(content), max_bytes=len(content))

    assert await read(store, stored.digest) == content
    assert await read(store, stored.digest, start=start, stop=stop) == content[start:stop]


async def test_putting_twice_is_putting_once(store: ObjectStore) -> None:
    once = await store.put(stream(b"weights"))

    assert await store.put(stream(b"weights")) == once
    assert await read(store, once.digest) == b"weights"


async def test_the_same_bytes_may_come_from_many_at_once(store: ObjectStore) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(store.put, stream(BIG))

    assert await read(store, digest_of(BIG)) == BIG


@pytest.mark.parametrize(
    "digest",
    [digest_of(b"never stored"), "sha256:../../../../etc/passwd", "weights"],
    ids=["unknown", "a path", "no digest"],
)
async def test_what_is_not_there_is_missing(store: ObjectStore, digest: str) -> None:
    with pytest.raises(ObjectMissing):
        await read(store, digest)
    with pytest.raises(ObjectMissing):
        await read(store, digest, start=1)
    with pytest.raises(ObjectMissing):
        await store.stat(digest)


async def test_forgetting_may_be_repeated(store: ObjectStore) -> None:
    stored = await store.put(stream(b"weights"))

    await store.delete(stored.digest)
    await store.delete(stored.digest)

    with pytest.raises(ObjectMissing):
        await store.stat(stored.digest)


async def test_unexpected_bytes_are_not_stored(store: ObjectStore) -> None:
    with pytest.raises(ObjectCorrupt):
        await store.put(stream(BIG), expect=digest_of(b"weights"))

    for digest in (digest_of(BIG), digest_of(b"weights")):
        with pytest.raises(ObjectMissing):
            await store.stat(digest)


async def test_more_than_allowed_is_not_stored_nor_read_to_the_end(store: ObjectStore) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(1000)

    with pytest.raises(ObjectTooLarge):
        await store.put(endless(), max_bytes=10_000)

    assert taken == 11


async def test_a_stream_that_breaks_off_stores_nothing(store: ObjectStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield BIG
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put(broken())

    with pytest.raises(ObjectMissing):
        await store.stat(digest_of(BIG))


async def test_a_cancelled_put_stores_nothing(store: ObjectStore) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield BIG
        scope.cancel()
        await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        await store.put(endless())

    with pytest.raises(ObjectMissing):
        await store.stat(digest_of(BIG))


@pytest.mark.parametrize(
    "forged",
    [BIG[:-1] + b"!", BIG[:-1], BIG + b"!", b"", b"!" + BIG[1:]],
    ids=["last byte", "shorter", "longer", "empty", "first byte"],
)
async def test_an_altered_object_is_never_read_to_its_end(
    store: ObjectStore, tamper: Tamper, forged: bytes
) -> None:
    stored = await store.put(stream(BIG))
    assert await read(store, stored.digest) == BIG
    tamper(BIG, forged)

    received: list[bytes] = []
    with pytest.raises(ObjectCorrupt):
        await collect(store, stored.digest, received)

    assert len(b"".join(received)) < len(forged) or not forged


async def test_no_part_of_an_altered_object_is_served(store: ObjectStore, tamper: Tamper) -> None:
    stored = await store.put(stream(BIG))
    assert await read(store, stored.digest, start=3, stop=5) == BIG[3:5]
    tamper(BIG, BIG[:-1] + b"!")

    with pytest.raises(ObjectCorrupt):
        await read(store, stored.digest, start=3, stop=5)


async def test_an_object_that_is_altered_while_a_part_is_read_is_not_falsified(
    store: ObjectStore, tamper: Tamper
) -> None:
    stored = await store.put(stream(BIG))
    reader = store.get(stored.digest, start=1)
    received = [await anext(reader)]
    tamper(BIG, bytes(len(BIG)))

    with contextlib.suppress(ObjectCorrupt):
        async for chunk in reader:
            received.append(chunk)

    assert BIG[1:].startswith(b"".join(received))


async def test_an_altered_object_is_mended_by_putting_it_again(
    store: ObjectStore, tamper: Tamper
) -> None:
    stored = await store.put(stream(b"weights"))
    tamper(b"weights", b"poison!")

    await store.put(stream(b"weights"))

    assert await read(store, stored.digest) == b"weights"


async def test_many_parts_may_be_read_at_once(store: ObjectStore) -> None:
    stored = await store.put(stream(BIG))
    step = len(BIG) // 7
    parts: dict[int, bytes] = {}

    async def fetch(start: int) -> None:
        parts[start] = await read(store, stored.digest, start=start, stop=start + step)

    async with anyio.create_task_group() as group:
        for start in range(0, len(BIG), step):
            group.start_soon(fetch, start)

    assert b"".join(parts[start] for start in sorted(parts)) == BIG


async def test_a_slow_reader_does_not_keep_anybody_from_deleting(store: ObjectStore) -> None:
    stored = await store.put(stream(BIG))
    reader = store.get(stored.digest)
    received = [await anext(reader)]

    with anyio.fail_after(10):
        await store.delete(stored.digest)

    with contextlib.suppress(ObjectMissing):
        async for chunk in reader:
            received.append(chunk)
    assert BIG.startswith(b"".join(received))
    with pytest.raises(ObjectMissing):
        await store.stat(stored.digest)
