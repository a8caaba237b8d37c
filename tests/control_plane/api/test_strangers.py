"""Every route of the API's own description, asked by users of another organisation.

A stranger shares nothing with us; a partner is a member of the collaboration, which shows its
members neither models, nor metrics, nor names of sites. Routes that are new are asked as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from control_plane.records.tables import PROGRAM, STORAGE_CREDENTIAL, UPLOAD
from tests.control_plane.api.conftest import JOB, Server
from tests.control_plane.api.test_models import published
from tests.control_plane.api.test_routes import PUBLIC, document, operations

__all__ = ("document",)
MARK = "kept-from-strangers"
CSV = f"{MARK},y\n" + "".join(f"{i / 7},{i % 2}\n" for i in range(40))
CREDENTIAL, ACCESS_KEY = "storage-of-ours", "foedus-key-of-ours"
PROGRAM_DIGEST = f"sha256:{'5' * 64}"


@dataclass
class Ours:
    """What is ours: by the name that paths have for it, and everything nobody else may read."""

    server: Server
    names: dict[str, str]
    secrets: dict[str, str]
    hidden: dict[str, str]
    tokens: dict[str, str] = field(default_factory=dict)

    def at(self, path: str) -> str:
        """The path of the thing that is ours."""
        return re.sub(r"\{(\w+)\}", lambda found: self.names[found[1]], path)


@pytest.fixture(scope="module")
def ours(server: Server) -> Ours:
    partner = server.newcomer("partner", "developer", "admin")
    collaboration = server.call(
        "POST",
        "/v1/collaborations",
        json={
            "name": f"collaboration {MARK}",
            "organisations": ["partner"],
            "visibility": {"models": ["home"], "metrics": ["home"], "site_names": ["home"]},
        },
    ).json()
    job = server.submit(name=f"job {MARK}", rounds=1, collaboration=collaboration["name"])
    attempt = server.attempt(job)
    log = server.call(
        "PUT", f"{attempt.at}/logs/federate?offset=0", token=attempt.token, content=MARK
    )
    assert log.is_success, log.text
    model = published(server, job)
    dataset = server.call(
        "POST", f"/v1/datasets?format=csv&label=y&name={MARK}", content=CSV
    ).json()
    token = server.call("POST", "/v1/tokens", json={"label": f"token {MARK}"}).json()
    home = server.get("/v1/whoami").json()
    with server.client.portal() as portal:
        portal.call(_add_program, server, home["organisation"], token["created_at"])
        portal.call(_add_credential, server, home)
        portal.call(_add_upload, server, home, model.digest)
    names = {
        "job": job,
        "name": "model.safetensors",
        "program": PROGRAM_DIGEST,
        "dataset": dataset["digest"],
        "model": model.id,
        "collaboration": collaboration["id"],
        "token": token["id"],
        "organisation": home["organisation"],
        "credential": CREDENTIAL,
        "attempt": "1",
        "digest": model.digest,
        "step": "federate",
        "purpose": "cursors",
    }
    hidden = {
        "model": model.id,
        "weights": model.digest,
        "onnx": next(form.digest for form in model.variants if form.name == "onnx-fp32"),
        "metrics": '"accuracy":',
        "dataset": dataset["digest"],
        "program": PROGRAM_DIGEST,
        "token": token["id"],
        "secret": token["secret"],
        "attempt": attempt.token,
        "credential": CREDENTIAL,
        "access key": ACCESS_KEY,
    }
    secrets = {
        **hidden,
        "transcript": model.transcript_head,
        "mark": MARK,
        "job": job,
        "collaboration": collaboration["id"],
        "user": home["id"],
        "organisation": home["organisation"],
        "plan": attempt.plan.plan_digest,
    }
    del secrets["metrics"]
    stranger = server.newcomer("strangers", "developer", "operator", "admin")
    return Ours(server, names, secrets, hidden, {"stranger": stranger, "partner": partner})


async def _add_program(server: Server, organisation: str, at: str) -> None:
    """A program on record: to have one tried out would take longer than all of this."""
    from datetime import datetime

    import msgspec

    from control_plane.api.examples import FACTS

    row = {
        "organisation": organisation,
        "digest": PROGRAM_DIGEST,
        "name": MARK,
        "size_bytes": 1,
        "facts": msgspec.json.encode(FACTS).decode(),
        "created_at": datetime.fromisoformat(at),
    }
    database = server.client.app.state["service"].platform.database
    async with database.writing() as transaction:
        await transaction.execute(insert(PROGRAM), row)


async def _add_credential(server: Server, home: Mapping[str, Any]) -> None:
    """Credentials on record, as a store with buckets would have made them."""
    from datetime import datetime

    row = {
        "id": CREDENTIAL,
        "organisation": home["organisation"],
        "label": MARK,
        "access_key": ACCESS_KEY,
        "made_by": home["id"],
        "created_at": datetime.fromisoformat(home["created_at"]),
        "expires_at": datetime.fromisoformat(home["created_at"]),
    }
    database = server.client.app.state["service"].platform.database
    async with database.writing() as transaction:
        await transaction.execute(insert(STORAGE_CREDENTIAL), row)


async def _add_upload(server: Server, home: Mapping[str, Any], digest: str) -> None:
    """An upload under way, as a store that takes parts would have begun it."""
    from datetime import datetime, timedelta

    at = datetime.fromisoformat(home["created_at"])
    row = {
        "organisation": home["organisation"],
        "digest": digest,
        "size_bytes": 1,
        "key": "partial/ours",
        "upload": MARK,
        "created_at": at,
        "expires_at": at + timedelta(days=1),
    }
    database = server.client.app.state["service"].platform.database
    async with database.writing() as transaction:
        await transaction.execute(insert(UPLOAD), row)


def requests(
    ours: Ours, document: dict[str, Any]
) -> Iterator[tuple[str, str, Mapping[str, Any], dict[str, Any]]]:
    """Each operation, aimed at what is ours: method, described path, arguments, operation."""
    aimed: Mapping[tuple[str, str], tuple[dict[str, Any], ...]] = {
        ("POST", "/v1/jobs"): (
            {"json": {**JOB, "collaboration": f"collaboration {MARK}"}},
            {"json": {**JOB, "program": {"kind": "bundle", "digest": PROGRAM_DIGEST}}},
            {
                "json": {
                    **JOB,
                    "data": {**JOB["data"], "dataset": ours.names["dataset"]},
                }
            },
            {"json": {**JOB, "init": {"kind": "model", "digest": ours.names["digest"]}}},
        ),
        ("PATCH", "/v1/jobs/{job}"): ({"json": {"desired": "cancelled"}},),
        ("POST", "/v1/programs"): (
            {"content": b"no program"},
            {"params": {"upload": ours.names["digest"]}},
        ),
        ("POST", "/v1/datasets"): (
            {"content": b"no data", "params": {"format": "csv"}},
            {"params": {"format": "csv", "upload": ours.names["digest"]}},
        ),
        ("POST", "/v1/users"): ({"json": {"name": "mole", "organisation": "home"}},),
        ("POST", "/v1/tokens"): ({"json": {"user": ours.secrets["user"]}},),
        ("POST", "/v1/organisations"): ({"json": {"name": "stolen"}},),
        ("POST", "/v1/collaborations"): ({"json": {"name": f"collaboration {MARK}"}},),
    }
    for method, path, operation in operations(document):
        example = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        default = ({"json": example["example"]},) if example else ({},)
        for arguments in aimed.get((method, path), default):
            yield method, path, arguments, operation


def leaks(answer: httpx.Response, kept: Mapping[str, str], asked: str) -> set[str]:
    """What of ``kept`` an answer tells that the question did not say itself."""
    told = answer.text + str(dict(answer.headers))
    return {name for name, secret in kept.items() if secret in told and secret not in asked}


def test_what_is_ours_is_there_for_us(ours: Ours, document: dict[str, Any]) -> None:
    read = 0
    for method, path, _, _ in requests(ours, document):
        if method != "GET" or path in PUBLIC or path.startswith("/v1/attempts/"):
            continue
        if all(name in ours.names for name in re.findall(r"\{(\w+)\}", path)):
            answer = ours.server.get(ours.at(path), headers={"Last-Event-ID": "0"})
            assert answer.status_code == 200, (path, answer.text)
            read += 1
    assert read > 15


def test_without_a_token_nobody_reads_anything(ours: Ours, document: dict[str, Any]) -> None:
    for method, path, arguments, _ in requests(ours, document):
        answer = ours.server.client.request(method, ours.at(path), **arguments)

        assert answer.status_code == (200 if path in PUBLIC else 401), (method, path)
        assert leaks(answer, ours.secrets, str(arguments) + ours.at(path)) == set(), (method, path)


def test_a_stranger_never_reads_what_is_ours(ours: Ours, document: dict[str, Any]) -> None:
    stranger = ours.tokens["stranger"]
    statuses: dict[tuple[str, str], set[int]] = {}
    for method, path, arguments, _ in requests(ours, document):
        if path in PUBLIC:
            continue
        at = ours.at(path)
        answer = ours.server.call(method, at, token=stranger, **arguments)
        asked = str(arguments) + at
        if path == "/v1/admin/audit":  # the strangers' own: it tells what they were refused
            asked += "".join(ours.at(path) for _, path, _, _ in requests(ours, document))
        assert leaks(answer, ours.secrets, asked) == set(), (method, path)
        statuses.setdefault((method, path), set()).add(answer.status_code)

    for (method, path), found in statuses.items():
        if path.startswith("/v1/attempts/"):
            assert found == {401}, (method, path, found)
        elif "{" in path:
            assert found <= {403, 404}, (method, path, found)
        elif method != "GET":
            assert found <= {400, 403, 404, 409, 422}, (method, path, found)
        else:
            assert found <= {200, 403}, (method, path, found)
    assert ours.server.get(ours.at("/v1/jobs/{job}")).json()["phase"] == "succeeded"
    assert ours.server.get(ours.at("/v1/tokens")).text.count(ours.names["token"]) == 1


@pytest.mark.parametrize(
    ("part", "member", "name"),
    [
        ({"program": {"kind": "bundle"}}, "digest", "program"),
        ({"data": dict(JOB["data"])}, "dataset", "dataset"),
        ({"init": {"kind": "model"}}, "digest", "digest"),
    ],
    ids=["a program", "a data set", "a model"],
)
def test_a_job_that_names_what_is_ours_is_answered_as_if_there_were_no_such_thing(
    ours: Ours, part: dict[str, dict[str, Any]], member: str, name: str
) -> None:
    (place, value), nothing = next(iter(part.items())), f"sha256:{'9' * 64}"

    def told(digest: str) -> dict[str, Any]:
        body = {**JOB, place: {**value, member: digest}}
        answer = ours.server.call(
            "POST", "/v1/jobs?dryRun=true", token=ours.tokens["stranger"], json=body
        )
        assert answer.status_code == 422, answer.text
        problem = {**answer.json(), "trace_id": ""}
        return {key: str(said).replace(digest, "it") for key, said in problem.items()}

    assert told(ours.names[name]) == told(nothing)


def test_a_partner_reads_no_more_than_the_collaboration_shows(
    ours: Ours, document: dict[str, Any]
) -> None:
    partner = ours.tokens["partner"]
    seen = set()
    for method, path, _, _ in requests(ours, document):
        if method not in ("GET", "HEAD") or path in PUBLIC:
            continue
        at = ours.at(path)
        answer = ours.server.call(method, at, token=partner)
        assert answer.status_code in (200, 401, 403, 404), (method, path, answer.text)
        assert leaks(answer, ours.hidden, at) == set(), (method, path, answer.text)
        if answer.status_code == 200 and "{" in path:
            seen.add(path)

    assert {"/v1/jobs/{job}", "/v1/collaborations/{collaboration}"} <= seen
    assert "/v1/models/{model}" not in seen
    assert "/v1/jobs/{job}/logs" not in seen


@pytest.mark.parametrize("who", ["stranger", "partner"])
def test_others_change_nothing_of_ours(ours: Ours, document: dict[str, Any], who: str) -> None:
    before = ours.server.get(ours.at("/v1/jobs/{job}")).json()
    for method, path, arguments, _ in requests(ours, document):
        if method in ("PATCH", "PUT", "DELETE"):
            answer = ours.server.call(method, ours.at(path), token=ours.tokens[who], **arguments)
            assert answer.status_code in (401, 403, 404), (method, path, answer.text)

    assert ours.server.get(ours.at("/v1/jobs/{job}")).json() == before
