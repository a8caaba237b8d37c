"""Logging in at an issuer that is played over a real socket."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from clients.errors import AnswerNotUnderstood, LoginRefused, NotSecure, Unreachable
from clients.oidc import DevicePrompt, Grant, OidcClient
from clients.sdk import Foedus
from clients.settings import Login, Session, read_login, write_login
from clients.tokens import ClientCredentials, KeptLogin
from tests.clients.cli_process import foedus
from tests.clients.scripted_server import Answer, Asked, Handler, Script, free_port, reply, serving
from tests.clients.scripted_server import value as answer
from tests.clients.test_transport import USER
from tests.clients.values import HASTY

PROMPT = {
    "device_code": "device-secret",
    "user_code": "ABCD-EFGH",
    "verification_uri": "http://127.0.0.1/device",
    "verification_uri_complete": "http://127.0.0.1/device?user_code=ABCD-EFGH",
    "expires_in": 60,
    "interval": 5,
}
GRANT = {"access_token": "access-1", "expires_in": 300, "refresh_token": "refresh-1"}


def endpoints(handler: Handler) -> None:
    url = handler.script.url
    answer(
        {
            "issuer": url,
            "token_endpoint": f"{url}/token",
            "device_authorization_endpoint": f"{url}/device",
            "revocation_endpoint": f"{url}/revoke",
        }
    )(handler)


def login_here(handler: Handler) -> None:
    answer({"issuer": handler.script.url, "client_id": "foedus-cli"})(handler)


def refused(error: str) -> Answer:
    return answer({"error": error, "error_description": f"said {error}"}, 400)


def form(asked: Asked) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(asked.body.decode()).items()}


class Clock:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def by_device(
    script: Script, clock: Clock, show: Callable[[DevicePrompt], None] = lambda _: None
) -> Grant:
    with OidcClient(script.url, 2.0) as client:
        return client.by_device("foedus-cli", show, sleep=clock.sleep, clock=clock)


def test_a_device_logs_in_once_the_person_has() -> None:
    shown: list[DevicePrompt] = []
    clock = Clock()
    pending = refused("authorization_pending")

    with serving(endpoints, answer(PROMPT), pending, pending, answer(GRANT)) as script:
        grant = by_device(script, clock, shown.append)

    assert (grant.access_token, grant.refresh_token) == ("access-1", "refresh-1")
    assert shown[0].user_code == "ABCD-EFGH"
    assert clock.slept == [5, 5, 5]
    begun, polled = form(script.asked[1]), form(script.asked[-1])
    assert begun["code_challenge_method"] == "S256"
    digest = hashlib.sha256(polled["code_verifier"].encode()).digest()
    assert begun["code_challenge"] == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    assert polled["device_code"] == "device-secret"
    assert "access-1" not in repr(grant)


def test_slow_down_slows_down_and_a_silent_issuer_doubles_the_pause() -> None:
    clock = Clock()
    slow = refused("slow_down")

    with serving(
        endpoints, answer({**PROMPT, "expires_in": 600}), slow, slow, reply(502), answer(GRANT)
    ) as script:
        by_device(script, clock)

    assert clock.slept == [5, 10, 15, 30]


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (refused("access_denied"), "denied in the browser"),
        (refused("expired_token"), "nobody confirmed"),
        (refused("invalid_grant"), "said invalid_grant"),
    ],
)
def test_a_device_login_that_fails_says_why(end: Answer, why: str) -> None:
    with (
        serving(endpoints, answer(PROMPT), end) as script,
        pytest.raises(LoginRefused, match=why) as caught,
    ):
        by_device(script, Clock())

    assert "device-secret" not in str(caught.value)


def test_a_code_that_nobody_confirms_is_given_up_without_being_told() -> None:
    pending = [refused("authorization_pending")] * 20

    with (
        serving(endpoints, answer(PROMPT), *pending) as script,
        pytest.raises(LoginRefused, match="nobody confirmed"),
    ):
        by_device(script, clock := Clock())

    assert clock.now <= 60


def test_a_client_that_may_not_is_told_so() -> None:
    with (
        serving(endpoints, refused("unauthorized_client")) as script,
        pytest.raises(LoginRefused, match="said unauthorized_client"),
    ):
        by_device(script, Clock())


def test_an_issuer_that_is_another_is_refused() -> None:
    said = {"issuer": "https://elsewhere", "token_endpoint": "https://elsewhere/token"}

    with serving(answer(said)) as script, pytest.raises(AnswerNotUnderstood):
        by_device(script, Clock())


def test_secrets_do_not_travel_in_the_clear() -> None:
    def plain(handler: Handler) -> None:
        said = {"issuer": handler.script.url, "token_endpoint": "http://10.0.0.1/token"}
        answer(said)(handler)

    with pytest.raises(NotSecure):
        OidcClient("http://10.0.0.1/realms/r", 1.0)
    with serving(plain) as script, pytest.raises(NotSecure):
        by_device(script, Clock())


def test_an_issuer_that_is_away_is_unreachable() -> None:
    with OidcClient(f"http://127.0.0.1:{free_port()}", 1.0) as client, pytest.raises(Unreachable):
        client.by_secret("machine", "secret")


def kept(path: Path, issuer: str, renew_at: float = 100.0) -> Login:
    session = Session(
        issuer=issuer, client_id="foedus-cli", refresh_token="refresh-0", renew_at=renew_at
    )
    login = Login("http://127.0.0.1:1", "access-0", session)
    write_login(path, login)
    return login


def test_a_kept_login_is_renewed_when_it_is_old_and_kept_again(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    clock = Clock()

    with serving(endpoints, answer(GRANT)) as script:
        source = KeptLogin(path, kept(path, script.url), timeout_s=2.0, now=clock)
        assert source() == "access-0"
        clock.now = 100.0
        assert source() == source() == "access-1"

    login = read_login(path)
    assert login is not None
    assert login.session is not None
    assert (login.token, login.session.refresh_token) == ("access-1", "refresh-1")
    assert login.session.renew_at == 100 + 300 - 20
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert form(script.asked[1])["refresh_token"] == "refresh-0"
    assert "refresh" not in repr(login)


def test_a_login_that_another_process_renewed_is_taken_from_there(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    clock = Clock()
    with serving() as script:
        source = KeptLogin(path, kept(path, script.url), timeout_s=2.0, now=clock)
        kept(path, script.url, renew_at=500.0)
        clock.now = 200.0

        assert source() == "access-0"


def test_a_login_that_has_ended_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    clock = Clock()
    clock.now = 200.0

    with serving(endpoints, refused("invalid_grant")) as script:
        source = KeptLogin(path, kept(path, script.url), timeout_s=2.0, now=clock)
        with pytest.raises(LoginRefused, match="foedus login --device"):
            source()

    path.unlink()
    with pytest.raises(LoginRefused, match="logged out"):
        source()


def test_a_machine_has_tokens_by_its_secret_and_renews_them() -> None:
    clock = Clock()
    grants = [{"access_token": f"access-{n}", "expires_in": 10} for n in (1, 2)]

    with serving(
        login_here, endpoints, answer(grants[0]), login_here, endpoints, answer(grants[1])
    ) as script:
        source = ClientCredentials(script.url, "machine", "machine-secret", now=clock)
        assert source() == source() == "access-1"
        clock.now = 6.0
        assert source() == "access-2"

    assert form(script.asked[2])["client_secret"] == "machine-secret"
    assert script.asked[0].headers.get("authorization") is None


def test_a_platform_without_an_issuer_says_so() -> None:
    with (
        serving(answer({"issuer": "", "client_id": ""})) as script,
        pytest.raises(LoginRefused, match="no identity provider"),
    ):
        ClientCredentials(script.url, "machine", "secret")()


def test_each_request_asks_for_a_token_that_is_good_then() -> None:
    tokens = iter(["access-1", "access-2"])

    with (
        serving(answer(USER), answer(USER)) as script,
        Foedus(script.url, lambda: next(tokens), patience=HASTY) as client,
    ):
        client.whoami()
        client.whoami()

    assert [asked.headers["authorization"] for asked in script.asked] == [
        "Bearer access-1",
        "Bearer access-2",
    ]


def test_logging_in_by_device_and_out_again(tmp_path: Path) -> None:
    prompt = answer({**PROMPT, "interval": 0})

    with serving(login_here, endpoints, prompt, answer(GRANT), answer(USER)) as script:
        done = foedus("login", "--device", "--url", script.url, home=tmp_path)

        assert done.returncode == 0, done.stderr
        assert "You are ada" in done.stdout
        assert "user_code=ABCD-EFGH" in done.stderr
        assert script.asked[-1].headers["authorization"] == "Bearer access-1"
        path = tmp_path / ".config" / "foedus" / "credentials.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

        script.answers.extend([endpoints, reply(200)])
        out = foedus("logout", home=tmp_path)

        assert out.returncode == 0, out.stderr
        assert form(script.asked[-1])["token"] == "refresh-1"
        assert not path.exists()
    assert foedus("logout", home=tmp_path).stdout == "You were not logged in.\n"


@pytest.mark.parametrize(
    ("env", "code", "told"),
    [
        ({}, 2, "its secret is missing"),
        ({"FOEDUS_CLIENT_SECRET_FILE": "missing"}, 2, "No such file"),
        ({"FOEDUS_CLIENT_SECRET": "wrong-secret"}, 4, "said unauthorized_client"),
    ],
)
def test_a_machine_that_cannot_log_in_is_told(
    tmp_path: Path, env: dict[str, str], code: int, told: str
) -> None:
    with serving(login_here, endpoints, refused("unauthorized_client")) as script:
        machine = {"FOEDUS_URL": script.url, "FOEDUS_CLIENT_ID": "machine", **env}
        done = foedus("capabilities", home=tmp_path, env=machine)

    assert done.returncode == code
    assert told in done.stderr
    assert "wrong-secret" not in done.stderr + done.stdout


def test_the_realm_file_is_the_one_that_the_command_writes(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "deploy" / "keycloak" / "realm.json"

    done = foedus("admin", "keycloak", "export", home=tmp_path)

    assert done.stdout == shipped.read_text(), "foedus admin keycloak export > deploy/..."


def test_the_secret_of_a_machine_is_not_handed_to_a_server(monkeypatch: Any) -> None:
    from clients.cli.platform import server_environment

    monkeypatch.setenv("FOEDUS_CLIENT_SECRET", "machine-secret")

    assert "machine-secret" not in server_environment(os.environ, {}).values()
