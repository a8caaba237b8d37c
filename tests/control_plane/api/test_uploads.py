from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping

import msgspec
import pytest

from clients.resources import Dataset, Page
from tests.control_plane.api.conftest import Server
from tests.control_plane.api.test_jobs import problem

CSV = b"a,b,y\n" + b"".join(b"%d,%d,%d\n" % (i, i * i % 7, i % 2) for i in range(40))


def tar(members: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("program.py", b"")
        archive.writestr("zeros", b"\0" * (200 << 20))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "slug"),
    [
        pytest.param(
            tar({"../escape.py": b"x", "program.py": b""}), 422, "bundle-member-refused", id=".."
        ),
        pytest.param(tar({"/etc/x": b"x"}), 422, "bundle-member-refused", id="absolute"),
        pytest.param(
            tar({"l": link("l", "/etc/passwd", tarfile.SYMTYPE)}),
            422,
            "bundle-member-refused",
            id="symbolic link",
        ),
        pytest.param(
            tar({"program.py": b"", "h": link("h", "program.py", tarfile.LNKTYPE)}),
            422,
            "bundle-member-refused",
            id="hard link",
        ),
        pytest.param(bomb(), 413, "bundle-too-large", id="zip bomb"),
        pytest.param(b"x" * ((1 << 20) + 1), 413, "bundle-too-large", id="over the limit"),
        pytest.param(b"no archive", 422, "bundle-unreadable", id="no archive"),
        pytest.param(b"", 422, "bundle-unreadable", id="nothing"),
        pytest.param(tar({"readme": b"x"}), 422, "bundle-incomplete", id="no program in it"),
    ],
)
def test_a_bad_bundle_is_refused_and_leaves_nothing(
    server: Server, content: bytes, status: int, slug: str
) -> None:
    before = server.get("/v1/programs").json()

    answer = server.call("POST", "/v1/programs?name=bad", content=content)

    told = problem(answer, status, slug)
    assert told["detail"]
    assert server.get("/v1/programs").json() == before
    assert list(server.settings.data.glob("scratch/*")) == []


def test_a_stream_over_the_limit_is_refused_though_it_did_not_say_so(server: Server) -> None:
    def chunks() -> list[bytes]:
        return [b"x" * 65_536] * 20

    answer = server.call("POST", "/v1/programs", content=iter(chunks()))

    problem(answer, 413, "bundle-too-large")


def test_a_data_set_is_read_once_and_listed(server: Server, stranger: str) -> None:
    at = "/v1/datasets?format=csv&label=y&name=parity"

    first = server.call("POST", at, content=CSV)
    again = server.call("POST", at, content=CSV)

    assert first.status_code == 201, first.text
    dataset = msgspec.json.decode(first.content, type=Dataset)
    assert (dataset.facts.num_examples, dataset.facts.num_classes) == (40, 2)
    assert again.status_code == 200
    assert first.headers["location"] == f"/v1/datasets/{dataset.digest}"
    assert server.get(f"/v1/datasets/{dataset.digest}").json() == first.json()
    page = msgspec.json.decode(server.get("/v1/datasets").content, type=Page[Dataset])
    assert dataset in page.items
    problem(server.get(f"/v1/datasets/{dataset.digest}", token=stranger), 404, "not-found")


def test_text_where_numbers_belong_names_row_and_column(server: Server) -> None:
    content = CSV.replace(b"\n7,", b"\nseven,")

    answer = server.call("POST", "/v1/datasets?format=csv&label=y", content=content)

    told = problem(answer, 422, "data-unreadable")
    assert "row 8, column `a`: `seven` is no number" in told["detail"]


def test_a_label_that_is_not_there_is_named(server: Server) -> None:
    answer = server.call("POST", "/v1/datasets?format=csv&label=outcome", content=CSV)

    assert answer.status_code == 422
    assert "outcome" in answer.json()["detail"]


@pytest.mark.parametrize("query", ["format=xls", "label=y", "format=csv&label="])
def test_a_format_that_is_not_read_is_refused(server: Server, query: str) -> None:
    problem(server.call("POST", f"/v1/datasets?{query}", content=CSV), 400, "undecodable")


def test_a_data_set_over_the_limit_is_refused(server: Server) -> None:
    answer = server.call("POST", "/v1/datasets?format=csv", content=b"1,2\n" * 300_000, headers={})

    problem(answer, 413, "body-too-large")


def test_an_auditor_uploads_nothing(server: Server) -> None:
    auditor = server.newcomer("home", "auditor")

    program = server.call("POST", "/v1/programs", token=auditor, content=tar({"program.py": b""}))
    dataset = server.call("POST", "/v1/datasets?format=csv", token=auditor, content=CSV)

    problem(program, 403, "forbidden")
    problem(dataset, 403, "forbidden")
