"""Run on a folder that is a tmpfs of 2 MiB: fill it in two ways, and tell what came of it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

from sharing.directory_store import DirectoryStore
from sharing.object_store import StoreError


async def zeros(num_bytes: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(num_bytes // size):
        yield bytes(size)


async def main(folder: Path) -> None:
    store = DirectoryStore(folder)
    for num_bytes in (3 << 20, 16 << 20):  # found out at the end, and on the way
        try:
            await store.put(zeros(num_bytes, 1000))
        except StoreError as error:
            sys.stdout.write(f"{type(error).__name__} {len(files_in(folder))}\n")
    await store.put(zeros(1 << 20, 1 << 10))
    sys.stdout.write("mended\n")


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]))
