"""Real examples of everything that goes over the wire, by the name of its type.

They are made of the very types, so they cannot be of another shape; a test decodes each one again.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from clients.resources import (
    Artifact,
    AuditEntry,
    AuditVerification,
    CapabilitiesView,
    Collaboration,
    Dataset,
    DryRun,
    Event,
    Job,
    JobPatch,
    KeyRotation,
    KeyState,
    LoginView,
    Model,
    NewCollaboration,
    NewOrganisation,
    NewStorageCredential,
    NewToken,
    NewUpload,
    NewUser,
    OpenAttempt,
    Organisation,
    OrganisationUse,
    Page,
    PartLink,
    PartLinks,
    PartsWanted,
    PlatformKey,
    PlatformStatus,
    Program,
    QueuedJob,
    Quota,
    QuotaChange,
    Retained,
    Role,
    Round,
    RuntimeView,
    StorageAccess,
    StorageCredential,
    Token,
    Upload,
    Use,
    User,
    Variant,
)
from control_plane.api.health import Health
from control_plane.api.ingest import Acknowledged, LogEnd, StepEvents
from sharing.object_store import StoredObject, digest_of
from strategies.fedopt import FedAdam
from workflows.capabilities import DatasetFacts, Parameter, ProgramFacts
from workflows.data.partitioners import Dirichlet
from workflows.events import RoundFinished, RoundStarted
from workflows.job import Builtin, Evaluate, JobSpec, Local, Partitioned, Seed, Sgd
from workflows.run import Desired, Phase

AT: Final = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
JOB: Final = "job-01kan7m1v3q8"
MODEL: Final = "model-01kan7q6x2z4"
HOME: Final = "organisation-01kan7a0b1c2"
COLLABORATION: Final = "collaboration-01kan7a0b1c3"
EVA: Final = "user-01kan7a0b1c4"
PLAN: Final = digest_of(b"plan")
WEIGHTS: Final = digest_of(b"weights")
TRANSCRIPT: Final = digest_of(b"transcript")

SPEC: Final = JobSpec(
    name="digits",
    program=Builtin(name="digits-cnn"),
    data=Partitioned(dataset="digits", sites=10, partitioner=Dirichlet(alpha=0.5)),
    init=Seed(seed=7),
    local=Local(epochs=5, batch_size=32, optimizer=Sgd(lr=0.05)),
    strategy=FedAdam(eta=0.1),
    rounds=12,
    evaluate=Evaluate(metrics=("accuracy",)),
)
ANALYSIS: Final[Mapping[str, Any]] = {
    "name": "strength of wines",
    "program": {
        "kind": "analysis",
        "query": {"kind": "quantile", "column": "alcohol", "levels": [0.5], "low": 0, "high": 20},
    },
    "data": {"kind": "partitioned", "dataset": "wine", "sites": 5},
}
FACTS: Final = ProgramFacts(
    framework="torch",
    parameters=(
        Parameter(name="head.bias", shape=(10,), dtype="float32"),
        Parameter(name="head.weight", shape=(10, 64), dtype="float32"),
    ),
    features=(64,),
    import_s=1.9,
    summary="One linear layer.",
)
DATA_FACTS: Final = DatasetFacts(
    num_examples=1797, features=(64,), num_classes=10, summary="Handwritten digits, 8 by 8."
)
RUNNING: Final = Job(
    id=JOB,
    name="digits",
    collaboration=COLLABORATION,
    organisation=HOME,
    submitted_by=EVA,
    phase=Phase.RUNNING,
    desired=Desired.RUN,
    waits_for="round 4 of 12",
    attempt=1,
    round=3,
    rounds=12,
    loss=0.41,
    metrics={"accuracy": 0.87},
    cause=None,
    model=None,
    plan_digest=PLAN,
    created_at=AT,
    updated_at=AT,
    ended_at=None,
    spec=SPEC,
)
ROUND: Final = Round(
    number=3,
    sites=10,
    dropped=0,
    loss=0.41,
    metrics={"accuracy": 0.87},
    bytes_up=1_500_000,
    bytes_down=1_500_000,
    seconds=0.8,
    epsilon=None,
    model=WEIGHTS,
    transcript=TRANSCRIPT,
    at=AT,
)
EVENT: Final = Event(
    id=9,
    kind="round.finished",
    at=AT,
    attempt=1,
    fields={"round": 3, "rounds": 12, "loss": 0.41, "metrics": {"accuracy": 0.87}},
)
ARTIFACT: Final = Artifact(
    name="model.safetensors",
    digest=WEIGHTS,
    size_bytes=150_912,
    media_type="application/vnd.safetensors",
    step="federate",
    at=AT,
)
PROGRAM: Final = Program(
    digest=digest_of(b"program"), name="my-classifier", size_bytes=2_048, facts=FACTS, created_at=AT
)
DATASET: Final = Dataset(
    digest=digest_of(b"dataset"),
    name="visits",
    format="csv",
    label="readmitted",
    size_bytes=81_920,
    facts=DatasetFacts(num_examples=1_000, features=(12,), num_classes=2),
    created_at=AT,
)
MODEL_OF_DIGITS: Final = Model(
    id=MODEL,
    name="digits",
    job=JOB,
    collaboration=COLLABORATION,
    plan_digest=PLAN,
    digest=WEIGHTS,
    round=12,
    metrics={"accuracy": 0.961},
    signature={
        "inputs": [{"name": "x", "shape": ["batch", 64], "dtype": "float32"}],
        "outputs": [{"name": "logits", "shape": ["batch", 10], "dtype": "float32"}],
        "opset": 20,
        "parity": {"samples": 64, "max_abs_difference": 1.2e-7, "labels_equal": True},
    },
    classes=tuple("0123456789"),
    transcript_head=TRANSCRIPT,
    variants=(
        Variant(
            name="onnx-fp32",
            digest=digest_of(b"onnx"),
            size_bytes=153_600,
            media_type="application/onnx",
        ),
        Variant(
            name="safetensors",
            digest=WEIGHTS,
            size_bytes=150_912,
            media_type="application/vnd.safetensors",
        ),
    ),
    created_at=AT,
)
HOSPITALS: Final = Collaboration(
    id=COLLABORATION,
    name="north-hospitals",
    purpose="Triage of chest X-rays.",
    organisations=(HOME,),
    datasets=("chest-xray",),
    visibility=NewCollaboration(name="north-hospitals").visibility,
    ends_at=None,
    created_at=AT,
)
ORGANISATION: Final = Organisation(id=HOME, name="home", created_at=AT)
USER: Final = User(id=EVA, name="eva", organisation=HOME, roles=(Role.DEVELOPER,), created_at=AT)
TOKEN: Final = Token(
    id="token-01kan7a0b1c5",
    label="laptop",
    user=EVA,
    created_at=AT,
    expires_at=None,
    secret="foedus_...",  # noqa: S106 - stands for one
)
STORAGE: Final = StorageCredential(
    id="storage-01kan7a0b1c5",
    label="ward-7",
    organisation=HOME,
    access_key="foedus0a1b2c3d4e5f67",
    made_by=EVA,
    created_at=AT,
    expires_at=AT,
    access=StorageAccess(
        url="https://minio.example.org",
        region="us-east-1",
        access_key="foedus0a1b2c3d4e5f67",
        secret_key="...",  # noqa: S106 - stands for one
        datasets=f"{HOME}-datasets",
        models=f"{HOME}-models",
    ),
)
USE: Final = OrganisationUse(
    id=HOME,
    name="home",
    use=Use(running=1, workers=4, storage_bytes=304_512, open_jobs=2),
    quota=Quota(running=1, open_jobs=1_000),
)
SEALING_KEY = PlatformKey(
    id="cursors.key_01kan7m1v3q9",
    purpose="cursors",
    state=KeyState.SEALS,
    created_at=AT,
    ends_at=None,
)
ENTRY: Final = AuditEntry(
    number=12,
    at=AT,
    actor=EVA,
    organisation=HOME,
    action="job.submit",
    object=JOB,
    outcome="done",
    detail={"name": "digits", "collaboration": COLLABORATION},
    trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    digest=digest_of(b"entry"),
)

BODIES: Final[Mapping[str, Any]] = {
    "JobSpec": SPEC,
    "JobPatch": JobPatch(desired="cancelled"),
    "Job": RUNNING,
    "LoginView": LoginView(
        issuer="https://keycloak.example.org/realms/foedus", client_id="foedus-cli"
    ),
    "DryRun": DryRun(
        plan_digest=PLAN,
        steps={"federate": ("workflows.runtimes.flower",), "publish": ("workflows.steps.publish",)},
        parameters=650,
        bytes_per_site_and_round={"up": 2_600, "down": 2_600},
        bytes_total=624_000,
        memory_mb={"server": 120, "worker": 900},
        epsilon=None,
    ),
    "Program": PROGRAM,
    "Dataset": DATASET,
    "Model": MODEL_OF_DIGITS,
    "NewCollaboration": NewCollaboration(
        name="north-hospitals", purpose="Triage of chest X-rays.", organisations=("south-clinic",)
    ),
    "Collaboration": HOSPITALS,
    "NewOrganisation": NewOrganisation(name="south-clinic"),
    "Organisation": ORGANISATION,
    "NewUser": NewUser(name="eva", organisation="home", roles=(Role.DEVELOPER,)),
    "User": USER,
    "NewToken": NewToken(label="laptop"),
    "Token": TOKEN,
    "NewUpload": NewUpload(digest=digest_of(b"scans"), size_bytes=40 << 20),
    "Upload": Upload(
        digest=digest_of(b"scans"),
        size_bytes=40 << 20,
        part_bytes=16 << 20,
        num_parts=3,
        stored=(1,),
        expires_at=AT,
    ),
    "PartsWanted": PartsWanted(numbers=(2, 3)),
    "PartLinks": PartLinks(
        links=(PartLink(number=2, size_bytes=16 << 20, url="https://minio.example.org/..."),),
        expires_at=AT,
    ),
    "NewStorageCredential": NewStorageCredential(label="ward-7"),
    "StorageCredential": STORAGE,
    "QuotaChange": QuotaChange(running=4, workers=None),
    "OrganisationUse": USE,
    "KeyRotation": KeyRotation(at_once=True),
    "PlatformKey": SEALING_KEY,
    "PlatformStatus": PlatformStatus(
        at=AT,
        jobs={"running": 1, "pending": 1, "succeeded": 40},
        slots=1,
        queue=(
            QueuedJob(
                job="job-01kan7m1v3q9",
                organisation=HOME,
                submitted_at=AT,
                waits_for="place 1; your organisation runs 1 of 1 jobs",
            ),
        ),
        attempts=(
            OpenAttempt(
                job=JOB,
                number=1,
                organisation=HOME,
                phase=Phase.RUNNING,
                started_at=AT,
                replica="replica_01kan7m1v3q9",
            ),
        ),
        clearing=(),
        stalled={},
        organisations=(USE,),
        retention=(Retained(kind="checkpoints", days=7.0, jobs=2, next_at=AT),),
    ),
    "AuditVerification": AuditVerification(is_whole=True, rows=12, head=ENTRY.digest),
    "CapabilitiesView": CapabilitiesView(
        runtimes=(
            RuntimeView(
                name="flower",
                summary="Flower's ServerApp and ClientApp.",
                modes=("simulation",),
                strategies=("*",),
                mechanisms=(),
                codecs=("none",),
            ),
        ),
        strategies=("fedavg", "fedadam"),
        programs={"digits-cnn": FACTS},
        datasets={"digits": DATA_FACTS},
        onnx=("fp32",),
        partitioners=("iid", "dirichlet"),
        selections=("poisson", "uniform"),
        analyses=("histogram", "mean"),
        optimizers=("sgd", "adam"),
    ),
    "StepEvents": StepEvents(
        step="federate",
        events=(
            RoundStarted(number=2, at=1_795_253_400.0, round=1, cohort=10),
            RoundFinished(
                number=3,
                at=1_795_253_401.0,
                round=1,
                rounds=12,
                sites=10,
                dropped=0,
                loss=1.9,
                metrics={"accuracy": 0.44},
                bytes_up=1_500_000,
                bytes_down=1_500_000,
                seconds=0.8,
                model=WEIGHTS,
                checkpoint=digest_of(b"checkpoint"),
                transcript=TRANSCRIPT,
            ),
        ),
    ),
    "Acknowledged": Acknowledged(acknowledged=3),
    "LogEnd": LogEnd(offset=4_096),
    "StoredObject": StoredObject(digest=WEIGHTS, size_bytes=150_912),
    "Health": Health(status="ok", checks={"database": "ok", "store": "ok", "reconciler": "ok"}),
}
PAGES: Final[Mapping[str, Page[Any]]] = {
    f"{type(item).__name__}Page": Page(items=(item,), next=None)
    for item in (
        RUNNING,
        ROUND,
        EVENT,
        ARTIFACT,
        PROGRAM,
        DATASET,
        MODEL_OF_DIGITS,
        HOSPITALS,
        ORGANISATION,
        USER,
        TOKEN,
        STORAGE,
        ENTRY,
        SEALING_KEY,
    )
}
FURTHER: Final[Mapping[str, tuple[Any, ...]]] = {"JobSpec": (SPEC, ANALYSIS)}
"""Examples of a schema that has quite different forms."""
