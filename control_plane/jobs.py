"""What one may ask of jobs that are on record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from msgspec.structs import replace
from sqlalchemy import Row, bindparam, delete, func, select

from clients.identity import Principal
from clients.resources import Artifact, Event, Job, Round, Workflow
from control_plane import audit, step_logs
from control_plane.authorisation import Action, may, relation_of
from control_plane.event_hub import CLOSED, Told, encode
from control_plane.journal import Fact, load, record
from control_plane.objects import release
from control_plane.pages import Slice, Versioned, cut, newest
from control_plane.platform import Platform
from control_plane.records.tables import (
    ARTIFACT,
    COLLABORATION,
    EVENT,
    JOB,
    JOB_OBJECT,
    MEMBER,
    ROUND,
)
from control_plane.refusals import (
    CancelIsFinal,
    Forbidden,
    JobClosed,
    JobOpen,
    NotFound,
    VersionChanged,
)
from control_plane.views import artifact_of, event_of, job_of, round_of, visibility_of
from control_plane.visibility import Sight, redact_event, redact_job, redact_round, sees_artifact
from control_plane.visibility import sight_of as _sight
from workflows.plan import StepKind
from workflows.run import Desired, Phase

STEPS: Final[tuple[StepKind, ...]] = ("federate", "translate", "publish")
WAITS_FOR_STOP: Final = "the run to stop"
_PAGE: Final = 500
_IN_PLACE: Final = Told(0, "", b"")

_SEEN: Final = (
    select(JOB, COLLABORATION.c.visibility)
    .join(COLLABORATION, COLLABORATION.c.id == JOB.c.collaboration)
    .join(MEMBER, MEMBER.c.collaboration == JOB.c.collaboration)
    .where(MEMBER.c.organisation == bindparam("organisation"))
)
_ONE: Final = _SEEN.where(JOB.c.id == bindparam("job"))
_EVENTS: Final = (
    select(EVENT)
    .where(EVENT.c.job == bindparam("job"), EVENT.c.id > bindparam("after"))
    .order_by(EVENT.c.id)
    .limit(bindparam("limit"))
)
_ROUNDS: Final = (
    select(ROUND)
    .where(ROUND.c.job == bindparam("job"), ROUND.c.number > bindparam("after"))
    .order_by(ROUND.c.number)
    .limit(bindparam("limit"))
)


async def get_job(platform: Platform, who: Principal, job: str) -> Versioned[Job]:
    """One job.

    Raises:
        NotFound: There is none that the caller may know of.
    """
    row, sight = await _see(platform, who, job)
    return Versioned(redact_job(_job(platform, row), sight), row.version)


async def list_jobs(
    platform: Platform,
    who: Principal,
    limit: int,
    before: str | None = None,
    phase: Phase | None = None,
    name: str | None = None,
) -> Slice[Job]:
    """The jobs of the caller's collaborations, newest first."""
    query = newest(_SEEN, JOB.c.id, limit, before)
    if phase is not None:
        query = query.where(JOB.c.phase == phase)
    if name is not None:
        query = query.where(JOB.c.name == name)
    rows = await platform.database.rows(query, {"organisation": who.organisation})
    seen = [(row.id, redact_job(_job(platform, row), sight_on(who, row))) for row in rows]
    return cut(seen, limit)


def _job(platform: Platform, row: Row[Any]) -> Job:
    """A job, unredacted, with the workflow that it is just now."""
    job = job_of(row)
    if platform.locate is None or not row.attempt or row.settled:
        return job
    at = platform.locate(row.id, row.attempt)
    return replace(job, workflow=Workflow(namespace=at.namespace, name=at.name, url=at.url))


