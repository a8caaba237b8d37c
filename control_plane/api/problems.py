"""Errors of the house as RFC 9457 problem details.

Nothing below knows HTTP. This table is the only place that does; a test holds it complete. The
nearest ancestor of an error wins. What went wrong on our side is logged, not told: from 500 on a
problem has a trace id and no detail.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import (
    ClientException,
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)
from litestar.types import Method

from clients.identity import IdentityUnavailable, NotAuthentic, NotEntitled
from clients.resources import Problem
from control_plane import refusals
from control_plane.api.cursors import CursorInvalid
from control_plane.api.decoding import Undecodable
from control_plane.api.ranges import PreconditionFailed, RangeNotSatisfiable
from control_plane.api.requests import BodyStalled, BodyTooLarge, Disconnected, TimedOut
from control_plane.holds import ObjectsHeld
from control_plane.tracing import trace_id
from sharing.object_store import (
    ObjectCorrupt,
    ObjectMissing,
    ObjectTooLarge,
    PartsMissing,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UploadGone,
)
from strategies import RingTooSmall, StrategyError
from workflows.causes import CauseCode
from workflows.data.examples import DataError
from workflows.engine import EngineError, EngineUnavailable, PlanRefused
from workflows.job import Inconsistent, JobError, Unsupported
from workflows.program import (
    ArchiveUnreadable,
    BundleError,
    BundleTooLarge,
    ManifestInvalid,
    MemberRefused,
)
from workflows.run import IllegalTransition

TYPE_ROOT: Final = "https://foedus.dev/problems/"
MEDIA_TYPE: Final = "application/problem+json"

METHODS: Final[tuple[Method, ...]] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Face:
    """How an error looks from outside.

    Attributes:
        status: HTTP status code.
        slug: Last part of the problem's type; never reused for another meaning.
        title: Short, and the same for every occurrence.
        hint: What to do instead, where the error itself does not know better.
        retry_after: Seconds after which the same request may succeed; 0 for never.
    """

    status: int
    slug: str
    title: str
    hint: str = ""
    retry_after: int = 0


_R = refusals
PROBLEMS: Final[Mapping[type[Exception], Face]] = {
    # What cannot be read.
    Undecodable: Face(400, "undecodable", "The request cannot be read"),
    CursorInvalid: Face(
        400, "cursor-invalid", "The cursor is not ours", "Start again without a cursor."
    ),
    ClientException: Face(400, "bad-request", "The request cannot be read"),
    # Who asks.
    NotAuthentic: Face(
        401,
        "not-authentic",
        "The credential proves nothing",
        "Send `Authorization: Bearer TOKEN` with a token that is valid.",
    ),
    NotEntitled: Face(403, "not-entitled", "No place on this platform"),
    _R.Forbidden: Face(
        403, "forbidden", "Not with your roles", "Ask someone whose role includes this."
    ),
    # What is not there, or not yours.
    _R.NotFound: Face(404, "not-found", "No such thing", "Look at the list of those you may see."),
    NotFoundException: Face(404, "route-unknown", "No such path", "See /schema for all paths."),
    ObjectMissing: Face(404, "object-missing", "No such object"),
    MethodNotAllowedException: Face(
        405, "method-not-allowed", "The resource does not do that", "See /schema for its methods."
    ),
    BodyStalled: Face(408, "body-stalled", "The body did not come in time", "Send it again."),
    # What does not fit the state of things.
    _R.WrongState: Face(409, "wrong-state", "It is not in a state for that"),
    _R.JobClosed: Face(409, "job-closed", "The job has ended", "Submit another one."),
    _R.JobOpen: Face(409, "job-open", "The job has not ended", "Cancel it, or wait for its end."),
    _R.CancelIsFinal: Face(
        409, "cancel-is-final", "A cancelled job stays cancelled", "Submit the job again."
    ),
    _R.StillInFlight: Face(
        409, "in-flight", "The same request is being worked on", "Wait, then repeat it.", 1
    ),
    _R.NameTaken: Face(409, "name-taken", "Another one has this name", "Choose another name."),
    _R.NoBuckets: Face(
        409,
        "no-buckets",
        "There are no buckets for organisations here",
        "Upload with `foedus dataset push`, or have the server use MinIO (FOEDUS_STORE=s3).",
    ),
    _R.NoDirectUploads: Face(
        409,
        "no-direct-uploads",
        "The object store takes no uploads itself",
        "Send the file to /v1/datasets or /v1/programs.",
    ),
    PartsMissing: Face(
        409, "parts-missing", "Not all parts have arrived", "Send those that are missing."
    ),
    IllegalTransition: Face(409, "illegal-transition", "The run is past that point"),
    _R.IngestError: Face(409, "ingest-refused", "The attempt is not heard"),
    _R.Fenced: Face(
        409, "fenced", "The attempt was superseded, or its job is closed", "Stop this attempt."
    ),
    _R.EventGap: Face(
        409, "event-gap", "Events before these are missing", "Send again from the first missing."
    ),
    _R.VersionChanged: Face(
        412, "precondition-failed", "It has changed since", "Fetch it again, then decide anew."
    ),
    PreconditionFailed: Face(
        412, "precondition-failed", "It has changed since", "Fetch it again, then decide anew."
    ),
    # What is too much.
    BodyTooLarge: Face(413, "body-too-large", "The body is too large", "Send less."),
    ObjectTooLarge: Face(413, "object-too-large", "The object is too large", "Send less."),
    BundleTooLarge: Face(
        413, "bundle-too-large", "The program is too large", "Leave data and weights out of it."
    ),
    _R.TooManyStreams: Face(
        429,
        "too-many-streams",
        "Too many event streams are open",
        "Close one, or read the events page by page.",
        5,
    ),
    RangeNotSatisfiable: Face(
        416, "range-not-satisfiable", "The range lies past the end", "See Content-Range."
    ),
    _R.QuotaExhausted: Face(
        429,
        "quota-exhausted",
        "The quota of your organisation is used up",
        "Wait until jobs end, delete what is not needed, or ask the platform's administrator.",
    ),
    # What was read well and cannot be.
    _R.ControlPlaneError: Face(422, "refused", "That cannot be done"),
    _R.Unacceptable: Face(422, "unacceptable", "A field names what cannot be"),
    _R.KeyReused: Face(
        422,
        "idempotency-key-reused",
        "The idempotency key stands for another request",
        "Use a new key for a new request.",
    ),
    JobError: Face(422, "job-refused", "The job cannot run"),
    Inconsistent: Face(422, "job-inconsistent", "The parts of the job do not fit together"),
    Unsupported: Face(422, "job-unsupported", "Nothing on this platform can do that"),
    RingTooSmall: Face(422, "ring-too-small", "A sum of the job could wrap around"),
    StrategyError: Face(422, "aggregation-failed", "The round cannot be aggregated"),
    PlanRefused: Face(422, "plan-refused", "The engine refuses this plan"),
    BundleError: Face(422, "bundle-refused", "The upload is not a program"),
    ArchiveUnreadable: Face(
        422,
        "bundle-unreadable",
        "The archive cannot be read",
        "Send a whole .tar, .tar.gz or .zip.",
    ),
    ManifestInvalid: Face(
        422, "bundle-incomplete", "program.toml or program.py is missing or wrong"
    ),
    MemberRefused: Face(422, "bundle-member-refused", "A file may not be in a program"),
    DataError: Face(422, "data-refused", "The data cannot be used as it is"),
    ObjectCorrupt: Face(
        422, "object-corrupt", "The bytes do not have the digest they are named by", "Send again."
    ),
    _R.ProbeFailed: Face(422, "probe-failed", "Trying it out failed"),
    # What is ours.
    Exception: Face(500, "internal", "Something went wrong on our side"),
    StoreError: Face(500, "store-failed", "Storage failed"),
    EngineError: Face(500, "engine-failed", "The engine failed"),
    TimedOut: Face(503, "timed-out", "The answer took too long", retry_after=2),
    IdentityUnavailable: Face(
        503, "identity-unavailable", "The identity provider did not answer", retry_after=5
    ),
    _R.DatabaseUnavailable: Face(
        503, "database-unavailable", "The database did not answer", retry_after=2
    ),
    UploadGone: Face(404, "upload-gone", "The upload is no more", "Begin it again."),
    ObjectsHeld: Face(
        503, "backup-under-way", "Nothing can be deleted during a backup", retry_after=30
    ),
    StoreUnavailable: Face(503, "store-unavailable", "Storage did not answer", retry_after=5),
    EngineUnavailable: Face(503, "engine-unavailable", "The engine did not answer", retry_after=5),
    StoreFull: Face(507, "store-full", "The disk is full", "Make room on the server.", 5),
    Disconnected: Face(499, "disconnected", "The caller went away"),
}
TRIAL_FACES: Final[Mapping[CauseCode, Face]] = {
    code: Face(422, code.value, code.value.replace("-", " ").capitalize()) for code in CauseCode
}
"""Of ``ProbeFailed``: what a developer's own code or data did wrong has the name of its cause."""

