"""From settings to a connected client."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clients.sdk import Foedus
    from clients.settings import ClientSettings


class NotLoggedIn(Exception):
    """There is no token for the server."""


class SettingsInvalid(Exception):
    """A variable of the environment cannot be understood."""


def read_settings() -> ClientSettings:
    """The settings of this process.

    Raises:
        SettingsInvalid: One of them cannot be understood.
    """
    from pydantic import ValidationError

    from clients.settings import ClientSettings

    try:
        return ClientSettings()
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        parts = (f"FOEDUS_{str(part['loc'][0]).upper()}: {part['msg']}" for part in wrong)
        raise SettingsInvalid("; ".join(parts)) from None


def connect(url: str = "", token: str = "") -> Foedus:
    """A client for the server and user that the settings name.

    Args:
        url: Instead of the settings'.
        token: Instead of the settings'.

    Raises:
        NotLoggedIn: There is no token for the server.
        SettingsInvalid: A setting cannot be understood.
        FileRefused: The kept login cannot be read.
        NotSecure: The token would travel in the clear.
    """
    from clients.sdk import Foedus
    from clients.settings import Login, choose_login, read_login
    from clients.transport import Patience

    settings = read_settings()
    if token:
        login = Login(url, token)
    else:
        login = choose_login(settings, read_login(settings.credentials_path))
    if not login.token:
        raise NotLoggedIn(f"no token for {login.url}; run `foedus login --url {login.url}`")
    return Foedus(
        login.url,
        login.token,
        timeout_s=settings.timeout_s,
        patience=Patience(total_s=settings.patience_s),
        allow_plain_http=settings.allow_plain_http,
    )
