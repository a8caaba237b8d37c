from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from control_plane.finalisation import Unverified, media_type_of, verify
from sharing.directory_store import DirectoryStore
from sharing.object_store import Digest, StoredObject, digest_of
from tests.control_plane.conftest import job_spec
from tests.control_plane.scripted_engine import model_file, one_chunk, stored
from workflows.capabilities import Parameter
from workflows.manifest import Manifest
from workflows.plan import StepKind, compile_plan
from workflows.steps.card import ModelCard, ModelSignature

pytestmark = pytest.mark.anyio
PLAN = compile_plan("job-1", 2, job_spec(), digest_of(b"environment"), {})
CARD = ModelCard(
    name="digits",
    job="job-1",
    plan_digest=PLAN.plan_digest,
    digest=digest_of(model_file()),
    variants={"safetensors": stored(model_file()), "onnx-fp32": stored(b"onnx")},
    signature=ModelSignature(framework="torch", inputs=()),
    metrics={},
    round=3,
    rounds=3,
    transcript_head=digest_of(b"t"),
    classes=(),
)
FILES: Mapping[StepKind, Mapping[str, bytes]] = {
    "federate": {
        "model.safetensors": model_file(),
        "transcripts.jsonl": b"{}\n",
        "spent.json": b"[]",
    },
    "translate": {"signature.json": b"{}", "model.onnx": b"onnx"},
    "publish": {"model.json": msgspec.json.encode(CARD)},
}


class Made:
    """What an attempt left in a store, to be spoilt."""

    def __init__(self, folder: Path) -> None:
        self.store = DirectoryStore(folder)
        self.files: dict[StepKind, dict[str, bytes]] = {k: dict(v) for k, v in FILES.items()}
        self.spoil: dict[StepKind, Callable[[Manifest], Manifest]] = {}
        self.missing: set[Digest] = set()

    async def put(self, content: bytes) -> StoredObject:
        return await self.store.put(one_chunk(content))

    async def manifests(self) -> dict[StepKind, Digest]:
        named: dict[StepKind, Digest] = {}
        for step, files in self.files.items():
            outputs = {name: await self.put(content) for name, content in files.items()}
            manifest = Manifest(
                job="job-1",
                attempt=2,
                step=step,
                plan_digest=PLAN.plan_digest,
                outputs=outputs,
            )
            spoil = self.spoil.get(step, lambda manifest: manifest)
            named[step] = (await self.put(msgspec.json.encode(spoil(manifest)))).digest
        for digest in self.missing:
            await self.store.delete(digest)
        return named

    def card(self, **changes: Any) -> None:
        self.files["publish"]["model.json"] = msgspec.json.encode(replace(CARD, **changes))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


async def test_what_is_as_planned_is_verified(made: Made) -> None:
    results = await verify(made.store, PLAN, await made.manifests())

    assert set(results.outputs) == {name for files in FILES.values() for name in files}
    assert results.outputs["model.onnx"].object == stored(b"onnx")
    assert results.outputs["model.onnx"].step == "translate"
    assert results.card == CARD
    assert results.parameters == (Parameter(name="w", shape=(2,), dtype="float32"),)


async def test_an_optional_output_may_be_absent(made: Made) -> None:
    del made.files["translate"]["model.onnx"]
    made.card(variants={"safetensors": stored(model_file())})

    results = await verify(made.store, PLAN, await made.manifests())

    assert "model.onnx" not in results.outputs


def wrong_size(manifest: Manifest) -> Manifest:
    spent = manifest.outputs["spent.json"]
    wrong = StoredObject(spent.digest, spent.size_bytes + 1)
    return replace(manifest, outputs={**manifest.outputs, "spent.json": wrong})


SPOILT: Mapping[str, Callable[[Made], None]] = {
    "an output is lacking": lambda made: made.files["federate"].pop("spent.json") and None,
    "an output was not planned": lambda made: made.files["federate"].update({"x": b"x"}),
    "a size is wrong": lambda made: made.spoil.update(federate=wrong_size),
    "the manifest is of another job": lambda made: made.spoil.update(
        federate=lambda m: replace(m, job="job-2")
    ),
    "the manifest is of another attempt": lambda made: made.spoil.update(
        federate=lambda m: replace(m, attempt=1)
    ),
    "the manifest is of another step": lambda made: made.spoil.update(
        federate=lambda m: replace(m, step="publish")
    ),
    "the manifest is of another plan": lambda made: made.spoil.update(
        federate=lambda m: replace(m, plan_digest=digest_of(b"other"))
    ),
    "an object is not there": lambda made: made.missing.add(digest_of(b"onnx")),
    "the card is of another job": lambda made: made.card(job="job-2"),
    "the card is of another plan": lambda made: made.card(plan_digest=digest_of(b"other")),
    "the card is of another model": lambda made: made.card(digest=digest_of(b"other")),
    "the card names what nobody made": lambda made: made.card(variants={"x": stored(b"x")}),
    "the card is no card": lambda made: made.files["publish"].update({"model.json": b"{}"}),
    "the card is not even JSON": lambda made: made.files["publish"].update({"model.json": b"{"}),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=list(SPOILT))
async def test_nothing_is_verified_if(made: Made, spoil: Callable[[Made], None]) -> None:
    spoil(made)

    with pytest.raises(Unverified):
        await verify(made.store, PLAN, await made.manifests())


async def test_a_step_without_a_manifest_has_not_succeeded(made: Made) -> None:
    manifests = await made.manifests()
    del manifests["translate"]

    with pytest.raises(Unverified, match="translate left no manifest"):
        await verify(made.store, PLAN, manifests)


@pytest.mark.parametrize(
    "content", [b"", b"1234567", bytes(8), b"\xff" * 16, (4).to_bytes(8, "little") + b"{}{}"]
)
async def test_a_model_that_is_no_safetensors_file_is_refused(made: Made, content: bytes) -> None:
    made.files["federate"]["model.safetensors"] = content
    made.card(digest=digest_of(content), variants={"safetensors": stored(content)})

    with pytest.raises(Unverified):
        await verify(made.store, PLAN, await made.manifests())


async def test_a_manifest_that_is_altered_at_rest_is_refused(made: Made, tmp_path: Path) -> None:
    manifests = await made.manifests()
    name = manifests["federate"].removeprefix("sha256:")
    [path] = tmp_path.glob(f"**/{name}")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"job-1", b"job-2"))

    with pytest.raises(Unverified, match="altered"):
        await verify(made.store, PLAN, manifests)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.json", "application/json"),
        ("transcripts.jsonl", "application/x-ndjson"),
        ("model.onnx", "application/octet-stream"),
    ],
)
def test_a_file_is_of_the_kind_that_its_name_says(name: str, expected: str) -> None:
    assert media_type_of(name) == expected