STATUS_FACES: Final[Mapping[int, Face]] = {
    401: PROBLEMS[NotAuthentic],
    403: PROBLEMS[_R.Forbidden],
    404: PROBLEMS[NotFoundException],
    405: PROBLEMS[MethodNotAllowedException],
    413: PROBLEMS[BodyTooLarge],
}
"""Of the web framework's own errors that have no class in the table."""


def face_of(error: Exception) -> Face:
    """How ``error`` looks from outside."""
    if isinstance(error, refusals.ProbeFailed):
        return TRIAL_FACES[error.cause.code]
    nearest = next(PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS)
    if nearest.status == 500 and isinstance(error, HTTPException):
        return STATUS_FACES.get(error.status_code, nearest)
    return nearest


def to_problem(error: Exception) -> Problem:
    """What the caller is told of ``error``."""
    if isinstance(error, ValidationException):
        error = _misread_parameters(error)
    face = face_of(error)
    told = face.status < 500
    return Problem(
        type=TYPE_ROOT + face.slug,
        title=face.title,
        status=face.status,
        detail=_detail(error) if told else "",
        retryable=bool(face.retry_after) or face.status == 408,
        hint=_hint(error) or face.hint or ("" if told else "Quote the trace id to the operator."),
        fields=_fields(error) if told else (),
        trace_id=trace_id.get(),
    )


