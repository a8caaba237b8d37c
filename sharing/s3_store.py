"""Objects in a bucket of an S3 server (MinIO, Amazon S3): the store of a platform.

An object becomes readable in one step, the completion of a multipart upload or a single PUT, and
only where none is: so what has an object's name is whole, whenever anybody stops, and is never
rewritten unless it was found to be altered. If its digest is known beforehand the parts go straight
to their place; otherwise they are staged, and copied on the server under the name they turn out to
have.

Reading goes in windows that each name the version they belong to. One long answer would not do:
MinIO holds a lock on an object while it sends it, so that a slow reader would keep everybody else
from deleting or mending it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final, ParamSpec, TypeVar
from uuid import uuid4

from sharing.object_store import (
    CHUNK_BYTES,
    BucketAccess,
    Digest,
    ObjectCorrupt,
    ObjectMissing,
    ObjectTooLarge,
    PartsMissing,
    Staged,
    StoredObject,
    StoreError,
    StoreUnavailable,
    UploadGone,
    is_digest,
)
from sharing.s3_bucket import (
    STAGING,
    Address,
    Bucket,
    ConditionFailed,
    Version,
    remove_account,
)
from sharing.s3_buckets import give_access

PART_BYTES: Final = 16 << 20
MAX_PARTS_IN_FLIGHT: Final = 3
"""Of one upload, while the next one gathers: together they bound its memory."""
COPIED_BYTES: Final = 256 << 20
"""Of a part that the server copies; it must answer within the timeout of a request."""
WINDOW_BYTES: Final = 8 << 20
NUM_WINDOWS_AHEAD: Final = 2
NUM_THREADS: Final = 16
MAX_REMEMBERED: Final = 4096

Write = Callable[[Mapping[str, str]], None]
P = ParamSpec("P")
T = TypeVar("T")


class S3Store:
    """Adapter of ``ObjectStore``, ``Presigning``, ``Retaining``, ``Granting`` and ``TakingParts``.

    Several processes may use one bucket.
    """

    def __init__(
        self,
        address: Address,
        bucket: str,
        *,
        public_endpoint: str = "",
        is_locked: bool = False,
    ) -> None:
        """Nothing is asked of the server yet.

        Args:
            address: Where the server is, and our credentials there.
            bucket: Where the objects lie; ``make_bucket`` makes it.
            public_endpoint: ``HOST[:PORT]`` for links, where those who get them reach the server
                by another name than we do.
            is_locked: Whether objects can be retained; a bucket for that must be made for it.
        """
        self._address = address
        self._is_locked = is_locked
        self._public_endpoint = public_endpoint or address.endpoint
        self._bucket = Bucket(address, bucket, num_connections=NUM_THREADS)
        self._links = self._bucket
        if public_endpoint:
            self._links = Bucket(replace(address, endpoint=public_endpoint), bucket)
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="s3")
        self._verified: OrderedDict[Digest, Version] = OrderedDict()
        self._verifying = asyncio.Lock()

    async def close(self) -> None:
        """Wait for the threads, and close the connections."""
        await asyncio.to_thread(self._threads.shutdown)
        self._bucket.close()

    async def make_bucket(self) -> bool:
        """Make the bucket if it is not there; False if it is.

        Raises:
            RightMissing: It is not there, and we may not make it.
            StoreRefused: Objects are to be retained, and it was made without object lock.
            StoreUnavailable: The server did not answer.
        """
        is_new = await self._run(self._bucket.make, is_locked=self._is_locked)
        if self._is_locked:
            await self._run(self._bucket.require_lock)
        return is_new

    async def put(
        self,
        chunks: AsyncIterable[bytes],
        *,
        expect: Digest | None = None,
        max_bytes: int | None = None,
    ) -> StoredObject:
        sha256 = hashlib.sha256()
        received = gathered = 0
        gathering: list[bytes] = []
        is_expected = expect is not None and is_digest(expect)
        place = _key(expect) if is_expected and expect else STAGING + uuid4().hex
        upload = _Upload(self._bucket, self._threads, place)
        try:
            async for chunk in chunks:
                received += len(chunk)
                gathered += len(chunk)
                if max_bytes is not None and received > max_bytes:
                    raise ObjectTooLarge(f"more than {max_bytes:,} bytes")
                gathering.append(chunk)
                if gathered >= PART_BYTES:
                    part = b"".join(gathering)
                    gathering, gathered = [], 0
                    await upload.add(part)
                    await self._run(sha256.update, part)
            last = b"".join(gathering)
            await self._run(sha256.update, last)
            stored = StoredObject(f"sha256:{sha256.hexdigest()}", received)
            if expect is not None and stored.digest != expect:
                raise ObjectCorrupt(f"the bytes are {stored.digest}, not {expect}")
            if not upload.has_begun:
                await self._write_once(stored.digest, partial(self._put_whole, stored, last))
            else:
                if last:
                    await upload.add(last)
                await self._commit(upload, stored)
        finally:
            upload.discard()
        return stored

    async def get(
        self, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[bytes]:
        version = await self._version(digest)
        stop = version.size_bytes if stop is None else min(stop, version.size_bytes)
        if start <= 0 and stop == version.size_bytes:
            reading = self._whole(digest, version)
        else:
            reading = self._part(digest, version, start, stop)
        async with contextlib.aclosing(reading):
            async for window in reading:
                for offset in range(0, len(window), CHUNK_BYTES):
                    yield window[offset : offset + CHUNK_BYTES]

    async def stat(self, digest: Digest) -> StoredObject:
        return StoredObject(digest, (await self._version(digest)).size_bytes)

    async def delete(self, digest: Digest) -> None:
        if is_digest(digest):
            await self._run(self._bucket.remove, _key(digest))

    async def link(self, digest: Digest, *, lifetime_s: int, file_name: str) -> str:
        await self._version(digest)
        lifetime = timedelta(seconds=lifetime_s)
        return await self._run(self._links.link, _key(digest), lifetime, file_name)

    async def retain(self, digest: Digest, until: datetime) -> None:
        if not is_digest(digest):
            raise ObjectMissing(digest)
        await self._run(self._bucket.retain, _key(digest), until)

    async def grant(self, organisation: str, ends_at: datetime) -> BucketAccess:
        return await self._run(
            give_access, self._address, organisation, ends_at, self._public_endpoint
        )

    async def revoke(self, access_key: str) -> None:
        await self._run(remove_account, self._address, access_key)

    async def begin_parts(self) -> Staged:
        key = STAGING + uuid4().hex
        return Staged(key, await self._run(self._bucket.begin, key))

    async def link_parts(
        self, staged: Staged, sizes: Mapping[int, int], lifetime_s: int
    ) -> Mapping[int, str]:
        lifetime = timedelta(seconds=lifetime_s)
        return {
            number: self._links.part_link(staged.key, staged.upload, number, size, lifetime)
            for number, size in sizes.items()
        }

    async def parts_of(self, staged: Staged, sizes: Mapping[int, int]) -> frozenset[int]:
        try:
            found = await self._run(self._bucket.parts, staged.key, staged.upload)
        except UploadGone:
            await self._joined(staged)
            return frozenset(sizes)
        return frozenset(number for number, (_, size) in found.items() if sizes.get(number) == size)

    async def join_parts(self, staged: Staged, sizes: Mapping[int, int]) -> None:
        try:
            found = await self._run(self._bucket.parts, staged.key, staged.upload)
            if {number: size for number, (_, size) in found.items()} != sizes:
                missing = [n for n, size in sizes.items() if found.get(n, ("", -1))[1] != size]
                told = ", ".join(map(str, missing[:10]))
                raise PartsMissing(f"{len(missing)} of {len(sizes)} parts are not there: {told}")
            etags = [found[number][0] for number in sorted(found)]
            await self._run(self._bucket.complete, staged.key, staged.upload, etags, {})
        except UploadGone:
            await self._joined(staged)

    async def read_parts(self, staged: Staged) -> AsyncIterator[bytes]:
        version = await self._joined(staged)
        windows = self._windows(staged.key, version, 0, version.size_bytes)
        async with contextlib.aclosing(windows):
            async for window in windows:
                yield window

    async def discard_parts(self, staged: Staged) -> None:
        await self._run(self._bucket.abort, staged.key, staged.upload)
        await self._run(self._bucket.remove, staged.key)

    async def _joined(self, staged: Staged) -> Version:
        try:
            return await self._run(self._bucket.version, staged.key)
        except ObjectMissing as error:
            raise UploadGone("the upload is no more; begin it again") from error

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._threads.submit(call, *args, **kwargs))

    async def _version(self, digest: Digest) -> Version:
        if not is_digest(digest):
            raise ObjectMissing(digest)
        return await self._run(self._bucket.version, _key(digest))

    async def _whole(self, digest: Digest, version: Version) -> AsyncGenerator[bytes, None]:
        """Hash as it goes; a window is handed out when it is known not to be the last."""
        sha256 = hashlib.sha256()
        held = b""
        windows = self._windows(_key(digest), version, 0, version.size_bytes)
        async with contextlib.aclosing(windows):
            async for window in windows:
                if held:
                    yield held
                await self._run(sha256.update, window)
                held = window
        if f"sha256:{sha256.hexdigest()}" != digest:
            raise ObjectCorrupt(digest)
        self._remember(digest, version)
        yield held

    async def _part(
        self, digest: Digest, version: Version, start: int, stop: int
    ) -> AsyncGenerator[bytes, None]:
        if self._verified.get(digest) != version:
            async with self._verifying:  # or each reader of many parts would fetch the whole
                if self._verified.get(digest) != version:
                    await self._verify(digest, version)
        windows = self._windows(_key(digest), version, start, stop)
        async with contextlib.aclosing(windows):
            async for window in windows:
                yield window

    async def _verify(self, digest: Digest, version: Version) -> None:
        reading = self._whole(digest, version)
        async with contextlib.aclosing(reading):
            async for _ in reading:
                pass

    async def _windows(
        self, key: str, version: Version, start: int, stop: int
    ) -> AsyncGenerator[bytes, None]:
        """The bytes from ``start`` to ``stop``, a few windows fetched ahead."""
        starts = iter(range(start, stop, WINDOW_BYTES))
        ahead: deque[Future[bytes]] = deque()

        def fetch_next() -> None:
            if (at := next(starts, None)) is not None:
                end = min(at + WINDOW_BYTES, stop)
                ahead.append(self._threads.submit(self._bucket.read, key, version, at, end))

        try:
            for _ in range(NUM_WINDOWS_AHEAD):
                fetch_next()
            while ahead:
                window = await asyncio.wrap_future(ahead.popleft())
                fetch_next()
                yield window
        except ConditionFailed as error:
            raise ObjectCorrupt("the object was written while it was read") from error
        finally:
            for future in ahead:
                future.cancel()

    def _remember(self, digest: Digest, version: Version) -> None:
        self._verified[digest] = version
        self._verified.move_to_end(digest)
        if len(self._verified) > MAX_REMEMBERED:
            self._verified.popitem(last=False)

    async def _write_once(self, digest: Digest, write: Write) -> None:
        """Write the object unless it is there and whole; one that was altered is replaced."""
        try:
            await self._run(write, {"If-None-Match": "*"})
        except ConditionFailed:
            try:
                version = await self._version(digest)
                if self._verified.get(digest) != version:
                    await self._verify(digest, version)
            except ObjectCorrupt:
                await self._replace(write, version)
            except ObjectMissing as error:
                raise StoreUnavailable("the object was deleted while it was stored") from error

    async def _replace(self, write: Write, version: Version) -> None:
        try:
            await self._run(write, {"If-Match": version.etag})
        except ConditionFailed as error:
            raise StoreUnavailable("the object was written while it was mended") from error

    def _put_whole(
        self, stored: StoredObject, content: bytes, condition: Mapping[str, str]
    ) -> None:
        self._bucket.put(_key(stored.digest), content, condition)

    async def _commit(self, upload: _Upload, stored: StoredObject) -> None:
        """Make the upload readable under the object's name."""
        if upload.key == _key(stored.digest):
            etags = await upload.etags()
            await self._write_once(stored.digest, partial(upload.complete, etags))
            return
        etags = await upload.etags()
        try:
            with contextlib.suppress(ConditionFailed):  # done by a try whose answer was lost
                await self._run(upload.complete, etags, {})
            copy = _Upload(self._bucket, self._threads, _key(stored.digest))
            try:
                for start in range(0, stored.size_bytes, COPIED_BYTES):
                    stop = min(start + COPIED_BYTES, stored.size_bytes)
                    await copy.copy(upload.key, start, stop)
                etags = await copy.etags()
                await self._write_once(stored.digest, partial(copy.complete, etags))
            finally:
                copy.discard()
        except ObjectMissing as error:
            raise StoreUnavailable("the upload was discarded while it was stored") from error
        finally:
            self._threads.submit(self._bucket.remove, upload.key)


