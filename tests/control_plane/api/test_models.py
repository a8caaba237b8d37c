from __future__ import annotations

import base64
import hashlib

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from clients.resources import Artifact, Model, Page
from sharing.object_store import StoredObject, digest_of
from tests.control_plane.api.conftest import Server
from tests.control_plane.api.test_jobs import problem
from translation.signature import TensorSpec
from workflows.steps.card import ModelCard, ModelSignature

ONNX = bytes(range(256)) * 40
WEIGHTS = safetensors.numpy.save({"head.weight": np.ones((10, 64), np.float32)})


@pytest.fixture(scope="module")
def model(server: Server) -> Model:
    """The published model of a job that was played to its end."""
    return published(server, server.submit(rounds=1))


def published(server: Server, job: str) -> Model:
    """The model of ``job``, which has one round, once that was played to its end."""
    attempt = server.attempt(job)
    attempt.tell("federate", {"kind": "step.started"})
    attempt.finish_round(1)
    transcript = f'{{"round":1,"job":"{job}"}}\n'.encode()
    attempt.finish_step(
        "federate",
        {"model.safetensors": WEIGHTS, "transcripts.jsonl": transcript, "spent.json": b"{}"},
    )
    signature = ModelSignature(
        framework="torch",
        inputs=(TensorSpec(name="x", shape=("batch", 64), dtype="float32"),),
        outputs=(TensorSpec(name="logits", shape=("batch", 10), dtype="float32"),),
        opset=20,
        classes=tuple("0123456789"),
    )
    outputs = {"signature.json": msgspec.json.encode(signature), "model.onnx": ONNX}
    attempt.finish_step("translate", outputs)
    card = ModelCard(
        name="digits",
        job=job,
        plan_digest=attempt.plan.plan_digest,
        digest=digest_of(WEIGHTS),
        variants={
            "safetensors": StoredObject(digest_of(WEIGHTS), len(WEIGHTS)),
            "onnx-fp32": StoredObject(digest_of(ONNX), len(ONNX)),
        },
        signature=signature,
        metrics={"accuracy": 0.5},
        round=1,
        rounds=1,
        transcript_head=digest_of(transcript),
        classes=signature.classes,
    )
    attempt.finish_step("publish", {"model.json": msgspec.json.encode(card)})
    closed = server.until(
        lambda: (found := server.get(f"/v1/jobs/{job}").json())["ended_at"] and found
    )
    assert closed["phase"] == "succeeded", closed
    return msgspec.json.decode(server.get(f"/v1/models/{closed['model']}").content, type=Model)


def test_a_model_is_listed_and_described(server: Server, model: Model) -> None:
    page = msgspec.json.decode(server.get("/v1/models").content, type=Page[Model])

    assert model in page.items
    assert model.digest == digest_of(WEIGHTS)
    assert {variant.name for variant in model.variants} == {"safetensors", "onnx-fp32"}
    assert model.classes == tuple("0123456789")


def test_the_content_is_the_onnx_form_unless_another_is_asked_for(
    server: Server, model: Model
) -> None:
    at = f"/v1/models/{model.id}/content"

    onnx = server.get(at)
    weights = server.get(f"{at}?variant=safetensors")
    head = server.call("HEAD", at)

    assert onnx.content == ONNX
    assert onnx.headers["etag"] == f'"{digest_of(ONNX)}"'
    sha256 = base64.b64encode(hashlib.sha256(ONNX).digest()).decode()
    assert onnx.headers["repr-digest"] == f"sha-256=:{sha256}:"
    assert onnx.headers["accept-ranges"] == "bytes"
    assert weights.content == WEIGHTS
    assert head.content == b""
    assert head.headers["content-length"] == str(len(ONNX))
    assert head.headers["etag"] == onnx.headers["etag"]
    problem(server.get(f"{at}?variant=tflite"), 404, "not-found")


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-99", 0, 100), ("bytes=10000-", 10_000, len(ONNX)), ("bytes=-5", -5, len(ONNX))],
)
def test_a_part_of_the_content(
    server: Server, model: Model, asked: str, start: int, stop: int
) -> None:
    answer = server.get(f"/v1/models/{model.id}/content", headers={"Range": asked})

    assert answer.status_code == 206
    assert answer.content == ONNX[start:stop]
    first = start % len(ONNX)
    assert answer.headers["content-range"] == f"bytes {first}-{stop - 1}/{len(ONNX)}"


def test_a_range_past_the_end_is_refused_with_the_size(server: Server, model: Model) -> None:
    at = f"/v1/models/{model.id}/content"

    answer = server.get(at, headers={"Range": f"bytes={len(ONNX)}-"})

    problem(answer, 416, "range-not-satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(ONNX)}"


def test_a_download_goes_on_only_with_the_same_bytes(server: Server, model: Model) -> None:
    at = f"/v1/models/{model.id}/content"
    part = {"Range": "bytes=5-"}

    same = server.get(at, headers={**part, "If-Range": f'"{digest_of(ONNX)}"'})
    other = server.get(at, headers={**part, "If-Range": f'"{digest_of(WEIGHTS)}"'})

    assert (same.status_code, same.content) == (206, ONNX[5:])
    assert (other.status_code, other.content) == (200, ONNX)


def test_content_that_is_known_is_not_sent_again(server: Server, model: Model) -> None:
    at = f"/v1/models/{model.id}/content"

    answer = server.get(at, headers={"If-None-Match": f'"{digest_of(ONNX)}"'})

    assert (answer.status_code, answer.content) == (304, b"")


def test_artifacts_are_listed_and_downloaded(server: Server, model: Model) -> None:
    at = f"/v1/jobs/{model.job}/artifacts"
    page = msgspec.json.decode(server.get(at).content, type=Page[Artifact])

    by_name = {artifact.name: artifact for artifact in page.items}
    weights = server.get(f"{at}/model.safetensors")
    part = server.get(f"{at}/model.safetensors", headers={"Range": "bytes=0-3"})

    assert {"model.safetensors", "model.onnx", "transcripts.jsonl"} <= by_name.keys()
    assert weights.content == WEIGHTS
    assert weights.headers["etag"] == f'"{by_name["model.safetensors"].digest}"'
    assert (part.status_code, part.content) == (206, WEIGHTS[:4])
    problem(server.get(f"{at}/nothing.bin"), 404, "not-found")


def test_the_model_is_hidden_from_others(server: Server, model: Model, stranger: str) -> None:
    for path in (
        f"/v1/models/{model.id}",
        f"/v1/models/{model.id}/content",
        f"/v1/jobs/{model.job}/artifacts/model.safetensors",
    ):
        theirs = server.get(path, token=stranger)
        problem(theirs, 404, "not-found")
    assert server.get("/v1/models", token=stranger).json()["items"] == []


def test_the_model_outlives_the_record_of_its_job(server: Server, model: Model) -> None:
    assert server.get(f"/v1/models/{model.id}/content").content == ONNX


def test_a_store_without_links_hands_out_the_bytes(server: Server, model: Model) -> None:
    answer = server.get(f"/v1/models/{model.id}/content?direct=true")

    assert (answer.status_code, answer.content) == (200, ONNX)
