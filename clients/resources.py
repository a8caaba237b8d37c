"""What the HTTP API says and hears, as values: one definition for the server, the SDK and the CLI.

Times are RFC 3339 in UTC. Ids are opaque, sort by time and say what they name (``job-...``).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from sharing.object_store import Digest
from workflows.capabilities import DatasetFacts, ProgramFacts
from workflows.causes import CauseCode
from workflows.job import JobSpec
from workflows.run import Desired, Phase

T = TypeVar("T")
ShortName = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[\w][\w .:-]*$")]


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """Something with a place in the API."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request's body; unknown fields are refused."""


class Page(Resource, Generic[T], frozen=True):
    """One page of a list.

    Attributes:
        items: Newest first.
        next: Cursor of the page that follows; None on the last one.
    """

    items: tuple[T, ...]
    next: str | None = None


class Role(enum.StrEnum):
    """What a user may do within an organisation."""

    DEVELOPER = "developer"
    OPERATOR = "operator"
    ADMIN = "admin"
    DATA_OWNER = "data-owner"
    PRIVACY_OFFICER = "privacy-officer"
    AUDITOR = "auditor"


class CauseView(Resource, frozen=True):
    """A failure, with who can act on it and how.

    Attributes:
        evidence: Last lines of a traceback or log; only for those who may see logs.
    """

    code: CauseCode
    actor: Literal["user", "site", "platform"]
    retryable: bool
    hint: str
    detail: str = ""
    site: str | None = None
    round: int | None = None
    evidence: str = ""


class Workflow(Resource, frozen=True):
    """The Argo workflow that an attempt is.

    Attributes:
        url: Of its page in Argo's user interface; None if the platform knows of none.
    """

    namespace: str
    name: str
    url: str | None


class Job(Resource, frozen=True):
    """A job and the run it is.

    Attributes:
        waits_for: What must happen next, for people; empty when nothing is awaited any more.
        round: Rounds on record.
        metrics: Of the last evaluation.
        model: Id of the published model, once there is one.
        workflow: Of the attempt under way; None where none is, or the engine makes none.
    """

    id: str
    name: str
    collaboration: str
    organisation: str
    submitted_by: str
    phase: Phase
    desired: Desired
    waits_for: str
    attempt: int
    round: int
    rounds: int
    loss: float | None
    metrics: Mapping[str, float]
    cause: CauseView | None
    model: str | None
    plan_digest: Digest
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    spec: JobSpec
    workflow: Workflow | None = None


class DryRun(Resource, frozen=True):
    """What a job would be, had it been submitted.

    Attributes:
        steps: Argument vectors by step.
        bytes_per_site_and_round: Up and down.
        bytes_total: Over all sites and rounds.
        memory_mb: Predicted peak of the server step, and of one worker.
        epsilon: Predicted privacy loss; None where no mechanism spends any.
    """

    plan_digest: Digest
    steps: Mapping[str, tuple[str, ...]]
    parameters: int
    bytes_per_site_and_round: Mapping[str, int]
    bytes_total: int
    memory_mb: Mapping[str, int]
    epsilon: float | None


class JobPatch(Request, frozen=True):
    """A change of what is wanted."""

    desired: Literal["run", "cancelled"]


class Round(Resource, frozen=True):
    """One round on record."""

    number: int
    sites: int
    dropped: int
    loss: float | None
    metrics: Mapping[str, float]
    bytes_up: int
    bytes_down: int
    seconds: float
    epsilon: float | None
    model: Digest
    transcript: Digest
    at: datetime


class Event(Resource, frozen=True):
    """Something that happened to a job; ``id`` counts from 1 within the job without gaps.

    Attributes:
        kind: Past-tense fact with dots, as ``run.transitioned`` or a step event's tag.
        fields: Depend on the kind.
    """

    id: int
    kind: str
    at: datetime
    attempt: int
    fields: Mapping[str, Any]


