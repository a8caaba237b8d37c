from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from clients.resources import Event, Job, Page, Round
from tests.control_plane.api.conftest import JOB, Server
from workflows.run import Phase


def problem(answer: Any, status: int, slug: str) -> dict[str, Any]:
    """The problem in ``answer``, which must be this one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    told: dict[str, Any] = answer.json()
    assert told["type"] == f"https://foedus.dev/problems/{slug}", told
    assert told["status"] == status
    assert told["trace_id"] == answer.headers["x-request-id"]
    return told


def events_of(text: str) -> list[Event]:
    return [
        msgspec.json.decode(line.removeprefix("data: "), type=Event)
        for line in text.splitlines()
        if line.startswith("data: ")
    ]


def test_a_submitted_job_is_there(server: Server) -> None:
    answer = server.call("POST", "/v1/jobs", json=JOB)

    assert answer.status_code == 202
    job = msgspec.json.decode(answer.content, type=Job)
    assert job.phase in (Phase.PENDING, Phase.ADMITTED)
    assert job.waits_for
    assert answer.headers["location"] == f"/v1/jobs/{job.id}"
    read = server.get(answer.headers["location"])
    assert msgspec.json.decode(read.content, type=Job).spec == job.spec
    server.cancel(job.id)


def test_a_dry_run_records_nothing(server: Server) -> None:
    before = server.get("/v1/jobs?name=dry").json()["items"]

    answer = server.call("POST", "/v1/jobs?dryRun=true", json={**JOB, "name": "dry"})

    assert answer.status_code == 200
    assert answer.json()["steps"].keys() == {"federate", "translate", "publish"}
    assert server.get("/v1/jobs?name=dry").json()["items"] == before == []


def test_the_same_key_and_body_are_one_job(server: Server) -> None:
    key = {"Idempotency-Key": "a-key-of-mine"}

    first = server.call("POST", "/v1/jobs", json=JOB, headers=key)
    again = server.call("POST", "/v1/jobs", json=JOB, headers=key)
    other = server.call("POST", "/v1/jobs", json={**JOB, "rounds": 3}, headers=key)

    assert first.status_code == again.status_code == 202
    assert first.json()["id"] == again.json()["id"]
    problem(other, 422, "idempotency-key-reused")
    server.cancel(first.json()["id"])


def test_a_key_too_short_to_be_one_is_refused(server: Server) -> None:
    answer = server.call("POST", "/v1/jobs", json=JOB, headers={"Idempotency-Key": "short"})

    told = problem(answer, 400, "undecodable")
    assert "idempotency" in str(told["fields"]).lower()


@pytest.mark.parametrize(
    ("change", "field", "mend"),
    [
        pytest.param({"round": 3}, "round", "rounds", id="unknown field"),
        pytest.param({"strategy": {"kind": "fedsgd"}}, "strategy.kind", "fed", id="unknown kind"),
        pytest.param({"rounds": "3"}, "rounds", "", id="text where a number belongs"),
    ],
)
def test_what_cannot_be_read_names_field_and_mend(
    server: Server, change: dict[str, Any], field: str, mend: str
) -> None:
    told = problem(server.call("POST", "/v1/jobs", json={**JOB, **change}), 400, "undecodable")

    assert told["fields"] == [field]
    assert mend in told["hint"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"runtime": {"kind": "tff"}}, "runtime.kind", id="a runtime that is not here"),
        pytest.param({"runtime": {"kind": "native", "mode": "sites"}}, "runtime.mode", id="mode"),
        pytest.param(
            {"privacy": [{"kind": "dp-sgd", "epsilon": 8, "delta": 1e-6}]}, "privacy", id="privacy"
        ),
        pytest.param(
            {"ring": {"fraction_bits": 40, "magnitude": 1e3}}, "ring", id="a sum could wrap"
        ),
        pytest.param(
            {"data": {"kind": "partitioned", "dataset": "digits", "sites": 50_000}},
            "data.sites",
            id="more sites than samples",
        ),
        pytest.param(
            {"program": {"kind": "builtin", "name": "digits-cmm"}}, "program", id="no such program"
        ),
        pytest.param(
            {"data": {"kind": "partitioned", "dataset": "didgits"}}, "data", id="no such data"
        ),
        pytest.param({"cohort": {"size": 9}}, "cohort.size", id="a cohort beyond the sites"),
    ],
)
def test_what_cannot_run_names_field_and_mend(
    server: Server, change: dict[str, Any], field: str
) -> None:
    answer = server.call("POST", "/v1/jobs", json={**JOB, **change})

    assert answer.status_code == 422, answer.text
    told = answer.json()
    assert told["type"].rpartition("/")[2] in ("job-inconsistent", "job-unsupported")
    assert any(named.startswith(field) for named in told["fields"]), told
    assert told["hint"]


def test_an_empty_and_an_oversize_body_are_refused(server: Server) -> None:
    problem(server.call("POST", "/v1/jobs"), 400, "undecodable")
    problem(server.call("POST", "/v1/jobs", content=b"{"), 400, "undecodable")
    huge = {**JOB, "program": {**JOB["program"], "config": {"x": "y" * 70_000}}}
    problem(server.call("POST", "/v1/jobs", json=huge), 413, "body-too-large")


def test_a_list_is_walked_page_by_page(server: Server) -> None:
    made = [server.submit(name="walked") for _ in range(5)]
    seen: list[str] = []

    path = "/v1/jobs?name=walked&limit=2"
    while path:
        answer = server.get(path)
        page = msgspec.json.decode(answer.content, type=Page[Job])
        seen += [job.id for job in page.items]
        assert (page.next is None) == ("link" not in answer.headers)
        link = answer.headers.get("link", "")
        path = link.partition(">")[0].lstrip("<")

    assert seen == sorted(made, reverse=True)
    for job in made:
        server.cancel(job)


def test_a_tampered_cursor_is_refused(server: Server, stranger: str) -> None:
    made = [server.submit(name="tampered") for _ in range(2)]
    cursor = server.get("/v1/jobs?name=tampered&limit=1").json()["next"]

    tampered = ("B" if cursor[0] == "A" else "A") + cursor[1:]
    for path in (
        f"/v1/jobs?name=tampered&cursor={tampered}",
        f"/v1/jobs?name=other&cursor={cursor}",
        f"/v1/models?cursor={cursor}",
        "/v1/jobs?cursor=",
        "/v1/jobs?cursor=%00%ff",
    ):
        problem(server.get(path), 400, "cursor-invalid")
    foreign = server.get(f"/v1/jobs?name=tampered&cursor={cursor}", token=stranger)
    problem(foreign, 400, "cursor-invalid")
    for job in made:
        server.cancel(job)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=many", "phase=asleep"], ids=lambda query: query
)
def test_parameters_are_checked(server: Server, query: str) -> None:
    told = problem(server.get(f"/v1/jobs?{query}"), 400, "undecodable")

    assert told["fields"] == [query.partition("=")[0]]


def test_a_job_that_is_known_is_not_sent_again(server: Server) -> None:
    job = server.submit()
    server.attempt(job)
    server.until(lambda: server.get(f"/v1/jobs/{job}").json()["phase"] == "provisioning")

    first = server.get(f"/v1/jobs/{job}")
    again = server.get(f"/v1/jobs/{job}", headers={"If-None-Match": first.headers["etag"]})
    server.attempt(job).tell("federate", {"kind": "step.started"})
    later = server.get(f"/v1/jobs/{job}", headers={"If-None-Match": first.headers["etag"]})

    assert (again.status_code, again.content) == (304, b"")
    assert later.status_code == 200
    assert later.headers["etag"] != first.headers["etag"]
    server.cancel(job)


def test_only_the_version_one_means_is_cancelled(server: Server) -> None:
    job = server.submit()
    stale = {"If-Match": '"0"'}

    refused = server.call("PATCH", f"/v1/jobs/{job}", json={"desired": "cancelled"}, headers=stale)

    problem(refused, 412, "precondition-failed")
    server.cancel(job)


def test_cancelling_is_repeatable_and_final(server: Server) -> None:
    job = server.submit()
    server.cancel(job)

    again = server.call("PATCH", f"/v1/jobs/{job}", json={"desired": "cancelled"})
    back = server.call("PATCH", f"/v1/jobs/{job}", json={"desired": "run"})

    assert again.status_code == 200
    assert back.status_code == 409
    assert again.json()["waits_for"] == ""


def test_an_open_job_is_not_deleted_and_a_closed_one_is(server: Server) -> None:
    job = server.submit()

    problem(server.call("DELETE", f"/v1/jobs/{job}"), 409, "job-open")
    server.cancel(job)
    server.until(lambda: server.call("DELETE", f"/v1/jobs/{job}").status_code == 204)

    problem(server.get(f"/v1/jobs/{job}"), 404, "not-found")


def test_rounds_and_events_are_listed_oldest_first(server: Server) -> None:
    job = server.submit(rounds=3)
    attempt = server.attempt(job)
    attempt.tell("federate", {"kind": "step.started"})
    for number in (1, 2, 3):
        attempt.finish_round(number)

    rounds = msgspec.json.decode(server.get(f"/v1/jobs/{job}/rounds").content, type=Page[Round])
    tail = msgspec.json.decode(
        server.get(f"/v1/jobs/{job}/rounds?after=2").content, type=Page[Round]
    )
    events = msgspec.json.decode(server.get(f"/v1/jobs/{job}/events").content, type=Page[Event])
    few = server.get(f"/v1/jobs/{job}/events?limit=2").json()
    next_few = server.get(f"/v1/jobs/{job}/events?limit=2&cursor={few['next']}").json()

    assert [r.number for r in rounds.items] == [1, 2, 3]
    assert [r.number for r in tail.items] == [3]
    assert [e.id for e in events.items] == list(range(1, len(events.items) + 1))
    assert events.items[0].kind == "job.submitted"
    assert [e["id"] for e in few["items"] + next_few["items"]] == [1, 2, 3, 4]
    assert server.get(f"/v1/jobs/{job}").json()["round"] == 3
    server.cancel(job)


def test_a_stream_tells_all_and_ends_with_the_job(server: Server) -> None:
    job = server.submit()
    server.attempt(job).tell("federate", {"kind": "step.started"})
    server.cancel(job)
    stream = {"Accept": "text/event-stream"}

    whole = server.get(f"/v1/jobs/{job}/events", headers=stream)
    rest = server.get(f"/v1/jobs/{job}/events", headers={**stream, "Last-Event-ID": "2"})
    after = server.get(f"/v1/jobs/{job}/events?after=3", headers=stream)

    assert whole.headers["content-type"].startswith("text/event-stream")
    told = events_of(whole.text)
    assert [event.id for event in told] == list(range(1, len(told) + 1))
    assert told[-1].kind == "run.closed"
    assert events_of(rest.text) == told[2:]
    assert events_of(after.text) == told[3:]


def test_more_streams_than_a_user_may_have_are_refused_for_now(server: Server) -> None:
    job = server.submit()
    user = server.get("/v1/whoami").json()["id"]
    hub = server.client.app.state["service"].platform.hub
    with ExitStack() as open_streams:
        for _ in range(server.settings.max_user_streams):
            open_streams.enter_context(hub.watching(job, user))

        refused = server.get(f"/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"})
        paged = server.get(f"/v1/jobs/{job}/events")

    told = problem(refused, 429, "too-many-streams")
    assert refused.headers["retry-after"] == "5"
    assert told["retryable"] is True
    assert paged.is_success
    server.cancel(job)
    again = server.get(f"/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"})
    assert events_of(again.text)[-1].kind == "run.closed"


def test_a_stream_after_no_event_is_refused(server: Server) -> None:
    job = server.submit()
    stream = {"Accept": "text/event-stream", "Last-Event-ID": "yesterday"}

    told = problem(server.get(f"/v1/jobs/{job}/events", headers=stream), 400, "undecodable")

    assert told["fields"] == ["Last-Event-ID"]
    server.cancel(job)


def test_logs_are_read_by_step_and_tail(server: Server) -> None:
    job = server.submit()
    attempt = server.attempt(job)
    for offset, part in ((0, b"hello "), (6, b"world\n"), (6, b"world\n")):
        answer = server.call(
            "PUT",
            f"{attempt.at}/logs/federate?offset={offset}",
            token=attempt.token,
            content=part,
        )
        assert answer.json() == {"offset": offset + len(part)}

    one = server.get(f"/v1/jobs/{job}/logs?step=federate")
    end = server.get(f"/v1/jobs/{job}/logs?step=federate&tail=6")
    everything = server.get(f"/v1/jobs/{job}/logs")

    assert one.headers["content-type"].startswith("text/plain")
    assert one.text == "hello world\n"
    assert end.text == "world\n"
    assert "hello world" in everything.text
    problem(server.get(f"/v1/jobs/{job}/logs?step=cooking"), 400, "undecodable")
    auditor = server.newcomer("home", "auditor")
    problem(server.get(f"/v1/jobs/{job}/logs", token=auditor), 403, "forbidden")
    server.cancel(job)


def test_an_auditor_reads_and_does_nothing(server: Server) -> None:
    job = server.submit()
    auditor = server.newcomer("home", "auditor")

    read = server.get(f"/v1/jobs/{job}", token=auditor)
    submitted = server.call("POST", "/v1/jobs", token=auditor, json=JOB)
    cancelled = server.call(
        "PATCH", f"/v1/jobs/{job}", token=auditor, json={"desired": "cancelled"}
    )

    assert read.status_code == 200
    problem(submitted, 403, "forbidden")
    problem(cancelled, 403, "forbidden")
    server.cancel(job)


def test_a_trace_is_continued(server: Server) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    parent = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}

    assert server.get("/v1/whoami", headers=parent).headers["x-request-id"] == trace
    told = problem(server.get("/v1/jobs/none", headers=parent), 404, "not-found")
    assert told["trace_id"] == trace
    assert server.get("/v1/whoami").headers["x-request-id"] != trace
    assert len(server.get("/v1/nothing").headers["x-request-id"]) == 32


def test_reading_a_job_is_quick(server: Server) -> None:
    job = server.submit()
    server.get(f"/v1/jobs/{job}")

    began = time.perf_counter()
    for _ in range(50):
        assert server.get(f"/v1/jobs/{job}").status_code == 200

    assert (time.perf_counter() - began) / 50 < 0.05
    server.cancel(job)
