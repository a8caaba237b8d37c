"""How a client is set up: ``FOEDUS_...`` in the environment, else the file ``foedus login`` wrote.

The file's token is for the file's URL: with ``FOEDUS_URL`` set to another server it is not used, so
that it is never shown to a stranger.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from clients.errors import FileRefused

DEFAULT_URL = "http://127.0.0.1:8470"


def default_credentials_path() -> Path:
    """Where the login is kept if nothing is said (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "foedus" / "credentials.json"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A login at an identity provider, from which new tokens come.

    Attributes:
        issuer: The provider.
        client_id: The client that logged in there.
        renew_at: When the token of the login is to be replaced, in seconds since 1970.
    """

    issuer: str
    client_id: str
    refresh_token: str
    renew_at: float

    def __repr__(self) -> str:
        """Without the token."""
        return f"Session(issuer={self.issuer!r}, client_id={self.client_id!r})"


class Login(msgspec.Struct, frozen=True):
    """A server, a token of one of its users, and the session it comes from, if there is one."""

    url: str
    token: str
    session: Session | None = None

    def __repr__(self) -> str:
        """Without the token."""
        return f"Login(url={self.url!r})"


class ClientSettings(BaseSettings):
    """Settings of the CLI."""

    model_config = SettingsConfigDict(env_prefix="FOEDUS_", extra="ignore", frozen=True)

    url: str = ""
    """Of the server; by default the one last logged in to, else http://127.0.0.1:8470."""

    token: SecretStr = SecretStr("")
    """Bearer token; by default that of the login, if it is for the same server."""

    client_id: str = ""
    """Of a machine at the platform's identity provider; with its secret, instead of a token."""

    client_secret: SecretStr = SecretStr("")
    """Secret of that machine."""

    client_secret_file: Path | None = None
    """File that holds the secret of that machine, instead of CLIENT_SECRET."""

    credentials: Path | None = None
    """File that keeps the login (mode 0600); by default ~/.config/foedus/credentials.json."""

    timeout_s: float = 30.0
    """Longest silence of the server within one answer, in seconds."""

    patience_s: float = 60.0
    """How long to wait for a server that is away, in seconds; scripts may want less."""

    allow_plain_http: bool = False
    """Whether tokens may travel unencrypted to another machine; for private networks alone."""

    @property
    def credentials_path(self) -> Path:
        """Where the login is kept."""
        return self.credentials or default_credentials_path()


def read_login(path: Path) -> Login | None:
    """The login kept at ``path``; None if there is none.

    Raises:
        FileRefused: The file is there, but is no login.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Login)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileRefused(f"{path}: {error.strerror or error}") from error
    except msgspec.MsgspecError:
        raise FileRefused(f"{path}: not a login; run `foedus login` again") from None


def write_login(path: Path, login: Login) -> None:
    """Keep a login, readable by its owner alone, in one step.

    Raises:
        FileRefused: It cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".credentials-")  # mode 0600
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(login))
        Path(name).replace(path)
    except OSError as error:
        raise FileRefused(f"{path}: {error.strerror or error}") from error


def forget_login(path: Path) -> None:
    """Remove the login kept at ``path``.

    Raises:
        FileRefused: It cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise FileRefused(f"{path}: {error.strerror or error}") from error


def choose_login(settings: ClientSettings, kept: Login | None) -> Login:
    """Which server to ask, and with what token (empty if there is none for it)."""
    url = (settings.url or (kept.url if kept else DEFAULT_URL)).rstrip("/")
    token = settings.token.get_secret_value()
    if not token and kept is not None and kept.url.rstrip("/") == url:
        return Login(url, kept.token, kept.session)
    return Login(url, token)
