"""A real Keycloak, a realm of our own made by the product's own command, and real tokens."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import html
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from uuid import uuid4

import httpx
import msgspec
import pytest
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from keycloak import KeycloakAdmin

from clients.errors import Forbidden, LoginRefused, NotAuthenticated, RealmRefused
from clients.identity import IdentityUnavailable, NotAuthentic, NotEntitled
from clients.keycloak_realm import Realm, realm_document
from clients.resources import Role
from clients.sdk import Foedus
from clients.settings import read_login, write_login
from clients.tokens import ClientCredentials
from control_plane.enrolment import enrol
from control_plane.keycloak_identity import KeycloakIdentity, connected
from control_plane.local_identity import LocalIdentity
from control_plane.records.sqlite import open_sqlite
from control_plane.settings import KeycloakSettings
from tests.clients.cli_process import environment, foedus
from tests.cluster.conftest import services
from tests.cluster.faults import Faults
from tests.cluster.tcp_proxy import TcpProxy
from tests.e2e.real_server import RealServer, running

pytestmark = pytest.mark.anyio
PASSWORD = "of-tests-only"
HIDDEN = re.compile(r'type="hidden"[^>]*name="([^"]+)"[^>]*value="([^"]*)"')
ROLES = [role.value for role in Role]


@dataclass
class Lab:
    """The realm under test."""

    url: str
    name: str
    admin: KeycloakAdmin
    credentials: Mapping[str, str]
    realm: Realm

    @property
    def issuer(self) -> str:
        return f"{self.url}/realms/{self.name}"

    def grant(self, user: str, client: str = "tests", realm: str | None = None) -> dict[str, Any]:
        """Tokens by password, which only the client for tests may have so."""
        issuer = f"{self.url}/realms/{realm or self.name}"
        form = {
            "grant_type": "password",
            "client_id": client,
            "username": user,
            "password": PASSWORD if realm is None else f"{user}-test-only",
            "scope": "openid",
        }
        answer = httpx.post(f"{issuer}/protocol/openid-connect/token", data=form, trust_env=False)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def token(self, user: str, client: str = "tests", realm: str | None = None) -> str:
        return str(self.grant(user, client, realm)["access_token"])

    def keys(self) -> list[dict[str, Any]]:
        found = httpx.get(f"{self.issuer}/protocol/openid-connect/certs", trust_env=False).json()
        return [key for key in found["keys"] if key["use"] == "sig"]

    def add_user(self, name: str, organisation: str | None, *roles: str) -> str:
        user = self.admin.create_user(
            {
                "username": name,
                "enabled": True,
                "email": f"{name}@example.test",
                "emailVerified": True,
                "firstName": name,
                "lastName": name,
                "attributes": {"organisation": [organisation]} if organisation else {},
                "credentials": [{"type": "password", "value": PASSWORD, "temporary": False}],
            }
        )
        if roles:
            self.admin.assign_realm_roles(user, [self.admin.get_realm_role(r) for r in roles])
        return str(user)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    found = services("keycloak")
    name = f"foedus-test-{uuid4().hex[:12]}"
    url, user = found["LAB_KEYCLOAK_URL"], found["LAB_KEYCLOAK_ADMIN_USER"]
    password = found["LAB_KEYCLOAK_ADMIN_PASSWORD"]
    realm = Realm(url, name, user, password, allow_plain_http=False)
    admin = KeycloakAdmin(
        server_url=f"{url}/",
        username=user,
        password=password,
        realm_name=name,
        user_realm_name="master",
        timeout=30,
    )
    credentials = {
        "FOEDUS_KEYCLOAK_SERVER_URL": url,
        "FOEDUS_KEYCLOAK_REALM": name,
        "FOEDUS_KEYCLOAK_ADMIN_USER": user,
        "FOEDUS_KEYCLOAK_ADMIN_PASSWORD": password,
    }
    assert list(realm.bring_in(realm_document(name))) == [f"realm {name}: added"]
    made = Lab(url, name, admin, credentials, realm)
    try:
        cli = next(c for c in realm_document(name)["clients"] if c["clientId"] == "foedus-cli")
        by_password = {**cli, "attributes": {}, "directAccessGrantsEnabled": True}
        admin.create_client({**by_password, "clientId": "tests"})
        admin.create_client({**by_password, "clientId": "elsewhere", "protocolMappers": []})
        for role in ROLES:
            made.add_user(f"the-{role}", "acme", role)
        made.add_user("rival", "rivals", "developer", "operator", "admin")
        made.add_user("norole", "acme")
        made.add_user("homeless", None, "developer")
        admin.update_realm(name, {"oauth2DevicePollingInterval": 1})
        yield made
    finally:
        admin.delete_realm(name)


@dataclass
class Door:
    """The adapter, its clock, and the way to Keycloak."""

    identity: KeycloakIdentity
    proxy: TcpProxy
    ahead: list[timedelta] = field(default_factory=lambda: [timedelta()])


@pytest.fixture
async def door(lab: Lab, tmp_path: Path) -> AsyncIterator[Door]:
    proxy = TcpProxy(urlsplit(lab.url).port or 80)
    database = open_sqlite(tmp_path / "foedus.db")
    ahead = [timedelta()]

    def now() -> datetime:
        return datetime.now(UTC) + ahead[0]

    settings = KeycloakSettings(
        server_url=f"http://127.0.0.1:{proxy.port}", realm=lab.name, issuer=lab.issuer
    )
    local = LocalIdentity(database, now)
    taken = partial(enrol, database, now)
    async with connected(settings, local=local, enrol=taken, now=now) as identity:
        yield Door(identity, proxy, ahead)
    database.close()
    proxy.close()


def encoded(part: Any) -> str:
    content = part if isinstance(part, bytes) else msgspec.json.encode(part)
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def payload(token: str) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(
        base64.urlsafe_b64decode(token.split(".")[1] + "==")
    )
    return found


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_of_the_realm_is_ours(lab: Lab, door: Door, role: str) -> None:
    who = await door.identity.authenticate(lab.token(f"the-{role}"))

    assert (who.name, who.roles) == (f"the-{role}", {Role(role)})


async def test_users_of_one_organisation_share_it_and_others_do_not(lab: Lab, door: Door) -> None:
    acme = {
        (await door.identity.authenticate(lab.token(f"the-{role}"))).organisation for role in ROLES
    }
    rival = await door.identity.authenticate(lab.token("rival"))

    assert len(acme) == 1
    assert rival.organisation not in acme


async def test_who_has_no_place_is_told_so(lab: Lab, door: Door) -> None:
    with pytest.raises(NotEntitled, match="no role"):
        await door.identity.authenticate(lab.token("norole"))
    with pytest.raises(NotEntitled, match="no organisation"):
        await door.identity.authenticate(lab.token("homeless"))


def test_no_user_can_change_their_own_organisation(lab: Lab) -> None:
    headers = {"Authorization": f"Bearer {lab.token('rival')}", "Accept": "application/json"}
    account = httpx.get(f"{lab.issuer}/account", headers=headers, trust_env=False).json()
    changed = {**account, "attributes": {"organisation": ["acme"]}}

    refused = httpx.post(f"{lab.issuer}/account", headers=headers, json=changed, trust_env=False)

    assert refused.status_code == 400
    assert payload(lab.token("rival"))["organisation"] == "rivals"


async def test_an_expired_token_is_refused_and_one_that_lives_for_seconds_is_not(
    lab: Lab, door: Door
) -> None:
    lab.admin.update_realm(lab.name, {"accessTokenLifespan": 2})
    try:
        short = lab.token("the-developer")
    finally:
        lab.admin.update_realm(lab.name, {"accessTokenLifespan": 300})
    assert await door.identity.authenticate(short)

    await asyncio.sleep(3)
    door.ahead[0] = timedelta(seconds=11)

    with pytest.raises(NotAuthentic, match="has expired"):
        await door.identity.authenticate(short)


def forged(lab: Lab, how: str) -> str:
    """The developer's token, made into an administrator's of the platform."""
    good = lab.token("the-developer")
    claims = {**payload(good), "organisation": "home", "realm_access": {"roles": ["admin"]}}
    key = lab.keys()[0]
    own = JWK.generate(kty="RSA", size=2048)
    match how:
        case "alg=none":
            return f"{encoded({'alg': 'none', 'kid': key['kid']})}.{encoded(claims)}."
        case "HS256 with the public key":
            head = f"{encoded({'alg': 'HS256', 'kid': key['kid']})}.{encoded(claims)}"
            pem = JWK(**key).export_to_pem()
            return f"{head}.{encoded(hmac.new(pem, head.encode(), hashlib.sha256).digest())}"
        case "other claims":
            head, _, signature = good.split(".")
            return f"{head}.{encoded(claims)}.{signature}"
        case "another key under the known id":
            kid = key["kid"]
        case _:
            kid = "unknown"
    jws = JWS(msgspec.json.encode(claims))
    jws.add_signature(own, protected=msgspec.json.encode({"alg": "RS256", "kid": kid}).decode())
    return str(jws.serialize(compact=True))


@pytest.mark.parametrize(
    "how",
    [
        "alg=none",
        "HS256 with the public key",
        "other claims",
        "another key under the known id",
        "an unknown key",
    ],
)
async def test_a_forged_token_is_refused(lab: Lab, door: Door, how: str) -> None:
    with pytest.raises(NotAuthentic):
        await door.identity.authenticate(forged(lab, how))


async def test_a_token_for_another_service_is_refused(lab: Lab, door: Door) -> None:
    with pytest.raises(NotAuthentic, match="audience lacks foedus-api"):
        await door.identity.authenticate(lab.token("the-admin", client="elsewhere"))


async def test_a_token_of_another_realm_is_refused(lab: Lab, door: Door) -> None:
    with pytest.raises(NotAuthentic, match="another realm"):
        await door.identity.authenticate(lab.token("admin1", "lab-test", realm="lab"))

    assert door.proxy.num_connections == 0


@pytest.mark.parametrize("kind", ["id_token", "refresh_token"])
async def test_other_tokens_of_the_realm_are_refused(lab: Lab, door: Door, kind: str) -> None:
    with pytest.raises(NotAuthentic):
        await door.identity.authenticate(lab.grant("the-admin")[kind])


async def test_keys_are_rotated_and_withdrawn(lab: Lab, door: Door) -> None:
    old = lab.token("the-developer")
    await door.identity.authenticate(old)
    door.ahead[0] = timedelta(seconds=11)
    added = lab.admin.create_component(
        {
            "name": "rotated",
            "providerId": "rsa-generated",
            "providerType": "org.keycloak.keys.KeyProvider",
            "config": {"priority": ["200"], "enabled": ["true"], "active": ["true"]},
        }
    )
    try:
        new = lab.token("the-developer")
        assert _kid(new) != _kid(old)
        assert await door.identity.authenticate(new)
        door.identity.forget()
        assert await door.identity.authenticate(old)
    finally:
        lab.admin.delete_component(added)

    door.identity.forget()
    assert await door.identity.authenticate(new), "known until the keys are fetched again"
    door.ahead[0] = timedelta(seconds=290)
    door.identity.forget()
    assert await door.identity.authenticate(lab.token("the-developer"))
    door.ahead[0] += timedelta(minutes=5)
    with pytest.raises(NotAuthentic):
        await door.identity.authenticate(new)


def _kid(token: str) -> str:
    return str(msgspec.json.decode(base64.urlsafe_b64decode(token.split(".")[0] + "=="))["kid"])


async def test_while_keycloak_is_down_known_keys_verify(
    lab: Lab, door: Door, faults: Faults
) -> None:
    await door.identity.authenticate(lab.token("the-developer"))
    other = lab.token("the-operator")
    door.proxy.shut()
    door.ahead[0] = timedelta(seconds=250)

    assert (await door.identity.authenticate(other)).name == "the-operator"
    with pytest.raises(IdentityUnavailable):
        await door.identity.authenticate(forged(lab, "an unknown key"))

    door.proxy.open()
    began = time.monotonic()
    door.ahead[0] += timedelta(seconds=11)
    with pytest.raises(NotAuthentic, match="does not have"):
        await door.identity.authenticate(forged(lab, "an unknown key"))
    outcome = "known keys verify, others are judged when it is back"
    needed_s = time.monotonic() - began
    faults.record("Keycloak is down", outcome, needed_s, within_s=5, runs=3, lost=0)


async def test_nobody_can_be_judged_before_keycloak_was_reached_once(lab: Lab, door: Door) -> None:
    token = lab.token("the-developer")
    door.proxy.shut()

    with pytest.raises(IdentityUnavailable):
        await door.identity.authenticate(token)


async def test_forged_keys_do_not_make_us_ask_keycloak_each_time(lab: Lab, door: Door) -> None:
    token = forged(lab, "an unknown key")
    for _ in range(20):
        with pytest.raises(NotAuthentic):
            await door.identity.authenticate(token)

    assert door.proxy.num_connections == 1


def test_bringing_the_realm_in_again_changes_what_differs_alone(lab: Lab, tmp_path: Path) -> None:
    def bring_in() -> list[str]:
        done = foedus("admin", "keycloak", "import", home=tmp_path, env=lab.credentials)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert bring_in() == [f"realm {lab.name}: nothing to change"]

    client = lab.admin.get_client_id("foedus-cli")
    assert client is not None
    mapper = lab.admin.get_mappers_from_client(client)[0]
    lab.admin.remove_client_mapper(client, mapper["id"])
    lab.admin.update_client(client, {"standardFlowEnabled": True, "description": "kept"})
    profile = lab.admin.get_realm_users_profile()
    profile["attributes"][-1]["permissions"]["edit"].append("user")
    lab.admin.update_realm_users_profile(profile)

    assert bring_in() == [
        "client foedus-cli: changed standardFlowEnabled",
        f"client foedus-cli: mapper {mapper['name']} added",
        "user attribute organisation: changed",
    ]
    assert bring_in() == [f"realm {lab.name}: nothing to change"]
    assert lab.admin.get_client(client)["description"] == "kept"


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ({"FOEDUS_KEYCLOAK_ADMIN_PASSWORD": "wrong-secret"}, 4, "administrator or password"),
        ({"FOEDUS_KEYCLOAK_SERVER_URL": "http://127.0.0.1:1"}, 5, "does not answer"),
        ({"FOEDUS_KEYCLOAK_SERVER_URL": "http://10.0.0.1"}, 3, "in the clear"),
        ({"FOEDUS_KEYCLOAK_ADMIN_PASSWORD": ""}, 2, "not set"),
    ],
)
def test_a_realm_that_cannot_be_brought_in_is_told(
    lab: Lab, tmp_path: Path, change: dict[str, str], code: int, told: str
) -> None:
    env = {**lab.credentials, **change}

    done = foedus("admin", "keycloak", "import", home=tmp_path, env=env)

    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "wrong-secret" not in done.stderr


@pytest.fixture(scope="module")
def server(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server")
    settings = {
        "FOEDUS_IDENTITY": "keycloak",
        "KEYCLOAK_SERVER_URL": f"{lab.url}/",
        "KEYCLOAK_REALM": lab.name,
    }
    with running(folder, **settings) as server:
        yield server


def test_a_whole_server_takes_tokens_of_the_realm_beside_its_own(
    lab: Lab, server: RealServer
) -> None:
    with Foedus(server.url, lab.token("the-developer")) as client:
        assert client.whoami().roles == (Role.DEVELOPER,)
    with server.client() as client:
        assert client.whoami().name == "admin"
    with Foedus(server.url, lab.token("norole")) as client, pytest.raises(Forbidden):
        client.whoami()
    with (
        Foedus(server.url, forged(lab, "alg=none")) as client,
        pytest.raises(NotAuthenticated),
    ):
        client.whoami()


def test_a_machine_logs_in_by_its_secret(lab: Lab, server: RealServer, tmp_path: Path) -> None:
    made = foedus(
        *("admin", "keycloak", "machine", "night-run", "--organisation", "acme"),
        *("--role", "operator"),
        home=tmp_path,
        env=lab.credentials,
    )
    assert made.returncode == 0, made.stderr
    secret = tmp_path / "secret"
    secret.write_text(made.stdout)
    machine = {"FOEDUS_URL": server.url, "FOEDUS_CLIENT_ID": "night-run"}

    done = foedus("jobs", home=tmp_path, env={**machine, "FOEDUS_CLIENT_SECRET_FILE": str(secret)})

    assert done.returncode == 0, done.stderr
    with Foedus(
        server.url, ClientCredentials(server.url, "night-run", made.stdout.strip())
    ) as client:
        assert client.whoami().roles == (Role.OPERATOR,)
    wrong = foedus("jobs", home=tmp_path, env={**machine, "FOEDUS_CLIENT_SECRET": "wrong-secret"})
    assert wrong.returncode == 4
    assert "wrong-secret" not in wrong.stderr
    with pytest.raises(RealmRefused, match="exists"):
        lab.realm.add_machine("night-run", "acme", ["operator"])


def confirm_in_browser(url: str, user: str, button: str = "accept") -> str:
    """Follow the device page as a person would; the last page.

    Keycloak marks its cookies as secure although this is plain http on this machine, where
    browsers return them all the same.
    """
    with httpx.Client(trust_env=False) as browser:
        page = browser.get(url)
        for _ in range(12):
            for cookie in browser.cookies.jar:
                cookie.secure = False
            if page.is_redirect:
                page = browser.get(urljoin(str(page.url), page.headers["location"]))
                continue
            form = re.search(r'<form[^>]*action="([^"]+)"', page.text)
            if form is None:
                return page.text
            action = urljoin(str(page.url), html.unescape(form[1]))
            fields = dict(
                re.findall(r'type="hidden"[^>]*name="([^"]+)"[^>]*value="([^"]*)"', page.text)
            )
            if 'name="password"' in page.text:
                fields |= {"username": user, "password": PASSWORD}
            elif 'name="accept"' in page.text:
                fields[button] = "on"
            page = browser.post(action, data=fields)
        return page.text


@contextlib.contextmanager
def logging_in(server: RealServer, home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`foedus login --device` while it waits, and the address that it shows."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clients.cli", "login", "--device", "--url", server.url],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        shown = process.stderr.readline()
        assert "Open in a browser" in shown, shown + process.stderr.read()
        yield process, shown.split()[-1]
    finally:
        process.kill()
        process.wait()


def test_a_person_logs_in_by_device_stays_so_and_logs_out(
    lab: Lab, server: RealServer, tmp_path: Path
) -> None:
    with logging_in(server, tmp_path) as (process, url):
        last = confirm_in_browser(url, "the-developer")
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (err, last)
    assert "You are the-developer" in out
    path = tmp_path / ".config" / "foedus" / "credentials.json"
    assert path.stat().st_mode & 0o777 == 0o600

    assert foedus("jobs", home=tmp_path).returncode == 0
    before = read_login(path)
    assert before is not None
    assert before.session is not None
    old = msgspec.structs.replace(
        before, session=msgspec.structs.replace(before.session, renew_at=0.0)
    )
    write_login(path, old)
    assert foedus("jobs", home=tmp_path).returncode == 0
    after = read_login(path)
    assert after is not None
    assert after.token != before.token

    out_again = foedus("logout", home=tmp_path)
    assert out_again.returncode == 0, out_again.stderr
    assert not path.exists()
    write_login(path, old)
    ended = foedus("jobs", home=tmp_path)
    assert ended.returncode == 4
    assert "foedus login --device" in ended.stderr


def test_a_login_that_is_denied_in_the_browser_ends(
    lab: Lab, server: RealServer, tmp_path: Path
) -> None:
    with logging_in(server, tmp_path) as (process, url):
        confirm_in_browser(url, "the-operator", button="cancel")
        _, err = process.communicate(timeout=60)

    assert process.returncode == 4
    assert "denied" in err
    assert not (tmp_path / ".config" / "foedus" / "credentials.json").exists()


def test_a_user_who_was_disabled_gets_no_new_token(lab: Lab, tmp_path: Path) -> None:
    from clients.oidc import OidcClient

    user = lab.add_user("leaver", "acme", "developer")
    grant = lab.grant("leaver")
    lab.admin.update_user(user, {"enabled": False})

    with OidcClient(lab.issuer, 10.0) as client, pytest.raises(LoginRefused, match="has ended"):
        client.by_refresh("tests", grant["refresh_token"])


def test_the_lab_is_the_one_that_was_asked_for() -> None:
    assert Path(os.environ["FOEDUS_LAB"], "services", "up").is_file()