async def change_desired(
    platform: Platform, who: Principal, job: str, desired: Desired, version: int | None = None
) -> Versioned[Job]:
    """Say what is wanted of a job. Cancelling can be repeated, and cannot be taken back.

    With a ``version``, only if that is what the job is at.

    Raises:
        NotFound: There is none that the caller may know of.
        Forbidden: The caller may not cancel it.
        VersionChanged: It is not at ``version`` any more.
        JobClosed: It has ended otherwise.
        CancelIsFinal: It is being cancelled.
    """
    seen, _ = await _see(platform, who, job)
    _require(who, Action.CANCEL, seen, "cancel this job")
    async with platform.database.writing() as transaction:
        row = await load(transaction, job)
        if version is not None and row.version != version:
            raise VersionChanged(f"the job is at version {row.version}, not {version}")
        if row.desired == Desired.CANCELLED and desired is Desired.RUN:
            raise CancelIsFinal("a cancelled job can not go on; submit it again")
        if Phase(row.phase).is_final and row.phase != Phase.CANCELLED:
            raise JobClosed(f"the job has {row.phase}; nothing about it can be changed")
        if desired is not Desired(row.desired):
            await record(
                transaction,
                platform.hub,
                row,
                platform.now(),
                {"desired": desired, "waits_for": WAITS_FOR_STOP},
                [Fact(kind="cancel.requested", fields={"by": who.user})],
            )
            await audit.note(transaction, platform.now(), who, "job.cancel", job)
            platform.bell.ring_after(transaction)
    return await get_job(platform, who, job)


async def delete_job(platform: Platform, who: Principal, job: str) -> None:
    """Forget a closed job, with what only it needs; its published model stays.

    A call that was cut short can be repeated.

    Raises:
        NotFound: There is none that the caller may know of.
        Forbidden: The caller may not delete it.
        JobOpen: It has not ended, or is still being cleared away.
    """
    row, _ = await _see(platform, who, job)
    _require(who, Action.DELETE, row, "delete this job")
    if not Phase(row.phase).is_final:
        raise JobOpen("cancel the job first, and wait until it has ended")
    if not row.settled:
        raise JobOpen("the job is still being cleared away; try again in a moment")
    objects = await platform.database.rows(
        select(JOB_OBJECT.c.digest).where(JOB_OBJECT.c.job == job)
    )
    for row in objects:
        await release(platform, job, row.digest)
    async with platform.database.writing() as transaction:
        if await transaction.execute(delete(JOB).where(JOB.c.id == job)):
            await audit.note(transaction, platform.now(), who, "job.delete", job)


async def list_rounds(
    platform: Platform, who: Principal, job: str, after: int, limit: int
) -> Slice[Round]:
    """Rounds on record after the one with number ``after``, oldest first.

    Raises:
        NotFound: There is no such job that the caller may know of.
    """
    _, sight = await _see(platform, who, job)
    rows = await platform.database.rows(_ROUNDS, {"job": job, "after": after, "limit": limit + 1})
    return cut([(str(row.number), redact_round(round_of(row), sight)) for row in rows], limit)


async def list_events(
    platform: Platform, who: Principal, job: str, after: int, limit: int
) -> Slice[Event]:
    """Events after the one with id ``after``, oldest first.

    Raises:
        NotFound: There is no such job that the caller may know of.
    """
    _, sight = await _see(platform, who, job)
    rows = await platform.database.rows(_EVENTS, {"job": job, "after": after, "limit": limit + 1})
    return cut([(str(row.id), redact_event(event_of(row), sight)) for row in rows], limit)


async def watch(
    platform: Platform, who: Principal, job: str, after: int = 0
) -> AsyncIterator[Told]:
    """Events after the one with id ``after``, oldest first, as they happen; ends with the job.

    Raises:
        NotFound: There is no such job that the caller may know of.
        TooManyStreams: The caller, or all together, watch as much as they may.
    """
    row, sight = await _see(platform, who, job)
    is_over = Phase(row.phase).is_final
    stream = _watch(platform, who.user, job, min(after, row.last_event), sight, is_over=is_over)
    await anext(stream)  # its place is taken, and given back when it is closed or forgotten
    return stream


