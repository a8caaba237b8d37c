"""Files fetched in pieces: resumed after a break, verified by digest, and there only when whole.

Bytes gather in a hidden file beside the target, named after the digest and locked while one process
writes it. Source: RFC 9110 sections 13.1.5 (If-Range) and 14 (range requests).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO, Final

import msgspec

from clients.errors import DownloadBusy, DownloadCorrupt, FileRefused, Unavailable, Unreachable
from clients.transport import Call, Retrying, Transport
from sharing.object_store import Digest, digest_of_file

TRIES: Final = 2
"""Whole tries when bytes arrive that are not the promised ones."""


def download(
    transport: Transport, call: Call, digest: Digest, size_bytes: int, target: Path
) -> None:
    """Fetch the object named ``digest`` to ``target``, replacing what is there in one step.

    Raises:
        DownloadCorrupt: Other bytes arrived, twice.
        DownloadBusy: Another process fetches the same to the same place.
        FileRefused: The target cannot be written.
        ApiError: The server refused.
        Unreachable: The server stayed away; what arrived is kept for the next try.
    """
    try:
        if target.is_file() and digest_of_file(target) == digest:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(_partial(target, digest), target) as (file, path):
            for _ in range(TRIES):
                _gather(transport, call, digest, size_bytes, file)
                file.flush()
                if digest_of_file(path) == digest:
                    os.fsync(file.fileno())
                    path.rename(target)
                    return
                file.truncate(0)
            path.unlink()
    except OSError as error:
        raise FileRefused(f"{target}: {error.strerror or error}") from error
    raise DownloadCorrupt(f"{target}: what arrived is not {digest}; nothing was kept")


def _partial(target: Path, digest: Digest) -> Path:
    return target.with_name(f".{target.name}.{digest.removeprefix('sha256:')[:16]}.partial")


@contextlib.contextmanager
def _locked(partial: Path, target: Path) -> Iterator[tuple[IO[bytes], Path]]:
    with partial.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadBusy(target) from error
        if not os.path.samestat(os.fstat(file.fileno()), partial.stat()):
            raise DownloadBusy(target)  # it was finished between opening and locking
        yield file, partial


def _gather(
    transport: Transport, call: Call, digest: Digest, size_bytes: int, file: IO[bytes]
) -> None:
    """Fetch what is missing of ``size_bytes``."""
    retrying = Retrying(transport.patience)
    while (have := file.seek(0, os.SEEK_END)) < size_bytes:
        headers = {"Range": f"bytes={have}-", "If-Range": f'"{digest}"'} if have else {}
        piece = msgspec.structs.replace(call, headers=headers)
        try:
            with transport.opened(piece) as response:
                if response.status_code != HTTPStatus.PARTIAL_CONTENT:
                    file.truncate(0)
                for chunk in response.iter_raw():
                    file.write(chunk)
                    retrying.succeeded()
        except (Unreachable, Unavailable) as error:
            retrying.wait(error, error.retry_after_s if isinstance(error, Unavailable) else 0.0)
        else:
            if file.seek(0, os.SEEK_END) <= have:
                return
