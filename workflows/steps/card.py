"""What a finished model is, as the values that the last steps hand over."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sharing.object_store import Digest, StoredObject
from translation.parity import Parity
from translation.signature import TensorSpec


class ModelSignature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is called; ``signature.json``.

    Attributes:
        framework: What the original is written in.
        frozen_bytes: Of layers that the program builds by itself and that the safetensors file
            lacks (the ONNX form has them); 0 where that is the whole model.
        inputs: What it takes.
        outputs: What the ONNX form gives, scores or values last; empty if there is none.
        opset: Of the ONNX form; None if there is none.
        parity: How near the ONNX form is to the original; None if there is none.
        classes: What the scores are of, in their order; empty for real-valued targets.
    """

    framework: str
    frozen_bytes: int = 0
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = ()
    opset: int | None = None
    parity: Parity | None = None
    classes: tuple[str, ...] = ()


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model and where it comes from; ``model.json``.

    Attributes:
        name: Of the job.
        job: Id of the job.
        plan_digest: What was computed.
        digest: Name of the model: of its safetensors file.
        variants: Its forms: ``safetensors`` and, if it was exported, ``onnx-fp32``.
        signature: How it is called.
        metrics: As measured in its round; empty if it was not, or in an earlier attempt.
        round: Round that made it.
        rounds: Rounds there were.
        transcript_head: Digest of the last round's transcript, which the others hang from.
        classes: What its scores are of, in their order.
    """

    name: str
    job: str
    plan_digest: Digest
    digest: Digest
    variants: Mapping[str, StoredObject]
    signature: ModelSignature
    metrics: Mapping[str, float]
    round: int
    rounds: int
    transcript_head: Digest
    classes: tuple[str, ...]
