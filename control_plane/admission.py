"""Accepting a job: checked whole, then on record with its event in one transaction."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import numpy as np
from sqlalchemy import insert, select

from clients.identity import Principal
from clients.resources import DryRun, Job
from control_plane import audit
from control_plane.authorisation import Action, Relation, may
from control_plane.collaborations import NAMES
from control_plane.ids import new_id
from control_plane.jobs import get_job
from control_plane.journal import Fact, load, record
from control_plane.leases import NOBODY
from control_plane.platform import Platform
from control_plane.quotas import require_room
from control_plane.records.tables import (
    COLLABORATION,
    DATASET,
    IDEMPOTENCY,
    JOB,
    LEASE,
    MEMBER,
    MODEL,
    ORGANISATION,
    PROGRAM,
)
from control_plane.refusals import (
    Forbidden,
    KeyReused,
    QuotaExhausted,
    StillInFlight,
    WrittenMeanwhile,
)
from control_plane.tracing import traceparent
from control_plane.views import dataset_of, program_of, text_of, visibility_of
from control_plane.visibility import sight_of
from sharing.object_store import is_digest
from workflows.canonical import digest_value
from workflows.capabilities import Capabilities, DatasetFacts, Parameter, ProgramFacts
from workflows.job import (
    Analysis,
    Builtin,
    Bundle,
    FromModel,
    Image,
    Inconsistent,
    JobSpec,
    Partitioned,
    Unsupported,
)
from workflows.plan import compile_plan, plan_digest
from workflows.rules import check_job
from workflows.rules.sizes import most_model_bytes
from workflows.run import Desired, Phase

WAITS_FOR_ADMISSION: Final = "its turn"
INTERPRETER_MB: Final = 400
"""Resident size of a worker with torch imported, before it holds anything (measured: 330)."""
ANALYST_MB: Final = 64
"""The same of a worker that answers a query, without any framework (measured: 35)."""
SERVER_MB: Final = 150
_PARAMETERS: Final = msgspec.json.Decoder(tuple[Parameter, ...])


@dataclass(frozen=True, slots=True)
class Admitted:
    """A job that was found fit.

    Attributes:
        spec: The job, with what follows from the rest of it filled in.
        collaboration: Id of the one that will own it.
        capabilities: What it was checked against.
    """

    spec: JobSpec
    collaboration: str
    capabilities: Capabilities


async def submit_job(platform: Platform, who: Principal, spec: JobSpec, key: str | None) -> Job:
    """Put a job on record; the reconciler takes it from there.

    The same caller with the same ``key`` and the same job gets the same answer, however often.

    Raises:
        Forbidden: The caller may not submit jobs.
        JobError: The parts of the job do not fit together, or ask for what is not there.
        QuotaExhausted: The caller's organisation has as many open jobs, or bytes, as it may.
        KeyReused: The key came before with another job.
        StillInFlight: A submission with this key is being worked on.
    """
    _require_submitter(who)
    if key is None:
        return await _submit(platform, who, spec, None)
    async with _alone(platform, (who.user, key)):
        if (job := await _answered(platform, who, spec, key)) is not None:
            return (await get_job(platform, who, job)).value
        try:
            return await _submit(platform, who, spec, key)
        except (WrittenMeanwhile, QuotaExhausted):
            # Another replica worked on the same; where that was not the key, nothing is found.
            if (job := await _answered(platform, who, spec, key)) is None:
                raise
            return (await get_job(platform, who, job)).value


async def dry_run(platform: Platform, who: Principal, spec: JobSpec) -> DryRun:
    """What the job would be; nothing is recorded.

    Raises:
        Forbidden: The caller may not submit jobs.
        JobError: The parts of the job do not fit together, or ask for what is not there.
    """
    _require_submitter(who)
    admitted = await check(platform, who, spec)
    plan = compile_plan("job-dry-run", 1, admitted.spec, platform.environment, {})
    return predict(admitted, plan.plan_digest, {step.name: step.argv for step in plan.steps})


async def check(platform: Platform, who: Principal, spec: JobSpec) -> Admitted:
    """Find a job fit: its owner, what it refers to, and whether its parts fit together.

    Raises:
        JobError: They do not.
    """
    collaboration = await _collaboration_of(platform, who, spec)
    capabilities = await _capabilities_for(platform, who, spec)
    return Admitted(check_job(spec, capabilities), collaboration, capabilities)


def predict(admitted: Admitted, digest: str, steps: Mapping[str, tuple[str, ...]]) -> DryRun:
    """Sizes that follow from a job and the shapes of its model. Pure."""
    spec = admitted.spec
    facts = facts_of(spec, admitted.capabilities)
    parameters = facts.parameters
    num_parameters = sum(math.prod(p.shape) for p in parameters)
    model_bytes = sum(math.prod(p.shape) * _item_bytes(p.dtype) for p in parameters)
    forms = [spec.codec.form(tuple(p.shape), np.dtype(p.dtype)) for p in parameters]
    update_bytes = sum(form.size_bytes for form in forms) + spec.local.epochs * facts.growth_bytes
    travelled = (update_bytes + model_bytes) * spec.rounds
    if facts.growth_bytes:  # of trees that are all full; the model is shorter in earlier rounds
        last_bytes = most_model_bytes(spec, facts, spec.rounds)
        travelled += (last_bytes - model_bytes) * (spec.rounds - 1) // 2
        model_bytes = last_bytes
    ring_bytes = 8 * num_parameters
    # The server holds the model, its moments, the fold, and the models that sites at work have; a
    # worker the model, its gradient, an optimiser's memory and the update, and its part of the
    # data lies in mapped files.
    models = 4 + spec.most_versions
    server_mb = SERVER_MB + math.ceil((models * model_bytes + 3 * ring_bytes) / 2**20)
    # A frozen base is in it twice: as it was built, and in the copy that is trained.
    bare_mb = ANALYST_MB if isinstance(spec.program, Analysis) else INTERPRETER_MB
    worker_mb = bare_mb + math.ceil((6 * model_bytes + 2 * facts.frozen_bytes) / 2**20)
    return DryRun(
        plan_digest=digest,
        steps=steps,
        parameters=num_parameters,
        bytes_per_site_and_round={"up": update_bytes, "down": model_bytes},
        bytes_total=travelled * spec.answers_a_round,
        memory_mb={"server": server_mb, "worker": worker_mb},
        epsilon=None,
    )


def facts_of(spec: JobSpec, capabilities: Capabilities) -> ProgramFacts:
    """Facts of the job's program, once it was found fit."""
    match spec.program:
        case Builtin(name=name):
            return capabilities.programs[name]
        case Bundle(digest=digest):
            return capabilities.programs[digest]
        case Analysis(query=query):
            parameters = query.parameters()
            return ProgramFacts(framework="analysis", parameters=parameters, own_train=True)
        case Image():
            raise Unsupported(("program",), "no image can be run here", "use a bundle")


