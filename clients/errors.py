"""What can go wrong between a developer and the control plane, by what the caller must do.

An answer of the server becomes an ``ApiError``; its subclass follows from the status, its ``slug``
(the end of the problem's type) says exactly which refusal it is. Source: RFC 9457.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

from clients.resources import Job, Problem


class FoedusError(Exception):
    """Root of all that the SDK raises."""


class ApiError(FoedusError):
    """The server answered, and the answer is no.

    Attributes:
        problem: The answer.
        retry_after_s: When the server asked to be called again, in seconds; 0 if it did not.
    """

    def __init__(self, problem: Problem, retry_after_s: float = 0.0) -> None:
        super().__init__(": ".join(filter(None, (problem.title, problem.detail))))
        self.problem = problem
        self.retry_after_s = retry_after_s

    @property
    def slug(self) -> str:
        """Stable name of the problem, as ``job-closed``."""
        return self.problem.type.rstrip("/").rpartition("/")[2]


class Refused(ApiError):
    """The request must be changed: it cannot be read, contradicts itself or is too large."""


class NotAuthenticated(ApiError):
    """The token is missing, unknown, revoked or expired."""


class Forbidden(ApiError):
    """The token's user may not do this."""


class NotFound(ApiError):
    """It is not there, or not for this token's user to see."""


class Conflict(ApiError):
    """The thing is not in a state in which this can be done."""


class Unavailable(ApiError):
    """The server cannot do it just now; the same request may succeed later."""


class ServerFailed(ApiError):
    """A bug of the server; the problem's trace id finds it in the server's log."""


class QuotaExhausted(Refused):
    """The organisation has as much as it may; the same request helps only once it has less."""


class Unreachable(FoedusError):
    """No answer came in the time allowed. What was asked may have happened all the same."""


class AnswerNotUnderstood(FoedusError):
    """The answer is not what this version expects: another server, or a newer one."""


class NotSecure(FoedusError):
    """A token would travel in the clear to another machine."""


class LoginRefused(FoedusError):
    """The identity provider gives no token; the message says why and what to do."""


class RealmRefused(FoedusError):
    """Keycloak did not do what was asked of its realm."""


class WaitTimedOut(FoedusError):
    """The job was still open when the time was over; it goes on.

    Attributes:
        job: Its id.
    """

    def __init__(self, job: str, timeout_s: float) -> None:
        super().__init__(f"{job} was still open after {timeout_s:g} s; it goes on")
        self.job = job


class JobNotSucceeded(FoedusError):
    """The job ended without a model.

    Attributes:
        job: As it ended.
    """

    def __init__(self, job: Job, message: str) -> None:
        super().__init__(message)
        self.job = job


class JobFailed(JobNotSucceeded):
    """The job failed; ``job.cause`` says why, and who can act on it."""

    def __init__(self, job: Job) -> None:
        cause = job.cause
        why = "without a cause" if cause is None else f"{cause.code}: {cause.detail or cause.hint}"
        super().__init__(job, f"{job.id} failed: {why}")


class JobCancelled(JobNotSucceeded):
    """The job was cancelled."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, f"{job.id} was cancelled")


class VariantMissing(FoedusError):
    """The model has no such form; the message names those it has."""


class ResultMissing(FoedusError):
    """The job has no answer to a query: it trains a model, or has not succeeded."""


class DownloadCorrupt(FoedusError):
    """What arrived is not what the model's digest promises; nothing was kept."""


class DownloadBusy(FoedusError):
    """Another process is downloading to the same place."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is being downloaded by another process")


class FileRefused(FoedusError):
    """A local file or folder cannot be used; the message names it and the mend."""


_BY_STATUS: Final[Mapping[int, type[ApiError]]] = {
    HTTPStatus.UNAUTHORIZED: NotAuthenticated,
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.PRECONDITION_FAILED: Conflict,
    HTTPStatus.TOO_MANY_REQUESTS: Unavailable,
    HTTPStatus.BAD_GATEWAY: Unavailable,
    HTTPStatus.SERVICE_UNAVAILABLE: Unavailable,
    HTTPStatus.GATEWAY_TIMEOUT: Unavailable,
    HTTPStatus.INSUFFICIENT_STORAGE: Unavailable,
}


def from_problem(problem: Problem, retry_after_s: float = 0.0) -> ApiError:
    """The error that an answer is."""
    if problem.type.endswith("/quota-exhausted"):
        return QuotaExhausted(problem, retry_after_s)
    other = ServerFailed if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR else Refused
    return _BY_STATUS.get(problem.status, other)(problem, retry_after_s)
