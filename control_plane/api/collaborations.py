"""``/v1/collaborations``: organisations that train together."""

from __future__ import annotations

from litestar import Response, get, post
from litestar.params import FromPath, JSONBody

from clients.resources import Collaboration, NewCollaboration, Page
from control_plane import collaborations, refusals
from control_plane.api.bodies import DEFAULT_LIMIT, page, position
from control_plane.api.jobs import Cursor, Limit
from control_plane.api.requests import Call


@post(
    "/v1/collaborations",
    operation_id="foundCollaboration",
    tags=["collaborations"],
    status_code=201,
    opt={"problems": (refusals.Forbidden, refusals.NameTaken, refusals.Unacceptable)},
)
async def found_collaboration(
    request: Call, data: JSONBody[NewCollaboration]
) -> Response[Collaboration]:
    """Found a collaboration; the founder's organisation is a member of it."""
    founded = await collaborations.found_collaboration(request.service.platform, request.who, data)
    return Response(
        founded, status_code=201, headers={"Location": f"/v1/collaborations/{founded.id}"}
    )


@get("/v1/collaborations", operation_id="listCollaborations", tags=["collaborations"])
async def list_collaborations(
    request: Call, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response[Page[Collaboration]]:
    """List the collaborations that one's organisation is a member of, newest first."""
    platform, before = request.service.platform, position(request, cursor)
    return page(
        request, await collaborations.list_collaborations(platform, request.who, limit, before)
    )


@get(
    "/v1/collaborations/{collaboration:str}",
    operation_id="getCollaboration",
    tags=["collaborations"],
)
async def get_collaboration(request: Call, collaboration: FromPath[str]) -> Collaboration:
    """Fetch a collaboration."""
    platform = request.service.platform
    return await collaborations.get_collaboration(platform, request.who, collaboration)


HANDLERS = (found_collaboration, list_collaborations, get_collaboration)
