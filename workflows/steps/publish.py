"""The model's card, from what the other steps left: ``python -m workflows.steps.publish RUN_DIR``.

Which round made the model is not claimed by anyone: it is found in the transcripts, whose chain is
verified first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from sharing.object_store import StoredObject, digest_of_file
from workflows.causes import Cause, CauseCode
from workflows.events import AnyStepEvent, RoundFinished
from workflows.plan import Plan
from workflows.run_folder import StepError, StepFolder, run_step
from workflows.steps.card import ModelCard, ModelSignature
from workflows.transcript import RoundTranscript, TranscriptInvalid, verify_chain

SAFETENSORS = "safetensors"
FORMS = {SAFETENSORS: "model.safetensors", "onnx-fp32": "model.onnx"}


class NotOnRecord(Exception):
    """No transcript tells of the model."""


def compose_card(
    plan: Plan,
    variants: Mapping[str, StoredObject],
    signature: ModelSignature,
    transcripts: Sequence[RoundTranscript],
    events: Sequence[AnyStepEvent],
) -> ModelCard:
    """The card of a model.

    Args:
        plan: What was run.
        variants: Forms of the model; ``safetensors`` is one.
        signature: How it is called.
        transcripts: Of all rounds, in order.
        events: Of the step that trained it, in this attempt.

    Raises:
        TranscriptInvalid: The transcripts are not a chain of this plan.
        NotOnRecord: None of them made this model.
    """
    head = verify_chain(transcripts, plan=plan.plan_digest)
    digest = variants[SAFETENSORS].digest
    rounds = [transcript.round for transcript in transcripts if transcript.model == digest]
    if head is None or not rounds:
        raise NotOnRecord(f"no round made {digest}")
    # The best of equal models is the earlier one, the last is the last.
    selected = rounds[0] if plan.spec.evaluate.select == "best" else rounds[-1]
    finished = [event for event in events if isinstance(event, RoundFinished)]
    metrics = next((event.metrics for event in finished if event.round == selected), {})
    return ModelCard(
        name=plan.spec.name,
        job=plan.job,
        plan_digest=plan.plan_digest,
        digest=digest,
        variants=variants,
        signature=signature,
        metrics=metrics,
        round=selected,
        rounds=len(transcripts),
        transcript_head=head,
        classes=signature.classes,
    )


def publish(folder: StepFolder) -> None:
    """The step."""
    root = folder.files.root
    try:
        variants = {
            name: _stored(root / file)
            for name, file in FORMS.items()
            if name == SAFETENSORS or (root / file).exists()
        }
        signature = msgspec.json.decode((root / "signature.json").read_bytes(), type=ModelSignature)
        lines = (root / "transcripts.jsonl").read_bytes().splitlines()
        transcripts = [msgspec.json.decode(line, type=RoundTranscript) for line in lines]
        events = StepFolder(root, "federate").told()
        card = compose_card(folder.plan, variants, signature, transcripts, events)
    except FileNotFoundError as error:
        raise _failure(f"{Path(error.filename).name} is missing") from error
    except (msgspec.MsgspecError, TranscriptInvalid, NotOnRecord) as error:
        raise _failure(str(error)) from error
    folder.put("model.json", msgspec.json.encode(card))


def _stored(path: Path) -> StoredObject:
    return StoredObject(digest_of_file(path), path.stat().st_size)


def _failure(detail: str) -> StepError:
    return StepError(Cause(code=CauseCode.MANIFEST_INVALID, detail=detail))


if __name__ == "__main__":
    sys.exit(run_step("publish", Path(sys.argv[1]), publish))