class Artifact(Resource, frozen=True):
    """An object that a job made."""

    name: str
    digest: Digest
    size_bytes: int
    media_type: str
    step: str
    at: datetime


class Program(Resource, frozen=True):
    """An uploaded bundle, and what trying it out showed."""

    digest: Digest
    name: str
    size_bytes: int
    facts: ProgramFacts
    created_at: datetime


class Dataset(Resource, frozen=True):
    """An uploaded file of examples for simulations."""

    digest: Digest
    name: str
    format: Literal["npz", "csv", "parquet"]
    label: str
    size_bytes: int
    facts: DatasetFacts
    created_at: datetime


class Variant(Resource, frozen=True):
    """One form of a model.

    Attributes:
        name: ``safetensors`` or ``onnx-fp32``.
    """

    name: str
    digest: Digest
    size_bytes: int
    media_type: str


class Model(Resource, frozen=True):
    """A published model.

    Attributes:
        signature: Inputs and outputs, opset and parity of the ONNX form.
        transcript_head: Digest of the last round's transcript.
    """

    id: str
    name: str
    job: str
    collaboration: str
    plan_digest: Digest
    digest: Digest
    round: int
    metrics: Mapping[str, float]
    signature: Mapping[str, Any]
    classes: tuple[str, ...]
    transcript_head: Digest
    variants: tuple[Variant, ...]
    created_at: datetime


class Visibility(Request, frozen=True):
    """Who of a collaboration's organisations sees what; empty means all of its members.

    Attributes:
        models: Organisations that may fetch models.
        metrics: Organisations that may see metrics and losses.
        site_names: Organisations that see sites by name; others see ``a site``.
    """

    models: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    site_names: tuple[str, ...] = ()


class NewCollaboration(Request, frozen=True):
    """A collaboration to be founded; the founder's organisation is always a member."""

    name: ShortName
    purpose: Annotated[str, Meta(max_length=2000)] = ""
    organisations: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    visibility: Visibility = Visibility()
    ends_at: datetime | None = None


class Collaboration(Resource, frozen=True):
    """Organisations that train together; it owns jobs and models."""

    id: str
    name: str
    purpose: str
    organisations: tuple[str, ...]
    datasets: tuple[str, ...]
    visibility: Visibility
    ends_at: datetime | None
    created_at: datetime


class NewOrganisation(Request, frozen=True):
    """An organisation to be added."""

    name: ShortName


class Organisation(Resource, frozen=True):
    """A legal person."""

    id: str
    name: str
    created_at: datetime


class NewUser(Request, frozen=True):
    """A user to be added to an organisation (by name)."""

    name: ShortName
    organisation: str
    roles: tuple[Role, ...] = (Role.DEVELOPER,)


class User(Resource, frozen=True):
    """Someone who may call the API."""

    id: str
    name: str
    organisation: str
    roles: tuple[Role, ...]
    created_at: datetime


class NewToken(Request, frozen=True):
    """A token to be made for a user.

    Attributes:
        user: Id; None for the caller.
        expires_at: None for never.
    """

    label: ShortName = "token"
    user: str | None = None
    expires_at: datetime | None = None


class Token(Resource, frozen=True):
    """A bearer token's record.

    Attributes:
        secret: The token itself; only in the answer that made it.
    """

    id: str
    label: str
    user: str
    created_at: datetime
    expires_at: datetime | None
    secret: str | None = None


class NewUpload(Request, frozen=True):
    """A file that is to be sent to the object store itself, in parts.

    Attributes:
        digest: Of the whole; it is verified before anything is made of the file.
        size_bytes: Of the whole.
    """

    digest: Digest
    size_bytes: Annotated[int, Meta(ge=1, le=2**53)]


class Upload(Resource, frozen=True):
    """A file that is being sent in parts.

    Attributes:
        part_bytes: Size of each part but the last.
        num_parts: They are numbered from 1.
        stored: Numbers of those that are there.
        expires_at: What is not used by then is forgotten.
    """

    digest: Digest
    size_bytes: int
    part_bytes: int
    num_parts: int
    stored: tuple[int, ...]
    expires_at: datetime


