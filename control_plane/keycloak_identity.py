"""Who is calling, by access tokens of a Keycloak realm, verified here with the realm's public keys.

Keycloak is asked for its keys alone: when there are none yet, when a token names one that is not
known (they were rotated), and when they are old (one may have been withdrawn). Between, and while
it is down, tokens are verified without it. So a user who was disabled there is known until the
token expires: minutes, as the realm says.

Source: RFC 7515 (signatures), RFC 7519 (claims), RFC 8725 (what to refuse), RFC 9068 section 4.
Unlike RFC 9068, Keycloak says what a token is for in the claim ``typ``, not in the header.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import structlog
from jwcrypto.common import JWException
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from keycloak import KeycloakOpenID
from keycloak.exceptions import KeycloakError

from clients.identity import IdentityUnavailable, NotAuthentic, NotEntitled, Principal
from clients.resources import Role
from control_plane.enrolment import ExternalUser
from control_plane.ids import TOKEN_PREFIX, external_user_id, hash_of_token
from control_plane.known_callers import KNOWN_FOR, KnownCallers
from control_plane.local_identity import LocalIdentity
from control_plane.settings import KeycloakSettings

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""Signatures whose keys are public; above all neither ``none`` nor those with a shared secret."""
LEEWAY_S: Final = 10.0
"""How far the clocks of Keycloak and this machine may differ."""
KEYS_FRESH: Final = timedelta(minutes=5)
"""Age of the keys after which they are fetched again."""
KEYS_PAUSE: Final = timedelta(seconds=10)
"""Between two fetches, however many tokens name keys that nobody knows."""
FETCH_S: Final = 5
MOST_KNOWN: Final = 4096

log = structlog.get_logger()


class Header(msgspec.Struct, frozen=True):
    """Of a signed token."""

    alg: str
    kid: str


class _RealmAccess(msgspec.Struct, frozen=True):
    roles: tuple[str, ...] = ()