async def _submit(platform: Platform, who: Principal, spec: JobSpec, key: str | None) -> Job:
    admitted = await check(platform, who, spec)
    now = platform.now()
    job = new_id("job", now)
    row: dict[str, Any] = {
        "id": job,
        "name": spec.name,
        "collaboration": admitted.collaboration,
        "organisation": who.organisation,
        "submitted_by": who.user,
        "spec": text_of(admitted.spec),
        "plan_digest": plan_digest(admitted.spec, platform.environment),
        "phase": Phase.PENDING,
        "desired": Desired.RUN,
        "waits_for": WAITS_FOR_ADMISSION,
        "version": 0,
        "attempt": 0,
        "fruitless": 0,
        "rounds": admitted.spec.rounds,
        "round": 0,
        "loss": None,
        "metrics": "{}",
        "cause": None,
        "model": None,
        "last_event": 0,
        "settled": False,
        "traceparent": traceparent.get(),
        "created_at": now,
        "updated_at": now,
        "ended_at": None,
    }
    async with platform.database.writing() as transaction:
        await require_room(transaction, platform, who.organisation, spec=admitted.spec)
        await transaction.execute(insert(JOB), row)
        await transaction.execute(insert(LEASE), {"job": job, **NOBODY})
        if key is not None:
            await transaction.execute(
                insert(IDEMPOTENCY),
                {
                    "user_id": who.user,
                    "key": key,
                    "body_digest": digest_value(spec),
                    "job": job,
                    "created_at": now,
                },
            )
        fact = Fact(kind="job.submitted", fields={"name": spec.name})
        await record(transaction, platform.hub, await load(transaction, job), now, {}, [fact])
        detail = {"name": spec.name, "collaboration": admitted.collaboration}
        await audit.note(transaction, platform.now(), who, "job.submit", job, detail=detail)
        platform.bell.ring_after(transaction)
    return (await get_job(platform, who, job)).value


@asynccontextmanager
async def _alone(platform: Platform, key: tuple[str, str]) -> AsyncIterator[None]:
    if key in platform.in_flight:
        raise StillInFlight("a submission with this idempotency key is being worked on")
    platform.in_flight.add(key)
    try:
        yield
    finally:
        platform.in_flight.discard(key)


