"""What holds for every route, taken from the API's own description."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from clients import resources
from control_plane.api import examples, ingest
from control_plane.api.health import Health
from tests.control_plane.api.conftest import Server
from workflows.job import JobSpec

PUBLIC = {"/health/live", "/health/ready", "/metrics", "/v1/login"}
TYPES = {
    "JobSpec": JobSpec,
    "StepEvents": ingest.StepEvents,
    "Acknowledged": ingest.Acknowledged,
    "LogEnd": ingest.LogEnd,
    "StoredObject": examples.StoredObject,
    "Health": Health,
}
ATTEMPTS = "/v1/attempts/"
PATH_VALUES = {"attempt": "1", "digest": f"sha256:{'0' * 64}", "step": "federate"}


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    """The API's description."""
    described: dict[str, Any] = server.client.get("/openapi.json").json()
    return described


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in ("get", "head", "post", "put", "patch", "delete")
    ]


def filled(path: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda m: PATH_VALUES.get(m[1], "unknown"), path)


def type_of(schema: dict[str, Any]) -> Any:
    name = schema["$ref"].rpartition("/")[2]
    if name.endswith("Page"):
        return resources.Page[getattr(resources, name.removesuffix("Page"))]
    return TYPES.get(name) or getattr(resources, name)


def bodies(operation: dict[str, Any]) -> list[dict[str, Any]]:
    parts = [operation.get("requestBody", {}), *operation["responses"].values()]
    return [
        content
        for part in parts
        for media_type, content in part.get("content", {}).items()
        if media_type in ("application/json", "application/problem+json")
    ]


def test_every_route_but_the_public_ones_asks_who(server: Server, document: dict[str, Any]) -> None:
    asked = 0
    for method, path, operation in operations(document):
        if path in PUBLIC:
            assert operation["security"] == []
            assert server.client.request(method, path).status_code == 200
            continue
        for headers in (
            {},
            {"Authorization": "Bearer foedus_wrong"},
            {"Authorization": f"Basic {server.token}"},
            {"Authorization": "Bearer "},
        ):
            answer = server.client.request(method, filled(path), headers=headers)
            assert answer.status_code == 401, (method, path, headers, answer.text)
            assert answer.headers["www-authenticate"] == "Bearer"
            asked += 1
    assert asked > 100


def test_routes_outside_the_description_are_the_known_ones(server: Server) -> None:
    described = {path for _, path, _ in operations(server.client.get("/openapi.json").json())}
    others = {
        route.path_format or "/"
        for route in server.client.app.routes
        if getattr(route, "path_format", None) not in described
    }

    assert others == {
        "/docs",
        "/openapi.json",
        "/schema",
        "/schema/openapi.json",
        "/schema/{path}",
    }


def test_what_is_not_yours_looks_like_what_is_not_there(
    server: Server, stranger: str, document: dict[str, Any]
) -> None:
    job = server.submit()
    server.attempt(job)
    collaboration = server.call(
        "POST", "/v1/collaborations", json={"name": "ours", "organisations": []}
    ).json()["id"]
    token = server.call("POST", "/v1/tokens", json={"label": "mine"}).json()["id"]
    ours = {"job": job, "collaboration": collaboration, "token": token, "name": "model.json"}
    checked = set()

    for method, path, _ in operations(document):
        owned = [name for name in re.findall(r"\{(\w+)\}", path) if name in ours]
        if not owned or path.startswith(ATTEMPTS):
            continue
        real = re.sub(r"\{(\w+)\}", lambda m: ours.get(m[1], "unknown"), path)
        body = {"json": {"desired": "cancelled"}} if method == "PATCH" else {}
        theirs = server.call(method, real, token=stranger, **body)
        nobodys = server.call(method, filled(path), token=stranger, **body)
        assert theirs.status_code == nobodys.status_code == 404, (method, path, theirs.text)
        if method != "HEAD":
            told, expected = theirs.json(), nobodys.json()
            told.pop("trace_id")
            expected.pop("trace_id")
            assert told == expected
        checked.add(path)

    assert len(checked) >= 8
    assert server.get(f"/v1/jobs/{job}").json()["desired"] == "run"
    assert server.get(f"/v1/jobs?name={job}", token=stranger).json()["items"] == []
    server.cancel(job)


