"""The publish step: a card that follows from what is on record, and none from what is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from sharing.object_store import Digest, StoredObject, digest_of
from translation.signature import TensorSpec
from workflows.canonical import canonical_bytes, digest_value
from workflows.causes import CauseCode
from workflows.events import RoundFinished
from workflows.job import Builtin, Evaluate, JobSpec, Partitioned
from workflows.plan import Plan, compile_plan
from workflows.run_folder import StepError, StepFolder
from workflows.steps.card import ModelCard, ModelSignature
from workflows.steps.publish import NotOnRecord, compose_card, publish
from workflows.transcript import RoundTranscript, TranscriptInvalid

SIGNATURE = ModelSignature(
    framework="torch",
    inputs=(TensorSpec(name="input", shape=("batch", 64), dtype="float32"),),
    classes=("no", "yes"),
)
A, B = (digest_of(name) for name in (b"model a", b"model b"))


def plan_of(select: str) -> Plan:
    spec = JobSpec(
        name="digits",
        program=Builtin(name="digits-mlp"),
        data=Partitioned(dataset="digits"),
        evaluate=msgspec.convert({"select": select}, Evaluate),
    )
    return compile_plan("job-1", 1, spec, digest_of(b"environment"), {})


def chain(plan: Plan, models: Sequence[Digest]) -> list[RoundTranscript]:
    """Rounds in which nobody took part, one for each model."""
    transcripts: list[RoundTranscript] = []
    for number, model in enumerate(models, start=1):
        before = transcripts[-1] if transcripts else None
        transcripts.append(
            RoundTranscript(
                plan=plan.plan_digest,
                job=plan.job,
                round=number,
                previous=digest_value(before) if before else None,
                previous_model=before.model if before else digest_of(b"initial"),
                cohort=(),
                keys="simulated",
                commitments=(),
                dropped=(),
                sum=digest_of(b"sum"),
                model=model,
            )
        )
    return transcripts


def finished(round: int, accuracy: float) -> RoundFinished:
    return RoundFinished(
        number=round,
        at=0.0,
        round=round,
        rounds=3,
        sites=0,
        dropped=0,
        loss=None,
        metrics={"accuracy": accuracy},
        bytes_up=0,
        bytes_down=0,
        seconds=0.1,
        model=A,
        checkpoint=A,
        transcript=A,
    )


@pytest.mark.parametrize(
    ("select", "models", "round"),
    [
        ("last", (B, B, A), 3),
        ("best", (B, A, B), 2),
        ("best", (A, A, B), 1),
        ("last", (B, A, A), 3),
    ],
    ids=["the last", "the best", "the earlier of two best", "the last of two equal ones"],
)
def test_the_card_names_the_round_that_made_the_model(
    select: str, models: Sequence[Digest], round: int
) -> None:
    plan = plan_of(select)
    variants = {"safetensors": StoredObject(A, 10), "onnx-fp32": StoredObject(B, 20)}
    transcripts = chain(plan, models)
    events = [finished(number, number / 10) for number in (1, 2, 3)]

    card = compose_card(plan, variants, SIGNATURE, transcripts, events)

    assert card == ModelCard(
        name="digits",
        job="job-1",
        plan_digest=plan.plan_digest,
        digest=A,
        variants=variants,
        signature=SIGNATURE,
        metrics={"accuracy": round / 10},
        round=round,
        rounds=3,
        transcript_head=digest_value(transcripts[2]),
        classes=("no", "yes"),
    )


def test_a_round_of_an_earlier_attempt_has_no_metrics_here() -> None:
    plan = plan_of("best")
    variants = {"safetensors": StoredObject(A, 10)}

    card = compose_card(plan, variants, SIGNATURE, chain(plan, (A, B)), [finished(2, 0.2)])

    assert (card.round, card.metrics) == (1, {})


def test_a_model_that_no_round_made_gets_no_card() -> None:
    plan = plan_of("last")

    with pytest.raises(NotOnRecord, match=A):
        compose_card(plan, {"safetensors": StoredObject(A, 1)}, SIGNATURE, chain(plan, (B,)), [])
    with pytest.raises(NotOnRecord):
        compose_card(plan, {"safetensors": StoredObject(A, 1)}, SIGNATURE, [], [])


def test_a_broken_chain_gets_no_card() -> None:
    plan = plan_of("last")
    first, _, third = chain(plan, (B, B, A))

    with pytest.raises(TranscriptInvalid, match="round 2"):
        compose_card(plan, {"safetensors": StoredObject(A, 1)}, SIGNATURE, [first, third], [])


def lay_run(root: Path) -> Path:
    plan = plan_of("last")
    (root / "job.json").write_bytes(msgspec.json.encode(plan))
    (root / "model.safetensors").write_bytes(b"model a")
    (root / "model.onnx").write_bytes(b"model b")
    (root / "signature.json").write_bytes(msgspec.json.encode(SIGNATURE))
    lines = [canonical_bytes(transcript) for transcript in chain(plan, (B, A))]
    (root / "transcripts.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    (root / "federate.events.jsonl").write_bytes(msgspec.json.encode(finished(2, 0.9)) + b"\n")
    return root


def test_the_step_gathers_what_the_others_left(tmp_path: Path) -> None:
    publish(StepFolder(lay_run(tmp_path), "publish"))

    card = msgspec.json.decode((tmp_path / "model.json").read_bytes(), type=ModelCard)
    assert card.variants == {"safetensors": StoredObject(A, 7), "onnx-fp32": StoredObject(B, 7)}
    assert (card.round, card.metrics) == (2, {"accuracy": 0.9})


def test_without_an_onnx_form_there_is_one_variant(tmp_path: Path) -> None:
    (lay_run(tmp_path) / "model.onnx").unlink()

    publish(StepFolder(tmp_path, "publish"))

    card = msgspec.json.decode((tmp_path / "model.json").read_bytes(), type=ModelCard)
    assert set(card.variants) == {"safetensors"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model.safetensors", b"another model", "no round made"),
        ("signature.json", b"{}", "framework"),
        ("transcripts.jsonl", b"noise\n", "malformed"),
        ("transcripts.jsonl", None, r"transcripts\.jsonl is missing"),
        ("model.safetensors", None, r"model\.safetensors is missing"),
    ],
    ids=["another model", "no signature", "noise", "no transcripts", "no model"],
)
def test_what_does_not_fit_together_fails_the_step(
    name: str, content: bytes | None, reason: str, tmp_path: Path
) -> None:
    path = lay_run(tmp_path) / name
    path.unlink() if content is None else path.write_bytes(content)

    with pytest.raises(StepError, match=reason) as caught:
        publish(StepFolder(tmp_path, "publish"))

    assert caught.value.cause.code == CauseCode.MANIFEST_INVALID
    assert str(tmp_path) not in caught.value.cause.detail
    assert not (tmp_path / "model.json").exists()
