"""The tables.

Values that the API speaks (a job's document, metrics, causes, facts) are stored as the JSON that
they are on the wire; a column exists for what is searched, sorted or compared. Ids sort by time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel


class UtcTime(TypeDecorator[datetime]):
    """A moment, kept in UTC and handed back as such whatever the database makes of zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def moment(*, nullable: bool = False) -> Any:  # noqa: ANN401 - as SQLModel's own Field
    """A column of moments in UTC."""
    return Field(sa_column=Column(UtcTime(), nullable=nullable))


def document(*, nullable: bool = False) -> Any:  # noqa: ANN401
    """A column of JSON as it is on the wire."""
    return Field(sa_column=Column(Text(), nullable=nullable))


def belongs_to(target: str, *, key: bool = False) -> Any:  # noqa: ANN401
    """A column whose row goes when the row it points to goes."""
    return Field(sa_column=Column(ForeignKey(target, ondelete="CASCADE"), primary_key=key))


def refers_to(target: str) -> Any:  # noqa: ANN401
    """A column whose target may not go before it."""
    return Field(sa_column=Column(ForeignKey(target), nullable=False, index=True))


def size() -> Any:  # noqa: ANN401
    """A column of byte counts."""
    return Field(sa_column=Column(BigInteger(), nullable=False))


class OrganisationRow(SQLModel, table=True):
    """A legal person. The first one runs the platform.

    ``served_at`` is when it was last given a slot for a job.
    """

    __tablename__ = "organisation"

    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    created_at: datetime = moment()
    served_at: datetime | None = moment(nullable=True)


class UserRow(SQLModel, table=True):
    """Someone who may call the API."""

    __tablename__ = "user_account"
    __table_args__ = (UniqueConstraint("organisation", "name"),)

    id: str = Field(primary_key=True)
    organisation: str = refers_to("organisation.id")
    name: str
    roles: str = document()
    created_at: datetime = moment()


class TokenRow(SQLModel, table=True):
    """A bearer token, by the SHA-256 of its 256 random bits."""

    __tablename__ = "token"

    id: str = Field(primary_key=True)
    user: str = Field(
        sa_column=Column("user_id", ForeignKey("user_account.id"), nullable=False, index=True)
    )
    label: str
    hash: str = Field(unique=True)
    created_at: datetime = moment()
    expires_at: datetime | None = moment(nullable=True)


class CollaborationRow(SQLModel, table=True):
    """Organisations that train together."""

    __tablename__ = "collaboration"

    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    purpose: str
    datasets: str = document()
    visibility: str = document()
    ends_at: datetime | None = moment(nullable=True)
    created_at: datetime = moment()


class MemberRow(SQLModel, table=True):
    """An organisation's part in a collaboration."""

    __tablename__ = "collaboration_member"

    collaboration: str = belongs_to("collaboration.id", key=True)
    organisation: str = Field(
        sa_column=Column(ForeignKey("organisation.id"), primary_key=True, index=True)
    )


class JobRow(SQLModel, table=True):
    """A job and the run that it is: the one mutable row.

    ``version`` counts its changes; ``last_event`` is the id of its newest event; ``fruitless``
    counts attempts lost in a row without a new round; ``settled`` is false until it is closed and
    nothing of it is left with the engine; ``wiped_at`` is when retention took its checkpoints.
    """

    __tablename__ = "job"
    __table_args__ = (
        Index("ix_job_unsettled", "settled", "id"),
        Index("ix_job_collaboration_id", "collaboration", "id"),
    )

    id: str = Field(primary_key=True)
    name: str
    collaboration: str = Field(sa_column=Column(ForeignKey("collaboration.id"), nullable=False))
    organisation: str = refers_to("organisation.id")
    submitted_by: str = refers_to("user_account.id")
    spec: str = document()
    plan_digest: str
    phase: str
    desired: str
    waits_for: str
    version: int
    attempt: int
    fruitless: int
    rounds: int
    round: int
    loss: float | None
    metrics: str = document()
    cause: str | None = document(nullable=True)
    model: str | None
    last_event: int
    settled: bool
    traceparent: str = Field(default="", sa_column_kwargs={"server_default": text("''")})
    created_at: datetime = moment()
    updated_at: datetime = moment()
    ended_at: datetime | None = moment(nullable=True)
    wiped_at: datetime | None = moment(nullable=True)


