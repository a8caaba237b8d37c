"""What is kept for a time only: checkpoints and logs of jobs that have ended, rotated keys.

A closed job's record is its artifacts, its model, and the transcripts and manifests that prove
them; these stay. What only its going on needed (checkpoints, what lost attempts made) and the logs
of its steps go when their time is over. Updates of sites are kept by nobody: they are folded in
memory or in a spill that is encrypted by a key in memory; and folders of attempts go with these.

Every replica sweeps: everything is done in an order in which it can be cut short and done again, by
anyone, and what was done is on record once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
import structlog
from sqlalchemy import Row, Select, delete, func, select, union_all, update

from clients.resources import Retained
from control_plane import audit
from control_plane.holds import ObjectsHeld
from control_plane.journal import load
from control_plane.objects import release
from control_plane.platform import Platform
from control_plane.records.tables import (
    ARTIFACT,
    EVENT,
    JOB,
    JOB_OBJECT,
    LOG_PART,
    MODEL,
    ROUND,
    VARIANT,
)
from control_plane.refusals import DatabaseUnavailable, NotFound
from control_plane.rotation import wipe_ended
from sharing.object_store import Digest, StoreError

INTERVAL_S: Final = 3600.0
_LOGGED: Final = select(JOB.c.id, JOB.c.ended_at).where(
    JOB.c.settled.is_(True), JOB.c.id.in_(select(LOG_PART.c.job))
)
"""Closed jobs that have logs."""
_log = structlog.get_logger()
_FIELDS: Final = msgspec.json.Decoder(dict[str, Any])


async def keep_sweeping(platform: Platform) -> None:
    """Sweep now and then, until cancelled."""
    while True:
        try:
            await sweep(platform)
        except ObjectsHeld:
            pass  # a backup is being made
        except (StoreError, DatabaseUnavailable) as error:
            _log.warning("retention.failed", error=f"{type(error).__name__}: {error}")
        await asyncio.sleep(INTERVAL_S)


async def sweep(platform: Platform) -> None:
    """Wipe everything whose time is over; can be cut short and repeated, by several at once.

    Raises:
        ObjectsHeld: A backup is being made; what is left is for the next time.
        StoreError: An object may still be there; so is its record.
        DatabaseUnavailable: The database did not answer.
    """
    now, rules = platform.now(), platform.rules
    await wipe_ended(platform)
    if rules.retain_checkpoints is not None:
        for row in await _ended(platform, now - rules.retain_checkpoints):
            await _wipe_checkpoints(platform, row.id)
    if rules.retain_logs is not None:
        for row in await platform.database.rows(
            _LOGGED.where(JOB.c.ended_at <= now - rules.retain_logs)
        ):
            await _wipe_logs(platform, row.id)


async def read_retention(platform: Platform) -> tuple[Retained, ...]:
    """What is kept for how long, and when the next of it goes."""
    rules = platform.rules
    unwiped = select(func.min(JOB.c.ended_at).label("first"), func.count().label("jobs")).where(
        JOB.c.settled.is_(True), JOB.c.wiped_at.is_(None)
    )
    row = await platform.database.one_or_none(unwiped)
    assert row is not None  # noqa: S101 - an aggregate has a row
    logged = await platform.database.rows(_LOGGED)
    first = min((one.ended_at for one in logged), default=None)
    return (
        _retained("checkpoints", rules.retain_checkpoints, row.first, row.jobs),
        _retained("logs", rules.retain_logs, first, len(logged)),
    )


def surplus(had: Iterable[Digest], named: Iterable[Digest]) -> Sequence[Digest]:
    """Objects that a closed job had and its record does not name, in order."""
    return sorted(set(had) - set(named))


def _retained(kind: str, period: timedelta | None, first: datetime | None, jobs: int) -> Retained:
    return Retained(
        kind=kind,
        days=None if period is None else period / timedelta(days=1),
        jobs=jobs,
        next_at=None if period is None or first is None else first + period,
    )


async def _ended(platform: Platform, before: datetime) -> Sequence[Row[Any]]:
    """Jobs that ended by ``before`` and still have their checkpoints."""
    return await platform.database.rows(
        select(JOB.c.id)
        .where(JOB.c.settled.is_(True), JOB.c.wiped_at.is_(None), JOB.c.ended_at <= before)
        .order_by(JOB.c.id)
    )


async def _wipe_checkpoints(platform: Platform, job: str) -> None:
    """Wipe what the job's record does not name; it is on record last, so a kill repeats it."""
    rows = platform.database.rows
    had = await rows(select(JOB_OBJECT.c.digest).where(JOB_OBJECT.c.job == job))
    named = await rows(_named_by(job))
    manifests = await rows(
        select(EVENT.c.fields).where(EVENT.c.job == job, EVENT.c.kind == "step.succeeded")
    )
    doomed = surplus(
        (row.digest for row in had),
        (
            *(row.digest for row in named),
            *(_FIELDS.decode(row.fields)["manifest"] for row in manifests),
        ),
    )
    for digest in doomed:
        await release(platform, job, digest, is_wiped=True)
    try:
        async with platform.database.writing() as transaction:
            row = await load(transaction, job)
            if row.wiped_at is not None:
                return  # another replica was at it, too
            now = platform.now()
            await transaction.execute(
                update(ROUND).where(ROUND.c.job == job).values(checkpoint=None)
            )
            await transaction.execute(update(JOB).where(JOB.c.id == job).values(wiped_at=now))
            detail = {"objects": len(doomed)}
            await audit.note(transaction, now, None, "checkpoints.wipe", job, detail=detail)
    except NotFound:
        return  # it was deleted meanwhile


def _named_by(job: str) -> Select[tuple[str]]:
    """Digests of what the tables name: artifacts, transcripts, the model and its variants."""
    parts = union_all(
        select(ARTIFACT.c.digest).where(ARTIFACT.c.job == job),
        select(ROUND.c.transcript.label("digest")).where(ROUND.c.job == job),
        select(MODEL.c.digest).where(MODEL.c.job == job),
        select(VARIANT.c.digest)
        .join(MODEL, MODEL.c.id == VARIANT.c.model)
        .where(MODEL.c.job == job),
    ).subquery()
    return select(parts.c.digest)


async def _wipe_logs(platform: Platform, job: str) -> None:
    async with platform.database.writing() as transaction:
        if await transaction.execute(delete(LOG_PART).where(LOG_PART.c.job == job)):
            await audit.note(transaction, platform.now(), None, "logs.wipe", job)
