"""Who asks: denied unless the route says that it is public.

A route is for users by default. ``opt={"access": "public"}`` opens it to everyone, and
``opt={"access": "attempt"}`` to the one attempt that its path names, by that attempt's token.
"""

from __future__ import annotations

from asyncio import timeout
from typing import TYPE_CHECKING, Any, Final, cast

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from clients.identity import NotAuthentic
from control_plane.api.requests import TimedOut
from control_plane.ingest import attempt_of
from control_plane.refusals import NotFound

if TYPE_CHECKING:
    from control_plane.api.service import Service

SCHEME: Final = b"bearer "
LONGEST_TOKEN: Final = 8192
"""An OIDC token with many roles takes some thousand characters."""


def bearer_token(headers: Any) -> str:  # noqa: ANN401 - ASGI's iterable of pairs
    """The token that the headers carry.

    Raises:
        NotAuthentic: None, more than one, or another scheme.
    """
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1:
        raise NotAuthentic("a bearer token is needed")
    scheme, token = values[0][: len(SCHEME)], values[0][len(SCHEME) :].strip()
    if scheme.lower() != SCHEME or not token or len(token) > LONGEST_TOKEN or not token.isascii():
        raise NotAuthentic("a bearer token is needed")
    return cast("bytes", token).decode()


def authenticated(app: ASGIApp) -> ASGIApp:
    """``app``, once it is known who asks and only for as long as an answer may take."""

    async def admit(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            raise NotFound("there are no web sockets here")
        service: Service = scope["litestar_app"].state["service"]
        opt = scope["route_handler"].opt
        await _identify(scope, service, opt.get("access", "user"))
        if opt.get("streams"):
            await app(scope, receive, send)
            return
        try:
            async with timeout(service.settings.request_s):
                await app(scope, receive, send)
        except TimeoutError as error:
            raise TimedOut(f"no answer within {service.settings.request_s:g} s") from error

    return cast("ASGIApp", admit)


async def _identify(scope: Scope, service: Service, access: str) -> None:
    if access == "public":
        return
    token = bearer_token(scope["headers"])
    if access == "attempt":
        job, number = scope["path_params"]["job"], scope["path_params"]["attempt"]
        scope["user"] = await attempt_of(service.platform, token, str(job), cast("int", number))
    else:
        scope["user"] = await service.platform.identity.authenticate(token)