def test_every_json_body_has_an_example_that_decodes_into_its_type(
    document: dict[str, Any],
) -> None:
    checked = 0
    for method, path, operation in operations(document):
        for content in bodies(operation):
            examples_given = [content["example"]] if "example" in content else []
            examples_given += [shown["value"] for shown in content.get("examples", {}).values()]
            assert examples_given, (method, path)
            for example in examples_given:
                msgspec.json.decode(
                    msgspec.json.encode(example), type=type_of(content["schema"]), strict=True
                )
                checked += 1
    assert checked > 150


def test_the_example_job_is_accepted(server: Server, document: dict[str, Any]) -> None:
    submit = document["paths"]["/v1/jobs"]["post"]
    example = submit["requestBody"]["content"]["application/json"]["example"]

    answer = server.call("POST", "/v1/jobs?dryRun=true", json=example)

    assert answer.status_code == 200, answer.text


def test_every_raw_body_has_an_example(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for part in (operation.get("requestBody", {}), *operation["responses"].values()):
            for media_type, content in part.get("content", {}).items():
                assert content.keys() & {"example", "examples"}, (method, path, media_type)


def test_every_reference_of_the_description_leads_somewhere(document: dict[str, Any]) -> None:
    referred = set(re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', _text(document)))

    assert referred <= document["components"]["schemas"].keys()


def test_operations_are_named_once_and_say_what_they_answer(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]

    assert len(names) == len(set(names))
    for method, path, operation in operations(document):
        assert operation["description"], (method, path)
        if path not in PUBLIC:
            assert "401" in operation["responses"], (method, path)
        if "{" in path:
            assert "404" in operation["responses"], (method, path)


@pytest.mark.parametrize("path", ["/schema", "/schema/openapi.json", "/openapi.json"])
def test_the_description_is_where_tools_look(
    server: Server, document: dict[str, Any], path: str
) -> None:
    assert server.client.get(path).json() == document


def test_the_page_shows_every_route_and_type_and_fetches_nothing(
    server: Server, document: dict[str, Any]
) -> None:
    answer = server.client.get("/docs")

    ids, links = Page.read(answer.text)
    shown = {operation["operationId"] for _, _, operation in operations(document)}
    assert answer.headers["content-type"].startswith("text/html")
    assert shown | set(document["components"]["schemas"]) <= set(ids)
    assert len(ids) == len(set(ids))
    assert {link for link in links if not link.startswith("#")} == {"openapi.json"}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert "src=" not in answer.text
    assert "<script" not in answer.text


class Page(HTMLParser):
    """The ids and links of a page whose elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []

    @classmethod
    def read(cls, text: str) -> tuple[list[str], list[str]]:
        page = cls()
        page.feed(text)
        return page.ids, page.links

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids += [named["id"]] if named.get("id") else []
        self.links += [named["href"]] if named.get("href") else []


def test_unknown_paths_and_methods_are_problems(server: Server) -> None:
    missing = server.get("/v1/teapots")
    wrong = server.call("PUT", "/v1/jobs")

    assert missing.status_code == 404
    assert missing.json()["type"].endswith("/route-unknown")
    assert wrong.status_code == 405
    assert wrong.json()["type"].endswith("/method-not-allowed")
    assert "POST" in wrong.headers["allow"]


def _text(document: dict[str, Any]) -> str:
    return msgspec.json.encode(document).decode()


def test_every_example_of_the_job_is_accepted(server: Server, document: dict[str, Any]) -> None:
    shown = document["components"]["schemas"]["JobSpec"]["examples"]
    kinds = []

    for example in shown:
        answer = server.call("POST", "/v1/jobs?dryRun=true", json=example)
        assert answer.status_code == 200, answer.text
        kinds.append((example["program"]["kind"], sorted(answer.json()["steps"])))

    assert kinds == [
        ("builtin", ["federate", "publish", "translate"]),
        ("analysis", ["federate"]),
    ]
