"""``/v1/attempts``: what the wrapper of a step sends and fetches, with its attempt's token."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Response, post, put, route
from litestar.enums import HttpMethod
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream

from clients.resources import Request
from control_plane import ingest, refusals
from control_plane.api.bodies import reading
from control_plane.api.requests import Call
from sharing.object_store import (
    ObjectCorrupt,
    ObjectMissing,
    StoredObject,
    StoreFull,
    is_digest,
)
from workflows.events import AnyStepEvent
from workflows.plan import StepKind

AT = "/v1/attempts/{job:str}/{attempt:int}"


class StepEvents(Request, frozen=True):
    """Lines of a step's file, in order."""

    step: StepKind
    events: tuple[AnyStepEvent, ...]


class Acknowledged(msgspec.Struct, frozen=True):
    """Highest number up to which every event of the step is on record."""

    acknowledged: int


class LogEnd(msgspec.Struct, frozen=True):
    """Where the next bytes of the log belong."""

    offset: int


@post(
    f"{AT}/events",
    operation_id="postEvents",
    tags=["attempts"],
    status_code=200,
    opt={"access": "attempt", "problems": (refusals.Fenced, refusals.EventGap)},
)
async def post_events(request: Call, data: JSONBody[StepEvents]) -> Acknowledged:
    """Take events; what is on record already is passed over."""
    platform = request.service.platform
    return Acknowledged(await ingest.take_events(platform, request.attempt, data.step, data.events))


@route(
    f"{AT}/objects/{{digest:str}}",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    operation_id=reading("fetchObject"),
    tags=["attempts"],
    status_code=200,
    opt={
        "access": "attempt",
        "streams": True,
        "content": ("application/octet-stream",),
        "problems": (refusals.Fenced, ObjectMissing),
    },
)
async def fetch_object(request: Call, digest: FromPath[str]) -> Response[Any]:
    """Fetch an input of the plan, or an object of the same job."""
    platform = request.service.platform
    stored, chunks = await ingest.get_object(platform, request.attempt, _checked(digest))
    return Stream(
        chunks,
        media_type="application/octet-stream",
        headers={"Content-Length": str(stored.size_bytes)},
    )


@put(
    f"{AT}/objects/{{digest:str}}",
    operation_id="putObject",
    tags=["attempts"],
    status_code=201,
    opt={
        "access": "attempt",
        "streams": True,
        "upload": ("application/octet-stream",),
        "problems": (refusals.Fenced, ObjectCorrupt, StoreFull),
        "also": {200: (StoredObject, "It was there already.")},
    },
)
async def put_object(request: Call, digest: FromPath[str]) -> Response[StoredObject]:
    """Store an object under the digest that its bytes have."""
    stored, created = await ingest.put_object(
        request.service.platform, request.attempt, _checked(digest), request.stream()
    )
    return Response(stored, status_code=201 if created else 200)


@put(
    f"{AT}/logs/{{step:str}}",
    operation_id="appendLog",
    tags=["attempts"],
    status_code=200,
    opt={
        "access": "attempt",
        "upload": ("application/octet-stream",),
        "problems": (refusals.Fenced, StoreFull),
    },
)
async def append_log(
    request: Call,
    step: FromPath[StepKind],
    offset: Annotated[
        int, QueryParameter(ge=0, description="Of the first byte in the step's log.")
    ],
) -> LogEnd:
    """Append to a step's log; what is stored already is passed over."""
    content = b"".join([chunk async for chunk in request.stream()])
    platform = request.service.platform
    return LogEnd(await ingest.append_log(platform, request.attempt, step, offset, content))


def _checked(digest: str) -> str:
    if not is_digest(digest):
        raise ObjectMissing(f"no object is called {digest[:80]}")
    return digest


HANDLERS = (post_events, fetch_object, put_object, append_log)
