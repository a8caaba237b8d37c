"""Objects as files under one folder: the store of a laptop or of a single server.

An object is written beside its place, under a name of its own, and renamed into it when all of it
is on disk; so what lies in ``objects`` is whole, whenever the machine stops. A writer holds a file
lock on what it writes: what is unlocked in ``partial`` belongs to nobody and is swept away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import IO, Final
from uuid import uuid4

import anyio
from anyio import to_thread

from sharing.object_store import (
    CHUNK_BYTES,
    Digest,
    ObjectCorrupt,
    ObjectMissing,
    ObjectTooLarge,
    StoredObject,
    StoreFull,
    StoreUnavailable,
    is_digest,
)

BATCH_BYTES: Final = 4 * CHUNK_BYTES
"""Handed to a thread at a time: a hop costs about 0.1 ms, hashing a batch about 3 ms."""
MAX_REMEMBERED: Final = 4096
_DOOMED: Final = "doomed-"

Fingerprint = tuple[int, int, int]


class DirectoryStore:
    """Adapter of ``ObjectStore``; several processes may use one folder."""

    def __init__(self, root: Path) -> None:
        """Nothing is touched yet.

        Args:
            root: Where the objects lie; made at first use.
        """
        self._objects = root / "objects"
        self._partials = root / "partial"
        self._is_laid_out = False
        self._laying_out = threading.Lock()
        self._verified: OrderedDict[Digest, Fingerprint] = OrderedDict()
        self._verifying = anyio.Lock()

    async def put(
        self,
        chunks: AsyncIterable[bytes],
        *,
        expect: Digest | None = None,
        max_bytes: int | None = None,
    ) -> StoredObject:
        partial = _Partial(self._partials)
        batch: list[bytes] = []
        batched = received = 0
        try:
            async for chunk in chunks:
                batched += len(chunk)
                received += len(chunk)
                if max_bytes is not None and received > max_bytes:
                    raise ObjectTooLarge(f"more than {max_bytes:,} bytes")
                batch.append(chunk)
                if batched >= BATCH_BYTES:
                    await to_thread.run_sync(self._append, partial, batch)
                    batch, batched = [], 0
            return await to_thread.run_sync(self._finish, partial, batch, expect)
        finally:
            if partial.is_open:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(partial.discard)

    async def get(
        self, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[bytes]:
        file, size = await to_thread.run_sync(self._open, digest)
        try:
            stop = size if stop is None else min(stop, size)
            if start <= 0 and stop == size:
                async for chunk in self._whole(file, digest):
                    yield chunk
            else:
                async for chunk in self._part(file, digest, start, stop):
                    yield chunk
        finally:
            file.close()

    async def stat(self, digest: Digest) -> StoredObject:
        return StoredObject(digest, await to_thread.run_sync(self._size, digest))

    async def delete(self, digest: Digest) -> None:
        with contextlib.suppress(ObjectMissing):
            await to_thread.run_sync(self._remove, digest)

    async def wipe(self, digest: Digest) -> None:
        with contextlib.suppress(ObjectMissing):
            await to_thread.run_sync(self._wipe, digest)

    async def _whole(self, file: FileIO, digest: Digest) -> AsyncIterator[bytes]:
        """Hash as it goes; a batch is handed out when it is known not to be the last."""
        sha256 = hashlib.sha256()
        before = _fingerprint(file)
        held: list[bytes] = []
        while batch := await to_thread.run_sync(_read, file, BATCH_BYTES, sha256):
            for chunk in held:
                yield chunk
            held = batch
        if f"sha256:{sha256.hexdigest()}" != digest:
            raise ObjectCorrupt(digest)
        self._remember(digest, before)
        for chunk in held:
            yield chunk

    async def _part(
        self, file: FileIO, digest: Digest, start: int, stop: int
    ) -> AsyncIterator[bytes]:
        async with self._verifying:  # or each reader of many parts would hash the whole
            fingerprint = _fingerprint(file)
            if self._verified.get(digest) != fingerprint:
                await to_thread.run_sync(_verify, file, digest)
            self._remember(digest, fingerprint)
        file.seek(start)
        while start < stop:
            batch = await to_thread.run_sync(_read, file, min(BATCH_BYTES, stop - start))
            if not batch or _fingerprint(file) != fingerprint:
                raise ObjectCorrupt(digest)
            for chunk in batch:
                start += len(chunk)
                yield chunk

    def _remember(self, digest: Digest, fingerprint: Fingerprint) -> None:
        self._verified[digest] = fingerprint
        self._verified.move_to_end(digest)
        if len(self._verified) > MAX_REMEMBERED:
            self._verified.popitem(last=False)

    def _append(self, partial: _Partial, batch: Sequence[bytes]) -> None:
        with _translated():
            self._lay_out()
            partial.append(batch)

    def _finish(
        self, partial: _Partial, batch: Sequence[bytes], expect: Digest | None
    ) -> StoredObject:
        with _translated():
            self._lay_out()
            stored = partial.append(batch)
            if expect is not None and stored.digest != expect:
                raise ObjectCorrupt(f"the bytes are {stored.digest}, not {expect}")
            partial.commit(self._path(stored.digest))
        return stored

    def _open(self, digest: Digest) -> tuple[FileIO, int]:
        with _translated(), self._present(digest) as path:
            file = path.open("rb", buffering=0)
            return file, os.fstat(file.fileno()).st_size

    def _size(self, digest: Digest) -> int:
        with _translated(), self._present(digest) as path:
            return path.stat().st_size

    def _remove(self, digest: Digest) -> None:
        with _translated(), self._present(digest) as path:
            path.unlink()

    def _wipe(self, digest: Digest) -> None:
        with _translated(), self._present(digest) as path:
            doomed = self._partials / f"{_DOOMED}{uuid4().hex}"
            path.rename(doomed)  # so that nobody meets zeros, and who comes next goes on with it
            wipe_file(doomed)

    @contextlib.contextmanager
    def _present(self, digest: Digest) -> Iterator[Path]:
        """Tell an object that is not there from a disk that is gone."""
        if not is_digest(digest):
            raise ObjectMissing(digest)
        self._lay_out()
        path = self._path(digest)
        try:
            yield path
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise
            raise ObjectMissing(digest) from None

    def _path(self, digest: Digest) -> Path:
        name = digest.removeprefix("sha256:")
        return self._objects / name[:2] / name

    def _lay_out(self) -> None:
        """Once: make the folders, and sweep away what dead writers left."""
        with self._laying_out:
            if self._is_laid_out:
                return
            self._partials.mkdir(parents=True, exist_ok=True)
            for shard in range(256):
                (self._objects / f"{shard:02x}").mkdir(parents=True, exist_ok=True)
            for folder in (self._objects, self._objects.parent):
                _sync_folder(folder)
            for path in self._partials.iterdir():
                _sweep(path)
            self._is_laid_out = True


class _Partial:
    """An object on its way in; nothing is on disk before the first ``append``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder
        self._file: IO[bytes] | None = None
        self._sha256 = hashlib.sha256()
        self._size = 0

    @property
    def is_open(self) -> bool:
        """True if there is a file that is neither committed nor discarded."""
        return self._file is not None

    def append(self, batch: Sequence[bytes]) -> StoredObject:
        """Write ``batch``; returns what all bytes so far would be stored as."""
        file = self._file or self._create()
        for chunk in batch:
            self._sha256.update(chunk)
            self._size += file.write(chunk)
        return StoredObject(f"sha256:{self._sha256.hexdigest()}", self._size)

    def commit(self, place: Path) -> None:
        """Make the object durable at ``place``, over whatever is there."""
        assert self._file  # noqa: S101 - something was appended, if only nothing
        self._file.flush()
        os.fsync(self._file.fileno())
        self._path.replace(place)
        self._file.close()
        self._file = None
        _sync_folder(place.parent)

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._file:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # of its last flush
                self._file.close()
            self._file = None

    def _create(self) -> IO[bytes]:
        while True:
            self._path = self._folder / uuid4().hex
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444)
            self._file = os.fdopen(descriptor, "wb")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return self._file
            self._file.close()  # swept away before it was locked


