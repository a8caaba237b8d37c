"""Which replica moves a run on: one lease per run, by the database's clock.

A replica takes leases that nobody has, keeps them as long as it lives, and loses them so many
seconds after its last word. Each taking counts the lease's fence up; a change of a run is written
under the fence that its replica holds, or not at all, so who was away and comes back late changes
nothing. Attempts are numbered, and engines know them by number, so what such a replica still asks
of an engine is a repetition.

Source: Kleppmann, "How to do distributed locking" (2016), on fencing tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Row, Select, select, update

from control_plane.records.database import Database, Transaction
from control_plane.records.tables import JOB, LEASE
from control_plane.refusals import WrittenMeanwhile

TAKEN_AT_ONCE: Final = 8
"""Leases that a replica takes at a look, so that others find some, too."""
NOBODY: Final[Mapping[str, Any]] = {"holder": "", "fence": 0, "until": 0.0}
"""The lease of a new run."""


class LeaseLost(WrittenMeanwhile):
    """Another replica moves the run on by now; nothing was written."""


def open_runs(database: Database) -> Select[Any]:
    """All runs that are not settled, in order, with ``holder``, ``fence`` and ``left_s``."""
    left_s = (LEASE.c.until - database.clock).label("left_s")
    return (
        select(JOB, LEASE.c.holder, LEASE.c.fence, left_s)
        .join(LEASE, LEASE.c.job == JOB.c.id)
        .where(JOB.c.settled.is_(False))
        .order_by(JOB.c.id)
    )


def held(runs: Iterable[Row[Any]], holder: str) -> dict[str, int]:
    """Fences of the leases that ``holder`` has, by job."""
    return {run.id: run.fence for run in runs if run.holder == holder and run.left_s > 0}


def free(runs: Iterable[Row[Any]]) -> list[str]:
    """Runs whose lease nobody has."""
    return [run.id for run in runs if run.left_s <= 0]


async def take(
    database: Database, holder: str, jobs: Sequence[str], lease_s: float
) -> dict[str, int]:
    """Take the leases of ``jobs`` that are still free; their fences by job.

    What another replica is about to take is passed over, not waited for.

    Raises:
        DatabaseUnavailable: The database did not answer.
    """
    takable = (
        select(LEASE.c.job)
        .where(LEASE.c.job.in_(jobs), LEASE.c.until <= database.clock)
        .with_for_update(skip_locked=True)
    )
    async with database.writing() as transaction:
        rows = await transaction.rows(
            update(LEASE)
            .where(LEASE.c.job.in_(takable))
            .values(holder=holder, fence=LEASE.c.fence + 1, until=database.clock + lease_s)
            .returning(LEASE.c.job, LEASE.c.fence)
        )
    return {row.job: row.fence for row in rows}


async def renew(database: Database, holder: str, lease_s: float) -> None:
    """Keep what ``holder`` has for so much longer.

    Raises:
        DatabaseUnavailable: The database did not answer.
    """
    async with database.writing() as transaction:
        await transaction.execute(
            update(LEASE)
            .where(LEASE.c.holder == holder, LEASE.c.until > database.clock)
            .values(until=database.clock + lease_s)
        )


async def give_up(database: Database, holder: str) -> None:
    """Let others take what ``holder`` has, at once.

    Raises:
        DatabaseUnavailable: The database did not answer; they will when the leases have run out.
    """
    async with database.writing() as transaction:
        await transaction.execute(update(LEASE).where(LEASE.c.holder == holder).values(until=0.0))


async def require(transaction: Transaction, job: str, holder: str, fence: int) -> None:
    """Keep the lease of ``job`` from being taken until the transaction ends.

    Raises:
        LeaseLost: Another replica took it.
    """
    found = await transaction.rows(
        select(LEASE.c.job)
        .where(LEASE.c.job == job, LEASE.c.holder == holder, LEASE.c.fence == fence)
        .with_for_update()
    )
    if not found:
        raise LeaseLost(job)
