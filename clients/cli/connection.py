"""From settings to a connected client."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clients.sdk import Foedus
    from clients.settings import ClientSettings, Login
    from clients.transport import TokenSource


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


def connect() -> Foedus:
    """A client for the server and user that the settings name.

    Raises:
        NotLoggedIn: There is no token for the server.
        SettingsInvalid: A setting cannot be understood.
        FileRefused: The kept login cannot be read.
        NotSecure: The token would travel in the clear.
    """
    from clients.settings import choose_login, read_login

    settings = read_settings()
    login = choose_login(settings, read_login(settings.credentials_path))
    source = token_source(settings, login)
    if not source:
        raise NotLoggedIn(f"no token for {login.url}; run `foedus login --url {login.url}`")
    return client(settings, login.url, source)


def client(settings: ClientSettings, url: str, token: str | TokenSource) -> Foedus:
    """A client for the server at ``url``.

    Raises:
        NotSecure: The token would travel in the clear.
    """
    from clients.sdk import Foedus
    from clients.transport import Patience

    return Foedus(
        url,
        token,
        timeout_s=settings.timeout_s,
        patience=Patience(total_s=settings.patience_s),
        allow_plain_http=settings.allow_plain_http,
    )


def token_source(settings: ClientSettings, login: Login) -> str | TokenSource:
    """The token to use: the environment's, else of the machine it names, else the kept login's.

    Raises:
        SettingsInvalid: A machine is named, and its secret is not there.
    """
    if settings.token.get_secret_value():
        return login.token
    if settings.client_id:
        from clients.tokens import ClientCredentials

        return ClientCredentials(
            login.url,
            settings.client_id,
            _client_secret(settings),
            timeout_s=settings.timeout_s,
            allow_plain_http=settings.allow_plain_http,
        )
    if login.session is None:
        return login.token
    from clients.tokens import KeptLogin

    return KeptLogin(
        settings.credentials_path,
        login,
        timeout_s=settings.timeout_s,
        allow_plain_http=settings.allow_plain_http,
    )


def _client_secret(settings: ClientSettings) -> str:
    secret = settings.client_secret.get_secret_value()
    if settings.client_secret_file is not None:
        try:
            secret = settings.client_secret_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is no text"
            raise SettingsInvalid(
                f"FOEDUS_CLIENT_SECRET_FILE: {settings.client_secret_file}: {reason}"
            ) from error
    if not secret:
        raise SettingsInvalid(
            "FOEDUS_CLIENT_ID: its secret is missing; set FOEDUS_CLIENT_SECRET_FILE"
        )
    return secret
