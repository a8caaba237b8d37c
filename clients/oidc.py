"""Tokens from an OIDC issuer: to a person by the device flow, to a machine by its own secret.

Nothing here is peculiar to one make of issuer. Requests go to ``https://`` or to this machine, are
bounded in time, and follow no redirects, so that secrets go to one place alone.
Source: OpenID Connect Discovery 1.0 section 4; RFC 8628 (device flow) with RFC 7636 (PKCE, which
Keycloak takes there too); RFC 6749 sections 4.4 and 6; RFC 7009 (revocation).
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import httpx
import msgspec

from clients.errors import AnswerNotUnderstood, LoginRefused, Unreachable
from clients.transport import is_loopback, require_secure, understand

T = TypeVar("T")
SLOWER_S: Final = 5.0
"""What ``slow_down`` adds to the pause between two questions (RFC 8628 section 3.5)."""
_DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"


class Endpoints(msgspec.Struct, frozen=True):
    """What an issuer says of itself; an endpoint that it does not have is empty."""

    issuer: str
    token_endpoint: str
    device_authorization_endpoint: str = ""
    revocation_endpoint: str = ""


class Grant(msgspec.Struct, frozen=True):
    """Tokens.

    Attributes:
        expires_in: Seconds that the access token lives.
    """

    access_token: str
    expires_in: float = 60.0
    refresh_token: str = ""

    def __repr__(self) -> str:
        """Without the tokens."""
        return f"Grant(expires_in={self.expires_in})"


class DevicePrompt(msgspec.Struct, frozen=True):
    """What a person is to do in a browser.

    Attributes:
        verification_uri_complete: The address with the code in it; may be missing.
        expires_in: Seconds that there are for it.
        interval: Seconds between two questions whether it is done.
    """

    device_code: str
    user_code: str
    verification_uri: str
    expires_in: float
    verification_uri_complete: str = ""
    interval: float = 5.0


class _Refusal(msgspec.Struct, frozen=True):
    error: str
    error_description: str = ""


class OidcClient:
    """A client of one issuer. Close it, or use it as a context."""

    def __init__(self, issuer: str, timeout_s: float, *, allow_plain_http: bool = False) -> None:
        """Connect lazily.

        Raises:
            NotSecure: Plain HTTP to another machine, and it was not allowed.
        """
        require_secure(issuer, allow_plain_http)
        self._issuer = issuer
        self._allow_plain_http = allow_plain_http
        self._http = httpx.Client(timeout=timeout_s, trust_env=not is_loopback(issuer))
        self._endpoints: Endpoints | None = None

    def __enter__(self) -> OidcClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def by_device(
        self,
        client_id: str,
        show: Callable[[DevicePrompt], None],
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> Grant:
        """Tokens of the person who does what ``show`` tells them.

        Raises:
            LoginRefused: They did not, or may not; or the issuer has no such flow.
            Unreachable: The issuer does not answer.
        """
        endpoint = self._discovered().device_authorization_endpoint
        if not endpoint:
            raise LoginRefused(f"{self._issuer} offers no login by device")
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
        prompt = self._post(
            endpoint,
            {
                "client_id": client_id,
                "scope": "openid",
                "code_challenge": challenge.rstrip(b"=").decode(),
                "code_challenge_method": "S256",
            },
            DevicePrompt,
        )
        if isinstance(prompt, _Refusal):
            raise LoginRefused(f"the issuer refused this client: {_say(prompt)}")
        show(prompt)
        form = {
            "grant_type": _DEVICE_GRANT,
            "device_code": prompt.device_code,
            "code_verifier": verifier,
        }
        pause_s, ends = prompt.interval, clock() + prompt.expires_in
        while clock() + pause_s < ends:
            sleep(pause_s)
            try:
                answer = self._token(client_id, form)
            except Unreachable:
                pause_s *= 2  # RFC 8628 section 3.5
                continue
            if isinstance(answer, Grant):
                return answer
            match answer.error:
                case "authorization_pending":
                    pass
                case "slow_down":
                    pause_s += SLOWER_S
                case "access_denied":
                    raise LoginRefused("the login was denied in the browser")
                case "expired_token":
                    break
                case _:
                    raise LoginRefused(f"the issuer refused the login: {_say(answer)}")
        raise LoginRefused("nobody confirmed the code in time; log in again for another one")

    def by_refresh(self, client_id: str, refresh_token: str) -> Grant:
        """New tokens for old ones.

        Raises:
            LoginRefused: The login has ended.
            Unreachable: The issuer does not answer.
        """
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        answer = self._token(client_id, form)
        if isinstance(answer, _Refusal):
            raise LoginRefused(f"the login has ended ({_say(answer)}); run `foedus login --device`")
        return answer

    def by_secret(self, client_id: str, secret: str) -> Grant:
        """Tokens of a machine.

        Raises:
            LoginRefused: The secret is wrong, or the client may not have tokens this way.
            Unreachable: The issuer does not answer.
        """
        form = {"grant_type": "client_credentials", "client_secret": secret}
        answer = self._token(client_id, form)
        if isinstance(answer, _Refusal):
            raise LoginRefused(f"the issuer gives client {client_id} no token: {_say(answer)}")
        return answer

    def revoke(self, client_id: str, refresh_token: str) -> None:
        """End a login.

        Raises:
            LoginRefused: The issuer cannot.
            Unreachable: It does not answer.
        """
        endpoint = self._discovered().revocation_endpoint
        if not endpoint:
            raise LoginRefused(f"{self._issuer} offers no revocation")
        form = {
            "client_id": client_id,
            "token": refresh_token,
            "token_type_hint": "refresh_token",
        }
        answer = self._post(endpoint, form, msgspec.Raw)
        if isinstance(answer, _Refusal):
            raise LoginRefused(f"the issuer did not end the login: {_say(answer)}")

    def _token(self, client_id: str, form: Mapping[str, str]) -> Grant | _Refusal:
        """What the issuer says to a request for tokens, of whatever grant."""
        form = {"client_id": client_id, **form}
        return self._post(self._discovered().token_endpoint, form, Grant)

    def _discovered(self) -> Endpoints:
        """What the issuer says of itself, asked once."""
        if self._endpoints is None:
            url = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
            try:
                answer = self._http.get(url)
            except httpx.TransportError as error:
                raise Unreachable(f"nobody answers at {self._issuer}") from error
            if not answer.is_success:
                raise Unreachable(f"{url} answers {answer.status_code}; is the issuer right?")
            found = understand(answer.content, Endpoints)
            if found.issuer != self._issuer:
                raise AnswerNotUnderstood(f"{self._issuer} says that it is {found.issuer}")
            for endpoint in (
                found.token_endpoint,
                found.device_authorization_endpoint,
                found.revocation_endpoint,
            ):
                if endpoint:
                    require_secure(endpoint, self._allow_plain_http)
            self._endpoints = found
        return self._endpoints

    def _post(self, url: str, form: Mapping[str, str], kind: type[T]) -> T | _Refusal:
        try:
            answer = self._http.post(url, data=dict(form))
        except httpx.TransportError as error:
            raise Unreachable(f"nobody answers at {self._issuer}") from error
        if answer.is_success:
            return understand(answer.content or b"{}", kind)
        if answer.is_server_error:
            raise Unreachable(f"{self._issuer} answers {answer.status_code}")
        return understand(answer.content, _Refusal)


def _say(refusal: _Refusal) -> str:
    return refusal.error_description or refusal.error
