"""Server-sent events, read from bytes and followed across broken connections.

Source: HTML Living Standard, section 9.2 (server-sent events). Lines are split on bytes at
CR, LF or CRLF alone: text may hold other line separators of Unicode. ``retry`` is not needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from clients.errors import AnswerNotUnderstood, Unavailable, Unreachable, WaitTimedOut
from clients.resources import Event, Job
from clients.transport import Call, Retrying, Transport, understand

LAST_KIND: Final = "run.closed"
SILENCE_S: Final = 45.0
"""Longest silence of a stream that lives; the server's heartbeat comes every 15 s."""
MAX_LINE_BYTES: Final = 16 << 20


class Message(msgspec.Struct, frozen=True):
    """One message of a stream."""

    id: str
    event: str
    data: str


def messages(chunks: Iterable[bytes]) -> Iterator[Message]:
    """The complete messages in a stream; one that is cut off at the end is dropped.

    Raises:
        AnswerNotUnderstood: A line is endless, or no UTF-8.
    """
    last_id, event, data = "", "", list[str]()
    for line in _lines(chunks):
        if not line:
            if data:
                yield Message(last_id, event or "message", "\n".join(data))
            event, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "data":
                data.append(value)
            case "event":
                event = value
            case "id" if "\0" not in value:
                last_id = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest, after_cr = b"", False
    for piece in chunks:
        chunk = piece.removeprefix(b"\n") if after_cr else piece
        after_cr = piece.endswith(b"\r") if piece else after_cr
        *whole, rest = (rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise AnswerNotUnderstood("the event stream holds a line without an end")
        for line in whole:
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise AnswerNotUnderstood("the event stream is not UTF-8") from error


def follow(
    transport: Transport, job: str, after: int = 0, timeout_s: float | None = None
) -> Iterator[Event]:
    """A job's events as they happen, each once and in order, until it is closed.

    A broken connection is taken up again where it ended, for as long as the transport has
    patience with a server that is away.

    Args:
        transport: The connection.
        job: Its id.
        after: Number of the last event already seen.
        timeout_s: Longest time to follow, in seconds; None for ever.

    Raises:
        WaitTimedOut: The job is still open after ``timeout_s``.
        Unreachable: The server stayed away.
        ApiError: The server refused.
    """
    clock = _Countdown(job, timeout_s)
    retrying = Retrying(transport.patience)
    while True:
        try:
            for event in _connected(transport, job, after, clock):
                retrying.succeeded()
                if event.id <= after:
                    continue
                after = event.id
                yield event
                if event.kind == LAST_KIND:
                    return
            if _is_closed(transport, job, after):
                return
            raise Unreachable("the server ended the event stream of an open job")
        except (Unreachable, Unavailable) as error:
            clock.check()
            retrying.wait(error, error.retry_after_s if isinstance(error, Unavailable) else 0.0)


def _connected(transport: Transport, job: str, after: int, clock: _Countdown) -> Iterator[Event]:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
    path = f"/v1/jobs/{job}/events"
    call = Call(method="GET", path=path, headers=headers, answer_s=clock.at_most(SILENCE_S))
    with transport.opened(call) as response:
        for message in messages(clock.watch(response.iter_bytes())):
            yield understand(message.data, Event)


def _is_closed(transport: Transport, job: str, after: int) -> bool:
    """Whether nothing can follow: the job ended, and its last event was seen before."""
    path = f"/v1/jobs/{job}"
    if transport.fetch(Call(method="GET", path=path), Job).ended_at is None:
        return False
    return next(_connected(transport, job, after, _Countdown(job, SILENCE_S)), None) is None


class _Countdown:
    """Time left, checked whenever something arrives."""

    def __init__(self, job: str, timeout_s: float | None) -> None:
        self._job = job
        self._timeout_s = timeout_s
        self._ends = None if timeout_s is None else time.monotonic() + timeout_s

    def check(self) -> None:
        if self._ends is not None and time.monotonic() >= self._ends:
            raise WaitTimedOut(self._job, self._timeout_s or 0.0)

    def at_most(self, seconds: float) -> float:
        if self._ends is None:
            return seconds
        return max(0.01, min(seconds, self._ends - time.monotonic()))

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            self.check()