def wipe_file(path: Path) -> None:
    """Write zeros over a file, bring them to disk, and delete it; blocks.

    What has other names (hard links) is only deleted by this one.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_nlink == 1:
            os.fchmod(descriptor, 0o600)  # objects are read-only
            with path.open("r+b", buffering=0) as file:
                for start in range(0, status.st_size, CHUNK_BYTES):
                    file.write(bytes(min(CHUNK_BYTES, status.st_size - start)))
                os.fsync(file.fileno())
    finally:
        os.close(descriptor)
    path.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Delete a partial file unless its writer lives, and what was to be wiped in any case."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.name.startswith(_DOOMED):
            wipe_file(path)
        else:
            path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(file: FileIO) -> Fingerprint:
    """Changes when the file does."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read(file: FileIO, size: int, sha256: hashlib._Hash | None = None) -> list[bytes]:
    """Next ``size`` bytes in chunks, fewer at the end."""
    batch = []
    with _translated():
        while size > 0 and (chunk := file.read(min(size, CHUNK_BYTES))):
            if sha256:
                sha256.update(chunk)
            batch.append(chunk)
            size -= len(chunk)
    return batch


def _verify(file: FileIO, digest: Digest) -> None:
    with _translated():
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if f"sha256:{found}" != digest:
        raise ObjectCorrupt(digest)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what the system says into what the port says."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull("no room is left on the disk of the object store") from error
        raise StoreUnavailable(f"the object store's disk: {error.strerror or error}") from error
