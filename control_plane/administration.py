"""How the platform is: what runs, what waits and why, and who has how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import and_, func, select

from clients.identity import Principal
from clients.resources import OpenAttempt, PlatformStatus, QueuedJob
from control_plane.authorisation import Action
from control_plane.hosts import require_host
from control_plane.platform import Platform
from control_plane.quotas import line_of, list_uses
from control_plane.records.tables import ATTEMPT, JOB, LEASE
from control_plane.retention import read_retention
from workflows.run import Phase

_UNSETTLED: Final = select(JOB).where(JOB.c.settled.is_(False)).order_by(JOB.c.id)
_OPEN_ATTEMPTS: Final = (
    select(
        ATTEMPT.c.job,
        ATTEMPT.c.number,
        ATTEMPT.c.started_at,
        JOB.c.organisation,
        JOB.c.phase,
        LEASE.c.holder,
    )
    .join(JOB, JOB.c.id == ATTEMPT.c.job)
    .where(ATTEMPT.c.ended_at.is_(None), JOB.c.settled.is_(False))
    .order_by(ATTEMPT.c.started_at)
)
_JOBS_BY_PHASE: Final = select(JOB.c.phase, func.count().label("jobs")).group_by(JOB.c.phase)


async def read_status(
    platform: Platform, who: Principal, stalled: Mapping[str, str]
) -> PlatformStatus:
    """The whole platform at a glance.

    Args:
        platform: Which.
        who: An admin or operator of the organisation that runs it.
        stalled: What the reconciler could not do, by job.

    Raises:
        Forbidden: The caller is none.
    """
    await require_host(platform, who, Action.READ_PLATFORM)
    is_held = and_(LEASE.c.job == JOB.c.id, LEASE.c.until > platform.database.clock)
    attempts = _OPEN_ATTEMPTS.outerjoin(LEASE, is_held)
    rows = await platform.database.rows(_UNSETTLED)
    by_id = {row.id: row for row in rows}
    line = [place for place in await line_of(platform, rows) if not place.starts]
    return PlatformStatus(
        at=platform.now(),
        jobs={row.phase: row.jobs for row in await platform.database.rows(_JOBS_BY_PHASE)},
        queue=tuple(
            QueuedJob(
                job=place.job,
                organisation=by_id[place.job].organisation,
                submitted_at=by_id[place.job].created_at,
                waits_for=place.waits_for,
            )
            for place in line
        ),
        attempts=tuple(
            OpenAttempt(
                job=row.job,
                number=row.number,
                organisation=row.organisation,
                phase=row.phase,
                started_at=row.started_at,
                replica=row.holder or "",
            )
            for row in await platform.database.rows(attempts)
        ),
        clearing=tuple(row.id for row in rows if Phase(row.phase).is_final),
        stalled=dict(stalled),
        organisations=await list_uses(platform, who),
        slots=platform.rules.max_running,
        retention=await read_retention(platform),
    )
