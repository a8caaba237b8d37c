"""Taking in a file and trying it out, before anything of it is on record.

What is refused leaves nothing behind; what runs of it runs in a confined worker of a child process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, Table, and_, or_, select

from clients.identity import Principal
from control_plane.ids import new_id
from control_plane.platform import SCRATCH, Platform
from control_plane.refusals import ProbeFailed, Unacceptable
from sharing.object_store import CHUNK_BYTES, ObjectTooLarge, StoreFull, StoreUnavailable
from workflows.causes import Cause, CauseCode
from workflows.job import Limits

# Names of files that ``workflows.steps.probe`` agrees on; it is started, and loads what runs
# programs, so it is not imported here.
_QUESTION: Final = "probe.json"
_ANSWER: Final = "found.json"
_ENVIRONMENT: Final = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
_ROOT: Final = Path(__file__).parent.parent


@asynccontextmanager
async def scratch(platform: Platform) -> AsyncIterator[Path]:
    """A folder of this replica's that is gone afterwards; an upload is one request, so of one."""
    folder = platform.folder / SCRATCH / new_id("upload", platform.now())
    await asyncio.to_thread(folder.mkdir, parents=True, mode=0o700)
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def receive(chunks: AsyncIterable[bytes], path: Path, max_bytes: int) -> int:
    """Write a stream to ``path``; its size.

    Raises:
        ObjectTooLarge: More than ``max_bytes`` came.
        StoreFull: The disk has no room.
    """
    size = 0
    try:
        with path.open("wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise ObjectTooLarge(f"it is larger than {max_bytes:,} bytes")
                await asyncio.to_thread(file.write, chunk)
    except OSError as error:
        raise _translated(error) from error
    return size


async def read(path: Path) -> AsyncIterator[bytes]:
    """The bytes of a file, in chunks."""
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


async def ask_probe(platform: Platform, folder: Path, question: object) -> dict[str, object]:
    """Have what lies in ``folder`` tried out; the answer's fields.

    Args:
        platform: For how long it may take.
        folder: Scratch with the upload in it.
        question: A ``workflows.steps.probe.Probe``, as JSON would have it.

    Raises:
        ProbeFailed: It does not work.
    """
    encoded = msgspec.json.encode({"limits": Limits(), **msgspec.to_builtins(question)})
    await asyncio.to_thread((folder / _QUESTION).write_bytes, encoded)
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "workflows.steps.probe", str(folder)),
        cwd=folder,
        env={**environment, "PYTHONPATH": str(_ROOT), "HOME": str(folder), "TMPDIR": str(folder)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(platform.rules.probe_timeout_s):
            await process.wait()
    except TimeoutError as error:
        detail = f"trying it out took longer than {platform.rules.probe_timeout_s:g} s"
        raise ProbeFailed(Cause(code=CauseCode.PROGRAM_HUNG, detail=detail)) from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return await asyncio.to_thread(_answer_in, folder)


def newest_uploads(
    table: Table, who: Principal, limit: int, before: str | None
) -> Select[tuple[object, ...]]:
    """The uploads of the caller's organisation, newest first, and one more than ``limit``.

    Raises:
        Unacceptable: ``before`` is no place in the list.
    """
    order = (table.c.created_at.desc(), table.c.digest.desc())
    query = select(table).where(table.c.organisation == who.organisation)
    if before is not None:
        at, _, digest = before.partition(" ")
        try:
            moment = datetime.fromisoformat(at)
        except ValueError as error:
            raise Unacceptable("before", "is no place in this list") from error
        query = query.where(
            or_(
                table.c.created_at < moment,
                and_(table.c.created_at == moment, table.c.digest < digest),
            )
        )
    return query.order_by(*order).limit(limit + 1)


def place_of(row: Row[Any]) -> str:
    """Where an upload stands in the list."""
    return f"{row.created_at.isoformat()} {row.digest}"


def _answer_in(folder: Path) -> dict[str, object]:
    try:
        found = msgspec.json.decode((folder / _ANSWER).read_bytes(), type=dict[str, object])
    except (FileNotFoundError, msgspec.DecodeError) as error:
        detail = "the process that tried it out ended without an answer"
        raise ProbeFailed(Cause(code=CauseCode.PLATFORM_BUG, detail=detail)) from error
    if (cause := found.get("cause")) is not None:
        raise ProbeFailed(msgspec.convert(cause, Cause))
    return found


def _translated(error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull("no room is left on the disk")
    return StoreUnavailable(f"the disk: {error.strerror}")
