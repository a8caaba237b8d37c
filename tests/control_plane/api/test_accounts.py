from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from clients.resources import Collaboration, Token, User
from tests.control_plane.api.conftest import Server
from tests.control_plane.api.test_jobs import problem


def test_the_first_token_is_an_administrators(server: Server) -> None:
    user = msgspec.json.decode(server.get("/v1/whoami").content, type=User)

    assert {"admin", "developer", "operator"} <= {str(role) for role in user.roles}


def test_a_token_shows_its_secret_once(server: Server) -> None:
    answer = server.call("POST", "/v1/tokens", json={"label": "once"})
    made = msgspec.json.decode(answer.content, type=Token)

    assert answer.headers["cache-control"] == "no-store"
    assert made.secret is not None
    assert made.secret.startswith("foedus_")
    assert server.get("/v1/whoami", token=made.secret).status_code == 200
    assert made.secret not in server.get("/v1/tokens?limit=200").text


def test_a_revoked_token_proves_nothing_at_once(server: Server) -> None:
    made = server.call("POST", "/v1/tokens", json={"label": "lost"}).json()
    assert server.get("/v1/whoami", token=made["secret"]).status_code == 200

    assert server.call("DELETE", f"/v1/tokens/{made['id']}").status_code == 204

    problem(server.get("/v1/whoami", token=made["secret"]), 401, "not-authentic")


def test_an_expired_token_proves_nothing(server: Server) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=0.3)).isoformat()
    secret = server.call("POST", "/v1/tokens", json={"label": "brief", "expires_at": soon}).json()[
        "secret"
    ]

    server.until(lambda: server.get("/v1/whoami", token=secret).status_code == 401)


def test_only_administrators_add_people(server: Server) -> None:
    developer = server.newcomer("home", "developer")
    new = {"name": "mallory", "organisation": "home", "roles": ["admin"]}

    problem(server.call("POST", "/v1/users", token=developer, json=new), 403, "forbidden")
    problem(
        server.call("POST", "/v1/organisations", token=developer, json={"name": "mine"}),
        403,
        "forbidden",
    )


def test_two_organisations_of_one_name_are_refused(server: Server) -> None:
    server.call("POST", "/v1/organisations", json={"name": "twin"})

    again = server.call("POST", "/v1/organisations", json={"name": "twin"})

    problem(again, 409, "name-taken")


def test_an_unknown_role_is_refused_with_those_there_are(server: Server) -> None:
    new = {"name": "eve", "organisation": "home", "roles": ["boss"]}

    told = problem(server.call("POST", "/v1/users", json=new), 400, "undecodable")

    assert told["fields"] == ["roles[0]"]
    assert "operator" in told["hint"]


def test_partners_see_a_collaborations_jobs_and_others_do_not(
    server: Server, stranger: str
) -> None:
    partner = server.newcomer("partner", "developer")
    founded = server.call(
        "POST",
        "/v1/collaborations",
        json={"name": "shared-work", "organisations": ["partner"], "purpose": "a test"},
    )
    collaboration = msgspec.json.decode(founded.content, type=Collaboration)
    job = server.submit(collaboration="shared-work")

    assert len(collaboration.organisations) == 2
    assert founded.headers["location"] == f"/v1/collaborations/{collaboration.id}"
    assert server.get(founded.headers["location"], token=partner).status_code == 200
    assert server.get(f"/v1/jobs/{job}", token=partner).status_code == 200
    problem(server.get(f"/v1/jobs/{job}", token=stranger), 404, "not-found")
    cancelled = server.call(
        "PATCH", f"/v1/jobs/{job}", token=partner, json={"desired": "cancelled"}
    )
    problem(cancelled, 403, "forbidden")
    server.cancel(job)


def test_a_job_for_a_collaboration_that_is_not_ones_own_is_refused(
    server: Server, stranger: str
) -> None:
    server.call("POST", "/v1/collaborations", json={"name": "private-work"})
    body = {
        "name": "intruder",
        "collaboration": "private-work",
        "program": {"kind": "builtin", "name": "digits-mlp"},
        "data": {"kind": "partitioned", "dataset": "digits"},
    }

    theirs = server.call("POST", "/v1/jobs", token=stranger, json=body)
    nobodys = server.call(
        "POST", "/v1/jobs", token=stranger, json={**body, "collaboration": "no-such-work"}
    )

    assert theirs.status_code == nobodys.status_code == 422
    assert theirs.json()["fields"] == nobodys.json()["fields"] == ["collaboration"]


def test_capabilities_are_shown(server: Server) -> None:
    view = server.get("/v1/capabilities").json()

    assert {runtime["name"] for runtime in view["runtimes"]} >= {"flower", "native"}
    assert "fedadam" in view["strategies"]
    assert view["datasets"]["digits"]["num_examples"] == 1797
    assert {"mean", "quantile"} <= set(view["analyses"])
