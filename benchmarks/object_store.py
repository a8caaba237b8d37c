"""What digests, conditions and all-or-nothing cost on top of the minio SDK's own upload.

Both write the same bytes to one MinIO in parts of 16 MiB, three at a time, the SDK by
``put_object`` without a known length, as ours comes. Ours names the object by its SHA-256
(``expect``) or stages it. ``S3_ENDPOINT``, ``S3_ACCESS_KEY`` and ``S3_SECRET_KEY`` in the
environment name a server of one's own; the bucket is made and removed. Memory is the growth of
anonymous memory at its peak over what smaller objects left. A server whose folder is in memory
(tmpfs) shows what we cost; on a disk, the disk is what is measured.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

import anyio
from minio import Minio

from benchmarks.report import Figure, run_benchmark
from sharing.object_store import CHUNK_BYTES
from sharing.s3_bucket import Address
from sharing.s3_store import MAX_PARTS_IN_FLIGHT, PART_BYTES, S3Store

MEASURED_BYTES: Final = 512 << 20
LARGE_BYTES: Final = 4 << 30
REPETITIONS: Final = 5
BLOCK: Final = os.urandom(CHUNK_BYTES)


class Bytes(io.RawIOBase):
    """``size`` bytes that are never in memory at once."""

    def __init__(self, size: int, serial: int) -> None:
        self._left = size
        self._first = serial.to_bytes(8)

    def read(self, size: int = -1) -> bytes:
        """The next bytes; every object of another serial number begins differently."""
        size = min(size, self._left, CHUNK_BYTES)
        self._left -= size
        head, self._first = self._first, b""
        return (head + BLOCK)[:size]


async def chunks(size: int, serial: int) -> AsyncIterator[bytes]:
    """The same bytes as ``Bytes``."""
    source = Bytes(size, serial)
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def digest(size: int, serial: int) -> str:
    """Name of these bytes."""
    sha256, source = hashlib.sha256(), Bytes(size, serial)
    while chunk := source.read(CHUNK_BYTES):
        sha256.update(chunk)
    return f"sha256:{sha256.hexdigest()}"


class Peak:
    """Most anonymous memory while the context lasts, sampled every 5 ms."""

    def __enter__(self) -> Peak:
        self._before = self.bytes = _anonymous()
        self._is_over = threading.Event()
        self._watch = threading.Thread(target=self._sample)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._watch.join()

    @property
    def growth_mb(self) -> float:
        """In MiB."""
        return (self.bytes - self._before) / (1 << 20)

    def _sample(self) -> None:
        while not self._is_over.wait(0.005):
            self.bytes = max(self.bytes, _anonymous())


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("this system does not tell anonymous memory")


def address() -> Address:
    """Of the server, as the environment says."""
    return Address(
        endpoint=os.environ["S3_ENDPOINT"],
        secure=False,
        access_key=os.environ["S3_ACCESS_KEY"],
        secret_key=os.environ["S3_SECRET_KEY"],
    )


async def measure() -> Sequence[Figure]:
    """All figures; the ways take turns, so that what else the machine does meets them alike."""
    bucket = f"foedus-benchmark-{uuid4().hex[:8]}"
    at = address()
    minio = Minio(at.endpoint, at.access_key, at.secret_key, secure=at.secure, region=at.region)
    store = S3Store(at, bucket)
    await store.make_bucket()
    try:
        return await _figures(store, minio, bucket)
    finally:
        for found in minio.list_objects(bucket, recursive=True):
            minio.remove_object(bucket, found.object_name or "")
        minio.remove_bucket(bucket)
        await store.close()


async def _figures(store: S3Store, minio: Minio, bucket: str) -> Sequence[Figure]:
    speeds: dict[str, list[float]] = {
        name: [] for name in ("sdk", "ours", "staged", "sdk get", "get")
    }
    for serial in range(REPETITIONS + 1):
        size = MEASURED_BYTES
        expect = await anyio.to_thread.run_sync(digest, size, serial)
        began = time.perf_counter()
        await anyio.to_thread.run_sync(_put_by_sdk, minio, bucket, size, serial)
        by_sdk = time.perf_counter()
        await store.put(chunks(size, serial), expect=expect)
        by_us = time.perf_counter()
        await anyio.to_thread.run_sync(_get_by_sdk, minio, bucket)
        got_by_sdk = time.perf_counter()
        async for _ in store.get(expect):
            pass
        got_by_us = time.perf_counter()
        await store.delete(expect)
        again = time.perf_counter()
        await store.put(chunks(size, serial))
        staged = time.perf_counter()
        await store.delete(expect)
        seconds = {
            "sdk": by_sdk - began,
            "ours": by_us - by_sdk,
            "sdk get": got_by_sdk - by_us,
            "get": got_by_us - got_by_sdk,
            "staged": staged - again,
        }
        if serial:  # the first one warms everything up
            for name, took in seconds.items():
                speeds[name].append(size / 1e6 / took)
    expect = await anyio.to_thread.run_sync(digest, LARGE_BYTES, 0)
    with Peak() as putting:
        await store.put(chunks(LARGE_BYTES, 0), expect=expect)
    with Peak() as getting:
        async for _ in store.get(expect):
            pass
    ratios = [100 * ours / sdk for ours, sdk in zip(speeds["ours"], speeds["sdk"], strict=True)]
    bound = (MAX_PARTS_IN_FLIGHT + 3) * PART_BYTES / (1 << 20)

    def speed(name: str, of: str) -> Figure:
        return Figure(name=name, unit="MB/s", values=tuple(speeds[of]))

    return (
        speed("put, SDK, three parts at a time", "sdk"),
        speed("put, ours, with its digest", "ours"),
        Figure(
            name="put, ours against the SDK in the same turn",
            unit="%",
            values=tuple(ratios),
            bound="at least",
            target=90,
        ),
        speed("put, ours, staged and copied", "staged"),
        speed("get, SDK", "sdk get"),
        speed("get, ours, verified", "get"),
        Figure(
            name="put of 4 GiB: growth of memory",
            unit="MiB",
            values=(putting.growth_mb,),
            target=bound,
        ),
        Figure(
            name="get of 4 GiB: growth of memory",
            unit="MiB",
            values=(getting.growth_mb,),
            target=bound,
        ),
    )


def _put_by_sdk(minio: Minio, bucket: str, size: int, serial: int) -> None:
    minio.put_object(
        bucket,
        "sdk",
        Bytes(size, serial),  # type: ignore[arg-type]
        -1,
        part_size=PART_BYTES,
        num_parallel_uploads=3,
    )


def _get_by_sdk(minio: Minio, bucket: str) -> None:
    answer = minio.get_object(bucket, "sdk")
    while answer.read(CHUNK_BYTES):
        pass
    answer.release_conn()


if __name__ == "__main__":
    sys.exit(
        run_benchmark(
            "object_store",
            "Object store through MinIO",
            "Objects of 512 MiB, random bytes, parts of 16 MiB, one MinIO on the same machine that "
            "keeps them in memory (tmpfs); the ways take turns.",
            ("minio", "urllib3"),
            lambda: anyio.run(measure),
        )
    )