class LeaseRow(SQLModel, table=True):
    """Which replica moves an unsettled run on: ``control_plane.leases``.

    ``fence`` counts its holders; ``until`` is in seconds since 1970 by the database's clock.
    """

    __tablename__ = "lease"

    job: str = belongs_to("job.id", key=True)
    holder: str
    fence: int = size()
    until: float = Field(sa_column=Column(Double(), nullable=False))


class SecretRow(SQLModel, table=True):
    """A key that the replicas share: ``control_plane.keyring``."""

    __tablename__ = "secret"

    name: str = Field(primary_key=True)
    value: bytes
    created_at: datetime | None = moment(nullable=True)
    ends_at: datetime | None = moment(nullable=True)


class HoldRow(SQLModel, table=True):
    """While one of these stands no object is deleted: ``control_plane.holds``.

    ``until`` is in seconds since 1970 by the database's clock.
    """

    __tablename__ = "hold"

    id: str = Field(primary_key=True)
    until: float = Field(sa_column=Column(Double(), nullable=False))


class AttemptRow(SQLModel, table=True):
    """One try at a run. Its number is the fence: only the job's newest open attempt is heard.

    ``inputs`` are the plan's; ``first_round`` is the number of rounds on record when it began.
    """

    __tablename__ = "attempt"

    job: str = belongs_to("job.id", key=True)
    number: int = Field(primary_key=True)
    token_hash: str = Field(unique=True)
    inputs: str = document()
    first_round: int
    cause: str | None = document(nullable=True)
    started_at: datetime = moment()
    ended_at: datetime | None = moment(nullable=True)


class EventRow(SQLModel, table=True):
    """Something that happened to a job; ids count from 1 within the job without gaps.

    ``step`` and ``number`` name an event of a step within its attempt; they are null for what the
    control plane tells itself.
    """

    __tablename__ = "event"
    __table_args__ = (UniqueConstraint("job", "attempt", "step", "number"),)

    job: str = belongs_to("job.id", key=True)
    id: int = Field(primary_key=True)
    attempt: int
    step: str | None
    number: int | None
    kind: str
    at: datetime = moment()
    fields: str = document()


class RoundRow(SQLModel, table=True):
    """One round on record. ``checkpoint`` is null once its object was given up."""

    __tablename__ = "round"

    job: str = belongs_to("job.id", key=True)
    number: int = Field(primary_key=True)
    attempt: int
    sites: int
    dropped: int
    loss: float | None
    metrics: str = document()
    bytes_up: int = size()
    bytes_down: int = size()
    seconds: float
    epsilon: float | None
    model: str
    checkpoint: str | None
    transcript: str
    at: datetime = moment()


class JobObjectRow(SQLModel, table=True):
    """An object that a job's steps stored, or were laid: what its token may fetch."""

    __tablename__ = "job_object"

    job: str = belongs_to("job.id", key=True)
    digest: str = Field(primary_key=True, index=True)


class ArtifactRow(SQLModel, table=True):
    """An output of a job, by its file name."""

    __tablename__ = "artifact"

    job: str = belongs_to("job.id", key=True)
    name: str = Field(primary_key=True)
    digest: str = Field(index=True)
    size_bytes: int = size()
    media_type: str
    step: str
    at: datetime = moment()


class ProgramRow(SQLModel, table=True):
    """A bundle that an organisation uploaded."""

    __tablename__ = "program"

    organisation: str = Field(
        sa_column=Column(ForeignKey("organisation.id"), primary_key=True),
    )
    digest: str = Field(primary_key=True, index=True)
    name: str
    size_bytes: int = size()
    facts: str = document()
    created_at: datetime = moment()


class DatasetRow(SQLModel, table=True):
    """A file of examples that an organisation uploaded, as read with one label column."""

    __tablename__ = "dataset"

    organisation: str = Field(
        sa_column=Column(ForeignKey("organisation.id"), primary_key=True),
    )
    digest: str = Field(primary_key=True, index=True)
    label: str = Field(primary_key=True)
    format: str
    name: str
    size_bytes: int = size()
    facts: str = document()
    created_at: datetime = moment()


class ModelRow(SQLModel, table=True):
    """A published model. It outlives the record of its job, whose id it keeps."""

    __tablename__ = "model"
    __table_args__ = (Index("ix_model_collaboration_id", "collaboration", "id"),)

    id: str = Field(primary_key=True)
    name: str
    job: str = Field(unique=True)
    collaboration: str = Field(sa_column=Column(ForeignKey("collaboration.id"), nullable=False))
    organisation: str = refers_to("organisation.id")
    plan_digest: str
    digest: str = Field(index=True)
    parameters: str = document()
    round: int
    metrics: str = document()
    signature: str = document()
    classes: str = document()
    transcript_head: str
    created_at: datetime = moment()


