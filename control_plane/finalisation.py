"""Whether what an attempt made is what was planned, whole and unaltered.

A run succeeds when its manifests verify, not when an engine says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from sharing.object_store import (
    Digest,
    ObjectCorrupt,
    ObjectMissing,
    ObjectStore,
    Retaining,
    StoredObject,
)
from workflows.capabilities import Parameter
from workflows.manifest import Manifest
from workflows.plan import Plan, Step, StepKind
from workflows.steps.card import ModelCard

MODEL: Final = "model.safetensors"
CARD: Final = "model.json"
PROOFS: Final = ("transcripts.jsonl", "spent.json", CARD)
MAX_DOCUMENT_BYTES: Final = 16 << 20
_MANIFEST: Final = msgspec.json.Decoder(Manifest)
_CARD: Final = msgspec.json.Decoder(ModelCard)
_HEADER: Final = msgspec.json.Decoder(dict[str, dict[str, Any]])
_DTYPES: Final = {"F16": "float16", "F32": "float32", "F64": "float64", "BF16": "bfloat16"}
_MEDIA_TYPES: Final = {"json": "application/json", "jsonl": "application/x-ndjson"}


class Unverified(Exception):
    """Something that an attempt made is missing, altered, or not what was planned."""


@dataclass(frozen=True, slots=True)
class Output:
    """A verified output.

    Attributes:
        name: Of its file.
        step: That made it.
        object: Its bytes.
    """

    name: str
    step: StepKind
    object: StoredObject

    @property
    def media_type(self) -> str:
        """What kind of file it is."""
        return media_type_of(self.name)


@dataclass(frozen=True, slots=True)
class Results:
    """What an attempt made.

    Attributes:
        outputs: By name.
        card: Of the model, where one is published.
        parameters: The model's arrays.
    """

    outputs: Mapping[str, Output]
    card: ModelCard | None
    parameters: tuple[Parameter, ...]


async def verify(store: ObjectStore, plan: Plan, manifests: Mapping[StepKind, Digest]) -> Results:
    """Read everything that the attempt of ``plan`` made.

    Raises:
        Unverified: Something is not as it must be.
        StoreUnavailable: The store did not answer.
    """
    outputs: dict[str, Output] = {}
    try:
        for step in plan.steps:
            manifest = await _manifest(store, plan, step, manifests)
            for name, stored in manifest.outputs.items():
                await _require_whole(store, name, stored)
                outputs[name] = Output(name, step.name, stored)
        card = await _card(store, plan, outputs) if CARD in outputs else None
        parameters = await _parameters(store, outputs[MODEL].object) if MODEL in outputs else ()
    except ObjectMissing as error:
        raise Unverified(f"an object is not in the store: {error}") from error
    except ObjectCorrupt as error:
        raise Unverified(f"an object was altered: {error}") from error
    except msgspec.DecodeError as error:
        raise Unverified(f"a document does not say what it must: {error}") from error
    return Results(outputs, card, parameters)


def proofs_of(manifests: Mapping[StepKind, Digest], results: Results) -> frozenset[Digest]:
    """What shows how a model was made, without the model itself."""
    found = (results.outputs[name].object.digest for name in PROOFS if name in results.outputs)
    return frozenset((*manifests.values(), *found))


async def retain(store: ObjectStore, digests: frozenset[Digest], until: datetime) -> None:
    """Have the store keep objects from everybody until then, where it can; may be repeated.

    Raises:
        StoreError: Not all are kept.
    """
    if isinstance(store, Retaining):
        for digest in sorted(digests):
            await store.retain(digest, until)


def media_type_of(name: str) -> str:
    """What kind of file has this name."""
    return _MEDIA_TYPES.get(name.rpartition(".")[2], "application/octet-stream")


async def _manifest(
    store: ObjectStore, plan: Plan, step: Step, manifests: Mapping[StepKind, Digest]
) -> Manifest:
    if step.name not in manifests:
        raise Unverified(f"step {step.name} left no manifest")
    manifest = _MANIFEST.decode(await _document(store, manifests[step.name]))
    said = (manifest.job, manifest.attempt, manifest.step, manifest.plan_digest)
    if said != (plan.job, plan.attempt, step.name, plan.plan_digest):
        raise Unverified(f"the manifest of step {step.name} is of something else")
    names = set(manifest.outputs)
    if lacking := sorted(set(step.outputs) - names):
        raise Unverified(f"step {step.name} did not make {', '.join(lacking)}")
    if strange := sorted(names - set(step.outputs) - set(step.optional_outputs)):
        raise Unverified(f"step {step.name} made {', '.join(strange)}, which was not planned")
    return manifest


async def _require_whole(store: ObjectStore, name: str, stored: StoredObject) -> None:
    """Read an object through; the store verifies it by its digest as it goes."""
    size_bytes = 0
    async for chunk in store.get(stored.digest):
        size_bytes += len(chunk)
    if size_bytes != stored.size_bytes:
        raise Unverified(f"{name} has {size_bytes} bytes, and its manifest says otherwise")


async def _card(store: ObjectStore, plan: Plan, outputs: Mapping[str, Output]) -> ModelCard:
    card = _CARD.decode(await _document(store, outputs[CARD].object.digest))
    if (card.job, card.plan_digest) != (plan.job, plan.plan_digest):
        raise Unverified("the model's card is of another job")
    if MODEL not in outputs or card.digest != outputs[MODEL].object.digest:
        raise Unverified("the model's card is of another model")
    made = {output.object for output in outputs.values()}
    if not set(card.variants.values()) <= made:
        raise Unverified("the model's card names a variant that no step made")
    return card


async def _document(store: ObjectStore, digest: Digest) -> bytes:
    stored = await store.stat(digest)
    if stored.size_bytes > MAX_DOCUMENT_BYTES:
        raise Unverified(f"a document of {stored.size_bytes} bytes")
    return b"".join([chunk async for chunk in store.get(digest)])


async def _parameters(store: ObjectStore, model: StoredObject) -> tuple[Parameter, ...]:
    """Names, shapes and types from a safetensors header.

    Source: the safetensors format: 8 bytes of length, little endian, then JSON.
    """
    length = int.from_bytes(await _part(store, model, 0, 8), "little")
    if not 0 < length <= min(MAX_DOCUMENT_BYTES, model.size_bytes - 8):
        raise Unverified("the model is no safetensors file")
    header = _HEADER.decode(await _part(store, model, 8, 8 + length))
    return tuple(
        Parameter(
            name=name,
            shape=tuple(entry.get("shape", ())),
            dtype=_DTYPES.get(entry.get("dtype", ""), str(entry.get("dtype")).lower()),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    )


async def _part(store: ObjectStore, stored: StoredObject, start: int, stop: int) -> bytes:
    return b"".join([chunk async for chunk in store.get(stored.digest, start=start, stop=stop)])
