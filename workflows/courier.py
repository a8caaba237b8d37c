"""Between a run directory and the control plane: objects, events and logs, over HTTP.

The control plane may go away at any moment and come back elsewhere. So every request can be
repeated, each is repeated until it was answered, and what waits lies in the files of the run
directory. An event is posted after the objects that it names.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from pathlib import Path
from typing import Final, TypeVar

import anyio
import httpx
import msgspec

from sharing.object_store import CHUNK_BYTES, Digest
from workflows.engine import Credentials
from workflows.events import AnyStepEvent, RoundFinished
from workflows.plan import StepKind
from workflows.step_log import StepLog

EVENTS: Final[msgspec.json.Decoder[AnyStepEvent]] = msgspec.json.Decoder(AnyStepEvent)
FIRST_RETRY_S: Final = 0.1
LAST_RETRY_S: Final = 2.0
EVENT_POLL_S: Final = 0.02
EVENT_PACE_S: Final = 0.2
"""From one delivery to the next at least: events of quick rounds go together."""
LOG_POLL_S: Final = 0.5
_BATCH_BYTES: Final = 1 << 18
_STORED_AT_ONCE: Final = 4
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
_BUSY: Final = frozenset({408, 425, 429})

T = TypeVar("T")


class CourierError(Exception):
    """The control plane will not take what it was offered, however often that is repeated."""


class Fenced(CourierError):
    """This attempt was superseded, its job was closed, or its token is known no more."""


class Refused(CourierError):
    """The control plane understood the request and declined it."""


class AbsentObject(CourierError):
    """The control plane does not have the object, or not with the bytes it is named by."""


class BrokenContract(CourierError):
    """The step wrote something that a step must not write."""


class _EventGap(CourierError):
    """Events before the ones that were offered, or objects they name, are not on record."""


class _Unanswered(Exception):
    """The control plane can not answer just now."""


class _Problem(msgspec.Struct, frozen=True):
    type: str = ""
    title: str = ""
    detail: str = ""

    @property
    def slug(self) -> str:
        return re.split(r"[/:#]", self.type)[-1]


class _Acknowledgement(msgspec.Struct, frozen=True):
    acknowledged: int


class _LogEnd(msgspec.Struct, frozen=True):
    offset: int


class Courier:
    """Speaks for one attempt.

    Args:
        client: See ``open_client``.
        credentials: Where the control plane was when the attempt started, and the token.
        endpoint_file: Says where it is now; read when it does not answer. None where its address
            is one that stays.
        job: Id of the job.
        attempt: Number of the attempt.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        credentials: Credentials,
        endpoint_file: Path | None,
        job: str,
        attempt: int,
    ) -> None:
        self._client = client
        self._url = credentials.url
        self._endpoint_file = endpoint_file
        self._path = f"v1/attempts/{job}/{attempt}"

    async def fetch(self, digest: Digest, path: Path) -> None:
        """Lay the object at ``path``, whole and verified.

        Raises:
            AbsentObject: It is not there, or it was altered.
            Fenced: See there.
        """
        part = path.with_name(f".{path.name}.part")

        async def once() -> str:
            sha = hashlib.sha256()
            async with self._client.stream("GET", self._at("objects", digest)) as response:
                if response.status_code != 200:
                    await response.aread()
                    _judge(response)
                async with await anyio.open_file(part, "wb") as file:
                    async for chunk in response.aiter_raw(CHUNK_BYTES):
                        sha.update(chunk)
                        await file.write(chunk)
            return f"sha256:{sha.hexdigest()}"

        if await self._until_answered(once) != digest:
            part.unlink()
            raise AbsentObject(f"{digest} came with other bytes")
        part.replace(path)

    async def store(self, digest: Digest, path: Path) -> None:
        """Store the file at ``path`` under its digest.

        Raises:
            BrokenContract: There is no such file.
            Refused: It has other bytes than its name says, or is too large.
            Fenced: See there.
        """

        async def once() -> None:
            size_bytes = (await anyio.Path(path).stat()).st_size
            _judge(
                await self._client.put(
                    self._at("objects", digest),
                    content=_chunks(path),
                    headers={"Content-Length": str(size_bytes)},
                )
            )

        try:
            await self._until_answered(once)
        except FileNotFoundError as error:
            raise BrokenContract(f"{path.name} is named but not there") from error

    async def post_events(self, step: StepKind, lines: list[bytes]) -> int:
        """Put events on record, and return the number up to which all of the step's are.

        Raises:
            Refused: One of them is not an event.
            Fenced: See there.
        """
        body = msgspec.json.encode({"step": step, "events": [msgspec.Raw(line) for line in lines]})

        async def once() -> int:
            response = await self._client.post(self._at("events"), content=body, headers=_JSON)
            return _decode(_judge(response), _Acknowledgement).acknowledged

        return await self._until_answered(once)

    async def append_log(self, step: StepKind, offset: int, content: bytes) -> int:
        """Append to the stored log of a step, and return where it ends now."""

        async def once() -> int:
            response = await self._client.put(
                self._at("logs", step), params={"offset": offset}, content=content
            )
            return _decode(_judge(response), _LogEnd).offset

        return await self._until_answered(once)

    async def _until_answered(self, once: Callable[[], Awaitable[T]]) -> T:
        pause_s = FIRST_RETRY_S
        while True:
            try:
                return await once()
            except httpx.TransportError:
                self._url = self._current_url()
            except _Unanswered:
                pass
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_RETRY_S)

    def _current_url(self) -> str:
        if self._endpoint_file is None:
            return self._url
        with contextlib.suppress(OSError):
            url = self._endpoint_file.read_text().strip()
            if re.fullmatch(r"https?://[^\s/]+(/\S*)?", url):
                return url
        return self._url

    def _at(self, *parts: str) -> str:
        return "/".join((self._url.rstrip("/"), self._path, *parts))