class _Upload:
    """A multipart upload to ``key``; nothing is on the server before the first part."""

    def __init__(self, bucket: Bucket, threads: ThreadPoolExecutor, key: str) -> None:
        self.key = key
        self._bucket = bucket
        self._threads = threads
        self._name: Future[str] | None = None
        self._parts: list[Future[str]] = []
        self._is_complete = False

    @property
    def has_begun(self) -> bool:
        """True if there is something on the server, or soon will be."""
        return self._name is not None

    async def add(self, content: bytes) -> None:
        """Send the next part; returns when few enough are under way."""
        name, number = await self._begin(), len(self._parts) + 1
        part = self._threads.submit(self._bucket.put_part, self.key, name, number, content)
        await self._sent(part)

    async def copy(self, source: str, start: int, stop: int) -> None:
        """Have the server copy the next part out of another object."""
        name, number = await self._begin(), len(self._parts) + 1
        part = self._threads.submit(
            self._bucket.copy_part, self.key, name, number, source, start, stop
        )
        await self._sent(part)

    async def etags(self) -> list[str]:
        """Of all parts, in order, when they are on the server."""
        return [await _result(part) for part in self._parts]

    def complete(self, etags: list[str], condition: Mapping[str, str]) -> None:
        """Make it an object; blocks, and may be repeated.

        Raises:
            ConditionFailed: ``condition`` does not hold, or it is an object already.
        """
        assert self._name  # noqa: S101 - a part was added
        try:
            self._bucket.complete(self.key, self._name.result(), etags, condition)
        except UploadGone as error:
            # completed by an earlier try whose answer was lost, or discarded behind our back
            raise ConditionFailed(str(error)) from error
        self._is_complete = True

    def discard(self) -> None:
        """Leave nothing on the server; done in the background, and no matter if it fails."""
        for part in self._parts:
            part.cancel()
        if self._name and not self._is_complete:
            self._threads.submit(self._abort, self._name)

    def _abort(self, name: Future[str]) -> None:
        for future in (name, *self._parts):  # begun before this, so none of them waits for us
            if not future.cancelled():
                future.exception()
        with contextlib.suppress(StoreError):
            self._bucket.abort(self.key, name.result())

    async def _begin(self) -> str:
        self._name = self._name or self._threads.submit(self._bucket.begin, self.key)
        return await _result(self._name)

    async def _sent(self, part: Future[str]) -> None:
        self._parts.append(part)
        if len(self._parts) > MAX_PARTS_IN_FLIGHT:
            await _result(self._parts[-MAX_PARTS_IN_FLIGHT - 1])


async def _result(future: Future[T]) -> T:
    """Await what a thread does; cancelling the waiting leaves the thread alone."""
    return await asyncio.shield(asyncio.wrap_future(future))


def _key(digest: Digest) -> str:
    return "objects/" + digest.removeprefix("sha256:")
