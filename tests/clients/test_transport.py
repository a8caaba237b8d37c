from __future__ import annotations

import threading
import time

import pytest

from clients.errors import (
    AnswerNotUnderstood,
    ApiError,
    Conflict,
    Forbidden,
    NotAuthenticated,
    NotFound,
    NotSecure,
    Refused,
    ServerFailed,
    Unavailable,
    Unreachable,
)
from clients.resources import NewToken
from clients.sdk import Foedus
from clients.transport import Patience, is_loopback
from tests.clients.scripted_server import (
    Handler,
    free_port,
    hang_up,
    problem,
    reply,
    serving,
    value,
)
from tests.clients.values import JOB, SPEC, client

USER = {
    "id": "user-1",
    "name": "ada",
    "organisation": "organisation-1",
    "roles": ["developer"],
    "created_at": "2026-01-01T00:00:00Z",
}


def test_a_token_travels_in_the_authorization_header() -> None:
    with serving(value(USER)) as script, client(script.url) as foedus:
        assert foedus.whoami().name == "ada"

    assert script.asked[0].headers["authorization"] == "Bearer foedus_secret"


def test_a_server_that_is_away_is_asked_again() -> None:
    away = problem(503, "database-unavailable", retryable=True)

    with serving(away, away, value(USER)) as script, client(script.url) as foedus:
        assert foedus.whoami().name == "ada"

    assert len(script.asked) == 3


def test_retry_after_is_honoured() -> None:
    busy = reply(429, b"{}", Retry_After="1")
    patience = Patience(first_s=0.01, longest_s=0.01, total_s=5.0)

    with serving(busy, value(USER)) as script, client(script.url, patience) as foedus:
        before = time.monotonic()
        foedus.whoami()

    assert time.monotonic() - before >= 1.0


def test_patience_ends_when_retry_after_lies_beyond_it() -> None:
    busy = reply(503, b"{}", Retry_After="3600")

    with serving(busy) as script, client(script.url) as foedus, pytest.raises(Unavailable):
        foedus.whoami()


def test_a_server_that_starts_late_is_waited_for() -> None:
    port = free_port()
    found: list[str] = []
    patience = Patience(first_s=0.01, longest_s=0.02, total_s=20.0)

    def ask() -> None:
        with client(f"http://127.0.0.1:{port}", patience) as foedus:
            found.append(foedus.whoami().name)

    asking = threading.Thread(target=ask)
    asking.start()
    with serving(value(USER), port=port):
        asking.join(20)

    assert found == ["ada"]


def test_nobody_there_is_unreachable_and_says_what_to_do() -> None:
    with (
        client(f"http://127.0.0.1:{free_port()}") as foedus,
        pytest.raises(Unreachable, match="foedus serve"),
    ):
        foedus.whoami()


def test_a_submission_is_repeated_under_one_key_with_one_body() -> None:
    with serving(hang_up, value(JOB, 202)) as script, client(script.url) as foedus:
        assert foedus.submit(SPEC).id == "job-1"

    first, second = script.asked
    assert len(first.headers["idempotency-key"]) >= 8
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body


def test_two_submissions_have_two_keys() -> None:
    with serving(value(JOB, 202), value(JOB, 202)) as script, client(script.url) as foedus:
        foedus.submit(SPEC)
        foedus.submit(SPEC)

    first, second = script.asked
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]


def test_what_may_not_be_done_twice_is_asked_once() -> None:
    with (
        serving(hang_up, hang_up) as script,
        client(script.url) as foedus,
        pytest.raises(Unreachable),
    ):
        foedus.tokens.make(NewToken(label="ci"))

    assert len(script.asked) == 1


def test_a_silent_server_is_given_up() -> None:
    release = threading.Event()

    def silence(_: Handler) -> None:
        release.wait(30)

    patience = Patience(first_s=0.01, longest_s=0.01, total_s=0.0)
    with serving(silence) as script, client(script.url, patience, timeout_s=0.1) as foedus:
        with pytest.raises(Unreachable, match="too long"):
            foedus.whoami()
        release.set()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Refused),
        (401, NotAuthenticated),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (412, Conflict),
        (413, Refused),
        (416, Refused),
        (422, Refused),
        (500, ServerFailed),
        (507, Unavailable),
    ],
)
def test_a_problem_becomes_the_error_of_its_status(status: int, kind: type[ApiError]) -> None:
    refusal = problem(status, "some-slug", detail="why", hint="how", fields=["a.b"])

    with (
        serving(refusal) as script,
        client(script.url) as foedus,
        pytest.raises(ApiError) as caught,
    ):
        foedus.whoami()

    assert type(caught.value) is kind
    assert caught.value.slug == "some-slug"
    assert caught.value.problem.fields == ("a.b",)
    assert "why" in str(caught.value)


def test_an_answer_of_another_server_is_told_apart() -> None:
    with (
        serving(reply(404, b"<html>")) as script,
        client(script.url) as foedus,
        pytest.raises(NotFound) as caught,
    ):
        foedus.whoami()

    assert "not from a Foedus server" in caught.value.problem.hint


def test_an_answer_that_cannot_be_read_is_told() -> None:
    with (
        serving(reply(200, b"<html>")) as script,
        client(script.url) as foedus,
        pytest.raises(AnswerNotUnderstood),
    ):
        foedus.whoami()


def test_a_redirect_is_not_followed_so_that_the_token_stays() -> None:
    with serving() as elsewhere:
        moved = reply(302, Location=f"{elsewhere.url}/v1/whoami")
        with serving(moved) as script, client(script.url) as foedus, pytest.raises(Refused):
            foedus.whoami()

        assert elsewhere.asked == []


def test_a_token_does_not_travel_in_the_clear_to_another_machine() -> None:
    with pytest.raises(NotSecure, match="https"):
        Foedus("http://foedus.example:8470", "foedus_secret")

    Foedus("http://foedus.example:8470", "foedus_secret", allow_plain_http=True).close()
    Foedus("https://foedus.example", "foedus_secret").close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8470", True),
        ("http://[::1]:8470", True),
        ("http://localhost", True),
        ("http://localhost.example", False),
        ("http://127.0.0.1.example", False),
        ("http://10.0.0.1", False),
    ],
)
def test_this_machine_is_known_by_its_loopback_names(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)

    with serving(value(USER)) as script, client(script.url) as foedus:
        assert foedus.whoami().name == "ada"


def test_pauses_double_up_to_the_longest() -> None:
    patience = Patience(first_s=0.1, longest_s=1.0, total_s=60.0)

    assert [patience.pause_s(n) for n in (1, 2, 3, 4, 5, 10_000)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