class EventFeed:
    """Brings the events of one step on record, in order, while the step writes them.

    Args:
        courier: Brings them there.
        step: Whose events they are.
        path: The file that the step writes.
        object_path: Where an object lies that an event names.
        on_acknowledged: Told the number up to which events are on record.
    """

    def __init__(
        self,
        courier: Courier,
        step: StepKind,
        path: Path,
        object_path: Callable[[Digest], Path],
        on_acknowledged: Callable[[int], None],
    ) -> None:
        self._courier = courier
        self._step = step
        self._path = path
        self._object_path = object_path
        self._on_acknowledged = on_acknowledged
        self._offset = 0
        self._read = 0
        self._stored: set[Digest] = set()

    async def forward(self, ended: anyio.Event) -> None:
        """Return when all events are on record and no more will be written.

        Raises:
            BrokenContract: A line is not the event that must come next, or what it names is not
                there.
            CourierError: The control plane declined.
        """
        while True:
            is_complete = ended.is_set()
            if lines := self._next_lines():
                await self._deliver(lines)
            elif is_complete:
                return
            with anyio.move_on_after(EVENT_PACE_S if lines else EVENT_POLL_S):
                await ended.wait()

    def _next_lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read(_BATCH_BYTES)
                while content and b"\n" not in content and (more := file.read(_BATCH_BYTES)):
                    content += more
        except FileNotFoundError:
            return []
        return content.split(b"\n")[:-1]

    async def _deliver(self, lines: list[bytes]) -> None:
        number, named = self._read, set[Digest]()
        for line in lines:
            number += 1
            event = _decode_event(line)
            if event.number != number:
                raise BrokenContract(f"event {event.number} where {number} must come")
            if isinstance(event, RoundFinished):
                named |= {event.checkpoint, event.transcript}
        await self._store(named - self._stored)
        try:
            acknowledged = await self._courier.post_events(self._step, lines)
        except _EventGap:
            self._offset = self._read = 0
            self._stored.clear()
            await anyio.sleep(FIRST_RETRY_S)
            return
        self._offset += sum(len(line) + 1 for line in lines)
        self._read = number
        self._on_acknowledged(acknowledged)

    async def _store(self, digests: Set[Digest]) -> None:
        """Store objects, some at a time."""
        limit = anyio.CapacityLimiter(_STORED_AT_ONCE)

        async def store(digest: Digest) -> None:
            async with limit:
                await self._courier.store(digest, self._object_path(digest))
                self._stored.add(digest)

        async with anyio.create_task_group() as tasks:
            for digest in digests:
                tasks.start_soon(store, digest)


class LogFeed:
    """Brings the log of one step to the control plane while it grows."""

    def __init__(self, courier: Courier, step: StepKind, path: Path, log: StepLog) -> None:
        self._courier = courier
        self._step = step
        self._path = path
        self._log = log
        self._offset = 0

    async def forward(self, ended: anyio.Event) -> None:
        """Return when all of the log is stored and no more will be written.

        Raises:
            OSError: The log can not be written any more, and the step goes on.
            CourierError: The control plane declined.
        """
        while True:
            is_complete = ended.is_set()
            if self._log.error is not None and not is_complete:
                raise self._log.error
            if content := self._next_content():
                end = await self._courier.append_log(self._step, self._offset, content)
                is_behind = end <= self._offset
                self._offset = end
                if is_behind:
                    await anyio.sleep(FIRST_RETRY_S)
            elif is_complete:
                return
            else:
                with anyio.move_on_after(LOG_POLL_S):
                    await ended.wait()

    def _next_content(self) -> bytes:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            return file.read(_BATCH_BYTES)


def open_client(credentials: Credentials) -> httpx.AsyncClient:
    """A client that authenticates as one attempt and takes nothing from the environment."""
    headers = {"Authorization": f"Bearer {credentials.token}"}
    if credentials.traceparent:
        headers["traceparent"] = credentials.traceparent
    return httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, trust_env=False)


_JSON: Final = {"Content-Type": "application/json"}


def _judge(response: httpx.Response) -> httpx.Response:
    """Return an answer that says yes; every other one becomes the error it means."""
    status = response.status_code
    if response.is_success:
        return response
    if status >= 500 or status in _BUSY:
        raise _Unanswered
    try:
        problem = msgspec.json.decode(response.content, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem()
    if status == 401 or (status == 409 and problem.slug == "fenced"):
        raise Fenced(problem.detail or problem.title)
    if status == 409 and problem.slug == "event-gap":
        raise _EventGap
    if status == 404 and response.request.method == "GET":
        raise AbsentObject(problem.detail or "no such object")
    raise Refused(f"{status} {problem.slug}: {problem.detail or problem.title}")


def _decode(response: httpx.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.DecodeError as error:
        raise Refused(f"an answer that is not understood: {error}") from error


def _decode_event(line: bytes) -> AnyStepEvent:
    try:
        return EVENTS.decode(line)
    except msgspec.DecodeError as error:
        raise BrokenContract(f"a line that is not an event: {error}") from error


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while chunk := await file.read(CHUNK_BYTES):
            yield chunk
