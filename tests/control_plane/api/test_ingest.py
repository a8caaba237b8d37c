from __future__ import annotations

import pytest

from sharing.object_store import digest_of
from tests.control_plane.api.conftest import Attempt, Server
from tests.control_plane.api.test_jobs import problem


@pytest.fixture
def attempt(server: Server) -> Attempt:
    """The first attempt of a job of its own."""
    return server.attempt(server.submit())


def test_events_are_taken_once(server: Server, attempt: Attempt) -> None:
    started = {"step": "federate", "events": [{"kind": "step.started", "number": 1, "at": 1.0}]}

    for _ in range(3):
        answer = server.call("POST", f"{attempt.at}/events", token=attempt.token, json=started)
        assert answer.json() == {"acknowledged": 1}

    kinds = [e["kind"] for e in server.get(f"/v1/jobs/{attempt.plan.job}/events").json()["items"]]
    assert kinds.count("step.started") == 1


def test_a_gap_is_refused(server: Server, attempt: Attempt) -> None:
    late = {"step": "federate", "events": [{"kind": "step.started", "number": 2, "at": 1.0}]}

    answer = server.call("POST", f"{attempt.at}/events", token=attempt.token, json=late)

    problem(answer, 409, "event-gap")


def test_an_unknown_kind_of_event_is_refused(server: Server, attempt: Attempt) -> None:
    odd = {"step": "federate", "events": [{"kind": "step.dreamt", "number": 1, "at": 1.0}]}

    answer = server.call("POST", f"{attempt.at}/events", token=attempt.token, json=odd)

    told = problem(answer, 400, "undecodable")
    assert told["fields"] == ["events[0].kind"]
    assert "step.started" in told["hint"]


def test_objects_go_in_once_and_come_out(server: Server, attempt: Attempt) -> None:
    content = b"x" * 100_000
    at = f"{attempt.at}/objects/{digest_of(content)}"

    first = server.call("PUT", at, token=attempt.token, content=content)
    again = server.call("PUT", at, token=attempt.token, content=content)
    size = server.call("HEAD", at, token=attempt.token)
    back = server.call("GET", at, token=attempt.token)

    assert (first.status_code, again.status_code) == (201, 200)
    assert size.headers["content-length"] == "100000"
    assert size.content == b""
    assert back.content == content


def test_other_bytes_than_the_digest_says_are_refused(server: Server, attempt: Attempt) -> None:
    at = f"{attempt.at}/objects/{digest_of(b'what it should be')}"

    problem(server.call("PUT", at, token=attempt.token, content=b"x"), 422, "object-corrupt")
    problem(server.call("GET", at, token=attempt.token), 404, "object-missing")


@pytest.mark.parametrize("name", ["sha256:abc", "..%2F..%2Ffoedus.db", "x"])
def test_only_digests_name_objects(server: Server, attempt: Attempt, name: str) -> None:
    answer = server.call("GET", f"{attempt.at}/objects/{name}", token=attempt.token)

    assert answer.status_code == 404


def test_an_attempt_reads_objects_of_its_job_only(server: Server, attempt: Attempt) -> None:
    other = server.attempt(server.submit())
    digest = other.put(b"of the other job alone")

    answer = server.call("GET", f"{attempt.at}/objects/{digest}", token=attempt.token)

    problem(answer, 404, "object-missing")


def test_a_token_is_good_for_its_attempt_alone(server: Server, attempt: Attempt) -> None:
    other = server.attempt(server.submit())

    for path in (f"{other.at}/objects/{digest_of(b'')}", "/v1/attempts/job-none/1/objects/x"):
        problem(server.call("GET", path, token=attempt.token), 401, "not-authentic")
    problem(server.call("GET", "/v1/jobs", token=attempt.token), 401, "not-authentic")
    at = f"{attempt.at}/objects/{digest_of(b'')}"
    problem(server.call("GET", at), 401, "not-authentic")


def test_a_closed_job_hears_no_attempt(server: Server, attempt: Attempt) -> None:
    job = attempt.plan.job
    server.cancel(job)

    answer = attempt.tell("federate", {"kind": "step.started"})
    again = attempt.tell("federate", {"kind": "step.started"})

    problem(answer, 409, "fenced")
    problem(again, 409, "fenced")


def test_a_log_part_beyond_the_limit_is_refused(server: Server, attempt: Attempt) -> None:
    at = f"{attempt.at}/logs/federate?offset=0"

    answer = server.call("PUT", at, token=attempt.token, content=b"x" * 70_000)

    problem(answer, 413, "body-too-large")
