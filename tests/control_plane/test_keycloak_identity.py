"""Tokens of a realm that is played: its keys over a real socket, its clock in our hands."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import pytest
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from sqlalchemy import select

from clients.identity import (
    IdentityProvider,
    IdentityUnavailable,
    NotAuthentic,
    NotEntitled,
    Principal,
)
from clients.resources import NewCollaboration, NewOrganisation, NewToken, Role
from control_plane.accounts import add_organisation, add_token, list_users, whoami
from control_plane.collaborations import found_collaboration
from control_plane.enrolment import ExternalUser, enrol
from control_plane.ids import external_user_id
from control_plane.keycloak_identity import KeycloakIdentity, connected
from control_plane.local_identity import LocalIdentity
from control_plane.platform import Platform
from control_plane.records.tables import ORGANISATION
from control_plane.refusals import Unacceptable
from control_plane.settings import KeycloakSettings
from tests.clients.scripted_server import Handler, Script, reply, serving, value
from tests.control_plane.conftest import People

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def rsa(kid: str) -> JWK:
    return JWK.generate(kty="RSA", size=2048, kid=kid, alg="RS256", use="sig")


KEY, OTHER = rsa("one"), rsa("two")
CURVE = JWK.generate(kty="EC", crv="P-256", kid="curve", alg="ES256", use="sig")


def published(*keys: JWK) -> dict[str, Any]:
    return {"keys": [key.export_public(as_dict=True) for key in keys]}


@dataclass
class Realm:
    """The realm's keys as it tells them now, and the time."""

    script: Script
    now: datetime = NOW
    asked: int = 0
    keys: list[JWK] = field(default_factory=lambda: [KEY, CURVE])
    is_up: bool = True

    @property
    def settings(self) -> KeycloakSettings:
        return KeycloakSettings(server_url=self.script.url, realm="r", audience="foedus-api")

    def claims(self, **changes: Any) -> dict[str, Any]:
        at = self.now.timestamp()
        found = {
            "iss": self.settings.issuer_url,
            "sub": "subject-1",
            "aud": ["account", "foedus-api"],
            "exp": at + 300,
            "iat": at,
            "typ": "Bearer",
            "preferred_username": "ada",
            "organisation": "hospital",
            "realm_access": {"roles": ["offline_access", "developer"]},
            **changes,
        }
        return {name: said for name, said in found.items() if said is not None}

    def token(self, key: JWK = KEY, header: dict[str, Any] | None = None, **changes: Any) -> str:
        jws = JWS(msgspec.json.encode(self.claims(**changes)))
        protected = {"alg": key["alg"], "kid": key["kid"], "typ": "JWT", **(header or {})}
        jws.add_signature(key, alg=None, protected=msgspec.json.encode(protected).decode())
        return str(jws.serialize(compact=True))

    def answer(self, handler: Handler) -> None:
        self.asked += 1
        said = value(published(*self.keys)) if self.is_up else reply(502, b"away")
        said(handler)


@pytest.fixture
def realm() -> Iterator[Realm]:
    with serving() as script:
        played = Realm(script)
        script.answers.extend([lambda handler: played.answer(handler)] * 20)
        yield played


@pytest.fixture
async def identity(realm: Realm, platform: Platform) -> AsyncIterator[KeycloakIdentity]:
    def now() -> datetime:
        return realm.now

    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(
            connected(
                realm.settings,
                local=LocalIdentity(platform.database, now),
                enrol=partial(enrol, platform.database, now),
                now=now,
            )
        )


def encoded(part: Any) -> str:
    content = part if isinstance(part, bytes) else msgspec.json.encode(part)
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def unsigned(realm: Realm, alg: str) -> str:
    return f"{encoded({'alg': alg, 'kid': 'one'})}.{encoded(realm.claims())}."


def signed_with_the_public_key(realm: Realm) -> str:
    """RFC 8725 section 2.1: the public key, which all know, taken for a shared secret."""
    head = f"{encoded({'alg': 'HS256', 'kid': 'one'})}.{encoded(realm.claims())}"
    mac = hmac.new(KEY.export_to_pem(), head.encode(), hashlib.sha256).digest()
    return f"{head}.{encoded(mac)}"


def with_other_claims(realm: Realm) -> str:
    head, _, signature = realm.token().split(".")
    return f"{head}.{encoded(realm.claims(organisation='home'))}.{signature}"


async def test_a_token_speaks_for_a_user_with_organisation_and_roles(
    identity: KeycloakIdentity, realm: Realm, platform: Platform
) -> None:
    who = await identity.authenticate(realm.token())

    assert isinstance(identity, IdentityProvider)
    assert who.name == "ada"
    assert who.roles == {Role.DEVELOPER}
    assert who.user == external_user_id(realm.settings.issuer_url, "subject-1")
    user = await whoami(platform, who)
    assert (user.organisation, user.roles) == (who.organisation, (Role.DEVELOPER,))


