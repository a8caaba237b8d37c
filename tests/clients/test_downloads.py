from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from clients.errors import (
    ApiError,
    DownloadBusy,
    DownloadCorrupt,
    FileRefused,
    NotFound,
    NotSecure,
    Unreachable,
    VariantMissing,
)
from sharing.object_store import digest_of
from tests.clients.scripted_server import Answer, cut, problem, reply, serving, value
from tests.clients.values import client, model

CONTENT = bytes(range(256)) * 1000
DIGEST = digest_of(CONTENT)
MODEL = model(DIGEST, len(CONTENT))
PARTIAL = f".model.onnx.{DIGEST.removeprefix('sha256:')[:16]}.partial"


def part(start: int) -> Answer:
    total = len(CONTENT)
    content_range = f"bytes {start}-{total - 1}/{total}"
    return reply(206, CONTENT[start:], Content_Range=content_range)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pull(target: Path, *answers: Answer, direct: bool = False) -> Path:
    """Have the model pulled from a server that answers so, after it told what the model is."""
    with serving(value(MODEL), *answers) as script, client(script.url) as foedus:
        return foedus.models.pull("model-1", path=target, direct=direct)


def test_a_model_is_pulled_whole(tmp_path: Path) -> None:
    path = pull(tmp_path / "model.onnx", reply(200, CONTENT))

    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["model.onnx"]


def test_a_broken_download_is_resumed_where_it_broke(tmp_path: Path) -> None:
    broken = cut(CONTENT[:1000], of=len(CONTENT))

    with serving(value(MODEL), broken, part(1000)) as script, client(script.url) as foedus:
        path = foedus.models.pull("model-1", path=tmp_path / "model.onnx")

    assert path.read_bytes() == CONTENT
    assert script.asked[2].headers["range"] == "bytes=1000-"
    assert script.asked[2].headers["if-range"] == f'"{DIGEST}"'


def test_what_an_earlier_process_fetched_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / PARTIAL).write_bytes(CONTENT[:5000])

    path = pull(tmp_path / "model.onnx", part(5000))

    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["model.onnx"]


def test_a_server_without_ranges_is_taken_from_the_start(tmp_path: Path) -> None:
    (tmp_path / PARTIAL).write_bytes(b"x" * 5000)

    path = pull(tmp_path / "model.onnx", reply(200, CONTENT))

    assert path.read_bytes() == CONTENT


def test_a_spoilt_beginning_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / PARTIAL).write_bytes(b"x" * 5000)

    path = pull(tmp_path / "model.onnx", part(5000), reply(200, CONTENT))

    assert path.read_bytes() == CONTENT


def test_other_bytes_than_promised_are_not_kept(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.write_bytes(b"an older model")
    forged = reply(200, b"x" * len(CONTENT))

    with pytest.raises(DownloadCorrupt):
        pull(target, forged, forged)

    assert target.read_bytes() == b"an older model"
    assert names(tmp_path) == ["model.onnx"]


def test_a_server_that_stays_away_leaves_what_arrived(tmp_path: Path) -> None:
    with serving(value(MODEL), cut(CONTENT[:1000], of=len(CONTENT))) as script:
        script.answers += [cut(b"", of=1, status=206)] * 1000
        with client(script.url) as foedus, pytest.raises(Unreachable):
            foedus.models.pull("model-1", path=tmp_path / "model.onnx")

    assert names(tmp_path) == [PARTIAL]
    assert (tmp_path / PARTIAL).read_bytes() == CONTENT[:1000]


def test_a_model_that_is_there_already_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(CONTENT)

    with serving(value(MODEL)) as script, client(script.url) as foedus:
        foedus.models.pull("model-1", path=tmp_path / "model.onnx")

    assert len(script.asked) == 1


def test_two_processes_do_not_mix_their_bytes(tmp_path: Path) -> None:
    with (tmp_path / PARTIAL).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadBusy):
            pull(tmp_path / "model.onnx")


def test_a_folder_gets_a_file_named_after_the_model(tmp_path: Path) -> None:
    evil = model(DIGEST, len(CONTENT), name="../../etc/passwd")

    with serving(value(evil), reply(200, CONTENT)) as script, client(script.url) as foedus:
        path = foedus.models.pull("model-1", path=tmp_path)

    assert path == tmp_path / "-..-etc-passwd.onnx"
    assert path.read_bytes() == CONTENT


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(FileRefused, match="file"):
        pull(tmp_path / "file" / "model.onnx")


def test_a_missing_variant_is_named_with_those_there_are(tmp_path: Path) -> None:
    with (
        serving(value(MODEL)) as script,
        client(script.url) as foedus,
        pytest.raises(VariantMissing, match="onnx-fp32"),
    ):
        foedus.models.pull("model-1", "onnx-int8", tmp_path)


def test_a_refusal_is_not_tried_again(tmp_path: Path) -> None:
    with (
        serving(value(MODEL), problem(404, "not-found")) as script,
        client(script.url) as foedus,
        pytest.raises(NotFound),
    ):
        foedus.models.pull("model-1", path=tmp_path / "model.onnx")

    assert len(script.asked) == 2


def test_a_link_is_followed_without_the_token_and_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    broken = cut(CONTENT[:1000], of=len(CONTENT))
    with serving(broken, part(1000)) as store:
        link = reply(307, Location=f"{store.url}/bucket/object?X-Amz-Signature=hidden")
        with serving(value(MODEL), link, link) as script, client(script.url) as foedus:
            path = foedus.models.pull("model-1", path=tmp_path / "model.onnx", direct=True)

    assert path.read_bytes() == CONTENT
    assert "direct=true" in script.asked[1].path
    assert store.asked[1].headers["range"] == "bytes=1000-"
    assert all("authorization" not in asked.headers for asked in store.asked)
    assert "hidden" not in caplog.text


def test_what_a_link_leads_to_is_verified(tmp_path: Path) -> None:
    with serving(reply(200, b"x" * len(CONTENT)), reply(200, b"y" * len(CONTENT))) as store:
        link = reply(307, Location=f"{store.url}/bucket/object")
        with pytest.raises(DownloadCorrupt):
            pull(tmp_path / "model.onnx", link, link, direct=True)

    assert names(tmp_path) == []


def test_a_link_that_is_void_is_refused_and_not_told(tmp_path: Path) -> None:
    with serving(reply(403, b"<Error/>")) as store:
        link = reply(307, Location=f"{store.url}/bucket/object?X-Amz-Signature=hidden")
        with pytest.raises(ApiError, match="refused its own link") as refused:
            pull(tmp_path / "model.onnx", link, direct=True)

    assert "hidden" not in str(refused.value)


def test_a_link_over_plain_http_to_another_machine_is_not_followed(tmp_path: Path) -> None:
    link = reply(307, Location="http://192.0.2.1/bucket/object?X-Amz-Signature=hidden")
    with pytest.raises(NotSecure, match="the link would travel in the clear") as refused:
        pull(tmp_path / "model.onnx", link, direct=True)

    assert "hidden" not in str(refused.value)


def test_a_redirect_that_was_not_asked_for_is_not_followed(tmp_path: Path) -> None:
    elsewhere = reply(307, Location="http://127.0.0.1:1/")
    with pytest.raises(ApiError, match="307"):
        pull(tmp_path / "model.onnx", elsewhere)