class PartsWanted(Request, frozen=True):
    """Parts that are about to be sent, by number."""

    numbers: Annotated[tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=1, max_length=100)]


class PartLink(Resource, frozen=True):
    """Where a part belongs.

    Attributes:
        url: Takes a PUT of this part, of exactly this size.
    """

    number: int
    size_bytes: int
    url: str


class PartLinks(Resource, frozen=True):
    """Where parts belong.

    Attributes:
        expires_at: When the links are void; further ones can be had.
    """

    links: tuple[PartLink, ...]
    expires_at: datetime


class NewStorageCredential(Request, frozen=True):
    """Credentials to be made for an organisation's own buckets.

    Attributes:
        lifetime_s: Seconds until they end by themselves: an hour to a year.
    """

    label: ShortName = "storage"
    lifetime_s: Annotated[int, Meta(ge=3600, le=365 * 86_400)] = 30 * 86_400


class StorageAccess(Resource, frozen=True):
    """How an organisation reaches its buckets at the S3 server.

    Attributes:
        url: Of the S3 server.
        region: Of the buckets.
        access_key: Names the credentials.
        secret_key: Proves them.
        datasets: Bucket of what the organisation brings; it may read and write.
        models: Bucket of what the platform made for it; it may read.
    """

    url: str
    region: str
    access_key: str
    secret_key: str
    datasets: str
    models: str


class StorageCredential(Resource, frozen=True):
    """The record of credentials for an organisation's buckets.

    Attributes:
        access: With the secret; only in the answer that made them.
    """

    id: str
    label: str
    organisation: str
    access_key: str
    made_by: str
    created_at: datetime
    expires_at: datetime
    access: StorageAccess | None = None


class LoginView(Resource, frozen=True):
    """Where users log in.

    Attributes:
        issuer: OIDC issuer whose access tokens are taken; empty where there is none, and users
            have tokens of the platform.
        client_id: Public client there, for the device flow.
    """

    issuer: str = ""
    client_id: str = ""


class Quota(Resource, frozen=True):
    """What an organisation may have at most; None for no bound.

    Attributes:
        running: Jobs that run at a time.
        workers: Worker processes of these together.
        storage_bytes: Uploads, artifacts and models together, each object counted once.
        open_jobs: Jobs that have not ended.
    """

    running: int | None = None
    workers: int | None = None
    storage_bytes: int | None = None
    open_jobs: int | None = None


Bound = Annotated[int, Meta(ge=0, le=2**53)] | None | msgspec.UnsetType


class QuotaChange(Request, frozen=True):
    """A change of an organisation's quota.

    What is left out stays as it is; null leaves it to the platform's settings.
    """

    running: Bound = msgspec.UNSET
    workers: Bound = msgspec.UNSET
    storage_bytes: Bound = msgspec.UNSET
    open_jobs: Bound = msgspec.UNSET


class Use(Resource, frozen=True):
    """What an organisation has, in the terms of its quota."""

    running: int
    workers: int
    storage_bytes: int
    open_jobs: int


class OrganisationUse(Resource, frozen=True):
    """An organisation with what it has and may have."""

    id: str
    name: str
    use: Use
    quota: Quota


class QueuedJob(Resource, frozen=True):
    """A job that waits for a slot.

    Attributes:
        waits_for: For people; whoever submitted it is told the same.
    """

    job: str
    organisation: str
    submitted_at: datetime
    waits_for: str


class OpenAttempt(Resource, frozen=True):
    """A try at a run that has not ended.

    Attributes:
        replica: Which process of the platform moves the run on; empty while none does.
    """

    job: str
    number: int
    organisation: str
    phase: Phase
    started_at: datetime
    replica: str


class KeyState(enum.StrEnum):
    """What a key of the platform's does."""

    SEALS = "seals"
    OPENS = "opens"
    ENDED = "ended"


