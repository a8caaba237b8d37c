"""``/v1/organisations/ID/storage-credentials``: the way to an organisation's own buckets."""

from __future__ import annotations

from litestar import Response, delete, get, post
from litestar.params import FromPath, JSONBody

from clients.resources import NewStorageCredential, Page, StorageCredential
from control_plane import refusals, storage_credentials
from control_plane.api.bodies import DEFAULT_LIMIT, page, position
from control_plane.api.jobs import Cursor, Limit
from control_plane.api.requests import Call

AT = "/v1/organisations/{organisation:str}/storage-credentials"


@post(
    AT,
    operation_id="addStorageCredential",
    tags=["storage"],
    status_code=201,
    opt={"problems": (refusals.Forbidden, refusals.NotFound, refusals.NoBuckets)},
)
async def add_storage_credential(
    request: Call, organisation: FromPath[str], data: JSONBody[NewStorageCredential]
) -> Response[StorageCredential]:
    """Make credentials for an organisation's buckets. Their secret is in this answer alone."""
    made = await storage_credentials.add_storage_credential(
        request.service.platform, request.who, organisation, data
    )
    return Response(made, status_code=201, headers={"Cache-Control": "no-store"})


@get(
    AT,
    operation_id="listStorageCredentials",
    tags=["storage"],
    opt={"problems": (refusals.Forbidden, refusals.NotFound)},
)
async def list_storage_credentials(
    request: Call,
    organisation: FromPath[str],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Response[Page[StorageCredential]]:
    """List an organisation's credentials without their secrets, newest first."""
    platform, before = request.service.platform, position(request, cursor)
    found = await storage_credentials.list_storage_credentials(
        platform, request.who, organisation, limit, before
    )
    return page(request, found)


@delete(
    f"{AT}/{{credential:str}}",
    operation_id="revokeStorageCredential",
    tags=["storage"],
    status_code=204,
    opt={"problems": (refusals.Forbidden, refusals.NotFound, refusals.NoBuckets)},
)
async def revoke_storage_credential(
    request: Call, organisation: FromPath[str], credential: FromPath[str]
) -> None:
    """End credentials: from now on the S3 server refuses them."""
    await storage_credentials.revoke_storage_credential(
        request.service.platform, request.who, organisation, credential
    )


HANDLERS = (add_storage_credential, list_storage_credentials, revoke_storage_credential)
