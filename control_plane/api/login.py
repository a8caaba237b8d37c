"""``/v1/login``: how to come by a token. Public, for whoever asks has none yet."""

from __future__ import annotations

from litestar import get

from clients.resources import LoginView
from control_plane.api.requests import Call


@get("/v1/login", operation_id="getLogin", tags=["accounts"], opt={"access": "public"})
async def get_login(request: Call) -> LoginView:
    """Say where users log in: at which OIDC issuer and by which client, or with tokens alone."""
    realm = request.service.settings.keycloak
    if realm is None:
        return LoginView()
    return LoginView(issuer=realm.issuer_url, client_id=realm.cli_client_id)


HANDLERS = (get_login,)
