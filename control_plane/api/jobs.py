"""``/v1/jobs``: what was asked for, how it goes, and what it made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal, cast

from litestar import Response, delete, get, patch, post, route
from litestar.enums import HttpMethod
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream

from clients.resources import Artifact, DryRun, Event, Job, JobPatch, Page, Round
from control_plane import admission, jobs, refusals
from control_plane.api import event_stream
from control_plane.api.bodies import (
    DEFAULT_LIMIT,
    MOST_ITEMS,
    download,
    page,
    position,
    reading,
    versioned,
)
from control_plane.api.cursors import CursorInvalid
from control_plane.api.ranges import PreconditionFailed, RangeNotSatisfiable, require_match
from control_plane.api.requests import Call
from control_plane.event_hub import Told
from sharing.object_store import ObjectMissing
from workflows.job import Inconsistent, JobSpec, Unsupported
from workflows.run import Desired, Phase

Limit = Annotated[int, QueryParameter(ge=1, le=MOST_ITEMS, description="Most items of one page.")]
Cursor = Annotated[str | None, QueryParameter(description="From the page before: its `next`.")]
After = Annotated[int, QueryParameter(ge=0, description="Only what is numbered higher.")]
IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        min_length=8,
        max_length=200,
        description="The same key and body give the same answer, however often they are sent.",
    ),
]


@post(
    "/v1/jobs",
    operation_id="submitJob",
    tags=["jobs"],
    status_code=202,
    opt={
        "problems": (
            Inconsistent,
            Unsupported,
            refusals.KeyReused,
            refusals.StillInFlight,
            refusals.QuotaExhausted,
        ),
        "also": {200: (DryRun, "What the job would be, with `dryRun=true`; nothing is recorded.")},
    },
)
async def submit_job(
    request: Call,
    data: JSONBody[JobSpec],
    idempotency_key: IdempotencyKey = None,
    dry_run: Annotated[
        bool, QueryParameter(name="dryRun", description="Only say what the job would be.")
    ] = False,
) -> Response[Job]:
    """Submit a job.

    It is accepted when it was checked and recorded; it starts when a slot is free.
    """
    service = request.service
    if dry_run:
        foreseen: Response[Any] = Response(
            await admission.dry_run(service.platform, request.who, data), status_code=200
        )
        return foreseen
    job = await admission.submit_job(service.platform, request.who, data, idempotency_key)
    return Response(job, status_code=202, headers={"Location": f"/v1/jobs/{job.id}"})


@get("/v1/jobs", operation_id="listJobs", tags=["jobs"], opt={"problems": (CursorInvalid,)})
async def list_jobs(
    request: Call,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    phase: Annotated[Phase | None, QueryParameter(description="Only jobs in this phase.")] = None,
    name: Annotated[str | None, QueryParameter(description="Only jobs of this name.")] = None,
) -> Response[Page[Job]]:
    """List jobs, newest first."""
    platform, before = request.service.platform, position(request, cursor)
    return page(request, await jobs.list_jobs(platform, request.who, limit, before, phase, name))


@get("/v1/jobs/{job:str}", operation_id="getJob", tags=["jobs"])
async def get_job(request: Call, job: FromPath[str]) -> Response[Job]:
    """Fetch a job; its ETag changes whenever it does."""
    read = await jobs.get_job(request.service.platform, request.who, job)
    return versioned(request, read.value, read.version)


@patch(
    "/v1/jobs/{job:str}",
    operation_id="changeJob",
    tags=["jobs"],
    opt={
        "problems": (
            refusals.Forbidden,
            refusals.JobClosed,
            refusals.CancelIsFinal,
            PreconditionFailed,
        )
    },
)
async def change_job(
    request: Call,
    job: FromPath[str],
    data: JSONBody[JobPatch],
    if_match: Annotated[
        str | None,
        HeaderParameter(name="If-Match", description="ETag that the job must still have."),
    ] = None,
) -> Response[Job]:
    """Cancel a job: legal in every open phase, as often as one likes."""
    platform, version = request.service.platform, None
    if if_match is not None:
        version = (await jobs.get_job(platform, request.who, job)).version
        require_match(if_match, str(version))
    changed = await jobs.change_desired(platform, request.who, job, Desired(data.desired), version)
    return versioned(request, changed.value, changed.version)


@delete(
    "/v1/jobs/{job:str}",
    operation_id="deleteJob",
    tags=["jobs"],
    status_code=204,
    opt={"problems": (refusals.Forbidden, refusals.JobOpen)},
)
async def delete_job(request: Call, job: FromPath[str]) -> None:
    """Delete the record of a job that has ended; published models stay."""
    await jobs.delete_job(request.service.platform, request.who, job)


@get("/v1/jobs/{job:str}/rounds", operation_id="listRounds", tags=["jobs"])
async def list_rounds(
    request: Call,
    job: FromPath[str],
    after: After = 0,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Response[Page[Round]]:
    """List the rounds on record, oldest first."""
    first = int(position(request, cursor) or after)
    return page(
        request, await jobs.list_rounds(request.service.platform, request.who, job, first, limit)
    )


@get(
    "/v1/jobs/{job:str}/events",
    operation_id="listEvents",
    tags=["jobs"],
    opt={"streams": True, "event_stream": True, "problems": (refusals.TooManyStreams,)},
)
async def list_events(
    request: Call,
    job: FromPath[str],
    after: After = 0,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
    last_event_id: Annotated[
        str | None,
        HeaderParameter(
            name="Last-Event-ID", description="Of a stream: continue after this event."
        ),
    ] = None,
) -> Response[Page[Event]]:
    """List what happened, oldest first; or watch it, with `Accept: text/event-stream`.

    The stream ends by itself after `run.closed`.
    """
    platform = request.service.platform
    if event_stream.MEDIA_TYPE in request.headers.get("accept", ""):
        first = event_stream.resume_after(last_event_id, after)
        told = await jobs.watch(platform, request.who, job, first)
        stream: Response[Any] = Stream(
            _encoded(request, cast("AsyncGenerator[Told, None]", told)),
            media_type=event_stream.MEDIA_TYPE,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        return stream
    first = int(position(request, cursor) or after)
    return page(request, await jobs.list_events(platform, request.who, job, first, limit))


async def _encoded(request: Call, told: AsyncGenerator[Told, None]) -> AsyncIterator[bytes]:
    """Events as they come, and signs of life between them."""
    heartbeat_s = request.service.settings.heartbeat_s
    yield event_stream.OPENING
    async with aclosing(told):
        coming = asyncio.ensure_future(anext(told, None))
        try:
            while True:
                await asyncio.wait((coming,), timeout=heartbeat_s)
                if not coming.done():
                    yield event_stream.HEARTBEAT
                elif (event := coming.result()) is None:
                    return
                else:
                    coming = asyncio.ensure_future(anext(told, None))
                    yield event_stream.encode(event.id, event.kind, event.data)
        finally:
            coming.cancel()
            await asyncio.wait((coming,))


@get(
    "/v1/jobs/{job:str}/logs",
    operation_id="readLogs",
    tags=["jobs"],
    opt={"streams": True, "content": ("text/plain",), "problems": (refusals.Forbidden,)},
)
async def read_logs(
    request: Call,
    job: FromPath[str],
    step: Annotated[
        Literal["federate", "translate", "publish"] | None,
        QueryParameter(description="All if absent."),
    ] = None,
    tail: Annotated[
        int | None, QueryParameter(ge=0, description="Only so many last bytes.")
    ] = None,
) -> Stream:
    """Read what the steps and the program printed."""
    chunks = await jobs.read_logs(request.service.platform, request.who, job, step, tail)
    return Stream(chunks, media_type="text/plain; charset=utf-8")


@get("/v1/jobs/{job:str}/artifacts", operation_id="listArtifacts", tags=["jobs"])
async def list_artifacts(request: Call, job: FromPath[str]) -> Page[Artifact]:
    """List what the job made."""
    return Page(items=await jobs.list_artifacts(request.service.platform, request.who, job))


@route(
    "/v1/jobs/{job:str}/artifacts/{name:str}",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    operation_id=reading("downloadArtifact"),
    tags=["jobs"],
    status_code=200,
    opt={
        "streams": True,
        "content": ("application/octet-stream",),
        "problems": (RangeNotSatisfiable, ObjectMissing),
    },
)
async def download_artifact(
    request: Call, job: FromPath[str], name: FromPath[str]
) -> Response[Any]:
    """Download an artifact; one range of bytes can be asked for."""
    platform = request.service.platform
    artifact = await jobs.get_artifact(platform, request.who, job, name)
    await platform.store.stat(artifact.digest)
    return download(
        request,
        lambda start, stop: platform.store.get(artifact.digest, start=start, stop=stop),
        digest=artifact.digest,
        size_bytes=artifact.size_bytes,
        media_type=artifact.media_type,
        file_name=artifact.name,
    )


HANDLERS = (
    submit_job,
    list_jobs,
    get_job,
    change_job,
    delete_job,
    list_rounds,
    list_events,
    read_logs,
    list_artifacts,
    download_artifact,
)
