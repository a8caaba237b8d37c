from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from clients.errors import (
    DownloadBusy,
    DownloadCorrupt,
    FileRefused,
    NotFound,
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


def test_a_model_is_pulled_whole(tmp_path: Path) -> None:
    with serving(value(MODEL), reply(200, CONTENT)) as script, client(script.url) as foedus:
        path = foedus.models.pull("model-1", path=tmp_path / "model.onnx")

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

    with serving(value(MODEL), part(5000)) as script, client(script.url) as foedus:
        path = foedus.models.pull("model-1", path=tmp_path / "model.onnx")

    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["model.onnx"]


def test_a_server_without_ranges_is_taken_from_the_start(tmp_path: Path) -> None:
    (tmp_path / PARTIAL).write_bytes(b"x" * 5000)

    with serving(value(MODEL), reply(200, CONTENT)) as script, client(script.url) as foedus:
        path = foedus.models.pull("model-1", path=tmp_path / "model.onnx")

    assert path.read_bytes() == CONTENT


def test_a_spoilt_beginning_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / PARTIAL).write_bytes(b"x" * 5000)

    with (
        serving(value(MODEL), part(5000), reply(200, CONTENT)) as script,
        client(script.url) as foedus,
    ):
        path = foedus.models.pull("model-1", path=tmp_path / "model.onnx")

    assert path.read_bytes() == CONTENT


def test_other_bytes_than_promised_are_not_kept(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.write_bytes(b"an older model")
    forged = reply(200, b"x" * len(CONTENT))

    with (
        serving(value(MODEL), forged, forged) as script,
        client(script.url) as foedus,
        pytest.raises(DownloadCorrupt),
    ):
        foedus.models.pull("model-1", path=target)

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
        with (
            serving(value(MODEL)) as script,
            client(script.url) as foedus,
            pytest.raises(DownloadBusy),
        ):
            foedus.models.pull("model-1", path=tmp_path / "model.onnx")


def test_a_folder_gets_a_file_named_after_the_model(tmp_path: Path) -> None:
    evil = model(DIGEST, len(CONTENT), name="../../etc/passwd")

    with serving(value(evil), reply(200, CONTENT)) as script, client(script.url) as foedus:
        path = foedus.models.pull("model-1", path=tmp_path)

    assert path == tmp_path / "-..-etc-passwd.onnx"
    assert path.read_bytes() == CONTENT


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with (
        serving(value(MODEL)) as script,
        client(script.url) as foedus,
        pytest.raises(FileRefused, match="file"),
    ):
        foedus.models.pull("model-1", path=tmp_path / "file" / "model.onnx")


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