async def list_artifacts(platform: Platform, who: Principal, job: str) -> tuple[Artifact, ...]:
    """Outputs of a job, by name.

    Raises:
        NotFound: There is no such job that the caller may know of.
    """
    _, sight = await _see(platform, who, job)
    rows = await platform.database.rows(
        select(ARTIFACT).where(ARTIFACT.c.job == job).order_by(ARTIFACT.c.name)
    )
    return tuple(artifact_of(row) for row in rows if sees_artifact(row.name, sight))


async def get_artifact(platform: Platform, who: Principal, job: str, name: str) -> Artifact:
    """One output of a job.

    Raises:
        NotFound: There is none that the caller may know of.
    """
    for artifact in await list_artifacts(platform, who, job):
        if artifact.name == name:
            return artifact
    raise NotFound(f"the job has no artifact {name!r}")


async def read_logs(
    platform: Platform,
    who: Principal,
    job: str,
    step: StepKind | None = None,
    tail: int | None = None,
) -> AsyncIterator[bytes]:
    """Logs of the newest attempt's steps, or of one step; several have a line above each.

    With a ``tail``, only the last so many bytes of each.

    Raises:
        NotFound: There is no such job that the caller may know of.
        Forbidden: The caller may not read its logs.
    """
    row, sight = await _see(platform, who, job)
    if not sight.evidence:
        raise Forbidden("you may not read the logs of this job")
    return step_logs.read(platform, job, row.attempt, STEPS if step is None else (step,), tail)


async def open_jobs_by_phase(platform: Platform) -> Mapping[Phase, int]:
    """How many jobs are in each open phase."""
    rows = await platform.database.rows(
        select(JOB.c.phase, func.count().label("jobs"))
        .where(JOB.c.settled.is_(False))
        .group_by(JOB.c.phase)
    )
    counted = {row.phase: row.jobs for row in rows}
    return {phase: counted.get(phase, 0) for phase in Phase if not phase.is_final}


async def oldest_wait_s(platform: Platform) -> float:
    """Seconds since the job was submitted that has waited longest for a slot; 0 if none waits."""
    row = await platform.database.one_or_none(
        select(JOB.c.created_at)
        .where(JOB.c.settled.is_(False), JOB.c.phase == Phase.PENDING)
        .order_by(JOB.c.id)
        .limit(1)
    )
    return 0.0 if row is None else max(0.0, (platform.now() - row.created_at).total_seconds())


def sight_on(who: Principal, row: Row[Any]) -> Sight:
    """What ``who`` sees of a row that has an owner and its collaboration's visibility."""
    return _sight(who, row.organisation, visibility_of(row.visibility))


async def _see(platform: Platform, who: Principal, job: str) -> tuple[Row[Any], Sight]:
    row = await platform.database.one_or_none(_ONE, {"organisation": who.organisation, "job": job})
    if row is None:
        raise NotFound("no such job")
    return row, sight_on(who, row)


def _require(who: Principal, action: Action, row: Row[Any], deed: str) -> None:
    """Refuse ``action`` on a job that ``who`` sees, and so is of its collaboration."""
    relation = relation_of(who, row.organisation, is_partner=True)
    if not may(who.roles, action, relation):
        raise Forbidden(f"your roles do not allow you to {deed}")


async def _watch(
    platform: Platform, user: str, job: str, after: int, sight: Sight, *, is_over: bool
) -> AsyncIterator[Told]:
    """Yield ``_IN_PLACE``, then what comes; if the job ``is_over``, all that there is."""
    hub = platform.hub
    with hub.watching(job, user):
        yield _IN_PLACE
        while not hub.is_closed:
            changed = hub.changed(job)
            batch = hub.since(job, after, sight)
            if batch is None:
                rows = await platform.database.rows(
                    _EVENTS, {"job": job, "after": after, "limit": _PAGE}
                )
                batch = [encode(event_of(row), sight) for row in rows]
            for told in batch:
                yield told
                after = told.id
                if told.kind == CLOSED:
                    return
            if not batch:
                if is_over:
                    return
                await changed.wait()