class Claims(msgspec.Struct, frozen=True):
    """What a token says, as far as it is looked at; times in seconds since 1970.

    Attributes:
        typ: ``Bearer`` for an access token; ID and refresh tokens say so here.
        cnf: Present if whoever shows the token must prove to hold a key, which is not checked here.
    """

    iss: str
    sub: str
    exp: float
    typ: str = ""
    aud: str | tuple[str, ...] = ()
    nbf: float = 0.0
    cnf: dict[str, object] | None = None
    preferred_username: str = ""
    realm_access: _RealmAccess = _RealmAccess()


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was read, and not yet believed."""

    text: str
    header: Header
    claims: Claims
    payload: bytes


_HEADER: Final = msgspec.json.Decoder(Header)
_CLAIMS: Final = msgspec.json.Decoder(Claims)


def read_token(text: str) -> Token:
    """The parts of a token.

    Raises:
        NotAuthentic: It has no such parts.
    """
    parts = text.split(".")
    if len(parts) != 3:
        raise NotAuthentic("this is no token of this platform, nor one of its realm")
    try:
        header, payload = (base64.urlsafe_b64decode(part + "==") for part in parts[:2])
        return Token(text, _HEADER.decode(header), _CLAIMS.decode(payload), payload)
    except (binascii.Error, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise NotAuthentic("this token lacks what an access token has") from error


def judge(token: Token, issuer: str, audience: str, now: datetime) -> None:
    """Return if what ``token`` says is in order; who says it is another matter.

    Raises:
        NotAuthentic: It is not; the message says why.
    """
    claims, at = token.claims, now.timestamp()
    audiences = (claims.aud,) if isinstance(claims.aud, str) else claims.aud
    if token.header.alg not in ALGORITHMS:
        raise NotAuthentic("this token is not signed with a key of the realm")
    if claims.iss != issuer:
        raise NotAuthentic("this token is of another realm or server than this platform's")
    if claims.typ != "Bearer" or claims.cnf is not None:
        raise NotAuthentic("this is no bearer token; send the access token")
    if audience not in audiences:
        raise NotAuthentic(f"this token is not for this platform: its audience lacks {audience}")
    if at >= claims.exp + LEEWAY_S:
        raise NotAuthentic("this token has expired")
    if at < claims.nbf - LEEWAY_S:
        raise NotAuthentic("this token is not valid yet")


def verify(token: Token, key: JWK) -> None:
    """Return if ``token`` was signed with ``key``, by the one algorithm that the key is for.

    Raises:
        NotAuthentic: It was not.
    """
    algorithm = key.get("alg", token.header.alg)
    try:
        signed = JWS()
        signed.allowed_algs = [algorithm]
        signed.deserialize(token.text, key)
    except JWException as error:
        raise NotAuthentic("the signature of this token is wrong") from error
    if signed.jose_header.get("alg") != algorithm or signed.payload != token.payload:
        raise NotAuthentic("the signature of this token is wrong")


def user_of(token: Token, organisation_claim: str, roles: Mapping[str, Role]) -> ExternalUser:
    """Whom a believed token speaks for.

    Raises:
        NotEntitled: Someone without an organisation, with several, or without a role.
    """
    claims = token.claims
    said = msgspec.json.decode(token.payload).get(organisation_claim)
    names = [said] if isinstance(said, str) else [*said] if isinstance(said, list | dict) else []
    if len(names) != 1 or not isinstance(names[0], str):
        many = "several organisations" if names else "no organisation"
        raise NotEntitled(
            f"the realm says of this user that it belongs to {many} (claim {organisation_claim}); "
            "an administrator of the realm can set the one"
        )
    granted = frozenset(roles[role] for role in claims.realm_access.roles if role in roles)
    if not granted:
        raise NotEntitled(
            "the realm gives this user no role on this platform; an administrator of the realm "
            f"can give one of {', '.join(sorted(roles))}"
        )
    return ExternalUser(
        id=external_user_id(claims.iss, claims.sub),
        name=claims.preferred_username or claims.sub,
        organisation=names[0],
        roles=granted,
    )


class RealmKeys:
    """A realm's public keys, kept.

    Args:
        fetch: Get them from the realm, by their ids.
        now: The clock.
    """

    def __init__(
        self, fetch: Callable[[], Awaitable[Mapping[str, JWK]]], now: Callable[[], datetime]
    ) -> None:
        self._fetch = fetch
        self._now = now
        self._keys: Mapping[str, JWK] = {}
        self._fetched: datetime | None = None
        self._tried: datetime | None = None
        self._failed = False
        self._turn = asyncio.Lock()

    async def find(self, kid: str) -> JWK:
        """The key of this id.

        Raises:
            NotAuthentic: The realm has none.
            IdentityUnavailable: It is not known, and the realm did not answer.
        """
        key = self._keys.get(kid)
        if key is not None and (self._within(self._fetched, KEYS_FRESH) or self._turn.locked()):
            return key
        async with self._turn:
            if not self._within(self._tried, KEYS_PAUSE):
                await self._refresh()
        key = self._keys.get(kid)
        if key is None and self._failed:
            raise IdentityUnavailable("the realm did not tell its keys")
        if key is None:
            raise NotAuthentic("this token was signed with a key that the realm does not have")
        return key

    def _within(self, since: datetime | None, span: timedelta) -> bool:
        return since is not None and timedelta() <= self._now() - since < span

    async def _refresh(self) -> None:
        self._tried = self._now()
        try:
            self._keys = await self._fetch()
        except IdentityUnavailable as error:
            self._failed = True
            log.warning("identity.keys_not_fetched", known=len(self._keys), reason=str(error))
        else:
            self._failed = False
            self._fetched = self._tried


class KeycloakIdentity:
    """Adapter of ``IdentityProvider``.

    Tokens of our own, which begin with their prefix, are ``local``'s to judge: so the first
    administrator gets in while the realm is still empty. A token is looked at once a minute.
    """

    def __init__(
        self,
        settings: KeycloakSettings,
        *,
        keys: RealmKeys,
        local: LocalIdentity,
        enrol: Callable[[ExternalUser], Awaitable[Principal]],
        now: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._local = local
        self._enrol = enrol
        self._now = now
        self._known = KnownCallers(MOST_KNOWN)

    async def authenticate(self, credential: str) -> Principal:
        if credential.startswith(TOKEN_PREFIX):
            return await self._local.authenticate(credential)
        hashed = hash_of_token(credential)
        now = self._now()
        if (known := self._known.find(hashed, now)) is not None:
            return known
        settings = self._settings
        token = read_token(credential)
        judge(token, settings.issuer_url, settings.audience, now)
        verify(token, await self._keys.find(token.header.kid))
        user = user_of(token, settings.organisation_claim, settings.roles)
        principal = await self._enrol(user)
        ends = min((now + KNOWN_FOR).timestamp(), token.claims.exp)
        self._known.add(hashed, principal, datetime.fromtimestamp(ends, UTC))
        return principal

    def forget(self) -> None:
        self._local.forget()
        self._known.clear()

    def remember(self, does: bool) -> None:
        """Tokens of the realm are revoked by their expiry alone, so they go on being known."""
        self._local.remember(does)


@asynccontextmanager
async def connected(
    settings: KeycloakSettings,
    *,
    local: LocalIdentity,
    enrol: Callable[[ExternalUser], Awaitable[Principal]],
    now: Callable[[], datetime],
) -> AsyncIterator[KeycloakIdentity]:
    """The adapter, with a connection to the realm that opens with the first token."""
    realm = KeycloakOpenID(
        server_url=settings.base_url,
        realm_name=settings.realm,
        client_id=settings.audience,
        timeout=FETCH_S,
    )
    try:
        yield KeycloakIdentity(
            settings, keys=RealmKeys(lambda: _fetch(realm), now), local=local, enrol=enrol, now=now
        )
    finally:
        await realm.connection.aclose()


async def _fetch(realm: KeycloakOpenID) -> Mapping[str, JWK]:
    """The keys that the realm signs with.

    Raises:
        IdentityUnavailable: It did not answer, or not with keys.
    """
    try:
        async with asyncio.timeout(FETCH_S):
            told = await realm.a_certs()
        return dict(_signing_keys(told["keys"]))
    except (KeycloakError, TimeoutError, TypeError, KeyError) as error:
        raise IdentityUnavailable(f"the realm did not tell its keys: {error}") from error


def _signing_keys(keys: list[dict[str, Any]]) -> Any:  # noqa: ANN401
    for key in keys:
        if key.get("use", "sig") != "sig" or key.get("kty") == "oct":
            continue
        try:
            yield key["kid"], JWK(**key)
        except JWException:
            log.warning("identity.key_not_understood", kid=key["kid"])
