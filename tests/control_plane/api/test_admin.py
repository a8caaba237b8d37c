from __future__ import annotations

from typing import Any

from tests.control_plane.api.conftest import JOB, Server


def test_a_refusal_is_in_the_audit_log_before_it_is_told(server: Server) -> None:
    token = server.newcomer("clinic", "developer")
    user = server.get("/v1/whoami", token=token).json()["id"]

    refused = server.call("POST", "/v1/organisations?x=secret", token=token, json={"name": "mine"})
    entry = server.get("/v1/admin/audit?limit=1").json()["items"][0]

    assert refused.status_code == 403
    assert entry["actor"] == user
    assert (entry["action"], entry["object"]) == ("POST /v1/organisations", "/v1/organisations")
    assert entry["outcome"] == "refused"
    assert entry["trace_id"] == refused.headers["x-request-id"]
    assert server.get("/v1/admin/audit/verification").json()["is_whole"]


def test_the_audit_log_is_paged_from_a_time_on(server: Server) -> None:
    for label in ("a", "b", "c"):
        server.call("POST", "/v1/tokens", json={"label": label})
    newest = server.get("/v1/admin/audit?limit=3").json()["items"]
    since = newest[-1]["at"]

    numbers: list[int] = []
    path = f"/v1/admin/audit?limit=2&since={since}"
    while path:
        answer = server.get(path)
        numbers += [entry["number"] for entry in answer.json()["items"]]
        path = answer.headers.get("link", "").partition(">")[0].removeprefix("<")

    assert numbers == [entry["number"] for entry in newest]
    assert server.get("/v1/admin/audit?since=2026-01-01T00:00:00").status_code == 422


def test_what_is_known_of_an_entry_must_be_known_whole(server: Server) -> None:
    def verify(query: str) -> Any:
        return server.get(f"/v1/admin/audit/verification?{query}")

    newest = server.get("/v1/admin/audit?limit=1").json()["items"][0]

    assert verify("number=1").status_code == 422
    assert verify("number=1&digest=x").status_code == 422
    known = f"number={newest['number']}&digest={newest['digest']}"
    assert verify(known).json()["is_whole"]
    other = verify(f"number={newest['number']}&digest=sha256:{'0' * 64}").json()
    assert not other["is_whole"]


def test_the_status_tells_what_runs_waits_and_is_used(server: Server) -> None:
    job = server.submit()
    server.attempt(job)
    server.call("PATCH", "/v1/admin/quotas/home", json={"running": 0})
    waiting = server.submit(resources={"priority": "high"})
    server.until(lambda: "may run no" in server.get(f"/v1/jobs/{waiting}").json()["waits_for"])

    status = server.get("/v1/admin/status").json()

    assert (job, 1) in [(one["job"], one["number"]) for one in status["attempts"]]
    assert waiting in [one["job"] for one in status["queue"]]
    home = next(one for one in status["organisations"] if one["name"] == "home")
    assert home["use"]["running"] >= 1
    assert home["quota"]["running"] == 0
    assert server.get("/v1/quota").json() == home
    server.call("PATCH", "/v1/admin/quotas/home", json={"running": None})
    server.cancel(job)
    server.cancel(waiting)


def test_the_platform_is_shown_to_those_who_run_it_alone(server: Server, stranger: str) -> None:
    for method, path, body in (
        ("GET", "/v1/admin/status", {}),
        ("GET", "/v1/admin/metrics", {}),
        ("GET", "/v1/admin/audit/verification", {}),
        ("PATCH", "/v1/admin/quotas/home", {"json": {"running": 1}}),
    ):
        assert server.call(method, path, token=stranger, **body).status_code == 403


def test_a_job_too_many_is_a_problem_that_names_quota_and_use(server: Server) -> None:
    token = server.newcomer("full", "developer")
    server.call("PATCH", "/v1/admin/quotas/full", json={"open_jobs": 0})

    answer = server.call("POST", "/v1/jobs", token=token, json=JOB)

    assert answer.status_code == 429
    assert answer.json()["type"].endswith("/quota-exhausted")
    assert answer.json()["detail"] == (
        "your organisation has 0 open jobs, of 0 that its quota allows"
    )
    assert not answer.json()["retryable"]
