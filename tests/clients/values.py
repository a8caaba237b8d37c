"""Resources as the control plane would answer them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from clients.resources import Job, Model, Variant
from clients.sdk import Foedus
from clients.transport import Patience
from workflows.job import Builtin, JobSpec, Partitioned
from workflows.run import Desired, Phase

AT = datetime(2026, 1, 1, tzinfo=UTC)
DIGEST = "sha256:" + 64 * "a"
HASTY = Patience(first_s=0.01, longest_s=0.02, total_s=1.0)

SPEC = JobSpec(
    name="digits", program=Builtin(name="digits-mlp"), data=Partitioned(dataset="digits"), rounds=2
)
JOB = Job(
    id="job-1",
    name="digits",
    collaboration="collaboration-1",
    organisation="organisation-1",
    submitted_by="user-1",
    phase=Phase.PENDING,
    desired=Desired.RUN,
    waits_for="a free slot",
    attempt=0,
    round=0,
    rounds=2,
    loss=None,
    metrics={},
    cause=None,
    model=None,
    plan_digest=DIGEST,
    created_at=AT,
    updated_at=AT,
    ended_at=None,
    spec=SPEC,
)


def job(**changes: Any) -> Job:
    return msgspec.structs.replace(JOB, **changes)


def closed(phase: Phase, **changes: Any) -> Job:
    return job(phase=phase, waits_for="", ended_at=AT, **changes)


def model(content_digest: str, size_bytes: int, name: str = "digits") -> Model:
    variant = Variant(
        name="onnx-fp32",
        digest=content_digest,
        size_bytes=size_bytes,
        media_type="application/octet-stream",
    )
    return Model(
        id="model-1",
        name=name,
        job="job-1",
        collaboration="collaboration-1",
        plan_digest=DIGEST,
        digest=DIGEST,
        round=2,
        metrics={"accuracy": 0.97},
        signature={},
        classes=("0", "1"),
        transcript_head=DIGEST,
        variants=(variant,),
        created_at=AT,
    )


def round_fields(number: int, loss: float | None = 0.5, accuracy: float = 0.9) -> dict[str, Any]:
    return {
        "round": number,
        "rounds": 2,
        "sites": 3,
        "dropped": 0,
        "loss": loss,
        "metrics": {"accuracy": accuracy},
        "bytes_up": 30,
        "bytes_down": 30,
        "seconds": 0.25,
        "epsilon": None,
        "model": DIGEST,
        "checkpoint": DIGEST,
        "transcript": DIGEST,
    }


def client(url: str, patience: Patience = HASTY, timeout_s: float = 2.0) -> Foedus:
    return Foedus(url, "foedus_secret", timeout_s=timeout_s, patience=patience)
