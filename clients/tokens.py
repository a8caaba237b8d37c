"""Where a client's token comes from each time that one is needed.

An access token of an issuer lives for minutes; a new one is had shortly before it expires, by the
refresh token that ``foedus login --device`` kept, or by a machine's own secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from clients.errors import FileRefused, LoginRefused
from clients.oidc import Grant, OidcClient
from clients.resources import LoginView
from clients.settings import Login, Session, read_login, write_login
from clients.transport import Call, Transport

EARLY_S: Final = 20.0
"""How long before its end a token is replaced, in seconds; at most half of its life."""


def login_of(grant: Grant, url: str, issuer: str, client_id: str, now: float) -> Login:
    """A login with the platform at ``url``, as it is kept."""
    session = Session(
        issuer=issuer,
        client_id=client_id,
        refresh_token=grant.refresh_token,
        renew_at=_renew_at(grant, now),
    )
    return Login(url, grant.access_token, session)


class KeptLogin:
    """Tokens of the login kept in a file, which is brought up to date. Safe to share."""

    def __init__(
        self,
        path: Path,
        login: Login,
        *,
        timeout_s: float,
        allow_plain_http: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._login = login
        self._timeout_s = timeout_s
        self._allow_plain_http = allow_plain_http
        self._now = now
        self._turn = threading.Lock()

    def __call__(self) -> str:
        """A token that is good for now.

        Raises:
            LoginRefused: The login has ended.
            Unreachable: The issuer does not answer.
            FileRefused: The file cannot be read or written.
        """
        with self._turn:
            if self._is_old(self._login):
                with _locked(self._path):
                    self._login = self._renewed()
            return self._login.token

    def _is_old(self, login: Login) -> bool:
        return login.session is not None and self._now() >= login.session.renew_at

    def _renewed(self) -> Login:
        kept = read_login(self._path)
        if kept is None or kept.url != self._login.url or kept.session is None:
            raise LoginRefused("somebody logged out meanwhile; run `foedus login --device`")
        session = kept.session
        if not self._is_old(kept):
            return kept  # another process was quicker
        with OidcClient(
            session.issuer, self._timeout_s, allow_plain_http=self._allow_plain_http
        ) as client:
            grant = client.by_refresh(session.client_id, session.refresh_token)
        if not grant.refresh_token:
            grant = Grant(grant.access_token, grant.expires_in, session.refresh_token)
        login = login_of(grant, kept.url, session.issuer, session.client_id, self._now())
        write_login(self._path, login)
        return login


class ClientCredentials:
    """Tokens of a machine, by a secret of its own. Safe to share.

    Args:
        url: Of the platform, which says who its issuer is.
        client_id: Of the machine, at that issuer.
        secret: Its secret.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        secret: str,
        *,
        timeout_s: float = 30.0,
        allow_plain_http: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._url = url
        self._client_id = client_id
        self._secret = secret
        self._timeout_s = timeout_s
        self._allow_plain_http = allow_plain_http
        self._now = now
        self._turn = threading.Lock()
        self._token = ""
        self._renew_at = 0.0

    def __call__(self) -> str:
        """A token that is good for now.

        Raises:
            LoginRefused: The secret is wrong, or the platform has no issuer.
            Unreachable: Platform or issuer does not answer.
        """
        with self._turn:
            if self._now() >= self._renew_at:
                issuer = ask_login(self._url, self._timeout_s, self._allow_plain_http).issuer
                with OidcClient(
                    issuer, self._timeout_s, allow_plain_http=self._allow_plain_http
                ) as client:
                    grant = client.by_secret(self._client_id, self._secret)
                self._token, self._renew_at = grant.access_token, _renew_at(grant, self._now())
            return self._token


def ask_login(url: str, timeout_s: float, allow_plain_http: bool) -> LoginView:
    """Where users of the platform at ``url`` log in.

    Raises:
        LoginRefused: Nowhere: it has tokens of its own alone.
        Unreachable: It does not answer.
    """
    transport = Transport(url, "", timeout_s=timeout_s, allow_plain_http=allow_plain_http)
    try:
        view = transport.fetch(Call(method="GET", path="/v1/login"), LoginView)
    finally:
        transport.close()
    if not view.issuer:
        raise LoginRefused(
            f"{url} has no identity provider; use a token of the platform (`foedus login`)"
        )
    return view


def _renew_at(grant: Grant, now: float) -> float:
    return now + grant.expires_in - min(EARLY_S, grant.expires_in / 2)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from spending the same refresh token."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        file = lock.open("a+b")
    except OSError as error:
        raise FileRefused(f"{lock}: {error.strerror or error}") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
