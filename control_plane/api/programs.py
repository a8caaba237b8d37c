"""``/v1/programs``: the developer's own code, uploaded, tried out once and named by its digest."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, get, post
from litestar.params import FromPath, QueryParameter

from clients.resources import Page, Program, ShortName
from control_plane import programs, refusals
from control_plane.api.bodies import DEFAULT_LIMIT, page, position
from control_plane.api.jobs import Cursor, Limit
from control_plane.api.requests import Call
from control_plane.api.uploads import ARRIVAL_PROBLEMS, Arrived
from sharing.object_store import ObjectTooLarge
from workflows.program import (
    ArchiveUnreadable,
    BundleTooLarge,
    ManifestInvalid,
    MemberRefused,
)


@post(
    "/v1/programs",
    operation_id="uploadProgram",
    tags=["programs"],
    status_code=201,
    opt={
        "streams": True,
        "upload": ("application/x-tar", "application/gzip", "application/zip"),
        "problems": (
            refusals.Forbidden,
            refusals.QuotaExhausted,
            ArchiveUnreadable,
            BundleTooLarge,
            ManifestInvalid,
            MemberRefused,
            refusals.ProbeFailed,
            *ARRIVAL_PROBLEMS,
        ),
        "also": {200: (Program, "The same program is known already.")},
    },
)
async def upload_program(
    request: Call,
    name: Annotated[ShortName, QueryParameter(description="For people.")] = "program",
    upload: Arrived = None,
) -> Response[Program]:
    """Upload a bundle as .tar, .tar.gz or .zip; it is unpacked and tried out in a sandbox."""
    most = request.service.settings.program_mb << 20
    too_large = f"at most {most} bytes are taken; leave data and weights out of the program"
    if (request.content_length or 0) > most:
        raise BundleTooLarge(too_large)
    platform, who = request.service.platform, request.who
    try:
        if upload is not None:
            program, created = await programs.take_program(platform, who, name, upload)
        else:
            program, created = await programs.upload_program(platform, who, name, request.stream())
    except ObjectTooLarge as error:
        raise BundleTooLarge(too_large) from error
    return Response(
        program,
        status_code=201 if created else 200,
        headers={"Location": f"/v1/programs/{program.digest}"},
    )


@get("/v1/programs", operation_id="listPrograms", tags=["programs"])
async def list_programs(
    request: Call, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response[Page[Program]]:
    """List the organisation's programs, newest first."""
    platform, before = request.service.platform, position(request, cursor)
    return page(request, await programs.list_programs(platform, request.who, limit, before))


@get("/v1/programs/{program:str}", operation_id="getProgram", tags=["programs"])
async def get_program(request: Call, program: FromPath[str]) -> Program:
    """Fetch what is known of a program, by its digest."""
    return await programs.get_program(request.service.platform, request.who, program)


HANDLERS = (upload_program, list_programs, get_program)
