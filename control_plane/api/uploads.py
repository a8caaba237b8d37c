"""``/v1/uploads``: files that are sent to the object store itself, in parts."""

from __future__ import annotations

from typing import Annotated, Final

from litestar import Response, delete, post
from litestar.params import FromPath, JSONBody, QueryParameter

from clients.resources import NewUpload, PartLinks, PartsWanted, Upload
from control_plane import direct_uploads, refusals
from control_plane.api.requests import Call
from sharing.object_store import ObjectCorrupt, ObjectTooLarge, PartsMissing, UploadGone

Arrived = Annotated[
    str | None,
    QueryParameter(description="Digest of an upload in parts that has arrived; then no body."),
]
ARRIVAL_PROBLEMS: Final = (refusals.NotFound, PartsMissing, UploadGone, ObjectCorrupt)
"""What may be wrong with an upload that is named as ``Arrived``."""


@post(
    "/v1/uploads",
    operation_id="beginUpload",
    tags=["uploads"],
    status_code=201,
    opt={
        "problems": (
            refusals.Forbidden,
            refusals.NoDirectUploads,
            refusals.QuotaExhausted,
            refusals.Unacceptable,
            ObjectTooLarge,
        ),
        "also": {200: (Upload, "It was begun before; `stored` says which parts are there.")},
    },
)
async def begin_upload(request: Call, data: JSONBody[NewUpload]) -> Response[Upload]:
    """Begin an upload in parts, or go on with it.

    When all parts are there, name its digest as `upload` at `/v1/datasets` or `/v1/programs`.
    """
    upload, created = await direct_uploads.begin_upload(request.service.platform, request.who, data)
    return Response(upload, status_code=201 if created else 200)


@post(
    "/v1/uploads/{digest:str}/links",
    operation_id="linkParts",
    tags=["uploads"],
    status_code=200,
    opt={
        "problems": (
            refusals.Forbidden,
            refusals.NoDirectUploads,
            refusals.NotFound,
            refusals.Unacceptable,
        )
    },
)
async def link_parts(
    request: Call, digest: FromPath[str], data: JSONBody[PartsWanted]
) -> Response[PartLinks]:
    """Get links that parts are sent to, by PUT and without a token; they are void soon."""
    service = request.service
    links = await direct_uploads.link_parts(
        service.platform, request.who, digest, data.numbers, service.settings.link_s
    )
    return Response(links, headers={"Cache-Control": "no-store"})


@delete(
    "/v1/uploads/{digest:str}",
    operation_id="abortUpload",
    tags=["uploads"],
    status_code=204,
    opt={"problems": (refusals.Forbidden, refusals.NotFound)},
)
async def abort_upload(request: Call, digest: FromPath[str]) -> None:
    """Forget an upload with all of its parts."""
    await direct_uploads.abort_upload(request.service.platform, request.who, digest)


HANDLERS = (begin_upload, link_parts, abort_upload)
