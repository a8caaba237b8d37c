from __future__ import annotations

import pytest

from tests.control_plane.api.conftest import Server
from tests.control_plane.api.test_jobs import problem

AT = "/v1/organisations/home/storage-credentials"


def test_a_folder_has_no_buckets_and_it_is_said_what_to_use(server: Server) -> None:
    before = server.get(AT).json()

    refused = server.call("POST", AT, json={"label": "ward-7"})

    said = problem(refused, 409, "no-buckets")
    assert "FOEDUS_STORE=s3" in said["hint"]
    assert server.get(AT).json() == before
    problem(server.call("DELETE", f"{AT}/storage-unknown"), 404, "not-found")


@pytest.mark.parametrize(
    "body",
    [{"lifetime_s": 60}, {"lifetime_s": 366 * 86_400}, {"label": ""}, {"days": 3}, {"label": 7}],
    ids=str,
)
def test_what_cannot_be_asked_for_is_refused(server: Server, body: dict[str, object]) -> None:
    problem(server.call("POST", AT, json=body), 400, "undecodable")


def test_only_admins_manage_storage(server: Server) -> None:
    developer = server.newcomer("home", "developer")

    for method, path in (("POST", AT), ("GET", AT), ("DELETE", f"{AT}/storage-unknown")):
        arguments = {"json": {}} if method == "POST" else {}
        problem(server.call(method, path, token=developer, **arguments), 403, "forbidden")


def test_an_organisation_that_is_not_yours_is_not_there(server: Server, stranger: str) -> None:
    for organisation in ("home", "no-such-organisation"):
        at = f"/v1/organisations/{organisation}/storage-credentials"
        problem(server.call("POST", at, token=stranger, json={}), 404, "not-found")
        problem(server.get(at, token=stranger), 404, "not-found")