async def _answered(platform: Platform, who: Principal, spec: JobSpec, key: str) -> str | None:
    row = await platform.database.one_or_none(
        select(IDEMPOTENCY).where(IDEMPOTENCY.c.user_id == who.user, IDEMPOTENCY.c.key == key)
    )
    if row is None:
        return None
    if row.body_digest != digest_value(spec):
        raise KeyReused("this idempotency key was used for another job; choose a new one")
    return str(row.job)


def _require_submitter(who: Principal) -> None:
    if not may(who.roles, Action.SUBMIT, Relation.OWNER):
        raise Forbidden("your roles do not allow you to submit jobs")


async def _collaboration_of(platform: Platform, who: Principal, spec: JobSpec) -> str:
    """Id of the collaboration that will own the job: the named one, or the caller's own."""
    rows = await platform.database.rows(
        select(COLLABORATION, ORGANISATION.c.name.label("own"))
        .join(MEMBER, MEMBER.c.collaboration == COLLABORATION.c.id)
        .join(ORGANISATION, ORGANISATION.c.id == MEMBER.c.organisation)
        .where(MEMBER.c.organisation == who.organisation)
        .order_by(COLLABORATION.c.name)
    )
    row = next((row for row in rows if row.name == (spec.collaboration or row.own)), None)
    if row is None:
        known = ", ".join(row.name for row in rows)
        problem = f"your organisation is in no collaboration {spec.collaboration!r}"
        raise Inconsistent(("collaboration",), problem, f"name one of: {known}")
    if row.ends_at is not None and row.ends_at <= platform.now():
        ended = _day(row.ends_at)
        raise Inconsistent(("collaboration",), f"it ended on {ended}", "name one that goes on")
    permitted = NAMES.decode(row.datasets)
    if permitted and spec.data.dataset not in permitted:
        problem = f"the collaboration is not about {spec.data.dataset!r}"
        fields = ("data.dataset", "collaboration")
        raise Inconsistent(fields, problem, f"use one of: {', '.join(permitted)}")
    return str(row.id)


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).date().isoformat()


async def _capabilities_for(platform: Platform, who: Principal, spec: JobSpec) -> Capabilities:
    """What the platform can do, with the uploads and models that the job refers to."""
    programs: dict[str, ProgramFacts] = dict(platform.capabilities.programs)
    datasets: dict[str, DatasetFacts] = dict(platform.capabilities.datasets)
    models: dict[str, tuple[Parameter, ...]] = {}
    if isinstance(spec.program, Bundle):
        digest = spec.program.digest
        row = await platform.database.one_or_none(
            select(PROGRAM).where(
                PROGRAM.c.organisation == who.organisation, PROGRAM.c.digest == digest
            )
        )
        if row is not None:
            programs[digest] = program_of(row).facts
    if isinstance(spec.data, Partitioned) and is_digest(spec.data.dataset):
        facts = await _uploaded(platform, who, spec.data)
        if facts is not None:
            datasets[spec.data.dataset] = facts
    if isinstance(spec.init, FromModel):
        parameters = await _published(platform, who, spec.init.digest)
        if parameters is not None:
            models[spec.init.digest] = parameters
    return msgspec.structs.replace(
        platform.capabilities, programs=programs, datasets=datasets, models=models
    )


async def _uploaded(platform: Platform, who: Principal, data: Partitioned) -> DatasetFacts | None:
    rows = await platform.database.rows(
        select(DATASET).where(
            DATASET.c.organisation == who.organisation, DATASET.c.digest == data.dataset
        )
    )
    found = {row.label: row for row in rows}
    if found and data.label not in found:
        problem = f"the data set was uploaded with the labels in {', '.join(sorted(found))}"
        raise Inconsistent(("data.label",), problem, "name that, or upload it with this label")
    return dataset_of(found[data.label]).facts if found else None


async def _published(
    platform: Platform, who: Principal, digest: str
) -> tuple[Parameter, ...] | None:
    rows = await platform.database.rows(
        select(MODEL.c.parameters, MODEL.c.organisation, COLLABORATION.c.visibility)
        .join(COLLABORATION, COLLABORATION.c.id == MODEL.c.collaboration)
        .join(MEMBER, MEMBER.c.collaboration == MODEL.c.collaboration)
        .where(MODEL.c.digest == digest, MEMBER.c.organisation == who.organisation)
    )
    for row in rows:
        if sight_of(who, row.organisation, visibility_of(row.visibility)).models:
            return _PARAMETERS.decode(row.parameters)
    return None


def _item_bytes(dtype: str) -> int:
    """Bytes of one number, as ``float32`` has 4."""
    bits = "".join(character for character in dtype if character.isdigit())
    return int(bits) // 8 if bits else 1
