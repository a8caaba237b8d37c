from __future__ import annotations

from typing import Any

import pytest

from sharing.object_store import digest_of
from tests.control_plane.api.conftest import Server
from tests.control_plane.api.test_jobs import problem

DIGEST = digest_of(b"a file")
BEGINNING = {"digest": DIGEST, "size_bytes": 6}


def test_a_folder_takes_nothing_itself_and_it_is_said_what_to_use(server: Server) -> None:
    said = problem(server.call("POST", "/v1/uploads", json=BEGINNING), 409, "no-direct-uploads")

    assert "/v1/datasets" in said["hint"]


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:short"},
        {"digest": "../../etc/passwd"},
        {"size_bytes": 0},
        {"size_bytes": -1},
        {"size_bytes": 2**60},
        {"name": "x"},
    ],
    ids=str,
)
def test_what_cannot_be_begun_is_refused(server: Server, change: dict[str, Any]) -> None:
    problem(server.call("POST", "/v1/uploads", json=BEGINNING | change), 400, "undecodable")


@pytest.mark.parametrize("numbers", [[], [0], [-1], ["1"], list(range(1, 102))], ids=str)
def test_parts_that_cannot_be_are_refused(server: Server, numbers: list[object]) -> None:
    at = f"/v1/uploads/{DIGEST}/links"

    problem(server.call("POST", at, json={"numbers": numbers}), 400, "undecodable")


def test_an_upload_that_is_not_under_way_is_not_found(server: Server) -> None:
    at = f"/v1/uploads/{DIGEST}"
    for answer in (
        server.call("POST", f"{at}/links", json={"numbers": [1]}),
        server.call("DELETE", at),
        server.call("POST", f"/v1/datasets?format=csv&upload={DIGEST}"),
        server.call("POST", f"/v1/programs?upload={DIGEST}"),
        server.call("DELETE", "/v1/uploads/no-digest"),
    ):
        problem(answer, 404, "not-found")


def test_only_those_who_may_upload_begin(server: Server) -> None:
    operator = server.newcomer("home", "operator")
    for method, path, body in (
        ("POST", "/v1/uploads", BEGINNING),
        ("POST", f"/v1/uploads/{DIGEST}/links", {"numbers": [1]}),
        ("DELETE", f"/v1/uploads/{DIGEST}", None),
    ):
        answer = server.call(method, path, token=operator, **({"json": body} if body else {}))
        problem(answer, 403, "forbidden")