async def test_keys_of_curves_sign_too(identity: KeycloakIdentity, realm: Realm) -> None:
    assert (await identity.authenticate(realm.token(CURVE))).name == "ada"


async def test_a_token_of_our_own_is_taken_beside(
    identity: KeycloakIdentity, people: People, realm: Realm
) -> None:
    realm.is_up = False
    realm.now = datetime.now(UTC)

    assert (await identity.authenticate(people.token)).name == "admin"
    with pytest.raises(NotAuthentic):
        await identity.authenticate("foedus_wrong")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exp": NOW.timestamp() - 11}, "has expired"),
        ({"nbf": NOW.timestamp() + 11}, "not valid yet"),
        ({"aud": "account"}, "audience lacks foedus-api"),
        ({"aud": None}, "audience lacks foedus-api"),
        ({"aud": "foedus-api2"}, "audience lacks foedus-api"),
        ({"iss": "https://elsewhere/realms/r"}, "another realm"),
        ({"typ": "ID"}, "no bearer token"),
        ({"typ": "Refresh"}, "no bearer token"),
        ({"typ": None}, "no bearer token"),
        ({"cnf": {"jkt": "x"}}, "no bearer token"),
        ({"sub": None}, "lacks what an access token has"),
        ({"exp": None}, "lacks what an access token has"),
        ({"exp": "never"}, "lacks what an access token has"),
    ],
)
async def test_a_token_is_refused_for_what_it_says(
    identity: KeycloakIdentity, realm: Realm, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(NotAuthentic, match=why):
        await identity.authenticate(realm.token(**changes))

    assert realm.asked == 0, "nobody is asked for keys on account of it"


@pytest.mark.parametrize("leeway", [{"exp": NOW.timestamp() - 9}, {"nbf": NOW.timestamp() + 9}])
async def test_clocks_may_differ_a_little(
    identity: KeycloakIdentity, realm: Realm, leeway: dict[str, float]
) -> None:
    assert await identity.authenticate(realm.token(**leeway))


@pytest.mark.parametrize(
    "forged",
    [
        lambda realm: unsigned(realm, "none"),
        lambda realm: unsigned(realm, "None"),
        lambda realm: unsigned(realm, "RS256"),
        signed_with_the_public_key,
        with_other_claims,
        lambda realm: realm.token(OTHER, {"kid": "one"}),
        lambda realm: realm.token(CURVE, {"kid": "one"}),
        lambda realm: realm.token()[:-8] + "AAAAAAAA",
        lambda realm: realm.token() + ".x",
        lambda realm: realm.token().replace(".", "!."),
        lambda _: "a.b.c",
        lambda _: "..",
        lambda _: "opaque",
    ],
)
async def test_what_was_not_signed_by_the_realm_is_refused(
    identity: KeycloakIdentity, realm: Realm, forged: Any
) -> None:
    with pytest.raises(NotAuthentic):
        await identity.authenticate(forged(realm))


async def test_a_key_that_is_for_one_algorithm_is_for_no_other(
    identity: KeycloakIdentity, realm: Realm
) -> None:
    same = JWK(**{**KEY.export_private(as_dict=True), "alg": "PS256"})

    with pytest.raises(NotAuthentic):
        await identity.authenticate(realm.token(same))


async def test_a_new_key_counts_at_once_and_the_old_one_while_it_is_told(
    identity: KeycloakIdentity, realm: Realm
) -> None:
    await identity.authenticate(realm.token())
    realm.now += timedelta(seconds=20)
    realm.keys = [OTHER, KEY]

    assert await identity.authenticate(realm.token(OTHER))
    assert await identity.authenticate(realm.token())
    assert realm.asked == 2


async def test_a_withdrawn_key_counts_no_longer_than_minutes(
    identity: KeycloakIdentity, realm: Realm
) -> None:
    await identity.authenticate(realm.token())
    realm.keys = [OTHER]
    realm.now += timedelta(minutes=6)

    with pytest.raises(NotAuthentic, match="does not have"):
        await identity.authenticate(realm.token())


async def test_unknown_keys_do_not_make_us_ask_more_than_once_in_a_while(
    identity: KeycloakIdentity, realm: Realm
) -> None:
    for number in range(10):
        with pytest.raises(NotAuthentic, match="does not have"):
            await identity.authenticate(realm.token(OTHER, {"kid": f"made-up-{number}"}))

    assert realm.asked == 1


async def test_while_the_realm_is_away_known_keys_verify_and_others_cannot_be_judged(
    identity: KeycloakIdentity, realm: Realm
) -> None:
    await identity.authenticate(realm.token())
    realm.is_up = False
    realm.now += timedelta(hours=2)

    assert await identity.authenticate(realm.token())
    with pytest.raises(IdentityUnavailable):
        await identity.authenticate(realm.token(OTHER))

    realm.is_up, realm.keys = True, [OTHER, KEY]
    realm.now += timedelta(seconds=10)
    assert await identity.authenticate(realm.token(OTHER))


async def test_a_clock_that_was_set_back_stops_nothing(
    identity: KeycloakIdentity, realm: Realm
) -> None:
    await identity.authenticate(realm.token())
    realm.now -= timedelta(days=1)
    realm.keys = [OTHER]

    assert await identity.authenticate(realm.token(OTHER))


async def test_a_token_that_was_seen_is_refused_once_it_expires(
    identity: KeycloakIdentity, realm: Realm
) -> None:
    token = realm.token(exp=realm.now.timestamp() + 5)
    await identity.authenticate(token)
    realm.now += timedelta(seconds=15)

    with pytest.raises(NotAuthentic, match="has expired"):
        await identity.authenticate(token)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"organisation": None}, "no organisation"),
        ({"organisation": []}, "no organisation"),
        ({"organisation": ["a", "b"]}, "several organisations"),
        ({"organisation": [7]}, "organisation"),
        ({"organisation": 7}, "organisation"),
        ({"organisation": " "}, "cannot be one here"),
        ({"organisation": "a/b"}, "cannot be one here"),
        ({"realm_access": {"roles": ["offline_access"]}}, "no role"),
        ({"realm_access": None}, "no role"),
    ],
)
async def test_a_user_without_a_place_is_told_so(
    identity: KeycloakIdentity, realm: Realm, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(NotEntitled, match=why):
        await identity.authenticate(realm.token(**changes))


@pytest.mark.parametrize("said", ["hospital", ["hospital"], {"hospital": {"id": "x"}}])
async def test_an_organisation_may_be_told_in_each_of_keycloaks_ways(
    identity: KeycloakIdentity, realm: Realm, platform: Platform, said: Any
) -> None:
    who = await identity.authenticate(realm.token(organisation=said))

    row = await platform.database.one_or_none(
        select(ORGANISATION.c.name).where(ORGANISATION.c.id == who.organisation)
    )
    assert row is not None
    assert row.name == "hospital"


async def test_role_and_organisation_follow_the_token(
    identity: KeycloakIdentity, realm: Realm, platform: Platform, people: People
) -> None:
    before = await identity.authenticate(realm.token())
    after = await identity.authenticate(
        realm.token(organisation="home", realm_access={"roles": ["admin"]}, jti="2")
    )

    assert after.user == before.user
    assert (after.organisation, after.roles) == (people.admin.organisation, {Role.ADMIN})
    found = (await list_users(platform, after, 10)).items
    assert [user.name for user in found] == ["ada", "admin"]


async def test_users_of_one_name_are_told_apart(
    identity: KeycloakIdentity, realm: Realm, people: People, platform: Platform
) -> None:
    home = {"organisation": "home", "preferred_username": "admin"}
    first = await identity.authenticate(realm.token(**home))
    again = await identity.authenticate(realm.token(**home, jti="2"))

    assert first == again
    assert first.user != people.admin.user
    assert first.name.startswith("admin-")


async def test_an_organisation_cannot_take_a_name_that_a_collaboration_has(
    identity: KeycloakIdentity, realm: Realm, people: People, platform: Platform
) -> None:
    await add_organisation(platform, people.admin, NewOrganisation(name="partner"))
    await found_collaboration(
        platform, people.admin, NewCollaboration(name="hospital", organisations=("partner",))
    )

    with pytest.raises(NotEntitled, match="a collaboration has its name"):
        await identity.authenticate(realm.token())


async def test_users_of_the_realm_get_no_tokens_that_would_outlive_their_place(
    identity: KeycloakIdentity, realm: Realm, platform: Platform, people: People
) -> None:
    who = await identity.authenticate(realm.token(realm_access={"roles": ["admin"]}))

    for asking in (who, people.admin):
        with pytest.raises(Unacceptable, match="identity provider"):
            await add_token(platform, asking, NewToken(user=who.user))


async def test_roles_have_the_names_that_the_realm_gives_them(
    realm: Realm, platform: Platform
) -> None:
    settings = realm.settings.model_copy(update={"roles": {"ml": Role.OPERATOR}})

    async def taken(user: ExternalUser) -> Principal:
        return Principal(user=user.id, name=user.name, organisation="o", roles=user.roles)

    local = LocalIdentity(platform.database, lambda: realm.now)
    async with connected(settings, local=local, enrol=taken, now=lambda: realm.now) as identity:
        who = await identity.authenticate(realm.token(realm_access={"roles": ["ml", "admin"]}))

    assert who.roles == {Role.OPERATOR}