class VariantRow(SQLModel, table=True):
    """One form of a model."""

    __tablename__ = "model_variant"

    model: str = belongs_to("model.id", key=True)
    name: str = Field(primary_key=True)
    digest: str = Field(index=True)
    size_bytes: int = size()
    media_type: str


class IdempotencyRow(SQLModel, table=True):
    """What a caller's key was answered with; kept as long as the job."""

    __tablename__ = "idempotency"

    user: str = Field(sa_column=Column("user_id", ForeignKey("user_account.id"), primary_key=True))
    key: str = Field(primary_key=True)
    body_digest: str
    job: str = Field(
        sa_column=Column(
            ForeignKey("job.id", ondelete="CASCADE"), nullable=False, unique=True, index=True
        )
    )
    created_at: datetime = moment()


class LogPartRow(SQLModel, table=True):
    """What a step printed from byte ``start`` of its log on, to where the next part begins."""

    __tablename__ = "log_part"

    job: str = belongs_to("job.id", key=True)
    attempt: int = Field(primary_key=True)
    step: str = Field(primary_key=True)
    start: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    content: bytes


class StorageCredentialRow(SQLModel, table=True):
    """Credentials of an organisation at the S3 server, which alone knows their secret."""

    __tablename__ = "storage_credential"

    id: str = Field(primary_key=True)
    organisation: str = refers_to("organisation.id")
    label: str
    access_key: str = Field(unique=True)
    made_by: str = refers_to("user_account.id")
    created_at: datetime = moment()
    expires_at: datetime = moment()


class UploadRow(SQLModel, table=True):
    """A file that an organisation sends to the object store in parts.

    ``key`` and ``upload`` are the store's names for it.
    """

    __tablename__ = "upload"

    organisation: str = Field(sa_column=Column(ForeignKey("organisation.id"), primary_key=True))
    digest: str = Field(primary_key=True)
    size_bytes: int = size()
    key: str
    upload: str
    created_at: datetime = moment()
    expires_at: datetime = moment()


class QuotaRow(SQLModel, table=True):
    """What an organisation may have; null leaves it to the platform's settings."""

    __tablename__ = "quota"

    organisation: str = Field(sa_column=Column(ForeignKey("organisation.id"), primary_key=True))
    running: int | None
    workers: int | None
    storage_bytes: int | None = Field(sa_column=Column(BigInteger(), nullable=True))
    open_jobs: int | None


class AuditRow(SQLModel, table=True):
    """An act of somebody, or one that was refused. The database takes no change of it.

    ``digest`` covers the row and the digest of the one before.
    """

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_organisation_number", "organisation", "number"),)

    number: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    at: datetime = moment()
    actor: str
    organisation: str
    action: str
    object: str
    outcome: str
    detail: str = document()
    trace_id: str
    digest: str


class AuditHeadRow(SQLModel, table=True):
    """Number and digest of the newest row of the audit log; one row, which writers lock."""

    __tablename__ = "audit_head"

    id: int = Field(primary_key=True)
    number: int = size()
    digest: str


_TABLES: Final = SQLModel.metadata.tables
ORGANISATION: Final = _TABLES["organisation"]
USER: Final = _TABLES["user_account"]
TOKEN: Final = _TABLES["token"]
COLLABORATION: Final = _TABLES["collaboration"]
MEMBER: Final = _TABLES["collaboration_member"]
JOB: Final = _TABLES["job"]
LEASE: Final = _TABLES["lease"]
SECRET: Final = _TABLES["secret"]
HOLD: Final = _TABLES["hold"]
ATTEMPT: Final = _TABLES["attempt"]
EVENT: Final = _TABLES["event"]
ROUND: Final = _TABLES["round"]
JOB_OBJECT: Final = _TABLES["job_object"]
ARTIFACT: Final = _TABLES["artifact"]
PROGRAM: Final = _TABLES["program"]
DATASET: Final = _TABLES["dataset"]
MODEL: Final = _TABLES["model"]
VARIANT: Final = _TABLES["model_variant"]
IDEMPOTENCY: Final = _TABLES["idempotency"]
LOG_PART: Final = _TABLES["log_part"]
STORAGE_CREDENTIAL: Final = _TABLES["storage_credential"]
UPLOAD: Final = _TABLES["upload"]
QUOTA: Final = _TABLES["quota"]
AUDIT: Final = _TABLES["audit"]
AUDIT_HEAD: Final = _TABLES["audit_head"]