def _misread_parameters(error: ValidationException) -> Undecodable:
    """What the framework says of parameters, in our words."""
    places = [place for place in error.extra or () if isinstance(place, dict)]
    fields = tuple(str(place.get("key", "")) for place in places)
    if fields == ("data",):
        return Undecodable("the body is empty", mend="Send the JSON that /schema describes.")
    problems = "; ".join(str(place.get("message", "")) for place in places)
    return Undecodable(problems or error.detail, fields, "See the parameters in /schema.")


def _detail(error: Exception) -> str:
    return error.detail if isinstance(error, HTTPException) else str(error)


def _hint(error: Exception) -> str:
    match error:
        case Undecodable(mend=mend) | JobError(mend=mend):
            return mend
        case refusals.ProbeFailed(cause=cause):
            return cause.explanation.hint
        case _:
            return ""


def _fields(error: Exception) -> tuple[str, ...]:
    match error:
        case Undecodable(fields=fields) | JobError(fields=fields):
            return fields
        case refusals.Unacceptable(field=field):
            return (field,)
        case _:
            return ()


def _methods_of(request: Request[Any, Any, Any]) -> Iterator[Method]:
    """Methods that the request's path has."""
    router = request.app.asgi_router
    for method in METHODS:
        with contextlib.suppress(MethodNotAllowedException):
            router.handle_routing(path=request.scope["path"], method=method)
            yield method


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The response to a request that ended in ``error``; logs what is ours, once."""
    problem = to_problem(error)
    headers = {}
    if retry_after := face_of(error).retry_after:
        headers["Retry-After"] = str(retry_after)
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if isinstance(error, MethodNotAllowedException):
        headers["Allow"] = ", ".join(_methods_of(request))
    if problem.status >= 500:
        log.error("request.failed", path=request.scope["path"], exc_info=error)
        request.app.state["metrics"].failed(face_of(error).slug)
    return Response(
        msgspec.json.encode(problem),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=headers,
    )


def example(face: Face) -> Problem:
    """A problem with this face, as the API's description shows it."""
    return Problem(
        type=TYPE_ROOT + face.slug,
        title=face.title,
        status=face.status,
        retryable=bool(face.retry_after),
        hint=face.hint,
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    )
