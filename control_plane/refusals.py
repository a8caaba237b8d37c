"""Why the control plane does not do what it was asked; ``api.problems`` says it over HTTP."""

from __future__ import annotations

from workflows.causes import Cause


class ControlPlaneError(Exception):
    """A use case did not do what was asked."""


class NotFound(ControlPlaneError):
    """There is no such thing, or the caller may not know of it; which of the two is not told."""


class Forbidden(ControlPlaneError):
    """The caller sees the thing and may not do this with it."""


class WrongState(ControlPlaneError):
    """What was asked does not fit the state that the thing is in."""


class JobClosed(WrongState):
    """The job has ended; nothing about it can be changed."""


class JobOpen(WrongState):
    """The job has not ended yet."""


class CancelIsFinal(WrongState):
    """A job that is being cancelled cannot be taken up again."""


class StillInFlight(WrongState):
    """A request with this idempotency key is being worked on; the same call may succeed later."""


class NameTaken(WrongState):
    """Another one has this name."""


class NoBuckets(WrongState):
    """The store has no buckets for organisations, or makes no credentials for them."""


class NoDirectUploads(WrongState):
    """The store takes nothing but from this server."""


class VersionChanged(ControlPlaneError):
    """The thing was changed since the caller last read it."""


class TooManyStreams(ControlPlaneError):
    """As many event streams are open as may be; the same call succeeds once one has ended."""


class KeyReused(ControlPlaneError):
    """The idempotency key was used before, with another body."""


class QuotaExhausted(ControlPlaneError):
    """The caller's organisation has as much as it may; asking again does not help by itself."""

    def __init__(
        self, what: str, used: int, most: int, whose: str = "your organisation has"
    ) -> None:
        super().__init__(f"{whose} {used:,} {what}, of {most:,} that its quota allows")


class Unacceptable(ControlPlaneError):
    """The request is well-formed, and names something that cannot be.

    Attributes:
        field: Path of the field at fault.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class ProbeFailed(ControlPlaneError):
    """What was uploaded was tried out in a sandbox, and does not work.

    Attributes:
        cause: What happened there.
    """

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.detail or cause.explanation.hint)
        self.cause = cause


class IngestError(ControlPlaneError):
    """What an attempt sent was not taken."""


class Fenced(IngestError):
    """The attempt was superseded, or its job is closed: it must stop."""


class EventGap(IngestError):
    """Events that come before these are missing; the sender must start from those."""


class DatabaseUnavailable(ControlPlaneError):
    """The database did not answer; the same call may succeed later."""


class WrittenMeanwhile(DatabaseUnavailable):
    """Somebody else put the same on record at the same time; the same call will find it there."""
