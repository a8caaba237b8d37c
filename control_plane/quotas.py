"""What each organisation may have of the platform, and what it has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, bindparam, func, insert, select, union, update

from clients.identity import Principal
from clients.resources import OrganisationUse, Quota, QuotaChange, Use
from control_plane import audit
from control_plane.accounts import find_organisation
from control_plane.authorisation import Action
from control_plane.fairness import Place, Queued, Share, fair_order
from control_plane.hosts import require_host
from control_plane.platform import Platform
from control_plane.records.database import Transaction
from control_plane.records.tables import (
    ARTIFACT,
    DATASET,
    JOB,
    MODEL,
    ORGANISATION,
    PROGRAM,
    QUOTA,
    VARIANT,
)
from control_plane.refusals import NotFound, QuotaExhausted
from control_plane.views import spec_of
from workflows.job import JobSpec
from workflows.run import Desired, Phase

USUAL_WORKERS: Final = 4
"""Counted for a job that leaves their number to the machine, which starts no more than these."""
PRIORITIES: Final = ("low", "normal", "high")
OPEN: Final = tuple(phase for phase in Phase if not phase.is_final)

_RUNNING: Final = select(JOB.c.organisation, JOB.c.spec).where(
    JOB.c.phase.in_([phase for phase in OPEN if phase is not Phase.PENDING])
)
_STORED: Final = union(
    select(PROGRAM.c.digest, PROGRAM.c.size_bytes).where(
        PROGRAM.c.organisation == bindparam("organisation")
    ),
    select(DATASET.c.digest, DATASET.c.size_bytes).where(
        DATASET.c.organisation == bindparam("organisation")
    ),
    select(ARTIFACT.c.digest, ARTIFACT.c.size_bytes)
    .join(JOB, JOB.c.id == ARTIFACT.c.job)
    .where(JOB.c.organisation == bindparam("organisation")),
    select(VARIANT.c.digest, VARIANT.c.size_bytes)
    .join(MODEL, MODEL.c.id == VARIANT.c.model)
    .where(MODEL.c.organisation == bindparam("organisation")),
).subquery()
_STORAGE: Final = select(func.coalesce(func.sum(_STORED.c.size_bytes), 0).label("size_bytes"))
_OPEN_JOBS: Final = select(func.count().label("jobs")).where(
    JOB.c.organisation == bindparam("organisation"),
    JOB.c.settled.is_(False),
    JOB.c.phase.in_(OPEN),
)
_OF_ALL: Final = (
    select(ORGANISATION, *(column for column in QUOTA.c if column.name != "organisation"))
    .outerjoin(QUOTA, QUOTA.c.organisation == ORGANISATION.c.id)
    .order_by(ORGANISATION.c.id)
)


def workers_of(spec: JobSpec) -> int:
    """Worker processes that a job counts for."""
    return spec.runtime.shards * (spec.runtime.workers or USUAL_WORKERS)


def quota_of(row: Row[Any], default: Quota) -> Quota:
    """The quota in a row that was joined with the quotas; what it leaves open is the default's."""
    own = {name: getattr(row, name) for name in Quota.__struct_fields__}
    return msgspec.structs.replace(
        default, **{name: bound for name, bound in own.items() if bound is not None}
    )


async def require_room(
    transaction: Transaction,
    platform: Platform,
    organisation: str,
    *,
    spec: JobSpec | None = None,
    size_bytes: int = 0,
) -> None:
    """Raise unless the organisation may have one more of what is about to go on record.

    Until the transaction ends no other one passes here for the same organisation.

    Args:
        transaction: Puts it on record.
        platform: Says what organisations may have that have no quota of their own.
        organisation: Its id.
        spec: Of a job that is submitted.
        size_bytes: Of a file that is uploaded.

    Raises:
        QuotaExhausted: It may not.
    """
    key = {"organisation": organisation}
    row = await transaction.one_or_none(
        _OF_ALL.where(ORGANISATION.c.id == organisation).with_for_update(
            of=ORGANISATION, key_share=True
        )
    )
    assert row is not None  # noqa: S101 - the caller is of it
    quota = quota_of(row, platform.rules.quota)
    if spec is not None:
        workers = workers_of(spec)
        if quota.workers is not None and workers > quota.workers:
            raise QuotaExhausted("workers", workers, quota.workers, "this job asks for")
        if quota.open_jobs is not None:
            found = await transaction.one_or_none(_OPEN_JOBS, key)
            used = found.jobs if found else 0
            if used >= quota.open_jobs:
                raise QuotaExhausted("open jobs", used, quota.open_jobs)
    if quota.storage_bytes is not None:
        found = await transaction.one_or_none(_STORAGE, key)
        used = int(found.size_bytes) if found else 0
        if used + size_bytes > quota.storage_bytes:
            raise QuotaExhausted("bytes of storage", used, quota.storage_bytes)


