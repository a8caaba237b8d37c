"""What a directory store promises beyond the port: nothing half-made, whatever happens to it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path
from typing import IO

import pytest

from sharing import directory_store
from sharing.directory_store import DirectoryStore
from sharing.object_store import (
    CHUNK_BYTES,
    ObjectCorrupt,
    ObjectMissing,
    StoreUnavailable,
    digest_of,
)

pytestmark = pytest.mark.anyio

WRITER = """
import sys
from pathlib import Path
import anyio
from sharing.directory_store import DirectoryStore

async def halting():
    yield b"half" * (2 << 20)
    print("half", flush=True)
    await anyio.to_thread.run_sync(sys.stdin.read)
    yield b"rest"

async def main():
    print((await DirectoryStore(Path(sys.argv[1])).put(halting())).digest, flush=True)

anyio.run(main)
"""
WHOLE = b"half" * (2 << 20) + b"rest"


async def one(chunk: bytes) -> AsyncIterator[bytes]:
    yield chunk


def files_in(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def start_writer(root: Path) -> subprocess.Popen[str]:
    """A process in the middle of a put; it goes on when its stdin is closed."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert _stream(writer.stdout).readline() == "half\n"
    return writer


def _stream(pipe: IO[str] | None) -> IO[str]:
    assert pipe
    return pipe


async def test_a_killed_writer_leaves_nothing_for_the_next_one(tmp_path: Path) -> None:
    with start_writer(tmp_path) as writer:
        writer.send_signal(signal.SIGKILL)
    [left] = files_in(tmp_path)
    assert left.stat().st_size >= 4 * CHUNK_BYTES

    with pytest.raises(ObjectMissing):
        await DirectoryStore(tmp_path).stat(digest_of(WHOLE))

    assert files_in(tmp_path) == []


async def test_a_living_writer_is_not_swept_away(tmp_path: Path) -> None:
    with start_writer(tmp_path) as writer:
        await DirectoryStore(tmp_path).put(one(b"weights"))

        digest, _ = writer.communicate()

    assert digest.strip() == digest_of(WHOLE)
    assert (await DirectoryStore(tmp_path).stat(digest_of(WHOLE))).size_bytes == len(WHOLE)


async def test_a_full_disk_is_said_to_be_full_and_keeps_nothing_of_the_put(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=2m tmpfs "$1" && exec "$2" -m tests.sharing.full_disk "$1"'
    run = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", tmp_path, sys.executable],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert run.returncode == 0, (
        "needs a tmpfs of its own: `unshare` (util-linux) with user namespaces, or root\n"
        + run.stderr
    )
    assert run.stdout.split() == ["StoreFull", "0", "StoreFull", "0", "mended"]


async def test_discarded_puts_leave_no_files(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(8 * CHUNK_BYTES)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await DirectoryStore(tmp_path).put(broken())

    assert files_in(tmp_path) == []


async def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("in the way")

    with pytest.raises(StoreUnavailable):
        await DirectoryStore(root).put(one(b"weights"))
    with pytest.raises(StoreUnavailable):
        await DirectoryStore(root).stat(digest_of(b"weights"))


async def test_objects_on_a_lost_disk_are_not_called_missing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "disk")
    stored = await store.put(one(b"weights"))
    (tmp_path / "disk").rename(tmp_path / "unplugged")

    with pytest.raises(StoreUnavailable):
        await store.stat(stored.digest)
    with pytest.raises(StoreUnavailable):
        await store.delete(stored.digest)
    with pytest.raises(StoreUnavailable):
        await store.put(one(b"more"))


async def test_what_was_verified_is_remembered_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_store, "MAX_REMEMBERED", 2)
    verified: list[str] = []
    verify = directory_store._verify

    def counting(file: FileIO, digest: str) -> None:
        verified.append(digest)
        verify(file, digest)

    monkeypatch.setattr(directory_store, "_verify", counting)
    store = DirectoryStore(tmp_path)
    a, b, c = [(await store.put(one(content))).digest for content in (b"aa", b"bb", b"cc")]

    for digest in (a, a, b, a, c, a, b):
        assert len([chunk async for chunk in store.get(digest, start=1)]) == 1

    assert verified == [a, b, c, b]


async def test_a_reader_is_not_disturbed_by_deletion(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    content = bytes(9 * CHUNK_BYTES)
    stored = await store.put(one(content))
    reader = store.get(stored.digest)
    received = [await anext(reader)]

    await store.delete(stored.digest)

    received += [chunk async for chunk in reader]
    assert b"".join(received) == content


async def test_an_object_that_is_altered_while_a_part_is_read_breaks_off(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    content = bytes(9 * CHUNK_BYTES)
    stored = await store.put(one(content))
    reader = store.get(stored.digest, start=1)
    await anext(reader)
    [place] = files_in(tmp_path)
    place.chmod(0o644)
    place.write_bytes(content[:-1] + b"!")

    with pytest.raises(ObjectCorrupt):
        async for _ in reader:
            pass
