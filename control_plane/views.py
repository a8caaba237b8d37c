"""From rows to what the API answers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
from sqlalchemy import Row

from clients.resources import (
    Artifact,
    CauseView,
    Dataset,
    Event,
    Job,
    Model,
    Program,
    Round,
    Variant,
    Visibility,
)
from workflows.capabilities import DatasetFacts, ProgramFacts
from workflows.causes import Cause
from workflows.job import JobSpec
from workflows.run import Desired, Phase

_SPEC: Final = msgspec.json.Decoder(JobSpec)
_CAUSE: Final = msgspec.json.Decoder(Cause)
_METRICS: Final = msgspec.json.Decoder(dict[str, float])
_FIELDS: Final = msgspec.json.Decoder(dict[str, Any])
_CLASSES: Final = msgspec.json.Decoder(tuple[str, ...])
_VISIBILITY: Final = msgspec.json.Decoder(Visibility)
_PROGRAM_FACTS: Final = msgspec.json.Decoder(ProgramFacts)
_DATASET_FACTS: Final = msgspec.json.Decoder(DatasetFacts)


def text_of(value: Any) -> str:  # noqa: ANN401 - any msgspec value
    """``value`` as it is stored."""
    return msgspec.json.encode(value).decode()


@lru_cache(maxsize=2048)
def spec_of(text: str) -> JobSpec:
    """The job that is stored as ``text``; it is frozen, so readers may share it."""
    return _SPEC.decode(text)


@lru_cache(maxsize=128)
def visibility_of(text: str) -> Visibility:
    """The visibility that is stored as ``text``."""
    return _VISIBILITY.decode(text)


def cause_of(text: str | None) -> Cause | None:
    """The cause that is stored as ``text``."""
    return None if text is None else _CAUSE.decode(text)


def cause_view(cause: Cause) -> CauseView:
    """A cause with what the catalogue says about it."""
    explanation = cause.explanation
    return CauseView(
        code=cause.code,
        actor=explanation.actor,
        retryable=explanation.retryable,
        hint=explanation.hint,
        detail=cause.detail,
        site=cause.site,
        round=cause.round,
        evidence=cause.evidence,
    )


def job_of(row: Row[Any]) -> Job:
    """A job, unredacted."""
    cause = cause_of(row.cause)
    return Job(
        id=row.id,
        name=row.name,
        collaboration=row.collaboration,
        organisation=row.organisation,
        submitted_by=row.submitted_by,
        phase=Phase(row.phase),
        desired=Desired(row.desired),
        waits_for=row.waits_for,
        attempt=row.attempt,
        round=row.round,
        rounds=row.rounds,
        loss=row.loss,
        metrics=_METRICS.decode(row.metrics),
        cause=None if cause is None else cause_view(cause),
        model=row.model,
        plan_digest=row.plan_digest,
        created_at=row.created_at,
        updated_at=row.updated_at,
        ended_at=row.ended_at,
        spec=spec_of(row.spec),
    )


def round_of(row: Row[Any]) -> Round:
    """A round, unredacted."""
    return Round(
        number=row.number,
        sites=row.sites,
        dropped=row.dropped,
        loss=row.loss,
        metrics=_METRICS.decode(row.metrics),
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
        seconds=row.seconds,
        epsilon=row.epsilon,
        model=row.model,
        transcript=row.transcript,
        at=row.at,
    )


def event_of(row: Row[Any]) -> Event:
    """An event, unredacted."""
    return Event(
        id=row.id,
        kind=row.kind,
        at=row.at,
        attempt=row.attempt,
        fields=_FIELDS.decode(row.fields),
    )


def artifact_of(row: Row[Any]) -> Artifact:
    """An output of a job."""
    return Artifact(
        name=row.name,
        digest=row.digest,
        size_bytes=row.size_bytes,
        media_type=row.media_type,
        step=row.step,
        at=row.at,
    )


def program_of(row: Row[Any]) -> Program:
    """An uploaded bundle."""
    return Program(
        digest=row.digest,
        name=row.name,
        size_bytes=row.size_bytes,
        facts=_PROGRAM_FACTS.decode(row.facts),
        created_at=row.created_at,
    )


def dataset_of(row: Row[Any]) -> Dataset:
    """An uploaded file of examples."""
    return Dataset(
        digest=row.digest,
        name=row.name,
        format=row.format,
        label=row.label,
        size_bytes=row.size_bytes,
        facts=_DATASET_FACTS.decode(row.facts),
        created_at=row.created_at,
    )


def variant_of(row: Row[Any]) -> Variant:
    """One form of a model."""
    return Variant(
        name=row.name, digest=row.digest, size_bytes=row.size_bytes, media_type=row.media_type
    )


def model_of(row: Row[Any], variants: tuple[Variant, ...]) -> Model:
    """A published model, unredacted."""
    return Model(
        id=row.id,
        name=row.name,
        job=row.job,
        collaboration=row.collaboration,
        plan_digest=row.plan_digest,
        digest=row.digest,
        round=row.round,
        metrics=_METRICS.decode(row.metrics),
        signature=_FIELDS.decode(row.signature),
        classes=_CLASSES.decode(row.classes),
        transcript_head=row.transcript_head,
        variants=variants,
        created_at=row.created_at,
    )