class PlatformKey(Resource, frozen=True):
    """A key of the platform's own; what it is nobody is told.

    Attributes:
        id: The purpose, and for all but the first of it a dot and more.
        purpose: ``cursors`` of lists.
        state: The one that seals, one that only opens what it sealed, or one that is about to go.
        created_at: Null if that is longer ago than is on record.
        ends_at: When it opens nothing more.
    """

    id: str
    purpose: str
    state: KeyState
    created_at: datetime | None
    ends_at: datetime | None


class KeyRotation(Request, frozen=True):
    """How a new key takes the place of one.

    Attributes:
        at_once: Whether what the one before sealed is refused from now on, as after a theft.
    """

    at_once: bool = False


class Retained(Resource, frozen=True):
    """What is kept for a time after a job's end.

    Attributes:
        kind: ``checkpoints`` or ``logs``; logs are those of the process that answers.
        days: For how long; null for ever.
        jobs: How many have some.
        next_at: When the first of these lose it, within the hour; null for never.
    """

    kind: str
    days: float | None
    jobs: int
    next_at: datetime | None


class PlatformStatus(Resource, frozen=True):
    """The whole platform at a glance, for those who run it.

    Attributes:
        jobs: How many are on record, by phase.
        slots: Jobs that run at a time.
        queue: In the order in which they will start.
        clearing: Closed jobs of which something is left with the engine.
        stalled: What the process that answers cannot do just now, by job.
        retention: What goes when.
    """

    at: datetime
    jobs: Mapping[str, int]
    slots: int
    queue: tuple[QueuedJob, ...]
    attempts: tuple[OpenAttempt, ...]
    clearing: tuple[str, ...]
    stalled: Mapping[str, str]
    organisations: tuple[OrganisationUse, ...]
    retention: tuple[Retained, ...] = ()


class AuditEntry(Resource, frozen=True):
    """An act of somebody, or one that was refused.

    Attributes:
        number: Counts from 1 without gaps.
        actor: Id of the user; empty for the platform itself.
        organisation: The actor's.
        action: As ``job.submit``; of a refused request, its method and route.
        object: Id of what it was done to; of a refused request, its path.
        digest: Covers this entry and the digest of the one before.
    """

    number: int
    at: datetime
    actor: str
    organisation: str
    action: str
    object: str
    outcome: str
    detail: Mapping[str, Any]
    trace_id: str
    digest: Digest


class AuditVerification(Resource, frozen=True):
    """What computing the audit log's digests anew showed.

    Attributes:
        rows: How many there are.
        head: Digest of the newest one, to be kept elsewhere; None if the log is not whole.
        broken_at: Number of the first row that is not what was written; None if there is none.
    """

    is_whole: bool
    rows: int
    head: Digest | None = None
    broken_at: int | None = None


class RuntimeView(Resource, frozen=True):
    """One runtime as the capability matrix shows it."""

    name: str
    summary: str
    modes: tuple[str, ...]
    strategies: tuple[str, ...]
    mechanisms: tuple[str, ...]
    codecs: tuple[str, ...]


class CapabilitiesView(Resource, frozen=True):
    """What this platform can do."""

    runtimes: tuple[RuntimeView, ...]
    strategies: tuple[str, ...]
    programs: Mapping[str, ProgramFacts]
    datasets: Mapping[str, DatasetFacts]
    onnx: tuple[str, ...]
    partitioners: tuple[str, ...]
    selections: tuple[str, ...]
    analyses: tuple[str, ...]
    optimizers: tuple[str, ...]


class Problem(Resource, frozen=True):
    """RFC 9457 problem details, with our members.

    Attributes:
        retryable: Whether the same request may succeed later.
        hint: What to do instead.
        fields: Paths of the fields at fault.
        trace_id: To quote when asking for help.
    """

    type: str
    title: str
    status: int
    detail: str = ""
    retryable: bool = False
    hint: str = ""
    fields: tuple[str, ...] = ()
    trace_id: str = ""
