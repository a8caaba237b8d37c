"""``/v1/whoami``, ``/v1/organisations``, ``/v1/users`` and ``/v1/tokens``."""

from __future__ import annotations

from litestar import Response, delete, get, post
from litestar.params import FromPath, JSONBody

from clients.resources import (
    NewOrganisation,
    NewToken,
    NewUser,
    Organisation,
    Page,
    Token,
    User,
)
from control_plane import accounts, refusals
from control_plane.api.bodies import DEFAULT_LIMIT, page, position
from control_plane.api.jobs import Cursor, Limit
from control_plane.api.requests import Call


@get("/v1/whoami", operation_id="whoami", tags=["accounts"])
async def whoami(request: Call) -> User:
    """Say whom the token speaks for."""
    return await accounts.whoami(request.service.platform, request.who)


@post(
    "/v1/organisations",
    operation_id="addOrganisation",
    tags=["accounts"],
    status_code=201,
    opt={"problems": (refusals.Forbidden, refusals.NameTaken)},
)
async def add_organisation(request: Call, data: JSONBody[NewOrganisation]) -> Organisation:
    """Add an organisation, and a collaboration of its own; for the platform's administrators."""
    return await accounts.add_organisation(request.service.platform, request.who, data)


@get(
    "/v1/organisations",
    operation_id="listOrganisations",
    tags=["accounts"],
    opt={"problems": (refusals.Forbidden,)},
)
async def list_organisations(
    request: Call, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response[Page[Organisation]]:
    """List organisations, newest first."""
    platform, before = request.service.platform, position(request, cursor)
    return page(request, await accounts.list_organisations(platform, request.who, limit, before))


@post(
    "/v1/users",
    operation_id="addUser",
    tags=["accounts"],
    status_code=201,
    opt={"problems": (refusals.Forbidden, refusals.NameTaken, refusals.Unacceptable)},
)
async def add_user(request: Call, data: JSONBody[NewUser]) -> User:
    """Add a user to an organisation."""
    return await accounts.add_user(request.service.platform, request.who, data)


@get(
    "/v1/users",
    operation_id="listUsers",
    tags=["accounts"],
    opt={"problems": (refusals.Forbidden,)},
)
async def list_users(
    request: Call, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response[Page[User]]:
    """List users, newest first."""
    platform, before = request.service.platform, position(request, cursor)
    return page(request, await accounts.list_users(platform, request.who, limit, before))


@post(
    "/v1/tokens",
    operation_id="addToken",
    tags=["accounts"],
    status_code=201,
    opt={"problems": (refusals.Forbidden, refusals.NotFound, refusals.Unacceptable)},
)
async def add_token(request: Call, data: JSONBody[NewToken]) -> Response[Token]:
    """Make a token. Its secret is in this answer and nowhere else."""
    token = await accounts.add_token(request.service.platform, request.who, data)
    return Response(token, status_code=201, headers={"Cache-Control": "no-store"})


@get("/v1/tokens", operation_id="listTokens", tags=["accounts"])
async def list_tokens(
    request: Call, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response[Page[Token]]:
    """List tokens without their secrets, newest first."""
    platform, before = request.service.platform, position(request, cursor)
    return page(request, await accounts.list_tokens(platform, request.who, limit, before))


@delete("/v1/tokens/{token:str}", operation_id="revokeToken", tags=["accounts"], status_code=204)
async def revoke_token(request: Call, token: FromPath[str]) -> None:
    """Revoke a token: from now on it proves nothing."""
    await accounts.revoke_token(request.service.platform, request.who, token)


HANDLERS = (
    whoami,
    add_organisation,
    list_organisations,
    add_user,
    list_users,
    add_token,
    list_tokens,
    revoke_token,
)