async def line_of(platform: Platform, rows: Sequence[Row[Any]]) -> tuple[Place, ...]:
    """Who of the open jobs waits for a slot or starts now, in the order of their turns."""
    queued = [row for row in rows if row.phase == Phase.PENDING and row.desired == Desired.RUN]
    if not queued:
        return ()
    running = [row for row in rows if _holds_slot(Phase(row.phase))]
    free = max(0, platform.rules.max_running - len(running))
    shares = _shares(platform, await platform.database.rows(_OF_ALL), running)
    return fair_order([_queued(row) for row in queued], shares, free)


async def may_start(transaction: Transaction, platform: Platform, job: Row[Any]) -> bool:
    """True if a slot is free and the quota has room for ``job``; asked under the slots' lock."""
    running = await transaction.rows(_RUNNING)
    if len(running) >= platform.rules.max_running:
        return False
    own = await transaction.rows(_OF_ALL.where(ORGANISATION.c.id == job.organisation))
    return _shares(platform, own, running)[job.organisation].has_room(_queued(job))


def _holds_slot(phase: Phase) -> bool:
    return phase is not Phase.PENDING and not phase.is_final


def _queued(row: Row[Any]) -> Queued:
    workers, priority = _asked(row.spec)
    return Queued(job=row.id, organisation=row.organisation, workers=workers, priority=priority)


def _shares(
    platform: Platform, organisations: Sequence[Row[Any]], running: Sequence[Row[Any]]
) -> dict[str, Share]:
    jobs: dict[str, list[int]] = {}
    for job in running:
        jobs.setdefault(job.organisation, []).append(_asked(job.spec)[0])
    return {
        row.id: Share(
            running=len(jobs.get(row.id, ())),
            workers=sum(jobs.get(row.id, ())),
            served_at=row.served_at,
            quota=quota_of(row, platform.rules.quota),
        )
        for row in organisations
    }


@lru_cache(maxsize=4096)  # the whole line is asked for at each look
def _asked(text: str) -> tuple[int, int]:
    """Workers and priority that a stored job asks for."""
    try:
        spec = spec_of(text)
    except msgspec.MsgspecError:
        return 1, PRIORITIES.index("normal")  # its own trouble, met when it is moved on
    return workers_of(spec), PRIORITIES.index(spec.resources.priority)


async def own_use(platform: Platform, who: Principal) -> OrganisationUse:
    """What the caller's organisation may have, and has."""
    return (await _uses(platform, _OF_ALL.where(ORGANISATION.c.id == who.organisation)))[0]


async def list_uses(platform: Platform, who: Principal) -> tuple[OrganisationUse, ...]:
    """What every organisation may have, and has; oldest first.

    Raises:
        Forbidden: The caller does not keep the platform.
    """
    await require_host(platform, who, Action.READ_PLATFORM)
    return await _uses(platform, _OF_ALL)


async def change_quota(
    platform: Platform, who: Principal, name: str, change: QuotaChange
) -> OrganisationUse:
    """Set what an organisation, by id or by name, may have.

    Raises:
        Forbidden: The caller is no admin of the organisation that runs the platform.
        NotFound: There is no such organisation.
    """
    await require_host(platform, who, Action.MANAGE_ORGANISATIONS)
    changes = {
        field: bound
        for field in Quota.__struct_fields__
        if (bound := getattr(change, field)) is not msgspec.UNSET
    }
    async with platform.database.writing() as transaction:
        organisation = await find_organisation(transaction, name)
        if organisation is None:
            raise NotFound("no such organisation")
        await transaction.alone(f"quota of {organisation}")
        is_there = QUOTA.c.organisation == organisation
        if await transaction.one_or_none(select(QUOTA.c.organisation).where(is_there)) is None:
            await transaction.execute(insert(QUOTA), {"organisation": organisation})
        if changes:
            await transaction.execute(update(QUOTA).where(is_there).values(**changes))
            await audit.note(
                transaction, platform.now(), who, "quota.set", organisation, detail=changes
            )
        platform.bell.ring_after(transaction)
    return (await _uses(platform, _OF_ALL.where(ORGANISATION.c.id == organisation)))[0]


async def _uses(platform: Platform, query: Select[Any]) -> tuple[OrganisationUse, ...]:
    rows = await platform.database.rows(query)
    jobs = await platform.database.rows(
        select(JOB.c.organisation, JOB.c.phase, JOB.c.spec).where(
            JOB.c.settled.is_(False), JOB.c.phase.in_(OPEN)
        )
    )
    uses = []
    for row in rows:
        own = [job for job in jobs if job.organisation == row.id]
        running = [job for job in own if job.phase != Phase.PENDING]
        stored = await platform.database.one_or_none(_STORAGE, {"organisation": row.id})
        use = Use(
            running=len(running),
            workers=sum(_asked(job.spec)[0] for job in running),
            storage_bytes=int(stored.size_bytes) if stored else 0,
            open_jobs=len(own),
        )
        quota = quota_of(row, platform.rules.quota)
        uses.append(OrganisationUse(id=row.id, name=row.name, use=use, quota=quota))
    return tuple(uses)
